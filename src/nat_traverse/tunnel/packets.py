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

A packet of TCP that is too large for one datagram is cut into parts in the same way, as if it were
a super-packet. (IPv6 has a link take 1,280 bytes, even if the path below takes less.)

A program that sends datagrams of UDP one by one has each of them read as a packet of its own. Those
of one flow and one size become a super-packet at the Joiner all the same, if they arrive one behind
the other: one write for up to 64. So much has to be the same in them that they are segments of it
as they are, except that IPv4's ids go on from the first one's. No datagram with "don't fragment"
depends on its id (RFC 6864, section 4), and no others are joined.

Nothing is kept from one call to the next: no packet waits for another one.

The peer is authenticated, and may lie all the same. All places are derived from the headers, which
have to be where they say; lengths have to fit; and the source of every packet has to be one that
the peer may have. What is wrong is dropped and counted, and nothing is raised.

Here every microsecond counts, since each stands for one packet. Hence no objects for parts,
attributes in local names, and `ip.locate`, which finds in most packets what there is to be found
without looking for what is in few of them. What it does not know goes the long way.
"""

from __future__ import annotations

from nat_traverse.tunnel.cutting import SEALING, TRAIN_BYTES, TRAIN_DATAGRAMS, Cutter, couple
from nat_traverse.tunnel.joining import (
    BAD_SEGMENT,
    FOREIGN,
    MALFORMED,
    MOST_DATAGRAMS,
    TOO_LONG,
    UNKNOWN_KIND,
    Joiner,
)

__all__ = [
    "BAD_SEGMENT",
    "FOREIGN",
    "MALFORMED",
    "MOST_DATAGRAMS",
    "SEALING",
    "TOO_LONG",
    "TRAIN_BYTES",
    "TRAIN_DATAGRAMS",
    "UNKNOWN_KIND",
    "Cutter",
    "Joiner",
    "couple",
]
