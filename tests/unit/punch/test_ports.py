from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.punch.ports import FIRST_PORT, PORTS, PortOrder, after, wrap

AGREED = 40_001
ALL = range(FIRST_PORT, 65_536)


def ports(order: PortOrder, number: int = PORTS) -> list[int]:
    return list(islice(iter(order.next_port, None), number))


def chance(seed: int) -> bytes:
    return random.Random(seed).randbytes(16)


@pytest.mark.parametrize("seed", range(5))
def test_every_port_but_the_agreed_one_is_tried_exactly_once(seed: int) -> None:
    order = PortOrder(AGREED, chance(seed))
    found = ports(order)
    assert len(found) == len(set(found)) == PORTS - 1 == 64_511
    assert set(found) == set(ALL) - {AGREED}
    assert order.next_port() is None


def test_the_neighbours_of_the_agreed_port_come_first() -> None:
    assert ports(PortOrder(AGREED, chance(1)), 8) == list(range(AGREED + 1, AGREED + 9))
    assert ports(PortOrder(65_533, chance(1)), 4) == [65_534, 65_535, 1024, 1025]


def test_likely_ones_come_before_them_and_not_twice() -> None:
    order = PortOrder(AGREED, chance(1), likely=[5000, AGREED, AGREED + 1, 5000])
    assert ports(order, 4) == [5000, AGREED + 1, AGREED + 2, AGREED + 3]


def test_what_is_preferred_later_is_next() -> None:
    order = PortOrder(AGREED, chance(1), likely=[5000])
    order.prefer([6000, 6001])
    assert ports(order, 3) == [6000, 6001, 5000]
    order.prefer([6000, 7000])
    assert ports(order, 2) == [7000, AGREED + 1]


def test_what_was_tried_is_known() -> None:
    order = PortOrder(AGREED, chance(1))
    (port,) = ports(order, 1)
    assert order.was_tried(port)
    assert not order.was_tried(port + 1)


def test_three_in_four_are_from_the_upper_half() -> None:
    found = ports(PortOrder(AGREED, chance(2)), 1208)[8:]
    assert sum(port >= 32_768 for port in found) == 900


def test_the_order_depends_on_chance() -> None:
    one, other = (ports(PortOrder(AGREED, chance(seed)), 1000)[8:] for seed in (1, 2))
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    assert one == ports(PortOrder(AGREED, chance(1)), 1000)[8:]


@pytest.mark.parametrize("first", [1024, 5000, 20_000, 32_000, 33_000, 50_000, 65_283])
@pytest.mark.parametrize("seed", range(10))
def test_a_row_of_ports_is_found_soon(first: int, seed: int) -> None:
    """253 in a row, of a gateway that counts upwards: one of 512 spread ones in its half is it."""
    found = ports(PortOrder(AGREED, chance(seed)), 1330)
    hit = next(number for number, port in enumerate(found) if first <= port < first + 253)
    assert hit < (400 if first >= 32_768 else 1000)


@pytest.mark.parametrize("seed", range(5))
def test_scattered_ports_are_found_as_often_as_by_chance(seed: int) -> None:
    lots = random.Random(seed)
    found = set(ports(PortOrder(AGREED, chance(seed)), 1330))
    hits = sum(bool(found & set(lots.sample(range(1024, 65_536), 253))) for _ in range(300))
    assert hits >= 290  # 99.5 % by theory


def test_after_a_port_come_the_next_ones_and_then_every_eighth() -> None:
    assert after(5000)[:8] == list(range(5001, 5009))
    assert after(5000)[8:] == list(range(5016, 5513, 8))
    assert after(65_535)[0] == 1024


@pytest.mark.parametrize("ahead", range(1, 257))
def test_after_meets_any_row_of_250_that_begins_within_the_next_512(ahead: int) -> None:
    begin = 5000 + 2 * ahead - 1
    assert set(after(5000)) & set(range(begin, begin + 250))


@given(st.integers(-200_000, 200_000))
def test_wrap(port: int) -> None:
    assert wrap(port) in ALL
    assert (wrap(port) - port) % PORTS == 0


@given(
    st.integers(1, 65_535), st.binary(min_size=8, max_size=16), st.lists(st.integers(1024, 65535))
)
def test_no_port_twice_whatever_is_preferred(
    agreed: int, random_bytes: bytes, preferred: list[int]
) -> None:
    order = PortOrder(agreed, random_bytes, likely=preferred[::2])
    found = ports(order, 20)
    order.prefer(preferred)
    found += ports(order, 200)
    assert len(found) == len(set(found))
    assert agreed not in found
    assert all(port in ALL for port in found)
