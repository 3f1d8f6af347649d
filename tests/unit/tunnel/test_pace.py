from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.tunnel.pace import Pacer

WINDOW = 1_000_000
ROUND_TRIP = 0.1
DATAGRAM = 1400


def sent(pacer: Pacer, seconds: float, step: float = 0.001) -> list[int]:
    """Send all that is allowed, and return the bytes of each burst."""
    bursts = []
    for turn in range(round(seconds / step)):
        burst = 0
        left = pacer.allowance(WINDOW, ROUND_TRIP, 5 + turn * step)
        while left > 0:
            left -= DATAGRAM
            burst += DATAGRAM
        pacer.spend(burst)
        bursts.append(burst)
    return bursts


def test_a_window_leaves_within_a_round_trip_and_not_at_once() -> None:
    bursts = sent(Pacer(), ROUND_TRIP)
    assert sum(bursts) >= WINDOW
    assert sum(bursts) <= 1.3 * WINDOW
    assert max(bursts) <= WINDOW // 16


def test_ten_packets_may_always_leave_at_once() -> None:
    pacer = Pacer()
    assert pacer.allowance(2 * DATAGRAM, 1.0, 5.0) >= 10 * DATAGRAM
    pacer.spend(10 * DATAGRAM)
    assert pacer.allowance(2 * DATAGRAM, 1.0, 5.0) < DATAGRAM


def test_a_pause_earns_no_more_than_a_few_ticks() -> None:
    pacer = Pacer()
    sent(pacer, 0.01)
    after = pacer.allowance(WINDOW, ROUND_TRIP, 1000.0)
    assert after <= WINDOW // 16


def test_a_late_wake_up_is_made_up_for() -> None:
    # At 4 ms as at 1 ms the same comes out.
    coarse, fine = (sum(sent(Pacer(), 1.0, step)) for step in (0.004, 0.001))
    assert coarse == pytest.approx(fine, rel=0.01)


def test_time_that_goes_backwards_earns_nothing() -> None:
    pacer = Pacer()
    first = pacer.allowance(WINDOW, ROUND_TRIP, 5.0)
    assert pacer.allowance(WINDOW, ROUND_TRIP, 4.0) == first


@given(
    window=st.integers(2 * DATAGRAM, 1 << 28),
    round_trip=st.floats(1e-5, 10),
    overdraft=st.integers(0, DATAGRAM),
)
def test_there_is_credit_at_the_time_it_promises(
    window: int, round_trip: float, overdraft: int
) -> None:
    pacer = Pacer()
    pacer.spend(pacer.allowance(window, round_trip, 5.0) + overdraft)
    at = pacer.next_time(DATAGRAM)
    assert at >= 5.0
    # Never later than the window takes to leave anyway.
    assert at <= 5.0 + max(0.001, 2 * DATAGRAM / window * round_trip) + 0.001
    assert pacer.allowance(window, round_trip, at + 1e-6) > 0
