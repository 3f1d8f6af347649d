"""Names to addresses: all of them, of both families, in the order of RFC 6724.

A peer may have several addresses, and which of them can be reached is not known before it is
tried; so all are handed on, and the caller tries them side by side.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

# A host has a handful of addresses. Whoever controls a name must not be able to point us, with all
# our packets, at any number of hosts at once.
MAX_ADDRESSES: Final = 16

_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_MAPPED_SIZE: Final = len(_MAPPED)

_AddressInfo = tuple[Any, Any, Any, Any, tuple[Any, ...]]


async def resolve(host: str, port: int) -> list[Endpoint]:
    """Return the endpoints that `host` stands for, the best first, at least 1 and at most 16.

    An address is returned as it is, at once. A name is looked up in a thread, which a cancelled
    caller does not wait for. Raises `LocalNetworkError` (22, as 0.7) when there is none.
    """
    literal = parse_literal(host, port)
    if literal is not None:
        return [literal]
    try:
        found = await _look_up(host, port)
    except (OSError, ValueError) as error:  # ValueError: a label too long, a null character
        raise _explained(host, error) from error
    endpoints = select(found)
    if not endpoints:
        raise _explained(host, None)
    return endpoints


def parse_literal(host: str, port: int) -> Endpoint | None:
    """Return the endpoint for a written-out IPv4 or IPv6 address, or None for anything else.

    An IPv6 address may have a zone (RFC 4007, section 11): `fe80::1%eth0` or `fe80::1%2`.
    """
    address, percent, zone = host.partition("%")
    if not percent:
        with suppress(OSError, ValueError):
            return _endpoint(socket.AF_INET, socket.inet_pton(socket.AF_INET, address), port)
    with suppress(OSError, ValueError):
        packed = socket.inet_pton(socket.AF_INET6, address)
        scope = _scope(zone) if percent else 0
        return _endpoint(socket.AF_INET6, packed, port, scope)
    return None


def select(found: Iterable[_AddressInfo]) -> list[Endpoint]:
    """Return the distinct endpoints in what `getaddrinfo` returned, in its order, at most 16.

    A name may be a number in disguise (`0x0`, `224.1`) or lead anywhere: what stands for no host,
    or for many, is left out.
    """
    endpoints: dict[Endpoint, None] = {}
    for family, _type, _proto, _name, address in found:
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
        scope = int(address[3]) if family == socket.AF_INET6 else 0
        endpoint = _endpoint(family, packed, int(address[1]), scope)
        if _is_one_host(endpoint):
            endpoints.setdefault(endpoint)
    return list(endpoints)[:MAX_ADDRESSES]


def _endpoint(family: int, packed: bytes, port: int, scope: int = 0) -> Endpoint:
    """Return the endpoint with its address in canonical text (RFC 5952)."""
    if family == socket.AF_INET6 and packed.startswith(_MAPPED):
        family, packed, scope = socket.AF_INET, packed[_MAPPED_SIZE:], 0
    return Endpoint(socket.inet_ntop(family, packed), port, scope)


def _is_one_host(endpoint: Endpoint) -> bool:
    address = ipaddress.ip_address(endpoint.host)
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")  # RFC 919, section 7
    return not (address.is_unspecified or address.is_multicast or broadcast)


def _scope(zone: str) -> int:
    return int(zone) if zone.isascii() and zone.isdigit() else socket.if_nametoindex(zone)


async def _look_up(host: str, port: int) -> list[_AddressInfo]:
    """Run `getaddrinfo` in a thread of its own.

    Not in asyncio's executor: that is waited for when the loop ends, and a resolver without an
    answer takes half a minute, which would be half a minute after Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[_AddressInfo]] = loop.create_future()

    def deliver(found: list[_AddressInfo] | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found or [])

    def ask() -> None:
        found: list[_AddressInfo] | None = None
        error: Exception | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, ValueError) as failure:
            error = failure
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, found, error)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await answer


def _explained(host: str, error: Exception | None) -> LocalNetworkError:
    code = error.errno if isinstance(error, socket.gaierror) else None
    if code == socket.EAI_AGAIN:
        text = (
            f"Cannot look up {host}: the name server does not answer. Is this machine online? Try"
            " again, or give the peer's address instead of its name."
        )
    else:
        text = (
            f"Unknown host {host}: there is no such name, or it has no address of a host. Check the"
            " spelling, or give the peer's address instead of its name."
        )
    return LocalNetworkError(text, errno.EINVAL)
