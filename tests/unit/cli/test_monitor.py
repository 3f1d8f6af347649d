from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from nat_traverse._version import __version__
from nat_traverse.carry.addressing import make_plan
from nat_traverse.carry.specs import parse_exposed, parse_local, parse_remote
from nat_traverse.carry.streams import Listening, ListeningEnded
from nat_traverse.carry.vpn_events import VpnUp
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.cli.monitor import STATUS_FIELDS, Monitor, State
from nat_traverse.cli.settings import Connect
from nat_traverse.link.link import Link
from nat_traverse.link.statistics import Statistics
from nat_traverse.model import Endpoint, Generation, Path, Rung
from nat_traverse.punch.machine import Connected
from nat_traverse.session import Hole, Opened, PortChosen
from nat_traverse.target import Target
from nat_traverse.tunnel.events import Proven
from nat_traverse.tunnel.keys import encode_public
from nat_traverse.tunnel.proof import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

PEER = Endpoint("203.0.113.2", 40001)
MOVED = Endpoint("203.0.113.2", 51234)
CONNECTED = Connected(
    Path(0, PEER),
    Generation.CURRENT,
    0.02,
    Endpoint("198.51.100.2", 40000),
    rung=Rung.QUIET,
    datagram_size=1400,
)
SETTINGS = Connect(
    Target(40000, "gw.example.org", 40001),
    None,
    locals_=(parse_local("8080:localhost:80"),),
    remotes=(parse_remote("2222:localhost:22"),),
    exposed=(parse_exposed("any"),),
)
LOCAL, REMOTE = "-L 8080:localhost:80", "-R 2222:localhost:22"


class FakeLink(Link):
    """A link of which only what a monitor looks at is there."""

    def __init__(self, sent: int, received: int, heard: float) -> None:
        self.counted = Statistics(sent, received, heard, 0.03)
        self.where = PEER

    @property
    def statistics(self) -> Statistics:
        return self.counted

    @property
    def peer(self) -> Endpoint:
        return self.where


class FakeHole(Hole):
    """A hole that another program uses."""

    def __init__(self) -> None:
        self.connected = CONNECTED


class Watched:
    """A monitor with clocks of the test's."""

    def __init__(self, connect: Connect = SETTINGS) -> None:
        self.now = 100.0
        self.monitor = Monitor(
            "home",
            "/etc/nat-traverse/home.toml",
            connect,
            clock=lambda: self.now,
            wall=lambda: 1_000_000.0 + self.now,
        )

    @property
    def told(self) -> dict[str, Any]:
        told = self.monitor.describe()
        assert set(told) == {name for name, _ in STATUS_FIELDS}
        return told

    def connect(self, link: Link, outcome: Outcome) -> None:
        self.monitor.observe(Opened(40000, (), (PEER,), (), ()))
        self.monitor.observe(CONNECTED)
        self.monitor.observe(Proven(outcome))
        self.monitor.found(link)


BY_SECRET = Outcome(code=None, peer_key=None, purpose=3, by_secret=True)
BY_KEY = Outcome(code=None, peer_key=bytes(32), purpose=3)
BY_CODE = Outcome(code="123456", peer_key=None, purpose=3)


def test_while_it_is_looked_for() -> None:
    watched = Watched()
    told = watched.told
    assert told["state"] == "searching"
    assert told["since"] == 1_000_100.0
    assert told["name"] == "home"
    assert told["description"] == "/etc/nat-traverse/home.toml"
    assert told["target"] == "40000:gw.example.org:40001"
    assert told["version"] == __version__
    for name in ("peer", "local_port", "strategy", "round_trip", "last_contact", "proof", "code"):
        assert told[name] is None
    assert (told["sent"], told["received"], told["paths"]) == (0, 0, 0)
    assert watched.monitor.summary == "looking for a path to gw.example.org"
    # A path whose tunnel is not there yet is none.
    watched.monitor.observe(PortChosen(40007))
    watched.monitor.observe(CONNECTED)
    assert watched.told["peer"] is None
    assert watched.told["local_port"] == 40007
    watched.monitor.trouble("No network.\nNone at all.")
    assert watched.told["problem"] == "No network.\nNone at all."
    assert watched.monitor.summary == "looking for a path to gw.example.org: No network."


def test_while_it_is_there() -> None:
    watched = Watched()
    watched.now += 5
    link = FakeLink(300, 200, watched.now)
    watched.connect(link, BY_SECRET)
    watched.now += 2.5
    told = watched.told
    assert told["state"] == "connected"
    assert told["since"] == 1_000_105.0
    assert told["peer"] == "203.0.113.2:40001"
    assert told["observed"] == "198.51.100.2:40000"
    assert told["strategy"] == "quiet"
    assert told["round_trip"] == 0.03
    assert told["last_contact"] == 2.5
    assert (told["sent"], told["received"], told["paths"]) == (300, 200, 1)
    assert (told["encrypted"], told["proof"], told["code"]) == (True, "secret", None)
    assert watched.monitor.summary == "connected to 203.0.113.2:40001"
    link.where = MOVED
    assert watched.told["peer"] == "203.0.113.2:51234"


@pytest.mark.parametrize(
    ("outcome", "proof", "code", "key"),
    [
        (BY_CODE, "code", "123456", None),
        (BY_KEY, "keys", None, encode_public(bytes(32))),
    ],
)
def test_who_is_there(outcome: Outcome, proof: str, code: str | None, key: str | None) -> None:
    watched = Watched()
    watched.connect(FakeLink(0, 0, 0), outcome)
    told = watched.told
    assert (told["proof"], told["code"], told["peer_key"]) == (proof, code, key)


def test_when_it_is_lost_and_found_again() -> None:
    watched = Watched()
    watched.connect(FakeLink(300, 200, watched.now), BY_SECRET)
    watched.now += 60
    watched.monitor.lost("The other side was started again.")
    told = watched.told
    assert told["state"] == "searching-again"
    assert told["since"] == 1_000_160.0
    assert told["problem"] == "The other side was started again."
    for name in ("peer", "strategy", "round_trip", "last_contact", "proof", "encrypted"):
        assert told[name] is None
    assert (told["sent"], told["received"]) == (300, 200)
    reason = "The other side was started again."
    assert watched.monitor.summary == f"looking for a path to gw.example.org again: {reason}"
    watched.connect(FakeLink(7, 5, watched.now), BY_SECRET)
    told = watched.told
    assert (told["state"], told["problem"]) == ("connected", None)
    assert (told["sent"], told["received"], told["paths"]) == (307, 205, 2)


def test_when_it_has_ended() -> None:
    watched = Watched()
    watched.connect(FakeLink(300, 200, watched.now), BY_SECRET)
    watched.monitor.trouble("It is the wrong one.")
    watched.monitor.ended(3)
    told = watched.told
    assert (told["state"], told["exit_code"]) == ("ended", 3)
    assert told["problem"] == "It is the wrong one."
    assert told["sent"] == 300
    assert watched.monitor.state is State.ENDED
    assert watched.monitor.summary == "ended with status 3: It is the wrong one."


def test_what_has_ended_listens_no_more() -> None:
    watched = Watched()
    watched.connect(FakeLink(0, 0, watched.now), BY_SECRET)
    watched.monitor.observe(Listening(LOCAL, "localhost:8080"))
    watched.monitor.ended(104)
    assert {each["address"] for each in watched.told["forwards"]} == {None}


def test_forwards_and_where_they_listen() -> None:
    watched = Watched()

    def addresses() -> dict[str, str | None]:
        return {each["what"]: each["address"] for each in watched.told["forwards"]}

    assert addresses() == {LOCAL: None, REMOTE: None, "--expose any": None}
    watched.monitor.observe(Listening(LOCAL, "localhost:8080"))
    watched.monitor.observe(Listening(REMOTE, "localhost:2222"))
    assert addresses() == {
        LOCAL: "localhost:8080",
        REMOTE: "localhost:2222",
        "--expose any": None,
    }
    watched.monitor.lost("Gone.")  # our own listeners stay, the peer's are gone
    assert addresses() == {LOCAL: "localhost:8080", REMOTE: None, "--expose any": None}
    watched.monitor.observe(Listening(REMOTE, "localhost:2222"))
    watched.monitor.observe(ListeningEnded(REMOTE))
    watched.monitor.observe(ListeningEnded(REMOTE))
    assert addresses()[REMOTE] is None


def test_a_hole_for_another_program() -> None:
    watched = Watched()
    watched.monitor.found(FakeHole())
    told = watched.told
    assert told["state"] == "connected"
    assert told["peer"] == "203.0.113.2:40001"
    assert told["round_trip"] == 0.02
    assert told["encrypted"] is None
    assert told["last_contact"] is None


WIREGUARD = SETTINGS._replace(
    wireguard=Configuration("/etc/wireguard/nat.conf", "nat", SETTINGS.target, "key", 0)
)


def test_a_hole_for_wireguard_is_no_connection_until_it_has_shaken_hands() -> None:
    watched = Watched(WIREGUARD)
    monitor = watched.monitor
    told = watched.told
    assert (told["state"], told["sent"], told["received"]) == ("searching", None, None)
    monitor.trouble("No network.")
    monitor.found(FakeHole())
    told = watched.told
    # A hole is no tunnel: what was told last is still the reason why there is none.
    assert (told["state"], told["peer"]) == ("searching", None)
    assert (told["problem"], told["paths"]) == ("No network.", 0)
    waiting = "waiting for WireGuard to shake hands with 203.0.113.2:40001"
    assert monitor.summary == f"{waiting}: No network."
    watched.now += 5
    monitor.shaken("203.0.113.2:40001")
    told = watched.told
    assert (told["state"], told["peer"]) == ("connected", "203.0.113.2:40001")
    assert told["since"] == 1_000_105.0
    assert told["paths"] == 1
    for name in ("sent", "received", "last_contact", "encrypted", "proof"):
        assert told[name] is None
    assert monitor.summary == "connected to 203.0.113.2:40001"
    watched.now += 5
    monitor.shaken("203.0.113.2:51234")  # again: it has been connected since
    told = watched.told
    assert (told["since"], told["peer"]) == (1_000_105.0, "203.0.113.2:51234")
    monitor.lost("wireguard: Nothing has come.")
    told = watched.told
    assert (told["state"], told["peer"]) == ("searching-again", None)
    monitor.found(FakeHole())
    assert watched.told["state"] == "searching-again"


VPN = SETTINGS._replace(vpn=make_plan(addresses=["10.77.0.1/24"]))
VPN_UP = VpnUp("nat0", 1350, ("10.77.0.1/24",), ("10.77.0.2",), ())


def test_a_link_for_a_vpn_is_no_connection_until_packets_pass() -> None:
    watched = Watched(VPN)
    watched.connect(FakeLink(300, 200, watched.now), BY_SECRET)
    told = watched.told
    assert (told["state"], told["peer"], told["encrypted"]) == ("searching", None, None)
    assert (told["sent"], told["paths"]) == (300, 0)
    assert watched.monitor.summary == "agreeing on a VPN with 203.0.113.2:40001"
    watched.now += 1
    watched.monitor.observe(VPN_UP)
    told = watched.told
    assert (told["state"], told["since"], told["paths"]) == ("connected", 1_000_101.0, 1)
    assert (told["peer"], told["encrypted"]) == ("203.0.113.2:40001", True)
    # So it is with each link that comes after it.
    watched.monitor.lost("Nothing has come.")
    watched.connect(FakeLink(0, 0, watched.now), BY_SECRET)
    assert watched.told["state"] == "searching-again"
    assert watched.told["problem"] == "Nothing has come."
    watched.monitor.observe(VPN_UP)
    told = watched.told
    assert (told["state"], told["problem"], told["paths"]) == ("connected", None, 2)


def test_a_device_that_is_in_use_already() -> None:
    watched = Watched(WIREGUARD)
    begun = [watched.monitor.has_begun]
    watched.monitor.shaken("203.0.113.2:40001")
    assert [*begun, watched.monitor.has_begun] == [False, True]
    told = watched.told
    assert (told["state"], told["peer"]) == ("connected", "203.0.113.2:40001")
    assert told["strategy"] is None
    assert watched.monitor.summary == "connected to 203.0.113.2:40001"


def test_what_else_there_is() -> None:
    watched = Watched()
    dropped = {"spoofed": 0}
    watched.monitor.attach("vpn", lambda: {"device": "nat0", "dropped": dict(dropped)})
    dropped["spoofed"] = 7
    told = watched.monitor.describe()
    assert told["vpn"] == {"device": "nat0", "dropped": {"spoofed": 7}}


def test_it_takes_anything_for_an_event() -> None:
    watched = Watched()
    before = watched.told
    for event in (None, "x", object(), asyncio.Event):
        watched.monitor.observe(cast("Callable[..., None]", event))
    assert watched.told == before
