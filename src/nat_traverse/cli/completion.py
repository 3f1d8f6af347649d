"""Completion for bash, zsh and fish, from the table of options.

`python -m nat_traverse.cli.completion SHELL` prints the file for one of them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nat_traverse.cli.options import COMMANDS, FLAG, TUNNEL
from nat_traverse.cli.places import PROGRAM, SUFFIX, SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nat_traverse.cli.options import Command, Option

EVERY = (TUNNEL, *COMMANDS.values())

# What can be a name, as bash has it below; of four backslashes fish's quotes leave two.
_FISH_NAME = r"[A-Za-z0-9_@][A-Za-z0-9_@.:\\\\-]*"

_FISH_NAMES = f"""\
# The names of the tunnels that files describe; a file may be called what can be no name.
function __nat_traverse_names
    set -q XDG_CONFIG_HOME; and set -l base $XDG_CONFIG_HOME; or set -l base $HOME/.config
    for file in $base/{PROGRAM}/*{SUFFIX} {SYSTEM}/*{SUFFIX}
        string replace -rf '^.*/({_FISH_NAME})\\{SUFFIX}$' '$1' -- $file
    end
end
"""


def bash() -> str:
    """Return the completion for bash 4 and later; it needs no bash-completion package.

    bash hands over `--left=drop` as three words, and `:` splits words too, hence the first lines.
    """
    commands = "\n".join(
        f"        {command.name}) {_bash_command(command)} ;;" for command in EVERY[1:]
    )
    return f"""\
# bash completion for nat-traverse

# Offer the names, which begin with $1, of the tunnels that files describe. A file may be called
# anything, and what is offered is typed: so only what can be a name, and no part of it is expanded.
_nat_traverse_names()
{{
    local file name known='^[A-Za-z0-9_@][A-Za-z0-9_@.:\\-]*$'
    for file in "${{XDG_CONFIG_HOME:-$HOME/.config}}/{PROGRAM}/"*{SUFFIX} {SYSTEM}/*{SUFFIX}; do
        name=${{file##*/}}
        name=${{name%{SUFFIX}}}
        [[ $name =~ $known ]] || continue
        printf -v name %q "$name"
        [[ $name == "$1"* ]] && COMPREPLY+=("$name")
    done
}}

# Offer the files that begin with $1; bash then quotes what a shell would read something into.
_nat_traverse_files()
{{
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
    compopt -o filenames 2>/dev/null
}}

_nat_traverse()
{{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
    local options operands=
    if [[ $current == "=" ]]; then
        current=
    elif [[ $before == "=" ]]; then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    COMPREPLY=()

    case $before in
{_bash_values()}
    esac

    case ${{COMP_WORDS[1]}} in
{commands}
        *) options="{_spellings(TUNNEL)}" ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    elif ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "{" ".join(COMMANDS)}" -- "$current")
    elif [[ $operands == file ]]; then
        _nat_traverse_files "$current"
    elif [[ $operands == names ]]; then
        _nat_traverse_names "$current"
    fi
}}

complete -F _nat_traverse nat-traverse
"""


def zsh() -> str:
    """Return the completion for zsh's compinit; the file has to be called `_nat-traverse`."""
    commands = "\n".join(
        f"    {command.name})\n        shift words\n        (( CURRENT-- ))\n"
        f"        _arguments \\\n{_zsh_arguments(command)}\n        ;;"
        for command in EVERY[1:]
    )
    words = " ".join(_quoted(f"{command.name}:{command.summary}") for command in EVERY[1:])
    return f"""\
#compdef nat-traverse

local -a commands names
commands=({words})
# The names of the tunnels that files describe. A file may be called anything, and _arguments
# evaluates what it is given: so only names of letters, digits and a few signs.
names=(${{XDG_CONFIG_HOME:-$HOME/.config}}/{PROGRAM}/*{SUFFIX}(N:t:r) {SYSTEM}/*{SUFFIX}(N:t:r))
names=(${{names:#*[^A-Za-z0-9_@.-]*}})

case $words[2] in
{commands}
    *)
        if (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then
            _describe command commands
        fi
        _arguments \\
{_zsh_arguments(TUNNEL)}
        ;;
esac
"""


def fish() -> str:
    """Return the completion for fish."""
    names = " ".join(COMMANDS)
    lines = ["# fish completion for nat-traverse", "", _FISH_NAMES, "complete -c nat-traverse -f"]
    lines += [
        f"complete -c nat-traverse -n __fish_is_first_arg -a {command.name}"
        f" -d {_quoted(command.summary)}"
        for command in EVERY[1:]
    ]
    for command in EVERY:
        seen = f"__fish_seen_subcommand_from {command.name or names}"
        condition = seen if command.name else f"not {seen}"
        lines += [_fish_option(option, condition) for option in command.options]
        if command.operands:
            offered = "-a '(__nat_traverse_names)'" if command.operands == "names" else "-F"
            lines.append(f"complete -c nat-traverse -n '{condition}' {offered}")
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
FILES = {"bash": "nat-traverse.bash", "zsh": "_nat-traverse", "fish": "nat-traverse.fish"}
"""The file names that the shells' own loaders look for, or the nearest to that."""


def _spellings(command: Command) -> str:
    return " ".join(option.word for option in command.options)


def _valued() -> Iterable[Option]:
    """Return the options that take a value, each name once."""
    options = {option.name: option for command in EVERY for option in command.options}
    return [option for option in options.values() if option.kind != FLAG]


def _words(option: Option) -> str:
    return " ".join(choice.word for choice in option.choices)


def _quoted(text: str) -> str:
    """Quote for any of the three shells, which disagree about how to write an apostrophe."""
    return "'" + text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}") + "'"


def _bash_values() -> str:
    """Return the branches that complete an option's value."""
    return "\n".join(f"        {option.word}){_bash_value(option)} ;;" for option in _valued())


def _bash_value(option: Option) -> str:
    if option.choices:
        words = f'-W "{_words(option)}"'
    elif option.shell_command:
        words = "-c"
    elif option.file:
        return ' _nat_traverse_files "$current"; return'
    else:
        return " return"
    return f' mapfile -t COMPREPLY < <(compgen {words} -- "$current"); return'


def _bash_command(command: Command) -> str:
    """Return what sets the options of a command, and what its operands are."""
    operands = f"; operands={command.operands}" if command.operands else ""
    return f'options="{_spellings(command)}"{operands}'


def _zsh_arguments(command: Command) -> str:
    """Return the words for _arguments: the options, and what can stand for the operands."""
    words = [_zsh_option(option) for option in command.options]
    if command.operands == "names":
        words.append('"*:NAME:($names)"')
    elif command.operands == "file":
        words.append(f"'1:{command.operand}:_files'")
    return " \\\n".join(f"            {word}" for word in words)


def _zsh_option(option: Option) -> str:
    """Return what _arguments wants: `--name=[what it is]:metavar:action`."""
    summary = option.label.replace("[", "(").replace("]", ")").replace(":", ",")
    if option.kind == FLAG:
        return _quoted(f"{option.word}[{summary}]")
    action = ""
    if option.choices:
        action = f"({_words(option)})"
    elif option.shell_command:
        action = "_command_names -e"
    elif option.file:
        action = "_files"
    metavar = option.metavar.replace("[", "(").replace("]", ")").replace(":", "\\:")
    joint = "=" if len(option.name) > 1 else ""  # `-L value`, and never `-L=value`
    often = "*" if option.repeatable else ""
    return _quoted(f"{often}{option.word}{joint}[{summary}]:{metavar}:{action}")


def _fish_option(option: Option, condition: str) -> str:
    spelled = f"-l {option.name}" if len(option.name) > 1 else f"-s {option.name.upper()}"
    line = f"complete -c nat-traverse -n '{condition}' {spelled}"
    if option.kind != FLAG:
        line += " -r -F" if option.file else " -x"
    if option.choices:
        line += f" -a '{_words(option)}'"
    elif option.shell_command:
        line += " -a '(__fish_complete_command)'"
    return f"{line} -d {_quoted(option.label)}"


def main(arguments: list[str]) -> int:
    """Print the completion for the one shell that `arguments` names; return the exit status."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        print(f"name one shell: {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    sys.stdout.write(SHELLS[arguments[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
