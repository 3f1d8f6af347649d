from __future__ import annotations

import socket

from nat_traverse.demo.stage import Place, Stage, on_loopback
from nat_traverse.model import Endpoint


def stage(left: str, right: str) -> Stage:
    places = (
        Place("left", "drop", Endpoint(left, 40000), list),
        Place("right", "drop", Endpoint(right, 40001), list),
    )
    return Stage(*places, rows=())


def test_each_side_names_the_other_one() -> None:
    both = stage("198.51.100.2", "203.0.113.2")
    assert both.specification(both.left) == "40000:203.0.113.2:40001"
    assert both.specification(both.right) == "40001:198.51.100.2:40000"


def test_ipv6_addresses_stand_in_brackets() -> None:
    both = stage("2001:db8:1::2", "2001:db8:2::2")
    assert both.specification(both.left) == "40000:[2001:db8:2::2]:40001"


def test_loopback_takes_two_free_ports() -> None:
    both = on_loopback()
    assert both.left.public.port != both.right.public.port
    assert both.left.enter(["a", "b"]) == ["a", "b"]
    for place in (both.left, both.right):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((place.public.host, place.public.port))
