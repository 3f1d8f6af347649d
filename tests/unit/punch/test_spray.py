from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from nat_traverse.model import Endpoint, Path, Rung
from nat_traverse.punch.machine import OpenSocket
from nat_traverse.punch.ports import after
from nat_traverse.punch.predict import BlindPlan, MeetingPlan
from nat_traverse.punch.rung import SPRAY_STARTS as STARTS
from nat_traverse.punch.rung import Action, Began, Probe
from nat_traverse.punch.settings import LadderSettings
from nat_traverse.punch.spray import ATTEMPT, MAX_PACKETS, MAX_SOCKETS, SprayRung

TARGET = Path(0, Endpoint("203.0.113.2", 40001))
EPOCH = 1_800_000_000.0  # the beginning of a minute
SOCKETS = range(3, 256)  # 253, beside the main one and two of the hop rung
PACE = 87  # packets a second that the other rungs leave of a hundred


@dataclass
class Runner:
    """A rung, and all that it did; `fails` is the number of sockets that there are."""

    rung: SprayRung
    fails: int = 1000
    done: list[tuple[float, Action]] = field(default_factory=list)
    sockets: int = 0
    now: float = 0.0

    def run(self, until: float) -> list[tuple[float, Action]]:
        for _ in range(100_000):
            at = self.rung.next_time
            if at is None or at > until:
                return self.done
            self.now = max(self.now, at)
            self.call(self.now)
        raise AssertionError("it does not come to rest")

    def call(self, at: float) -> int:
        """Let it do what is due; returns how many packets that were."""
        actions = list(self.rung.due(at))
        for action in actions:
            self.done.append((at, action))
            if isinstance(action, OpenSocket):
                self.sockets += 1
                if self.sockets > self.fails:
                    self.rung.socket_failed(action.number, at)
                else:
                    self.rung.socket_opened(action.number, 50_000 + action.number, at)
        return sum(isinstance(action, Probe) for action in actions)

    def packets(self) -> list[tuple[float, Probe]]:
        return [(at, action) for at, action in self.done if isinstance(action, Probe)]

    def openings(self) -> list[tuple[float, Probe]]:
        return [(at, each) for at, each in self.packets() if each.path.socket != TARGET.socket]

    def probes(self) -> list[tuple[float, Probe]]:
        return [(at, each) for at, each in self.packets() if each.path.socket == TARGET.socket]


def make(
    *, start: float = 0.0, unlimited: bool = False, second: float | None = None, **settings: Any
) -> Runner:
    """A runner of a rung; with `second` of a minute and hints, of one that predicts."""
    ladder = LadderSettings(40000, EPOCH, bytes(range(16)), **settings)
    plan: BlindPlan | MeetingPlan = BlindPlan(TARGET.remote.port)
    if second is not None:
        plan = MeetingPlan(ladder.hints[0], EPOCH + second - start)
    rung = SprayRung(ladder, TARGET, plan, SOCKETS, start=start, paths=1, unlimited=unlimited)
    return Runner(rung)


def busiest(times: list[float], seconds: float) -> int:
    """The most of them in any window that long."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds + 1e-6:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_it_begins_after_half_a_second_and_says_so_once() -> None:
    runner = make(start=100.0)
    runner.run(130.0)
    assert runner.done[0] == (100.0 + STARTS, Began(Rung.SPRAY))
    assert sum(isinstance(action, Began) for _, action in runner.done) == 1


def test_each_socket_is_opened_once_and_sends_to_the_agreed_port_with_a_low_ttl() -> None:
    runner = make()
    runner.run(5.0)
    numbers = [each.number for _, each in runner.done if isinstance(each, OpenSocket)]
    assert numbers == list(SOCKETS)
    assert all(each.port == 0 for _, each in runner.done if isinstance(each, OpenSocket))
    assert len(numbers) + 3 == MAX_SOCKETS == 256
    openings = [each for _, each in runner.openings()]
    assert [each.path for each in openings] == [Path(each, TARGET.remote) for each in SOCKETS]
    assert all(each.opening and each.turn == 0 for each in openings)
    assert runner.rung.sockets_open == 253


def test_never_more_than_the_others_leave_of_the_rate() -> None:
    runner = make()
    runner.run(600.0)
    times = [at for at, _ in runner.packets()]
    # One more where a slow pace turns into a quick one.
    assert busiest(times, 1.0) <= PACE + 1
    assert busiest(times, 0.1) <= PACE // 10 + 2


@pytest.mark.parametrize(("rate", "pace"), [(50.0, 37), (200.0, 187), (10.0, 1), (12.4, 1)])
def test_the_rate_is_the_users(rate: float, pace: int) -> None:
    runner = make(rate=rate)
    runner.run(60.0)
    assert pace * 0.9 <= busiest([at for at, _ in runner.packets()], 1.0) <= pace + 1


@pytest.mark.parametrize("hints", [(), (5000,)])
def test_the_budget_of_an_attempt(hints: tuple[int, ...]) -> None:
    runner = make(hints=hints, second=10.0 if hints else None)
    runner.run(1000.0)
    times = [at for at, _ in runner.packets()]
    assert MAX_PACKETS == 2**12
    for attempt in range(5):
        begin = STARTS + attempt * ATTEMPT
        count = sum(begin <= at < begin + ATTEMPT for at in times)
        assert MAX_PACKETS * 0.75 <= count <= MAX_PACKETS


def test_without_the_limit_it_goes_on_at_full_pace() -> None:
    runner = make(unlimited=True)
    runner.run(179.0)
    assert len(runner.packets()) == pytest.approx(PACE * 178.5, rel=0.02)
    # All ports are tried before one is tried again.
    ports = [each.path.remote.port for _, each in runner.probes()]
    assert len(set(ports)) == len(ports)


def test_without_the_limit_no_port_is_tried_twice_because_an_attempt_has_ended() -> None:
    runner = make(unlimited=True)
    runner.run(2.5 * ATTEMPT)
    ports = [each.path.remote.port for _, each in runner.probes()]
    assert len(ports) > 2 * ATTEMPT * PACE * 0.9
    assert len(set(ports)) == len(ports)


def test_without_sockets_for_openings_an_attempt_has_no_more_probes() -> None:
    runner = make()
    runner.fails = 0
    runner.run(ATTEMPT)
    assert len(runner.probes()) == 2578
    assert runner.openings() == []


def test_without_the_limit_it_begins_again_when_all_ports_were_tried() -> None:
    runner = make(unlimited=True, rate=2000.0)
    runner.run(40.0)
    ports = [each.path.remote.port for _, each in runner.probes()]
    assert len(ports) > 64_511
    assert len(set(ports[:64_511])) == 64_511
    assert set(ports[64_511:]) <= set(ports[:64_511])


def test_openings_are_refreshed_before_a_gateway_forgets() -> None:
    runner = make()
    runner.run(130.0)
    for number in (3, 100, 255):
        times = [at for at, each in runner.openings() if each.path.socket == number]
        assert len(times) == 5
        assert max(later - earlier for earlier, later in pairwise(times)) < 28.0 + 253 / PACE
    turns = {each.turn for _, each in runner.openings()}
    assert turns == {0, 1, 2, 3, 4}


def test_a_new_attempt_begins_with_openings_for_the_gateway_has_forgotten_the_old_ones() -> None:
    runner = make()
    runner.run(STARTS + 2 * ATTEMPT)
    times = [at for at, each in runner.openings() if each.path.socket == 3]
    assert any(ATTEMPT <= at - STARTS < ATTEMPT + 253 / PACE for at in times)


@pytest.mark.parametrize("rate", [100.0, 50.0])
def test_every_second_attempt_has_a_silence_in_which_a_gateway_can_forget(rate: float) -> None:
    runner = make(rate=rate)
    runner.run(STARTS + 4 * ATTEMPT)
    times = [at - STARTS for at, _ in runner.probes()]
    for attempt in range(4):
        probes = [at - attempt * ATTEMPT for at in times if at // ATTEMPT == attempt]
        longest = max(later - earlier for earlier, later in pairwise(probes))
        assert (longest >= 95.0) is (attempt % 2 == 1)
        assert len(probes) > 1330
        if rate == 100.0:
            assert sum(at < 22.0 for at in probes) >= 1330  # whoever comes then is found
            assert len(probes) == 2578


@pytest.mark.parametrize("rate", [20.0, 25.0, 30.0])
def test_a_low_rate_leaves_as_much_for_probes_as_for_openings(rate: float) -> None:
    runner = make(rate=rate)
    runner.run(STARTS + ATTEMPT)
    probes, openings = len(runner.probes()), len(runner.openings())
    assert probes + openings == pytest.approx(ATTEMPT * (rate - 13), rel=0.05)
    assert probes > 0.9 * openings


def test_probes_go_to_each_port_once_and_travel_all_the_way() -> None:
    runner = make()
    runner.run(STARTS + ATTEMPT - 1.0)
    probes = [each for _, each in runner.probes()]
    ports = [each.path.remote.port for each in probes]
    assert len(ports) == len(set(ports))
    assert TARGET.remote.port not in ports
    assert not any(each.opening for each in probes)
    assert {each.path.remote.host for each in probes} == {TARGET.remote.host}
    assert runner.rung.ports_tried == len(ports)
    assert runner.rung.openings_sent == len(runner.openings())


def test_enough_probes_for_a_peer_that_is_there_and_for_one_that_comes_later() -> None:
    runner = make()
    runner.run(STARTS + ATTEMPT - 1.0)
    times = [at - STARTS for at, _ in runner.probes()]
    assert sum(at < 22.0 for at in times) >= 1160  # 99 % in about 20 s
    assert 1750 <= sum(at < 92.0 for at in times) <= 1850
    assert sum(at >= 92.0 for at in times) >= 770  # 95 % for who comes after 90 s
    assert 2300 <= len(times) <= 2831


def test_each_attempt_has_an_order_of_its_own() -> None:
    runner = make()
    runner.run(STARTS + 2 * ATTEMPT - 1.0)
    ports = [
        [each.path.remote.port for at, each in runner.probes() if (at - STARTS) // ATTEMPT == n]
        for n in range(2)
    ]
    assert sum(one == other for one, other in zip(ports[0][8:], ports[1][8:], strict=False)) < 20


@pytest.mark.parametrize("late", [0.3, 5.0, 300.0])
def test_late_timers_are_not_made_up_for_in_a_burst(late: float) -> None:
    runner = make()
    runner.run(2.0)
    now = 2.0 + late
    count = 0
    while (at := runner.rung.next_time) is not None and at <= now:
        count += runner.call(now)
        assert count <= 2, "a burst"


def test_a_timer_that_is_always_late_keeps_to_the_pace() -> None:
    runner = make()
    now, times = 0.0, []
    while now < 10.0:
        at = runner.rung.next_time
        assert at is not None
        now = max(now, at + 0.004)  # the granularity of a slow kernel
        times += [now] * runner.call(now)
    assert busiest(times, 1.0) <= PACE + 1


@pytest.mark.parametrize("number", [0, 1, 17])
def test_it_does_with_the_sockets_that_there_are(number: int) -> None:
    runner = make()
    runner.fails = number
    runner.run(100.0)
    assert runner.rung.sockets_open == number
    assert sum(isinstance(each, OpenSocket) for _, each in runner.done) == number + 1
    assert {each.path.socket for _, each in runner.openings()} == set(SOCKETS[:number])
    assert len(runner.probes()) > 1330


def test_it_waits_for_the_socket_it_asked_for() -> None:
    runner = make()
    (began, opened) = list(runner.rung.due(STARTS))
    assert isinstance(opened, OpenSocket)
    assert runner.rung.next_time is None
    assert list(runner.rung.due(10.0)) == []
    runner.rung.socket_opened(999, 1, 1.0)
    runner.rung.socket_failed(999, 1.0)
    assert runner.rung.next_time is None
    assert runner.rung.stop() == [opened.number]
    assert began == Began(Rung.SPRAY)


def test_when_all_ports_were_tried_there_is_nothing_left_to_try() -> None:
    runner = make()
    runner.run(10.0)
    while runner.rung._order.next_port() is not None:
        pass
    before = len(runner.probes())
    runner.run(60.0)
    assert len(runner.probes()) == before
    assert len(runner.openings()) == 3 * 253


def test_who_calls_without_need_gets_nothing() -> None:
    runner = make()
    runner.run(70.0)  # probes are rare by now, and no series is being made
    runner.rung.next_time = 70.0
    assert list(runner.rung.due(70.0)) == []
    following = runner.rung.next_time
    assert following is not None
    assert following > 70.0


def test_it_ends() -> None:
    runner = make()
    runner.run(2.0)
    opened = [each.number for _, each in runner.done if isinstance(each, OpenSocket)]
    assert runner.rung.stop() == opened
    assert runner.rung.next_time is None
    assert list(runner.rung.due(3.0)) == []
    assert runner.rung.stop() == []


def test_a_port_that_was_seen_makes_its_neighbours_next() -> None:
    runner = make()
    runner.run(10.0)
    before = len(runner.probes())
    runner.rung.port_seen(20_000)
    runner.run(12.0)
    ports = [each.path.remote.port for _, each in runner.probes()]
    expected = [port for port in [20_000, *after(20_000)] if port not in ports[:before]]
    assert len(expected) > 60
    assert ports[before:][: len(expected)] == expected


def test_what_it_knows_of_its_own_packets() -> None:
    runner = make()
    runner.run(10.0)
    port = runner.probes()[0][1].path.remote.port
    assert runner.rung.sent_to(port)
    assert not runner.rung.sent_to(1)
    assert runner.rung.waits_for(TARGET.remote)
    assert not runner.rung.waits_for(TARGET.remote._replace(port=port))
    assert not runner.rung.waits_for(Endpoint("192.0.2.1", TARGET.remote.port))


class TestPrediction:
    def test_openings_go_to_the_meeting_port_in_the_lead_and_then_all_the_way(self) -> None:
        runner = make(hints=(5000, 7000), second=20.0)
        runner.run(70.0)
        assert runner.done[0][1] == Began(Rung.PREDICT)
        assert {each.path.remote.port for _, each in runner.openings()} == {5180}
        assert {each.rung for _, each in runner.packets()} == {Rung.PREDICT}
        for at, each in runner.openings():
            second = (20.0 + at) % 60.0
            assert each.opening == (not second < 6.0)
        assert runner.openings()[0][0] == pytest.approx(26.0)
        assert runner.rung.waits_for(TARGET.remote._replace(port=5180))

    def test_the_hints_and_what_is_after_them_are_tried_first(self) -> None:
        runner = make(hints=(5000, 7000), second=20.0)
        runner.run(25.0)
        ports = [each.path.remote.port for _, each in runner.probes()]
        assert ports == [5000, *after(5000)][:70]

    def test_the_rest_comes_when_both_have_met(self) -> None:
        runner = make(hints=(5000,), second=20.0)
        runner.run(45.9)
        assert len(runner.probes()) == 70
        runner.run(60.0)
        assert len(runner.probes()) > 400

    def test_what_is_left_is_spent_so_that_later_series_are_still_made(self) -> None:
        runner = make(hints=(5000,), second=20.0)
        runner.run(STARTS + ATTEMPT - 1.0)
        full = {int((20.0 + at) // 60) for at, each in runner.openings() if not each.opening}
        assert full == {1, 2, 3}
