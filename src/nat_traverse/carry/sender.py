"""From a source to the path: bytes become datagrams, many in one system call.

Whatever the user sends, no datagram of data begins as a message of the tunnel does: one that would
goes out in two pieces. While the peer needs time, or the socket has no room, the source waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nat_traverse.model import ErrorKind
from nat_traverse.net.address import sockaddr
from nat_traverse.net.offload import burst_size
from nat_traverse.wire.hello import MAGIC_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.descriptors import Source
    from nat_traverse.model import NetworkError
    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.tunnel.plain import PlainTunnel

# Bursts sent in one go, before receiving and the timers get their turn: 1 MiB at most.
_BURSTS = 16

_SMALLEST_DATAGRAM = 548  # bytes; every host takes an IPv4 packet of 576 (RFC 791)


class Sender:
    """Reads `source` and sends on the tunnel's path.

    `guard` runs a callback of the event loop and takes care of what goes wrong in it; `on_end` is
    called, inside of it, when the source has ended and all of it is sent.
    """

    def __init__(
        self,
        socket: UdpSocket,
        tunnel: PlainTunnel,
        source: Source,
        guard: Callable[..., None],
        on_end: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._tunnel = tunnel
        self._source = source
        self._guard = guard
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        remote = tunnel.path.remote
        self._to = sockaddr(remote, socket.family)
        self._headers = remote.headers
        self._outgoing = memoryview(bytearray(burst_size(tunnel.datagram_size)))
        self._unsent = self._outgoing[:0]
        self._flushed = asyncio.Event()  # set while nothing is unsent
        self._flushed.set()
        self._waiting = False  # for the peer to take what is under way
        self._stopping = False

    @property
    def unsent(self) -> int:
        """How many bytes were read and are not yet sent."""
        return len(self._unsent)

    def start(self) -> None:
        """Start reading."""
        self._source.start(lambda: self._guard(self._read))

    def go_on(self) -> None:
        """Read on, if the peer was what this waited for and has room now."""
        if self._waiting and self._tunnel.has_room:
            self._waiting = False
            self._resume_source()

    async def flush(self) -> None:
        """Read no more, and wait until all that was read is sent."""
        self._stopping = True
        self._source.pause()
        await self._flushed.wait()

    def stop(self) -> None:
        """Leave the socket and the source alone."""
        self._loop.remove_writer(self._socket.fileno())
        self._source.close()

    def take_errors(self) -> None:
        """Take what the network and this host reported about what was sent."""
        now = self._loop.time()
        for remote, error, _ in self._socket.receive_errors():
            if remote != self._tunnel.path.remote:
                continue
            if error.kind is ErrorKind.TOO_BIG:
                self._tunnel.datagram_size = self._size_after(error)
            self._tunnel.receive_error(error, now)

    def _read(self) -> None:
        """Read what the source has, and send it, until it has no more or the peer needs time."""
        for _ in range(_BURSTS):
            burst = self._outgoing[: burst_size(self._tunnel.datagram_size)]
            count, ended = self._fill(burst)
            if count:
                self._transmit(burst[:count])
            if ended and not self._unsent:
                self._on_end()
            if ended or self._unsent or count < len(burst):
                return
            if not self._tunnel.has_room:
                self._waiting = True
                self._source.pause()
                return

    def _fill(self, burst: memoryview) -> tuple[int, bool]:
        """Read until `burst` is full or nothing more is there; tells how much, and if it is all."""
        count = 0
        while count < len(burst):
            size = self._source.readinto(burst[count:])
            if not size:
                return count, size == 0
            count += size
        return count, False

    def _transmit(self, data: memoryview) -> None:
        """Send `data` now, or what there is no room for as soon as there is."""
        while data:
            size = self._tunnel.datagram_size
            burst = self._next_burst(data, size)
            accepted = self._socket.send_segments([burst], size, self._to)
            self._tunnel.note_sent(-(-accepted // size), accepted, self._loop.time())
            data = data[accepted:]
            if not accepted and not self._shrink(size):
                break
        self._unsent = data
        if data:
            self._flushed.clear()
            self._source.pause()
            self._loop.add_writer(self._socket.fileno(), self._guard, self._retry)

    def _retry(self) -> None:
        """Send what there was no room for."""
        self._loop.remove_writer(self._socket.fileno())
        self._transmit(self._unsent)
        if self._unsent:
            return
        self._flushed.set()
        if self._source.ended:
            self._on_end()
        self._resume_source()

    def _resume_source(self) -> None:
        if not self._stopping:
            self._source.resume()

    def _next_burst(self, data: memoryview, size: int) -> memoryview:
        """Return what of `data` may go out in one call, in datagrams of `size` bytes."""
        burst = data[: burst_size(size)]
        if self._tunnel.is_legacy or MAGIC_PREFIX[0] not in bytes(burst[::size]):
            return burst
        for at in range(0, len(burst), size):
            if burst[at : at + len(MAGIC_PREFIX)] == MAGIC_PREFIX:
                return burst[: at or 1]  # what follows the one byte is no magic
        return burst

    def _shrink(self, size: int) -> bool:
        """Tell whether nothing could be sent because the path takes less than `size`."""
        self.take_errors()
        return self._tunnel.datagram_size < size

    def _size_after(self, error: NetworkError) -> int:
        """Return the size of datagrams from now on, after one was too big."""
        size = self._tunnel.datagram_size
        if error.reporter is not None:
            # By a message that anybody may have sent; what it says is believed within reason.
            fits = max(error.mtu - self._headers, _SMALLEST_DATAGRAM) if error.mtu else size
        elif error.mtu:
            fits = error.mtu - self._headers
        else:
            fits = size // 2  # this host refused it, and does not say why: find out
        return max(min(size, fits), 1)
