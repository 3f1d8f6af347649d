"""The manual page: the table of options, with prose around it.

`python -m nat_traverse.cli.manual` prints it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nat_traverse._version import __version__
from nat_traverse.cli.differences import DIFFERENCES
from nat_traverse.cli.options import COMMANDS, TUNNEL
from nat_traverse.cli.report import EVENT_FIELDS
from nat_traverse.cli.roff import entry, escape, prose, section, subsection
from nat_traverse.cli.usage import OPERANDS
from nat_traverse.demo.records import RECORD_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nat_traverse.cli.options import Command, Option

DESCRIPTION = """
nat-traverse makes a direct tunnel between two hosts that both sit behind NAT gateways or firewalls.
There is no server in between, no account, and nothing to set up in the gateways. Two people agree,
over any channel, on two port numbers and tell each other their public addresses; then each runs one
command, and the ports stand in it crosswise:

    left   $ nat-traverse 40000:natgw-of-right:40001
    right  $ nat-traverse 40001:natgw-of-left:40000

Each side sends packets to the other. A gateway drops what comes in unasked; but what its own host
has sent makes it expect an answer, and once both have sent, each takes the other's packets for
answers. The first packets are given a short life, so that they open the gateway of their own side
and die before they reach the other.

It works when both gateways keep the port numbers, as home routers mostly do, when there are only
firewalls (as with IPv6), and when one side has a public address. When one of the gateways picks new
port numbers, it searches for them, which takes seconds. When a gateway has taken the first packets
for its own, both sides try again at the next full minute, so their clocks should not differ by more
than ten seconds. Two gateways that both pick new port numbers are seldom crossed; see `--hard`.

The tunnel carries standard input and output, a command, or nothing at all when another program is
to use the path. It is not encrypted, and nobody proves who he is: whoever could read or forge the
packets in between can do so. Carry something that protects itself, such as SSH or OpenVPN. Packets
may get lost, as with UDP: what has to arrive completely needs a protocol that repeats it.

Its peer may be nat-traverse 0.7.
"""

OPTIONS_INTRODUCTION = """
An option starts with `--`, `-` or `+`. Its name can be in any case and can be shortened: to one
letter for the six options of 0.7, which go first, and as far as it stays unique for the others. A
value is the next word or follows an equals sign. There are no bundles: `-w3` is not `-w 3`. Options
may stand after the address; `--` ends them. When an option is given twice, the last one counts,
except for `--hint`.
"""

PPP = """
pppd(8) makes a network interface of the tunnel. As root on both sides:

    left  # nat-traverse --cmd="pppd updetach noauth passive notty \\
                ipparam vpn 10.0.0.1:10.0.0.2" \\
                40000:natgw-of-right:40001
    right # nat-traverse --cmd="pppd nodetach notty noauth" \\
                40001:natgw-of-left:40000

The hosts now reach each other as 10.0.0.1 and 10.0.0.2, usually through a device called ppp0. TCP
repeats what the tunnel loses. The packets can be read on the way.
"""

NETCAT = """
nc(1) on both ends joins a TCP port of one host to one of the other, here port 20000 of left to the
SSH server of right:

    left  $ nat-traverse 10001:natgw-of-right:10002 --cmd="nc -vl 20000"
    right $ nat-traverse 10002:natgw-of-left:10001 --cmd="nc -v localhost 22"

Somebody can then log in on right through left:

    $ ssh -p 20000 user@left

The tunnel does not repeat lost packets, so a connection ends when one gets lost: enough for a
trial. For daily use take PPP, OpenVPN or WireGuard over the path.
"""

OPENVPN = """
OpenVPN brings a protocol of its own, so nat-traverse only has to open the path. Both sides use the
same port here and have these two lines in their OpenVPN configuration:

    port  60001
    lport 60001

The loop goes on until there is a path, and leaves the two ports to OpenVPN:

    left  # until nat-traverse --quit-after-connect 60001:natgw-of-right:60001
            do sleep 5; done; openvpn [...]
    right # until nat-traverse --quit-after-connect 60001:natgw-of-left:60001
            do sleep 5; done; openvpn [...]
"""

HANDOFF_EXAMPLE = """
With `--handoff` the other program is told what path was found, which also helps when the peer's
name has several addresses:

    left  # nat-traverse 60001:natgw-of-right:60001 --handoff \\
              'openvpn --config vpn.conf --lport {local_port} \\
               --remote {peer_host} {peer_port}'
"""

EXIT_STATUS = (
    ("0", "The tunnel was used and ended, or a path was found with `--quit-after-connect`."),
    ("2", "The command line makes no sense. Nothing was sent."),
    ("4", "No path was found within the time limit."),
    ("5", "The tunnel was used, and packets with data got lost in it."),
    ("6", "With `--quit-after-connect`: a path was found, but not between the agreed ports."),
    ("13", "The local port needs privileges that the user does not have."),
    ("22", "The name of the peer is unknown."),
    ("28", "What the peer sent could not be written: the disk is full."),
    ("98", "The local port is in use."),
    ("101", "There is no route to the peer."),
    ("104", "The peer ended early, before the end of its data."),
    ("110", "The peer fell silent."),
    ("111", "The peer refuses packets: its program is gone."),
    ("128 + *n*", "Signal *n* ended the program, as with 130 for Ctrl-C."),
)

EXIT_STATUS_NOTE = """
With `--cmd` and `--handoff` the status is that of the command once it runs. Statuses from 13 to 111
are the numbers of Linux for the errors of the system; other such errors have their own.
"""

ENVIRONMENT = (
    (
        "POSIXLY_CORRECT",
        """When it is set, to whatever value, options end at the first word that is none, have to be
        written out, cannot start with `+`, and take `=` only after two dashes.""",
    ),
)

OUTPUT = """
Standard output belongs to the tunnel; nat-traverse says everything else on standard error, one line
for each thing that happens, with the seconds since the start. The first lines name the command for
the other side. When a path is found, the line says which and how long a round trip takes; when none
is, what was seen, what it means and what to try.
"""

OUTPUT_JSON = """
With `--json` each line is one JSON object. Names do not change between versions; new ones may be
added.
"""

OUTPUT_DEMO = """
`nat-traverse demo --json` passes on what both sides say, and says more itself, with these names:
"""

DIFFERENCES_INTRODUCTION = """
Scripts for nat-traverse 0.7 run unchanged, except for what is listed here. Each entry says what 0.7
did, what this version does, and why.
"""


def manual() -> str:
    """Return the page in man(7)."""
    return "".join(
        (
            f'.TH NAT\\-TRAVERSE 1 "" "nat\\-traverse {escape(__version__)}" "User Commands"\n',
            section("NAME", r"nat\-traverse \- direct tunnel between two hosts behind NAT", "\n"),
            section("SYNOPSIS", *map(_synopsis, (TUNNEL, *COMMANDS.values()))),
            section("DESCRIPTION", prose(DESCRIPTION), _terms(OPERANDS)),
            section("OPTIONS", prose(OPTIONS_INTRODUCTION), _options(TUNNEL.options)),
            section("COMMANDS", *map(_command, COMMANDS.values())),
            section("EXAMPLES", *_examples()),
            section("EXIT STATUS", _terms(EXIT_STATUS), prose(EXIT_STATUS_NOTE)),
            section("ENVIRONMENT", _terms(ENVIRONMENT)),
            section("OUTPUT", prose(OUTPUT), prose(OUTPUT_JSON), _terms(EVENT_FIELDS), *_demo()),
            section("DIFFERENCES FROM 0.7", prose(DIFFERENCES_INTRODUCTION), _differences()),
            section("SEE ALSO", prose("`nc`(1), `ssh`(1), `openvpn`(8), `pppd`(8), `wg`(8)")),
        )
    )


def _demo() -> tuple[str, str]:
    return prose(OUTPUT_DEMO), _terms(RECORD_FIELDS)


def _synopsis(command: Command) -> str:
    words = [f"`{word}`" for word in ("nat-traverse", command.name) if word]
    words.append("[*options*]")
    if command.operand:
        words.append("*" + command.operand.replace(":", "*`:`*") + "*")
    return prose(" ".join(words))


def _options(options: Iterable[Option]) -> str:
    return "".join(entry(_spelling(option), option.manual) for option in options)


def _spelling(option: Option) -> str:
    return f"`--{option.name}` *{option.metavar}*" if option.metavar else f"`--{option.name}`"


def _command(command: Command) -> str:
    """Describe a command, its own options, and the values they can have."""
    own = [option for option in command.options if option not in TUNNEL.options]
    shared = [f"`--{option.name}`" for option in command.options if option in TUNNEL.options]
    kinds = {option.metavar: option.choices for option in own if option.choices}
    return "".join(
        (
            subsection(command.name, prose(command.manual), _options(own)),
            prose(f"{', '.join(shared)} are as above."),
            *(
                prose(f"*{metavar}* is one of:")
                + _terms((choice.word, choice.meaning) for choice in choices)
                for metavar, choices in kinds.items()
            ),
        )
    )


def _examples() -> Iterable[str]:
    yield subsection("A small VPN with PPP", prose(PPP))
    yield subsection("A forwarded port with nc", prose(NETCAT))
    yield subsection("A VPN with OpenVPN", prose(OPENVPN), prose(HANDOFF_EXAMPLE))


def _terms(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(entry(f"`{term}`" if "*" not in term else term, text) for term, text in rows)


def _differences() -> str:
    return "".join(
        entry(row.topic, f"0.7: {row.before}\n\nNow: {row.now}\n\nWhy: {row.reason}")
        for row in DIFFERENCES
    )


if __name__ == "__main__":
    sys.stdout.write(manual())
