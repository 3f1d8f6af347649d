from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.punch.minute import (
    FULL,
    LEAD,
    MINUTE,
    SKEW,
    Phase,
    minute_of,
    next_full,
    phase,
    second_of,
)

EPOCH = 1_800_000_000.0  # the beginning of a minute
LONGEST_MEMORY = 30.0  # s for which a Linux gateway remembers a packet that was not answered

walls = st.floats(0, 4e9)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (0.0, Phase.FULL),
        (4.999, Phase.FULL),
        (5.0, Phase.HOLD),
        (47.999, Phase.HOLD),
        (48.0, Phase.LEAD),
        (59.999, Phase.LEAD),
    ],
)
def test_phases(second: float, what: Phase) -> None:
    assert phase(EPOCH + second) is what


def test_the_lead_is_longer_than_clocks_may_differ() -> None:
    assert LEAD > SKEW


@pytest.mark.parametrize("ahead", [0.0, 0.5, 3.0, SKEW])
@pytest.mark.parametrize("second", range(60))
def test_nobody_knocks_before_the_other_one_has_opened(second: float, ahead: float) -> None:
    """Ours is the clock that is behind by `ahead`, or the other one's is."""
    for ours, others in ((0.0, ahead), (ahead, 0.0)):
        if phase(EPOCH + second + others) is Phase.FULL:
            # The other side knocks: our gateway was opened before, in the lead of this minute.
            knocked = EPOCH + second + ours
            opened = min(minute_of(knocked), minute_of(EPOCH + second + others)) * MINUTE - LEAD
            assert knocked - opened >= LEAD - SKEW > 0


def test_what_was_knocked_in_vain_is_forgotten_before_the_next_lead() -> None:
    assert FULL + SKEW + LONGEST_MEMORY < MINUTE - LEAD


@given(walls)
def test_the_lead_counts_as_a_part_of_its_minute(wall: float) -> None:
    minute = minute_of(wall)
    begin = minute * MINUTE
    assert begin - LEAD - 1e-6 <= wall < begin - LEAD + MINUTE + 1e-6
    if phase(wall) is Phase.LEAD:
        assert minute == minute_of(next_full(wall))


@given(walls)
def test_the_next_minute_begins_within_a_minute(wall: float) -> None:
    begin = next_full(wall)
    assert second_of(begin) == 0.0
    assert wall < begin <= wall + MINUTE
    assert 0.0 <= second_of(wall) < MINUTE
