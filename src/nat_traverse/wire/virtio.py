"""The header that Linux puts before each packet of a TUN device: struct virtio_net_hdr, 10 bytes.

With IFF_VNET_HDR, a packet that is read or written may be a *super-packet*: up to 64 KiB of TCP or
UDP behind one set of headers, which whoever is last in the kernel, or the network card, cuts into
segments of `gso_size` bytes. And its checksum may be *partial*: the field holds the sum of the
pseudo-header, to which the sum from `checksum_start` on is still to be added.

    flags (1)  gso_type (1)  header_length (2)  gso_size (2)
    checksum_start (2)  checksum_offset (2)

The layout is that of virtio 1.2, section 5.1.6; the numbers are the host's own (not big-endian), as
a TUN device has them unless it is told otherwise by TUNSETVNETLE or TUNSETVNETBE.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from nat_traverse.wire.ip import Buffer

OFFLOAD: Final = struct.Struct("=BBHHHH")
SIZE: Final = OFFLOAD.size

# Flags.
NEEDS_CHECKSUM: Final = 1  # the checksum is partial
DATA_VALID: Final = 2  # the checksum is there, and somebody has found it right

# Kinds of super-packets. 3, fragments of UDP, is not asked for and so never comes.
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP: Final = 5  # VIRTIO_NET_HDR_GSO_UDP_L4: segments that are datagrams each
# Beside one of TCP: the flag CWR is set, which belongs to the first segment only (RFC 3168, 6.1.2).
GSO_ECN: Final = 0x80

PLAIN: Final = bytes(SIZE)  # before a packet that is one, with its checksum


class Offload(NamedTuple):
    """What is left to be done for a packet. Places are in bytes from the start of the packet.

    `checksum_offset` counts from `checksum_start`; `header_length` is that of all headers.
    """

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    gso_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0


def encode(offload: Offload) -> bytes:
    """Return the header's bytes. Raises LocalProtocolError if a number does not fit."""
    try:
        return OFFLOAD.pack(*offload)
    except struct.error as error:
        raise LocalProtocolError(f"{offload} cannot be written: {error}") from error


def decode(frame: Buffer) -> Offload:
    """Return the header that a frame starts with. Raises RemoteProtocolError if it is too short."""
    if len(frame) < SIZE:
        raise RemoteProtocolError(f"a virtio header of {len(frame)} bytes")
    return Offload(*OFFLOAD.unpack_from(frame))
