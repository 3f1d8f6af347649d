from __future__ import annotations

import pytest

from nat_traverse.punch.ttl import FIRST, OpeningTtl

PEER = "203.0.113.2"
ROUTER = "198.51.100.1"
HOME, OFFICE, CARRIER = "192.168.1.1", "10.0.0.1", "100.64.0.1"


def values(ttl: OpeningTtl, turns: int = 6) -> list[int | None]:
    return [ttl.value(turn) for turn in range(turns)]


def test_as_long_as_nothing_was_reported_three_values_are_used_in_turn() -> None:
    assert values(OpeningTtl()) == [2, 4, 7, 2, 4, 7]
    assert OpeningTtl().value() == FIRST


def test_what_the_user_wants_is_not_learned_away() -> None:
    ttl = OpeningTtl(5)
    ttl.learn(HOME, PEER)
    ttl.learn(ROUTER, PEER)
    assert values(ttl, 3) == [5, 5, 5]


def test_zero_is_the_usual_one() -> None:
    ttl = OpeningTtl(0)
    assert values(ttl, 3) == [None, None, None]
    ttl.learn(PEER, PEER)
    assert ttl.value() is None


@pytest.mark.parametrize(("turn", "learned"), [(0, 2), (1, 4), (2, 7)])
def test_the_first_public_router_is_beyond_our_own_gateways(turn: int, learned: int) -> None:
    ttl = OpeningTtl()
    ttl.learn(ROUTER, PEER, turn)
    assert set(values(ttl)) == {learned}
    # The first word counts.
    ttl.learn(HOME, PEER, 1)
    ttl.learn(PEER, PEER, 1)
    assert set(values(ttl)) == {learned}


@pytest.mark.parametrize(
    "reporter", [HOME, OFFICE, "172.31.255.255", CARRIER, "169.254.0.1", "fe80::1%eth0", "fd00::1"]
)
def test_an_opening_has_to_pass_each_router_of_our_own(reporter: str) -> None:
    ttl = OpeningTtl()
    ttl.learn(reporter, PEER)
    assert values(ttl, 3) == [3, 4, 7]
    ttl.learn(reporter, PEER)
    assert values(ttl, 3) == [3, 4, 7]  # the same one again


@pytest.mark.parametrize("reporter", [ROUTER, "172.32.0.1", "100.128.0.1", "2001:db8::1", "?"])
def test_every_other_router_is_public(reporter: str) -> None:
    ttl = OpeningTtl()
    ttl.learn(reporter, PEER, 1)
    assert set(values(ttl)) == {4}


def test_two_gateways_and_then_the_internet() -> None:
    ttl = OpeningTtl()
    ttl.learn(HOME, PEER)
    ttl.learn(CARRIER, PEER)
    assert values(ttl, 3) == [4, 4, 7]
    ttl.learn(ROUTER, PEER, 0)
    assert set(values(ttl)) == {4}


@pytest.mark.parametrize(("turn", "learned"), [(0, 2), (1, 3), (2, 6)])
def test_the_peers_gateway_is_one_hop_too_far(turn: int, learned: int) -> None:
    ttl = OpeningTtl()
    ttl.learn(PEER, PEER, turn)
    assert set(values(ttl)) == {learned}


def test_forged_reports_push_it_no_further_than_eight_hops() -> None:
    ttl = OpeningTtl()
    for number in range(200):
        ttl.learn(f"10.0.0.{number}", PEER)
    assert set(values(ttl)) == {8}
