"""Endpoints and the socket addresses that Python's `socket` wants: one family, one shape."""

from __future__ import annotations

import socket
from typing import Any, TypeAlias

from nat_traverse.model import Endpoint

# (host, port) for IPv4, (host, port, flow label, scope) for IPv6.
SocketAddress: TypeAlias = tuple[Any, ...]


def sockaddr(to: Endpoint, family: int) -> SocketAddress:
    """Return `to` in the form that sockets of `family` take.

    Raises `ValueError` for an address of another family.
    """
    if to.is_ipv6 != (family == socket.AF_INET6):
        raise ValueError(f"{to} does not fit a socket of family {family}")
    return (to.host, to.port, 0, to.scope) if to.is_ipv6 else (to.host, to.port)


def endpoint_of(address: object) -> Endpoint | None:
    """Return the endpoint in a socket address as a socket returns it, None if it is none."""
    match address:
        case (str(host), int(port)):
            return Endpoint(host, port)
        case (str(host), int(port), int(), int(scope)):
            return Endpoint(host, port, scope)
        case _:
            return None


def endpoint_from(address: SocketAddress) -> Endpoint:
    """Return the endpoint in a socket address: the inverse of `sockaddr`."""
    endpoint = endpoint_of(address)
    if endpoint is None:
        raise ValueError(f"{address!r} is not an Internet address")
    return endpoint
