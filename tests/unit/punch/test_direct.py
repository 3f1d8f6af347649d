from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.punch.direct import Step, next_step


def schedule(until: float) -> list[Step]:
    probes = []
    at = -1.0
    while at < until:
        probe = next_step(at)
        probes.append(probe)
        at = probe.at
    return probes


def test_two_openings_then_hellos_that_arrive() -> None:
    assert schedule(0.3)[:4] == [
        Step(0.0, opening=True),
        Step(0.05, opening=True),
        Step(0.15, opening=False),
        Step(pytest.approx(0.25), opening=False),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(
    ("start", "end", "interval"), [(0.15, 1.95, 0.1), (2.0, 9.75, 0.25), (10.0, 200.0, 1.0)]
)
def test_pace(start: float, end: float, interval: float) -> None:
    times = [probe.at for probe in schedule(end) if start - 1e-9 <= probe.at <= end + 1e-9]
    assert times[0] == pytest.approx(start)
    assert times[-1] == pytest.approx(end)
    for earlier, later in itertools.pairwise(times):
        assert later - earlier == pytest.approx(interval)


def test_never_more_than_the_polite_rate() -> None:
    times = [probe.at for probe in schedule(300.0)]
    for at in times:
        assert sum(at <= other < at + 1.0 for other in times) <= 12


@given(st.floats(-1.0, 1e6))
def test_the_next_step_is_later(elapsed: float) -> None:
    probe = next_step(elapsed)
    assert elapsed < probe.at <= elapsed + 1.1
