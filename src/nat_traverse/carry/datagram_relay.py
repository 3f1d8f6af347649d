"""The relay of an encrypted tunnel that carries datagrams: one read is one, and so is one write.

The main stream is there as well and carries no bytes: its end is the end of the datagrams. They are
neither repeated nor put in order, and what finds no room is lost, here as on the way.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nat_traverse.carry.stream_relay import StreamEvent, StreamRelay

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from nat_traverse.carry.descriptors import Sink, Source
    from nat_traverse.carry.main_stream import MainStream

# Datagrams read in one go, before receiving and the timers get their turn.
_BURST = 64
# What a read returns at most: a packet socket cuts what is longer, and that is to be noticed.
_LONGEST = 65_536
# Datagrams may be overtaken by the end that follows them: it waits this long (s), ten times the
# reordering that a jittery mobile link shows.
_STRAGGLERS = 0.5


@dataclass(frozen=True, slots=True)
class DatagramTooLarge:
    """Event: a datagram of `size` bytes was not sent, for at most `limit` fit. Told once."""

    size: int
    limit: int


@dataclass(frozen=True, slots=True)
class DatagramsDropped:
    """Event, once: the reader here is too slow, and datagrams are being dropped."""


DatagramEvent = DatagramTooLarge | DatagramsDropped


class DatagramRelay(StreamRelay):
    """Moves datagrams until the tunnel is over; `keeps_packets` as `is_packet_socket` tells it."""

    _is_reliable: ClassVar[bool] = False

    def __init__(
        self,
        main: MainStream,
        source: Source,
        sink: Sink,
        observe: Callable[[DatagramEvent | StreamEvent], None],
        *,
        keeps_packets: bool,
        grace: float | None = None,
    ) -> None:
        super().__init__(main, source, sink, observe, grace=grace)
        self._observe = observe
        self._keeps_packets = keeps_packets
        self._datagram = memoryview(bytearray(_LONGEST))
        self._told: set[type] = set()
        self._late_end: asyncio.TimerHandle | None = None

    def datagram_received(self, data: bytes) -> None:
        """Write a datagram, if what came before it is written."""
        if self._sink.buffered:
            self._tell_once(DatagramsDropped())
        else:
            super().data_received(data)

    def data_received(self, data: bytes) -> None:
        """Ignore bytes: both sides have agreed on datagrams."""

    def eof_received(self) -> None:
        """Let our reader see the end, when late datagrams have had their time."""
        self._late_end = self._loop.call_later(_STRAGGLERS, super().eof_received)

    def datagrams_writable(self) -> None:
        """Read the source again."""
        self.resume_writing()

    def _read(self) -> None:
        """Read datagrams, as long as there is room for them."""
        stream = self._main.stream
        limit = stream.datagram_limit
        view = self._datagram if self._keeps_packets else self._datagram[:limit]
        try:
            for _ in range(_BURST):
                if not stream.has_datagram_room:
                    self._source.pause()
                    return
                size = self._source.readinto(view)
                if size is None:
                    return
                if size == 0:
                    stream.write_eof()
                    self._news.set()
                    return
                if size > limit:
                    self._tell_once(DatagramTooLarge(size, limit))
                else:
                    stream.send_datagram(bytes(view[:size]))
        except Exception as error:  # noqa: BLE001 (handed to whoever awaits `run`)
            self._fail(error)

    def _judge_unread(self, text: str) -> None:
        """Nobody can tell which datagrams were lost; but who has more to send is to know."""
        del text
        if not self._source.ended:
            self._link.closed.result()

    def _stop(self) -> None:
        if self._late_end is not None:
            self._late_end.cancel()
        super()._stop()

    def _tell_once(self, event: DatagramEvent) -> None:
        if type(event) not in self._told:
            self._told.add(type(event))
            self._observe(event)


def is_packet_socket(descriptor: int) -> bool:
    """Tell whether a read of `descriptor` returns one packet, whole, and never parts of two."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return sock.type in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
