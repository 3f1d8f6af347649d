"""The main stream: the one that carries standard input and output, or those of a command.

The QUIC client opens it, and begins it, as every stream, with a line that says what it is.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING, Protocol

from nat_traverse.errors import PeerGoneError, RemoteProtocolError
from nat_traverse.tunnel.events import Closing
from nat_traverse.wire.request import Plain, decode_request, encode_request, split_line

if TYPE_CHECKING:
    from nat_traverse.link.link import Link
    from nat_traverse.link.stream import Stream


# Datagrams that wait for a user: a burst at the start, before a command runs here.
_DATAGRAMS = 64


class User(Protocol):
    """Who uses the main stream at the moment."""

    def data_received(self, data: bytes) -> None:
        """Take bytes, in order."""

    def datagram_received(self, data: bytes) -> None:
        """Take a datagram."""

    def eof_received(self) -> None:
        """Learn that there will be no more bytes."""

    def pause_writing(self) -> None:
        """Write no more for now."""

    def resume_writing(self) -> None:
        """Write on."""

    def datagrams_writable(self) -> None:
        """Send datagrams again."""


class MainStream(asyncio.Protocol):
    """The main stream of a link, from its beginning; one user after the other may have it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.is_writable = True
        self.has_ended = False  # the peer's half has, and its user was told
        self.taken = 0  # bytes of the peer's that were written here, for whichever user
        self._user: User | None = None
        self._stream: Stream | None = None
        self._opened = link.loop.create_future()
        self._line: bytearray | None = None if link.tunnel.is_client else bytearray()
        self._early: list[bytes] = []
        self._early_datagrams: deque[bytes] = deque(maxlen=_DATAGRAMS)
        self._overhead = 0  # bytes of our half that are nobody's data
        if link.tunnel.is_client:
            link.open_stream(self)
            self.stream.write(encode_request(Plain()))
            self._overhead = self.stream.written
        else:
            link.on_stream = self._accept

    @property
    def stream(self) -> Stream:
        """The stream, once `wait` has returned."""
        if self._stream is None:
            raise AssertionError("the main stream is not open yet")
        return self._stream

    @property
    def written(self) -> int:
        """Bytes of data that were given to the stream, whether or not they have gone out."""
        return self.stream.written - self._overhead

    async def wait(self) -> None:
        """Wait until the stream is there; raises what ended the tunnel, if it ends before."""
        if self._opened.done():
            return  # on another event loop perhaps, which is gone
        closed = self.link.closed
        await asyncio.wait({self._opened, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not self._opened.done():
            closed.result()
            raise PeerGoneError("The other side left before it began.", errno.ECONNRESET)

    def attach(self, user: User) -> None:
        """Let `user` have what comes from now on."""
        self._user = user
        self.stream.resume_reading()  # first: the user may have too much at once
        for data in self._early:
            user.data_received(data)
        self._early.clear()
        while self._early_datagrams:
            user.datagram_received(self._early_datagrams.popleft())
        if self.has_ended:
            user.eof_received()

    def detach(self) -> None:
        """Keep what comes until there is another user."""
        self._user = None
        self.stream.pause_reading()

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the stream; it waits for a user."""
        self._stream = transport  # type: ignore[assignment]  # a link has no other transports
        self.stream.holds_end = True
        if self._line is None:
            self.stream.pause_reading()
            self._opened.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Hand on what arrives; the first line is ours."""
        if self._line is not None:
            self._line += data
            self._take_line(self._line)
        elif self._user is None:
            self._early.append(data)
        else:
            self._user.data_received(data)

    def datagram_received(self, data: bytes) -> None:
        """Hand on a datagram; the last ones wait until there is a user."""
        if self._user is None:
            self._early_datagrams.append(data)
        else:
            self._user.datagram_received(data)

    def eof_received(self) -> bool:
        """Hand on the end; our half goes on."""
        self.has_ended = True
        if self._user is not None:
            self._user.eof_received()
        return True

    def pause_writing(self) -> None:
        """Hand on that enough is written."""
        self.is_writable = False
        if self._user is not None:
            self._user.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that more may be written."""
        self.is_writable = True
        if self._user is not None:
            self._user.resume_writing()

    def datagrams_writable(self) -> None:
        """Hand on that datagrams may be sent."""
        if self._user is not None:
            self._user.datagrams_writable()

    def _accept(self) -> asyncio.Protocol:
        """Take the first stream that the peer opens; there is no other."""
        self.link.on_stream = None
        return self

    def _take_line(self, line: bytearray) -> None:
        try:
            cut = split_line(line)
            if cut is None:
                return
            head, rest = cut
            request = decode_request(head)
        except RemoteProtocolError as error:
            self.link.abort(Closing.PROTOCOL, str(error))
            return
        if request != Plain():
            self.link.abort(Closing.PROTOCOL, "a forward in place of the main stream")
            return
        self._line = None
        self.stream.pause_reading()
        if rest:
            self._early.append(rest)
        self._opened.set_result(None)
