"""From the words of a command line to what is to be done."""

from __future__ import annotations

from nat_traverse.cli.getopt import Given, scan
from nat_traverse.cli.options import (
    COMMANDS,
    DEFAULT_KIND,
    DEMO,
    HARD,
    KEEPALIVE,
    KEYGEN,
    RATE,
    STATUS,
    TTL,
    TUNNEL,
    UP,
)
from nat_traverse.errors import UsageError
from nat_traverse.form import FORM

TYPE_CHECKING = False  # importing typing would double the time that --version takes
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from nat_traverse.carry.addressing import Plan
    from nat_traverse.carry.wireguard import Configuration
    from nat_traverse.cli.getopt import Scan
    from nat_traverse.cli.options import Command
    from nat_traverse.cli.settings import Connect, Demo, Keygen, Status, Up
    from nat_traverse.target import Target

    Request = Connect | Demo | Keygen | Up | Status
    Values = dict[str, str | int | None]

DEADLINE: Final = 180.0
"""Seconds to try when the user named no limit. Long, because success matters more than giving up
early: the other user has to be told, walk to a keyboard and type."""

PART: Final = 10
"""Seconds that --window and --timeout each stand for when only the other is given, as in 0.7."""

LONGEST: Final = 366 * 24 * 3600
"""A limit of more seconds than this, a year, is none: no clock is asked for sums near infinity."""

LARGEST_TTL: Final = 255
"""The field in a packet's header has eight bits."""

LARGEST_PORT: Final = 65535
"""A port number has sixteen."""

SMALLEST_RATE: Final = 20
"""Packets a second: the agreed ports need a dozen, and less than these would find nothing."""

LARGEST_RATE: Final = 100_000
"""Packets a second: more than a program like this can send, or any gateway take."""

LONGEST_KEEPALIVE: Final = 25
"""Seconds: below the 30 s after which the quickest gateways measured forget a path."""

HINT: Final = "Try 'nat-traverse --help'."


class ShowVersion:
    """Print the version on standard output."""

    __slots__ = ()


class ShowHelp:
    """Print the help text of `command` on standard output."""

    __slots__ = ("command",)

    def __init__(self, command: Command) -> None:
        self.command = command


def parse(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> ShowVersion | ShowHelp | Request:
    """Read `arguments`, which do not include the program's name.

    Raises UsageError, whose text is what the user reads: one line for each thing that is wrong,
    then where to find help. `--version` and `--help` act when they are met, whatever comes after
    them, but not when something before them is wrong: a script is to notice its typing error.
    """
    command = COMMANDS.get(arguments[0], TUNNEL) if arguments else TUNNEL
    words = arguments if command is TUNNEL else arguments[1:]
    found = scan(words, command.options, posix="POSIXLY_CORRECT" in environment)
    try:
        return _shown(found, command) or _settled(found, command)
    except UsageError as error:
        raise UsageError(f"{error}\n{HINT}") from None


def _shown(found: Scan, command: Command) -> ShowVersion | ShowHelp | None:
    """Return what `--version` or `--help` ask for, when nothing went wrong before it."""
    for event in found.events:
        if not isinstance(event, Given):
            return None
        if event.name == "version":
            return ShowVersion()
        if event.name == "help":
            return ShowHelp(command)
    return None


def settle_tunnel(found: Scan) -> Connect:
    """Turn a scan of the tunnel's options into settings; the last of several equal options counts.

    Every tunnel comes in by this door, whether a command line or a file describes it.
    """
    return _connect(_values(found), _verbosity(found), found)


def _settled(found: Scan, command: Command) -> Request:
    """Turn a scan into settings; the last of several equal options counts."""
    if found.errors:
        raise UsageError("\n".join(found.errors))
    values, verbosity = _values(found), _verbosity(found)
    if command is DEMO:
        return _demo(values, verbosity, found.operands)
    if command is KEYGEN:
        return _keygen(values, found.operands)
    if command is UP:
        return _up(values, verbosity, found.operands)
    if command is STATUS:
        return _status(values, found.operands)
    return settle_tunnel(found)


def _values(found: Scan) -> Values:
    return {event.name: event.value for event in found.events if isinstance(event, Given)}


def _connect(values: Values, verbosity: int, found: Scan) -> Connect:
    from nat_traverse.carry import specs  # noqa: PLC0415 (--version needs none of it)
    from nat_traverse.cli.settings import Connect  # noqa: PLC0415 (the same)

    operands, hints = found.operands, _hints(found)
    wireguard = _wireguard(values, operands)
    target = _target(operands) if wireguard is None else wireguard.target
    window, timeout = _number(values, "window"), _number(values, "timeout")
    leaves = "quit-after-connect" in values
    cmd, handoff = _text(values, "cmd"), _text(values, "handoff")
    ttl = _text(values, "ttl")
    rate, keepalive = _number(values, "rate"), _number(values, "keepalive")
    if handoff is not None and (leaves or cmd is not None):
        other = "--quit-after-connect" if leaves else "--cmd"
        raise UsageError(f"--handoff and {other} exclude each other: either gets the path alone")
    if handoff == "":
        raise UsageError("--handoff wants a command, not an empty word")
    if leaves:
        cmd = None  # 0.7 never got as far as running it
    elif cmd == "":
        raise UsageError("--cmd wants a command, not an empty word")
    _check_choices(values, TUNNEL)
    connect = Connect(
        target=target,
        deadline=_deadline(window, timeout),
        window=None if window is None else max(0, window),
        cmd=cmd,
        handoff=handoff,
        quit_after_connect=leaves,
        wireguard=wireguard,
        hard=_text(values, "hard") or HARD.default,
        ttl=_ttl(TTL.default if ttl is None else ttl),
        hints=hints,
        rate=_bounded(
            "rate", int(RATE.default) if rate is None else rate, SMALLEST_RATE, LARGEST_RATE
        ),
        datagrams="datagrams" in values,
        plain="plain" in values,
        locals_=tuple(map(specs.parse_local, _all(found, "l"))),
        remotes=tuple(map(specs.parse_remote, _all(found, "r"))),
        dynamics=tuple(map(specs.parse_dynamic, _all(found, "d"))),
        exposed=tuple(map(specs.parse_exposed, _all(found, "expose"))),
        retry="retry" in values,
        vpn=_vpn(values, found),
        secret=_text(values, "secret"),
        secret_file=_text(values, "secret-file"),
        identity=_text(values, "identity"),
        peer_keys=tuple(_all(found, "peer-key")),
        keepalive=_bounded(
            "keepalive",
            int(KEEPALIVE.default) if keepalive is None else keepalive,
            *(1, LONGEST_KEEPALIVE),
        ),
        verbosity=verbosity,
        json="json" in values,
    )
    _check_together(connect, values)
    return connect


def _check_together(connect: Connect, values: Values) -> None:
    """Refuse options that contradict each other."""
    leaves = connect.leaves
    proven = [name for name in ("secret", "secret-file", "identity", "peer-key") if name in values]
    forward = next((f"-{name.upper()}" for name in ("l", "r", "d") if name in values), "--expose")
    purposes = [forward] if connect.forwards else []
    purposes += ["--vpn"] if connect.vpn else []
    others = [name for name in ("cmd", "datagrams") if name in values and not leaves]
    if purposes and len(purposes) + len(others) > 1:
        first, other = (*purposes, *(f"--{name}" for name in reversed(others)))[:2]
        raise UsageError(f"{first} and {other} exclude each other: a tunnel is for one purpose")
    needs = [*purposes]
    needs += [f"--{name}" for name in ("datagrams", "retry") if name in values]
    if connect.wireguard is not None and needs:
        if needs[0] == "--retry":
            raise UsageError("--wireguard looks for a path again by itself: leave --retry out")
        raise UsageError(f"--wireguard excludes {needs[0]}: WireGuard carries all itself")
    if leaves and needs:
        raise UsageError(f"{needs[0]} needs a tunnel, and this command makes none")
    needs += [f"--{name}" for name in proven]
    if connect.wireguard is not None and connect.plain:
        raise UsageError("--wireguard excludes --plain: WireGuard encrypts, and carries all itself")
    if leaves and connect.wireguard is None and "keepalive" in values:
        raise UsageError(
            "--keepalive is about a tunnel, and this command makes none: the program that uses the"
            " path has to keep it open"
        )
    if connect.plain and needs:
        raise UsageError(f"--plain excludes {needs[0]}, which needs the encrypted tunnel")
    if leaves and proven:
        raise UsageError(
            f"--{proven[0]} proves who is at the other end of a tunnel, and this command makes"
            " none: the program that uses the path has to prove it by itself"
        )
    if connect.retry and not purposes and connect.cmd is None:
        raise UsageError(
            "--retry needs a port forward, --vpn or --cmd: of standard input nobody could tell"
            " which bytes had arrived"
        )


def _vpn(values: Values, found: Scan) -> Plan | None:
    """Return what the options of a VPN say; None without `--vpn`."""
    details = [name for name in ("vpn-device", "route", "announce", "user") if name in values]
    if "vpn" not in values:
        if details:
            raise UsageError(f"--{details[0]} is about a VPN, and --vpn is missing")
        return None
    from nat_traverse.carry import addressing  # noqa: PLC0415 (--version needs none of it)

    return addressing.make_plan(
        addresses=_all(found, "vpn"),
        routes=_all(found, "route"),
        announced=_all(found, "announce"),
        device=_text(values, "vpn-device"),
        user=_text(values, "user"),
    )


def _wireguard(values: Values, operands: Sequence[str]) -> Configuration | None:
    """Read the file of `--wireguard`, which says what an operand would; None without it."""
    name = _text(values, "wireguard")
    if name is None:
        return None
    other = next(
        (each for each in ("cmd", "handoff", "quit-after-connect") if each in values), None
    )
    if other is not None:
        raise UsageError(
            f"--wireguard and --{other} exclude each other: either gets the path alone"
        )
    if operands:
        raise UsageError(
            f"--wireguard takes ports and peer from its file, and {operands[0]!r} is one word more"
        )
    from nat_traverse.carry import wireguard  # noqa: PLC0415 (--version needs none of it)

    return wireguard.read(name)


def _keygen(values: Values, operands: Sequence[str]) -> Keygen:
    from nat_traverse.cli.settings import Keygen  # noqa: PLC0415 (--version needs none of it)

    if len(operands) != 1 or not operands[0]:
        raise UsageError("keygen wants the name of one FILE for the private key")
    return Keygen(operands[0], public="public" in values)


def _up(values: Values, verbosity: int, operands: Sequence[str]) -> Up:
    from nat_traverse.cli.settings import Up  # noqa: PLC0415 (--version needs none of it)

    if not operands:
        raise UsageError("up wants the name of at least one tunnel")
    return Up(tuple(operands), verbosity, json="json" in values)


def _status(values: Values, operands: Sequence[str]) -> Status:
    from nat_traverse.cli.settings import Status  # noqa: PLC0415 (--version needs none of it)

    return Status(tuple(dict.fromkeys(operands)), json="json" in values)


def _demo(values: Values, verbosity: int, operands: Sequence[str]) -> Demo:
    from nat_traverse.cli.settings import Demo  # noqa: PLC0415 (--version needs none of it)

    if operands:
        raise UsageError(f"demo takes options only, and {operands[0]!r} is none")
    _check_choices(values, DEMO)
    return Demo(
        left=_text(values, "left") or DEFAULT_KIND,
        right=_text(values, "right") or DEFAULT_KIND,
        verbosity=verbosity,
        json="json" in values,
    )


def _check_choices(values: Values, command: Command) -> None:
    """Refuse a word that is none of those that an option takes."""
    for option in command.options:
        value, words = _text(values, option.name), [choice.word for choice in option.choices]
        if words and value is not None and value not in words:
            raise UsageError(f"--{option.name} is {value!r}, and can be: {', '.join(words)}")


def _ttl(text: str) -> int | None:
    """Return what `--ttl` says: None to learn it, 0 for the usual one."""
    words = {"auto": None, "off": 0}
    if text in words:
        return words[text]
    short = text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_TTL))
    number = int(text) if short else 0
    if not 1 <= number <= LARGEST_TTL:
        raise UsageError(f"--ttl is {text!r}, and can be: 1 to {LARGEST_TTL}, {', '.join(words)}")
    return number


def _hints(found: Scan) -> tuple[int, ...]:
    """Return the ports of every `--hint`, each once, in the order given."""
    given = [
        event.value for event in found.events if isinstance(event, Given) and event.name == "hint"
    ]
    ports = [_bounded("hint", value, 1, LARGEST_PORT) for value in given if isinstance(value, int)]
    return tuple(dict.fromkeys(ports))


def _all(found: Scan, name: str) -> list[str]:
    """Return the values of every option of this name, in the order given."""
    return [
        event.value
        for event in found.events
        if isinstance(event, Given) and event.name == name and isinstance(event.value, str)
    ]


def _bounded(name: str, number: int, smallest: int, largest: int) -> int:
    """Return `number`, which has to be in this range."""
    if not smallest <= number <= largest:
        raise UsageError(f"--{name} is out of range: it can be {smallest} to {largest}")
    return number


def _target(operands: Sequence[str]) -> Target:
    """Read the one operand of the tunnel."""
    from nat_traverse import target  # noqa: PLC0415 (--version needs none of it)

    if not operands:
        raise UsageError(f"nobody to reach: {FORM} is missing")
    if len(operands) > 1:
        words = " ".join(map(repr, operands))
        raise UsageError(f"one {FORM} is wanted, not {len(operands)} words: {words}")
    if operands[0] in COMMANDS:
        raise UsageError(f"{operands[0]!r} is a command, and has to be the first word")
    return target.parse(operands[0])


def _deadline(window: int | None, timeout: int | None) -> float | None:
    """Return how many seconds to try, or None for as long as it takes."""
    if window is None and timeout is None:
        return DEADLINE
    if timeout is not None and timeout <= 0:
        return None
    seconds = (PART if window is None else max(0, window)) + (PART if timeout is None else timeout)
    return None if seconds > LONGEST else float(seconds)


def _verbosity(found: Scan) -> int:
    """Return what the last of `--quiet` and `--verbose` says."""
    from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE  # noqa: PLC0415 (see above)

    chosen = NORMAL
    for event in found.events:
        if isinstance(event, Given):
            chosen = {"quiet": QUIET, "verbose": VERBOSE}.get(event.name, chosen)
    return chosen


def _number(values: Values, name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) else None


def _text(values: Values, name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None
