from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.tunnel.credit import (
    BUDGET,
    FIRST_WINDOW,
    LARGEST_WINDOW,
    Budget,
    ReceiveCredit,
    SendCredit,
)


class TestSender:
    def test_begins_with_the_first_window(self) -> None:
        credit = SendCredit()
        assert credit.room == FIRST_WINDOW
        credit.sent += 1000
        assert credit.room == FIRST_WINDOW - 1000

    def test_only_more_is_news(self) -> None:
        credit = SendCredit()
        assert not credit.extend(FIRST_WINDOW)
        assert not credit.extend(0)
        assert credit.room == FIRST_WINDOW
        assert credit.extend(FIRST_WINDOW + 1)
        assert credit.room == FIRST_WINDOW + 1
        # Overtaken by a later one.
        assert not credit.extend(FIRST_WINDOW)
        assert credit.room == FIRST_WINDOW + 1


class TestReceiver:
    def test_the_last_byte_of_the_window_is_taken_and_no_more(self) -> None:
        credit = ReceiveCredit(Budget())
        assert credit.receive(FIRST_WINDOW)
        assert not credit.receive(1)

    def test_nothing_is_granted_to_a_reader_that_does_not_read(self) -> None:
        credit = ReceiveCredit(Budget())
        credit.receive(FIRST_WINDOW)
        assert credit.limit == FIRST_WINDOW
        assert credit.consume(0) is None

    def test_half_a_window_at_a_time_is_granted(self) -> None:
        credit = ReceiveCredit(Budget())
        credit.receive(FIRST_WINDOW)
        assert credit.consume(FIRST_WINDOW // 2 - 1) is None
        assert credit.consume(1) == FIRST_WINDOW // 2 + FIRST_WINDOW

    def test_the_window_doubles_while_all_is_consumed_up_to_the_largest(self) -> None:
        budget = Budget()
        credit = ReceiveCredit(budget)
        windows = []
        for _ in range(10):
            size = credit.limit - credit.received
            assert credit.receive(size)
            limit = credit.consume(size)
            assert limit is not None
            windows.append(limit - credit.consumed)
        assert windows[:3] == [2 * FIRST_WINDOW, 4 * FIRST_WINDOW, 8 * FIRST_WINDOW]
        assert windows[-1] == LARGEST_WINDOW
        assert budget.used == LARGEST_WINDOW - FIRST_WINDOW

    def test_the_window_grows_wherever_in_it_the_reader_has_caught_up(self) -> None:
        # On a path that brings it in pieces, the sender hears of half a window consumed while the
        # other half is there already; only later is nothing left.
        credit = ReceiveCredit(Budget())
        assert credit.receive(FIRST_WINDOW)
        limits = [credit.consume(FIRST_WINDOW // 8) for _ in range(8)]
        assert limits[3] == FIRST_WINDOW // 2 + FIRST_WINDOW
        assert limits[7] == FIRST_WINDOW + 2 * FIRST_WINDOW
        assert [limit for limit in limits if limit is None] == [None] * 6

    def test_small_pieces_that_are_consumed_at_once_are_no_reason_to_grow(self) -> None:
        budget = Budget()
        credit = ReceiveCredit(budget)
        for _ in range(8):
            assert credit.receive(FIRST_WINDOW // 17)
            assert credit.consume(FIRST_WINDOW // 17) is None
        assert budget.used == 0

    def test_a_reader_that_lags_behind_gets_no_larger_window(self) -> None:
        budget = Budget()
        credit = ReceiveCredit(budget)
        for _ in range(10):
            assert credit.receive(credit.limit - credit.received)
            credit.consume(FIRST_WINDOW // 2)
        assert budget.used == 0
        assert credit.received - credit.consumed <= FIRST_WINDOW

    def test_what_a_stream_has_grown_by_is_given_back_once(self) -> None:
        budget = Budget()
        credit = ReceiveCredit(budget)
        credit.receive(FIRST_WINDOW)
        credit.consume(FIRST_WINDOW)
        assert budget.used == FIRST_WINDOW
        credit.release()
        credit.release()
        assert budget.used == 0

    def test_all_together_keep_within_the_budget(self) -> None:
        budget = Budget()
        several = [ReceiveCredit(budget) for _ in range(20)]
        for _ in range(10):
            for credit in several:
                size = credit.limit - credit.received
                credit.receive(size)
                assert credit.consume(size) is not None, "a small window is better than none"
        assert budget.used <= BUDGET
        assert sum(credit.limit - credit.consumed for credit in several) <= (
            BUDGET + 20 * FIRST_WINDOW
        )


def test_a_budget_that_is_used_up_gives_nothing() -> None:
    budget = Budget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    budget.give_back(50)
    assert budget.take(50)
    assert not budget.take(1)


@pytest.mark.parametrize("delayed", [False, True])
@given(data=st.data())
def test_sender_and_receiver_agree(delayed: bool, data: st.DataObject) -> None:
    """Whoever keeps to the credit is never told off, and a reader that reads stops nobody."""
    sender, receiver = SendCredit(), ReceiveCredit(Budget())
    granted = []
    for _ in range(20):
        size = data.draw(st.integers(0, sender.room))
        sender.sent += size
        assert receiver.receive(size)
        most = receiver.received - receiver.consumed
        limit = receiver.consume(data.draw(st.integers(0, most)))
        if limit is not None:
            granted.append(limit)
        if granted and not (delayed and data.draw(st.booleans())):
            sender.extend(granted.pop(0))
        assert receiver.received - receiver.consumed <= LARGEST_WINDOW
    last = receiver.consume(receiver.received - receiver.consumed)
    sender.extend(max([*granted, last or 0]))
    assert sender.room >= FIRST_WINDOW // 2
