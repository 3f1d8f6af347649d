from __future__ import annotations

import pytest

from nat_traverse.model import Endpoint, Path
from nat_traverse.punch.route import MOST, MOST_HOSTS, Routes

PEER = Endpoint("203.0.113.2", 40001)
PEER_IPV6 = Endpoint("2001:db8::2", 40001)
AGREED = (Path(0, PEER), Path(1, PEER_IPV6))
MOVED = Path(0, PEER._replace(port=28710))
MOVED_IPV6 = Path(1, PEER_IPV6._replace(port=28710))


def make() -> Routes:
    return Routes(AGREED, 1400)


def test_it_begins_with_the_agreed_ones() -> None:
    routes = make()
    assert [route.path for route in routes] == list(AGREED)
    assert {route.size_limit for route in routes} == {1400}
    assert routes.hosts == {PEER.host, PEER_IPV6.host}
    assert all(routes.is_agreed(path) for path in AGREED)
    assert not routes.is_agreed(MOVED)
    assert not routes.is_agreed(Path(1, PEER))


def test_others_are_added_once() -> None:
    routes = make()
    assert routes.get(MOVED) is None
    added = routes.add(MOVED)
    assert added is not None
    assert added.path == MOVED
    assert routes.add(MOVED) is added is routes.get(MOVED)
    assert len(routes) == 3
    assert not routes.is_agreed(MOVED)
    assert routes.add(AGREED[0]) is routes.get(AGREED[0])


@pytest.mark.parametrize(
    ("path", "agreed"), [(AGREED[1], AGREED[1]), (MOVED, AGREED[0]), (MOVED_IPV6, AGREED[1])]
)
def test_each_host_has_an_agreed_one(path: Path, agreed: Path) -> None:
    routes = make()
    routes.add(path)
    assert routes.of_host(path).path == agreed


def test_of_one_host_on_two_sockets_the_very_path_counts() -> None:
    paths = (Path(0, PEER), Path(1, PEER))
    assert [Routes(paths, 1400).of_host(path).path for path in paths] == list(paths)


ELSEWHERE = Path(0, Endpoint("192.0.2.9", 4000))


def test_another_address_can_be_adopted() -> None:
    routes = make()
    assert routes.adopt(ELSEWHERE)
    assert routes.hosts == {PEER.host, PEER_IPV6.host, ELSEWHERE.remote.host}
    further = Path(0, ELSEWHERE.remote._replace(port=4001))
    assert routes.of_host(further).path == ELSEWHERE
    assert not routes.is_agreed(ELSEWHERE)
    routes.begin_anew()
    assert routes.hosts == {PEER.host, PEER_IPV6.host}
    assert routes.get(ELSEWHERE) is None


def test_so_many_can_be_adopted_and_no_more() -> None:
    routes = make()
    adopted = [
        routes.adopt(Path(0, Endpoint(f"192.0.2.{number}", 4000)))
        for number in range(MOST_HOSTS + 3)
    ]
    assert adopted == [True] * MOST_HOSTS + [False] * 3


def test_none_is_adopted_when_there_are_too_many_paths() -> None:
    routes = make()
    for port in range(1, 200):
        routes.add(Path(0, PEER._replace(port=port)))
    assert not routes.adopt(ELSEWHERE)
    assert routes.hosts == {PEER.host, PEER_IPV6.host}


def test_there_is_an_end_to_them() -> None:
    routes = make()
    added = [routes.add(Path(0, PEER._replace(port=port))) for port in range(1, 200)]
    assert len(routes) == MOST
    assert added[MOST - len(AGREED) :] == [None] * (199 - MOST + len(AGREED))
    assert routes.add(AGREED[1]) is not None


def test_to_begin_anew_is_to_forget_what_works_and_to_keep_what_was_seen() -> None:
    routes = make()
    for path in (AGREED[0], MOVED):
        route = routes.add(path)
        assert route is not None
        route.works, route.nominations = True, 3
        route.evidence.hellos_received = 7
    routes.begin_anew()
    assert [route.path for route in routes] == list(AGREED)
    first = routes.of_host(AGREED[0])
    assert (first.works, first.nominations, first.evidence.hellos_received) == (False, 0, 7)
