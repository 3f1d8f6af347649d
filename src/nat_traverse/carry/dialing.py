"""Connecting to what a forward leads to: TCP, UDP and Unix sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.specs import LOOPBACK
from nat_traverse.carry.streams import explained
from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint
from nat_traverse.net.resolve import resolve
from nat_traverse.wire.request import Kind, Refused, Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nat_traverse.wire.request import Address

# How long looking up and connecting may take (s). Linux itself goes on for two minutes when nobody
# answers, and a user who waits at a prompt has given up by then.
TIME_LIMIT: Final = 10.0
# How long one address has for itself before the next one is tried beside it (s): the "Connection
# Attempt Delay" that RFC 8305, section 5, recommends.
_HEAD_START: Final = 0.25

_WORDS: Final = {
    errno.ECONNREFUSED: Word.REFUSED,
    errno.ENOENT: Word.REFUSED,  # a Unix socket that is not there: nobody listens, either
    errno.EACCES: Word.DENIED,
    errno.EPERM: Word.DENIED,
    errno.EMFILE: Word.BUSY,
    errno.ENFILE: Word.BUSY,
    errno.EAGAIN: Word.BUSY,  # the queue of a Unix socket is full
    errno.EADDRINUSE: Word.BUSY,
}


async def dial(address: Address) -> socket.socket | Refused:
    """Return a connected socket that does not block, or why there is none."""
    try:
        async with asyncio.timeout(TIME_LIMIT):
            if address.kind is Kind.UNIX:
                return await _connected(socket.AF_UNIX, socket.SOCK_STREAM, 0, address.host)
            endpoints = await _endpoints(address)
            if address.kind is Kind.UDP:
                return await _first_routed(endpoints)
            return await _first_connected(endpoints)
    except TimeoutError:
        return Refused(Word.UNREACHABLE, f"no answer within {TIME_LIMIT:g} s")
    except LocalNetworkError:
        return Refused(Word.UNKNOWN_HOST, "there is no such name, or it has no address")
    except OSError as error:
        return refusal(error)


def refusal(error: OSError) -> Refused:
    """Return what an error of the operating system means to the side that asked."""
    return Refused(_WORDS.get(error.errno or 0, Word.UNREACHABLE), explained(error))


async def _endpoints(address: Address) -> Sequence[Endpoint]:
    """Return the addresses to try. `localhost` is what it is everywhere, whatever a file says.

    (RFC 6761, section 6.3.) IPv4 comes first: UDP knows no refusal that would lead to the second
    one, and more services listen there alone than on the other one alone.
    """
    if address.host.lower() == LOOPBACK:
        return [Endpoint(host, address.port) for host in ("127.0.0.1", "::1")]
    return await resolve(address.host, address.port)


async def _first_routed(endpoints: Iterable[Endpoint]) -> socket.socket:
    """Return a UDP socket for the first address that there is a route to."""
    failure: OSError | None = None
    for endpoint in endpoints:
        try:
            return await _dial_endpoint(endpoint, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        except OSError as error:
            failure = failure or error
    raise failure or OSError(errno.EHOSTUNREACH, "")


async def _first_connected(endpoints: Iterable[Endpoint]) -> socket.socket:
    """Return the TCP connection that is there first; the addresses start one after the other.

    An address that fails at once lets the next one start at once. Raises what the first address
    failed with, if all do.
    """
    attempts: list[asyncio.Task[socket.socket]] = []
    try:
        for endpoint in endpoints:
            dialing = _dial_endpoint(endpoint, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            attempts.append(asyncio.ensure_future(dialing))
            await asyncio.wait(
                _running(attempts), timeout=_HEAD_START, return_when=asyncio.FIRST_COMPLETED
            )
            if _winner(attempts) is not None:
                break
        while _winner(attempts) is None and (running := _running(attempts)):
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        winner = _winner(attempts) or attempts[0]
        attempts.remove(winner)
        return winner.result()
    finally:
        _call_off(attempts)


def _running(attempts: list[asyncio.Task[socket.socket]]) -> list[asyncio.Task[socket.socket]]:
    return [each for each in attempts if not each.done()]


def _winner(attempts: list[asyncio.Task[socket.socket]]) -> asyncio.Task[socket.socket] | None:
    return next((each for each in attempts if each.done() and each.exception() is None), None)


def _call_off(attempts: list[asyncio.Task[socket.socket]]) -> None:
    """Cancel what is still connecting, and close what connected too late."""
    for each in attempts:
        each.cancel()
        each.add_done_callback(_close_late)


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _dial_endpoint(endpoint: Endpoint, kind: socket.SocketKind, proto: int) -> socket.socket:
    if endpoint.is_ipv6:
        address = (endpoint.host, endpoint.port, 0, endpoint.scope)
        return await _connected(socket.AF_INET6, kind, proto, address)
    return await _connected(socket.AF_INET, kind, proto, (endpoint.host, endpoint.port))


async def _connected(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    proto: int,
    address: tuple[str | int, ...] | str,
) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
