from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nat_traverse.api import Rejected, Unfinished
from nat_traverse.carry.streams import ForwardEvent, ForwardRefused, Traffic
from nat_traverse.carry.vpn_events import VpnDropped, VpnResized, VpnUp
from nat_traverse.cli.report import JsonReport, Report
from nat_traverse.cli.settings import NORMAL, VERBOSE, Connect
from nat_traverse.cli.tunnel_words import tunnel_words
from nat_traverse.target import Target
from nat_traverse.tunnel.events import Closing, PeerClosed
from nat_traverse.tunnel.refusals import Refusal, WrongKeyError, refused_by_peer
from nat_traverse.wire.request import Refused, Word

if TYPE_CHECKING:
    from nat_traverse.cli.tunnel_words import Told

# All of C0 and C1, what turns writing round, and half a character.
CONTROLS = "".join(map(chr, range(32))) + "\x7f\x80\x9b\xad\u202e\u2028\udc80"


def words(event: object) -> Told:
    told = tunnel_words(event)
    assert told is not None
    return told


def refused(text: str, what: str = "-L 1:h:2", *, by_peer: bool = True) -> ForwardRefused:
    """Return the event as the forwards make it of a peer's refusal."""
    events: list[ForwardEvent] = []
    traffic = Traffic(None, events.append)
    tell = traffic.refused_there if by_peer else traffic.refused_here
    tell(what, Refused(Word.REFUSED, text))
    (event,) = events
    assert isinstance(event, ForwardRefused)
    return event


@pytest.mark.parametrize("by_peer", [True, False])
def test_a_peers_text_is_escaped_exactly_once(by_peer: bool) -> None:
    told = words(refused("a\x1b[2Jb\\x1b", by_peer=by_peer))
    # What was a backslash is one still, and what became one is one.
    assert told.text.endswith(": a\\x1b[2Jb\\x1b")
    assert told.fields["message"] == "a\\x1b[2Jb\\x1b"


@pytest.mark.parametrize("by_peer", [True, False])
@pytest.mark.parametrize("kind", [Report, JsonReport])
def test_no_control_character_gets_through(
    by_peer: bool, kind: type[Report], capsys: pytest.CaptureFixture[str]
) -> None:
    event = refused(CONTROLS, f"h{CONTROLS}:1", by_peer=by_peer)
    target = Target(40000, "h", 40001)
    kind(Connect(target, None, verbosity=VERBOSE), started=0.0).observe(event)
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    if kind is JsonReport:
        assert all(str(value).isprintable() for value in json.loads(line).values())


def test_the_peers_word_for_an_end_is_a_number() -> None:
    for code in Closing:
        assert words(PeerClosed(code, "\x1b[2J")).fields == {
            "reason": code.name.lower().replace("_", " ")
        }
    assert words(PeerClosed(2**60, "\x1b[2J")).fields == {"reason": f"code {2**60}"}


def test_refusals_of_a_proof_have_texts_of_ours() -> None:
    for number in Refusal:
        error = refused_by_peer(number)
        assert error is not None
        told = words(Rejected(error, 1))
        assert told.level == NORMAL
        assert told.fields == {"message": str(error), "failures": 1}
        assert told.text.isprintable()
    assert words(Rejected(WrongKeyError("nt-key"), 1)).text.isprintable()
    assert words(Unfinished("Nothing.")).fields == {"message": "Nothing."}


def test_a_vpn_is_told_with_all_its_addresses() -> None:
    one = VpnUp("nat0", 1350, ("10.77.0.1/24",), ("10.77.0.2",), ())
    told = words(one)
    assert told.text == "nat0 is up: 10.77.0.1/24 here, 10.77.0.2 there; MTU 1350"
    assert (told.event, told.level) == ("vpn-up", NORMAL)
    many = VpnUp(
        "work0",
        1400,
        ("10.77.0.1/24", "fd77::1/64"),
        ("10.77.0.2", "fd77::2"),
        ("192.168.7.0/24", "fd07::/64"),
    )
    told = words(many)
    assert told.text == (
        "work0 is up: 10.77.0.1/24 and fd77::1/64 here, 10.77.0.2 and fd77::2 there,"
        " and 192.168.7.0/24, fd07::/64 behind it; MTU 1400"
    )
    assert told.fields == {
        "device": "work0",
        "mtu": 1400,
        "addresses": ("10.77.0.1/24", "fd77::1/64"),
        "peers": ("10.77.0.2", "fd77::2"),
        "routes": ("192.168.7.0/24", "fd07::/64"),
    }


def test_what_becomes_of_a_vpn_is_told() -> None:
    told = words(VpnResized("nat0", 1200))
    assert told.text == "the path takes other sizes than before: the MTU of nat0 is 1200 now"
    assert (told.event, told.fields) == ("vpn-resized", {"device": "nat0", "mtu": 1200})
    told = words(VpnDropped({"too large": 2, "foreign": 17}))
    assert told.text == "did not pass: foreign 17, too large 2"  # always in the same order
    assert (told.event, told.fields) == (
        "vpn-dropped",
        {"counts": {"too large": 2, "foreign": 17}},
    )


def test_what_is_nothing_to_the_user() -> None:
    assert tunnel_words(object()) is None
