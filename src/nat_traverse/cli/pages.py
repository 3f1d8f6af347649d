"""The manual pages of the commands, and of the file that describes a tunnel.

`python -m nat_traverse.cli.pages` lists them; with the name of one it prints that.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from nat_traverse._version import __version__
from nat_traverse.cli.description import CONNECT, keys, services
from nat_traverse.cli.monitor import STATUS_FIELDS
from nat_traverse.cli.options import (
    COMMANDS,
    DEMO,
    FLAG,
    INTEGER,
    KEYGEN,
    RETRY,
    STATUS,
    TIMEOUT,
    UP,
)
from nat_traverse.cli.places import PROGRAM, SYSTEM
from nat_traverse.cli.roff import entry, escape, prose, section, terms
from nat_traverse.demo.records import RECORD_FIELDS
from nat_traverse.form import FORM

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.cli.options import Command, Option

DEMO_OUTPUT = """
On standard output. With `--json` it passes on what both sides say, with the names of
`nat-traverse`(1), and says more itself, with these:
"""

DEMO_STATUS = (
    ("0", "The file arrived unchanged, and both sides ended with 0."),
    ("4", "There is no path between these two gateways."),
)

KEYGEN_EXAMPLE = """
    left  $ nat-traverse keygen ~/.nat-key
    nt1LEFT

From then on left is started with `--identity ~/.nat-key`, and right with `--peer-key nt1LEFT`. See
SECURITY in `nat-traverse`(1).
"""

KEYGEN_STATUS = (
    ("0", "The public half was printed."),
    ("13", "*FILE* may not be written, or with `--public` others may read it."),
    ("17", "*FILE* is there already."),
)

UP_DESCRIPTION = """
Every tunnel is a task of its own. One that ends for good, because the other side has proven to be
the wrong one or its command has ended, leaves the others alone; the program ends with the last. The
first path is waited for as long as it takes, and so is a network that is not there yet.

A *NAME* with a slash, or that ends in `.toml`, is the file itself; the tunnel has its name, without
`.toml`. Any other stands for *NAME*`.toml` in `~/.config/nat-traverse`, or in
`/etc/nat-traverse`. For root it is the other way round. What can be in it says
`nat-traverse.toml`(5).

Before anything starts, descriptions, secrets and keys are read, and names taken; what is wrong with
any of them is told, and ends the program. Then each tunnel gets hold of its listeners, or of the
device of its VPN, and looks for its peer.

Of each name one tunnel runs at a time for a user. A second start is refused, and starts nothing. If
a process was killed, what it left is no hindrance.
"""

UP_OUTPUT = """
On standard error, as `nat-traverse`(1) says it, and each line begins with the name of the tunnel
that it is about; with `--json` that is the field `name`.

Where standard error leads to the journal of systemd(1) there are no times, and each line has a
priority: `err` for what has ended a tunnel, `warning` for what somebody may wonder about, `info`
for the rest, and `debug` for what `--verbose` adds. So this shows what went wrong with one tunnel:

    journalctl -u nat-traverse@home -p warning
"""

UP_SERVICE = """
`docs/systemd/nat-traverse@.service`, which comes with the source, is a unit for systemd(1) that
runs one tunnel with a user of its own and few rights. With the description
`/etc/nat-traverse/home.toml`:

    # systemctl enable --now nat-traverse@home
    # nat-traverse status home

systemd(1) takes the service for started when listeners and the devices of VPNs are there and the
other side is looked for, which may be away for days; its status line says how the tunnels are. The
device of `wireguard` is made when there is a path. With `WatchdogSec=` it is told that the program
still runs, and starts it again when not. A command that is run shares all restrictions of the unit.

The user of the unit is a stranger to root's files, so the description and its directory have to be
open to him, though nobody else may write: modes 644 and 755. The secret is in a file that only root
can read, and that systemd(1) hands over (see `nat-traverse.toml`(5)); it can't stand in the
description itself. Neither can `user`, for the service has a user already, nor `wireguard`, which
takes a unit as root, with `KillMode=mixed`: systemd(1) would otherwise stop the program that is the
device before that is taken down.
"""

UP_EXAMPLE = """
On left, `~/.config/nat-traverse/home.toml`:

    connect = "40000:natgw-of-right:40001"
    secret-file = "~/.nat-secret"
    L = ["2222:localhost:22"]

And on right:

    connect = "40001:natgw-of-left:40000"
    secret-file = "~/.nat-secret"
    expose = ["localhost:22"]

Both keep it up with:

    nat-traverse up home
"""

UP_STATUS = (
    (
        "0",
        """All tunnels have ended as they should: a command has; or the other side has ended the
        tunnel, and `retry` is false.""",
    ),
    ("2", "A description or a secret makes no sense, or there is none. Nothing was started."),
    (
        "13",
        """A description, or a file that it names, can't be read, or others may change it; or the
        directory for sockets can't be trusted. Nothing was started. Also as in
        `nat-traverse`(1).""",
    ),
    (
        "98",
        """A tunnel of this name runs already. Nothing was started. Also when the port of a forward
        is in use. The port of the tunnel itself is waited for.""",
    ),
    ("others", "Of the first tunnel that failed, as in `nat-traverse`(1)."),
    ("128 + *n*", "Signal *n* ended the program."),
)

STATUS_OUTPUT = """
On standard output, for people. With `--json` a list of objects, one for each tunnel, with the names
below, which do not change between versions; new ones may be added. A VPN has one more, `vpn`: an
object with `device`, `mtu` (null before it is up), `addresses`, `routes`, `announced`, and
`dropped`, which says how many packets did not pass since the start, by reasons. WireGuard has
`wireguard`: an object with `device`, `endpoint` (of the peer), `handshake_age` (in seconds) and
`received` (bytes), as of when the device was last looked at; null where there is none.
"""

STATUS_DESCRIPTION = """
Each tunnel is asked itself, through a socket that only its user can open. Root sees the system's
services as well.
"""

STATUS_STATUS = (
    ("0", "All that were asked for have a path."),
    ("1", "One is looking for a path, has ended while others of its process run, or hangs."),
    ("3", "One does not run; without *NAME*: none runs."),
)

ENVIRONMENT = (
    ("XDG_CONFIG_HOME", "In place of `~/.config`."),
    (
        "RUNTIME_DIRECTORY",
        "Where sockets and locks are, in place of the directories below; systemd(1) sets it.",
    ),
    ("XDG_RUNTIME_DIR", "Where the user's directory for them is."),
)

UP_ENVIRONMENT = (
    *ENVIRONMENT,
    ("NAT_TRAVERSE_SECRET", "The secret of tunnels whose descriptions have none."),
    ("NOTIFY_SOCKET", "Whom to tell of the state: see sd_notify(3)."),
    ("WATCHDOG_USEC", "How often to tell that the program runs; with `WATCHDOG_PID`."),
    ("JOURNAL_STREAM", "By which the journal is recognized."),
    ("CREDENTIALS_DIRECTORY", "Stands in descriptions for what systemd(1) has put there."),
)

FILES = (
    ("~/.config/nat-traverse/*NAME*.toml", "Describes a tunnel; see `nat-traverse.toml`(5)."),
    ("/etc/nat-traverse/*NAME*.toml", "The same, for the whole system."),
    (
        "/run/nat-traverse",
        """Sockets and locks of root's; `$XDG_RUNTIME_DIR/nat-traverse` for everybody else, or
        `/tmp/nat-traverse-`*UID* where there is none. Removed when the tunnel ends, unless `user`
        has taken the right to that away; what is left is no hindrance.""",
    ),
)

TOML_DESCRIPTION = f"""
A file in TOML that describes one tunnel for `nat-traverse up`. Its keys are the options of
`nat-traverse`(1), and mean the same. What is not there has the same default, with two exceptions:
`retry` is true, and there is no time limit for the first path. Three options are refused: `handoff`
and `quit-after-connect`, after which there is no service, and `plain`, which can't begin again.

    # /etc/nat-traverse/home.toml
    connect = "40000:natgw-of-right:40001"
    secret-file = "home.secret"
    L = ["2222:localhost:22", "udp/5353:localhost:53"]

One of these is needed: {", ".join(f"`{key}`" for key in services())}. Standard input and output are
not for a service, since nobody could tell which bytes of theirs had arrived. `{CONNECT}` is needed
as well, but for `wireguard`: its file says what to connect, so there `{CONNECT}` has to be absent,
and so has `retry`, which it does without being told.

Nobody but its owner and root may be able to change the file, as it may name commands. If the secret
itself is in it, nobody else may be able to read it.
"""

TOML_FILES = """
The name of a file counts from where the description is. `~/` in front stands for the home
directory, and `$CREDENTIALS_DIRECTORY/` for what systemd(1) has put there, and where that is not
known they are an error: with
`LoadCredential=secret:/etc/nat-traverse/home.secret` in its unit, a service reads a file that
only root can read by

    secret-file = "$CREDENTIALS_DIRECTORY/secret"

The path of a Unix socket has to begin with `/`.
"""


def page(name: str) -> str:
    """Return a page in man(7); `name` is one of PAGES."""
    return PAGES[name]()


def _page_of(command: Command, *sections: str) -> str:
    title = f"{PROGRAM}-{command.name}"
    others = [f"{PROGRAM}-{name}" for name in COMMANDS if name != command.name]
    also = ["`nat-traverse`(1)", *(f"`{other}`(1)" for other in others)]
    also.append("`nat-traverse.toml`(5)")
    return "".join(
        (
            heading(title, 1, "User Commands"),
            section("NAME", f"{escape(title)} \\- {escape(command.summary)}\n"),
            section("SYNOPSIS", synopsis(command)),
            *sections,
            section("SEE ALSO", prose(", ".join(also))),
        )
    )


def heading(title: str, number: int, manual: str) -> str:
    """Return how a page begins."""
    name, version = escape(title.upper()), escape(__version__)
    return f'.TH {name} {number} "" "nat\\-traverse {version}" "{manual}"\n'


def synopsis(command: Command) -> str:
    """Return how a command is typed."""
    words = [f"`{word}`" for word in (PROGRAM, command.name) if word]
    words.append("[*options*]")
    if command.operand:
        words.append("*" + command.operand.replace(":", "*`:`*") + "*")
    return prose(" ".join(words))


def option_entries(command: Command) -> str:
    """Return the options of a command, in the order of the table."""
    return "".join(entry(_spelling(option), option.manual) for option in command.options)


def _spelling(option: Option) -> str:
    return f"`{option.word}` *{option.metavar}*" if option.metavar else f"`{option.word}`"


def _demo() -> str:
    kinds = {option.metavar: option.choices for option in DEMO.options if option.choices}
    choices = "".join(
        prose(f"*{metavar}* is one of:") + terms((each.word, each.meaning) for each in words)
        for metavar, words in kinds.items()
    )
    return _page_of(
        DEMO,
        section("DESCRIPTION", prose(DEMO.manual)),
        section("OPTIONS", option_entries(DEMO), choices),
        section("OUTPUT", prose(DEMO_OUTPUT), terms(RECORD_FIELDS)),
        section("EXIT STATUS", terms(DEMO_STATUS)),
    )


def _keygen() -> str:
    return _page_of(
        KEYGEN,
        section("DESCRIPTION", prose(KEYGEN.manual)),
        section("OPTIONS", option_entries(KEYGEN)),
        section("EXAMPLE", prose(KEYGEN_EXAMPLE)),
        section("EXIT STATUS", terms(KEYGEN_STATUS)),
    )


def _up() -> str:
    return _page_of(
        UP,
        section("DESCRIPTION", prose(UP.manual), prose(UP_DESCRIPTION)),
        section("OPTIONS", option_entries(UP)),
        section("OUTPUT", prose(UP_OUTPUT)),
        section("EXAMPLE", prose(UP_EXAMPLE)),
        section("AS A SERVICE", prose(UP_SERVICE)),
        section("EXIT STATUS", terms(UP_STATUS)),
        section("ENVIRONMENT", terms(UP_ENVIRONMENT)),
        section("FILES", terms(FILES)),
    )


def _status() -> str:
    return _page_of(
        STATUS,
        section("DESCRIPTION", prose(STATUS.manual), prose(STATUS_DESCRIPTION)),
        section("OPTIONS", option_entries(STATUS)),
        section("OUTPUT", prose(STATUS_OUTPUT), terms(STATUS_FIELDS)),
        section("EXIT STATUS", terms(STATUS_STATUS)),
        section("ENVIRONMENT", terms(ENVIRONMENT)),
        section("FILES", terms(FILES[-1:])),
    )


def _toml() -> str:
    title = f"{PROGRAM}.toml"
    first = entry(f"`{CONNECT}` = *text*", f"What to connect: *{FORM}*.")
    return "".join(
        (
            heading(title, 5, "File Formats"),
            section("NAME", f"{escape(title)} \\- describes a tunnel for nat\\-traverse up\n"),
            section(
                "SYNOPSIS",
                prose(f"`~/.config/nat-traverse/`*NAME*`.toml`\n\n`{SYSTEM}/`*NAME*`.toml`"),
            ),
            section("DESCRIPTION", prose(TOML_DESCRIPTION), prose(TOML_FILES)),
            section("KEYS", first, *map(_key, keys().items())),
            section("SEE ALSO", prose("`nat-traverse`(1), `nat-traverse-up`(1)")),
        )
    )


def _key(item: tuple[str, Option]) -> str:
    """Describe a key: what its value looks like, and what the option is."""
    key, option = item
    kind = {FLAG: "*true or false*", INTEGER: "*number*"}.get(option.kind, "*text*")
    if option.repeatable:
        kind = f"[{kind}, ...]"
    meaning = option.summary[0].upper() + option.summary[1:]
    default = f" By default `{option.default}`." if option.default else ""
    if option is RETRY:
        default = " By default `true`."
    elif option is TIMEOUT:  # whose last sentence is about the default of the command line
        meaning = meaning.partition("With neither")[0]
        default = " Without this and `window`: never."
    return entry(f"`{key}` = {kind}", f"{meaning.rstrip('. ')}.{default}")


PAGES: Final[dict[str, Callable[[], str]]] = {
    "nat-traverse-demo.1": _demo,
    "nat-traverse-keygen.1": _keygen,
    "nat-traverse-up.1": _up,
    "nat-traverse-status.1": _status,
    "nat-traverse.toml.5": _toml,
}


def main(arguments: list[str]) -> int:
    """Print the page that `arguments` names, or the names of all; return the exit status."""
    if not arguments:
        print("\n".join(PAGES))
        return 0
    if len(arguments) != 1 or arguments[0] not in PAGES:
        print(f"name one page: {', '.join(PAGES)}", file=sys.stderr)
        return 2
    sys.stdout.write(page(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
