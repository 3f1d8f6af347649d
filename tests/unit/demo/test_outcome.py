from __future__ import annotations

from dataclasses import replace

import pytest

from nat_traverse.demo.outcome import Moment, Outcome, Transfer, timeline

GOOD = Transfer(
    sent=10,
    received=10,
    sent_digest="aa",
    received_digest="aa",
    answered=True,
    seconds=0.5,
)
CHANGED = replace(GOOD, received_digest="bb")
UNANSWERED = replace(GOOD, answered=False)


@pytest.mark.parametrize(
    ("transfer", "statuses", "code"),
    [
        (GOOD, (0, 0), 0),
        (CHANGED, (0, 0), 1),
        (UNANSWERED, (0, 0), 1),
        (GOOD, (0, 5), 5),
        (GOOD, (104, 5), 104),
        (CHANGED, (5, 5), 5),
        (GOOD, (-9, 0), 1),
        (None, (4, 4), 4),
        (None, (98, 4), 4),
        (None, (98, 98), 98),
        (None, (0, 0), 1),
        (None, (-15, 0), 1),
    ],
)
def test_exit_code(transfer: Transfer | None, statuses: tuple[int, int], code: int) -> None:
    outcome = Outcome(None if transfer is None else 0.2, transfer, statuses)
    assert outcome.exit_code == code
    assert outcome.verdict.startswith("OK: ") == (code == 0)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (
            Outcome(0.1834, GOOD, (0, 0)),
            (
                "OK: connected 183 ms after the later start, the file arrived unchanged,"
                " both sides exited with 0."
            ),
        ),
        (
            Outcome(0.2, CHANGED, (0, 5)),
            (
                "FAILED: connected 200 ms after the later start, the file or the answer did NOT"
                " arrive, left exited with 0, right with 5."
            ),
        ),
        (
            Outcome(0.2, GOOD, (0, -9)),
            (
                "FAILED: connected 200 ms after the later start, the file arrived unchanged,"
                " left exited with 0, right with signal 9."
            ),
        ),
        (
            Outcome(None, None, (4, 4)),
            (
                "No tunnel between these two: left exited with 4, right with 4."
                " What each side has seen stands above."
            ),
        ),
    ],
)
def test_verdict(outcome: Outcome, verdict: str) -> None:
    assert outcome.verdict == verdict


def test_timeline_is_in_order_and_has_a_column_for_each_side() -> None:
    moments = [
        Moment(0.0, "left", "started"),
        Moment(1.25, "right", "connected"),
        Moment(1.0, "right", "started"),
        Moment(1.2504, "left", "connected"),
    ]
    assert timeline(moments, 1.0) == [
        "      ms  left                    right",
        "   -1000  started",
        "       0                          started",
        "     250                          connected",
        "     250  connected",
    ]
