from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.tunnel.window import SendWindow

FIRST = 64 * 1024


def answered(window: SendWindow, room: int) -> None:
    """Open the window by one mark and its answer."""
    window.mark(0)
    assert window.take_answer(0, room)


def test_the_first_window_is_small() -> None:
    window = SendWindow(0.0)
    window.note_sent(FIRST - 1)
    assert window.has_room
    window.note_sent(1)
    assert not window.has_room


def test_a_mark_is_wanted_every_quarter_of_the_window() -> None:
    window = SendWindow(0.0)
    assert not window.note_sent(FIRST // 4 - 1)
    assert window.note_sent(1)
    window.mark(1)
    assert not window.note_sent(1)


def test_an_answer_makes_room_for_what_was_sent_before_its_mark() -> None:
    window = SendWindow(0.0)
    window.note_sent(FIRST)
    window.mark(1)
    window.note_sent(10)
    rooms = [window.has_room, window.take_answer(1, 0), window.has_room]
    assert rooms == [False, True, True]
    assert not window.is_open
    window.mark(2)
    assert window.take_answer(2, 0)
    assert window.is_open


def test_answers_that_overtake_each_other_never_take_room_away() -> None:
    window = SendWindow(0.0)
    for serial in (1, 2):
        window.note_sent(1000)
        window.mark(serial)
    assert window.take_answer(2, 0)
    assert window.take_answer(1, 0)
    assert window.is_open


def test_other_serials_are_not_answers() -> None:
    window = SendWindow(0.0)
    window.note_sent(1000)
    window.mark(1)
    assert not window.take_answer(7, 1 << 20)
    assert window.take_answer(1, 0)
    assert not window.take_answer(1, 0)


def test_the_peer_says_how_much_it_takes() -> None:
    window = SendWindow(0.0)
    answered(window, 2 << 20)
    window.note_sent((2 << 20) - 1)
    assert window.has_room
    window.note_sent(1)
    assert not window.has_room


def test_a_long_path_holds_more_than_the_buffer() -> None:
    window = SendWindow(0.050)
    answered(window, 100_000)
    window.note_sent(4_999_999)
    assert window.has_room
    window.note_sent(1)
    assert not window.has_room


def test_the_window_has_bounds_whatever_the_peer_says() -> None:
    for room, limit in ((0, FIRST), (2**32 - 1, 16 << 20)):
        window = SendWindow(10.0)
        answered(window, room)
        window.note_sent(limit - 1)
        assert window.has_room
        window.note_sent(1)
        assert not window.has_room


def test_without_a_measured_round_trip_the_wire_counts_as_empty() -> None:
    window = SendWindow(None)
    answered(window, 100_000)
    window.note_sent(100_000)
    assert not window.has_room


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**32 - 1)), max_size=300))
def test_memory_is_bounded_and_room_comes_back(steps: list[tuple[int, int]]) -> None:
    window = SendWindow(0.01)
    serial = 0
    for kind, value in steps:
        if kind:
            serial += 1
            window.note_sent(value % 100_000)
            window.mark(serial)
        else:
            window.take_answer(value % (serial + 1), value)
    assert len(window._marks) <= 64
    window.mark(serial + 1)
    window.take_answer(serial + 1, 0)
    assert window.has_room
