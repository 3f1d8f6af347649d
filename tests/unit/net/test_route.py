"""What routing knows, on loopback; what it knows of real paths is tested in the lab."""

from __future__ import annotations

import errno
import socket

import pytest

from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint
from nat_traverse.net import features, route
from nat_traverse.net.address import endpoint_from, endpoint_of, sockaddr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_our_own_address(host: str) -> None:
    assert route.source_for(Endpoint(host, 9)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_mtu_of_loopback(host: str) -> None:
    mtu = route.path_mtu(Endpoint(host, 9))
    assert mtu is None if not features.IS_LINUX else (mtu or 0) >= 1280


def test_no_mtu_where_the_platform_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IP_MTU", None)
    assert route.path_mtu(Endpoint("127.0.0.1", 9)) is None


@pytest.mark.parametrize(
    ("number", "host", "text"),
    [
        (errno.ENETUNREACH, "192.0.2.1", "no IPv4 connection that leads there"),
        (errno.ENETUNREACH, "2001:db8::1", "`ip -6 route`"),
        (errno.EACCES, "192.0.2.1", "forbidden on this machine"),
        (errno.EINVAL, "192.0.2.1", "Cannot send to"),
    ],
)
def test_what_the_user_reads(
    monkeypatch: pytest.MonkeyPatch, number: int, host: str, text: str
) -> None:
    class Refusing(socket.socket):
        def connect(self, address: object, /) -> None:
            raise OSError(number, f"refused {address}")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(LocalNetworkError) as caught:
        route.source_for(Endpoint(host, 9))
    assert text in str(caught.value)
    assert caught.value.exit_code == number


def test_no_socket_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "x")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(LocalNetworkError) as caught:
        route.source_for(Endpoint("2001:db8::1", 9))
    assert caught.value.exit_code == errno.ENETUNREACH


@pytest.mark.parametrize("endpoint", [Endpoint("192.0.2.1", 9), Endpoint("fe80::1", 9, 3)])
def test_addresses_and_back(endpoint: Endpoint) -> None:
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    assert endpoint_from(sockaddr(endpoint, family)) == endpoint


@pytest.mark.parametrize("address", [None, "/path", ("a",), ("a", "b"), (1, 2), ("a", 1, 2)])
def test_what_is_no_address(address: object) -> None:
    assert endpoint_of(address) is None


def test_what_can_be_no_address() -> None:
    with pytest.raises(ValueError, match="not an Internet address"):
        endpoint_from(("a",))
