from __future__ import annotations

from itertools import pairwise

from nat_traverse.model import Endpoint, Path
from nat_traverse.punch.evidence import PathEvidence
from nat_traverse.punch.nomination import EVERY, SLOWLY, TURN, Nominations
from nat_traverse.punch.route import Route
from nat_traverse.punch.settings import LARGE_DATAGRAM_SIZE
from nat_traverse.wire.hello import Mode


def route(port: int, size_limit: int = 1400) -> Route:
    return Route(Path(0, Endpoint("203.0.113.2", port)), PathEvidence(), size_limit)


def nominate(nominations: Nominations, candidates: list[Route], times: int) -> list[Route]:
    found = []
    for _ in range(times):
        chosen = nominations.choose(candidates)
        nominations.note_sent(chosen, 0.0)
        found.append(chosen)
    return found


def test_the_first_that_will_do_is_nominated() -> None:
    assert Nominations().route is None
    nominations = Nominations()
    first, second = route(1), route(2)
    assert nominations.choose([first, second]) is first
    assert nominations.route is first


def test_it_stays_so_for_a_while_and_then_the_others_have_their_turn() -> None:
    routes = [route(port) for port in (1, 2, 3)]
    found = nominate(Nominations(), routes, 4 * TURN)
    turns = [found[index : index + TURN] for index in range(0, len(found), TURN)]
    assert all(len(set(map(id, turn))) == 1 for turn in turns)
    assert [turn[0] for turn in turns[:3]] == routes
    assert [each.nominations for each in routes] == [2 * TURN, TURN, TURN]


def test_without_others_it_goes_on() -> None:
    only = route(1)
    nominations = Nominations()
    nominate(nominations, [only], TURN)
    assert nominations.choose([]) is only


def test_they_come_quickly_first() -> None:
    nominations, only = Nominations(), route(1)
    now, times = 0.0, [0.0]
    for _ in range(22):
        now = nominations.note_sent(only, now)
        times.append(now)
    gaps = [round(later - earlier, 6) for earlier, later in pairwise(times)]
    assert gaps == [EVERY] * 19 + [SLOWLY] * 3


def test_they_shrink_and_never_exceed_what_the_path_carries() -> None:
    nominations, wide, narrow = Nominations(), route(1), route(2, 1300)
    sizes = []
    for _ in range(10):
        sizes.append((nominations.size(wide), nominations.size(narrow)))
        nominations.note_sent(wide, 0.0)
    assert sizes == [(1400, 1300)] * 4 + [(1232, 1232)] * 4 + [(320, 320)] * 2


def test_large_ones_come_first_where_the_path_may_carry_them() -> None:
    nominations = Nominations(Mode.TUNNEL)
    large, narrow = route(1, LARGE_DATAGRAM_SIZE), route(2, 1420)
    sizes = []
    for _ in range(7):
        sizes.append((nominations.size(large), nominations.size(narrow)))
        nominations.note_sent(large, 0.0)
    assert sizes == [(1452, 1420)] * 2 + [(1400, 1400)] * 4 + [(1232, 1232)]
