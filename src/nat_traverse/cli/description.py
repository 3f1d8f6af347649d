"""What a tunnel of `nat-traverse up` is to be: a file in TOML, whose keys are the options.

A key is the long name of an option, or `L`, `R` or `D`; a flag is true or false, and an option that
may be given more than once is a list. `connect` is the operand. From there on it is what a command
line is: the same settings, made by the same rules.
"""

from __future__ import annotations

import os
import re
import tomllib
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.specs import written_paths
from nat_traverse.cli.arguments import settle_tunnel
from nat_traverse.cli.credentials import PRIVATE, UNCHANGED, check_access, read_with_status
from nat_traverse.cli.getopt import Given, Scan
from nat_traverse.cli.options import FLAG, HELP, INTEGER, SECRET, TUNNEL, VERSION
from nat_traverse.errors import UsageError
from nat_traverse.form import FORM
from nat_traverse.tunnel.keys import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nat_traverse.carry.specs import Dynamic, Exposed, Forward
    from nat_traverse.cli.options import Option
    from nat_traverse.cli.settings import Connect

CONNECT: Final = "connect"
# Its file says what to connect, and it begins again by itself.
WIREGUARD: Final = "wireguard"

# What a service can run, by the names of the options: all that can begin again. Standard input and
# output can't, since nobody could tell which bytes of theirs had arrived.
SERVICES: Final = ("l", "r", "d", "expose", "cmd", "vpn", WIREGUARD)

# Options that make no sense for one tunnel of several that stay.
_ALONE: Final = {
    "handoff": "the process would become another program",
    "quit-after-connect": "a service stays",
    "plain": "it can't begin again",
}

# A description may be anywhere, so names in it count from where it is. These two say otherwise; the
# second is where systemd puts what LoadCredential= names.
_HOME: Final = "~/"
_CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"

_TAKES: Final = {
    FLAG: "true or false",
    INTEGER: "a number, without quotes",
}
_TEXT: Final = "a text, in quotes"


def keys() -> dict[str, Option]:
    """Return the options that a description may have, by their keys, in the order of the table."""
    rest = [option for option in TUNNEL.options if option not in (HELP, VERSION)]
    return {option.key: option for option in rest if option.name not in _ALONE}


def services() -> list[str]:
    """Return the keys of which a description needs at least one."""
    return [key for key, option in keys().items() if option.name in SERVICES]


def read_description(path: str, environment: Mapping[str, str]) -> Connect:
    """Return the settings of the tunnel that the file `path` describes.

    Raises UsageError, with a line for each thing that is wrong, and ErrnoError for a file that
    can't be read, or that others may change: it says which commands are run.
    """
    content, status = read_with_status(path, "the description", UNCHANGED)
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # also for numbers of some thousand digits
        raise UsageError(f"{path} is not TOML: {error}") from None
    if "secret" in table:
        # Others may see what a file says that has no secret in it.
        check_access(status, path, "the description, which has a secret in it,", PRIVATE)
    reader = _Reader(path, environment)
    events = [event for key, value in table.items() for event in reader.given(key, value)]
    operands = list(reader.operand(table))
    if not any(event.name in SERVICES for event in events):
        reader.wrong(
            f"it carries nothing that could begin again; one of these is needed: {_list()}"
        )
    reader.check()
    connect = reader.settled(Scan(_completed(table, events), operands))
    for key, spec in _specs(connect):
        # Any other was completed from where this program happens to run.
        if not all(written.startswith("/") for written in written_paths(spec)):
            reader.wrong(f"{key}: {spec.text!r}: a path in a description has to begin with /")
    reader.check()
    return connect


def _specs(connect: Connect) -> Iterator[tuple[str, Forward | Dynamic | Exposed]]:
    """Yield what may have a Unix socket in it, each with its key."""
    yield from (("L", each) for each in connect.locals_)
    yield from (("R", each) for each in connect.remotes)
    yield from (("D", each) for each in connect.dynamics)
    yield from (("expose", each) for each in connect.exposed)


def _completed(table: Mapping[str, object], events: list[Given]) -> list[Given]:
    """Add what a service does unless its description says otherwise."""
    more = []
    if "retry" not in table and WIREGUARD not in table:
        more.append(Given("retry", None))
    if "timeout" not in table and "window" not in table:
        more.append(Given("timeout", 0))
    return [*events, *more]


class _Reader:
    """Reads one file; collects what is wrong with it."""

    def __init__(self, path: str, environment: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._path = path
        self._base = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 (resolves no links)
        self._environment = environment

    def wrong(self, text: str) -> None:
        """Note a problem."""
        self.problems.append(f"{self._path}: {text}")

    def check(self) -> None:
        """Raise UsageError if there are problems."""
        if self.problems:
            raise UsageError("\n".join(self.problems))

    def operand(self, table: Mapping[str, object]) -> Iterator[str]:
        """Yield what a command line would have as its operand; what is wrong with it is noted."""
        value = table.get(CONNECT)
        if CONNECT not in table:
            if WIREGUARD not in table:
                self.wrong(f'{CONNECT} is missing: {CONNECT} = "{FORM}"')
        elif WIREGUARD in table:
            self.wrong(f"{CONNECT}: leave it out: the file of {WIREGUARD} says what to connect")
        elif not isinstance(value, str):
            self.wrong(f"{CONNECT}: {_TEXT} is wanted, not {_shown(value)}")
        else:
            yield value

    def given(self, key: str, value: object) -> Iterator[Given]:
        """Yield what a key and its value are as options of a command line."""
        if key == CONNECT:
            return
        option = keys().get(key)
        if option is None:
            self.wrong(_unknown(key))
            return
        several = isinstance(value, list) and option.repeatable
        for each in value if several and isinstance(value, list) else [value]:
            if not _fits(option, each):
                takes = _TAKES.get(option.kind, _TEXT)
                takes += ", or a list of such" if option.repeatable else ""
                found = "" if option.name == SECRET.name else f", not {_shown(each)}"
                self.wrong(f"{key}: {takes} is wanted{found}")
            elif option.kind == FLAG:
                if each:
                    yield Given(option.name, None)
            elif isinstance(each, str) and option.file:
                yield Given(option.name, self._located(option, each))
            elif isinstance(each, str | int):
                yield Given(option.name, each)

    def settled(self, found: Scan) -> Connect:
        """Return the settings; what is wrong with them is told with the file and the key."""
        try:
            return settle_tunnel(found)
        except UsageError as error:
            text = str(error)
            words = {option.word: key for key, option in keys().items()}
            pattern = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
            named = re.search(rf"(?<![\w-])({pattern})(?![\w-])", text)
            # What names no option is about the operand.
            key = CONNECT if named is None else words[named[1]]
            raise UsageError(f"{self._path}: {key}: {text}") from None

    def _located(self, option: Option, value: str) -> str:
        """Return the name of a file as it is from anywhere; what it lacks for that is noted."""
        if option.name == "peer-key" and value.strip().lower().startswith(PREFIX):
            return value  # a key itself
        if option.name == WIREGUARD and "/" not in value and not value.endswith(".conf"):
            return value  # the name of a device, which says where its file is
        for prefix, variable, whence in (
            (_HOME, "HOME", "who has started this program has not said where that is"),
            (f"${_CREDENTIALS}/", _CREDENTIALS, "systemd sets it, for a unit with LoadCredential="),
        ):
            if value.startswith(prefix):
                directory = self._environment.get(variable)
                if not directory:
                    self.wrong(f"{option.key}: {value!r}: {variable} is not set: {whence}")
                return f"{directory}/{value.removeprefix(prefix)}"
        return os.path.join(self._base, value)  # noqa: PTH118 (a str all the way)


def _fits(option: Option, value: object) -> bool:
    """Tell whether a value is of the kind that an option takes. In Python, true is a number."""
    if option.kind == FLAG:
        return isinstance(value, bool)
    if option.kind == INTEGER:
        return isinstance(value, int) and not isinstance(value, bool)
    # No command line has a NUL character in a word, so nobody behind this door expects one.
    return isinstance(value, str) and "\0" not in value


def _unknown(key: str) -> str:
    """Return what is wrong with a key that a description may not have."""
    for name, reason in _ALONE.items():
        if key == name:
            return f"{key} is for a command line only: {reason}"
    lowered = key.lower().lstrip("-")
    meant = next((known for known in keys() if known.lower() == lowered), None)
    hint = "" if meant is None else f"; do you mean {meant}?"
    return f"{_quoted(key)} is no option{hint}"


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else repr(key)


def _shown(value: object) -> str:
    """Return a value as TOML has it, roughly: what the user has written, and can find."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    try:
        return str(value)
    except ValueError:  # it reads 0xfff... of any length, and writes no more than 4300 digits
        return "a number"


def _list() -> str:
    return ", ".join(services())
