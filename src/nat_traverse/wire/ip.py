"""The headers of IPv4 and IPv6 packets, as far as who carries packets has to read them.

What is read here may have been written by anybody. A packet counts as well-formed if its version,
the lengths of its headers and its own length agree; IPv4's checksum of the header is left to the
kernel that the packet is given to, which looks at it anyway.

Checksums are those of RFC 1071. 65536 is 1 modulo 65535, so the ones' complement sum of 16-bit
words is the whole text, as one number, modulo 65535: one division instead of a loop.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from nat_traverse.errors import RemoteProtocolError

Buffer: TypeAlias = bytes | bytearray | memoryview

# Protocol numbers of IANA's registry.
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
_HOP_BY_HOP: Final = 0
_ROUTING: Final = 43
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_DESTINATION_OPTIONS: Final = 60

IPV4: Final = 4
IPV6: Final = 6
IPV4_HEADER: Final = 20  # bytes, without options (RFC 791, section 3.1)
IPV6_HEADER: Final = 40  # bytes, without extensions (RFC 8200, section 3)
TCP_HEADER: Final = 20  # bytes, without options (RFC 9293, section 3.1)
UDP_HEADER: Final = 8  # bytes (RFC 768)
LARGEST: Final = 65_535  # bytes of a packet: lengths have 16 bits, and no jumbogram is carried

# Where the checksum is, in bytes from the start of the header.
CHECKSUM_AT: Final = {TCP: 16, UDP: 6}

# Headers between IPv6's own and that of the transport. RFC 8200, section 4.1, recommends an order
# in which six are used at most; the rest is for who writes them otherwise.
_EXTENSIONS: Final = frozenset(
    {_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS}
)
MOST_EXTENSIONS: Final = 8
_SMALLEST_EXTENSION: Final = 8  # bytes (RFC 8200, section 4; RFC 4302 has at least 12)

# Version and length of the header, length, flags and offset, protocol, source, destination.
_IPV4: Final = struct.Struct("!BxHxxHxBxx4s4s")
_IPV4_START: Final = struct.Struct("!BxHxxHxB")  # the same as far as the protocol
# Length of what follows, protocol, source, destination.
_IPV6: Final = struct.Struct("!4xHBx16s16s")
_IPV6_START: Final = struct.Struct("!4xHB")
_NO_OPTIONS: Final = IPV4 << 4 | IPV4_HEADER >> 2  # the first byte of such an IPv4 header
# More fragments, or an offset: everything in that field but "don't fragment" and a reserved bit.
_IPV4_FRAGMENT: Final = 0x3FFF
_IPV6_FRAGMENT: Final = 0xFFF9  # the same of a fragment header, whose bits 1 and 2 are reserved


class Header(NamedTuple):
    """What the headers of a packet say of it.

    `protocol` is what begins `transport_at` bytes from the start; `length` is that of the whole
    packet in bytes. In a fragment, even in the first one, the transport's checksum is not that of
    the bytes there are.
    """

    version: int
    source: bytes
    destination: bytes
    protocol: int
    transport_at: int
    length: int
    is_fragment: bool


def parse(packet: Buffer) -> Header:
    """Return the header of a packet that is exactly as long as it says.

    Raises RemoteProtocolError if this is no well-formed packet of IPv4 or IPv6.
    """
    header = parse_headers(packet)
    if header.length != len(packet):
        raise RemoteProtocolError(f"a packet of {header.length} bytes in {len(packet)}")
    return header


def parse_headers(data: Buffer) -> Header:
    """Return the header of a packet of which `data` need not be all; raises RemoteProtocolError."""
    version = data[0] >> 4 if data else 0
    if version == IPV4:
        if len(data) < IPV4_HEADER:
            raise RemoteProtocolError(f"an IPv4 header of {len(data)} bytes")
        first, length, fragment, protocol, source, destination = _IPV4.unpack_from(data)
        at = (first & 0x0F) << 2
        if not IPV4_HEADER <= at <= length or at > len(data):
            raise RemoteProtocolError(f"an IPv4 header of {at} bytes in a packet of {length}")
        is_fragment = fragment & _IPV4_FRAGMENT != 0
        return Header(IPV4, source, destination, protocol, at, length, is_fragment)
    if version == IPV6:
        if len(data) < IPV6_HEADER:
            raise RemoteProtocolError(f"an IPv6 header of {len(data)} bytes")
        payload, protocol, source, destination = _IPV6.unpack_from(data)
        at, length, is_fragment = IPV6_HEADER, IPV6_HEADER + payload, False
        if protocol in _EXTENSIONS:
            protocol, at, is_fragment = _walk(data, protocol)
            if at > length:
                raise RemoteProtocolError(f"IPv6 headers of {at} bytes in a packet of {length}")
        return Header(IPV6, source, destination, protocol, at, length, is_fragment)
    raise RemoteProtocolError(f"a packet of version {version}")


def end_of_headers(data: Buffer, header: Header) -> int:
    """Return where the payload of TCP or UDP begins, in bytes from the start.

    Raises RemoteProtocolError if the packet has neither, is a fragment, or `data` ends before.
    """
    at = header.transport_at
    if header.is_fragment:
        raise RemoteProtocolError("a fragment")
    if header.protocol == TCP and len(data) >= at + TCP_HEADER:
        size = (data[at + 12] & 0xF0) >> 2
        if size < TCP_HEADER:
            raise RemoteProtocolError(f"a TCP header of {size} bytes")
    elif header.protocol == UDP:
        size = UDP_HEADER
    else:
        raise RemoteProtocolError(f"no transport header of protocol {header.protocol}")
    if at + size > len(data):
        raise RemoteProtocolError(f"headers of {at + size} bytes in {len(data)}")
    return at + size


def locate(packet: Buffer) -> tuple[int, int, int]:
    """Return protocol, `transport_at` and the end of the headers of a usual packet, or else zeros.

    Usual is an unfragmented packet of TCP or UDP without options of IPv4 or extension headers of
    IPv6. Of these it says what `parse` and `end_of_headers` do, in a third of the time. It raises
    nothing: what another packet is, or what is wrong with it, is left to them.
    """
    length = len(packet)
    at = protocol = 0
    if length >= IPV6_HEADER and packet[0] >> 4 == IPV6:
        payload, protocol = _IPV6_START.unpack_from(packet)
        if payload == length - IPV6_HEADER:
            at = IPV6_HEADER
    elif length >= IPV4_HEADER:
        first, total, fragment, protocol = _IPV4_START.unpack_from(packet)
        if first == _NO_OPTIONS and total == length and not fragment & _IPV4_FRAGMENT:
            at = IPV4_HEADER
    size = 0
    if protocol == UDP:
        size = UDP_HEADER
    elif protocol == TCP and at + TCP_HEADER <= length:
        size = (packet[at + 12] & 0xF0) >> 2
        if size < TCP_HEADER:
            return 0, 0, 0
    return (protocol, at, at + size) if at and size and at + size <= length else (0, 0, 0)


def ones_sum(data: Buffer) -> int:
    """Return the ones' complement sum of 16-bit words, an odd byte at the end padded with zero.

    It is 0 only if all of `data` is: ones' complement has two zeros, and the sum of anything else
    never becomes the positive one.
    """
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number and (number % 0xFFFF or 0xFFFF)


def checksum(data: Buffer) -> int:
    """Return the checksum (RFC 1071) of `data`, whose own field has to be zero or a partial sum."""
    return 0xFFFF - ones_sum(data)


def pseudo_sum(header: Header, length: int) -> int:
    """Return the sum over the pseudo-header of `length` bytes of TCP, UDP or ICMPv6.

    It is the same for IPv4 (RFC 9293, section 3.1) and IPv6 (RFC 8200, section 8.1): the fields
    have other sizes there, but what they add is zero.
    """
    addresses = int.from_bytes(header.source + header.destination, "big")
    return (addresses + header.protocol + length) % 0xFFFF or 0xFFFF


def _walk(data: Buffer, protocol: int) -> tuple[int, int, bool]:
    """Return protocol and place of what follows IPv6's extension headers; whether in fragments."""
    at, is_fragment = IPV6_HEADER, False
    for _ in range(MOST_EXTENSIONS):
        if at + _SMALLEST_EXTENSION > len(data):
            raise RemoteProtocolError("IPv6 extension headers are cut short")
        kind, protocol, size = protocol, data[at], data[at + 1]
        if kind == _FRAGMENT:
            field = data[at + 2] << 8 | data[at + 3]
            at += _SMALLEST_EXTENSION
            is_fragment = is_fragment or field & _IPV6_FRAGMENT != 0
            if field >> 3:  # not the first one: what follows is the middle of something
                return protocol, at, True
        elif kind == _AUTHENTICATION:
            at += (size + 2) << 2  # in words of four bytes (RFC 4302, section 2.2)
        else:
            at += (size + 1) << 3
        if at > len(data):
            raise RemoteProtocolError("an IPv6 extension header is cut short")
        if protocol not in _EXTENSIONS:
            return protocol, at, is_fragment
    raise RemoteProtocolError(f"more than {MOST_EXTENSIONS} IPv6 extension headers")
