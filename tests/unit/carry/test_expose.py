from __future__ import annotations

import pytest

from nat_traverse.carry.expose import Policy
from nat_traverse.carry.specs import parse_exposed
from nat_traverse.wire.request import Address, Kind

T, U, X = Kind.TCP, Kind.UDP, Kind.UNIX


def policy(*texts: str) -> Policy:
    return Policy(map(parse_exposed, texts))


def address(text: str) -> Address:
    """Read `tcp HOST PORT` or `unix PATH`."""
    kind, host, *port = text.split(" ")
    return Address(Kind(kind), host, int(port[0]) if port else 0)


ALLOWED = [
    ("localhost:22", "tcp localhost 22"),
    ("localhost:22", "tcp LocalHost 22"),
    ("localhost:22", "tcp 127.0.0.1 22"),
    ("localhost:22", "tcp ::1 22"),
    ("127.0.0.1:22", "tcp localhost 22"),
    ("[::1]:22", "tcp 127.0.0.1 22"),
    ("127.0.0.1:22", "tcp ::ffff:127.0.0.1 22"),
    ("Gw.Example:22", "tcp gw.example 22"),
    ("[2001:db8::7]:22", "tcp 2001:DB8:0::7 22"),
    ("udp/ns:53", "udp ns 53"),
    ("/run/x", "unix /run/x"),
    ("any", "tcp whatever 1"),
    ("any", "udp whatever 1"),
    ("any", "unix /run/x"),
]

FORBIDDEN = [
    ("localhost:22", "tcp localhost 23"),
    ("localhost:22", "udp localhost 22"),
    ("localhost:22", "tcp 127.0.0.2 22"),
    ("localhost:22", "tcp localhost.example 22"),
    ("localhost:22", "tcp 2130706433 22"),  # 127.0.0.1 in disguise
    ("udp/ns:53", "tcp ns 53"),
    ("/run/x", "unix /run/y"),
    ("/run/x", "unix /run/../run/x"),
    ("/run/x", "unix /run/X"),
    ("any", "tcp 0.0.0.0 22"),
    ("any", "tcp :: 22"),
    ("any", "tcp ::ffff:0.0.0.0 22"),
    ("0.0.0.0:22", "tcp 0.0.0.0 22"),
    ("*:22", "tcp localhost 22"),
]

MAY_LISTEN = [
    ("any", "tcp localhost 0"),
    ("any", "tcp 127.0.0.1 1024"),
    ("any", "tcp 127.0.0.9 65535"),
    ("any", "udp ::1 5353"),
    ("localhost:80", "tcp localhost 80"),
    ("localhost:80", "tcp ::1 80"),
    ("*:8080", "tcp * 8080"),
    ("*:8080", "tcp 0.0.0.0 8080"),
    ("*:8080", "tcp :: 8080"),
    ("0.0.0.0:8080", "tcp 0.0.0.0 8080"),
    ("192.0.2.1:8080", "tcp 192.0.2.1 8080"),
    ("/run/x", "unix /run/x"),
]

MUST_NOT_LISTEN = [
    ("any", "tcp localhost 1023"),
    ("any", "udp localhost 53"),
    ("any", "tcp * 8080"),
    ("any", "tcp 0.0.0.0 8080"),
    ("any", "tcp :: 8080"),
    ("any", "tcp 192.0.2.1 8080"),
    ("any", "tcp example.org 8080"),
    ("any", "unix /run/x"),
    ("localhost:8080", "tcp localhost 8081"),
    ("localhost:8080", "tcp localhost 0"),
    ("localhost:8080", "tcp * 8080"),
    ("0.0.0.0:8080", "tcp * 8080"),
    ("0.0.0.0:8080", "tcp :: 8080"),
    ("*:8080", "tcp 192.0.2.1 8080"),
    ("*:8080", "tcp localhost 8080"),
    ("/run/x", "unix /run/y"),
]


@pytest.mark.parametrize(("exposed", "wanted"), ALLOWED)
def test_what_may_be_reached(exposed: str, wanted: str) -> None:
    assert policy("a:1", exposed).may_connect(address(wanted))


@pytest.mark.parametrize(("exposed", "wanted"), FORBIDDEN)
def test_what_may_not_be_reached(exposed: str, wanted: str) -> None:
    assert not policy("a:1", exposed).may_connect(address(wanted))


@pytest.mark.parametrize(("exposed", "wanted"), MAY_LISTEN)
def test_where_the_peer_may_listen(exposed: str, wanted: str) -> None:
    assert policy("a:1", exposed).may_listen(address(wanted))


@pytest.mark.parametrize(("exposed", "wanted"), MUST_NOT_LISTEN)
def test_where_it_may_not(exposed: str, wanted: str) -> None:
    assert not policy("a:1", exposed).may_listen(address(wanted))


@pytest.mark.parametrize("wanted", ["tcp localhost 8080", "udp localhost 0", "unix /run/x"])
def test_without_a_list_nothing_is_allowed(wanted: str) -> None:
    assert not policy().may_connect(address(wanted))
    assert not policy().may_listen(address(wanted))
