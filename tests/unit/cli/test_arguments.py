from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.addressing import Plan
from nat_traverse.cli import options
from nat_traverse.cli.arguments import HINT, ShowHelp, ShowVersion, parse
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE, Connect, Demo, Keygen, Status, Up
from nat_traverse.errors import UsageError
from nat_traverse.target import Target

if TYPE_CHECKING:
    from pathlib import Path

YEAR = 366 * 24 * 3600


def connect(*words: str) -> Connect:
    result = parse([*words, "1:h:2"], {})
    assert isinstance(result, Connect)
    return result


def demo(*words: str) -> Demo:
    result = parse(["demo", *words], {})
    assert isinstance(result, Demo)
    return result


def refusal(*words: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(words, {})
    *lines, hint = str(caught.value).splitlines()
    assert hint == HINT
    return lines


def test_defaults() -> None:
    assert connect() == Connect(
        target=Target(1, "h", 2),
        deadline=180.0,
        window=None,
        cmd=None,
        handoff=None,
        quit_after_connect=False,
        wireguard=None,
        hard="auto",
        ttl=None,
        hints=(),
        rate=100,
        datagrams=False,
        plain=False,
        locals_=(),
        remotes=(),
        dynamics=(),
        exposed=(),
        retry=False,
        vpn=None,
        secret=None,
        secret_file=None,
        identity=None,
        peer_keys=(),
        keepalive=15,
        verbosity=NORMAL,
        json=False,
    )
    assert not connect().is_plain
    assert not connect().forwards


@pytest.mark.parametrize(
    ("words", "deadline", "window"),
    [
        ("-w 3", 13.0, 3),
        ("-t 3", 13.0, None),
        ("-w 3 -t 4", 7.0, 3),
        ("-w 0 -t 4", 4.0, 0),
        ("-w -9 -t 4", 4.0, 0),
        ("-t 0", None, None),
        ("-w 3 -t 0", None, 3),
        ("-t -5", None, None),
        (f"-w 0 -t {YEAR}", float(YEAR), 0),
        (f"-w 1 -t {YEAR}", None, 1),
        ("-t 99999999999999999999", None, None),
        ("-t " + "9" * 5000, None, None),
        ("-w -99999999999999999999", 10.0, 0),
    ],
)
def test_how_long(words: str, deadline: float | None, window: int | None) -> None:
    settings = connect(*words.split())
    assert settings.deadline == deadline
    assert settings.window == window


def test_verbosity_is_what_was_said_last() -> None:
    assert connect("--quiet").verbosity == QUIET
    assert connect("--quiet", "--verbose").verbosity == VERBOSE
    assert connect("--verbose", "--quiet").verbosity == QUIET
    assert connect("--verbose", "--verbose").verbosity == VERBOSE


@pytest.mark.parametrize("word", ["auto", "always", "never"])
def test_how_hard_it_searches(word: str) -> None:
    assert connect("--hard", word).hard == word


def test_how_hard_it_can_not_search() -> None:
    for word in ("", "Auto", "very"):
        assert refusal("--hard", word, "1:h:2") == [
            f"--hard is {word!r}, and can be: auto, always, never"
        ]


@pytest.mark.parametrize(
    ("word", "ttl"), [("auto", None), ("off", 0), ("1", 1), ("007", 7), ("255", 255)]
)
def test_ttl(word: str, ttl: int | None) -> None:
    assert connect("--ttl", word).ttl == ttl


@pytest.mark.parametrize(
    "word", ["", "0", "256", "-1", "+1", "1.0", "2 ", "OFF", "\u0663", "\u00b2", "9" * 5000]
)
def test_no_ttl(word: str) -> None:
    (line,) = refusal("--ttl", word, "1:h:2")
    assert line.startswith("--ttl is ")
    assert line.endswith(", and can be: 1 to 255, auto, off")


def test_hints_add_up_in_the_order_given() -> None:
    words = ("--hint", "50000", "--hint=1", "--hi", "65535", "--hint", "50000")
    assert connect(*words).hints == (50000, 1, 65535)


@pytest.mark.parametrize("word", ["0", "65536", "-1", "9" * 5000])
def test_no_hint(word: str) -> None:
    text = "--hint is out of range: it can be 1 to 65535"
    assert refusal("--hint", word, "--hint", "5", "1:h:2") == [text]
    assert refusal("--hint", "5", "--hint", word, "1:h:2") == [text]


@pytest.mark.parametrize("rate", [20, 100, 100_000])
def test_rate(rate: int) -> None:
    assert connect("--rate", str(rate)).rate == rate


@pytest.mark.parametrize("word", ["19", "100001", "-1", "9" * 5000])
def test_no_rate(word: str) -> None:
    text = "--rate is out of range: it can be 20 to 100000"
    assert refusal("--rate", word, "1:h:2") == [text]


def test_json() -> None:
    assert connect("--json").json


def test_what_it_carries() -> None:
    assert connect("--cmd", "ls", "--cmd", "id").cmd == "id"
    assert connect("--handoff", "ls").handoff == "ls"
    assert connect("-q").quit_after_connect


def test_quitting_never_runs_the_command() -> None:
    settings = connect("-q", "--cmd", "ls")
    assert settings.quit_after_connect
    assert settings.cmd is None
    assert connect("-q", "--cmd", "").quit_after_connect


def test_handoff_is_alone() -> None:
    assert "--handoff and --cmd exclude" in refusal("--handoff=x", "--cmd=y", "1:h:2")[0]
    assert "--handoff and --quit-after" in refusal("--handoff=x", "-q", "1:h:2")[0]
    assert "--handoff and --quit-after" in refusal("--handoff=x", "-q", "-c", "y", "1:h:2")[0]


def test_empty_commands() -> None:
    assert refusal("--cmd", "", "1:h:2") == ["--cmd wants a command, not an empty word"]
    assert refusal("--handoff", "", "1:h:2") == ["--handoff wants a command, not an empty word"]


# -- the encrypted tunnel -------------------------------------------------------------------------


def test_who_may_be_there() -> None:
    words = ("--secret=a b", "--secret-file", "f", "--identity", "i", "--peer-key=k", "--peer=l")
    settings = connect(*words)
    assert settings.secret == "a b"  # noqa: S105 (nobody's)
    assert (settings.secret_file, settings.identity) == ("f", "i")
    assert settings.peer_keys == ("k", "l")
    # The next word, whatever it looks like; the last one counts.
    assert connect("--secret", "-", "--secret", "--plain").secret == "--plain"  # noqa: S105
    assert connect("--secret", "").secret == ""  # refused where secrets are understood


def test_forwards_add_up_in_the_order_given() -> None:
    settings = connect(
        *("-L", "1:h:2", "-D", "3", "-R", "4:h:5", "-L", "6:h:7", "--expose", "h:8"),
        *("--expose", "h:9"),
    )
    assert [each.text for each in settings.locals_] == ["-L 1:h:2", "-L 6:h:7"]
    assert [each.text for each in settings.remotes] == ["-R 4:h:5"]
    assert len(settings.dynamics) == 1
    assert len(settings.exposed) == 2
    assert settings.forwards
    for words in (("-L", "1:h:2"), ("-R", "1:h:2"), ("-D", "1"), ("--expose", "h:1")):
        assert connect(*words).forwards


@pytest.mark.parametrize("letters", ["lL", "rR", "dD"])
def test_letters_are_known_in_both_cases(letters: str) -> None:
    value = "1" if letters[0] == "d" else "1:h:2"
    one, other = (connect(f"-{letter}", value) for letter in letters)
    assert one == other
    assert connect(f"--{letters[0]}={value}") == one


def test_what_is_no_forward() -> None:
    for words in (("-L", "x"), ("-R", ""), ("-D", "h:x"), ("--expose", "8")):
        assert refusal(*words, "1:h:2")


@pytest.mark.parametrize("seconds", [1, 15, 25])
def test_keepalive(seconds: int) -> None:
    assert connect("--keepalive", str(seconds)).keepalive == seconds


@pytest.mark.parametrize("word", ["0", "26", "-1", "9" * 5000])
def test_no_keepalive(word: str) -> None:
    text = "--keepalive is out of range: it can be 1 to 25"
    assert refusal("--keepalive", word, "1:h:2") == [text]


@pytest.mark.parametrize(
    "words",
    [
        "--datagrams",
        "--datagrams --cmd ls",
        "--retry --cmd ls",
        "--retry -L 1:h:2",
        "--retry --expose h:1",
        "--retry --vpn 10.0.0.1/24",
        "--secret x --vpn 10.0.0.1/24 --keepalive 1",
        "--plain --cmd ls",
        "--plain -q",
        "--plain --handoff ls",
        "--plain --keepalive 5",
        "--plain -q --window 3",
        "--handoff ls --window 3",
        "--secret x --datagrams",
        "--secret x --identity y --peer-key z -D 0",
    ],
)
def test_what_goes_together(words: str) -> None:
    connect(*words.split())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-L 1:h:2 --cmd ls", "-L and --cmd exclude each other: a tunnel is for one purpose"),
        ("-R 1:h:2 --cmd ls", "-R and --cmd exclude each other"),
        ("-D 1 --datagrams", "-D and --datagrams exclude each other"),
        ("--expose h:1 --cmd ls", "--expose and --cmd exclude each other"),
        ("--plain -L 1:h:2", "--plain excludes -L, which needs the encrypted tunnel"),
        ("--plain --expose h:1", "--plain excludes --expose"),
        ("--plain --datagrams", "--plain excludes --datagrams"),
        ("--vpn 10.0.0.1/24 --cmd ls", "--vpn and --cmd exclude each other: a tunnel is for one"),
        ("--vpn 10.0.0.1/24 --datagrams", "--vpn and --datagrams exclude each other"),
        ("--vpn 10.0.0.1/24 --datagrams --cmd ls", "--vpn and --datagrams exclude each other"),
        ("--vpn 10.0.0.1/24 -L 1:h:2", "-L and --vpn exclude each other"),
        ("--vpn 10.0.0.1/24 -L 1:h:2 --cmd ls", "-L and --vpn exclude each other"),
        ("--vpn 10.0.0.1/24 --expose h:2", "--expose and --vpn exclude each other"),
        ("--plain --vpn 10.0.0.1/24", "--plain excludes --vpn, which needs the encrypted tunnel"),
        ("-q --vpn 10.0.0.1/24", "--vpn needs a tunnel, and this command makes none"),
        ("--handoff ls --vpn 10.0.0.1/24", "--vpn needs a tunnel, and this command makes none"),
        ("-q --cmd ls --vpn 10.0.0.1/24", "--vpn needs a tunnel"),
        ("--plain --retry --cmd ls", "--plain excludes --retry"),
        ("--plain --secret x", "--plain excludes --secret"),
        ("--plain --secret-file x", "--plain excludes --secret-file"),
        ("--plain --identity x", "--plain excludes --identity"),
        ("--plain --peer-key x", "--plain excludes --peer-key"),
        ("-q -D 1", "-D needs a tunnel, and this command makes none"),
        ("-q --retry", "--retry needs a tunnel"),
        ("--handoff ls --datagrams", "--datagrams needs a tunnel"),
        ("--handoff ls --secret x", "--secret proves who is at the other end of a tunnel"),
        ("-q --identity x", "--identity proves who is at the other end of a tunnel"),
        ("--handoff ls --keepalive 15", "--keepalive is about a tunnel, and this command makes no"),
        ("-q --keepalive 5", "--keepalive is about a tunnel, and this command makes none"),
        ("--retry", "--retry needs a port forward, --vpn or --cmd"),
        ("--retry --datagrams", "--retry needs a port forward, --vpn or --cmd"),
    ],
)
def test_what_does_not_go_together(words: str, text: str) -> None:
    (line,) = refusal(*words.split(), "1:h:2")
    assert line.startswith(text)


# -- the VPN --------------------------------------------------------------------------------------


def test_a_vpn_with_all_that_belongs_to_it() -> None:
    settings = connect(
        *("--vpn", "10.77.0.1/24", "--vpn=fd77::1/64", "--vpn-device", "work0"),
        *("--route", "192.168.7.0/24", "--route=fd07::/64", "--route", "0.0.0.0/0"),
        *("--announce", "192.168.8.9/24", "--user", "nobody", "--user", "daemon"),
    )
    assert settings.vpn == Plan(
        (ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
        (ip_network("192.168.7.0/24"), ip_network("fd07::/64"), ip_network("0.0.0.0/0")),
        (ip_network("192.168.8.0/24"),),
        "work0",
        "daemon",
    )
    assert not settings.forwards
    assert not settings.is_plain
    alone = connect("--vpn", "10.77.0.1/24").vpn
    assert alone == Plan((ip_interface("10.77.0.1/24"),))


def test_names_of_options_may_be_cut_short() -> None:
    words = ("--vpn", "10.0.0.1/24", "--vpn-d", "x", "--rou", "10.1.0.0/16", "--an=::/0")
    plan = connect(*words, "--vpn", "fd00::1/64", "--u", "nobody").vpn
    assert plan is not None
    assert refusal("--vp", "10.0.0.1/24", "1:h:2") == ["Option vp is ambiguous (vpn, vpn-device)"]
    assert (len(plan.addresses), plan.device, plan.user) == (2, "x", "nobody")
    assert list(map(str, plan.routes + plan.announced)) == ["10.1.0.0/16", "::/0"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("vpn-device", "x"), ("route", "10.0.0.0/8"), ("announce", "10.0.0.0/8"), ("user", "x")],
)
def test_what_is_about_a_vpn_needs_one(option: str, value: str) -> None:
    (line,) = refusal(f"--{option}", value, "1:h:2")
    assert line == f"--{option} is about a VPN, and --vpn is missing"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--vpn", ""), "--vpn : the length of the network is missing"),
        (("--vpn", "10.0.0.1"), "--vpn 10.0.0.1: the length of the network is missing"),
        (("--vpn", "x/24"), "--vpn 'x/24' is no address with its network"),
        (("--vpn", "10.0.0.1/24", "--route", "x"), "--route 'x' is no network"),
        (("--vpn", "10.0.0.1/24", "--announce", ""), "--announce '' is no network"),
        (("--vpn", "10.0.0.1/24", "--route", "::/0"), "--route ::/0 needs an IPv6 address"),
        (("--vpn", "10.0.0.1/24", "--vpn-device", "a/b"), "No network device can be called 'a/b'"),
        (("--vpn", "10.0.0.1/24", "--vpn-device", ""), "No network device can be called ''"),
        (("--vpn", "10.0.0.1/24", "--user", ""), "--user wants the name of a user"),
    ],
)
def test_what_is_no_vpn(words: tuple[str, ...], text: str) -> None:
    (line,) = refusal(*words, "1:h:2")
    assert line.startswith(text)


def test_no_complaint_shows_the_secret() -> None:
    for words in (("--plain",), ("-q",), ("--retry",), ("-L", "1:h:2", "--cmd", "x"), ("--bogus",)):
        for line in refusal("--secret", "hunter2", *words, "1:h:2"):
            assert "hunter2" not in line


# -- wireguard ------------------------------------------------------------------------------------


@pytest.fixture
def conf(tmp_path: Path) -> str:
    key = "ukdP63b53ab25bJwW0jTz9QMAmtpww4ndbjSU3RWSww="
    path = tmp_path / "nat.conf"
    path.touch(0o600)  # whatever the umask is
    path.write_text(
        f"[Interface]\nListenPort = 51820\n[Peer]\nPublicKey = {key}\nEndpoint = h:51821\n"
    )
    return str(path)


def test_wireguard_says_in_its_file_whom_to_reach(conf: str) -> None:
    found = parse(["--wireguard", conf, "--rate", "50", "--keepalive=9"], {})
    assert isinstance(found, Connect)
    assert found.target == Target(51820, "h", 51821)
    assert found.wireguard is not None
    assert (found.wireguard.path, found.wireguard.device) == (conf, "nat")
    assert (found.rate, found.keepalive) == (50, 9)
    assert found.is_plain


def test_wireguard_takes_no_address(conf: str) -> None:
    assert refusal("--wireguard", conf, "1:h:2") == [
        "--wireguard takes ports and peer from its file, and '1:h:2' is one word more"
    ]


def test_wireguard_and_its_file() -> None:
    assert refusal("--wireguard", "/nowhere/nat.conf") == [
        "--wireguard: /nowhere/nat.conf can't be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cmd", "id"), "--wireguard and --cmd exclude each other"),
        (("--handoff", "id"), "--wireguard and --handoff exclude each other"),
        (("-q",), "--wireguard and --quit-after-connect exclude each other"),
        (("--plain",), "--wireguard excludes --plain"),
        (("--datagrams",), "--wireguard excludes --datagrams"),
        (("--retry",), "--wireguard looks for a path again by itself: leave --retry out"),
        (("-L", "1:h:2"), "--wireguard excludes -L"),
        (("--expose", "any"), "--wireguard excludes --expose"),
        (("--vpn", "10.77.0.1/24"), "--wireguard excludes --vpn"),
        (("--secret", "x"), "--secret proves who is at the other end of a tunnel"),
        (("--identity", "x", "--peer-key", "y"), "--identity proves who is at the other end"),
    ],
)
def test_wireguard_needs_no_tunnel(words: tuple[str, ...], said: str, conf: str) -> None:
    (line,) = refusal("--wireguard", conf, *words)
    assert line.startswith(said)


# -- keygen ---------------------------------------------------------------------------------------


def test_keygen() -> None:
    made = parse(["keygen", "id"], {})
    assert made == Keygen("id", public=False)
    assert parse(["keygen", "--public", "id"], {}) == Keygen("id", public=True)
    assert refusal("keygen") == ["keygen wants the name of one FILE for the private key"]
    assert refusal("keygen", "a", "b") == refusal("keygen")
    assert refusal("keygen", "--secret", "x") == ["Unknown option: secret"]
    shown = parse(["keygen", "--help"], {})
    assert isinstance(shown, ShowHelp)
    assert shown.command is options.KEYGEN
    assert refusal("--quiet", "keygen") == ["'keygen' is a command, and has to be the first word"]


def test_all_errors_of_the_scanner_and_no_others() -> None:
    assert refusal("--bogus", "--window=x") == [
        "Unknown option: bogus",
        'Value "x" invalid for option window (number expected)',
    ]


def test_operands() -> None:
    assert refusal()[0].startswith("nobody to reach")
    assert "not 2 words: '1:h:2' '\\x1b'" in refusal("1:h:2", "\x1b")[0]
    assert refusal("h")[0] == "'h' is not LOCAL_PORT:PEER:REMOTE_PORT."


def test_version_and_help_act_at_once() -> None:
    assert isinstance(parse(["--version", "--bogus"], {}), ShowVersion)
    assert isinstance(parse(["1:h:2", "-q", "-v", "-h"], {}), ShowVersion)
    shown = parse(["-h", "-v"], {})
    assert isinstance(shown, ShowHelp)
    assert shown.command is options.TUNNEL


def test_version_and_help_wait_for_no_error() -> None:
    assert refusal("--bogus", "--version", "--worse") == [
        "Unknown option: bogus",
        "Unknown option: worse",
    ]
    assert refusal("--window=x", "--help")[0].startswith('Value "x"')


def test_posixly_correct_with_any_value() -> None:
    with pytest.raises(UsageError, match="not 2 words"):
        parse(["1:h:2", "-q"], {"POSIXLY_CORRECT": ""})
    with pytest.raises(UsageError, match="Unknown option: q"):
        parse(["-q", "1:h:2"], {"POSIXLY_CORRECT": ""})


# -- up and status --------------------------------------------------------------------------------


def test_up() -> None:
    assert parse(["up", "home"], {}) == Up(("home",), NORMAL, json=False)
    assert parse(["up", "b", "--json", "a", "--quiet"], {}) == Up(("b", "a"), QUIET, json=True)
    assert parse(["up", "--verbose", "./x.toml"], {}) == Up(("./x.toml",), VERBOSE)
    assert refusal("up") == ["up wants the name of at least one tunnel"]
    assert refusal("up", "--retry", "home") == ["Unknown option: retry"]
    assert refusal("--json", "up", "home")[0].startswith("one LOCAL_PORT:PEER:REMOTE_PORT is")
    shown = parse(["up", "--help"], {})
    assert isinstance(shown, ShowHelp)
    assert shown.command is options.UP


def test_status() -> None:
    assert parse(["status"], {}) == Status()
    assert parse(["status", "--json"], {}) == Status((), json=True)
    assert parse(["status", "b", "a", "b"], {}) == Status(("b", "a"))
    assert isinstance(parse(["status", "-v"], {}), ShowVersion)
    assert refusal("status", "--verbose") == ["Unknown option: verbose"]


# -- demo -----------------------------------------------------------------------------------------


def test_demo() -> None:
    assert demo() == Demo(left="drop", right="drop", verbosity=NORMAL, json=False)
    assert demo("--left", "none", "--r=ipv6", "--verbose", "--json") == Demo(
        left="none", right="ipv6", verbosity=VERBOSE, json=True
    )


def test_demo_shows_its_own_help() -> None:
    shown = parse(["demo", "-h"], {})
    assert isinstance(shown, ShowHelp)
    assert shown.command is options.DEMO
    assert isinstance(parse(["demo", "-v"], {}), ShowVersion)


@pytest.mark.parametrize("kind", ["symmetric", "", "DROP"])
def test_demo_knows_its_kinds(kind: str) -> None:
    assert refusal("demo", "--right", kind) == [
        f"--right is {kind!r}, and can be: none, drop, reject, accept, random, double, ipv6"
    ]


def test_demo_takes_no_address() -> None:
    assert refusal("demo", "1:h:2") == ["demo takes options only, and '1:h:2' is none"]
    assert refusal("demo", "--cmd=x") == ["Unknown option: cmd"]


def test_a_command_comes_first() -> None:
    assert refusal("--quiet", "demo") == ["'demo' is a command, and has to be the first word"]


def test_version_is_found_without_heavy_modules() -> None:
    program = """
import sys
before = set(sys.modules)
from nat_traverse.cli.arguments import parse
parse(["--version"], {})
print(*sorted(set(sys.modules) - before))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"argparse", "asyncio", "dataclasses", "enum", "ipaddress", "re", "socket", "ssl"}
    assert not (heavy | {"typing", "textwrap"}) & set(run.stdout.split()), run.stdout
