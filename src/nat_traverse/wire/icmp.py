"""The answer to a packet that is too large: ICMP's part of path MTU discovery.

For IPv4 it is "fragmentation needed" with the MTU in it (RFC 1191), for IPv6 "packet too big" (RFC
8201). Without it the sender repeats what can never arrive. It is sent only where the rules for
errors allow one (RFC 1812, section 4.3.2.7; RFC 4443, section 2.4), so that no error is answered by
an error, and none goes to many.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.model import IPV6_MINIMUM_MTU
from nat_traverse.wire import ip

if TYPE_CHECKING:
    from collections.abc import Container

    from nat_traverse.wire.ip import Buffer, Header

# The most that an answer may have. IPv4: RFC 1812, section 4.3.2.3, "as much of the original as
# possible" within 576 bytes; IPv6: RFC 4443, section 2.4 (c), within the smallest MTU.
LONGEST_IPV4: Final = 576
LONGEST_IPV6: Final = IPV6_MINIMUM_MTU

_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4  # type and code (RFC 792)
_TOO_BIG: Final = 2  # type (RFC 4443, section 3.2)
# Types of ICMP that are errors: RFC 1812, section 4.3.2.7, with source quench and redirect.
_ERRORS: Final = frozenset({3, 4, 5, 11, 12})
# Types of ICMPv6 below 128 are errors (RFC 4443, section 2.1), and 137 is redirect (2.4, e.2).
_ERRORS_ICMPV6: Final = frozenset({*range(128), 137})

_HOP_LIMIT: Final = 64  # RFC 1700's default, and that of all systems of today
_PRECEDENCE: Final = 0xC0  # internetwork control (RFC 1812, section 4.3.2.5)
_DONT_FRAGMENT: Final = 0x40  # in the first byte of flags and offset (RFC 791)
_OFFSET: Final = 0x1FFF
_NULL_NET, _LOOPBACK_NET, _FIRST_MULTICAST = 0, 127, 224  # first bytes of IPv4 addresses
_MULTICAST_IPV6: Final = 0xFF  # the first byte (RFC 4291, section 2.7)

# Type, code, checksum, two bytes that are not used, MTU.
_FRAGMENTATION: Final = struct.Struct("!BBHHH")
# Type, code, checksum, MTU.
_BIG: Final = struct.Struct("!BBHI")
# Version, type of service, length, id, flags, TTL, protocol, checksum, source, destination.
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
# Version with traffic class and flow label, length, protocol, hop limit, source, destination.
_IPV6: Final = struct.Struct("!IHBB16s16s")


def too_big(packet: Buffer, mtu: int, source: bytes) -> bytes | None:
    """Return the packet that tells the sender of `packet` that only `mtu` bytes go through.

    `source` is the address that answers, of the same family (4 or 16 bytes); with another one this
    raises LocalProtocolError. None if this packet may not be answered, if it is none, and where
    the answer would be of no use: to an IPv4 packet that may be fragmented, and to an IPv6 one
    when `mtu` is below 1280, which its sender would not believe (RFC 8201, section 4).
    """
    try:
        header = ip.parse(packet)
    except RemoteProtocolError:
        return None
    if len(source) != len(header.source):
        raise LocalProtocolError(f"a source address of {len(source)} bytes for IPv{header.version}")
    if header.version == ip.IPV4:
        return _fragmentation_needed(packet, header, mtu, source)
    return _packet_too_big(packet, header, mtu, source)


def _fragmentation_needed(packet: Buffer, header: Header, mtu: int, source: bytes) -> bytes | None:
    if not packet[6] & _DONT_FRAGMENT or (packet[6] << 8 | packet[7]) & _OFFSET:
        return None
    if header.destination[0] >= _FIRST_MULTICAST or not _is_host(header.source):
        return None
    if header.protocol == ip.ICMP and _begins_with(packet, header, _ERRORS):
        return None
    quoted = bytes(packet[: LONGEST_IPV4 - ip.IPV4_HEADER - _FRAGMENTATION.size])
    mtu = min(mtu, 0xFFFF)
    message = _FRAGMENTATION.pack(_UNREACHABLE, _FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
    message = _with_sum(message, ip.checksum(message))
    length = ip.IPV4_HEADER + len(message)
    # With "don't fragment" set, the number that tells fragments apart may be 0 (RFC 6864).
    fields = (0x45, _PRECEDENCE, length, 0, _DONT_FRAGMENT << 8, _HOP_LIMIT, ip.ICMP)
    unsummed = _IPV4.pack(*fields, 0, source, header.source)
    return _IPV4.pack(*fields, ip.checksum(unsummed), source, header.source) + message


def _packet_too_big(packet: Buffer, header: Header, mtu: int, source: bytes) -> bytes | None:
    # A destination that is many is no reason against it here: RFC 4443, section 2.4 (e.3). Nor is
    # a fragment, which has to become smaller at its source as well.
    if mtu < IPV6_MINIMUM_MTU or not any(header.source):
        return None
    if header.source[0] == _MULTICAST_IPV6:
        return None
    # An error always fits into 1280 bytes and so never comes in fragments.
    is_icmp = header.protocol == ip.ICMPV6 and not header.is_fragment
    if is_icmp and _begins_with(packet, header, _ERRORS_ICMPV6):
        return None
    quoted = bytes(packet[: LONGEST_IPV6 - ip.IPV6_HEADER - _BIG.size])
    message = _BIG.pack(_TOO_BIG, 0, 0, mtu) + quoted
    answer = ip.Header(
        ip.IPV6, source, header.source, ip.ICMPV6, ip.IPV6_HEADER, len(packet), is_fragment=False
    )
    total = ip.pseudo_sum(answer, len(message)) + ip.ones_sum(message)
    message = _with_sum(message, 0xFFFF - (total % 0xFFFF or 0xFFFF))
    fixed = _IPV6.pack(6 << 28, len(message), ip.ICMPV6, _HOP_LIMIT, source, header.source)
    return fixed + message


def _is_host(address: bytes) -> bool:
    """Tell whether an IPv4 address is that of a single host, as far as one can see."""
    return address[0] not in {_NULL_NET, _LOOPBACK_NET} and address[0] < _FIRST_MULTICAST


def _begins_with(packet: Buffer, header: Header, types: Container[int]) -> bool:
    """Tell whether the message of ICMP is of one of these types; one without a type is."""
    at = header.transport_at
    return at >= len(packet) or packet[at] in types


def _with_sum(message: bytes, checksum: int) -> bytes:
    return message[:2] + checksum.to_bytes(2, "big") + message[4:]
