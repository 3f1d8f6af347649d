"""A UDP socket for traversal: unconnected, with a TTL per packet, and with refusals as values.

The socket is not connected, since a puncher must hear the peer from addresses that it did not
expect; whoever reads from it checks where a datagram comes from. It never blocks, is closed on
exec, and shares its port with nobody: `SO_REUSEADDR` on UDP lets a second process bind the same
port and then receive the first one's datagrams. An IPv6 socket is for IPv6 only, so that one of
each family can have the same port number, and no IPv4-mapped address ever appears.

Don't Fragment is set (RFC 8899 wants that of anything that cares for its packet size): a datagram
that does not fit is refused here, with the path MTU, instead of leaving as IP fragments that many
a NAT drops.

How ICMP errors reach a socket, and why a send may fail with an error that is not its own, stands
in `errqueue`. The rule here: **a pending error never costs a packet**. A call that failed with what
may be somebody else's error is repeated, up to `ATTEMPTS` times; if it still fails, it is its own.

A reader that is woken (`loop.add_reader(sock.fileno(), ...)`) must call `receive_errors` as well as
`receive`: a queued error also makes a socket readable, and stays until it is taken.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint, NetworkError
from nat_traverse.net import errqueue, features, offload, shutter
from nat_traverse.net.address import endpoint_from, sockaddr
from nat_traverse.net.route import path_mtu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nat_traverse.net.address import SocketAddress
    from nat_traverse.net.batch import Batch
    from nat_traverse.net.errqueue import QueuedError
    from nat_traverse.net.offload import Arrived, Received

# How often one packet is offered while each attempt finds an error that may be of another packet.
# Each ICMP message can spoil one attempt, and eight that arrive within the few microseconds of
# eight attempts are an attack. An error that is our own costs these few microseconds too.
ATTEMPTS: Final = 8

# Refusals of bursts that are kept for `receive_errors`; older ones say nothing new.
KEPT_REFUSALS: Final = 16

_INT: Final = struct.Struct("=i")
# IPPORT_RESERVED. Where Linux was told otherwise (ip_unprivileged_port_start), EACCES won't come.
_FIRST_OPEN_PORT: Final = 1024
_WHO_HOLDS_PORTS: Final = "`ss -ulpn`" if features.IS_LINUX else "`lsof -nP -iUDP`"
_WHICH_ADDRESSES: Final = "`ip address`" if features.IS_LINUX else "`ifconfig`"

# The kernel has no room: for the socket, or in the device's queue.
_NO_ROOM: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})

# Errors that no ICMP message leaves in a socket (Linux converts none to these numbers): they are
# about this packet, and a repetition would only offer it twice.
_OUR_OWN: Final = _NO_ROOM | {errno.EPERM, errno.EINVAL, errno.EIO}


@dataclass(slots=True)
class Counters:
    """What happened on a socket besides datagrams coming and going; numbers since it was opened."""

    dropped: int = 0  # packets that this host had no room for
    repeated: int = 0  # calls repeated after what may have been somebody else's ICMP error
    refused: int = 0  # bursts that this host refused for good
    odd_errors: int = 0  # error records that made no sense


class _Arrival(threading.local):
    """Where a run of datagrams is put until it is cut up, which is before the next one is taken.

    All sockets of a thread share it: a search for a path has hundreds, and 64 KiB for each of them
    would be 16 MiB.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(offload.MAX_DATAGRAM))


_ARRIVAL: Final = _Arrival()


class UdpSocket:
    """One bound UDP socket. `port` 0 means any free port; `host` "" means all addresses.

    Raises `LocalNetworkError` with the reason when it cannot be opened.
    """

    def __init__(self, family: socket.AddressFamily, port: int, *, host: str = "") -> None:
        self.family = family
        self._sock = _open(family, port, host)
        self._refusals: deque[QueuedError] = deque(maxlen=KEPT_REFUSALS)
        self._split: deque[tuple[bytes, Endpoint]] = deque()
        self._ttl_message = features.IS_LINUX
        self._segments = offload.SegmentSender(self._sock, self._insist)
        self._batch: Batch | None = None
        self.counters = Counters()
        errqueue.enable(self._sock)
        _forbid_fragments(self._sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def local(self) -> Endpoint:
        """The address that the socket is bound to, as the kernel states it."""
        return endpoint_from(self._sock.getsockname())

    def fileno(self) -> int:
        """Return the descriptor, for an event loop; -1 once the socket is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._sock.close()

    def detach(self) -> int:
        """Give up the socket and return its descriptor, which is the caller's to close."""
        return self._sock.detach()

    def send(self, data: bytes, to: Endpoint, ttl: int | None = None) -> NetworkError | None:
        """Send one datagram, with a TTL or hop limit of its own if `ttl` is given.

        Returns None when the kernel took it and the reason when this host refuses it. A refusal by
        the network comes later, through `receive_errors`.
        """
        failure = self._insist(partial(self._send_once, data, sockaddr(to, self.family), ttl))
        if failure is None:
            return None
        if failure.errno in _NO_ROOM:
            self.counters.dropped += 1
        return _local_error(failure, to)

    def receive(self) -> tuple[bytes, Endpoint] | None:
        """Return the next datagram, up to 65,535 bytes, and its sender; None if there is none.

        After `enable_offload` a run of datagrams is taken from the kernel at once and handed out
        one by one: then go on until None, since nothing wakes a reader for the rest of a run.
        """
        if self._split:
            return self._split.popleft()
        buffer = _ARRIVAL.buffer
        run = self.receive_into(buffer)
        if run is None:
            return None
        sender = endpoint_from(run.address)
        for start in range(run.segment_size, run.length, run.segment_size):
            end = min(start + run.segment_size, run.length)
            self._split.append((bytes(buffer[start:end]), sender))
        return bytes(buffer[: min(run.segment_size, run.length)]), sender

    def receive_errors(self) -> list[QueuedError]:
        """Return what the network and this host reported about earlier packets, oldest first.

        At most `errqueue.RECORDS_PER_CALL` are taken off the kernel's queue in one call.
        """
        drained = errqueue.drain(self._sock)
        self.counters.odd_errors += drained.odd
        errors = list(self._refusals)
        self._refusals.clear()
        # What the local stack has queued was returned by the very call that caused it.
        errors.extend(record for record in drained.records if record.error.reporter is not None)
        return errors

    def enlarge_buffers(self) -> None:
        """Make room for bursts of data, as much as this user may have."""
        offload.enlarge_buffers(self._sock)

    @property
    def receive_room(self) -> int:
        """How many bytes of full datagrams the receive buffer holds for certain.

        The kernel counts up to three bytes of its own for each of the user's, and states the size
        with that included (socket(7), SO_RCVBUF).
        """
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 4

    def enable_offload(self) -> bool:
        """Receive in runs where the kernel can, for `receive_into`; returns whether it can.

        `receive` must then be called until it returns None: what is left of a run wakes nobody.
        """
        return offload.enable_receiving(self._sock)

    def send_segments(
        self,
        buffers: Sequence[memoryview | bytes],
        segment_size: int,
        to: SocketAddress,
    ) -> int:
        """Send the joined bytes of `buffers` in datagrams of `segment_size`; `to`: see `sockaddr`.

        Together they may have `offload.burst_size(segment_size)` bytes. Returns how many of them
        were taken: all, or a whole number of datagrams. If not all, the rest is the caller's to
        send when the socket is writable and after a look at `receive_errors`: either the kernel
        has no room now, or a segment is larger than the path MTU, which is then reported there.

        What this host refuses for any other reason (no route now, a firewall) counts as taken and
        is lost, as on a wire that is unplugged; the refusal is reported by `receive_errors`.
        """
        accepted, failure = self._segments.send(buffers, segment_size, to)
        if failure is None:
            return accepted
        destination = endpoint_from(to)
        error = _local_error(failure, destination)
        self._refusals.append(errqueue.QueuedError(destination, error, b""))
        if failure.errno == errno.EMSGSIZE:
            return accepted
        self.counters.refused += 1
        return sum(map(len, buffers))

    def enable_batches(self) -> None:
        """Have `receive_many` take many datagrams with one system call, where the kernel can.

        For the one socket of a tunnel that is to be fast: it takes 4 MiB, page by page.
        """
        from nat_traverse.net import batch  # noqa: PLC0415 (ctypes is slow to import)

        if self._batch is None and batch.available():
            self._batch = batch.Batch(self._sock)

    def receive_into(self, buffer: memoryview | bytearray) -> Received | None:
        """Receive one datagram, or a run of them after `enable_offload`, without a copy.

        `buffer` has `offload.MAX_DATAGRAM` bytes. None if there is nothing.
        """
        for _ in range(ATTEMPTS):
            try:
                return offload.receive_into(self._sock, buffer)
            except BlockingIOError:
                return None
            except OSError:
                # An ICMP error left it behind; the record is fetched by `receive_errors`.
                self.counters.repeated += 1
        return None

    def receive_many(self, buffer: memoryview, octets: int) -> list[Arrived]:
        """Receive what is there, about `octets` bytes at most; see `offload.receive_many`."""
        arrived: list[Arrived] = []
        for _ in range(ATTEMPTS):
            try:
                if self._batch is None:
                    offload.receive_many(self._sock, buffer, octets, arrived)
                else:
                    self._batch.receive(octets, arrived)
            except BlockingIOError:
                break
            except OSError:
                # An ICMP error left it behind; the record is fetched by `receive_errors`.
                self.counters.repeated += 1
                octets -= sum(len(each.data) + offload.CALL for each in arrived)
            else:
                break
        return arrived

    def close_shutter(self, filter_: bytes) -> bool:
        """Have the kernel drop what a filter of `shutter` does not let in; False if it can't."""
        return shutter.close(self._sock, filter_)

    def open_shutter(self) -> None:
        """Take everything again."""
        shutter.open_again(self._sock)

    def _send_once(self, data: bytes, address: SocketAddress, ttl: int | None) -> None:
        if ttl is None:
            self._sock.sendto(data, address)
            return
        level, option = _hop_limit_option(self.family)
        if self._ttl_message:
            control = [(level, option[1], _INT.pack(ttl))]
            self._sock.sendmsg([data], control, 0, address)
            return
        # Other systems ignore or refuse the control message, so the socket's own TTL is changed
        # around the one packet.
        usual = self._sock.getsockopt(level, option[0])
        self._sock.setsockopt(level, option[0], ttl)
        try:
            self._sock.sendto(data, address)
        finally:
            self._sock.setsockopt(level, option[0], usual)

    def _insist(self, call: Callable[[], object]) -> OSError | None:
        """Run `call` until it has met an error of its own, or none; return that error."""
        failure: OSError | None = None
        for _ in range(ATTEMPTS):
            try:
                call()
            except OSError as error:
                failure = error
            else:
                return None
            if failure.errno in _OUR_OWN:
                break
            self.counters.repeated += 1
        return failure


def _local_error(failure: OSError, to: Endpoint) -> NetworkError:
    """Return what this host's own refusal to send to `to` means."""
    number = failure.errno or 0
    mtu = 0
    if number == errno.EMSGSIZE:
        with suppress(LocalNetworkError):
            mtu = path_mtu(to) or 0
    return NetworkError(errqueue.kind_of_errno(number), number, mtu=mtu)


def _hop_limit_option(family: socket.AddressFamily) -> tuple[int, tuple[int, int]]:
    """Return the level, and the names of the hop limit as a socket option and in a message."""
    if family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, (socket.IPV6_UNICAST_HOPS, socket.IPV6_HOPLIMIT)
    return socket.IPPROTO_IP, (socket.IP_TTL, socket.IP_TTL)


def _forbid_fragments(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        level, option, value = (
            socket.IPPROTO_IPV6,
            features.IPV6_MTU_DISCOVER,
            features.IPV6_PMTUDISC_DO,
        )
    else:
        level, option, value = (
            socket.IPPROTO_IP,
            features.IP_MTU_DISCOVER,
            features.IP_PMTUDISC_DO,
        )
    if option is None or value is None:
        return
    # Refused in some sandboxes; then a packet of 1,400 bytes is still below nearly every MTU.
    with suppress(OSError):
        sock.setsockopt(level, option, value)


def _open(family: socket.AddressFamily, port: int, host: str) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise _explained(error, family, port, host) from error
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 (a tunnel end must be reachable)
        sock.bind((host or everywhere, port))
    except OSError as error:
        sock.close()
        raise _explained(error, family, port, host) from error
    return sock


def _explained(
    error: OSError, family: socket.AddressFamily, port: int, host: str
) -> LocalNetworkError:
    """Return the error a user reads, with the number that 0.7 used as its exit code."""
    number = error.errno or errno.EINVAL
    version = "IPv6" if family == socket.AF_INET6 else "IPv4"
    match number:
        case errno.EADDRINUSE:
            text = (
                f"UDP port {port} is in use: another program on this machine holds it, perhaps an"
                f" earlier run. To see which: {_WHO_HOLDS_PORTS}. Or agree on another port."
            )
        case errno.EACCES | errno.EPERM if 0 < port < _FIRST_OPEN_PORT:
            text = (
                f"UDP port {port} may not be opened: ports below {_FIRST_OPEN_PORT} are for the"
                " administrator. Agree on a higher one, or run this as root."
            )
        case errno.EADDRNOTAVAIL if host:
            text = (
                f"{host} is not an address of this machine. To see which ones it has:"
                f" {_WHICH_ADDRESSES}."
            )
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            text = f"{version} is not available on this machine: {os.strerror(number)}."
        case errno.EMFILE | errno.ENFILE:
            text = f"No more sockets can be opened: {os.strerror(number)}. Try `ulimit -n 1024`."
        case _ if number < 0:  # a getaddrinfo code: `host` was no address at all
            number = errno.EINVAL
            text = f"{host!r} is not an {version} address."
        case _:
            text = f"Cannot open UDP port {port} ({version}): {os.strerror(number)}."
    return LocalNetworkError(text, number)
