"""Fuzzing of everything that reads a packet or a virtio header; needs nothing but the project.

    python tests/fuzz/fuzz_packets.py --seconds 60 --seed 7
    python tests/fuzz/fuzz_packets.py --replay join 002e0200...

Inputs start as well-formed packets, frames of a TUN device and parts of super-packets, and are
changed where it hurts: lengths, offsets, counts, kinds, order. The contract is that of
`fuzz_messages.py`: a value, or the one exception that is documented, and never anything else.
`campaign.py` tells how a run goes on, and what comes of an input that breaks the contract.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # a script finds what lies beside it, but not its own package
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import campaign
from fuzz.campaign import Features, Target, beginning, run
from nat_traverse.errors import RemoteProtocolError
from nat_traverse.tunnel.packets import (
    MOST_DATAGRAMS,
    SEALING,
    TRAIN_BYTES,
    TRAIN_DATAGRAMS,
    Cutter,
    Joiner,
    couple,
)
from nat_traverse.wire import icmp, ip, virtio, vpn

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

LARGEST = 300  # bytes of a plaintext: small, so that inputs are
OWN, PEER = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
OWN6, PEER6 = b"\xfd\x77" + bytes(13) + b"\1", b"\xfd\x77" + bytes(13) + b"\2"


# -- targets: each returns what the input reached, as words ---------------------------------------


def header(data: bytes) -> Features:
    """ip.parse, ip.end_of_headers: places inside of the packet, or RemoteProtocolError; locate."""
    usual = ip.locate(memoryview(data))
    try:
        found = ip.parse(data)
        assert ip.parse_headers(memoryview(data)) == found
        assert found.transport_at <= found.length == len(data)
        assert len(found.source) == len(found.destination) == (4 if found.version == 4 else 16)
        end = ip.end_of_headers(data, found)
    except RemoteProtocolError as error:
        assert usual == (0, 0, 0)
        return {beginning(str(error))}
    assert found.transport_at < end <= len(data)
    assert not found.is_fragment
    if found.transport_at == (20 if found.version == 4 else 40):
        assert usual == (found.protocol, found.transport_at, end)
    else:
        assert usual == (0, 0, 0)
    return {f"{found.version} {found.protocol} {found.transport_at} {end - found.transport_at}"}


def answer(data: bytes) -> Features:
    """icmp.too_big: None or a packet, which is itself never answered."""
    version = data[0] >> 4 if data else 4
    found = icmp.too_big(data, 1400, PEER6 if version == 6 else PEER)
    if found is None:
        return {"none"}
    told = ip.parse(found)
    assert told.destination == ip.parse(data).source
    assert len(found) <= (icmp.LONGEST_IPV4 if told.version == 4 else icmp.LONGEST_IPV6)
    assert icmp.too_big(found, 1400, told.source) is None
    return {f"answer {told.version} {len(found) // 100}"}


def terms(data: bytes) -> Features:
    """vpn.decode_terms: a value that is written as it was read, or RemoteProtocolError."""
    try:
        found = vpn.decode_terms(data)
    except RemoteProtocolError as error:
        return {beginning(str(error))}
    assert data.startswith(vpn.encode_terms(found))
    return {f"{len(found.addresses)} {min(len(found.announced), 5)}"}


def cut(data: bytes) -> Features:
    """Cutter: any frame; what it cuts fits, and the Joiner takes all parts and makes one again."""
    reported: list[int] = []
    cutter = Cutter(LARGEST, lambda packet, _: reported.append(len(packet)))
    trains = couple(cutter.cut(memoryview(data)))
    assert len(reported) == cutter.too_large
    assert bool(trains) + cutter.too_large + cutter.unusable == 1
    for train in trains:
        sizes = [len(plaintext) for plaintext in train]
        assert 1 <= len(train) <= TRAIN_DATAGRAMS
        assert max(sizes) == sizes[0] <= LARGEST
        assert set(sizes[:-1]) <= {sizes[0]}
        assert sum(sizes) + len(sizes) * SEALING <= TRAIN_BYTES
    if not trains:
        return {f"{cutter.too_large} {cutter.unusable}"}
    plaintexts = [plaintext for train in trains for plaintext in train]
    kind = plaintexts[0][0]
    joiner = Joiner(lambda _source, _destination: True)
    written = joiner.join(plaintexts)
    if kind <= vpn.PARTIAL and data[0] & virtio.NEEDS_CHECKSUM:
        assert (kind == vpn.PARTIAL) is is_found(data)
    if kind == vpn.WHOLE:
        return {f"whole {bool(joiner.dropped)}"}
    assert not joiner.dropped
    (buffers,) = written
    check_frame(buffers)
    packet, original = b"".join(buffers)[virtio.SIZE :], data[virtio.SIZE :]
    assert len(packet) == len(original)
    end = ip.end_of_headers(packet, ip.parse(packet))
    assert packet[end:] == original[end:]
    return {f"{kind} {min(len(plaintexts), 70)} {packet[0]} {end}"}


def join(data: bytes) -> Features:
    """Joiner: any plaintexts; each is written or counted, from the peer, and in order."""
    joiner = Joiner(admits, joins_udp=bool(data) and data[0] < 0x80)
    plaintexts = split(data[1:])
    written = joiner.join(plaintexts)
    count = joiner.dropped.total()
    chunks = []
    for buffers in written:
        check_frame(buffers)
        count += len(buffers) - 1
        chunks += [bytes(buffer) for buffer in buffers[1:]]
    assert count == sum(1 for plaintext in plaintexts if plaintext)
    rest = iter(plaintexts)
    assert all(any(plaintext.endswith(chunk) for plaintext in rest) for chunk in chunks)
    datagrams = check_datagrams(plaintexts)
    longest = max((len(buffers) for buffers in written), default=0)
    return {
        *joiner.dropped,
        f"datagrams {min(datagrams, 5)}",
        f"written {min(len(written), 5)} {min(longest, 9)}",
    }


def is_found(frame: bytes) -> bool:
    """Tell whether the checksum of the packet in a frame is where its headers say it is."""
    offload, packet = virtio.decode(frame), frame[virtio.SIZE :]
    found = ip.parse(packet)
    place = found.transport_at, ip.CHECKSUM_AT.get(found.protocol)
    return place == (offload.checksum_start, offload.checksum_offset) and not found.is_fragment


def check_datagrams(plaintexts: Sequence[bytes]) -> int:
    """Check that of packets nothing but IPv4's numbers depends on whether they are joined.

    Returns how many were, at most.
    """
    most = 0
    packets = [plaintext for plaintext in plaintexts if plaintext[:1] < b"\2"]
    joiner, other = Joiner(admits), Joiner(admits, joins_udp=False)
    rest = iter([b"".join(buffers) for buffers in other.join(packets)])
    for buffers in joiner.join(packets):
        count = len(buffers) - 1
        frame = b"".join(buffers)
        if count == 1:
            assert next(rest) == frame
            continue
        offload, segments = virtio.decode(frame), [next(rest) for _ in range(count)]
        end = offload.header_length
        assert 2 <= count <= MOST_DATAGRAMS
        most = max(most, count)
        assert offload.gso_type == virtio.GSO_UDP
        assert {len(each) - virtio.SIZE - end for each in segments} == {offload.gso_size}
        found = frame[virtio.SIZE :]
        first = segments[0][virtio.SIZE :]
        assert found[end:] == b"".join(each[virtio.SIZE + end :] for each in segments)
        for each in segments:
            headers = each[virtio.SIZE : virtio.SIZE + end]
            if first[0] >> 4 == 4:  # all but number and checksum; and of ours also the lengths
                assert headers[:4] + headers[6:10] == first[:4] + first[6:10]
                assert headers[12:] == first[12:end]
                assert headers[6:8] == b"\x40\0"
            else:
                assert headers == first[:end]
        at = offload.checksum_start
        lengths = {at + 4, at + 5, at + 6, at + 7}
        lengths |= {2, 3, 10, 11} if first[0] >> 4 == 4 else {4, 5}
        assert all(found[i] == first[i] for i in range(end) if i not in lengths)
        assert int.from_bytes(found[at + 4 : at + 6], "big") == len(found) - at
        # The sums of ones' complement: each has grown by what the length has.
        old, new = (int.from_bytes(each[at + 6 : at + 8], "big") for each in (first, found))
        assert (old + len(found) - len(first) - new) % 0xFFFF == 0
        assert old
        assert new
    assert next(rest, None) is None
    assert joiner.dropped == other.dropped
    return most


def admits(source: bytes, _destination: bytes) -> bool:
    """Tell whether the peer may send from there."""
    return source in {PEER, PEER6}


def check_frame(buffers: Sequence[ip.Buffer]) -> None:
    """Check what a kernel would look at before it takes a frame."""
    frame = b"".join(buffers)
    offload, packet = virtio.decode(frame), frame[virtio.SIZE :]
    found = ip.parse(packet)
    if not offload.flags:
        assert offload == virtio.Offload()
        return
    end = ip.end_of_headers(packet, found)
    assert offload.flags == virtio.NEEDS_CHECKSUM
    assert offload.header_length == end
    assert offload.checksum_start == found.transport_at
    assert offload.checksum_offset == (16 if found.protocol == ip.TCP else 6)
    kind = offload.gso_type & ~virtio.GSO_ECN
    if kind == virtio.GSO_NONE:
        assert offload.gso_size == 0
        return
    tcp = virtio.GSO_TCPV4 if found.version == 4 else virtio.GSO_TCPV6
    assert kind == (tcp if found.protocol == ip.TCP else virtio.GSO_UDP)
    assert 0 < offload.gso_size < len(packet) - end
    assert found.version == 6 or ip.checksum(packet[: found.transport_at]) == 0


# -- what to start from ---------------------------------------------------------------------------


def packet_of(version: int, protocol: int, size: int, extensions: bytes = b"") -> bytes:
    """Return a packet from the peer with `size` bytes of payload; its sums are not right."""
    if protocol == ip.TCP:
        transport = struct.pack("!HHIIBBHHH", 1, 2, 0xFFFFFF00, 4, 8 << 4, 0x99, 5, 6, 0)
        transport += bytes(12)
    else:
        transport = struct.pack("!HHHH", 1, 2, 8 + size, 0)
    payload = transport + bytes(index & 0xFF for index in range(size))
    if version == 4:
        length = 20 + len(extensions) + len(payload)
        first = 0x45 + len(extensions) // 4
        head = struct.pack(
            "!BBHHHBBH4s4s", first, 0, length, 0xFFFE, 0x4000, 64, protocol, 0, PEER, OWN
        )
        return head + extensions + payload
    following = extensions[0] if extensions else protocol
    chain = bytes([protocol]) + extensions[1:] if extensions else b""
    length = len(chain) + len(payload)
    return struct.pack("!IHBB16s16s", 6 << 28, length, following, 64, PEER6, OWN6) + chain + payload


def datagram(version: int, size: int, number: int) -> bytes:
    """Return one of UDP with something for a sum, and with that number if it is of IPv4."""
    packet = bytearray(packet_of(version, ip.UDP, size))
    at = 20 if version == 4 else 40
    packet[at + 6 : at + 8] = b"\xfe\xdc"
    if version == 4:
        packet[4:6] = number.to_bytes(2, "big")
    return bytes(packet)


def packets() -> list[bytes]:
    """Return packets of every kind."""
    fragment = bytes([44, 0, 0, 1]) + bytes(4)
    options = bytes([60]) + bytes(7)
    return [
        packet_of(version, protocol, size, extensions)
        for version, choices in ((4, (b"", bytes(8))), (6, (b"", options, fragment)))
        for protocol in (ip.TCP, ip.UDP, ip.ICMP, ip.ICMPV6, 50)
        for size in (0, 3, 700)
        for extensions in choices
    ]


def frames() -> list[bytes]:
    """Return frames as they are read from a device."""
    found = [virtio.PLAIN + packet for packet in packets()]
    for packet in packets():
        fields = ip.parse(packet)
        start, offset = fields.transport_at, ip.CHECKSUM_AT.get(fields.protocol, 2)
        tcp = virtio.GSO_TCPV4 if fields.version == 4 else virtio.GSO_TCPV6
        kind = tcp if fields.protocol == ip.TCP else virtio.GSO_UDP
        for gso_type, size in ((0, 0), (kind, 100), (kind | virtio.GSO_ECN, 7), (kind, 500)):
            offload = virtio.Offload(1, gso_type, start + 20, size, start, offset)
            found.append(virtio.encode(offload) + packet)
    return found


def sequences(chance: random.Random) -> list[bytes]:
    """Return plaintexts as they may arrive: whole trains, some of them with gaps."""
    cutter = Cutter(LARGEST)
    trains = [train for frame in frames() for train in cutter.cut(memoryview(frame))]
    found = []
    flows = [
        [b"\1" + datagram(version, size, number) for number in numbers]
        for version in (4, 6)
        for size in (0, 1, 3)
        for numbers in ((1, 2, 3, 9), (0xFFFE, 0xFFFF, 0, 1), range(70))
    ]
    for _ in range(100):
        plaintexts = [part for flow in chance.sample(flows, 3) for part in flow]
        found.append(bytes([chance.choice((0, 0, 0x80))]) + unite(plaintexts))
    for _ in range(300):
        plaintexts = [part for train in chance.sample(trains, 3) for part in train[:6]]
        kept = [part for part in plaintexts if chance.random() < 0.9]
        found.append(bytes([chance.choice((0, 0, 0x80))]) + unite(kept))
    return found


TERMS = (
    bytes.fromhex("055802000304180a4d00010640fd7700000000000000000000000000010418c0a80704000621")
    + bytes.fromhex("20010db800"),
    bytes(5),
)


def unite(plaintexts: Sequence[bytes]) -> bytes:
    """Write plaintexts down, each behind its length."""
    return b"".join(len(each).to_bytes(2, "big") + each for each in plaintexts)


def split(data: bytes) -> list[bytes]:
    """Read plaintexts from any bytes at all."""
    found, at = [], 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return found


# -- mutation -------------------------------------------------------------------------------------

_HEADERS = 80  # bytes within which nearly all that matters is


class Mutator(campaign.Mutator):
    """Knows that the headers matter, and what numbers are in them."""

    # Versions with lengths, protocols, kinds of plaintexts.
    interesting = (
        *range(7),
        17,
        43,
        44,
        51,
        58,
        60,
        0x0F,
        0x40,
        0x45,
        0x4F,
        0x60,
        0x7F,
        0x80,
        0xFF,
    )
    head = 1

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.changes = (
            self.flip,
            self.replace,
            self.replace,
            self.near,
            self.length,
            self.insert,
            self.delete,
            self.cut,
            self.splice,
        )

    def parts(self, data: bytes) -> list[bytes]:
        """Return the plaintexts, each behind its length."""
        return [unite([each]) for each in split(data)]

    def mutate_part(self, part: bytes, other: bytes) -> bytes:
        """Change one plaintext."""
        return unite([self.mutate(part[2:], other[2:])])

    def place(self, end: int) -> int:
        """Choose where to change something: mostly in the headers."""
        return super().place(min(end, _HEADERS) if self.chance.random() < 0.9 else end)

    def near(self, data: bytes, _: bytes) -> bytes:
        """Write a number that is near what is there."""
        at = self.place(len(data))
        old = int.from_bytes(data[at : at + 2], "big")
        return _put(data, at, old + self.chance.choice((-1, 1, -20, 20, 40, 0x100, -0x100)))

    def length(self, data: bytes, _: bytes) -> bytes:
        """Write the length that the packet has, or a part of it."""
        at = self.place(len(data))
        return _put(data, at, len(data) - self.chance.choice((0, 0, 1, 5, 10, 40, 45, 50)))


def _put(data: bytes, at: int, number: int) -> bytes:
    return data[:at] + (number & 0xFFFF).to_bytes(2, "big") + data[at + 2 :]


# -- running --------------------------------------------------------------------------------------

TARGET_FUNCTIONS: dict[str, Target] = {
    "header": header,
    "answer": answer,
    "terms": terms,
    "cut": cut,
    "join": join,
}


class Campaign(campaign.Campaign):
    """A campaign over what reads packets, frames of a device, and plaintexts."""

    functions = TARGET_FUNCTIONS
    sequences = frozenset({"join"})
    mutator_type = Mutator

    def starts(self) -> dict[str, list[bytes]]:
        """Return what is well-formed, of every kind."""
        return {
            "header": packets(),
            "answer": packets(),
            "terms": list(TERMS),
            "cut": frames(),
            "join": sequences(self.chance),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return run(Campaign, arguments)


if __name__ == "__main__":
    sys.exit(main())
