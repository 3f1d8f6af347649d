from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.punch.minute import FULL, MINUTE, SKEW, second_of
from nat_traverse.punch.predict import AHEAD, REFRESH, BlindPlan, MeetingPlan, Sweep

EPOCH = 1_800_000_000.0  # the beginning of a minute
SERIES = 253 / 88  # s that one series takes


def meeting(second: float, hint: int = 5000) -> MeetingPlan:
    """A plan whose owner's clock stands at 0 at this second of a minute."""
    return MeetingPlan(hint, EPOCH + second)


def series(plan: MeetingPlan | BlindPlan, until: float) -> list[Sweep]:
    """All series until then, each of them as long as 253 packets take."""
    sweep = plan.next_sweep(0.0, first=True)
    found = [sweep]
    while True:
        sweep = plan.next_sweep(sweep.at + SERIES, first=False)
        if sweep.at > until:
            return found
        assert sweep.at >= found[-1].at + SERIES
        found.append(sweep)


class TestBlind:
    def test_goes_to_the_agreed_port_and_never_all_the_way(self) -> None:
        plan = BlindPlan(40001)
        assert plan.port == 40001
        assert not any(sweep.full for sweep in series(plan, 180.0))

    def test_refreshes_before_a_gateway_forgets(self) -> None:
        assert [sweep.at for sweep in series(BlindPlan(1), 119.0)] == [
            0.0,
            REFRESH,
            2 * REFRESH,
            3 * REFRESH,
            4 * REFRESH,
        ]
        assert REFRESH < 30.0

    def test_makes_up_for_nothing(self) -> None:
        plan = BlindPlan(1)
        plan.next_sweep(10.0, first=True)
        assert plan.next_sweep(500.0, first=False) == Sweep(500.0, full=False)
        assert plan.next_sweep(501.0, first=False) == Sweep(528.0, full=False)

    def test_holds_no_probe(self) -> None:
        assert BlindPlan(1).probes_held(10_000) is None


class TestMeeting:
    def test_both_sides_choose_a_port_ahead_of_the_hint(self) -> None:
        assert meeting(0.0).port == 5180
        assert meeting(0.0, 65_500).port == 1024 + (65_500 + AHEAD - 65_536)
        assert all(AHEAD % step == 0 for step in (1, 2, 3, 4, 5, 6))

    @pytest.mark.parametrize("second", [0.0, 0.5, 3.0, 20.0, 45.0, 46.0])
    def test_the_times_of_a_minute(self, second: float) -> None:
        found = series(meeting(second), 240.0)
        times = [(round(sweep.at + second, 6), sweep.full) for sweep in found]
        assert times[:9] == [
            (46.0, False),
            (60.0, True),
            (63.0, True),
            (80.0, False),
            (106.0, False),
            (120.0, True),
            (123.0, True),
            (140.0, False),
            (166.0, False),
        ]

    @pytest.mark.parametrize("second", [46.1, 50.0, 59.9])
    def test_who_misses_the_lead_waits_for_the_next_one(self, second: float) -> None:
        first = meeting(second).next_sweep(0.0, first=True)
        assert first == Sweep(pytest.approx(106.0 - second), full=False)  # type: ignore[arg-type]

    @pytest.mark.parametrize("ahead", [-SKEW, -3.0, 0.0, 3.0, SKEW])
    @pytest.mark.parametrize("second", [0.0, 20.0, 40.0])
    def test_both_rows_stand_before_the_first_packet_that_travels_all_the_way(
        self, second: float, ahead: float
    ) -> None:
        ours = series(meeting(second), 300.0)
        others = series(meeting(second + ahead), 300.0)
        first = max(ours[0].at, others[0].at) + SERIES
        for one, other in ((ours, others), (others, ours)):
            for sweep in one:
                if sweep.full and sweep.at > other[0].at:
                    # The other row was made, or is being made again, by then.
                    assert any(
                        each.at + SERIES <= sweep.at + SERIES and not each.full for each in other
                    )
        full = [sweep.at for sweep in ours + others if sweep.full]
        assert any(at >= first for at in full)

    def test_a_row_is_refreshed_before_a_gateway_forgets(self) -> None:
        times = [sweep.at for sweep in series(meeting(0.0), 600.0)]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert max(gaps) < 30.0

    def test_only_the_likeliest_ports_are_tried_before_they_have_met(self) -> None:
        plan = meeting(20.0)
        plan.next_sweep(0.0, first=True)
        assert [plan.probes_held(sent) for sent in (0, 69)] == [None, None]
        assert plan.probes_held(600) == math.inf  # the series are more important
        met = plan.probes_held(70)
        assert met == pytest.approx(26.0 + 14.0 + 6.0)
        # Both series that travel all the way have been made by then.
        assert met is not None
        assert met >= 40.0 + FULL

    def test_one_that_is_a_little_late_is_made_and_one_that_is_very_late_is_not(self) -> None:
        plan = meeting(0.0)
        plan.next_sweep(0.0, first=True)
        assert plan.next_sweep(61.5, first=False) == Sweep(61.5, full=True)
        assert plan.next_sweep(64.5, first=False) == Sweep(64.5, full=True)
        assert plan.next_sweep(85.0, first=False) == Sweep(106.0, full=False)

    def test_after_a_night_it_goes_on_with_the_minute(self) -> None:
        plan = meeting(0.0)
        plan.next_sweep(0.0, first=True)
        assert plan.next_sweep(1e5, first=False) == Sweep(100_006.0, full=False)

    def test_a_clock_that_runs_backwards_is_the_owners_mistake(self) -> None:
        plan = meeting(0.0)
        plan.next_sweep(1000.0, first=True)
        with pytest.raises(AssertionError, match="unreachable"):
            plan.next_sweep(0.0, first=False)

    @given(st.floats(0, 60), st.floats(-1e9, 1e9), st.floats(0, 1e6))
    def test_no_series_is_made_twice_whatever_the_clocks_say(
        self, second: float, clock: float, start: float
    ) -> None:
        wall = EPOCH + second + clock - start
        plan = MeetingPlan(5000, wall)
        times = [plan.next_sweep(start, first=True).at]
        assert start <= times[0] <= start + MINUTE + 1e-3
        for _ in range(12):
            times.append(plan.next_sweep(times[-1], first=False).at)
        # Four a minute, as many as the table has.
        assert times[-1] - times[0] == pytest.approx(3 * MINUTE, abs=1e-3)
        seconds = {round(second_of(at + wall + 1e-4)) for at in times}
        assert seconds <= {0, 3, 20, 46, 60}
