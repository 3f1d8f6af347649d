"""Packets of a TUN device to plaintexts of sealed datagrams, and back.

Theory of operation
-------------------
One read of the device brings a packet, or a *super-packet*: up to 64 KiB of one TCP connection or
one UDP flow behind one set of headers (`wire.virtio`). The Cutter makes parts of it, one for each
segment (`wire.vpn`). The Joiner at the other end makes a super-packet again of as many of them as
arrived one behind the other, for one write. So a system call, and a walk through the kernel's
network stack, is shared by up to 49 segments of 1,348 bytes at both ends, and on the way each of
them is a datagram that is lost, or overtaken, alone.

A part has the headers of its super-packet unchanged. What belongs to the segment is worked out by
the Joiner, once for all that it joins:

=================  ==============================================================================
IP's length        that of what was joined
IPv4's id          plus the index of the first segment; the kernel counts on from there
IPv4's checksum    anew
TCP's sequence     plus index times segment size of the first segment
FIN, PSH           only if the last segment is there; the kernel leaves them to the last one
CWR                only with segment 0; the kernel leaves it there (RFC 3168, section 6.1.2)
UDP's length       that of what was joined; the kernel gives each datagram its own
their checksum     the partial sum, for another length; the kernel adds the rest to each segment
=================  ==============================================================================

Nothing is kept from one call to the next: no packet waits for another one.

The peer is authenticated, and may lie all the same. All places are derived from the headers, which
have to be where they say; lengths have to fit; and the source of every packet has to be one that
the peer may have. What is wrong is dropped and counted, and nothing is raised.

Here every microsecond counts, since each stands for one packet. Hence no objects for parts, and
attributes in local names.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire import ip, virtio
from nat_traverse.wire.vpn import (
    HEAD,
    LAST,
    PART,
    PART_OVERHEAD,
    PARTIAL,
    WHOLE,
    WHOLE_OVERHEAD,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nat_traverse.wire.ip import Buffer, Header

# What the kernel takes in one send with UDP_SEGMENT, as in `net.offload`: so many datagrams, and so
# many bytes. Each datagram has 32 bytes more than its plaintext (`wire.sealed`).
TRAIN_DATAGRAMS: Final = 64
TRAIN_BYTES: Final = 65_000
SEALING: Final = 32

# Why a plaintext was dropped: the words under which the Joiner counts.
UNKNOWN_KIND: Final = "unknown kind"
MALFORMED: Final = "malformed"  # headers that contradict themselves or the length
FOREIGN: Final = "foreign"  # from a source that the peer must not send from
BAD_SEGMENT: Final = "bad segment"  # not of the size that it says
TOO_LONG: Final = "too long"  # joined, it would be more than an IP packet

_WHOLE: Final = bytes([WHOLE])
_PARTIAL: Final = bytes([PARTIAL])
# No packet is smaller than an IPv4 header.
_SHORTEST: Final = WHOLE_OVERHEAD + ip.IPV4_HEADER

_GSO_TCP: Final = {ip.IPV4: virtio.GSO_TCPV4, ip.IPV6: virtio.GSO_TCPV6}
_IPV4_ID, _IPV4_CHECKSUM = 4, 10  # bytes from the start of the IPv4 header
_LENGTH: Final = {ip.IPV4: 2, ip.IPV6: 4}  # the same, of the length
_SEQUENCE, _FLAGS = 4, 13  # bytes from the start of the TCP header
_UDP_LENGTH: Final = 4  # the same of UDP
_FIN_PSH, _CWR = 0x09, 0x80  # flags of TCP (RFC 9293, section 3.1)


def _ignore(_packet: memoryview, _largest: int) -> None:
    """Tell nobody."""


class Cutter:
    """Cuts what is read from the device into plaintexts of at most `largest_plaintext` bytes.

    `on_too_large` is called with each packet for which there is no way, and with the largest
    that there would be one for, in bytes; the packet is to be used during the call only. If the
    device's MTU is `mtu`, this happens only after the limit has become lower.

    `too_large` and `unusable` count packets: those, and frames that no kernel should hand out.
    """

    def __init__(
        self,
        largest_plaintext: int,
        on_too_large: Callable[[memoryview, int], None] = _ignore,
    ) -> None:
        self.largest_plaintext = largest_plaintext
        self.too_large = 0
        self.unusable = 0
        self._on_too_large = on_too_large

    @property
    def mtu(self) -> int:
        """The largest packet, in bytes, that fits in any form: as a part with its overhead."""
        return self.largest_plaintext - PART_OVERHEAD

    def cut(self, frame: memoryview) -> list[list[bytes]]:
        """Return the plaintexts of what one read has brought: a virtio header and a packet.

        They come in trains: in each all have one size, the last may be shorter, and sealed they
        fit into one send with UDP_SEGMENT. No plaintext refers to the memory of `frame`.
        """
        if len(frame) <= virtio.SIZE:
            self.unusable += 1
            return []
        flags, gso_type, _, size, start, offset = virtio.OFFLOAD.unpack_from(frame)
        packet = frame[virtio.SIZE :]
        try:
            if gso_type != virtio.GSO_NONE:
                return self._cut_super(packet, gso_type & ~virtio.GSO_ECN, size)
            if WHOLE_OVERHEAD + len(packet) > self.largest_plaintext:
                return self._refuse(packet)
            if flags & virtio.NEEDS_CHECKSUM:
                return [[_with_checksum(packet, start, offset)]]
        except RemoteProtocolError:
            self.unusable += 1
            return []
        return [[b"".join((_WHOLE, packet))]]

    def _cut_super(self, packet: memoryview, gso_type: int, size: int) -> list[list[bytes]]:
        header = ip.parse(packet)
        begin = ip.end_of_headers(packet, header)
        total = len(packet)
        is_tcp = header.protocol == ip.TCP
        expected = _GSO_TCP[header.version] if is_tcp else virtio.GSO_UDP
        if gso_type != expected or not size or begin == total:
            raise RemoteProtocolError(f"no super-packet: {gso_type}, {size}")
        room = self.largest_plaintext - PART_OVERHEAD - begin
        if size > room:
            # TCP is a stream and may be cut anywhere, but a datagram of UDP is one.
            if not is_tcp or room <= 0:
                return self._refuse(packet)
            size = room
        headers = bytes(packet[:begin])
        head, join = HEAD.pack, b"".join
        parts = [
            join((head(PART, index, size), headers, packet[at : at + size]))
            for index, at in enumerate(range(begin, total, size))
        ]
        parts[-1] = bytes((LAST,)) + parts[-1][1:]
        limit = _train_length(PART_OVERHEAD + begin + size)
        return [parts[at : at + limit] for at in range(0, len(parts), limit)]

    def _refuse(self, packet: memoryview) -> list[list[bytes]]:
        self.too_large += 1
        self._on_too_large(packet, self.mtu)
        return []


def couple(trains: Iterable[list[bytes]]) -> list[list[bytes]]:
    """Return the same plaintexts in the same order, in fewer trains where that is possible.

    This is for the trains of several reads: small packets of one size, or super-packets of one
    flow, whose segments are all full.
    """
    coupled: list[list[bytes]] = []
    size = room = 0
    for train in trains:
        # A train may be continued as long as its last plaintext has full size.
        if (
            room >= len(train)
            and len(train[0]) <= size
            and (len(train[0]) == size or len(train) == 1)
        ):
            coupled[-1] += train
            room -= len(train)
        else:
            coupled.append(list(train))
            size = len(train[0])
            room = _train_length(size) - len(train)
        if len(train[-1]) < size:
            room = 0
    return coupled


class Joiner:
    """Makes of plaintexts what is to be written to the device.

    `admits` tells, of a source and a destination (4 or 16 bytes each), whether the peer may send
    that. It is asked once for a packet, and once for parts that are joined. A kernel before Linux
    6.2 does not take super-packets of UDP: then `joins_udp` is to be False.

    `dropped` counts plaintexts by the words above.
    """

    def __init__(self, admits: Callable[[bytes, bytes], bool], *, joins_udp: bool = True) -> None:
        self.dropped: Counter[str] = Counter()
        self._admits = admits
        self._joins_udp = joins_udp

    def join(self, plaintexts: Sequence[bytes]) -> list[list[Buffer]]:
        """Return what is to be written, each with one call: buffers that belong together."""
        written: list[list[Buffer]] = []
        run: _Run | None = None
        headers, start, size, following = b"", 0, 0, 0  # of the run
        unpack = HEAD.unpack_from
        for plaintext in plaintexts:
            if len(plaintext) < _SHORTEST:
                self._drop_short(plaintext)
                continue
            kind, index, segment = unpack(plaintext)
            if run is not None:
                if (
                    index == following
                    and PART <= kind <= LAST
                    and segment == size
                    and plaintext.startswith(headers, PART_OVERHEAD)
                ):
                    chunk = plaintext[start:]
                    if len(chunk) == size or (kind == LAST and 0 < len(chunk) < size):
                        run.chunks.append(chunk)
                        following += 1
                        if kind == LAST:
                            run.has_last = True
                            self._finish(run, written)
                            run = None
                        continue
                self._finish(run, written)
            run = self._take(kind, plaintext, written)
            if run is not None:
                headers, size, following = run.headers, run.size, index + 1
                start = PART_OVERHEAD + len(headers)
        if run is not None:
            self._finish(run, written)
        return written

    def _drop_short(self, plaintext: bytes) -> None:
        """Take what is too short for a packet; if it is empty, it is a sign of life."""
        if plaintext:
            self.dropped[MALFORMED] += 1

    def _take(self, kind: int, plaintext: bytes, written: list[list[Buffer]]) -> _Run | None:
        """Take a plaintext that continues nothing; returns the run that others may continue."""
        if kind < PART:
            self._add_packet(plaintext, written)
        elif kind <= LAST:
            run = self._begin(plaintext)
            if run is not None and run.may_grow:
                return run
            if run is not None:
                self._finish(run, written)
        else:
            self.dropped[UNKNOWN_KIND] += 1
        return None

    def _add_packet(self, plaintext: bytes, written: list[list[Buffer]]) -> None:
        """Take a plaintext with a whole packet."""
        packet = plaintext[WHOLE_OVERHEAD:]
        offload = virtio.PLAIN
        try:
            header = ip.parse(packet)
            if plaintext[0] == PARTIAL:
                end = ip.end_of_headers(packet, header)
                offload = _single(header, end)
        except RemoteProtocolError:
            self.dropped[MALFORMED] += 1
            return
        if self._admits(header.source, header.destination):
            written.append([offload, packet])
        else:
            self.dropped[FOREIGN] += 1

    def _begin(self, plaintext: bytes) -> _Run | None:
        """Return the run that a part begins, or None if it is dropped."""
        kind, index, size = HEAD.unpack_from(plaintext)
        packet = plaintext[PART_OVERHEAD:]
        try:
            header = ip.parse_headers(packet)
            end = ip.end_of_headers(packet, header)
        except RemoteProtocolError:
            self.dropped[MALFORMED] += 1
            return None
        chunk = packet[end:]
        if not chunk or len(chunk) > size or (kind == PART and len(chunk) < size):
            self.dropped[BAD_SEGMENT] += 1
            return None
        if not self._admits(header.source, header.destination):
            self.dropped[FOREIGN] += 1
            return None
        run = _Run(header, packet[:end], index, size, chunk)
        run.has_last = kind == LAST
        run.may_grow = not run.has_last and (self._joins_udp or header.protocol == ip.TCP)
        return run

    def _finish(self, run: _Run, written: list[list[Buffer]]) -> None:
        """Write what was joined, unless it would never have fit into one packet."""
        if run.end_of_payload + len(run.headers) > ip.LARGEST:
            self.dropped[TOO_LONG] += len(run.chunks)
        else:
            written.append([run.build_headers(), *run.chunks])


class _Run:
    """Parts that follow each other: the first one's headers and index, and the segments."""

    __slots__ = ("_header", "_index", "chunks", "has_last", "headers", "may_grow", "size")

    def __init__(self, header: Header, headers: bytes, index: int, size: int, chunk: bytes) -> None:
        self._header = header
        self._index = index
        self.headers = headers
        self.size = size
        self.chunks: list[Buffer] = [chunk]
        self.may_grow = True
        self.has_last = False

    @property
    def end_of_payload(self) -> int:
        """Where the last segment ends, in bytes from the first one of the super-packet."""
        return (self._index + len(self.chunks) - 1) * self.size + len(self.chunks[-1])

    def build_headers(self) -> bytes:
        """Return the virtio header and the packet's, as they have to be before the segments."""
        header, index = self._header, self._index
        version, at, end = header.version, header.transport_at, len(self.headers)
        more = len(self.chunks) - 1
        length = end + more * self.size + len(self.chunks[-1])
        changed = bytearray(self.headers)
        is_ipv4 = version == ip.IPV4
        _put(changed, _LENGTH[version], length if is_ipv4 else length - ip.IPV6_HEADER)
        if is_ipv4:
            _put(changed, _IPV4_ID, _get(changed, _IPV4_ID) + index)
            _put(changed, _IPV4_CHECKSUM, 0)
            _put(changed, _IPV4_CHECKSUM, ip.checksum(changed[:at]))
        place = at + ip.CHECKSUM_AT[header.protocol]
        partial = _get(changed, place)
        if partial:
            partial = (partial + length - header.length) % 0xFFFF or 0xFFFF
        else:
            # A flow of UDP without checksums: as segments of a super-packet they have them, since
            # the kernel would add the sum of each to this zero.
            partial = ip.pseudo_sum(header, length - at)
        _put(changed, place, partial)
        if header.protocol == ip.UDP:
            _put(changed, at + _UDP_LENGTH, length - at)
            kind = virtio.GSO_UDP
        else:
            kind = self._change_tcp(changed)
        if not more:
            return _single(header, end) + changed
        offset = ip.CHECKSUM_AT[header.protocol]
        return (
            virtio.OFFLOAD.pack(virtio.NEEDS_CHECKSUM, kind, end, self.size, at, offset) + changed
        )

    def _change_tcp(self, changed: bytearray) -> int:
        """Make the TCP header that of the first segment; returns the kind of super-packet."""
        at, index = self._header.transport_at, self._index
        kind = _GSO_TCP[self._header.version]
        if index:
            place = at + _SEQUENCE
            sequence = int.from_bytes(changed[place : place + 4], "big") + index * self.size
            changed[place : place + 4] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
            changed[at + _FLAGS] &= ~_CWR
        elif changed[at + _FLAGS] & _CWR:
            kind |= virtio.GSO_ECN
        if not self.has_last:
            changed[at + _FLAGS] &= ~_FIN_PSH
        return kind


def _single(header: Header, end: int) -> bytes:
    """Return the virtio header of one packet whose checksum is partial; its headers have an end."""
    place = ip.CHECKSUM_AT[header.protocol]
    return virtio.OFFLOAD.pack(
        virtio.NEEDS_CHECKSUM, virtio.GSO_NONE, end, 0, header.transport_at, place
    )


def _with_checksum(packet: memoryview, start: int, offset: int) -> bytes:
    """Return the plaintext of one packet whose checksum is partial.

    If the other end finds the place by itself, it stays partial. Otherwise, as in a packet within
    a packet, it is completed here. Raises RemoteProtocolError if there is no such place.
    """
    header = ip.parse(packet)
    is_found = header.transport_at == start and not header.is_fragment
    if is_found and ip.CHECKSUM_AT.get(header.protocol) == offset:
        ip.end_of_headers(packet, header)
        return b"".join((_PARTIAL, packet))
    place = start + offset
    if place + 2 > len(packet):
        raise RemoteProtocolError(f"a checksum at {place} of {len(packet)} bytes")
    # A sum of zero is the other zero (RFC 768); for all but UDP the two are the same.
    checksum = ip.checksum(packet[start:]) or 0xFFFF
    whole = bytearray(_WHOLE)
    whole += packet
    _put(whole, WHOLE_OVERHEAD + place, checksum)
    return bytes(whole)


def _train_length(size: int) -> int:
    """Return how many plaintexts of `size` bytes one train may have."""
    return min(TRAIN_DATAGRAMS, max(1, TRAIN_BYTES // (size + SEALING)))


def _get(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _put(data: bytearray, at: int, number: int) -> None:
    data[at : at + 2] = (number & 0xFFFF).to_bytes(2, "big")
