"""Listening sockets: both loopback addresses, one address, all addresses, or a path."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.specs import LOOPBACK
from nat_traverse.carry.streams import explained
from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint
from nat_traverse.net.resolve import resolve
from nat_traverse.wire.request import ANYWHERE, Address, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

# A Unix socket is for its owner, as a forward on loopback is not: 0600.
_UMASK: Final = 0o177

# How often a port that is free in one family may be taken in the other one.
_ATTEMPTS: Final = 16

# What the kernel says of a family or an address that this host does not have.
_MISSING: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

_BOTH: Final = {
    LOOPBACK: ("127.0.0.1", "::1"),
    ANYWHERE: ("0.0.0.0", "::"),  # noqa: S104 (an asterisk was written for it)
}


@dataclass(frozen=True, slots=True)
class Bound:
    """Sockets that are bound, and where: `address` has the port that the kernel has chosen."""

    address: Address
    sockets: tuple[socket.socket, ...]
    inode: int = 0  # of a Unix socket's file

    @property
    def place(self) -> str:
        """Where one can connect to, for the user."""
        return self.address.place

    def close(self) -> None:
        """Close the sockets, and remove the file unless it is somebody else's by now."""
        for sock in self.sockets:
            sock.close()
        if self.address.kind is Kind.UNIX:
            with suppress(OSError):
                path = Path(self.address.host)
                if path.stat().st_ino == self.inode:
                    path.unlink()


async def bind(address: Address) -> Bound:
    """Bind sockets for `address`; raises LocalNetworkError with the errno.

    Of two addresses that belong together, one may be missing, but none may be taken: who connects
    to the name would reach two programs.
    """
    try:
        if address.kind is Kind.UNIX:
            return _bind_path(address)
        return _bind_all(address, await _hosts(address))
    except OSError as error:
        number = error.errno or errno.EADDRNOTAVAIL
        text = f"Cannot listen at {address.place}: {explained(error)}.{_hint(address, number)}"
        raise LocalNetworkError(text, number) from error


async def _hosts(address: Address) -> Sequence[Endpoint]:
    hosts = _BOTH.get(address.host.lower())
    if hosts is not None:
        return [Endpoint(host, address.port) for host in hosts]
    return (await resolve(address.host, address.port))[:1]


def _bind_all(address: Address, endpoints: Sequence[Endpoint]) -> Bound:
    """Bind them, more than once if the kernel chooses the port and the other family has it."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return _bind_each(address, endpoints)
        except OSError as error:
            if address.port or error.errno != errno.EADDRINUSE:
                raise
    return _bind_each(address, endpoints)


def _bind_each(address: Address, endpoints: Sequence[Endpoint]) -> Bound:
    """Bind a socket for each endpoint, all with the port that the first one got."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    port = address.port
    try:
        for endpoint in endpoints:
            try:
                sockets.append(_bind_one(address.kind, endpoint._replace(port=port)))
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                missing = error
            else:
                port = int(sockets[0].getsockname()[1])
        if missing is not None and not sockets:
            raise missing
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return Bound(address._replace(port=port), tuple(sockets))


def _bind_one(kind: Kind, endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    if kind is Kind.UDP:
        sock = socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    else:
        # The protocol is named, since asyncio goes by it when it turns off Nagle's algorithm.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        if kind is Kind.TCP:
            # Connections of an earlier run that linger in TIME_WAIT don't hold the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((endpoint.host, endpoint.port, 0, endpoint.scope))
        else:
            sock.bind((endpoint.host, endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_path(address: Address) -> Bound:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Set before, so that the file never has any other mode, not for a moment.
    former = os.umask(_UMASK)
    try:
        sock.setblocking(False)
        sock.bind(address.host)
        return Bound(address, (sock,), Path(address.host).stat().st_ino)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(former)


def _hint(address: Address, number: int) -> str:
    if number == errno.EADDRINUSE and address.kind is Kind.UNIX:
        return " The file exists already: remove it if no program uses it, or take another path."
    if number == errno.EADDRINUSE:
        return " Another program has this port: take another one, or 0 for any that is free."
    if number == errno.EACCES and address.kind is not Kind.UNIX:
        return " Ports below 1024 are the system's: take a higher one, or ask for it as root."
    return ""
