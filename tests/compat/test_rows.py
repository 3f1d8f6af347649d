"""What 0.7 made of its arguments, row by row, and what we make of them.

A row holds the arguments, what 0.7 did, what we do, and the deliberate differences between the two,
named by their keys in the manual page; a row without any is kept. 0.7's side is not taken on trust:
the real program is run wherever it ends without opening a socket, and Getopt::Long is asked about
the rest.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any, Final, NamedTuple

import pytest

from nat_traverse.cli.arguments import HINT, ShowHelp, ShowVersion, parse
from nat_traverse.cli.differences import DIFFERENCES
from nat_traverse.cli.settings import Connect
from nat_traverse.errors import UsageError
from support.getopt_long import ask, ours
from support.tools import need

ORIGINAL: Final = "/usr/bin/nat-traverse"  # Debian's; a search by name could find ours first

RUNS: Final = "runs"  # 0.7 opens its socket: nothing that this file may let it do
USAGE: Final = "usage"  # the usage text on standard error, exit status 0
HELP: Final = "help"  # the same, because it was asked for
VERSION: Final = "version"  # its version on standard output, exit status 0
NO_SOCKET: Final = "255"  # exit status 255, and no reason

Now = dict[str, Any] | str | type[ShowHelp | ShowVersion]


class Row(NamedTuple):
    """`now` is a set of settings, the first line of a usage error, or what is shown."""

    line: str
    before: str
    now: Now
    differences: tuple[str, ...] = ()
    posix: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    @property
    def environment(self) -> dict[str, str]:
        return {"POSIXLY_CORRECT": "1"} if self.posix else {}


def kept(line: str, before: str = RUNS, *, posix: bool = False, **now: object) -> Row:
    return Row(line, before, now, posix=posix)


def rejected(line: str, text: str, *, posix: bool = False) -> Row:
    """A row where Getopt::Long complains; we use its words."""
    return Row(line, f"{USAGE}: {text}", text, ("usage-status",), posix=posix)


def misused(line: str, now: str, before: str = USAGE, *, posix: bool = False) -> Row:
    """A row where 0.7 showed its usage without a word about why."""
    return Row(line, before, now, ("usage-status",), posix=posix)


def shown(line: str, before: str) -> Row:
    if before == VERSION:
        return Row(line, before, ShowVersion, ("version-text",))
    return Row(line, before, ShowHelp, ("help-stdout",))


def number_expected(value: str) -> str:
    return f'Value "{value}" invalid for option window (number expected)'


SYNTAX: Final = [
    *(
        kept(f"{spelling} 1:h:2", window=3, deadline=13.0)
        for spelling in (
            "--window=3",
            "--window 3",
            "-window=3",
            "-window 3",
            "--win=3",
            "-win 3",
            "-w 3",
            "-w=3",
            "--WINDOW=3",
            "-W 3",
            "+window=3",
            "+w 3",
            "--window=+3",
            "--window=003",
            "--window=_3_",
        )
    ),
    *(
        kept(f"{spelling} 1:h:2", window=3, deadline=8.0)
        for spelling in ("--window=3 --timeout=5", "-w 3 -t 5", "-T=5 +W=3")
    ),
    kept("--window=007 1:h:2", window=7, deadline=17.0),
    kept("--window=1_000 1:h:2", window=1000, deadline=1010.0),
    rejected("-w3 1:h:2", "Unknown option: w3"),
    rejected("--w3 1:h:2", "Unknown option: w3"),
    rejected("-window3 1:h:2", "Unknown option: window3"),
    rejected("-qw3 1:h:2", "Unknown option: qw3"),
    rejected("---window=3 1:h:2", "Unknown option: -window"),
    rejected("--window:3 1:h:2", "Unknown option: window:3"),
    rejected("--=3 1:h:2", "Unknown option: =3"),
    rejected("+ 1:h:2", "Missing option after +"),
    misused("- 1:h:2", "one LOCAL_PORT:PEER:REMOTE_PORT is wanted, not 2 words: '-' '1:h:2'"),
    rejected("1:h:2 --window", "Option window requires an argument"),
    rejected("--window= 1:h:2", "Option window requires an argument"),
    rejected("--window 1:h:2", number_expected("1:h:2")),
    *(
        rejected(f"--window={shlex.quote(value)} 1:h:2", number_expected(value))
        for value in ("abc", "3x", "3.5", "0x10", "1e3", "3,4", "3 ", " 3")
    ),
    kept("--window -1 1:h:2", window=0, deadline=10.0),  # 0.7 sent nothing either
    kept("--window=-1 1:h:2", window=0, deadline=10.0),
    kept("--window=3 --window=4 1:h:2", window=4, deadline=14.0),
    *(
        kept(f"{spelling} 1:h:2", quit_after_connect=True)
        for spelling in ("--q", "-q", "--quit", "--quit-after", "--qu", "--qui", "+q")
    ),
    *(
        rejected(f"--{name}=1 1:h:2", f"Option {name} does not take an argument")
        for name in ("quit-after-connect", "help", "version")
    ),
    *(
        rejected(f"--{name} 1:h:2", f"Unknown option: {name}")
        for name in ("no-quit-after-connect", "quit_after_connect", "quitafterconnect")
    ),
    *(
        kept(f"{spelling} 1:h:2", cmd=cmd)
        for spelling, cmd in (
            ("--cmd ls", "ls"),
            ("--cmd=ls", "ls"),
            ("-c ls", "ls"),
            ("-c=ls", "ls"),
            ("--cmd 'ls -la'", "ls -la"),
            ("--cmd=a=b", "a=b"),
            ("--cmd -x", "-x"),
            ("--cmd --window", "--window"),
            ("--cmd --", "--"),
            ("--cmd -", "-"),
            ("--cmd=--help", "--help"),
            ("--cmd --help", "--help"),
            ("--cmd --quiet", "--quiet"),
        )
    ),
    Row("--cmd '' 1:h:2", RUNS, "--cmd wants a command, not an empty word", ("empty-cmd",)),
    kept("--cmd '' -q 1:h:2", quit_after_connect=True),
    kept("--cmd ls -q 1:h:2", quit_after_connect=True),
    rejected("--cmd= 1:h:2", "Option cmd requires an argument"),
    rejected("1:h:2 --cmd", "Option cmd requires an argument"),
    rejected("1:h:2 -c", "Option cmd requires an argument"),
    misused("-c 1:h:2", "nobody to reach: LOCAL_PORT:PEER:REMOTE_PORT is missing"),
    rejected("-cls 1:h:2", "Unknown option: cls"),
    kept("1:h:2 --window=3", window=3, deadline=13.0),
    kept("1:h:2 --window 3 --quit", window=3, deadline=13.0, quit_after_connect=True),
    misused(
        "1:h:2 -- --window=3",
        "one LOCAL_PORT:PEER:REMOTE_PORT is wanted, not 2 words: '1:h:2' '--window=3'",
    ),
    kept("-- 1:h:2"),
    misused("-- -5:h:2", "LOCAL_PORT is '-5', which is not a number from 0 to 65535."),
    rejected("-5:h:2", "Unknown option: 5:h:2"),
    *(shown(f"{word} 1:h:2", VERSION) for word in ("--v", "--ver", "-V", "-version", "+v")),
    shown("-v --bogus", VERSION),
    *(shown(f"{word} 1:h:2", HELP) for word in ("--h", "-h", "-help", "--HELP", "+h")),
    shown("-h --bogus", HELP),
    rejected("-? 1:h:2", "Unknown option: ?"),
    misused(
        "1:h:2 --window=1",
        "one LOCAL_PORT:PEER:REMOTE_PORT is wanted, not 2 words: '1:h:2' '--window=1'",
        posix=True,
    ),
    rejected("--win=3 1:h:2", "Unknown option: win", posix=True),
    rejected("--Bogus 1:h:2", "Unknown option: bogus"),
    rejected("--Bogus 1:h:2", "Unknown option: Bogus", posix=True),
    rejected("-window=3 1:h:2", "Unknown option: window=3", posix=True),
    misused(
        "+window=3 1:h:2",
        "one LOCAL_PORT:PEER:REMOTE_PORT is wanted, not 2 words: '+window=3' '1:h:2'",
        posix=True,
    ),
    kept("--WINDOW=3 1:h:2", posix=True, window=3, deadline=13.0),
    Row(
        "--bogus --version",
        f"{VERSION}: Unknown option: bogus",
        "Unknown option: bogus",
        ("error-first", "usage-status"),
    ),
    Row(
        "--bogus --help",
        f"{HELP}: Unknown option: bogus",
        "Unknown option: bogus",
        ("error-first", "usage-status"),
    ),
    Row(
        "--quiet 1:h:2",
        f"{USAGE}: Unknown option: quiet",
        {"verbosity": -1},
        ("new-options", "usage-status"),
    ),
    Row(
        "--verb --js 1:h:2",
        f"{USAGE}: Unknown option: verb",
        {"verbosity": 1, "json": True},
        ("new-options", "usage-status"),
    ),
    Row(
        "--handoff ls 1:h:2",
        f"{USAGE}: Unknown option: handoff",
        {"handoff": "ls"},
        ("new-options", "usage-status"),
    ),
    kept("--timeout=0 1:h:2", deadline=None),
    Row("--timeout=-1 1:h:2", RUNS, {"deadline": None}, ("no-limit",)),
    Row("-t 12345678901234567890 1:h:2", RUNS, {"deadline": None}, ("no-limit",)),
    kept("--timeout=7 1:h:2", deadline=17.0),
    kept("--window=0 1:h:2", window=0, deadline=10.0),
]

OPERANDS: Final = [
    misused("", "nobody to reach: LOCAL_PORT:PEER:REMOTE_PORT is missing"),
    misused(
        "1:h:2 3:i:4",
        "one LOCAL_PORT:PEER:REMOTE_PORT is wanted, not 2 words: '1:h:2' '3:i:4'",
    ),
    misused("''", "'' is not LOCAL_PORT:PEER:REMOTE_PORT.", "usage: Use of uninitialized value"),
    misused(
        "40000",
        "'40000' is not LOCAL_PORT:PEER:REMOTE_PORT.",
        "usage: Use of uninitialized value",
    ),
    misused(
        "40000:127.0.0.1",
        "'40000:127.0.0.1' is not LOCAL_PORT:PEER:REMOTE_PORT.",
        "usage: Use of uninitialized value",
    ),
    misused("abc:127.0.0.1:40001", "LOCAL_PORT is 'abc', which is not a number from 0 to 65535."),
    misused("40000:127.0.0.1:abc", "REMOTE_PORT is 'abc', which is not a number from 0 to 65535."),
    misused("40000::40001", "PEER, the public address or name of the other side, is missing."),
    misused("40000:0:40001", "PEER is 0, which is neither an address nor a name."),
    misused("40000:127.0.0.1:", "REMOTE_PORT is missing."),
    misused(":127.0.0.1:40001", "LOCAL_PORT is missing (0 stands for any free one)."),
    misused(
        "' 40023:127.0.0.1:40024'",
        "LOCAL_PORT is ' 40023', which is not a number from 0 to 65535.",
    ),
    Row("40027:[::1]:40028", USAGE, {"target": (40027, "::1", 40028)}, ("ipv6",)),
    Row("40029:::1:40030", USAGE, {"target": (40029, "::1", 40030)}, ("ipv6",)),
    Row(
        "40012:127.0.0.1:40013:99",
        RUNS,
        "PEER is '127.0.0.1:40013', which is not an IPv6 address.",
        ("extra-field",),
    ),
    Row(
        "40000abc:127.0.0.1:40001",
        NO_SOCKET,
        "LOCAL_PORT is '40000abc', which is not a number from 0 to 65535.",
        ("port-text",),
    ),
    Row(
        "40000:127.0.0.1:40001abc",
        NO_SOCKET,
        "REMOTE_PORT is '40001abc', which is not a number from 0 to 65535.",
        ("port-text",),
    ),
    Row(
        "'41053:127.0.0.1:41054(9)'",
        RUNS,
        "REMOTE_PORT is '41054(9)', which is not a number from 0 to 65535.",
        ("port-text",),
    ),
    kept("0:127.0.0.1:40001", target=(0, "127.0.0.1", 40001)),
    Row(
        "40000:127.0.0.1:0",
        RUNS,
        "REMOTE_PORT is 0, and nothing can be sent to port 0: give the other side's.",
        ("port-zero",),
    ),
    *(
        Row(
            f"{port}:127.0.0.1:40001",
            RUNS,
            f"LOCAL_PORT is {port}, and the highest port is 65535.",
            ("port-range",),
        )
        for port in (70000, 65536, 99999999999)
    ),
    Row(
        "40000:127.0.0.1:70000",
        RUNS,
        "REMOTE_PORT is 70000, and the highest port is 65535.",
        ("port-range",),
    ),
    kept("040043:127.0.0.1:40001", target=(40043, "127.0.0.1", 40001)),
    # Whether a name exists is the resolver's business, and exit status 22, as it was.
    kept("40000:no.such.host.invalid:40001", target=(40000, "no.such.host.invalid", 40001)),
    kept("40000:127.0.0.1x:40001", target=(40000, "127.0.0.1x", 40001)),
    kept("40000:127.1:40001", target=(40000, "127.1", 40001)),
    Row("1:localhost:2", RUNS, {"target": (1, "localhost", 2)}, ("addresses",)),
    Row("1:0.0.0.0:2", RUNS, "PEER is 0.0.0.0, which stands for no host at all.", ("no-host",)),
    Row(
        "1:224.0.0.1:2",
        RUNS,
        "PEER is 224.0.0.1, a multicast address: a tunnel has one other end.",
        ("no-host",),
    ),
    Row(
        "1:255.255.255.255:2",
        RUNS,
        "PEER is 255.255.255.255, the broadcast address: a tunnel has one other end.",
        ("no-host",),
    ),
]

ROWS: Final = SYNTAX + OPERANDS


def names(rows: list[Row]) -> list[str]:
    return [("POSIXLY_CORRECT " if row.posix else "") + (row.line or "(none)") for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_ours(row: Row) -> None:
    if isinstance(row.now, str):
        with pytest.raises(UsageError) as caught:
            parse(row.words, row.environment)
        lines = str(caught.value).splitlines()
        assert lines[0] == row.now
        assert lines[-1] == HINT
        assert caught.value.exit_code == 2
        return
    result = parse(row.words, row.environment)
    if isinstance(row.now, dict):
        assert isinstance(result, Connect)
        defaults = Connect(target=result.target, deadline=180.0)
        assert result == defaults._replace(**row.now)
    else:
        assert isinstance(result, row.now)


OF_THE_ORIGINAL: Final = [row for row in ROWS if row.before != RUNS]


@pytest.mark.parametrize("row", OF_THE_ORIGINAL, ids=names(OF_THE_ORIGINAL))
def test_the_original(row: Row) -> None:
    program = need(ORIGINAL, package="nat-traverse")
    environment = {**os.environ, **row.environment, "LC_ALL": "C"}
    if not row.posix:
        environment.pop("POSIXLY_CORRECT", None)
    run = subprocess.run(
        [program, *row.words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    kind, _, complaint = row.before.partition(": ")
    assert run.returncode == (255 if kind == NO_SOCKET else 0)
    assert run.stdout == ("nat-traverse 0.7\n" if kind == VERSION else "")
    assert ("\nUsage:\n" in run.stderr) == (kind in {USAGE, HELP})
    if complaint:
        assert run.stderr.startswith(complaint)
    if kind == NO_SOCKET:
        assert "Couldn't create socket" in run.stderr


def test_getopt_long_agrees() -> None:
    answers = ask((row.words, row.posix) for row in ROWS)
    for row, (events, operands) in zip(ROWS, answers, strict=True):
        assert ours(row.words, posix=row.posix) == (events, operands), row.line
        if row.before == RUNS:  # then nothing was wrong with the options
            assert "!" not in {name for name, _ in events}, row.line
            assert len(operands) == 1, row.line


def test_every_difference_is_in_the_manual() -> None:
    listed = {difference.key for difference in DIFFERENCES}
    named = {key for row in ROWS for key in row.differences}
    assert named <= listed
    assert {key for key in listed if key.startswith("port-")} <= named


def test_a_kept_row_was_no_usage_error() -> None:
    for row in ROWS:
        assert row.differences or row.before == RUNS, row.line
