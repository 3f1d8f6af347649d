"""The one table of commands and options.

The parser, `--help`, the manual page and the shell completions are all derived from it, so an
option that is missing from one of them cannot exist.

`nat-traverse --version` is to start about as fast as Python itself, and this module is on its way.
Hence plain classes: `typing` and `dataclasses` each cost as much as half an interpreter start.
"""

from __future__ import annotations

from nat_traverse.form import FORM

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is; mypy knows the bare name, too
if TYPE_CHECKING:
    from typing import Final, Literal

    Kind = Literal["flag", "integer", "string"]

FLAG: Final = "flag"
INTEGER: Final = "integer"
STRING: Final = "string"


class Choice:
    """One of the words that an option accepts as its value."""

    __slots__ = ("meaning", "word")

    def __init__(self, word: str, meaning: str) -> None:
        self.word = word
        self.meaning = meaning


class Option:
    """One row of the table.

    `name` is the long name without dashes; `kind` says what the parser takes for a value. `legacy`
    marks the options of 0.7, whose abbreviations no later option may take away. `group` is the
    heading it stands under in `--help`, `summary` its text there, and `manual` its text in the
    manual page, in the markup of `nat_traverse.cli.manual`. `default` is a value, for the reader.
    `choices` are the only values where there are any; `shell_command` says that the value is a
    command to run, `file` that it is the name of a file, and `repeatable` that all count of those
    that are given, and not the last one only.
    """

    __slots__ = (
        "choices",
        "default",
        "file",
        "group",
        "kind",
        "legacy",
        "manual",
        "metavar",
        "name",
        "repeatable",
        "shell_command",
        "summary",
    )

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        group: str,
        summary: str,
        manual: str,
        metavar: str = "",
        default: str = "",
        legacy: bool = False,
        choices: tuple[Choice, ...] = (),
        shell_command: bool = False,
        file: bool = False,
        repeatable: bool = False,
    ) -> None:
        self.name = name
        self.kind: Kind = kind
        self.group = group
        self.summary = summary
        self.manual = manual
        self.metavar = metavar
        self.default = default
        self.legacy = legacy
        self.choices = choices
        self.shell_command = shell_command
        self.file = file
        self.repeatable = repeatable

    def __repr__(self) -> str:
        return f"<Option --{self.name}>"

    @property
    def word(self) -> str:
        """How it is written: `--window`; one of ssh's letters as `-L`."""
        return f"--{self.key}" if len(self.name) > 1 else f"-{self.key}"

    @property
    def key(self) -> str:
        """How a description of a tunnel spells it: `window`; one of ssh's letters as `L`."""
        return self.name if len(self.name) > 1 else self.name.upper()

    @property
    def spelling(self) -> str:
        """How it is written with its value: `--window N`."""
        return f"{self.word} {self.metavar}".rstrip()

    @property
    def label(self) -> str:
        """The part of the summary that fits beside a completion."""
        return self.summary.partition(";")[0]


class Command:
    """What one word (or none: the tunnel itself) does, and the options that it knows.

    `operands` says what a shell can offer for the operand: the "names" of tunnels, a "file".
    """

    __slots__ = ("manual", "name", "operand", "operands", "options", "summary")

    def __init__(
        self,
        name: str,
        *,
        operand: str,
        summary: str,
        manual: str,
        options: tuple[Option, ...],
        operands: Literal["", "names", "file"] = "",
    ) -> None:
        self.name = name
        self.operand = operand
        self.operands = operands
        self.summary = summary
        self.manual = manual
        self.options = options

    @property
    def synopsis(self) -> str:
        """How it is typed."""
        return " ".join(filter(None, ("nat-traverse", self.name, "[options]", self.operand)))

    def groups(self) -> list[tuple[str, list[Option]]]:
        """Return the options under their headings, both in the order of the table."""
        found: dict[str, list[Option]] = {}
        for option in self.options:
            found.setdefault(option.group, []).append(option)
        return list(found.items())


CARRY: Final = "What the tunnel carries (default: standard input and output)"
FORWARDS: Final = "Port forwards (in place of standard input and output)"
NETWORK: Final = "A VPN (in place of standard input and output)"
PEER: Final = "Who may be at the other end"
EFFORT: Final = "How long it tries"
SEARCH: Final = "How it finds the path"
TALK: Final = "How it talks (always on standard error)"
GATEWAYS: Final = "The gateways"
OTHER: Final = "Other"

CMD: Final = Option(
    "cmd",
    STRING,
    metavar="CMD",
    legacy=True,
    group=CARRY,
    shell_command=True,
    summary="run CMD through the shell, its standard input and output bound to the tunnel; "
    "exit with its status",
    manual="""
        Run *CMD* through the shell as soon as the tunnel stands. What the peer sends is its
        standard input, what it writes to standard output goes to the peer, and its standard
        error is that of nat-traverse. nat-traverse exits with the status of the command.

        The next word is taken as *CMD* whatever it looks like, even when it starts with a
        dash. An empty *CMD* is refused.
    """,
)

HANDOFF: Final = Option(
    "handoff",
    STRING,
    metavar="CMD",
    group=CARRY,
    shell_command=True,
    summary="close the socket and become CMD, which uses the same port itself; "
    "{local_port} {peer_host} {peer_port} {peer} in CMD are filled in",
    manual="""
        Find the path, close the socket, and replace nat-traverse by *CMD*, run through the
        shell. It is for a program that binds the port itself and speaks a protocol of its
        own, such as OpenVPN or WireGuard.

        In *CMD* the words `{local_port}`, `{peer_host}`, `{peer_port}` and `{peer}` are
        replaced by what the path turned out to be; `{peer}` is host and port together, with
        an IPv6 address in brackets. The same values are in the environment as
        `NAT_TRAVERSE_LOCAL_PORT`, `NAT_TRAVERSE_PEER_HOST`, `NAT_TRAVERSE_PEER_PORT` and
        `NAT_TRAVERSE_PEER`.

        The gateways forget the path after about 30 seconds of silence, so *CMD* should send
        something before that. `--handoff` excludes `--cmd` and `--quit-after-connect`.
    """,
)

QUIT: Final = Option(
    "quit-after-connect",
    FLAG,
    legacy=True,
    group=CARRY,
    summary="exit 0 as soon as a path between the two ports is proven, 6 if there is one between "
    "other ports only; carry nothing",
    manual="""
        Exit with status 0 as soon as the path between *LOCAL_PORT* and *REMOTE_PORT* is
        proven, and carry nothing. The path stays open for a while, so another program can use
        the same two ports; see EXAMPLES. With `--cmd` the command is not run.

        When a path between other ports is found first, it is used to bring up the one between
        these two, which can take half a minute. If that fails, because a gateway changes
        port numbers, the exit status is 6, and what was found is told.
    """,
)

WIREGUARD: Final = Option(
    "wireguard",
    STRING,
    metavar="CONF",
    file=True,
    group=CARRY,
    summary="keep a WireGuard device connected: CONF is a file of wg-quick's, its ListenPort and "
    "Endpoint stand for the operand; on both sides",
    manual="""
        Find a path for WireGuard, and another one whenever that is lost. *CONF* is a file for
        wg-quick(8), or the name of one in `/etc/wireguard`. Its `ListenPort` and the `Endpoint` of
        its peer say what the operand says elsewhere, so no operand is given. Both sides do this.

        When there is a path, the device is brought up with `wg-quick up`, and its port and the
        peer's endpoint are set to those that work, which need not be those of the file. WireGuard
        then keeps the path open, every `PersistentKeepalive` seconds if that is 1 to 25, else as
        `--keepalive` says. When nothing comes from the peer for 75 seconds, or the last handshake
        is more than 180 seconds old, a path is looked for again, for as long as it takes. At the
        end the device is taken down.

        A device that is up already is used, and is left as it is at the end. While a path is looked
        for it is taken off its port, which the search needs. When its last handshake is young, it
        is only watched at first.

        WireGuard proves who is at the other end, so there is no secret and no key of nat-traverse's
        own, and it carries all data itself. It needs wg(8), wg-quick(8) and root. Of several peers
        in the file only one may have an `Endpoint`; `AllowedIPs` must not have the public address
        of the other side in them, and `SaveConfig` must not be on.
    """,
)

DATAGRAMS: Final = Option(
    "datagrams",
    FLAG,
    group=CARRY,
    summary="carry datagrams: one read is one, one write is one, unreliable and unordered; "
    "on both sides",
    manual="""
        Carry datagrams in place of a stream: each read of standard input, or of what the command
        writes, is one datagram, and each that arrives is one write. They may be lost, doubled or
        overtaken, as on any network. It is for programs with a protocol of their own: pppd(8), game
        servers. With `--cmd` the command gets packet sockets, which keep each of its writes apart.
        Both sides have to give it.
    """,
)

PLAIN: Final = Option(
    "plain",
    FLAG,
    group=CARRY,
    summary="as 0.7 did it: bare UDP, nothing encrypted, nothing repeated; on both sides",
    manual="""
        As 0.7 did it: bare UDP datagrams, which anybody on the way can read and forge, and of which
        the lost ones are not repeated. Both sides have to give it; where one does and the other
        does not, nothing is carried. It excludes all that needs encryption: secrets, keys,
        forwards, `--vpn`, `--retry` and `--datagrams`; and `--wireguard`, which encrypts by itself.
    """,
)

LOCAL: Final = Option(
    "l",
    STRING,
    metavar="SPEC",
    repeatable=True,
    group=FORWARDS,
    summary="as with ssh: SPEC is [BIND:]PORT:HOST:HOSTPORT; listen on PORT here, and connect to "
    "HOST:HOSTPORT from the other side. udp/ before it forwards UDP, a path is a Unix socket",
    manual="""
        *SPEC* is [*BIND*:]*PORT*:*HOST*:*HOSTPORT*. Listen on *PORT* here; each connection goes
        through the tunnel, and on from the other side to *HOST*:*HOSTPORT*, which that side has to
        `--expose`. As with ssh(1), *BIND* is the address to listen on, by default the loopback
        addresses; `*` is every address. `udp/` before it forwards UDP. A path in place of a port,
        or of host and port, is a Unix socket. Port 0 is any free port, which is told. The other
        side has to carry forwards as well: it has `--expose` at least. It may be given more than
        once.
    """,
)

REMOTE: Final = Option(
    "r",
    STRING,
    metavar="SPEC",
    repeatable=True,
    group=FORWARDS,
    summary="the same the other way round: the other side listens on PORT, and HOST:HOSTPORT is "
    "connected to from here",
    manual="""
        *SPEC* is [*BIND*:]*PORT*:*HOST*:*HOSTPORT*. Have the other side listen on *PORT*; each
        connection comes through the tunnel, and goes on from here to *HOST*:*HOSTPORT*. The other
        side has to `--expose` *BIND*:*PORT*, which is `localhost:`*PORT* where *BIND* is left out.
        It may be given more than once.
    """,
)

DYNAMIC: Final = Option(
    "d",
    STRING,
    metavar="[BIND:]PORT",
    repeatable=True,
    group=FORWARDS,
    summary="a SOCKS5 server on PORT here, whose connections start on the other side",
    manual="""
        A SOCKS5 server (RFC 1928) on *PORT* here. Where its clients want to go to, the other side
        connects, as far as it has `--expose`d that.
    """,
)

EXPOSE: Final = Option(
    "expose",
    STRING,
    metavar="HOST:PORT",
    repeatable=True,
    group=FORWARDS,
    summary="let the other side reach this from here, or listen there with -R; a path is a Unix "
    "socket, any is everything; may be given more than once",
    manual="""
        What the other side may reach from here with `-L` and `-D`, and where it may listen with
        `-R`. `udp/` before it is for UDP, a path for a Unix socket. `any` is all that this host can
        reach, and listening on loopback addresses at ports from 1024; for other addresses and lower
        ports they have to be named. Whatever is not exposed is refused, and both sides are told.
    """,
)

RETRY: Final = Option(
    "retry",
    FLAG,
    group=FORWARDS,
    summary="when the tunnel is lost, find a path again, for ever; listeners and devices stay",
    manual="""
        When the tunnel is lost, or the other side ends it, find a path again, for as long as it
        takes; listeners and the device of `--vpn` stay meanwhile, and a `--cmd` is run anew. Not
        for standard input
        and output: nobody could tell which bytes of theirs had arrived. The time limit is for the
        first path only.
    """,
)

VPN: Final = Option(
    "vpn",
    STRING,
    metavar="ADDR/PREFIX",
    repeatable=True,
    group=NETWORK,
    summary="a network device with this address here, and the other side behind it; may be given "
    "more than once, for IPv4 and IPv6. Linux; needs CAP_NET_ADMIN",
    manual="""
        Make a network device (TUN) with this address, and carry IP packets between it and that of
        the other side, which gives an address of its own in the same network: `10.77.0.1/24` here,
        `10.77.0.2/24` there. It may be given more than once, for IPv4 and IPv6. Packets are
        encrypted and never repeated: that is the business of the programs that send them.
        The size of packets is that which the path takes, so that none is fragmented.

        What arrives may only come from the addresses of the other side, or from networks that are
        routed to it, and go to those of this side, or to networks that it announces. All else is
        dropped and counted. It needs Linux, and root or CAP_NET_ADMIN. When the program ends,
        device, addresses and routes are gone.
    """,
)

VPN_DEVICE: Final = Option(
    "vpn-device",
    STRING,
    metavar="NAME",
    group=NETWORK,
    default="the first free of nat0, nat1, ...",
    summary="how that device is called",
    manual="""
        How the device of `--vpn` is called: up to 15 characters. A name that is in use is refused.
    """,
)

ROUTE: Final = Option(
    "route",
    STRING,
    metavar="NET",
    repeatable=True,
    group=NETWORK,
    summary="send this network to the other side, which has to --announce it; may be given more "
    "than once",
    manual="""
        Send what is for this network, as `192.168.7.0/24`, to the other side too, and accept what
        comes from there. The other side has to `--announce` it, or a larger one, else both end with
        exit status 9. `0.0.0.0/0` is all of IPv4: it is then routed in two halves, which leaves the
        default route alone, and the way to the other side itself stays as it was. It may be given
        more than once.
    """,
)

ANNOUNCE: Final = Option(
    "announce",
    STRING,
    metavar="NET",
    repeatable=True,
    group=NETWORK,
    summary="let the other side --route this network to here, and reach it; may be given more "
    "than once",
    manual="""
        Let the other side `--route` this network to here. Its packets then pass through this host,
        which has to forward them (`sysctl net.ipv4.ip_forward=1`), and the hosts of the network
        need a way back; see the guide. It may be given more than once.
    """,
)

USER: Final = Option(
    "user",
    STRING,
    metavar="NAME",
    group=NETWORK,
    summary="become this user as soon as the device stands",
    manual="""
        Become this user as soon as the device, its addresses and its routes stand, with no way
        back: nothing that arrives from the network after that meets a program with rights. It needs
        root. Where the way to one of the other side's addresses would lead into the VPN, as with
        `--route 0.0.0.0/0`, the right to change routes (CAP_NET_ADMIN) is kept, so that all can be
        undone at the end; with `--retry` and a local port below 1024, the right to open that
        (CAP_NET_BIND_SERVICE).
    """,
)

SECRET: Final = Option(
    "secret",
    STRING,
    metavar="WORDS",
    group=PEER,
    summary="what both sides know; a short phrase is safe. Better: --secret-file",
    manual="""
        A phrase that both sides know. It is never sent. Who listens can't test guesses at it, and
        who takes part gets one guess per attempt and five attempts, so a short phrase is safe;
        see SECURITY. It is hidden from ps(1) as soon as the program has started, but stays in the
        history of the shell: `--secret-file` and `NAT_TRAVERSE_SECRET` are better.
    """,
)

SECRET_FILE: Final = Option(
    "secret-file",
    STRING,
    metavar="FILE",
    file=True,
    group=PEER,
    summary="the first line of FILE is the secret; others must not be able to read it",
    manual="""
        The first line of *FILE* is the secret. As with ssh(1), a file that others may read is
        refused.
    """,
)

IDENTITY: Final = Option(
    "identity",
    STRING,
    metavar="FILE",
    file=True,
    group=PEER,
    summary="this side's private key, as `nat-traverse keygen` makes it; with --peer-key",
    manual="""
        The private key of this side, an Ed25519 key that `nat-traverse keygen` has made. It needs
        `--peer-key`, and the other side needs both as well.
    """,
)

PEER_KEY: Final = Option(
    "peer-key",
    STRING,
    metavar="KEY",
    repeatable=True,
    file=True,
    group=PEER,
    summary="a public key that the other side may have, or a file with one a line; may be given "
    "more than once",
    manual="""
        The public key that the other side has to own, as `nat-traverse keygen` printed it there, or
        the name of a file with one such key a line. It may be given more than once: one of them
        suffices.
    """,
)

TIMEOUT: Final = Option(
    "timeout",
    INTEGER,
    metavar="S",
    legacy=True,
    group=EFFORT,
    summary="give up after N (see --window) and S seconds together; 0: never. "
    "With neither option: 180 seconds",
    manual="""
        Give up, with exit status 4, when no path was found *S* seconds after the *N*
        seconds of `--window`. When only one of the two is given, the other counts as 10;
        when neither is, the limit is 180 seconds. 0, or a negative number, means no limit;
        so does a sum of more than a year.

        Connecting ends the wait at once: a long limit costs nothing.
    """,
)

WINDOW: Final = Option(
    "window",
    INTEGER,
    metavar="N",
    legacy=True,
    group=EFFORT,
    summary="towards a peer that runs 0.7: send N opening packets, one a second, before the "
    "acknowledgement; also N seconds of the limit",
    manual="""
        Towards a peer that runs nat-traverse 0.7: the number of opening packets, one a
        second, that precede the acknowledgement, as they did there. Towards any other peer
        only part of the time limit; see `--timeout`. A negative number counts as 0.
    """,
)

HARD: Final = Option(
    "hard",
    STRING,
    metavar="WHEN",
    group=SEARCH,
    choices=(
        Choice("auto", "at most 4,096 packets: enough if one gateway changes ports"),
        Choice("always", "without that limit: for two such gateways, see --rate"),
        Choice("never", "no search; the agreed ports only"),
    ),
    default="auto",
    summary="whether to search for the ports of a gateway that changes them",
    manual="""
        Whether to search for the port that a gateway has given the peer, when it does not keep
        the one that was agreed on. `auto` sends at most 4,096 packets for that, which is enough
        when only one of the two gateways is of that kind. `always` goes on until the time limit:
        with two such gateways each side has to send tens of thousands of packets, so a higher
        `--rate` and a long `--timeout` belong to it, and the consent of whoever runs the
        networks. `never` keeps to the agreed ports.
    """,
)

TTL: Final = Option(
    "ttl",
    STRING,
    metavar="N",
    group=SEARCH,
    default="auto",
    summary="time to live of the packets that open the own gateway: 1 to 255, auto, "
    "or off for that of all others",
    manual="""
        The time to live (with IPv6: the hop limit) of the packets that open the gateway of the own
        side. They have to pass that and must not reach the gateway of the other side, some of which
        take such a packet for one of their own and then give their host another port. `auto` learns
        it from what routers report, and tries 2, 4 and 7 until then. `off` sends them like all
        others.
    """,
)

HINT: Final = Option(
    "hint",
    INTEGER,
    metavar="PORT",
    repeatable=True,
    group=SEARCH,
    summary="a port that the peer's gateway was seen to use lately: search near it first; "
    "may be given more than once",
    manual="""
        A port that the peer's gateway was seen to use lately, as its user may read off any service
        that shows it. Gateways that count upwards are likely to use one soon after it, so the
        search begins there. It may be given more than once, the likeliest port first.

        Two gateways that both count upwards meet when both users give a hint, not otherwise; that
        takes up to a minute and a half, and clocks that agree within ten seconds.
    """,
)

RATE: Final = Option(
    "rate",
    INTEGER,
    metavar="PPS",
    group=SEARCH,
    default="100",
    summary="unsolicited packets a second, at most",
    manual="""
        How many packets a second are sent at most to ports of the peer's that have not answered.
        Some home gateways take more than 100 a second for an attack, and drop all for a while.
        It can be 20 to 100000; the agreed ports alone need about 12 for each of the peer's
        addresses.
    """,
)

KEEPALIVE: Final = Option(
    "keepalive",
    INTEGER,
    metavar="S",
    group=SEARCH,
    default="15",
    summary="seconds between two signs of life on an idle tunnel",
    manual="""
        Seconds between two packets that keep the path open on an idle tunnel: 1 to 25. Gateways
        forget a path that is idle, some after 30 seconds. With `--handoff` and
        `--quit-after-connect` there is no tunnel, and so no such packet.
    """,
)

QUIET: Final = Option(
    "quiet",
    FLAG,
    group=TALK,
    summary="say nothing but errors",
    manual="""
        Say nothing but errors. Of `--quiet` and `--verbose` the one given last counts.
    """,
)

VERBOSE: Final = Option(
    "verbose",
    FLAG,
    group=TALK,
    summary="say more (-v is --version)",
    manual="""
        Say more: also what was sent and what was ignored. `-v` and `-ve` remain
        abbreviations of `--version`, as in 0.7.
    """,
)

JSON: Final = Option(
    "json",
    FLAG,
    group=TALK,
    summary="one JSON object a line, for programs",
    manual="""
        Write one JSON object a line instead of sentences; see OUTPUT for the names of its
        fields.
    """,
)

VERSION: Final = Option(
    "version",
    FLAG,
    legacy=True,
    group=OTHER,
    summary="print the version and exit",
    manual="""
        Print the name and the version of the program on standard output, and exit.
    """,
)

HELP: Final = Option(
    "help",
    FLAG,
    legacy=True,
    group=OTHER,
    summary="print this text and exit",
    manual="""
        Print a summary of the options on standard output, and exit.
    """,
)

KINDS: Final = (
    Choice("none", "no gateway: the host has a public address"),
    Choice("drop", "keeps port numbers, drops what nobody asked for: the ordinary home router"),
    Choice("reject", "keeps port numbers, refuses what nobody asked for with an ICMP error"),
    Choice("accept", "keeps port numbers, takes what nobody asked for as meant for itself"),
    Choice("random", "picks a new port number for every destination"),
    Choice("double", "two gateways in a row, as behind a carrier's NAT"),
    Choice("ipv6", "no translation: an IPv6 firewall that lets answers in"),
)
DEFAULT_KIND: Final = "drop"  # the most common gateway, and one that has to work


def _gateway(name: str) -> Option:
    return Option(
        name,
        STRING,
        metavar="KIND",
        group=GATEWAYS,
        choices=KINDS,
        default=DEFAULT_KIND,
        summary=f"what stands in front of the {name} host",
        manual=f"What stands in front of the {name} host.",
    )


LEFT: Final = _gateway("left")
RIGHT: Final = _gateway("right")

TUNNEL: Final = Command(
    "",
    operand=FORM,
    summary="a direct tunnel between two machines behind NAT",
    manual="",
    options=(
        *(CMD, DATAGRAMS, HANDOFF, WIREGUARD, QUIT, PLAIN),
        *(LOCAL, REMOTE, DYNAMIC, EXPOSE, RETRY),
        *(VPN, VPN_DEVICE, ROUTE, ANNOUNCE, USER),
        *(SECRET, SECRET_FILE, IDENTITY, PEER_KEY),
        *(TIMEOUT, WINDOW),
        *(HARD, TTL, HINT, RATE, KEEPALIVE),
        *(QUIET, VERBOSE, JSON),
        *(HELP, VERSION),
    ),
)

DEMO: Final = Command(
    "demo",
    operand="",
    summary="show a tunnel on this one machine, between two kernel NATs",
    manual="""
        Run both ends on this one machine, each behind a gateway made of the kernel's own
        NAT in network namespaces; show what each side says and when; move a file through
        the tunnel, check it, and remove everything. It needs no network, and where the
        kernel allows user namespaces it needs no privileges.
    """,
    # --version is here for the sake of -v, which must not mean --verbose after one word only.
    options=(LEFT, RIGHT, VERBOSE, JSON, HELP, VERSION),
)

PUBLIC: Final = Option(
    "public",
    FLAG,
    group=OTHER,
    summary="print the public half of the key that is in FILE already",
    manual="""
        Make no key; print the public half of the one that is in *FILE* already.
    """,
)

KEYGEN: Final = Command(
    "keygen",
    operand="FILE",
    summary="make a key for --identity",
    manual="""
        Make an Ed25519 key for `--identity`, write its private half to *FILE*, which only its owner
        can read, and print the public half, which is for `--peer-key` on the other side. A file
        that is there is never overwritten.
    """,
    operands="file",
    options=(PUBLIC, HELP, VERSION),
)

UP: Final = Command(
    "up",
    operand="NAME...",
    summary="run the tunnels that files describe, as a service",
    manual="""
        Run the tunnels that are described in files, side by side, until the program is stopped. A
        *NAME* stands for the file *NAME*`.toml`; its lines are the options of `nat-traverse`.
        Whenever a tunnel is lost, another path is looked for.
    """,
    operands="names",
    options=(QUIET, VERBOSE, JSON, HELP, VERSION),
)

STATUS_JSON: Final = Option(
    "json",
    FLAG,
    group=TALK,
    summary="print a list of JSON objects, for programs",
    manual="""
        Print one list of JSON objects, one for each tunnel; see OUTPUT for their fields.
    """,
)

STATUS: Final = Command(
    "status",
    operand="[NAME...]",
    summary="show the tunnels that run by up",
    manual="""
        Show how the tunnels are that `nat-traverse up` runs for this user: whether there is a path,
        which one, how long since, how much has passed. With *NAME*, only those.
    """,
    operands="names",
    options=(STATUS_JSON, HELP, VERSION),
)

COMMANDS: Final = {each.name: each for each in (DEMO, KEYGEN, UP, STATUS)}
"""The words that, as the very first argument, are a command. None has a colon."""
