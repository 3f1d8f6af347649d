from __future__ import annotations

import math
from itertools import pairwise

import pytest

from nat_traverse.model import Endpoint, Path, Rung
from nat_traverse.punch.agreed import AgreedRung
from nat_traverse.punch.minute import FULL, MINUTE, second_of
from nat_traverse.punch.rung import Began, Probe

PATH = Path(0, Endpoint("203.0.113.2", 40001))
SECOND = Path(1, Endpoint("2001:db8::2", 40001))
EPOCH = 1_800_000_000.0  # the beginning of a minute
START = 1000.0  # on the owner's clock


def make(second: float | None, *paths: Path) -> AgreedRung:
    """A rung that starts at this second of a minute; None: without a wall clock."""
    wall = None if second is None else EPOCH + second - START
    return AgreedRung(paths or (PATH,), START, wall)


def run(rung: AgreedRung, until: float) -> list[tuple[float, Probe | Began]]:
    """Let so many seconds since the start pass."""
    found: list[tuple[float, Probe | Began]] = []
    for _ in range(10_000):
        at = rung.next_time
        if at is None or at > START + until:
            return found
        actions = list(rung.due(at))
        after = rung.next_time
        assert after is None or after > at, "it would spin"
        for action in actions:
            assert isinstance(action, Probe | Began)
            found.append((at - START, action))
    raise AssertionError("it does not come to rest")


def probes(found: list[tuple[float, Probe | Began]]) -> list[tuple[float, Probe]]:
    return [(at, action) for at, action in found if isinstance(action, Probe)]


def test_the_direct_rung_comes_first() -> None:
    found = run(make(20.0), 9.9)
    assert [action for _, action in found[:3]] == [
        Probe(PATH, Rung.DIRECT, opening=True),
        Probe(PATH, Rung.DIRECT, opening=True),
        Probe(PATH, Rung.DIRECT),
    ]
    assert {action.rung for _, action in probes(found)} == {Rung.DIRECT}
    assert len(probes(found)) == len(found) > 40


def test_without_a_wall_clock_it_stays_direct() -> None:
    rung = make(None)
    rung.refused(PATH, START + 1.0)
    found = run(rung, 200.0)
    assert {action.rung for _, action in probes(found)} == {Rung.DIRECT}
    assert len(probes(found)) == len(found) > 200
    assert not rung.is_quiet(PATH)


@pytest.mark.parametrize("second", range(0, 60, 3))
def test_after_ten_seconds_hellos_arrive_in_the_first_five_of_a_minute_only(second: int) -> None:
    found = run(make(float(second)), 400.0)
    quiet = [(at, action) for at, action in probes(found) if action.rung is Rung.QUIET]
    assert 10.0 <= quiet[0][0] < 20.5
    assert all(action.rung is Rung.DIRECT for at, action in probes(found) if at < 9.99)
    for at, action in quiet:
        full = not action.opening
        assert full == (second_of(second + at + 1e-4) < FULL)
    minutes = {math.floor((second + at + 1e-4) / MINUTE) for at, each in quiet if not each.opening}
    assert len(minutes) >= 6
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(probes(found))]
    assert max(gaps) < 11.0  # the mapping is kept


@pytest.mark.parametrize("second", [0.0, 20.0, 49.0])
def test_the_owner_is_told_once_when_it_knocks_next(second: float) -> None:
    told = [(at, action) for at, action in run(make(second), 300.0) if isinstance(action, Began)]
    ((at, began),) = told
    assert 10.0 <= at < 20.5
    assert began.rung is Rung.QUIET
    assert began.until is not None
    assert second_of(began.until - START + second + 1e-4) < 1e-3
    assert 0 < began.until - START - at <= MINUTE


def test_each_opening_of_the_quiet_rung_has_a_turn_of_its_own() -> None:
    found = [action for _, action in probes(run(make(20.0), 250.0)) if action.opening]
    assert [action.turn for action in found if action.rung is Rung.DIRECT] == [0, 0]
    turns = [action.turn for action in found if action.rung is Rung.QUIET]
    assert turns == list(range(len(turns)))
    assert len(turns) > 40


def test_a_refusal_by_the_peers_gateway_makes_it_quiet_at_once() -> None:
    rung = make(20.0, PATH, SECOND)
    run(rung, 0.3)
    rung.refused(PATH, START + 0.3)
    rung.refused(PATH, START + 0.31)
    rung.refused(Path(0, PATH.remote._replace(port=1)), START + 0.3)
    assert rung.is_quiet(PATH)
    assert not rung.is_quiet(SECOND)
    found = probes(run(rung, 9.0))
    assert all(action.opening for _, action in found if action.path == PATH)
    # The first opening is not put off until the table has one.
    assert min(at for at, action in found if action.path == PATH) == pytest.approx(1.3)
    assert not any(action.opening for _, action in found if action.path == SECOND)


def test_late_timers_are_not_made_up_for() -> None:
    rung = make(20.0)
    assert len(probes([(0.0, action) for action in rung.due(START + 5.0)])) == 1  # type: ignore[misc]
    at = rung.next_time
    assert at is not None
    assert START + 5.0 < at <= START + 5.26
    late = [(0.0, action) for action in rung.due(START + 500.0)]
    assert len(probes(late)) <= 1  # type: ignore[arg-type]
    at = rung.next_time
    assert at is not None
    assert START + 500.0 < at < START + 511.0


def test_a_knock_that_is_late_is_left_out() -> None:
    """A machine that slept through the first seconds of a minute must not knock after them."""
    rung = make(20.0)
    run(rung, 40.1)  # in the middle of the knocks
    at = rung.next_time
    assert at is not None
    assert at - START < 40.3
    late = START + 40.0 + FULL + 2.0
    assert [action for action in rung.due(late) if isinstance(action, Probe)] == []
    at = rung.next_time
    assert at is not None
    assert at > late
    (opening,) = rung.due(at)
    assert isinstance(opening, Probe)
    assert opening.opening


def test_paths_are_side_by_side() -> None:
    found = probes(run(make(20.0, PATH, SECOND), 1.0))
    assert [action.path for _, action in found[:4]] == [PATH, SECOND, PATH, SECOND]


def test_it_needs_no_sockets_and_ends() -> None:
    rung = make(20.0)
    rung.socket_opened(5, 50000, START)
    rung.socket_failed(6, START)
    assert (rung.turn(PATH), rung.turn(SECOND)) == (0, 0)
    assert not rung.is_quiet(SECOND)
    assert rung.stop() == []
    assert rung.next_time is None
    assert list(rung.due(START + 100.0)) == []
