"""The manual page: the table of options, with prose around it.

`python -m nat_traverse.cli.manual` prints it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nat_traverse.cli.differences import DIFFERENCES
from nat_traverse.cli.options import COMMANDS, TUNNEL
from nat_traverse.cli.pages import heading, option_entries, synopsis
from nat_traverse.cli.report import EVENT_FIELDS
from nat_traverse.cli.roff import entry, prose, section, subsection, terms
from nat_traverse.cli.usage import OPERANDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nat_traverse.cli.options import Command

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

The tunnel carries standard input and output, those of a command, port forwards, or the packets of a
VPN; or nothing at all, when another program is to use the path. It is encrypted. What the network
loses is sent again, but for datagrams and packets, and each side is told of the end of the other's
data. Who is at the other end is proven by a secret that both sides were given, or by keys; without
either, both sides show a code to compare. See SECURITY.

With `--plain` on both sides it is what it was in 0.7: bare UDP, which can be read and forged on the
way, and lacks what gets lost. The peer may still be nat-traverse 0.7. Then the tunnel is plain, and
a line says so; a side with a secret or a key refuses such a peer.
"""

OPTIONS_INTRODUCTION = """
An option starts with `--`, `-` or `+`. Its name can be in any case and can be shortened: to one
letter for the six options of 0.7, which go first, and as far as it stays unique for the others. A
value is the next word or follows an equals sign. There are no bundles: `-w3` is not `-w 3`. Options
may stand after the address; `--` ends them. When an option is given twice, the last one counts,
except for {repeatable}, which add up.
"""

SSH = """
Left wants to log in on right, which sits behind a gateway. Both have a file with the same secret,
which nobody else can read:

    left  $ nat-traverse 40000:natgw-of-right:40001 --retry \\
                --secret-file ~/.nat-secret -L 2222:localhost:22
    right $ nat-traverse 40001:natgw-of-left:40000 --retry \\
                --secret-file ~/.nat-secret --expose localhost:22

Port 2222 of left is now the SSH server of right, for any number of connections:

    left  $ ssh -p 2222 user@localhost

`-L` alone gives access to nothing: it is right who says with `--expose` what may be reached. With
`--retry` both look for a path again whenever the tunnel is lost.
"""

PROXY_COMMAND = """
ssh(1) can also start the tunnel by itself. Right waits for one login at a time:

    right $ while sleep 1; do
                nat-traverse 40001:natgw-of-left:40000 --timeout 0 \\
                    --secret-file ~/.nat-secret --cmd 'nc localhost 22'
            done

And left, whenever somebody wants to log in:

    left  $ tunnel='nat-traverse --quiet --secret-file ~/.nat-secret'
    left  $ ssh -o ProxyCommand="$tunnel 40000:natgw-of-right:40001" user@right
"""

SOCKS = """
With `-D` left has a SOCKS5 server, and whatever uses it goes out to the network from right:

    left  $ nat-traverse 40000:natgw-of-right:40001 \\
                --secret-file ~/.nat-secret -D 1080
    right $ nat-traverse 40001:natgw-of-left:40000 \\
                --secret-file ~/.nat-secret --expose any
    left  $ curl --socks5-hostname localhost:1080 http://printer.lan/

`any` is everything that right can reach, its own services and its whole local network included. It
is for a peer who may have all that; else list what he may reach, one `--expose` for each.
"""

KEYS = """
With keys there is nothing to agree on in secret. Each side makes one, once, and gives the other the
line that is printed, by any way that nobody can change it on, such as the telephone:

    left  $ nat-traverse keygen ~/.nat-key
    nt1LEFT
    right $ nat-traverse keygen ~/.nat-key
    nt1RIGHT

From then on:

    left  $ nat-traverse 40000:natgw-of-right:40001 \\
                --identity ~/.nat-key --peer-key nt1RIGHT
    right $ nat-traverse 40001:natgw-of-left:40000 \\
                --identity ~/.nat-key --peer-key nt1LEFT
"""

SERVICE = """
A file describes the tunnel, with the options by their names, here the side of right in
`/etc/nat-traverse/left.toml`:

    connect = "40001:natgw-of-left:40000"
    secret-file = "left.secret"
    expose = ["localhost:22"]

And this keeps it up, whatever happens, and shows how it is:

    right # nat-traverse up left
    right # nat-traverse status left

`nat-traverse-up`(1) says how systemd(1) does it at every start of the machine. What time can heal,
the program sees to. What remains, such as five attempts without the secret, ends it, and systemd(1)
begins again a minute later. Each start is worth five guesses, so the secret should be four words
drawn by chance at least, or a key.
"""

PPP = """
pppd(8) makes a network interface of the tunnel. As root on both sides:

    left  # nat-traverse --cmd="pppd updetach noauth passive notty \\
                ipparam vpn 10.0.0.1:10.0.0.2" \\
                40000:natgw-of-right:40001
    right # nat-traverse --cmd="pppd nodetach notty noauth" \\
                40001:natgw-of-left:40000

The hosts now reach each other as 10.0.0.1 and 10.0.0.2, usually through a device called ppp0. The
packets are encrypted, and what gets lost is repeated; towards 0.7 neither. Where both sides are
newer, give both `--secret-file` as well.
"""

PPP_DATAGRAMS = """
TCP inside PPP repeats as well, and where packets get lost, one that is repeated by the tunnel holds
up all others. There `--datagrams` is better, on both sides. pppd writes up to 1,504 bytes at once;
dd(1) cuts them, so that each piece fits into one datagram on any path:

    left  # nat-traverse --datagrams --cmd="pppd updetach noauth passive \\
                notty mtu 1100 mru 1100 ipparam vpn 10.0.0.1:10.0.0.2 \\
                | dd bs=1200" 40000:natgw-of-right:40001
    right # nat-traverse --datagrams --cmd="pppd nodetach notty noauth \\
                mtu 1100 mru 1100 | dd bs=1200" 40001:natgw-of-left:40000
"""

NETCAT = """
nc(1) on both ends joins a TCP port of one host to one of the other, here port 20000 of left to the
SSH server of right:

    left  $ nat-traverse 10001:natgw-of-right:10002 --cmd="nc -vl 20000"
    right $ nat-traverse 10002:natgw-of-left:10001 --cmd="nc -v localhost 22"

Somebody can then log in on right through left:

    $ ssh -p 20000 user@left

This serves one connection, then it ends. It also works with 0.7 on the other side; without, `-L`
serves any number of connections.
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

WIREGUARD_EXAMPLE = """
For WireGuard one option does it all. Both sides have a file for wg-quick(8), here
`/etc/wireguard/nat.conf`, with a `ListenPort` and with the other side's public address and
`ListenPort` as the `Endpoint`:

    left  # nat-traverse --wireguard nat
    right # nat-traverse --wireguard nat

`docs/guide.md`, which comes with the source, has the files in full, and how to do it by hand.
"""

SECURITY = """
The tunnel is encrypted with keys that are made for this one connection, from X25519 and ML-KEM-768
together (QUIC, TLS 1.3). Whoever records it can't read it later either, not even with the secret.
What encryption alone does not tell is who is at the other end: a neighbour behind the peer's
gateway may have answered, or somebody on the way. That is what these are for:
"""

PROOFS = (
    (
        "A secret",
        """
        `--secret-file`, `NAT_TRAVERSE_SECRET` or `--secret`, the same on both sides. Nobody else
        gets in or sits in between. The secret is not sent, and who listens can't test guesses at
        it. Who takes part has one guess in an attempt; after five attempts that failed the program
        ends, with status 3. So six digits drawn by chance give him 1 chance in 200,000 each time
        that the program is run. Where it is run again and again, as in a loop, take four words
        drawn by chance, or keys.

        Prefer `--secret-file`. `--secret` is overwritten in the list of processes as soon as the
        program runs, but the history of the shell keeps it.
        """,
    ),
    (
        "Keys",
        """`--identity` and `--peer-key`, on both sides. Nothing can be guessed, and what is
        exchanged beforehand is no secret. A stolen private key lets the thief claim to be its
        owner; take its public half out of `--peer-key` then. With a secret as well, both have to be
        right.""",
    ),
    (
        "A code",
        """Without either, both sides show six digits. If they are the same on both sides, nobody
        sits in between; he had one chance in a million. That is worth something only when both
        users compare them, by telephone for instance, before anything goes through that matters.
        """,
    ),
    (
        "Nothing",
        """With `--plain`, and with a peer that runs 0.7, everybody on the way can read, change and
        add. Neither side can be talked into that: it takes `--plain` on both, or a peer that runs
        0.7 on one, and neither secret nor key on the other. `--handoff`, `--wireguard` and
        `--quit-after-connect` leave all protection to the program that uses the path.""",
    ),
)

SECURITY_NOTE = """
Once proven, the peer may reach what `--expose` lists, and nothing else; without it, nothing. With
`--vpn` it reaches whatever listens on this host, as in any network, and the networks that are
announced; a firewall limits that. A command gets whatever the peer sends: a shell given to `--cmd`
is a shell for the peer.

Nothing of this hides that there is a tunnel, between whom, when, and how much goes through; and
whoever carries the packets can drop them. `docs/security.md`, which comes with the source, says
against whom each protects, and how.
"""

EXIT_STATUS = (
    ("0", "The tunnel was used and ended, or a path was found with `--quit-after-connect`."),
    (
        "1",
        """With `--vpn`: the device, an address or a route could not be had. With `--wireguard`: a
        command of WireGuard's failed.""",
    ),
    ("2", "The command line makes no sense. Nothing was sent."),
    (
        "3",
        """The other side has not proven to be the right one: another secret or key, none, or one
        on one side only. Also when it is the right one, but was started for something else:
        standard input and output or `--cmd`, `--datagrams`, forwards, and `--vpn` go with their
        like.""",
    ),
    ("4", "No path was found within the time limit."),
    ("5", "With `--plain`, or a peer that runs 0.7: packets with data got lost."),
    ("6", "With `--quit-after-connect`: a path was found, but not between the agreed ports."),
    (
        "8",
        """The two sides want different things of the path: one a plain tunnel and the other an
        encrypted one; or this one an encrypted tunnel, and the other only the ports. Also when the
        path is too narrow for an encrypted tunnel.""",
    ),
    (
        "9",
        """With `--vpn`: the addresses and networks of the two sides do not fit together. What to
        change is told.""",
    ),
    (
        "13",
        """The local port or a file needs privileges that the user does not have; others may get at
        a file that is to be secret; or `--vpn` lacks the right to set up networks (root or
        CAP_NET_ADMIN), or `--user` that to become another user.""",
    ),
    ("22", "The name of the peer is unknown."),
    ("28", "What the peer sent could not be written: the disk is full."),
    ("71", "The two sides do not understand each other: their versions differ."),
    ("98", "The local port is in use, or the port of a forward."),
    ("101", "There is no route to the peer."),
    ("104", "The peer ended early, before the end of its data or of ours."),
    ("110", "The peer fell silent."),
    ("111", "The peer refuses packets: its program is gone."),
    ("128 + *n*", "Signal *n* ended the program, as with 130 for Ctrl-C."),
)

EXIT_STATUS_NOTE = """
With `--cmd` and `--handoff` the status is that of the command once it runs; if the tunnel ends
before the command does, the status says how. Statuses from 13 to 111
are the numbers of Linux for the errors of the system; other such errors have their own.
"""

ENVIRONMENT = (
    (
        "NAT_TRAVERSE_SECRET",
        """The secret, where neither `--secret` nor `--secret-file` is given. Set to nothing, it is
        an error: an empty secret is no less likely to be a mistake than a missing one. It is not
        passed on to the commands that are run.""",
    ),
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

OTHERS = "`nc`(1), `ssh`(1), `openvpn`(8), `pppd`(8), `wg`(8)"

DIFFERENCES_INTRODUCTION = """
Scripts for nat-traverse 0.7 run unchanged, except for what is listed here. Each entry says what 0.7
did, what this version does, and why.
"""


def manual() -> str:
    """Return the page in man(7)."""
    return "".join(
        (
            heading("nat-traverse", 1, "User Commands"),
            section("NAME", r"nat\-traverse \- direct tunnel between two hosts behind NAT", "\n"),
            section("SYNOPSIS", *map(synopsis, (TUNNEL, *COMMANDS.values()))),
            section("DESCRIPTION", prose(DESCRIPTION), terms(OPERANDS)),
            section("OPTIONS", prose(_options_introduction()), option_entries(TUNNEL)),
            section("COMMANDS", *map(_command, COMMANDS.values())),
            section("EXAMPLES", *_examples()),
            section("SECURITY", prose(SECURITY), terms(PROOFS), prose(SECURITY_NOTE)),
            section("EXIT STATUS", terms(EXIT_STATUS), prose(EXIT_STATUS_NOTE)),
            section("ENVIRONMENT", terms(ENVIRONMENT)),
            section("OUTPUT", prose(OUTPUT), prose(OUTPUT_JSON), terms(EVENT_FIELDS)),
            section("DIFFERENCES FROM 0.7", prose(DIFFERENCES_INTRODUCTION), _differences()),
            section("SEE ALSO", prose(f"{_pages()}, {OTHERS}")),
        )
    )


def _pages() -> str:
    names = [f"`nat-traverse-{name}`(1)" for name in COMMANDS]
    return ", ".join([*names, "`nat-traverse.toml`(5)"])


def _command(command: Command) -> str:
    """Say what a command is for; it has a page of its own."""
    return subsection(
        command.name, prose(command.manual), prose(f"See `nat-traverse-{command.name}`(1).")
    )


def _options_introduction() -> str:
    *words, last = (f"`{each.word}`" for each in TUNNEL.options if each.repeatable)
    return OPTIONS_INTRODUCTION.format(repeatable=f"{', '.join(words)} and {last}")


def _examples() -> Iterable[str]:
    yield subsection("SSH to a host behind a gateway", prose(SSH), prose(PROXY_COMMAND))
    yield subsection("The other side's network, through SOCKS", prose(SOCKS))
    yield subsection("Keys in place of a secret", prose(KEYS))
    yield subsection("A service that is always there", prose(SERVICE))
    yield subsection("A small VPN with PPP", prose(PPP), prose(PPP_DATAGRAMS))
    yield subsection("A forwarded port with nc", prose(NETCAT))
    yield subsection("A VPN with OpenVPN", prose(OPENVPN), prose(HANDOFF_EXAMPLE))
    yield subsection("A path for WireGuard", prose(WIREGUARD_EXAMPLE))


def _differences() -> str:
    return "".join(
        entry(row.topic, f"0.7: {row.before}\n\nNow: {row.now}\n\nWhy: {row.reason}")
        for row in DIFFERENCES
    )


if __name__ == "__main__":
    sys.stdout.write(manual())
