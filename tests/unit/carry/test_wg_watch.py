from __future__ import annotations

import pytest

from nat_traverse.carry.wg_watch import (
    AGED_AFTER,
    SILENT_AFTER,
    UNANSWERED_AFTER,
    Sign,
    Watch,
)
from nat_traverse.carry.wireguard import LONGEST_KEEPALIVE


def test_a_first_handshake_is_told_once() -> None:
    watch = Watch(0, 0, 100.0)
    assert watch.look(0, 0, 101.0) is None
    assert watch.look(1_700_000_000, 92, 102.0) is Sign.SHAKEN
    assert watch.look(1_700_000_000, 92, 103.0) is None
    assert watch.look(1_700_000_120, 300, 160.0) is None


def test_no_answer() -> None:
    watch = Watch(5, 1000, 100.0)
    assert watch.look(5, 1000, 100.0 + UNANSWERED_AFTER - 0.1) is None
    # Bytes that are no handshake prove nothing.
    assert watch.look(5, 1100, 100.0 + UNANSWERED_AFTER) is Sign.UNANSWERED


def test_a_handshake_in_the_last_moment() -> None:
    watch = Watch(0, 0, 100.0)
    assert watch.look(7, 92, 100.0 + UNANSWERED_AFTER) is Sign.SHAKEN


@pytest.mark.parametrize("is_up", [True, False])
def test_silence(is_up: bool) -> None:
    watch = Watch(7 if is_up else 0, 0, 100.0, is_up=is_up)
    watch.look(7, 92, 100.0)
    assert watch.look(7, 124, 150.0) is None
    assert watch.look(7, 124, 150.0 + SILENT_AFTER - 0.1) is None
    assert watch.look(7, 124, 150.0 + SILENT_AFTER) is Sign.SILENT


def test_something_arrives_and_no_handshake_gets_through() -> None:
    watch = Watch(7, 0, 0.0, is_up=True)
    received = 0
    for second in range(int(AGED_AFTER)):
        received += 32
        assert watch.look(7, received, float(second)) is None
    assert watch.look(7, received + 32, AGED_AFTER) is Sign.AGED


def test_a_path_in_use_stays_up() -> None:
    """Keepalives as rare as they may be, one in two of them lost, and new keys in time."""
    watch = Watch(0, 0, 0.0)
    watch.look(1, 1, 1.0)
    handshake = received = 1
    for second in range(2, 2000):
        received += second % (2 * LONGEST_KEEPALIVE) == 0
        handshake += second % 170 == 0
        assert watch.look(handshake, received, float(second)) is None


def test_the_clock_on_the_wall_may_be_set_back() -> None:
    watch = Watch(1_700_000_000, 5, 0.0, is_up=True)
    assert watch.look(1_600_000_000, 6, 100.0) is None
    assert watch.look(1_600_000_000, 7, 170.0) is None
    assert watch.look(1_600_000_000, 8, 100.0 + AGED_AFTER) is Sign.AGED


def test_the_limits_fit_together() -> None:
    assert SILENT_AFTER == 3 * LONGEST_KEEPALIVE
    assert f"{SILENT_AFTER:.0f} s" in Sign.SILENT.value
    assert UNANSWERED_AFTER < 30 < SILENT_AFTER < AGED_AFTER
