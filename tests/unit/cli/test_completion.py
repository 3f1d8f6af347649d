"""Each shell reads its file and completes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nat_traverse.cli.completion import FILES, SHELLS, main
from nat_traverse.cli.options import COMMANDS, DEMO, KEYGEN, KINDS, STATUS, TUNNEL, UP
from support.tools import need

COMMITTED = Path(__file__).parents[3] / "docs" / "completion"
KIND_WORDS = {choice.word for choice in KINDS}
TUNNEL_OPTIONS = {option.word for option in TUNNEL.options}
DEMO_OPTIONS = {option.word for option in DEMO.options}
KEYGEN_OPTIONS = {option.word for option in KEYGEN.options}
UP_OPTIONS = {option.word for option in UP.options}
STATUS_OPTIONS = {option.word for option in STATUS.options}
LETTERS = {"-L", "-R", "-D"}
NAMES = {"home", "office-2"}


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tunnels that files describe, and a directory with another file to be in."""
    directory = tmp_path / "nat-traverse"
    directory.mkdir()
    for name in NAMES:
        (directory / f"{name}.toml").write_text("")
    (directory / "secret").write_text("")
    (tmp_path / "key file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(program: str, *arguments: str) -> list[str]:
    run = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_committed_file_is_the_generated_one(shell: str) -> None:
    generated = output(sys.executable, "-m", "nat_traverse.cli.completion", shell)
    assert (COMMITTED / FILES[shell]).read_text() == SHELLS[shell](), (
        f"run python -m nat_traverse.cli.completion {shell} > docs/completion/{FILES[shell]}"
    )
    assert generated == SHELLS[shell]().splitlines()


def test_one_shell_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["csh"]) == 2
    assert main(["bash"]) == 0
    captured = capsys.readouterr()
    assert captured.out == SHELLS["bash"]()
    assert captured.err == "name one shell: bash, zsh, fish\n" * 2


def bash(*words: str) -> set[str]:
    """What bash offers for the last of `words`, which are cut at `=` as bash does it."""
    script = """
        source "$1" || exit
        shift
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        _nat_traverse
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    program = need("bash", package="bash")
    path = str(COMMITTED / FILES["bash"])
    lines = output(program, "--norc", "-c", script, "bash", path, "nat-traverse", *words)
    return {line for line in lines if line}


def test_bash_reads_it() -> None:
    assert output(need("bash", package="bash"), "-n", str(COMMITTED / FILES["bash"])) == []


def test_bash_completes() -> None:
    assert bash("-") == TUNNEL_OPTIONS
    assert bash("--q") == {"--quiet", "--quit-after-connect"}
    assert bash("--quiet", "--ti") == {"--timeout"}
    assert bash("-L") == {"-L"}
    assert bash("-L", "") == set()
    assert bash("de") == {"demo"}
    assert bash("keygen", "-") == KEYGEN_OPTIONS
    assert bash("--quiet", "de") == set()
    assert bash("demo", "-") == DEMO_OPTIONS
    assert bash("demo", "--left", "") == KIND_WORDS
    assert bash("demo", "--left", "dr") == {"drop"}
    assert bash("demo", "--left", "=", "r") == {"reject", "random"}
    assert bash("demo", "--left", "=") == KIND_WORDS
    assert bash("--window", "") == set()
    assert "compgen" in bash("--cmd", "compge")
    assert bash("up", "-") == UP_OPTIONS
    assert bash("status", "-") == STATUS_OPTIONS
    assert bash("") == set(COMMANDS)


def test_bash_completes_names_and_files(described: Path) -> None:
    assert bash("up", "") >= NAMES
    assert bash("up", "home", "off") == {"office-2"}
    assert bash("status", "--json", "h") == {"home"}
    assert bash("--secret-file", "key") == {"key file"}
    assert bash("keygen", "key") == {"key file"}
    for path in (described / "nat-traverse").iterdir():
        path.unlink()
    assert not bash("up", "") & {"*", "*.toml", *NAMES}


HOSTILE = ("$(touch pwned)", "`touch pwned`", ";touch pwned;", "a b", "x'y", "-q", "*", "{a,b}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_no_shell_reads_anything_into_a_name(shell: str, described: Path) -> None:
    for name in HOSTILE:
        (described / "nat-traverse" / f"{name}.toml").write_text("")
    if shell == "bash":
        offered = bash("up", "")
        assert offered & {*HOSTILE, *NAMES, "a", "b", "touch"} == NAMES
        assert bash("up", "$") == set()
    elif shell == "zsh":
        line = zsh("up", "")[-1]
        assert not set(line) & set("$`;'{}")
        assert set(line.removesuffix(")").partition("(")[2].split()) >= NAMES
    else:
        (described / "nat-traverse" / "a\\x2db.toml").write_text("")
        offered = fish("nat-traverse up ")
        assert offered >= {*NAMES, "a\\x2db"}
        assert not offered & set(HOSTILE)
    assert not list(described.rglob("pwned"))


def test_bash_quotes_what_a_shell_would_change(described: Path) -> None:
    (described / "nat-traverse" / "a\\x2db.toml").write_text("")
    assert bash("up", "a") == {"a\\\\x2db"}
    assert bash("up", "a\\\\x") == {"a\\\\x2db"}


def fish(line: str) -> set[str]:
    """What fish offers at the end of `line`, without the descriptions."""
    script = f"source {COMMITTED / FILES['fish']}; complete -C '{line}'"
    lines = output(need("fish", package="fish"), "--no-config", "-c", script)
    return {text.split("\t")[0] for text in lines}


def test_fish_reads_it() -> None:
    assert output(need("fish", package="fish"), "-n", str(COMMITTED / FILES["fish"])) == []


def test_fish_completes() -> None:
    assert fish("nat-traverse --") == TUNNEL_OPTIONS - LETTERS
    assert fish("nat-traverse -") >= LETTERS
    assert fish("nat-traverse k") == {"keygen"}
    assert fish("nat-traverse keygen --") == KEYGEN_OPTIONS
    assert fish("nat-traverse --q") == {"--quiet", "--quit-after-connect"}
    assert fish("nat-traverse d") == {"demo"}
    assert fish("nat-traverse demo --") == DEMO_OPTIONS
    assert fish("nat-traverse demo --left ") == KIND_WORDS
    assert fish("nat-traverse demo --left=dr") == {"--left=drop"}
    assert fish("nat-traverse --window ") == set()
    assert "bash" in fish("nat-traverse --cmd bas")
    assert fish("nat-traverse up --") == UP_OPTIONS
    assert fish("nat-traverse status --") == STATUS_OPTIONS


def test_fish_completes_names_and_files(described: Path) -> None:
    assert fish("nat-traverse up ") >= NAMES
    assert fish("nat-traverse up home off") == {"office-2"}
    assert fish("nat-traverse status --json h") == {"home"}
    assert fish("nat-traverse --secret-file key") == {"key file"}
    assert fish("nat-traverse keygen key") == {"key file"}
    for path in (described / "nat-traverse").iterdir():
        path.unlink()
    assert not fish("nat-traverse up ") & {"*", *NAMES}


def zsh(*words: str) -> list[str]:
    """What the file hands to zsh's completion system when `words` were typed."""
    script = """
        _arguments() { print -l -- "${words[1]} $CURRENT" "$@" }
        _describe() { print -l -- "describe ${(P)2}" }
        file=$1
        shift
        words=("$@")
        CURRENT=$#
        PREFIX=${words[-1]}
        complete() { source "$file" }
        complete
    """
    program = need("zsh", package="zsh")
    path = str(COMMITTED / FILES["zsh"])
    return output(program, "-f", "-c", script, "zsh", path, "nat-traverse", *words)


def test_zsh_reads_it() -> None:
    assert output(need("zsh", package="zsh"), "-f", "-n", str(COMMITTED / FILES["zsh"])) == []


def test_zsh_completes() -> None:
    first, *options = zsh("--quiet", "-")
    assert first == "nat-traverse 3"
    assert {option.split("[")[0].strip("*=") for option in options} == TUNNEL_OPTIONS
    repeated = {option.word for option in TUNNEL.options if option.repeatable}
    assert {each.split("[")[0].strip("*=") for each in options if each[0] == "*"} == repeated
    first, *options = zsh("demo", "-")
    assert first == "demo 2"
    assert {option.split("[")[0].rstrip("=") for option in options} == DEMO_OPTIONS
    assert any(option.endswith(f"({' '.join(c.word for c in KINDS)})") for option in options)
    assert zsh("de")[0].startswith("describe demo:")
    assert not any(line.startswith("describe") for line in zsh("-"))


def test_zsh_completes_names_and_files(described: Path) -> None:
    for command, known in (("up", UP_OPTIONS), ("status", STATUS_OPTIONS)):
        first, *options, operands = zsh(command, "-")
        assert first == f"{command} 2"
        assert {option.split("[")[0] for option in options} == known
        assert operands.startswith("*:NAME:(")
        assert set(operands.removesuffix(")").partition("(")[2].split()) >= NAMES
    assert zsh("keygen", "")[-1] == "1:FILE:_files"
    assert any(line.startswith("--secret-file=") and line.endswith(":_files") for line in zsh("-"))
    for path in (described / "nat-traverse").iterdir():
        path.unlink()
    assert not set(zsh("up", "")[-1].removesuffix(")").partition("(")[2].split()) & NAMES
