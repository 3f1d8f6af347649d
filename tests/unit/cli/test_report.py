from __future__ import annotations

import errno
import io
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.api import Rejected, Unfinished
from nat_traverse.carry.datagram_relay import DatagramsDropped, DatagramTooLarge
from nat_traverse.carry.receiver import OutputOverflowed
from nat_traverse.carry.stream_relay import AllArrived, AllDelivered
from nat_traverse.carry.streams import Forwarded, ForwardRefused, Listening, ListeningEnded
from nat_traverse.carry.vpn_events import VpnDropped, VpnResized, VpnUp
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.cli.explain import Explanation
from nat_traverse.cli.report import (
    EVENT_FIELDS,
    JsonReport,
    Report,
    TerminalReport,
    make_report,
)
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE, Connect
from nat_traverse.model import Endpoint, ErrorKind, Generation, NetworkError, Path, Rung
from nat_traverse.punch.evidence import Evidence, PathEvidence
from nat_traverse.punch.machine import (
    AgreedPairAwaited,
    Connected,
    DeadlinePassed,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    RungStarted,
    Settled,
)
from nat_traverse.session import Opened, PortChosen, SessionEvent
from nat_traverse.target import Target
from nat_traverse.tunnel import events
from nat_traverse.tunnel.events import Closing, PathChanged, Proven
from nat_traverse.tunnel.keys import encode_public
from nat_traverse.tunnel.plain import (
    DeliveryKnown,
    Ended,
    PeerClosed,
    PeerFinished,
    PeerRestarted,
    PeerVanished,
)
from nat_traverse.tunnel.proof import Outcome
from nat_traverse.tunnel.refusals import WrongSecretError
from nat_traverse.wire.hello import Counts, Reason
from nat_traverse.wire.request import Word

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
    (RungStarted(Rung.DIRECT), VERBOSE, "trying", "trying the agreed ports\n"),
    (RungStarted(Rung.QUIET, 1.0), NORMAL, "trying", "no answer yet; keeping still, in case "),
    (RungStarted(Rung.HOP, 1.0), VERBOSE, "trying", "trying fresh ports at "),
    (RungStarted(Rung.SPRAY), NORMAL, "trying", "the port of a gateway that changes ports\n"),
    (RungStarted(Rung.PREDICT), VERBOSE, "trying", "near the ports that were seen\n"),
    (AgreedPairAwaited(PATH, 33.0), NORMAL, "agreed-pair", "other ports (to 203.0.113.2:40001); "),
    (AgreedPairAwaited(PATH, 33.0), NORMAL, "agreed-pair", "up to 33 s, because a gateway has to "),
    (AgreedPairAwaited(PATH, 0.0), NORMAL, "agreed-pair", "bringing up the agreed ones\n"),
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


# The same of an encrypted tunnel; the texts of refusals have been escaped where they were made.
CODE = Outcome(code="123456", peer_key=None, purpose=1, by_secret=False)
BY_SECRET = Outcome(code=None, peer_key=None, purpose=1, by_secret=True)
BY_KEYS = Outcome(code=None, peer_key=bytes(32), purpose=1, by_secret=False)
BY_BOTH = Outcome(code=None, peer_key=bytes(32), purpose=1, by_secret=True)
REFUSED_THERE = ForwardRefused("-L 1:h:2", True, Word.NOT_EXPOSED, "not \\x1b[2Jexposed")
REFUSED_HERE = ForwardRefused("h:2", False, Word.REFUSED, "nobody listens there")
VPN_UP = VpnUp("nat0", 1350, ("10.77.0.1/24",), ("10.77.0.2",), ("192.168.7.0/24",))
VPN_DROPPED = VpnDropped({"foreign": 3, "malformed": 1})

TUNNEL_EVENTS: list[tuple[Any, int, str, str]] = [
    (Rejected(WrongSecretError(), 2), NORMAL, "rejected", "Someone who does not know the secret"),
    (Rejected(WrongSecretError(), 2), NORMAL, "rejected", "attempts: 2 of 5; waiting for the next"),
    (Unfinished("No channel."), NORMAL, "unfinished", "No channel. Trying again."),
    (PathChanged(PATH), NORMAL, "moved", "the peer is at 203.0.113.2:40001 now; following it"),
    (Listening("-L 1:h:2", "127.0.0.1:1"), NORMAL, "listening", "-L 1:h:2: listening on 127.0.0.1"),
    (ListeningEnded("-R 1:h:2"), NORMAL, "listening-ended", "-R 1:h:2: the other side listens no"),
    (REFUSED_THERE, NORMAL, "forward-refused", "-L 1:h:2: refused by the other side: not \\x1b[2J"),
    (REFUSED_HERE, NORMAL, "forward-refused", "h:2: refused by this side: nobody listens there"),
    (Forwarded("-L 1:h:2", "[::1]:7"), VERBOSE, "forwarded", "-L 1:h:2: a connection from [::1]:7"),
    (VPN_UP, NORMAL, "vpn-up", "nat0 is up: 10.77.0.1/24 here, 10.77.0.2 there, and 192.168.7.0/"),
    (VpnResized("nat0", 1200), NORMAL, "vpn-resized", "the MTU of nat0 is 1200 now"),
    (VPN_DROPPED, NORMAL, "vpn-dropped", "did not pass: foreign 3, malformed 1"),
    (events.PeerClosed(Closing.NOT_AGREED, "7"), VERBOSE, "closed", "the tunnel: not agreed"),
    (DatagramTooLarge(1500, 1300), NORMAL, "too-large", "1500 bytes was not sent: the path takes"),
    (DatagramsDropped(), NORMAL, "overflowed", "read more slowly than the peer sends"),
    (AllArrived(2_000_000), VERBOSE, "finished", "has sent all: 2,000,000 bytes arrived"),
    (AllDelivered(2_000_000), VERBOSE, "delivered", "received 2,000,000 of 2,000,000 bytes"),
    (events.PeerClosed(Closing.NOT_READING, "7"), VERBOSE, "closed", "the tunnel: not reading"),
    (events.PeerClosed(7, "\x1b[2J"), VERBOSE, "closed", "the peer ended the tunnel: code 7"),
    (events.PeerVanished(errno.ETIMEDOUT), VERBOSE, "vanished", "no sign of life from the peer"),
]
ALL_EVENTS = [*EVENTS, *TUNNEL_EVENTS]


def connect(**fields: Any) -> Connect:
    target = Target(40000, "gw.example.org", 40001)
    return Connect(target=target, deadline=fields.pop("deadline", 180.0), **fields)


def report(kind: type[Report] = Report, *, ago: float = 1.5, **fields: Any) -> Report:
    """Return a report, of a plain tunnel if nothing else is said."""
    return kind(connect(plain=fields.pop("plain", True), **fields), started=time.monotonic() - ago)


def told_of(event: Any, kind: type[Report] = Report, **fields: Any) -> Report:
    """Return a report that was told of one event of the tunnel that it belongs to."""
    made = report(kind, plain=any(event is each for each, *_ in EVENTS), **fields)
    made.observe(event)
    return made


@pytest.mark.parametrize(("event", "level", "_name", "text"), ALL_EVENTS)
def test_lines(event: object, level: int, _name: str, text: str, capsys: Capture) -> None:
    for verbosity in (QUIET, NORMAL, VERBOSE):
        told_of(event, verbosity=verbosity)
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


def test_the_other_side_of_wireguard_has_a_file_too(capsys: Capture) -> None:
    file = Configuration("/w/nat.conf", "nat", Target(51820, "gw.example.org", 51821), "key", 0)
    told = Report(Connect(file.target, None, wireguard=file), started=time.monotonic())
    told.observe(OPENED)
    assert told.other_side.startswith("nat-traverse --wireguard <file with ListenPort = 51821 and")
    assert told.other_side in capsys.readouterr().err


COMMON = ("event", "elapsed", "name", "text")  # fields of every object


# -- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("event", "_level", "name", "_text"), ALL_EVENTS)
def test_json(event: object, _level: int, name: str, _text: str, capsys: Capture) -> None:
    told_of(event, JsonReport, verbosity=QUIET)  # whatever the verbosity
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
    for event, *_ in ALL_EVENTS:
        told_of(event, JsonReport)
    told = report(JsonReport, plain=False)
    told.observe(CONNECTED)
    for outcome in (CODE, BY_SECRET, BY_KEYS, BY_BOTH):
        told.observe(Proven(outcome))
    told.plain_after_all()
    told.lost("It is gone.")
    told.held_up("No route.")
    told.running("ls")
    told.wireguard("found", "is there", device="nat", peer="p")
    told.wireguard("up", "is up", device="nat")
    told.wireguard("endpoint", "leads", device="nat", peer="p", local_port=1, keepalive=15)
    told.wireguard("handshake", "shakes", device="nat", peer="p")
    told.wireguard("down", "is down", device="nat")
    told.explained([WHY])
    told.evidence(Evidence({PATH: PathEvidence()}))
    told.failed("No path.", 4)
    documented = dict(EVENT_FIELDS)
    seen = set()
    for line in map(json.loads, capsys.readouterr().err.splitlines()):
        seen.add(line["event"])
        for field in set(line) - set(COMMON):
            assert f"`{field}`" in documented[line["event"]], (line["event"], field)
    assert seen == set(documented) - set(COMMON)


def test_json_of_the_evidence(capsys: Capture) -> None:
    seen = PathEvidence(hellos_sent=12, generation=Generation.CURRENT)
    seen.note_error(ErrorKind.PORT_UNREACHABLE, "203.0.113.2")
    seen.note_port(28710)
    evidence = Evidence({PATH: seen}, ports_tried=345, rungs=[Rung.SPRAY])
    report(JsonReport).evidence(evidence)
    line = json.loads(capsys.readouterr().err)
    assert line["ports_tried"] == 345
    assert line["strategies"] == ["spray"]
    (path,) = line["paths"]
    assert path["peer"] == str(PATH.remote)
    assert path["other_ports"] == [28710]
    assert path["errors"] == [{"error": "port unreachable", "reporter": "203.0.113.2", "count": 1}]
    assert line["text"].startswith("counted: ports tried 345,")


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
        "agreed": True,
        "round_trip": 0.02,
        "datagram_size": 1400,
        "generation": "current",
        "encrypted": False,
    }


@pytest.mark.parametrize(
    ("outcome", "proof", "words"),
    [
        (CODE, "code", "not proven by whom"),
        (BY_SECRET, "secret", "proven by the secret"),
        (BY_KEYS, "keys", "proven by keys"),
        (BY_BOTH, "secret and keys", "proven by the secret and keys"),
    ],
)
def test_json_of_an_encrypted_connection(
    outcome: Outcome, proof: str, words: str, capsys: Capture
) -> None:
    told = report(JsonReport, plain=False)
    told.observe(CONNECTED)
    assert capsys.readouterr().err == ""  # not before the peer is proven
    told.observe(Proven(outcome))
    line, *rest = map(json.loads, capsys.readouterr().err.splitlines())
    assert f", encrypted, {words}, peer speaks protocol 1" in line["text"]
    assert (line["event"], line["encrypted"], line["proof"]) == ("connected", True, proof)
    assert line["code"] == outcome.code
    assert line["peer_key"] == (outcome.peer_key and encode_public(outcome.peer_key))
    assert line["peer"] == "203.0.113.2:40001"
    assert [each["event"] for each in rest] == (["code"] if proof == "code" else [])


def test_the_code_is_told_to_be_compared(capsys: Capture) -> None:
    told = report(plain=False)
    told.observe(CONNECTED)
    told.observe(Proven(CODE))
    connected, advice, _ = capsys.readouterr().err.split("\n", 2)
    assert "encrypted, not proven by whom" in connected
    assert advice.endswith(
        "compare this code with the other side, by telephone for example: 123456"
    )
    told = report(plain=False, verbosity=QUIET)
    told.observe(CONNECTED)
    told.observe(Proven(CODE))
    assert capsys.readouterr().err == ""


def test_an_old_peer_is_told_of_however_quiet(capsys: Capture) -> None:
    for verbosity, lines in ((QUIET, 1), (NORMAL, 2)):
        told = report(plain=False, verbosity=verbosity)
        told.observe(CONNECTED._replace(generation=Generation.LEGACY))
        told.plain_after_all()
        said = capsys.readouterr().err.splitlines()
        assert len(said) == lines
        assert said[-1].startswith("nat-traverse: the other side runs 0.7, which can't encrypt")
        assert all("not encrypted, peer speaks 0.7" in each for each in said[:-1])
    told = report(plain=True)
    told.observe(CONNECTED)
    capsys.readouterr()
    told.plain_after_all()
    assert capsys.readouterr().err == ""  # it was asked for


def test_what_is_told_again_after_a_tunnel_was_lost(capsys: Capture) -> None:
    told = report(plain=False)
    for _ in range(2):
        told.observe(RungStarted(Rung.SPRAY))
        told.observe(PeerRefused(PATH, REFUSED))
        said = capsys.readouterr().err
        assert "looking for the port" in said
        assert "port unreachable" in said
        told.lost("The other side was stopped.")
        assert "The other side was stopped. Looking for a path again." in capsys.readouterr().err


def test_json_of_a_connection_over_another_port(capsys: Capture) -> None:
    told = report(JsonReport)
    told.observe(OPENED)
    told.observe(PortChosen(51_000))
    told.observe(CONNECTED._replace(rung=Rung.SPRAY, agreed=False))
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["local_port"], line["strategy"], line["agreed"]) == (51_000, "spray", False)
    assert line["text"].startswith("connected: port 51000 to 203.0.113.2:40001, ")
    assert ", spray, round trip" in line["text"]
    # What the other side has to be told has not changed.
    assert told.agreed_port == 40000
    assert told.other_side.endswith(":40000")


def test_a_spare_pair_of_ports_is_none_that_the_user_agreed_on(capsys: Capture) -> None:
    told = report(JsonReport)
    told.observe(OPENED)
    told.observe(PortChosen(51_000))
    spare = PATH._replace(remote=PEER._replace(port=52_000))
    told.observe(CONNECTED._replace(path=spare, agreed=True))
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["local_port"], line["strategy"], line["agreed"]) == (51_000, "direct", False)
    assert line["peer"].endswith(":52000")
    assert told.agreed_port == 40000


def test_the_port_of_an_earlier_path_is_not_told_of_a_later_one(capsys: Capture) -> None:
    told = report(JsonReport)
    for event in (OPENED, PortChosen(51_000), CONNECTED):
        told.observe(event)
    told.lost("It is gone.")
    for event in (OPENED, CONNECTED):  # on the agreed ports this time
        told.observe(event)
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["local_port"], line["agreed"]) == (40_000, True)


def test_json_of_a_vpn(capsys: Capture) -> None:
    told_of(VPN_UP, JsonReport)
    told_of(VPN_DROPPED, JsonReport)
    up, dropped = map(json.loads, capsys.readouterr().err.splitlines())
    assert (up["device"], up["mtu"]) == ("nat0", 1350)
    assert up["addresses"] == ["10.77.0.1/24"]
    assert up["peers"] == ["10.77.0.2"]
    assert up["routes"] == ["192.168.7.0/24"]
    assert dropped["counts"] == {"foreign": 3, "malformed": 1}


def test_json_of_a_strategy(capsys: Capture) -> None:
    told = report(JsonReport, ago=5.0)
    told.observe(RungStarted(Rung.QUIET, time.monotonic() + 20.0))
    told.observe(RungStarted(Rung.SPRAY))
    quiet, spray = map(json.loads, capsys.readouterr().err.splitlines())
    assert (quiet["event"], quiet["strategy"]) == ("trying", "quiet")
    assert quiet["again"] - quiet["elapsed"] == pytest.approx(20.0, abs=1.0)
    assert (spray["strategy"], spray["again"]) == ("spray", None)


# -- strategies -----------------------------------------------------------------------------------


def test_the_time_of_the_next_try_is_that_of_the_clock_on_the_wall(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "XXX-05:30")  # India's: five and a half hours before UTC
    time.tzset()
    try:
        midnight = 1_700_006_400 - 1_700_006_400 % 86_400
        monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
        monkeypatch.setattr(time, "time", lambda: midnight + 17.0)
        # The machine's sums are not exact to the last bit.
        report().observe(RungStarted(Rung.QUIET, 1000.0 + 43.0 - 1e-6))
        assert "trying again at 05:31:00\n" in capsys.readouterr().err
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_gateway_that_answers_for_itself_is_named_as_the_reason(capsys: Capture) -> None:
    told = report()
    told.observe(PeerRefused(PATH, FORBIDDEN))
    told.observe(PeerRefused(PATH, REFUSED))
    told.observe(RungStarted(Rung.QUIET, time.monotonic() + 20.0))
    assert "the other gateway answers for itself; trying again at " in capsys.readouterr().err


def test_what_begins_again_is_told_once(capsys: Capture) -> None:
    normal, verbose, as_json = report(), report(verbosity=VERBOSE), report(JsonReport)
    for told, times in ((normal, 1), (verbose, 3), (as_json, 3)):
        for minute in range(3):
            told.observe(RungStarted(Rung.QUIET, time.monotonic() + 60.0 * minute))
        assert capsys.readouterr().err.count("trying again at ") == times


def test_that_the_agreed_ports_take_longer_is_told_as_more_of_the_same(capsys: Capture) -> None:
    told = report()
    for silence, text in (
        (0.0, "found a way over other ports"),
        (33.0, "  bringing up the agreed"),
    ):
        told.observe(AgreedPairAwaited(PATH, silence))
        line = capsys.readouterr().err
        assert text in line
        assert ("up to 33 s" in line) == (silence > 0)


def test_the_same_refusal_at_many_ports_is_told_once(capsys: Capture) -> None:
    normal, verbose = report(), report(verbosity=VERBOSE)
    for told, times in ((normal, 1), (verbose, 3)):
        for port in range(3):
            path = Path(0, PEER._replace(port=1 + port))
            told.observe(PeerRefused(path, REFUSED))
        assert capsys.readouterr().err.count("port unreachable") == times
    normal.observe(PeerRefused(PATH, FORBIDDEN))  # another one is news
    assert "not permitted" in capsys.readouterr().err


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


def test_the_deadline_is_for_the_first_tunnel(capsys: Capture) -> None:
    told = report(TerminalReport, plain=False)
    told.lost("It is gone.")
    told.waiting()
    assert screen(capsys.readouterr().err)[-1].endswith("trying")


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
    for event, *_ in ALL_EVENTS:
        told = told_of(event, kind, verbosity=VERBOSE)
    told.waiting()
    told.explained([WHY])
    written = capsys.readouterr().err
    screen(written)
    if kind is not TerminalReport:
        assert "\x1b" not in written
    if kind is JsonReport:
        assert written.isascii()
