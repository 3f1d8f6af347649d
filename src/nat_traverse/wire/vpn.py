"""What a VPN's ends say to each other: parts of packets, and the terms of the network.

(a) A *part* is the plaintext of one sealed datagram. It begins with its kind:

    0  WHOLE    kind (1)  packet
    1  PARTIAL  kind (1)  packet, whose TCP or UDP checksum is only the sum of the pseudo-header
    2  PART     kind (1)  index (2)  segment size (2)  headers  one segment
    3  LAST     the same; the segment is the last one, and may be shorter

2 and 3 are parts of a super-packet (see `wire.virtio`), each with all its headers as they stood
before the whole of it: a part makes a packet by itself, and so a datagram that is lost takes one
segment with it, as it would without a tunnel. `tunnel.packets` cuts and joins. An empty plaintext
is a sign of life and no part. Anything else is dropped.

(b) *Terms* are the value of the control frame NETWORK. Each side says once which addresses its end
of the tunnel has, which networks are reached through it, and how large a plaintext it can take:

    largest (2)  number of addresses (1)  number of networks (2)  address ...  network ...
    address: family (1, 4 or 6)  prefix (1)  address (4 or 16)
    network: family (1, 4 or 6)  prefix (1)  as many bytes of the address as the prefix needs

Bytes behind the last network are for later versions, and skipped. All numbers are big-endian.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple, TypeAlias

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire.control import LONGEST

# Kinds of parts.
WHOLE: Final = 0
PARTIAL: Final = 1
PART: Final = 2
LAST: Final = 3

# What begins a part of a super-packet. Parts are numbered from 0, and 88-byte segments are 744: so
# the index has two bytes. With the size it gives the segment's place, even if it comes alone.
HEAD: Final = struct.Struct("!BHH")
WHOLE_OVERHEAD: Final = 1  # bytes of a plaintext before the packet
PART_OVERHEAD: Final = HEAD.size

Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_TERMS: Final = struct.Struct("!HBH")
_ENTRY: Final = struct.Struct("!BB")
_ADDRESS_SIZES: Final = {4: 4, 6: 16}  # bytes, by family


class Terms(NamedTuple):
    """One side's end of the network.

    `addresses` are those of its device, `announced` the networks that are reached through it
    besides, `largest` the bytes of the largest plaintext that it can send and receive.
    """

    addresses: tuple[Interface, ...]
    announced: tuple[Network, ...]
    largest: int


def encode_terms(terms: Terms) -> bytes:
    """Return the value of a NETWORK frame.

    Raises LocalProtocolError if it becomes longer than a frame may be, with how many of the
    networks fit, or if a number has no room in its field.
    """
    counts = len(terms.addresses), len(terms.announced)
    try:
        value = _TERMS.pack(terms.largest, *counts)
    except struct.error as error:
        raise LocalProtocolError(f"terms that cannot be written: {error}") from error
    for interface in terms.addresses:
        prefix = interface.network.prefixlen
        value += _ENTRY.pack(interface.version, prefix) + interface.ip.packed
    if len(value) > LONGEST:
        raise LocalProtocolError(f"{counts[0]} addresses do not fit into one message")
    for fitting, network in enumerate(terms.announced):
        address = network.network_address.packed[: _octets(network.prefixlen)]
        value += _ENTRY.pack(network.version, network.prefixlen) + address
        if len(value) > LONGEST:
            raise LocalProtocolError(
                f"{counts[1]} networks do not fit into one message, only the first {fitting} do"
            )
    return value


def decode_terms(value: bytes) -> Terms:
    """Return what a NETWORK frame says; raises RemoteProtocolError."""
    if len(value) < _TERMS.size:
        raise RemoteProtocolError(f"terms of {len(value)} bytes")
    largest, addresses, networks = _TERMS.unpack_from(value)
    reader = _Reader(value, _TERMS.size)
    return Terms(
        tuple(reader.interface() for _ in range(addresses)),
        tuple(reader.network() for _ in range(networks)),
        largest,
    )


class _Reader:
    """Takes one entry after the other."""

    def __init__(self, value: bytes, at: int) -> None:
        self._value, self._at = value, at

    def interface(self) -> Interface:
        size, prefix = self._entry()
        return ipaddress.ip_interface((self._take(size), prefix))

    def network(self) -> Network:
        size, prefix = self._entry()
        address = self._take(_octets(prefix)).ljust(size, b"\0")
        try:
            return ipaddress.ip_network((address, prefix))
        except ValueError as error:  # bits are set behind the prefix
            raise RemoteProtocolError(f"no network: {error}") from error

    def _entry(self) -> tuple[int, int]:
        """Return the bytes of an address of this family, and a prefix that it can have."""
        family, prefix = _ENTRY.unpack(self._take(_ENTRY.size))
        size = _ADDRESS_SIZES.get(family)
        if size is None:
            raise RemoteProtocolError(f"an address of family {family}")
        if prefix > size * 8:
            raise RemoteProtocolError(f"a prefix of {prefix} bits")
        return size, prefix

    def _take(self, size: int) -> bytes:
        taken = self._value[self._at : self._at + size]
        if len(taken) < size:
            raise RemoteProtocolError("terms are cut short")
        self._at += size
        return taken


def _octets(prefix: int) -> int:
    return (prefix + 7) // 8
