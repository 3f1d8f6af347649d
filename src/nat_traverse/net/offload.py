"""Segmentation offload for UDP: many datagrams in one system call, in both directions.

Theory of operation
-------------------
A datagram a system call costs about as much for the walk through the kernel as for its 1,400
bytes. Linux can take the walk once for a whole train of datagrams:

*Sending* (UDP_SEGMENT, also called GSO; Linux 4.18). One `sendmsg` hands over a buffer and, in a
control message, a segment size. The buffer goes down the stack as one packet and is cut as late as
possible, into datagrams of that size and one last that may be shorter; by the network card if it
can. On the wire they are ordinary datagrams: each has its own headers and is lost alone, and
nothing is an IP fragment.

*Receiving* (UDP_GRO; Linux 5.0). With the option set, a run of datagrams of one size and from one
sender may arrive in one `recvmsg`; a control message gives the size to cut at, and its absence
means a single datagram. **A socket with this option must never be read without looking at the
control message**, or datagrams melt into each other.

What may go wrong with sending, and what is done about it:

======================  ========================================================================
the kernel is too old   before 4.18 the control message is *ignored* and one huge datagram leaves
                        in IP fragments; so the option is looked up with `getsockopt` first
EIO                     the route's device cannot compute checksums (some tunnels do this)
EINVAL, EMSGSIZE        a segment does not fit the path MTU, or the device cannot: the same bytes
                        are sent one by one, which tells the two apart
EAGAIN                  the socket's buffer is full, and nothing was taken
ENOBUFS                 the device's queue is full; reported only because IP_RECVERR is set. No
                        part was queued (qdiscs that cut trains report success for a part), so the
                        data is still the caller's, as with EAGAIN
======================  ========================================================================

Once one-by-one has worked where a train has not, no train is tried again on that socket.
"""

from __future__ import annotations

import errno
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from nat_traverse.net import features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nat_traverse.net.address import SocketAddress

# UDP_MAX_SEGMENTS of Linux 4.18 to 6.8; later kernels take 128. More is EINVAL.
MAX_SEGMENTS: Final = 64
# A train is one IP packet until it is cut, so headers and payload together are at most 65,535
# bytes: 65,507 of payload with plain IPv4. The rest is room for options and extension headers.
MAX_BURST: Final = 65_000
# The most that one receive can return: a UDP length has 16 bits.
MAX_DATAGRAM: Final = 65_535

# At 10 Gbit/s 4 MiB is 3 ms, about the time slice for which the scheduler may give our processor
# to somebody else. The kernel counts its own overhead too, and doubles the number for that.
BUFFER_SIZE: Final = 4 * 1024 * 1024

# Bytes that take about as long as a system call: 300 single datagrams are as much as 16 trains.
CALL: Final = 2048

_SEGMENT_SIZE: Final = struct.Struct("=H")  # what UDP_SEGMENT takes: __u16
_GRO_SIZE: Final = struct.Struct("=i")  # what UDP_GRO returns: int
_GRO_CONTROL: Final = socket.CMSG_SPACE(_GRO_SIZE.size)

_NOT_ACCEPTED: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
_TRAIN_REFUSED: Final = frozenset(
    {errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
)


class Burst(NamedTuple):
    """What became of a burst: the bytes that were taken, and what stopped the rest, if anything.

    `failure` is None when all was taken, and also when the socket is full: then try again when it
    is writable.
    """

    accepted: int
    failure: OSError | None


class Received(NamedTuple):
    """One receive: bytes in the buffer, the size of each datagram in it, the sender's address.

    The datagrams are the slices of `segment_size` bytes; the last may be shorter. `segment_size`
    is at least 1, so that `range(0, length, segment_size)` always enumerates them.
    """

    length: int
    segment_size: int
    address: SocketAddress


def burst_size(segment_size: int) -> int:
    """Return the most bytes that one burst may have: a whole number of segments."""
    return segment_size * min(MAX_SEGMENTS, max(1, MAX_BURST // segment_size))


class SegmentSender:
    """Sends bursts of equal datagrams on one socket, as trains for as long as that works.

    `transmit` runs a send and returns its final failure: it has to repeat those calls which failed
    only because an ICMP error was pending on the socket.
    """

    def __init__(
        self,
        sock: socket.socket,
        transmit: Callable[[Callable[[], object]], OSError | None],
    ) -> None:
        self._sock = sock
        self._transmit = transmit
        self.trains = _kernel_has_trains(sock)

    def send(
        self,
        buffers: Sequence[memoryview | bytes],
        segment_size: int,
        address: SocketAddress,
    ) -> Burst:
        """Send the bytes of `buffers`, joined, in datagrams of `segment_size` bytes.

        Together they may have `burst_size(segment_size)` bytes.
        """
        total = sum(map(len, buffers))
        if not 0 < total <= burst_size(segment_size):
            raise ValueError(f"a burst of {total} bytes in segments of {segment_size}")
        if not self.trains or total <= segment_size:
            return self._send_singly(buffers, segment_size, address)
        failure = self._send_train(buffers, segment_size, address)
        if failure is None:
            return Burst(total, None)
        if failure.errno in _NOT_ACCEPTED:
            return Burst(0, None)
        if failure.errno not in _TRAIN_REFUSED:
            return Burst(0, failure)
        burst = self._send_singly(buffers, segment_size, address)
        if burst.accepted:
            self.trains = False
        return burst

    def _send_train(
        self, buffers: Sequence[memoryview | bytes], segment_size: int, address: SocketAddress
    ) -> OSError | None:
        assert features.SOL_UDP is not None  # noqa: S101 (for the type checker: trains needs both)
        assert features.UDP_SEGMENT is not None  # noqa: S101 (the same)
        size = _SEGMENT_SIZE.pack(segment_size)
        control = [(features.SOL_UDP, features.UDP_SEGMENT, size)]
        return self._transmit(partial(self._sock.sendmsg, buffers, control, 0, address))

    def _send_singly(
        self, buffers: Sequence[memoryview | bytes], segment_size: int, address: SocketAddress
    ) -> Burst:
        data = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        for start in range(0, len(data), segment_size):
            segment = data[start : start + segment_size]
            failure = self._transmit(partial(self._sock.sendto, segment, address))
            if failure is not None:
                return Burst(start, None if failure.errno in _NOT_ACCEPTED else failure)
        return Burst(len(data), None)


def enable_receiving(sock: socket.socket) -> bool:
    """Let `sock` receive runs of datagrams at once; False where the kernel cannot."""
    if features.SOL_UDP is None or features.UDP_GRO is None:
        return False
    try:
        sock.setsockopt(features.SOL_UDP, features.UDP_GRO, 1)
    except OSError:
        return False
    return True


def receive_into(sock: socket.socket, buffer: memoryview | bytearray) -> Received:
    """Receive one datagram or one run of them; `buffer` has MAX_DATAGRAM bytes.

    Raises whatever the system call does: `BlockingIOError` when nothing is there.
    """
    length, control, _flags, address = sock.recvmsg_into([buffer], _GRO_CONTROL)
    return Received(length, _run_size(control) or length or 1, address)


class Arrived(NamedTuple):
    """One datagram, or one run of them: its bytes, the size of each in it, the sender's address."""

    data: bytes
    segment_size: int
    address: SocketAddress


def receive_many(sock: socket.socket, buffer: memoryview, octets: int, into: list[Arrived]) -> None:
    """Receive into the list `into` until there is nothing more, or about `octets` bytes are there.

    A system call counts as CALL bytes. `buffer` is as for `receive_into`. Raises what the system
    call does, with what came before it in the list: `BlockingIOError` when nothing more is there.
    """
    receive, buffers = sock.recvmsg_into, [buffer]
    while octets > 0:
        length, control, _flags, address = receive(buffers, _GRO_CONTROL)
        size = _run_size(control) if control else 0
        into.append(Arrived(bytes(buffer[:length]), size or length or 1, address))
        octets -= length + CALL


def enlarge_buffers(sock: socket.socket, size: int = BUFFER_SIZE) -> None:
    """Ask for socket buffers of `size` bytes, beyond the system's limit where we may."""
    for forced, option in (
        (features.SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (features.SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        if forced is not None and _set(sock, forced, size):
            continue
        # Linux gives the most that it allows; a BSD refuses what is too much, so ask for less.
        wish = size
        while not _set(sock, option, wish) and wish > MAX_DATAGRAM:
            wish //= 2


def _set(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError:
        return False
    return True


def _kernel_has_trains(sock: socket.socket) -> bool:
    if features.SOL_UDP is None or features.UDP_SEGMENT is None:
        return False
    try:
        sock.getsockopt(features.SOL_UDP, features.UDP_SEGMENT)
    except OSError:
        return False
    return True


def _run_size(control: list[tuple[int, int, bytes]]) -> int:
    """Return the size that UDP_GRO gives for a run of datagrams, or 0 without one."""
    for level, kind, data in control:
        if (level, kind) == (features.SOL_UDP, features.UDP_GRO) and len(data) >= _GRO_SIZE.size:
            return max(0, int(_GRO_SIZE.unpack_from(data)[0]))
    return 0
