"""From plaintexts of sealed datagrams to packets for a TUN device; see `tunnel.packets`."""

from __future__ import annotations

import struct
from collections import Counter
from functools import lru_cache
from itertools import chain
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
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.wire.ip import Buffer, Header

# Why a plaintext was dropped: the words under which the Joiner counts.
UNKNOWN_KIND: Final = "unknown kind"
MALFORMED: Final = "malformed"  # headers that contradict themselves or the length
FOREIGN: Final = "foreign"  # from a source that the peer must not send from
BAD_SEGMENT: Final = "bad segment"  # not of the size that it says
TOO_LONG: Final = "too long"  # joined, it would be more than an IP packet

# No packet is smaller than an IPv4 header.
_SHORTEST: Final = WHOLE_OVERHEAD + ip.IPV4_HEADER

# How many datagrams that came as packets become one super-packet: as many as the kernel's own GRO
# joins (UDP_GRO_CNT_MAX), so that no program gets more at once than it is used to.
MOST_DATAGRAMS: Final = 64

# How many parts become one. `writev` takes at most 1,024 pieces (IOV_MAX), of which the headers are
# one. Only segments of less than 66 bytes come in such numbers.
MOST_PARTS: Final = 1000

# What has to be the same in those, by where their UDP header begins: everything from the kind to
# the end of the headers, but IPv4's id and checksum.
_FLOW: Final = {
    ip.IPV4_HEADER: struct.Struct("5s2x4s2x16s"),
    ip.IPV6_HEADER: struct.Struct("49s"),
}

_GSO_TCP: Final = {ip.IPV4: virtio.GSO_TCPV4, ip.IPV6: virtio.GSO_TCPV6}
_IPV4_ID, _IPV4_FLAGS, _IPV4_CHECKSUM = 4, 6, 10  # bytes from the start of the IPv4 header
_DONT_FRAGMENT: Final = 0x40  # of those flags, without the bits of the offset beside them
_ADDRESSES: Final = {ip.IPV4_HEADER: 12, ip.IPV6_HEADER: 8}  # the same, up to the header's end
_LENGTH: Final = {ip.IPV4: 2, ip.IPV6: 4}  # the same, of the length
_SEQUENCE, _FLAGS = 4, 13  # bytes from the start of the TCP header
_UDP_LENGTH, _UDP_CHECKSUM = 4, 6  # the same of UDP
_FIN_PSH, _CWR = 0x09, 0x80  # flags of TCP (RFC 9293, section 3.1)


class Joiner:
    """Makes of plaintexts what is to be written to the device.

    `admits` tells, of a source and a destination (4 or 16 bytes each), whether the peer may send
    that. It is asked about every packet, but for those with the addresses of one that it has just
    admitted in the same call. A kernel before Linux 6.2 does not take super-packets of UDP: then
    `joins_udp` is to be False.

    `dropped` counts plaintexts by the words above.
    """

    def __init__(self, admits: Callable[[bytes, bytes], bool], *, joins_udp: bool = True) -> None:
        self.dropped: Counter[str] = Counter()
        self._admits = admits
        self._joins_udp = joins_udp
        # Sources and destinations, each pair in one, as they stand in the header.
        self._admitted: set[bytes] = set()

    def join(self, plaintexts: Sequence[bytes]) -> list[list[Buffer]]:
        """Return what is to be written, each with one call: buffers that belong together."""
        self._admitted.clear()
        written: list[list[Buffer]] = []
        rest = filter(None, plaintexts)  # an empty one is only a sign of life
        for first in rest:
            # Whoever takes one takes from the rest those that continue it, and returns the first
            # one that does not, if it has come upon one.
            plaintext: bytes | None = first
            while plaintext is not None:
                kind = plaintext[0]
                if len(plaintext) < _SHORTEST:
                    self.dropped[MALFORMED] += 1
                    plaintext = None
                elif kind < PART:
                    plaintext = self._take_packet(plaintext, rest, written)
                elif kind <= LAST:
                    plaintext = self._take_parts(plaintext, rest, written)
                else:
                    self.dropped[UNKNOWN_KIND] += 1
                    plaintext = None
        return written

    # -- whole packets ------------------------------------------------------------------------

    def _take_packet(
        self, plaintext: bytes, rest: Iterator[bytes], written: list[list[Buffer]]
    ) -> bytes | None:
        packet = plaintext[WHOLE_OVERHEAD:]
        protocol, at, end = ip.locate(packet)
        if not end:
            self._add_unusual(plaintext[0], packet, written)
            return None
        addresses = packet[_ADDRESSES[at] : at]
        if addresses not in self._admitted:
            half = len(addresses) >> 1
            if not self._admits(addresses[:half], addresses[half:]):
                self.dropped[FOREIGN] += 1
                return None
            self._admitted.add(addresses)
        if plaintext[0] == WHOLE:
            written.append([virtio.PLAIN, packet])
            return None
        other = None
        if protocol == ip.UDP and self._joins_udp:
            other = next(rest, None)
            if other is not None and len(other) == len(plaintext) and _is_joinable(packet, at, end):
                return _join_datagrams(plaintext, at, chain((other,), rest), written)
        written.append([_single(protocol, at, end), packet])
        return other

    def _add_unusual(self, kind: int, packet: bytes, written: list[list[Buffer]]) -> None:
        """Take a packet of which everything has to be looked at."""
        offload = virtio.PLAIN
        try:
            header = ip.parse(packet)
            if kind == PARTIAL:
                end = ip.end_of_headers(packet, header)
                offload = _single(header.protocol, header.transport_at, end)
        except RemoteProtocolError:
            self.dropped[MALFORMED] += 1
            return
        if self._admits(header.source, header.destination):
            written.append([offload, packet])
        else:
            self.dropped[FOREIGN] += 1

    # -- parts of super-packets ---------------------------------------------------------------

    def _take_parts(
        self, plaintext: bytes, rest: Iterator[bytes], written: list[list[Buffer]]
    ) -> bytes | None:
        run = self._begin(plaintext)
        if run is None:
            return None
        other = self._grow(run, rest) if run.may_grow else None
        self._finish(run, written)
        return other

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
        run = _Run(header, packet[:end], index, size, [chunk])
        run.has_last = kind == LAST
        run.may_grow = not run.has_last and (self._joins_udp or header.protocol == ip.TCP)
        return run

    def _grow(self, run: _Run, rest: Iterator[bytes]) -> bytes | None:
        """Take the parts that continue a run; returns the first one that does not."""
        headers, size, following = run.headers, run.size, run.index + 1
        start, end = PART_OVERHEAD + len(headers), run.index + MOST_PARTS
        unpack, add = HEAD.unpack_from, run.chunks.append
        for part in rest:
            # What has these headers is long enough for what stands before them.
            if not part.startswith(headers, PART_OVERHEAD):
                return part
            kind, index, segment = unpack(part)
            chunk = part[start:]
            if index != following or segment != size or index == end:
                return part
            if kind == LAST and 0 < len(chunk) <= size:
                add(chunk)
                run.has_last = True
                return None
            if kind != PART or len(chunk) != size:
                return part
            add(chunk)
            following += 1
        return None

    def _finish(self, run: _Run, written: list[list[Buffer]]) -> None:
        """Write what was joined, unless it would never have fit into one packet."""
        if run.end_of_payload + len(run.headers) > ip.LARGEST:
            self.dropped[TOO_LONG] += len(run.chunks)
        else:
            written.append([run.build_headers(), *run.chunks])


def _join_datagrams(
    plaintext: bytes, at: int, rest: Iterator[bytes], written: list[list[Buffer]]
) -> bytes | None:
    """Take a datagram that came as a packet, and those that follow with the same headers.

    Returns the first one that has others.
    """
    packet = plaintext[WHOLE_OVERHEAD:]
    end = at + ip.UDP_HEADER
    size = len(packet) - end
    most = min(MOST_DATAGRAMS, (ip.LARGEST - end) // size)
    begin, length = WHOLE_OVERHEAD + end, len(plaintext)
    unpack = _FLOW[at].unpack_from
    headers = unpack(plaintext)
    chunks: list[Buffer] = [packet[end:]]
    other = None
    for following in rest:
        if len(following) != length or unpack(following) != headers or len(chunks) == most:
            other = following
            break
        chunks.append(following[begin:])
    if len(chunks) == 1:
        written.append([_single(ip.UDP, at, end), packet])
    else:
        run = _Run(ip.parse(packet), packet[:end], 0, size, chunks)
        written.append([run.build_headers(), *chunks])
    return other


class _Run:
    """Parts that follow each other: the first one's headers and index, and the segments."""

    __slots__ = ("_header", "chunks", "has_last", "headers", "index", "may_grow", "size")

    def __init__(
        self, header: Header, headers: bytes, index: int, size: int, chunks: list[Buffer]
    ) -> None:
        self._header = header
        self.headers = headers
        self.index = index
        self.size = size
        self.chunks = chunks
        self.may_grow = True
        self.has_last = False

    @property
    def end_of_payload(self) -> int:
        """Where the last segment ends, in bytes from the first one of the super-packet."""
        return (self.index + len(self.chunks) - 1) * self.size + len(self.chunks[-1])

    def build_headers(self) -> bytes:
        """Return the virtio header and the packet's, as they have to be before the segments."""
        header, index = self._header, self.index
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
            return _single(header.protocol, at, end) + changed
        offset = ip.CHECKSUM_AT[header.protocol]
        return (
            virtio.OFFLOAD.pack(virtio.NEEDS_CHECKSUM, kind, end, self.size, at, offset) + changed
        )

    def _change_tcp(self, changed: bytearray) -> int:
        """Make the TCP header that of the first segment; returns the kind of super-packet."""
        at, index = self._header.transport_at, self.index
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


def _is_joinable(packet: bytes, at: int, end: int) -> bool:
    """Tell whether a datagram is the same once a kernel has cut it out of a super-packet.

    Its id then goes on from the one before it, which is as good as any where nothing is put
    together by it (RFC 6864, section 4.1). But its length is set right, and a sum that there was
    none of is added: so both have to be there. And an empty one is no segment.
    """
    length = len(packet)
    return (
        length > end
        and packet[at + _UDP_LENGTH] << 8 | packet[at + _UDP_LENGTH + 1] == length - at
        and (at != ip.IPV4_HEADER or packet[_IPV4_FLAGS] == _DONT_FRAGMENT)
        and packet[at + _UDP_CHECKSUM : end] != b"\0\0"
    )


@lru_cache(maxsize=64)  # there are two of UDP, and some of TCP with its options
def _single(protocol: int, at: int, end: int) -> bytes:
    """Return the virtio header of one packet whose checksum is partial.

    Its transport's header begins `at` bytes from its start, and all headers end at `end`.
    """
    offset = ip.CHECKSUM_AT[protocol]
    return virtio.OFFLOAD.pack(virtio.NEEDS_CHECKSUM, virtio.GSO_NONE, end, 0, at, offset)


def _get(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _put(data: bytearray, at: int, number: int) -> None:
    data[at : at + 2] = (number & 0xFFFF).to_bytes(2, "big")
