"""One stream of a tunnel as an asyncio transport.

Whatever works on a TCP transport works on this one: half-close by `write_eof`, back-pressure by
`pause_reading` and `pause_writing`, `close` that sends what is left, `abort` that does not. A reset
by the peer is `connection_lost(ConnectionResetError)`.

Back-pressure goes from end to end: a paused stream grants no more credit, so its sender stops, and
no other stream waits for that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from nat_traverse.tunnel.events import Closing

if TYPE_CHECKING:
    from nat_traverse.link.link import Link

# Bytes written and not yet handed to the engine, at which the protocol is asked to pause, and at
# which it may go on. The engine holds as much again; a burst of the event loop is below that.
_HIGH_WATER = 256 * 1024
_LOW_WATER = 64 * 1024


class Stream(asyncio.Transport):
    """One stream; made by `Link`.

    `number` is -1 while the peer allows no more streams, which wait for others to end.
    """

    def __init__(self, link: Link, number: int, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"peername": link.peer[:2]})
        self.number = number
        # Set it to True to call `finish_receiving` yourself, when all has gone where it belongs.
        self.holds_end = False
        self.written = 0  # bytes, since the stream began
        self._link = link
        self._protocol = protocol
        self._buffer: deque[bytes] = deque()
        self._buffered = 0
        self._high, self._low = _HIGH_WATER, _LOW_WATER
        self._protocol_paused = False
        self._eof_wanted = False  # write_eof or close was called
        self._eof_sent = False
        self._is_stopped = False  # by the peer, which reads no more: what is written is dropped
        self._is_broken = False  # something was dropped
        self._unread: deque[bytes] = deque()
        self._paused = False
        self._fin_received = False
        self._fin_delivered = False
        self._closing = False
        self._lost = False

    # -- asyncio.BaseTransport ----------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol take what arrives."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that takes what arrives."""
        return self._protocol

    def is_closing(self) -> bool:
        """Tell whether it is closed or about to be."""
        return self._closing

    def close(self) -> None:
        """Send what is left and the end; take no more of what arrives."""
        if self._closing:
            return
        self._closing = True
        self._eof_wanted = True
        self._unread.clear()
        self._stop_receiving(Closing.NOT_READING)
        self.pump()
        self._end_if_closed()
        self._link.wake()

    # -- asyncio.ReadTransport ----------------------------------------------------------------

    def is_reading(self) -> bool:
        """Tell whether what arrives is handed on."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Hand nothing on; the peer is made to wait."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand on what has arrived meanwhile, and what arrives."""
        if self._paused:
            self._paused = False
            self._link.loop.call_soon(self._deliver)

    # -- asyncio.WriteTransport ---------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send `data`, now or later."""
        if self._eof_wanted and not self._closing:
            raise RuntimeError("cannot write after write_eof")
        if self._eof_wanted or self._is_stopped or self._lost or not len(data):
            self._is_broken = self._is_broken or (self._is_stopped and len(data) > 0)
            return
        view = memoryview(data).cast("B")
        self.written += len(view)
        if not self._buffer:
            taken = min(len(view), self._link.tunnel.room(self.number))
            if taken:
                self._link.tunnel.send(self.number, view[:taken])
                view = view[taken:]
            self._link.wake()
        if len(view):
            self._buffer.append(bytes(view))
            self._buffered += len(view)
            self._link.wants_to_write(self)
            self._check_high_water()

    def write_eof(self) -> None:
        """End this side's half when all is sent; the other half goes on."""
        if not self._eof_wanted:
            self._eof_wanted = True
            self.pump()
            self._link.wake()

    def can_write_eof(self) -> bool:
        """Tell that the two halves end apart."""
        return True

    def abort(self) -> None:
        """End both halves at once; the peer's protocol sees a reset."""
        self._break(None)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes are written and not yet handed to the engine."""
        return self._buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high water mark in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the water marks in bytes, as asyncio describes it."""
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"low water at {low} bytes, high water at {high}")
        self._high, self._low = high, low
        self._check_high_water()

    # -- beyond asyncio -----------------------------------------------------------------------

    @property
    def datagram_limit(self) -> int:
        """The most bytes that an unreliable datagram may have."""
        return self._link.tunnel.datagram_limit

    def send_datagram(self, data: bytes) -> None:
        """Send an unreliable, unordered datagram that belongs to this stream.

        Raises ValueError if it is larger than `datagram_limit`.
        """
        if self.number >= 0 and not self._lost:
            self._link.tunnel.send_datagram(self.number, data)
            self._link.wake()

    @property
    def has_datagram_room(self) -> bool:
        """True if a datagram that is sent now is not dropped here.

        Else the protocol's method `datagrams_writable` is called when there is room again.
        """
        if self._link.tunnel.has_datagram_room:
            return True
        self._link.wants_datagrams(self)
        return False

    def finish_receiving(self) -> None:
        """Say that all which arrived has gone where it belongs (see `holds_end`)."""
        self._link.tunnel.finish_receiving(self.number)
        self._link.wake()

    # -- for the link -------------------------------------------------------------------------

    def start(self) -> None:
        """Introduce the protocol."""
        self._tell("connection_made", self)

    def opened(self, number: int) -> None:
        """Begin in earnest: the peer allows one more stream."""
        self.number = number
        if self._closing:
            self._link.tunnel.stop(number, Closing.NOT_READING)

    def pump(self) -> bool:
        """Hand the engine what it has room for; True if there is more that has to wait."""
        tunnel = self._link.tunnel
        while self._buffer and (room := tunnel.room(self.number)):
            first = self._buffer.popleft()
            taken = first[:room]
            if len(first) > room:
                self._buffer.appendleft(first[room:])
            self._buffered -= len(taken)
            tunnel.send(self.number, taken)
        if self._eof_wanted and not self._buffer and not self._eof_sent and self.number >= 0:
            self._eof_sent = True
            if tunnel.is_sending(self.number):
                tunnel.send(self.number, b"", fin=True)
            self._end_if_closed()
        self._check_low_water()
        return bool(self._buffer)

    def receive(self, data: bytes, *, fin: bool) -> None:
        """Take what the peer sent."""
        if self._closing:
            return
        if data:
            self._unread.append(data)
        self._fin_received = self._fin_received or fin
        self._deliver()

    def receive_datagram(self, data: bytes) -> None:
        """Hand an unreliable datagram to a protocol that wants them."""
        if not self._closing and hasattr(self._protocol, "datagram_received"):
            self._tell("datagram_received", data)

    def offer_datagram_room(self) -> None:
        """Tell the protocol that datagrams may be sent again."""
        if not self._closing:
            self._tell("datagrams_writable")

    def receive_reset(self) -> None:
        """Take the peer's word that it gave up sending."""
        self._link.tunnel.reset(self.number)
        self._lose(ConnectionResetError("the other side reset the stream"))

    def receive_stop(self) -> None:
        """Take the peer's word that it does not want to hear more."""
        self._is_broken = bool(self._buffer)
        self._buffer.clear()
        self._buffered = 0
        self._is_stopped = self._eof_sent = True
        self._check_low_water()
        if self._closing:
            self._lose(None)
        elif self._fin_delivered:
            self._lose_if_stopped()

    def lose(self, error: Exception | None) -> None:
        """End, because the tunnel has; nothing is wrong if nothing is missing."""
        self._lose(None if self._fin_delivered and not self._buffer else error)

    # -- inside -------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand on what has arrived, as long as it is wanted."""
        while self._unread and not self._paused and not self._closing:
            data = self._unread.popleft()
            self._link.tunnel.consume(self.number, len(data))
            self._tell("data_received", data)
        self._link.wake()
        if self._unread or self._paused or self._closing or not self._fin_received:
            return
        if not self._fin_delivered:
            self._fin_delivered = True
            if not self.holds_end:
                self._link.tunnel.finish_receiving(self.number)
            if not self._tell("eof_received"):
                self.close()
            self._lose_if_stopped()

    def _check_high_water(self) -> None:
        if self._buffered > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._tell("pause_writing")

    def _check_low_water(self) -> None:
        if self._protocol_paused and self._buffered <= self._low:
            self._protocol_paused = False
            self._tell("resume_writing")

    def _stop_receiving(self, code: int) -> None:
        """Let the peer know that nothing more is going to be taken of what it sends."""
        if not self._fin_received:
            self._link.tunnel.stop(self.number, code)
        elif not self._fin_delivered:
            self._link.tunnel.finish_receiving(self.number)  # it can't be told to stop any more

    def _break(self, error: Exception | None) -> None:
        """End both halves at once."""
        if self._lost:
            return
        self._closing = True
        self._link.tunnel.reset(self.number)
        self._stop_receiving(Closing.STOPPED)
        self._lose(error)
        self._link.wake()

    def _lose_if_stopped(self) -> None:
        """End when the peer has ended its half and does not want to hear of ours.

        It is an error where something was written to it, and else what any peer that closes does.
        """
        if self._is_stopped:
            error = BrokenPipeError("the other side does not read any more")
            self._lose(error if self._is_broken else None)

    def _end_if_closed(self) -> None:
        if self._closing and self._eof_sent and not self._buffer:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._buffer.clear()
        self._unread.clear()
        self._buffered = 0
        self._link.forget(self)
        self._link.loop.call_soon(self._tell, "connection_lost", error)

    def _tell(self, what: str, *arguments: object) -> object:
        """Call the protocol; what goes wrong there ends this stream and nothing else."""
        try:
            return getattr(self._protocol, what)(*arguments)
        except Exception as error:  # noqa: BLE001 (handed to the loop's handler, as asyncio does)
            self._link.loop.call_exception_handler(
                {"message": f"{what} failed", "exception": error, "protocol": self._protocol}
            )
            self._break(error)
            return True
