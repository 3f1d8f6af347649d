from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.punch.minute import FULL, LEAD, MINUTE, SKEW, Phase, phase, second_of
from nat_traverse.punch.quiet import HOLD_EVERY, next_step

if TYPE_CHECKING:
    from nat_traverse.punch.direct import Step

EPOCH = 1_800_000_000.0  # the beginning of a minute
LONGEST_GAP = HOLD_EVERY + 0.2 + 1e-5  # s; the last knock is a fifth before the hold begins
SHORTEST_LIFE = 30.0  # s that a gateway keeps a mapping without an answer


def minutes(number: int, start: float = EPOCH) -> list[Step]:
    """All hellos of so many minutes, those at `start` included."""
    found = [next_step(start - 1e-3)]
    while (step := next_step(found[-1].at)).at < start + number * MINUTE - 1e-3:
        found.append(step)
    return found


def test_a_minute() -> None:
    steps = [(round(step.at - EPOCH, 6), step.opening) for step in minutes(1)]
    assert steps[:25] == [(round(index * 0.2, 6), False) for index in range(25)]
    assert steps[25:] == [
        (second, True)
        for second in (15.0, 25.0, 35.0, 45.0, *(48.0 + index for index in range(12)))
    ]


def test_no_hello_goes_all_the_way_outside_the_first_seconds() -> None:
    for step in minutes(5):
        assert step.opening == (second_of(step.at) >= FULL - 1e-6)


@pytest.mark.parametrize("ahead", [-SKEW, -3.0, -0.1, 0.0, 0.1, 3.0, SKEW])
def test_both_have_opened_before_the_first_hello_that_arrives(ahead: float) -> None:
    """The other side's clock is ahead by so much: its steps happen that much earlier."""
    ours = [step.at for step in minutes(3)]
    others = [step.at - ahead for step in minutes(3) if not step.opening]
    for begin in [at for before, at in pairwise(others) if at - before > 1.0]:
        assert any(begin - LEAD - SKEW <= at < begin for at in ours)


def test_the_own_mapping_never_expires() -> None:
    times = [step.at for step in minutes(5)]
    assert max(later - earlier for earlier, later in pairwise(times)) <= LONGEST_GAP
    assert 2 * LONGEST_GAP < SHORTEST_LIFE  # one may be lost


@given(st.floats(0, 4e9))
def test_the_next_step_is_later_and_soon(wall: float) -> None:
    step = next_step(wall)
    assert wall < step.at <= wall + LONGEST_GAP
    if not step.opening:
        assert phase(step.at + 1e-3) is Phase.FULL


@given(st.floats(0, 4e9))
def test_steps_are_not_made_twice(wall: float) -> None:
    step = next_step(wall)
    assert next_step(step.at).at >= step.at + 0.2 - 1e-5
