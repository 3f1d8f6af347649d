"""Two links that are connected to each other in memory, with streams as the real ones have them.

A stream behaves as any transport of asyncio: it can be paused, half-closed, closed and aborted,
and tells its protocol when enough is waiting. Datagrams go beside it, and can be made to get lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

HIGH_WATER = 64 * 1024  # bytes; what asyncio's own transports have
LOW_WATER = 16 * 1024


class FakeStream(asyncio.Transport):
    """One end of a stream."""

    other: FakeStream

    def __init__(self, link: FakeLink, number: int, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.number = number
        self.datagram_limit = 1200
        self.link = link
        self.protocol = protocol
        self.received: deque[bytes] = deque()
        self.peer_ended = False  # no more will be received
        self.eof_told = False
        self.ended = False  # no more will be written
        self.closing = False
        self.lost = False
        self.paused = False
        self.writing_paused = False
        self.scheduled = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended or self.closing, "written after the end"
        if not data or self.closing or self.other.closing:
            return
        self.other.received.append(bytes(data))
        self.other.schedule()
        if not self.writing_paused and self.get_write_buffer_size() > HIGH_WATER:
            self.writing_paused = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        if not self.ended:
            self.ended = True
            self.other.peer_ended = True
            self.other.schedule()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closing:
            self.write_eof()
            self.closing = True
            self.received.clear()
            self.schedule()

    def abort(self) -> None:
        if self.lost:
            return
        self.lose(None)
        self.other.lose(ConnectionResetError("reset by the peer"))

    def lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = self.closing = self.ended = True
            self.received.clear()
            self.link.streams.discard(self)
            asyncio.get_running_loop().call_soon(lambda: self.protocol.connection_lost(exc))

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        if self.paused:
            self.paused = False
            self.schedule()

    def is_reading(self) -> bool:
        return not self.paused and not self.closing

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.other.received))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def send_datagram(self, data: bytes) -> None:
        if len(data) > self.datagram_limit:
            raise ValueError(f"{len(data)} bytes are too many for a datagram")
        self.link.datagrams += 1
        if not self.link.losing:
            asyncio.get_running_loop().call_soon(self.other.take_datagram, bytes(data))

    def take_datagram(self, data: bytes) -> None:
        receive = getattr(self.protocol, "datagram_received", None)
        if receive is not None and not self.closing:
            receive(data)

    def schedule(self) -> None:
        if not self.scheduled and not self.lost:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.work)

    def work(self) -> None:
        """Hand over one piece of what has arrived, so that all streams get their turn."""
        self.scheduled = False
        if self.lost:
            return
        if self.closing:
            if not self.other.received:
                self.lose(None)
            return
        if self.paused:
            return
        if self.received:
            self.protocol.data_received(self.received.popleft())
            self.other.note_room()
            self.schedule()
        elif self.peer_ended and not self.eof_told:
            self.eof_told = True
            if not self.protocol.eof_received():
                self.close()

    def note_room(self) -> None:
        if self.closing:
            self.schedule()
        elif self.writing_paused and self.get_write_buffer_size() <= LOW_WATER:
            self.writing_paused = False
            self.protocol.resume_writing()


class FakeLink:
    """One end of a link."""

    other: FakeLink

    def __init__(self, first_number: int) -> None:
        self.on_stream: Callable[[], asyncio.Protocol] | None = None
        self.streams: set[FakeStream] = set()
        self.losing = False  # datagrams
        self.datagrams = 0  # that were sent
        self.down = False
        self._number = first_number

    def open_stream(self, protocol: asyncio.Protocol) -> FakeStream:
        if self.down:
            raise ConnectionResetError("the link is down")
        accept = self.other.on_stream
        assert accept is not None, "nobody accepts streams"
        mine = FakeStream(self, self._number, protocol)
        theirs = FakeStream(self.other, self._number, accept())
        self._number += 4
        mine.other, theirs.other = theirs, mine
        self.streams.add(mine)
        self.other.streams.add(theirs)
        protocol.connection_made(mine)
        theirs.protocol.connection_made(theirs)
        return mine

    def fail(self) -> None:
        """Be cut off, as at the end of the path: each stream on both sides is reset."""
        for link in (self, self.other):
            link.down = True
            for stream in list(link.streams):
                stream.lose(ConnectionResetError("the link is down"))


def links() -> tuple[FakeLink, FakeLink]:
    """Return two links that lead to each other."""
    one, other = FakeLink(0), FakeLink(1)
    one.other, other.other = other, one
    return one, other
