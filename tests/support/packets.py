"""Packets of TCP and UDP with right checksums, and what a kernel makes of a frame of a TUN device.

Nothing of that uses the code under test. Checksums are summed word by word, as RFC 1071 describes
it. What does use it stands at the end: a Cutter and a Joiner as most of their tests want them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.tunnel.cutting import Cutter
from nat_traverse.tunnel.joining import Joiner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nat_traverse.wire.ip import Buffer

FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
TCP, UDP = 6, 17
NEEDS_CHECKSUM = 1
GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_ECN = 1, 4, 5, 0x80

LARGEST = 1368  # bytes of a plaintext in a datagram of 1,400 bytes
# Nothing may be in both: each byte of the payload tells where it comes from.
PAYLOAD = struct.pack("!16250I", *range(16250))

_VIRTIO = struct.Struct("=BBHHHH")
_CHECKSUM_AT = {TCP: 16, UDP: 6}

ADDRESSES = {
    4: (bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])),
    6: (b"\xfd\x77" + bytes(13) + b"\x01", b"\xfd\x77" + bytes(13) + b"\x02"),
}


def ipv4(
    protocol: int,
    transport: bytes,
    *,
    source: bytes = ADDRESSES[4][0],
    destination: bytes = ADDRESSES[4][1],
    identification: int = 0x1234,
    fragment: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    """Return an IPv4 packet. `fragment` is the field of flags and offset: don't fragment."""
    size = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | size // 4,
        0,
        size + len(transport),
        identification,
        fragment,
        64,
        protocol,
        0,
        source,
        destination,
    )
    header = bytearray(head + options)
    header[10:12] = (~words(header) & 0xFFFF).to_bytes(2, "big")
    return bytes(header) + transport


def ipv6(
    protocol: int,
    transport: bytes,
    *,
    source: bytes = ADDRESSES[6][0],
    destination: bytes = ADDRESSES[6][1],
    extensions: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """Return an IPv6 packet; an extension is its kind and all of its bytes but the first."""
    kinds = [*(kind for kind, _ in extensions), protocol]
    chain = b"".join(
        bytes([following]) + rest
        for following, (_, rest) in zip(kinds[1:], extensions, strict=True)
    )
    payload = chain + transport
    head = struct.pack("!IHBB16s16s", 6 << 28, len(payload), kinds[0], 64, source, destination)
    return head + payload


def ip(version: int, protocol: int, transport: bytes, identification: int = 0x1234) -> bytes:
    """Return a packet of either version, with its transport's checksum put right."""
    source, destination = ADDRESSES[version]
    changed = bytearray(transport)
    at = _CHECKSUM_AT[protocol]
    changed[at : at + 2] = bytes(2)
    total = pseudo(source + destination, protocol, len(changed)) + words(changed)
    changed[at : at + 2] = ((~fold(total) & 0xFFFF) or 0xFFFF).to_bytes(2, "big")
    if version == 4:
        return ipv4(protocol, bytes(changed), identification=identification)
    return ipv6(protocol, bytes(changed))


def tcp(
    payload: bytes,
    *,
    version: int = 4,
    flags: int = ACK,
    sequence: int = 1000,
    options: bytes = b"",
    identification: int = 0x1234,
) -> bytes:
    """Return a TCP packet; `options` has a multiple of four bytes."""
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", 40000, 5001, sequence, 77, offset, flags, 502, 0, 0)
    return ip(version, TCP, head + options + payload, identification)


def udp(payload: bytes, *, version: int = 4, identification: int = 0x1234) -> bytes:
    """Return a UDP packet."""
    head = struct.pack("!HHHH", 40000, 5001, 8 + len(payload), 0)
    return ip(version, UDP, head + payload, identification)


def whole(packet: bytes) -> bytes:
    """Return the frame of a packet of which nothing is left to be done."""
    return bytes(_VIRTIO.size) + packet


def partial(packet: bytes, size: int = 0) -> bytes:
    """Return the frame of a packet with only the sum of the pseudo-header in its checksum.

    With `size` it is a super-packet that is to be cut into segments of so many bytes.
    """
    headers = Headers.of(packet)
    changed = bytearray(packet)
    at = headers.start + _CHECKSUM_AT[headers.protocol]
    changed[at : at + 2] = headers.pseudo(len(packet)).to_bytes(2, "big")
    kind = 0
    if size and headers.protocol == UDP:
        kind = GSO_UDP
    elif size:
        kind = GSO_TCPV4 if headers.version == 4 else GSO_TCPV6
        kind |= GSO_ECN if packet[headers.start + 13] & CWR else 0
    offset = _CHECKSUM_AT[headers.protocol]
    # The kernel's length of the headers is only a hint: it may be more.
    hint = min(len(packet), headers.end + 64)
    head = _VIRTIO.pack(NEEDS_CHECKSUM, kind, hint, size, headers.start, offset)
    return head + bytes(changed)


def write(frame: bytes) -> list[bytes]:
    """Return the packets that a kernel makes of a frame which is written to a TUN device."""
    flags, _, header_length, _, _, _ = _VIRTIO.unpack_from(frame)
    if flags & NEEDS_CHECKSUM:
        assert header_length == Headers.of(frame[_VIRTIO.size :]).end
    return finish(frame)


def finish(frame: bytes) -> list[bytes]:
    """Return the packets that a frame stands for, with their checksums."""
    flags, kind, header_length, size, start, offset = _VIRTIO.unpack_from(frame)
    packet = frame[_VIRTIO.size :]
    if not flags & NEEDS_CHECKSUM:
        assert not kind
        return [packet]
    headers = Headers.of(packet)
    assert header_length >= headers.end
    assert (start, offset) == (headers.start, _CHECKSUM_AT[headers.protocol])
    at = start + offset
    assert int.from_bytes(packet[at : at + 2], "big") == headers.pseudo(len(packet))
    if not kind:
        return [_complete(packet, headers)]
    is_tcp = headers.protocol == TCP
    expected = (GSO_TCPV4 if headers.version == 4 else GSO_TCPV6) if is_tcp else GSO_UDP
    assert kind & ~GSO_ECN == expected
    if is_tcp:
        assert bool(packet[start + 13] & CWR) == bool(kind & GSO_ECN)
    assert headers.end + size < len(packet), "a super-packet of one segment"
    places = range(headers.end, len(packet), size)
    return [
        _segment(packet, headers, index, size, is_last=at == places[-1])
        for index, at in enumerate(places)
    ]


def verify(packet: bytes) -> None:
    """Check lengths and checksums of a packet of TCP or UDP."""
    headers = Headers.of(packet)
    if headers.version == 4:
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        assert words(packet[: headers.start]) == 0xFFFF
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
    if headers.protocol == UDP:
        length = packet[headers.start + 4 : headers.start + 6]
        assert int.from_bytes(length, "big") == len(packet) - headers.start
    assert fold(headers.pseudo(len(packet)) + words(packet[headers.start :])) == 0xFFFF


def are_one_flow(first: bytes, second: bytes) -> bool:
    """Tell whether two whole packets with partial sums may be datagrams of one super-packet.

    That is: datagrams of UDP with equal headers, except that of IPv4's number, and of the checksum
    that is over it, nothing depends. Neither has options or extension headers.
    """
    return _flow(first) is not None and _flow(first) == _flow(second)


def numbered(packet: bytes, number: int) -> bytes:
    """Return a packet with another number, if it is one of IPv4, which has some."""
    if packet[0] >> 4 == 6:
        return packet
    changed = bytearray(packet)
    changed[4:6] = struct.pack("!H", number & 0xFFFF)
    changed[10:12] = bytes(2)
    changed[10:12] = (~words(changed[: (packet[0] & 15) * 4]) & 0xFFFF).to_bytes(2, "big")
    return bytes(changed)


def number_of(packet: bytes) -> int:
    """Return the number of a packet of IPv4, or what stands in its place."""
    return int.from_bytes(packet[4:6], "big")


class Headers(NamedTuple):
    """Where what is in a packet without extension headers."""

    version: int
    protocol: int
    start: int
    end: int
    addresses: bytes

    @classmethod
    def of(cls, packet: bytes) -> Headers:
        """Look at a packet."""
        version = packet[0] >> 4
        if version == 4:
            start, protocol, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
        else:
            start, protocol, addresses = 40, packet[6], packet[8:40]
        size = 8 if protocol == UDP else (packet[start + 12] >> 4) * 4
        return cls(version, protocol, start, start + size, bytes(addresses))

    def pseudo(self, length: int) -> int:
        """Return the sum of the pseudo-header in a packet of `length` bytes."""
        return pseudo(self.addresses, self.protocol, length - self.start)


def pseudo(addresses: bytes, protocol: int, length: int) -> int:
    """Return the sum over both addresses, the protocol and the length of the transport's part."""
    return words(addresses + struct.pack("!HH", protocol, length))


def words(data: bytes | bytearray) -> int:
    """Return the ones' complement sum of 16-bit words."""
    padded = bytes(data) + bytes(len(data) % 2)
    return fold(sum(struct.unpack(f"!{len(padded) // 2}H", padded)))


def fold(total: int) -> int:
    """Add what is carried over 16 bits, until nothing is."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _flow(packet: bytes) -> tuple[bytes, int] | None:
    """Return headers and length, or None if this can't be a datagram of several."""
    if packet[:1] == b"\x45" and packet[6:8] == b"\x40\0" and packet[9] == UDP:
        headers, length = bytearray(packet[:28]), packet[2:4]
        headers[4:6] = headers[10:12] = bytes(2)
        are_right = int.from_bytes(length, "big") == len(packet)
    elif packet and packet[0] >> 4 == 6 and packet[6] == UDP:
        headers, length = bytearray(packet[:48]), packet[4:6]
        are_right = int.from_bytes(length, "big") == len(packet) - 40
    else:
        return None
    payload = len(packet) - len(headers)
    are_right = are_right and headers[-4:-2] == (8 + payload).to_bytes(2, "big")
    has_sum = headers[-2:] != bytes(2)
    return (bytes(headers), len(packet)) if payload > 0 and are_right and has_sum else None


def _segment(packet: bytes, headers: Headers, index: int, size: int, *, is_last: bool) -> bytes:
    """Return one segment of a super-packet, as Linux makes it."""
    at = headers.end + index * size
    changed = bytearray(packet[: headers.end] + packet[at : at + size])
    start = headers.start
    if headers.version == 4:
        identification = int.from_bytes(packet[4:6], "big") + index
        changed[2:6] = struct.pack("!HH", len(changed), identification & 0xFFFF)
        changed[10:12] = bytes(2)
        changed[10:12] = (~words(changed[:start]) & 0xFFFF).to_bytes(2, "big")
    else:
        changed[4:6] = (len(changed) - 40).to_bytes(2, "big")
    if headers.protocol == UDP:
        changed[start + 4 : start + 6] = (len(changed) - start).to_bytes(2, "big")
    else:
        sequence = int.from_bytes(packet[start + 4 : start + 8], "big") + index * size
        changed[start + 4 : start + 8] = struct.pack("!I", sequence & 0xFFFFFFFF)
        if index:
            changed[start + 13] &= ~CWR
        if not is_last:
            changed[start + 13] &= ~(FIN | PSH)
    return _complete(bytes(changed), headers)


def _complete(packet: bytes, headers: Headers) -> bytes:
    """Return a packet with its transport's checksum."""
    changed = bytearray(packet)
    at = headers.start + _CHECKSUM_AT[headers.protocol]
    changed[at : at + 2] = headers.pseudo(len(packet)).to_bytes(2, "big")
    checksum = (~words(changed[headers.start :]) & 0xFFFF) or 0xFFFF
    changed[at : at + 2] = checksum.to_bytes(2, "big")
    return bytes(changed)


# -- the code under test --------------------------------------------------------------------------


def cut(frame: bytes, largest: int = LARGEST) -> list[bytes]:
    """Return the plaintexts of a frame, of all its trains."""
    return [part for train in Cutter(largest).cut(memoryview(frame)) for part in train]


def join(parts: list[bytes]) -> list[bytes]:
    """Return the frames that are written, where nothing may be dropped."""
    joiner = Joiner(admit)
    found = frames(joiner.join(parts))
    assert not joiner.dropped
    return found


def frames(written: Iterable[list[Buffer]]) -> list[bytes]:
    """Return what a Joiner wants written, each frame in one piece."""
    return [b"".join(buffers) for buffers in written]


def admit(_source: bytes, _destination: bytes) -> bool:
    """Let a packet in, wherever it says it is from."""
    return True
