from __future__ import annotations

from nat_traverse.model import Endpoint, Path
from nat_traverse.punch.insistence import EVERY, SLOWLY, UNPROVEN_TIMES, Insistence

PATHS = [Path(0, Endpoint("203.0.113.2", port)) for port in (40001, 40002, 40003)]


def always(path: Path) -> bool:
    del path
    return True


def never(path: Path) -> bool:
    del path
    return False


def test_the_first_hello_is_due_at_once_and_a_second_request_changes_nothing() -> None:
    assert Insistence().next_time is None
    insistence = Insistence()
    assert insistence.add(PATHS[0], 5.0, always) == [PATHS[0]]
    assert insistence.next_time == 5.0 + EVERY
    assert insistence.add(PATHS[0], 5.05, always) == []
    assert insistence.next_time == 5.0 + EVERY
    assert PATHS[0] in insistence
    assert PATHS[1] not in insistence


def test_all_have_their_hellos_at_the_same_time() -> None:
    insistence = Insistence()
    insistence.add(PATHS[0], 0.0, always)
    assert insistence.add(PATHS[1], 0.05, always) == [PATHS[1]]
    assert insistence.next_time == EVERY  # the first one does not wait for the second
    assert insistence.due(EVERY, always) == PATHS[:2]
    assert insistence.next_time == 2 * EVERY


def test_a_path_that_works_is_knocked_at_for_ever_but_slowly_in_the_end() -> None:
    insistence = Insistence()
    insistence.add(PATHS[0], 0.0, always)
    now = 0.0
    gaps = []
    for _ in range(40):
        at = insistence.next_time
        assert at is not None
        gaps.append(round(at - now, 6))
        now = at
        assert insistence.due(now, always) == [PATHS[0]]
    assert gaps == [EVERY] * 19 + [SLOWLY] * 21


def test_one_that_was_only_heard_on_gets_a_few() -> None:
    insistence = Insistence()
    sent = len(insistence.add(PATHS[0], 0.0, never))
    for _ in range(UNPROVEN_TIMES * 2):
        if insistence.next_time is None:
            break
        sent += len(insistence.due(insistence.next_time, never))
    assert sent == UNPROVEN_TIMES
    assert len(insistence) == 0
    assert insistence.next_time is None


def test_only_those_that_do_not_work_are_given_up() -> None:
    insistence = Insistence()
    for path in PATHS:
        insistence.add(path, 0.0, always)
    for number in range(UNPROVEN_TIMES):
        insistence.due(number * EVERY, lambda path: path != PATHS[1])
    assert [path in insistence for path in PATHS] == [True, False, True]


def test_it_can_be_stopped() -> None:
    insistence = Insistence()
    insistence.add(PATHS[0], 0.0, always)
    insistence.clear()
    assert insistence.next_time is None
    assert insistence.due(1.0, always) == []
    assert insistence.next_time is None
