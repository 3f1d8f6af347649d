"""Many single datagrams with one system call, where `offload` has no runs to offer.

Theory of operation
-------------------
UDP_GRO brings datagrams in runs if their sender's kernel or our network card has them in runs.
Often neither does, and each comes alone. `recvmmsg` (Linux 2.6.33) takes up to 64 of those in one
call. `socket` does not have it, so it is called through `ctypes`, on structures that stay where
they are:

    headers   64 struct mmsghdr, which point to the other three, and in which the kernel says how
              many bytes each has. It writes over the sizes that it was given, so that a copy of
              how they were is put back before the next call
    payloads  64 buffers, each with room for a whole run: one may come at any time
    names     64 senders' addresses. All of a batch are compared at once with the last one seen,
              and decoded only if they differ: a tunnel has one peer
    controls  64 control messages, for the size in a run

Single datagrams of one size that stand one behind the other leave here as a run, as UDP_GRO would
have made of them: the last may be shorter. What comes next costs by the run, too.

Four megabytes, of which pages are touched only where something arrives: for the one socket of a
tunnel, and not for each of a search.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from nat_traverse.net import features
from nat_traverse.net.offload import CALL, MAX_DATAGRAM, Arrived, receive_into

if TYPE_CHECKING:
    from nat_traverse.net.address import SocketAddress

# Datagrams in one call. The call itself is then a small part of what each of them costs.
MOST: Final = 64

# So many are taken one by one first, and again after each run: for these the call through `ctypes`
# would cost more than it saves, and runs go into one buffer again and again, which then stays in
# the processor's cache.
FEW: Final = 4

# From one payload to the next: room for a run, and then 21 lines of the processor's cache more, so
# that the beginnings do not all compete for the same few places in it.
_STRIDE: Final = MAX_DATAGRAM + 1 + 21 * 64

_WITHOUT_WAITING: Final = int(getattr(socket, "MSG_DONTWAIT", 0))

_NAME: Final = 28  # struct sockaddr_in6, the largest
_CONTROL: Final = socket.CMSG_SPACE(struct.calcsize("=i"))
# struct cmsghdr (length, level, type) and the int of UDP_GRO.
_GRO: Final = struct.Struct("@Niii")

# struct sockaddr_in: family, port, address; struct sockaddr_in6: flow label and scope besides.
_SOCKADDR_IN: Final = struct.Struct("!2xH4s")
_SOCKADDR_IN6: Final = struct.Struct("!2xHI16s")
_SCOPE: Final = struct.Struct("=I")
_SCOPE_AT: Final = 24


class _Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """struct mmsghdr: struct msghdr, padded to its alignment, and how much has been received."""

    _fields_ = (("message", _Message), ("size", ctypes.c_uint))


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


_WORD: Final = 4
_HEADER_WORDS: Final = ctypes.sizeof(_Header) // _WORD
_SIZE_WORD: Final = _Header.size.offset // _WORD
# The word of a size_t that its low half is in: sizes here are below 2^32.
_CONTROL_WORD: Final = _Message.control_size.offset // _WORD + (
    0 if struct.pack("=H", 1) == b"\1\0" else ctypes.sizeof(ctypes.c_size_t) // _WORD - 1
)


def available() -> bool:
    """Say whether this system has the call."""
    return features.IS_LINUX and hasattr(ctypes.pythonapi, "recvmmsg")


class Batch:
    """Receives from one non-blocking UDP socket, many datagrams at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is_ipv6 = sock.family == socket.AF_INET6
        # Without giving up the interpreter's lock: the call never waits. And without `argtypes`,
        # whose conversions cost as much as the call: of its arguments only one is no int.
        self._call: Any = ctypes.PyDLL(None, use_errno=True).recvmmsg
        # No `bytearray`, which writes zeros into all of it.
        payloads = memoryview(mmap.mmap(-1, MOST * _STRIDE))
        self._payloads = [payloads[number * _STRIDE :][:MAX_DATAGRAM] for number in range(MOST)]
        self._pieces = self._payloads  # all cut to one size, which is that of most
        self._piece_size = MAX_DATAGRAM
        self._names = memoryview(bytearray(MOST * _NAME))
        self._controls = memoryview(bytearray(MOST * _CONTROL))
        self._vectors = (_Vector * MOST)()
        headers = (_Header * MOST)()
        starts = [_address_of(each) for each in (payloads, self._names, self._controls)]
        for number, (vector, header) in enumerate(zip(self._vectors, headers, strict=True)):
            vector.start, vector.size = starts[0] + number * _STRIDE, MAX_DATAGRAM
            message = header.message
            message.name, message.name_size = starts[1] + number * _NAME, _NAME
            message.vectors, message.vector_count = ctypes.addressof(vector), 1
            message.control, message.control_size = starts[2] + number * _CONTROL, _CONTROL
        self._headers_at = ctypes.c_void_p(ctypes.addressof(headers))
        self._headers = memoryview(headers).cast("B")
        self._words = self._headers.cast("I")
        self._fresh = bytes(self._headers)
        self._last = b""  # the name seen last, as often as there are names
        self._address: SocketAddress = ()

    def receive(self, octets: int, into: list[Arrived]) -> None:
        """Receive as `offload.receive_many` does, with the same outcome in fewer calls.

        Raises what the system call does, with what came before it in the list: `BlockingIOError`
        when nothing more is there.
        """
        plainly = FEW
        while octets > 0:
            if plainly:
                length, size, address = receive_into(self._sock, self._payloads[0])
                into.append(Arrived(bytes(self._payloads[0][:length]), size, address))
                octets -= length + CALL
                plainly = plainly - 1 if length <= size else FEW
                continue
            wanted = min(MOST, octets // CALL + 1)
            sizes = self._receive(wanted)
            if self._hand_out(sizes, into):
                plainly = FEW
            octets -= sum(sizes) + CALL * len(sizes)
            if len(sizes) < wanted:
                # The kernel has looked for more already. (If what stopped it was an ICMP error,
                # that keeps the socket readable.)
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _receive(self, wanted: int) -> list[int]:
        """Receive at most `wanted` datagrams or runs, and return how many bytes each has."""
        used = wanted * _HEADER_WORDS * _WORD
        self._headers[:used] = self._fresh[:used]
        descriptor = self._sock.fileno()  # -1 once it is closed, and never another file's
        count = self._call(descriptor, self._headers_at, wanted, _WITHOUT_WAITING, None)
        if count <= 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return self._words[_SIZE_WORD : count * _HEADER_WORDS : _HEADER_WORDS].tolist()

    def _hand_out(self, sizes: list[int], into: list[Arrived]) -> bool:
        """Append what has come to `into`, and return whether there were runs in it.

        Those stay as they are; single datagrams are made into runs.
        """
        count = len(sizes)
        controls = self._words[_CONTROL_WORD : count * _HEADER_WORDS : _HEADER_WORDS].tolist()
        has_runs = any(controls)
        if not has_runs and self._names[: count * _NAME] == self._last[: count * _NAME]:
            self._join(sizes, into)
            return False
        for number, (size, control) in enumerate(zip(sizes, controls, strict=True)):
            data = bytes(self._payloads[number][:size])
            run_size = self._run_size(number, control) or size or 1
            into.append(Arrived(data, run_size, self._address_at(number)))
        return has_runs

    def _join(self, sizes: list[int], into: list[Arrived]) -> None:
        """Append single datagrams, all from the sender seen last."""
        start = 0
        while start < len(sizes):
            size = sizes[start]
            end = _end_of_run(sizes, start)
            if size != self._piece_size:  # otherwise they are as they were cut the last time
                self._piece_size = size
                self._pieces = [payload[:size] for payload in self._payloads]
            pieces = self._pieces[start:end]
            pieces[-1] = pieces[-1][: sizes[end - 1]]
            into.append(Arrived(b"".join(pieces), size or 1, self._address))
            start = end

    def _address_at(self, number: int) -> SocketAddress:
        name = bytes(self._names[number * _NAME : (number + 1) * _NAME])
        if name != self._last[:_NAME]:
            self._last = name * MOST
            self._address = _decoded(name, is_ipv6=self._is_ipv6)
        return self._address

    def _run_size(self, number: int, control: int) -> int:
        if control < _GRO.size:
            return 0
        _, level, kind, size = _GRO.unpack_from(self._controls, number * _CONTROL)
        is_run = (level, kind) == (features.SOL_UDP, features.UDP_GRO)
        return max(0, size) if is_run else 0


def _end_of_run(sizes: list[int], start: int) -> int:
    """Return where the run ends that `sizes[start]` begins: of one size, the last may be less."""
    size = sizes[start]
    most = start + MAX_DATAGRAM // (size or 1)  # no longer than one that the kernel makes
    part = sizes[start:most]
    if size and part.count(size) == len(part):
        return start + len(part)
    end = start + 1
    while end < start + len(part) and 0 < sizes[end] <= size == sizes[end - 1]:
        end += 1
    return end


def _address_of(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _decoded(name: bytes, *, is_ipv6: bool) -> SocketAddress:
    if not is_ipv6:
        port, host = _SOCKADDR_IN.unpack_from(name)
        return socket.inet_ntop(socket.AF_INET, host), port
    port, flow, host = _SOCKADDR_IN6.unpack_from(name)
    (scope,) = _SCOPE.unpack_from(name, _SCOPE_AT)
    return socket.inet_ntop(socket.AF_INET6, host), port, flow, scope
