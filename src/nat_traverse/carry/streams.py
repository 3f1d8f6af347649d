"""What forwards need of a link and its streams, and what all of them share.

A stream is used as any other transport of asyncio: that is what lets a TCP connection and a stream
be put together directly (`splice`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nat_traverse.errors import NatTraverseError, shown
from nat_traverse.wire.request import Refused, Word, split_line

if TYPE_CHECKING:
    from collections.abc import Callable

# Linger for no time at all: closing then resets the connection (POSIX, SO_LINGER).
_NO_LINGER = struct.pack("ii", 1, 0)


class Duplex(Protocol):
    """The part of `asyncio.Transport` that is used of connections and of streams alike."""

    def write(self, data: bytes) -> None:
        """Send, now or later."""

    def write_eof(self) -> None:
        """Send the end; reading goes on."""

    def close(self) -> None:
        """Send what is waiting, then close."""

    def abort(self) -> None:
        """Close at once; the other end sees a reset."""

    def is_closing(self) -> bool:
        """Tell whether it is closed, or about to be."""

    def pause_reading(self) -> None:
        """Stop reading."""

    def resume_reading(self) -> None:
        """Read on; may be called at any time."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change who is told."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 (as asyncio has it)
        """Return `socket`, `peername` and the like."""


class Stream(Duplex, Protocol):
    """One stream of a link."""

    @property
    def number(self) -> int:
        """The same on both sides."""

    @property
    def datagram_limit(self) -> int:
        """Bytes of the largest datagram, at the moment."""

    def send_datagram(self, data: bytes) -> None:
        """Send a datagram that belongs to the stream; it may be lost."""


class Link(Protocol):
    """The way to the peer."""

    on_stream: Callable[[], asyncio.Protocol] | None

    def open_stream(self, protocol: asyncio.Protocol) -> Stream:
        """Open a stream, and call connection_made before returning."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Connections to `address` (which is the peer's for -R) are forwarded."""

    what: str
    address: str


@dataclass(frozen=True, slots=True)
class ListeningEnded:
    """The peer listens for `what` no more."""

    what: str


@dataclass(frozen=True, slots=True)
class ForwardRefused:
    """`what` was refused, on this side or by the peer; `text` says why."""

    what: str
    by_peer: bool
    word: Word
    text: str


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A connection from `client` goes through."""

    what: str
    client: str


ForwardEvent = Listening | ListeningEnded | ForwardRefused | Forwarded


class Open(Protocol):
    """Something that lasts until it is aborted, or ends by itself."""

    def abort(self) -> None:
        """Reset it."""


class Traffic:
    """What all forwards of a run share: the link, who is told, and all that is open.

    `link` is None while there is none. What is open registers with `keep` and takes itself out with
    `forget` when it has closed everything: so the end can be waited for.
    """

    def __init__(self, link: Link | None, observe: Callable[[ForwardEvent], None]) -> None:
        self.link = link
        self.observe = observe
        self._open: dict[int, Open] = {}
        self._settled: asyncio.Future[None] | None = None

    def keep(self, what: Open) -> None:
        """Remember something that is open."""
        self._open[id(what)] = what

    def forget(self, what: Open) -> None:
        """Strike something off that has ended; doing so again changes nothing."""
        self._open.pop(id(what), None)
        if self._settled is not None and not self._open and not self._settled.done():
            self._settled.set_result(None)

    def abort_all(self) -> None:
        """Reset everything that is open."""
        for each in list(self._open.values()):
            each.abort()

    async def settle(self) -> None:
        """Wait until nothing is open any more."""
        if self._open:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled

    def open_stream(self, protocol: asyncio.Protocol) -> Stream | None:
        """Open a stream to the peer; None if the link is down."""
        if self.link is None:
            return None
        try:
            return self.link.open_stream(protocol)
        except (OSError, RuntimeError, NatTraverseError):  # it went down just now
            return None

    def refused_here(self, what: str, refused: Refused) -> None:
        """Tell that this side has refused something."""
        self.observe(ForwardRefused(shown(what), False, refused.word, shown(refused.text)))

    def refused_there(self, what: str, refused: Refused) -> None:
        """Tell that the peer has refused something."""
        self.observe(ForwardRefused(shown(what), True, refused.word, shown(refused.text)))


LINK_DOWN = Refused(Word.UNREACHABLE, "there is no connection to the other side at the moment")
NO_ANSWER = Refused(Word.UNREACHABLE, "no answer: the other side, or the way to it, is gone")


class FirstLine:
    """The first line of a stream, as it arrives piece by piece; what came behind it is `rest`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.rest = b""

    def receive_data(self, data: bytes) -> bytes | None:
        """Return the line when it is complete; raises RemoteProtocolError if it is none."""
        self._data += data
        split = split_line(self._data)
        if split is None:
            return None
        line, self.rest = split
        return line


def hold(transport: asyncio.Transport) -> None:
    """Stop reading of a connection, even before it has begun, as in `connection_made`.

    asyncio of Python 3.11.2, which Debian 12 has, begins to read in the next round of its loop,
    even if it was told not to; what comes then, a protocol that waits would lose. So it is told
    once more.
    """
    transport.pause_reading()
    asyncio.get_running_loop().call_soon(_hold_again, transport)


def _hold_again(transport: asyncio.Transport) -> None:
    if not transport.is_reading() and not transport.is_closing():
        transport.resume_reading()  # else it would believe that there is nothing to do
        transport.pause_reading()


def reset(transport: Duplex) -> None:
    """End a connection in a way that the program at its other end takes for a failure.

    TCP has the reset for that; on a Unix socket, the end is all there is.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        with suppress(OSError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def client_name(transport: asyncio.BaseTransport) -> str:
    """Return who is at the other end of a connection, as a word: `[::1]:55555`, or `local`."""
    name = transport.get_extra_info("peername")
    return endpoint_name(name) if isinstance(name, tuple) else "local"


def endpoint_name(address: tuple[Any, ...]) -> str:
    """Return a socket's address as text."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def explained(error: OSError) -> str:
    """Return the operating system's words for an error, as the middle of a sentence."""
    if error.errno is None or error.errno not in errno.errorcode:
        return str(error)
    text = os.strerror(error.errno)
    return text[:1].lower() + text[1:]
