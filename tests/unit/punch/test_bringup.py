from __future__ import annotations

import pytest

from nat_traverse.punch.bringup import (
    ASK_EVERY,
    PATIENCE,
    REMIND_EVERY,
    SILENCE,
    TRY,
    BringUp,
    Move,
)
from nat_traverse.wire.hello import Agreed

START = 50.0
ASKED_TO_OPEN = Move(Agreed.OPEN)
ASKED_FOR_SILENCE = Move(Agreed.SILENT)
HELLO = Move(None)


def moves(machine: BringUp, until: float) -> list[tuple[float, Move]]:
    """What it does until then, as nobody answers."""
    found: list[tuple[float, Move]] = []
    for _ in range(10_000):
        at = machine.next_time
        if at > until or machine.is_over:
            return found
        move = machine.move(at)
        if move is not None:
            found.append((at, move))
        assert move is None or machine.next_time > at, "it would spin"
    raise AssertionError("it does not come to rest")


def trying() -> BringUp:
    """A machine whose question was answered at once."""
    machine = BringUp(START)
    machine.move(START)
    machine.answered(Agreed.OPENED, START)
    return machine


def silent() -> tuple[BringUp, float]:
    """A machine that has just been granted silence, and when."""
    machine = trying()
    at, move = moves(machine, START + TRY + ASK_EVERY / 2)[-1]
    assert at == pytest.approx(START + TRY)
    assert move == ASKED_FOR_SILENCE
    machine.answered(Agreed.SILENT, at)
    return machine, at


def test_it_asks_until_it_is_answered() -> None:
    machine = BringUp(START)
    assert machine.next_time == START
    found = moves(machine, START + 1.0)
    assert {move for _, move in found} == {ASKED_TO_OPEN}
    assert [at for at, _ in found] == [
        pytest.approx(START + number * ASK_EVERY) for number in range(len(found))
    ]
    assert len(found) in (5, 6)
    assert not machine.is_silent
    assert not machine.is_over


def test_then_hellos_go_out_on_the_pair() -> None:
    found = moves(trying(), START + TRY - 0.01)
    assert {move for _, move in found} == {HELLO}
    assert len(found) == 20


def test_then_both_are_silent_and_reminded_of_it() -> None:
    machine, since = silent()
    assert machine.is_silent
    found = moves(machine, since + SILENCE - 0.01)
    assert {move for _, move in found} == {ASKED_FOR_SILENCE}
    assert [at - since for at, _ in found] == [
        pytest.approx(REMIND_EVERY * number) for number in range(1, int(SILENCE / REMIND_EVERY) + 1)
    ]
    assert machine.is_silent
    assert SILENCE > 30.0  # what a gateway remembers


def test_then_it_is_tried_again_and_after_a_longer_silence_once_more() -> None:
    machine, since = silent()
    for lasts in (SILENCE, 65.0):
        assert machine.silence == lasts
        moves(machine, since + lasts - 0.01)
        again = since + lasts
        assert moves(machine, again) == [(again, ASKED_TO_OPEN)]
        assert not machine.is_silent
        assert machine.silence == 0.0
        machine.answered(Agreed.OPENED, again)
        found = moves(machine, again + TRY - 0.01)
        assert {move for _, move in found} == {HELLO}
        assert not machine.is_over
        since = again + TRY + 0.2
        moves(machine, since)
        machine.answered(Agreed.SILENT, since)
    assert machine.is_over
    again = since
    assert machine.move(again + 100.0) is None


@pytest.mark.parametrize("when", ["opening", "trying", "silent"])
def test_an_end_that_knows_better_ends_it(when: str) -> None:
    if when == "silent":
        machine, now = silent()
    else:
        machine, now = (BringUp(START) if when == "opening" else trying()), START
    machine.answered(Agreed.HOPELESS, now + 0.1)
    assert machine.is_over
    assert not machine.is_silent
    assert machine.move(now + 0.1) is None


@pytest.mark.parametrize("answer", [Agreed.OPENED, Agreed.SILENT, Agreed.OPEN, None])
def test_answers_to_earlier_questions_change_nothing(answer: Agreed | None) -> None:
    machine, since = silent()
    before = machine.next_time
    machine.answered(answer, since + 0.1)
    assert (machine.is_silent, machine.next_time) == (True, before)
    machine = BringUp(START)
    if answer is not Agreed.OPENED:
        machine.answered(answer, START)
        assert machine.move(START) == ASKED_TO_OPEN
    machine = trying()
    machine.answered(answer, START)
    assert machine.move(START) == HELLO


def test_silence_is_asked_for_until_it_is_granted() -> None:
    machine = trying()
    found = moves(machine, START + TRY + 1.0)
    asked = [at for at, move in found if move == ASKED_FOR_SILENCE]
    assert len(asked) in (5, 6)
    assert machine.is_silent


def test_nothing_is_due_before_its_time() -> None:
    machine = BringUp(START)
    assert machine.move(START) == ASKED_TO_OPEN
    assert machine.move(START + ASK_EVERY / 2) is None


def test_a_helping_path_that_says_nothing_is_dead() -> None:
    machine = BringUp(START)
    assert not machine.is_dead(START + PATIENCE)
    assert machine.is_dead(START + PATIENCE + 0.1)
    machine.answered(None, START + PATIENCE)
    assert not machine.is_dead(START + 2 * PATIENCE)
    assert PATIENCE > REMIND_EVERY
