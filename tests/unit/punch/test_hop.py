from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.model import Endpoint, Rung
from nat_traverse.punch.hop import HopRung, hop_port
from nat_traverse.punch.machine import CloseSocket, OpenSocket
from nat_traverse.punch.minute import FULL, LEAD, MINUTE, SKEW
from nat_traverse.punch.ports import FIRST_PORT
from nat_traverse.punch.rung import HOP_SOCKETS as SOCKETS
from nat_traverse.punch.rung import HOP_STARTS as STARTS
from nat_traverse.punch.rung import Action, Began, Probe

PEER = Endpoint("203.0.113.2", 40001)
OTHER = Endpoint("203.0.113.3", 40001)
OURS = 40000
EPOCH = 1_800_000_000.0  # the beginning of a minute
FIRST = 2  # the number of the first socket

port_numbers = st.integers(1, 65_535)


@dataclass
class Side:
    """A rung, its sockets, and all that it did; times are those of the true wall clock."""

    rung: HopRung
    start: float
    taken: frozenset[int] = frozenset()
    sockets: dict[int, int] = field(default_factory=dict)  # number: port
    done: list[tuple[float, Action]] = field(default_factory=list)
    most: int = 0

    def run(self, until: float) -> list[tuple[float, Action]]:
        """Let time pass until so many seconds after the epoch's minute."""
        for _ in range(10_000):
            at = self.rung.next_time
            if at is None or at > EPOCH + until - self.start:
                return self.done
            for action in list(self.rung.due(at)):
                self.done.append((self.start + at - EPOCH, action))
                self.carry_out(action, at)
            after = self.rung.next_time
            assert after is None or after >= at
        raise AssertionError("it does not come to rest")

    def carry_out(self, action: Action, at: float) -> None:
        if isinstance(action, CloseSocket):
            del self.sockets[action.number]
        elif isinstance(action, OpenSocket):
            assert action.number not in self.sockets
            if action.port in self.taken:
                self.rung.socket_failed(action.number, at)
                return
            self.sockets[action.number] = action.port
            self.most = max(self.most, len(self.sockets))
            self.rung.socket_opened(action.number, action.port, at)
        elif isinstance(action, Probe):
            assert action.path.socket in self.sockets

    def of(self, kind: type) -> list[tuple[float, Action]]:
        return [(at, action) for at, action in self.done if isinstance(action, kind)]

    def pairs(self) -> dict[int, tuple[int, int]]:
        """Local and remote port of each minute."""
        opened: dict[int, int] = {}
        found = {}
        for _, action in self.done:
            if isinstance(action, OpenSocket):
                opened[action.number] = action.port
            elif isinstance(action, Probe):
                found[action.turn] = (opened[action.path.socket], action.path.remote.port)
        return found

    def ports(self) -> list[int]:
        return [action.port for _, action in self.of(OpenSocket) if isinstance(action, OpenSocket)]

    def probes(self) -> list[tuple[float, Probe]]:
        return [(at, action) for at, action in self.done if isinstance(action, Probe)]


def make(
    second: float = 20.0,
    *,
    own: int = OURS,
    remotes: tuple[Endpoint, ...] = (PEER,),
    clock: float = 0.0,
    secret: bytes = b"",
    taken: frozenset[int] = frozenset(),
) -> Side:
    """A side that starts at `second`; its wall clock is ahead by `clock`."""
    # The owner's clock begins with 0.
    rung = HopRung(remotes, own, secret, first_socket=FIRST, start=0.0, wall=EPOCH + second + clock)
    return Side(rung, EPOCH + second, taken)


class TestPorts:
    # Never to be changed: other versions are out there.
    @pytest.mark.parametrize(
        ("own", "other", "minute", "secret", "port"),
        [
            (40000, 40001, 30_000_000, b"", 61099),
            (40001, 40000, 30_000_000, b"", 52796),
            (40000, 40001, 30_000_001, b"secret", 27523),
        ],
    )
    def test_golden(self, own: int, other: int, minute: int, secret: bytes, port: int) -> None:
        assert hop_port(own, other, minute, secret) == port

    @given(port_numbers, port_numbers, st.integers(0, 2**40), st.binary(max_size=32))
    def test_never_privileged(self, own: int, other: int, minute: int, secret: bytes) -> None:
        assert FIRST_PORT <= hop_port(own, other, minute, secret) <= 65_535

    def test_each_of_them_matters(self) -> None:
        usual = hop_port(40000, 40001, 30_000_000)
        others = [
            hop_port(40002, 40001, 30_000_000),
            hop_port(40000, 40002, 30_000_000),
            hop_port(40001, 40000, 30_000_000),
            hop_port(40000, 40001, 30_000_001),
            hop_port(40000, 40001, 30_000_000, b"secret"),
        ]
        assert usual not in others
        assert len(set(others)) == len(others)


class TestTwoSides:
    @pytest.mark.parametrize("clock", [0.0, SKEW, -SKEW, 0.3])
    @pytest.mark.parametrize("second", [0.0, 20.0, 37.0, 38.5, 50.0])
    @pytest.mark.parametrize("secret", [b"", b"xyz"])
    def test_have_matching_pairs(self, second: float, clock: float, secret: bytes) -> None:
        host = Endpoint("198.51.100.2", OURS)
        left = make(second, secret=secret)
        right = make(second, own=PEER.port, remotes=(host,), clock=clock, secret=secret)
        for side in (left, right):
            side.run(400.0)
        ours, theirs = left.pairs(), right.pairs()
        common = ours.keys() & theirs.keys()
        assert len(common) >= 4
        for minute in common:
            local, remote = ours[minute]
            assert theirs[minute] == (remote, local)
        # Both have the pair open at the same time, in which each of them knocks.
        for minute in common - {max(common)}:  # the last one is not over
            for one, other in ((left, right), (right, left)):
                knocks = [
                    at for at, each in one.probes() if each.turn == minute and not each.opening
                ]
                opened = min(at for at, each in other.probes() if each.turn == minute)
                closed = opened + 2 * MINUTE - SKEW
                assert [at for at in knocks if opened < at < closed]

    @pytest.mark.parametrize("clock", [0.0, 3.0, SKEW, -SKEW])
    def test_a_knock_finds_the_other_side_open(self, clock: float) -> None:
        left, right = make(20.0), make(20.0, clock=clock)
        for side in (left, right):
            side.run(400.0)
        for one, other in ((left, right), (right, left)):
            knocks = [(at, each.turn) for at, each in one.probes() if not each.opening]
            assert knocks
            for at, turn in knocks:
                opened = min(when for when, each in other.probes() if each.turn == turn)
                assert opened < at


class TestOneSide:
    def test_the_lead_opens_and_the_first_seconds_knock(self) -> None:
        side = make(20.0)
        side.run(299.0)
        assert side.ports()[0] == hop_port(OURS, PEER.port, int(EPOCH // 60) + 1)
        for at, probe in side.probes():
            begin = (probe.turn - EPOCH // 60) * MINUTE
            assert probe.rung is Rung.HOP
            assert begin - LEAD - 1e-3 <= at < begin + FULL + 1e-3
            assert probe.opening == (at < begin - 1e-6)
        for minute in range(1, 5):
            times = [at for at, each in side.probes() if each.turn == EPOCH // 60 + minute]
            # Rounding may put one more at the very end.
            assert len(times) in (12 + 25, 12 + 26)
            assert times[0] == pytest.approx(minute * MINUTE - LEAD)

    def test_at_most_two_sockets_and_each_lives_until_the_next_minute_was_knocked(self) -> None:
        side = make(20.0)
        side.run(60 * MINUTE)
        assert side.most == SOCKETS == 2
        assert set(side.sockets) <= {FIRST, FIRST + 1}
        opened = [at for at, _ in side.of(OpenSocket)]
        closed = [at for at, _ in side.of(CloseSocket)]
        for begin, end in zip(opened, closed, strict=False):
            assert end - begin == pytest.approx(2 * MINUTE)

    def test_it_begins_after_ten_seconds(self) -> None:
        side = make(41.0)
        side.run(50.99)
        assert side.done == []
        side.run(51.0)
        (_, began), (_, opened), (_, first) = side.done
        assert began == Began(Rung.HOP, pytest.approx(19.0))  # type: ignore[arg-type]
        assert isinstance(opened, OpenSocket)
        assert isinstance(first, Probe)
        assert first.opening
        assert STARTS == 10.0

    @pytest.mark.parametrize("second", [50.5, 52.0, 54.9])
    def test_who_comes_in_the_first_seconds_opens_before_he_knocks(self, second: float) -> None:
        side = make(second)
        side.run(60.0 + FULL + 1.0)
        times = [(at, probe.opening) for at, probe in side.probes()]
        assert times[0][0] == pytest.approx(second + 10.0)
        assert times[0][1]
        knocks = [at for at, opening in times if not opening]
        if second < 54.0:
            assert knocks[0] == pytest.approx(second + 10.5)
            assert max(knocks) < 60.0 + FULL + 1e-3
        assert [opening for _, opening in times] == sorted(
            (opening for _, opening in times), reverse=True
        )

    @pytest.mark.parametrize("second", [55.0, 57.0, 70.0])
    def test_who_comes_later_waits_for_the_next_minute(self, second: float) -> None:
        side = make(second)
        side.run(2 * MINUTE - LEAD - 0.01)
        assert side.done == []
        side.run(2 * MINUTE)
        assert len(side.ports()) == 1

    def test_a_taken_port_costs_that_minute_only(self) -> None:
        minute = int(EPOCH // 60)
        taken = frozenset({hop_port(OURS, PEER.port, minute + 2)})
        side = make(20.0, taken=taken)
        side.run(299.0)
        assert len(side.ports()) == 5
        assert {probe.turn - minute for _, probe in side.probes()} == {1, 3, 4, 5}

    def test_all_addresses_of_the_peer_are_tried(self) -> None:
        side = make(20.0, remotes=(PEER, OTHER))
        side.run(70.0)
        hosts = [probe.path.remote.host for _, probe in side.probes()]
        assert hosts[:2] == [PEER.host, OTHER.host]
        assert len({probe.path.remote.port for _, probe in side.probes()}) == 1

    def test_a_socket_that_is_nobodys(self) -> None:
        side = make(20.0)
        side.run(50.0)
        before = side.rung.next_time
        side.rung.socket_opened(99, 1, 30.5)
        side.rung.socket_failed(99, 30.5)
        assert side.rung.next_time == before

    def test_nothing_is_sent_before_the_socket_is_open(self) -> None:
        side = make(20.0)
        actions = list(side.rung.due(28.0))
        assert [type(action) for action in actions] == [Began, OpenSocket]
        assert side.rung.next_time == pytest.approx(2 * MINUTE - LEAD - 20.0)
        assert list(side.rung.due(29.0)) == []
        assert side.rung.stop() == [
            action.number for action in actions if type(action) is OpenSocket
        ]

    def test_it_ends(self) -> None:
        side = make(20.0)
        side.run(110.0)
        assert sorted(side.rung.stop()) == sorted(side.sockets) == [2, 3]
        # A socket that was asked for before comes, or does not, when nobody wants it any more.
        side.rung.socket_opened(3, OURS, 100.0)
        assert side.rung.next_time is None
        side.rung.socket_failed(3, 100.0)
        assert side.rung.next_time is None
        assert list(side.rung.due(1000.0)) == []
        assert side.rung.stop() == []

    def test_a_machine_that_slept_begins_with_the_current_minute(self) -> None:
        side = make(20.0)
        side.run(110.0)
        before = len(side.done)
        late = 10 * MINUTE + 30.0 - 20.0  # in the middle of a minute
        actions = list(side.rung.due(late))
        assert [type(action) for action in actions if not isinstance(action, Probe)] == [
            CloseSocket,
            CloseSocket,
        ]
        assert len(side.done) == before
        following = side.rung.next_time
        assert following is not None
        assert following == pytest.approx(11 * MINUTE - LEAD - 20.0)


@given(st.floats(0, 3600), st.floats(-1e9, 1e9), st.floats(0, 1e6))
def test_the_timer_always_advances(second: float, clock: float, start: float) -> None:
    """Whatever clock there is: no two calls at the same time that do nothing."""
    wall = EPOCH + second + clock - start
    rung = HopRung([PEER], OURS, b"", first_socket=FIRST, start=start, wall=wall)
    calls = 0
    while (at := rung.next_time) is not None and at < start + 200.0:
        for action in list(rung.due(at)):
            if isinstance(action, OpenSocket):
                rung.socket_opened(action.number, action.port, at)
        calls += 1
        assert calls < 400
        assert math.isfinite(at)
