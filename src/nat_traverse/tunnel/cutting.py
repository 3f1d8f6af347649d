"""From packets of a TUN device to plaintexts of sealed datagrams; see `tunnel.packets`."""

from __future__ import annotations

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
    from collections.abc import Callable, Iterable

# What the kernel takes in one send with UDP_SEGMENT, as in `net.offload`: so many datagrams, and so
# many bytes. Each datagram has 32 bytes more than its plaintext (`wire.sealed`).
TRAIN_DATAGRAMS: Final = 64
TRAIN_BYTES: Final = 65_000
SEALING: Final = 32

_WHOLE: Final = bytes([WHOLE])
_PARTIAL: Final = bytes([PARTIAL])

_FLAGS: Final = 13  # bytes from the start of the TCP header
# Flags that mean something else in each part than in all: SYN has a sequence number of its own, and
# URG's pointer counts from the segment that it is in (RFC 9293, section 3.1).
_SYN_URG: Final = 0x22

_GSO_TCP: Final = {ip.IPV4: virtio.GSO_TCPV4, ip.IPV6: virtio.GSO_TCPV6}


def _ignore(_packet: memoryview, _largest: int) -> None:
    """Tell nobody."""


class Cutter:
    """Cuts what is read from the device into plaintexts of at most `largest_plaintext` bytes.

    TCP is a stream, and is cut wherever it has to be. `on_too_large` is called with each packet for
    which there is no way, and with the largest that there would be one for, in bytes; the packet is
    to be used during the call only. If the device's MTU is `mtu`, this happens only after the limit
    has become lower.

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
                return self._cut_packet(packet, flags, start, offset)
            if flags & virtio.NEEDS_CHECKSUM:
                return [[_with_checksum(packet, start, offset)]]
        except RemoteProtocolError:
            self.unusable += 1
            return []
        return [[_WHOLE + packet]]

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
            # A datagram of UDP is one.
            if not is_tcp or room <= 0:
                return self._refuse(packet)
            size = room
        return _parts(packet, bytes(packet[:begin]), size)

    def _cut_packet(
        self, packet: memoryview, flags: int, start: int, offset: int
    ) -> list[list[bytes]]:
        """Cut a packet of TCP that is too large, as if the kernel had left that to us.

        With IPv6 the device takes 1,280 bytes (RFC 8200, section 5), even if the path takes less.
        """
        try:
            header = ip.parse(packet)
            begin = ip.end_of_headers(packet, header)
        except RemoteProtocolError:
            return self._refuse(packet)
        at = header.transport_at
        size = self.mtu - begin
        if header.protocol != ip.TCP or packet[at + _FLAGS] & _SYN_URG or size <= 0:
            return self._refuse(packet)
        headers = bytearray(packet[:begin])
        place = at + ip.CHECKSUM_AT[ip.TCP]
        if not flags & virtio.NEEDS_CHECKSUM:
            partial = ip.pseudo_sum(header, len(packet) - at)
            # Each part gets a sum that is right, so this one has to be.
            if (partial + ip.ones_sum(packet[at:])) % 0xFFFF:
                return self._refuse(packet)
            headers[place : place + 2] = partial.to_bytes(2, "big")
        elif (start, start + offset) != (at, place):
            return self._refuse(packet)
        return _parts(packet, bytes(headers), size)

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
        length, count = len(train[0]), len(train)
        # A train may be continued as long as its last plaintext has full size.
        if count <= room and (length == size or (length < size and count == 1)):
            coupled[-1] += train
            room -= count
        else:
            coupled.append(list(train))
            size = length
            room = _train_length(size) - count
        if len(train[-1]) < size:
            room = 0
    return coupled


def _with_checksum(packet: memoryview, start: int, offset: int) -> bytes:
    """Return the plaintext of one packet whose checksum is partial.

    If the other end finds the place by itself, it stays partial. Otherwise, as in a packet within
    a packet, it is completed here. Raises RemoteProtocolError if there is no such place.
    """
    protocol, at, _ = ip.locate(packet)
    if at and at == start and ip.CHECKSUM_AT[protocol] == offset:
        return _PARTIAL + packet
    header = ip.parse(packet)
    is_found = header.transport_at == start and not header.is_fragment
    if is_found and ip.CHECKSUM_AT.get(header.protocol) == offset:
        ip.end_of_headers(packet, header)
        return _PARTIAL + packet
    place = start + offset
    if place + 2 > len(packet):
        raise RemoteProtocolError(f"a checksum at {place} of {len(packet)} bytes")
    # A sum of zero is the other zero (RFC 768); for all but UDP the two are the same.
    checksum = ip.checksum(packet[start:]) or 0xFFFF
    whole = bytearray(_WHOLE)
    whole += packet
    place += WHOLE_OVERHEAD
    whole[place : place + 2] = checksum.to_bytes(2, "big")
    return bytes(whole)


def _parts(packet: memoryview, headers: bytes, size: int) -> list[list[bytes]]:
    """Return the trains of a super-packet's segments of `size` bytes, each behind `headers`."""
    begin = len(headers)
    head, join = HEAD.pack, b"".join
    parts = [
        join((head(PART, index, size), headers, packet[at : at + size]))
        for index, at in enumerate(range(begin, len(packet), size))
    ]
    parts[-1] = bytes((LAST,)) + parts[-1][1:]
    limit = _train_length(PART_OVERHEAD + begin + size)
    return [parts[at : at + limit] for at in range(0, len(parts), limit)]


def _train_length(size: int) -> int:
    """Return how many plaintexts of `size` bytes one train may have."""
    return min(TRAIN_DATAGRAMS, max(1, TRAIN_BYTES // (size + SEALING)))
