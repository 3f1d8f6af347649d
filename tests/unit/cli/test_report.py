from __future__ import annotations

import errno
import io
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.carry.receiver import OutputOverflowed
from nat_traverse.cli.explain import Explanation
from nat_traverse.cli.report import (
    EVENT_FIELDS,
    JsonReport,
    Report,
    TerminalReport,
    make_report,
)
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE, Connect
from nat_traverse.cli.target import Target
from nat_traverse.model import Endpoint, ErrorKind, Generation, NetworkError, Path
from nat_traverse.punch.evidence import Evidence
from nat_traverse.punch.machine import (
    Connected,
    DeadlinePassed,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    Settled,
)
from nat_traverse.session import Opened, SessionEvent
from nat_traverse.tunnel.plain import (
    DeliveryKnown,
    Ended,
    PeerClosed,
    PeerFinished,
    PeerRestarted,
    PeerVanished,
)
from nat_traverse.wire.hello import Counts, Reason

if TYPE_CHECKING:
    from nat_traverse.carry.relay import RelayEvent

Capture = pytest.CaptureFixture[str]

PEER = Endpoint("203.0.113.2", 40001)
PATH = Path(0, PEER)
PATH_IPV6 = Path(1, Endpoint("2001:db8::2", 40001))
OPENED = Opened(
    local_port=40000,
    sources=(Endpoint("198.51.100.2", 40000), Endpoint("2001:db8::1", 40000)),
    remotes=(PEER, PATH_IPV6.remote),
    unreachable=((Endpoint("192.0.2.1", 40001), "no route"),),
    left_out=(Endpoint("192.0.2.9", 40001),),
)
CONNECTED = Connected(
    PATH, Generation.CURRENT, 0.02, Endpoint("198.51.100.2", 40000), datagram_size=1400
)
REFUSED = NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, "203.0.113.1")
EXPIRED = NetworkError(ErrorKind.TIME_EXCEEDED, errno.EHOSTUNREACH, "192.0.2.254")
FORBIDDEN = NetworkError(ErrorKind.NOT_PERMITTED, errno.EPERM)
COUNTS = Counts(2, 2_000_000)
WHY = Explanation("silence", "Nothing came.", "It was not running.", "Start it.")

# Every event, at which verbosity it is told, and what of it must be in the text.
EVENTS: list[tuple[SessionEvent | RelayEvent, int, str, str]] = [
    (OPENED, NORMAL, "opened", "UDP port 40000 (198.51.100.2 and [2001:db8::1] here) to "),
    (OPENED, NORMAL, "opened", "203.0.113.2:40001, [2001:db8::2]:40001"),
    (OPENED, NORMAL, "opened", "nat-traverse 40001:<public address of this side>:40000"),
    (OPENED, VERBOSE, "no-route", "not trying 192.0.2.1:40001: no route"),
    (OPENED, NORMAL, "left-out", "not trying 192.0.2.9:40001: the name has too many addresses"),
    (PeerHeard(PATH, Generation.CURRENT), NORMAL, "heard", "heard the peer at 203.0.113.2:40001\n"),
    (PeerHeard(PATH, Generation.LEGACY), NORMAL, "heard", "203.0.113.2:40001, which runs 0.7\n"),
    (PeerRefused(PATH, REFUSED), NORMAL, "refused", "203.0.113.1 refuses packets to 203.0.113.2"),
    (PeerRefused(PATH, REFUSED), NORMAL, "refused", ": port unreachable; still trying"),
    (PeerRefused(PATH, FORBIDDEN), NORMAL, "refused", "this host refuses packets"),
    (PeerRefused(PATH, EXPIRED), VERBOSE, "refused", "ended at 192.0.2.254, as it should"),
    (PortChanged(PATH, PEER._replace(port=7)), NORMAL, "port-changed", "from port 7, not 40001"),
    (PathValidated(PATH, 0.02), VERBOSE, "validated", "203.0.113.2:40001 is open in both"),
    (CONNECTED, NORMAL, "connected", "port 40000 to 203.0.113.2:40001, which sees us as 198.51."),
    (CONNECTED, NORMAL, "connected", "round trip 20.0 ms, not encrypted, peer speaks protocol 1"),
    (PeerFinished(COUNTS, COUNTS), VERBOSE, "finished", "2,000,000 bytes arrived"),
    (PeerFinished(None, COUNTS), VERBOSE, "finished", "2,000,000 bytes arrived"),
    (DeliveryKnown(COUNTS, Counts(1, 5)), VERBOSE, "delivered", "received 5 of 2,000,000 bytes"),
    (PeerClosed(Reason.NOT_READING, None), VERBOSE, "closed", "ended the tunnel: not reading"),
    (PeerVanished(errno.ETIMEDOUT), VERBOSE, "vanished", "no sign of life"),
    (PeerRestarted(), NORMAL, "restarted", "another run of nat-traverse"),
    (OutputOverflowed(), NORMAL, "overflowed", "16 MiB"),
]


def connect(**fields: Any) -> Connect:
    target = Target(40000, "gw.example.org", 40001)
    return Connect(target=target, deadline=fields.pop("deadline", 180.0), **fields)


def report(kind: type[Report] = Report, *, ago: float = 1.5, **fields: Any) -> Report:
    return kind(connect(**fields), started=time.monotonic() - ago)


@pytest.mark.parametrize(("event", "level", "_name", "text"), EVENTS)
def test_lines(
    event: SessionEvent | RelayEvent, level: int, _name: str, text: str, capsys: Capture
) -> None:
    for verbosity in (QUIET, NORMAL, VERBOSE):
        report(verbosity=verbosity).observe(event)
        out, err = capsys.readouterr()
        assert out == ""  # standard output belongs to the tunnel
        assert (text in err) == (level <= verbosity)


@pytest.mark.parametrize("event", [Ended(), Settled(), DeadlinePassed(Evidence({}))])
@pytest.mark.parametrize("kind", [Report, JsonReport])
def test_what_is_said_otherwise_is_not_said_twice(
    event: SessionEvent | RelayEvent, kind: type[Report], capsys: Capture
) -> None:
    report(kind, verbosity=VERBOSE).observe(event)
    assert capsys.readouterr() == ("", "")


def test_a_line_begins_with_the_seconds_since_the_start(capsys: Capture) -> None:
    report(ago=12.0).observe(PeerRestarted())
    line = capsys.readouterr().err
    seconds, unit, _ = line.split(maxsplit=2)
    assert 12 <= float(seconds) < 12 + 60
    assert unit == "s"
    assert line.count("\n") == 1


def test_a_round_trip_and_an_address_that_are_not_known_are_not_told(capsys: Capture) -> None:
    report().observe(Connected(PATH_IPV6, Generation.LEGACY, None, None, 1400))
    line = capsys.readouterr().err
    assert "to [2001:db8::2]:40001, direct, not encrypted, peer speaks 0.7\n" in line


def test_errors_and_explanations_are_told_always(capsys: Capture) -> None:
    for verbosity in (QUIET, NORMAL, VERBOSE):
        told = report(verbosity=verbosity)
        told.explained([WHY])
        told.failed("No path.", 4)
        assert capsys.readouterr().err == (
            "nat-traverse: Nothing came.\n  This means: It was not running.\n  Try: Start it.\n"
            "nat-traverse: No path.\n"
        )


def test_the_port_that_was_bound_is_told_from_then_on(capsys: Capture) -> None:
    told = Report(Connect(Target(0, "gw.example.org", 40001), None), started=time.monotonic())
    assert told.other_side.endswith(":0")
    told.observe(OPENED)
    assert told.other_side.endswith(":40000")
    assert "40001:<public address of this side>:40000" in capsys.readouterr().err


COMMON = ("event", "elapsed", "text")  # fields of every object


# -- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("event", "_level", "name", "_text"), EVENTS)
def test_json(
    event: SessionEvent | RelayEvent, _level: int, name: str, _text: str, capsys: Capture
) -> None:
    report(JsonReport, verbosity=QUIET).observe(event)  # whatever the verbosity
    out, err = capsys.readouterr()
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert name in [line["event"] for line in lines]
    documented = {word for word, _ in EVENT_FIELDS}
    for line in lines:
        assert list(line)[:2] == ["event", "elapsed"]
        assert list(line)[-1] == "text"
        assert line["event"] in documented
        assert 1.5 <= line["elapsed"] < 61.5


def test_json_names_its_fields_as_documented(capsys: Capture) -> None:
    told = report(JsonReport)
    for event, *_ in EVENTS:
        told.observe(event)
    told.running("ls")
    told.explained([WHY])
    told.failed("No path.", 4)
    documented = dict(EVENT_FIELDS)
    seen = set()
    for line in map(json.loads, capsys.readouterr().err.splitlines()):
        seen.add(line["event"])
        for field in set(line) - set(COMMON):
            assert f"`{field}`" in documented[line["event"]], (line["event"], field)
    assert seen == set(documented) - set(COMMON)


def test_json_of_a_connection(capsys: Capture) -> None:
    report(JsonReport).observe(CONNECTED)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("elapsed") >= 1.5
    assert line.pop("text").startswith("connected: port 40000 to 203.0.113.2:40001, ")
    assert line == {
        "event": "connected",
        "peer": "203.0.113.2:40001",
        "local_port": 40000,
        "observed": "198.51.100.2:40000",
        "strategy": "direct",
        "round_trip": 0.02,
        "datagram_size": 1400,
        "generation": "current",
        "encrypted": False,
    }


# -- terminals ------------------------------------------------------------------------------------


def screen(written: str) -> list[str]:
    """Return what a terminal shows after this: it knows line feed, return and erase."""
    lines = [""]
    rest = written
    while rest:
        if rest.startswith("\r\x1b[K"):
            lines[-1] = ""
            rest = rest.removeprefix("\r\x1b[K")
        elif rest[0] == "\n":
            lines.append("")
            rest = rest[1:]
        else:
            assert rest[0].isprintable(), rest
            lines[-1] += rest[0]
            rest = rest[1:]
    return lines


def test_the_live_line_is_renewed_and_clears_itself(capsys: Capture) -> None:
    told = report(TerminalReport, ago=60.0)
    assert isinstance(told, TerminalReport)
    written = ""
    for _ in range(2):
        told.waiting()
        written += capsys.readouterr().err
        (line,) = screen(written)
        assert "60 s  trying, giving up in 120 s" in line
    told.observe(PeerHeard(PATH, Generation.CURRENT))
    written += capsys.readouterr().err
    heard, rest = screen(written)
    assert "heard the peer" in heard
    assert "trying" not in heard
    assert rest == ""
    told.waiting()
    told.clear()
    written += capsys.readouterr().err
    assert screen(written) == [heard, ""]
    told.clear()
    assert capsys.readouterr().err == ""  # nothing is left to clear


def test_without_a_deadline_none_is_shown(capsys: Capture) -> None:
    report(TerminalReport, deadline=None).waiting()
    assert screen(capsys.readouterr().err)[0].endswith("trying")


def test_no_live_line_for_who_wants_quiet_or_has_no_terminal(capsys: Capture) -> None:
    report(TerminalReport, verbosity=QUIET).waiting()
    report(Report).waiting()
    report(JsonReport).waiting()
    assert capsys.readouterr().err == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_kind_of_report_suits_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**fields: Any) -> type[Report]:
        return type(make_report(connect(**fields), started=0.0))

    assert chosen() is Report
    assert chosen(json=True) is JsonReport
    monkeypatch.setattr(sys, "stderr", _Terminal())
    assert chosen() is TerminalReport
    assert chosen(json=True) is JsonReport
    monkeypatch.setattr(sys, "stderr", None)  # closed by whoever started us
    assert chosen() is Report


class _Gone(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.EIO, "gone")


@pytest.mark.parametrize("kind", [Report, JsonReport, TerminalReport])
def test_a_lost_terminal_stops_nothing(kind: type[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Gone())
    told = report(kind)
    for event, *_ in EVENTS:
        told.observe(event)
    told.waiting()
    told.failed("No path.", 4)
    # Python itself would else try once more at its end, fail, and exit with 120.
    assert sys.stderr is None


@pytest.mark.parametrize("kind", [Report, JsonReport, TerminalReport])
def test_started_without_standard_error(
    kind: type[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    report(kind).failed("No path.", 4)


# -- what comes from outside ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Report, JsonReport, TerminalReport])
def test_every_character_told_is_printable(kind: type[Report], capsys: Capture) -> None:
    told = report(kind, verbosity=VERBOSE)
    for event, *_ in EVENTS:
        told.observe(event)
    told.waiting()
    told.explained([WHY])
    written = capsys.readouterr().err
    screen(written)
    if kind is not TerminalReport:
        assert "\x1b" not in written
    if kind is JsonReport:
        assert written.isascii()
