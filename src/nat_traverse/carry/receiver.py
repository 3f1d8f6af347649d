"""From the path to a sink: datagrams come in runs, and the tunnel's messages are parted from data.

While the sink's reader is slow the sink buffers, and the tunnel keeps the peer waiting. A peer of
generation 0.7 can't be asked to wait: what no longer fits is dropped and counted. The path goes on
being read, since the proof that the peer lives comes on it too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_traverse.carry.descriptors import LIMIT
from nat_traverse.net.address import endpoint_from
from nat_traverse.net.offload import MAX_DATAGRAM
from nat_traverse.wire.hello import MAGIC_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.descriptors import Sink
    from nat_traverse.net.address import SocketAddress
    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.tunnel.plain import PlainTunnel

# Runs of datagrams taken in one go, before sending and the timers get their turn: 2 MiB at most.
RUNS = 32


@dataclass(frozen=True, slots=True)
class OutputOverflowed:
    """Event, once: the reader of our output is too slow, and datagrams are being dropped."""


class Receiver:
    """Takes what arrives on the tunnel's path and writes the data to `sink`.

    `may_stop_reading` is for a sink that a command reads, which may not want its input and go on
    writing; what arrives then is counted and forgotten. Else BrokenPipeError is raised.
    """

    def __init__(
        self,
        socket: UdpSocket,
        tunnel: PlainTunnel,
        sink: Sink,
        observe: Callable[[OutputOverflowed], None],
        *,
        may_stop_reading: bool,
    ) -> None:
        self._socket = socket
        self._tunnel = tunnel
        self._sink = sink
        self._observe = observe
        self._may_stop_reading = may_stop_reading
        self._loop = asyncio.get_running_loop()
        self._from: SocketAddress | None = None  # how the kernel spells the peer's address
        self._incoming = bytearray(MAX_DATAGRAM)
        self._unread = False  # the command has closed its input
        self._overflowed = False

    def receive(self) -> None:
        """Take runs of datagrams from the path, and hand them on."""
        view = memoryview(self._incoming)
        for _ in range(RUNS):
            run = self._socket.receive_into(self._incoming)
            if run is None:
                return
            if run.address == self._from or self._is_peer(run.address):
                self._sort(view[: run.length], run.segment_size)

    def deliver(self, data: memoryview, size: int = MAX_DATAGRAM) -> None:
        """Write `data`, which came in datagrams of `size` bytes."""
        if not data or self._tunnel.peer_finished:
            return
        if not self._unread and self._sink.buffered + len(data) > LIMIT:
            if not self._overflowed:
                self._overflowed = True
                self._observe(OutputOverflowed())
            return
        self._write(data)
        self._tunnel.note_received(-(-len(data) // size), len(data), self._loop.time())

    def check_output(self) -> None:
        """Look at the sink, which has room again or has failed."""
        failure = self._sink.failure
        if isinstance(failure, BrokenPipeError):
            self.reader_left(failure)
        elif failure is not None:
            raise failure
        self._tunnel.set_congested(congested=self._sink.congested and failure is None)

    def reader_left(self, error: BrokenPipeError) -> None:
        """Let a command go on without its input; without a reader of our output, end."""
        if not self._may_stop_reading:
            raise error
        self._unread = True

    def _is_peer(self, address: SocketAddress) -> bool:
        """Tell whether `address` is the peer's endpoint: the socket hears everybody."""
        if endpoint_from(address) != self._tunnel.path.remote:
            return False
        self._from = address
        return True

    def _sort(self, run: memoryview, size: int) -> None:
        """Part messages from data in a run of datagrams of `size` bytes."""
        begin = 0
        for at in range(0, len(run), size):
            if not self._incoming.startswith(MAGIC_PREFIX, at, at + size):
                continue
            end = min(at + size, len(run))
            if self._tunnel.take_message(bytes(run[at:end]), self._tunnel.path, self._loop.time()):
                self.deliver(run[begin:at], size)
                begin = end
        self.deliver(run[begin:], size)

    def _write(self, data: memoryview) -> None:
        if self._unread:
            return  # what a command does not want to know has arrived all the same
        try:
            self._sink.write(data)
        except BrokenPipeError as error:
            self.reader_left(error)
        else:
            if self._sink.congested:
                self._tunnel.set_congested(congested=True)
