"""Cutting and joining: whatever is lost on the way, the rest are the segments that a kernel makes.

The kernel is the one of `support.packets`, which shares no code with the Cutter and the Joiner, and
adds up its checksums word by word. Segments are compared to the byte, with IPv4's numbers, TCP's
sequence and flags, and checksums. Which datagrams become one super-packet is told by a second
description of that, which is slow and plain.
"""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

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
from nat_traverse.wire import ip, virtio
from support.packets import (
    ACK,
    CWR,
    FIN,
    PSH,
    UDP,
    are_one_flow,
    finish,
    number_of,
    numbered,
    partial,
    pseudo,
    tcp,
    udp,
    verify,
    whole,
    write,
)

# Each byte tells where it comes from.
PAYLOAD = struct.pack("!6000H", *range(6000))
LARGEST = 2000

payloads = st.integers(0, 300) | st.integers(0, len(PAYLOAD))
versions = st.sampled_from([4, 6])
numbers = st.sampled_from([0, 0x1234, 0xFFFF])
packets = st.one_of(
    st.builds(
        lambda size, *rest: tcp(
            PAYLOAD[:size],
            version=rest[0],
            identification=rest[1],
            flags=rest[2],
            sequence=rest[3],
            options=rest[4],
        ),
        payloads,
        versions,
        numbers,
        st.sampled_from([ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR, ACK | CWR | PSH]),
        st.sampled_from([0, 1000, 0xFFFFFFF0]),
        st.sampled_from([b"", bytes(12), bytes(40)]),
    ),
    st.builds(
        lambda size, version, number: udp(PAYLOAD[:size], version=version, identification=number),
        payloads,
        versions,
        numbers,
    ),
)
# Of what is larger than a segment, a super-packet is made; of the rest, for `size` 0, one packet
# with its checksum, and else one without.
sizes = st.sampled_from([0, 88, 536, 1348, 1800])
reads = st.lists(st.tuples(packets, sizes), max_size=5)


def frame_of(packet: bytes, size: int) -> bytes:
    if len(packet) >= LARGEST or 0 < size < len(packet) - 100:
        return partial(packet, size or 1348)
    return partial(packet) if size else whole(packet)


def admit(_source: bytes, _destination: bytes) -> bool:
    return True


@given(reads=reads, data=st.data())
def test_what_arrives_are_the_segments_that_were_not_lost(
    reads: list[tuple[bytes, int]], data: st.DataObject
) -> None:
    sent: list[bytes] = []
    segments: list[bytes] = []
    cutter = Cutter(LARGEST)
    for packet, size in reads:
        frame = frame_of(packet, size)
        sent += [part for train in cutter.cut(memoryview(frame)) for part in train]
        segments += finish(frame)
    assert len(sent) == len(segments)
    for segment in segments:
        verify(segment)
    fates = data.draw(st.lists(st.integers(0, 3), min_size=len(sent), max_size=len(sent)))
    joiner = Joiner(admit)
    arrived: list[bytes] = []
    expected: list[bytes] = []
    batch: list[bytes] = []
    kept: list[bytes] = []
    for plaintext, segment, fate in zip(sent, segments, fates, strict=True):
        if fate:  # 0: lost
            batch.append(plaintext)
            kept.append(segment)
        if fate == 1:  # the end of what is received at once
            arrived += _written(joiner, batch)
            expected += _renumbered(batch, kept)
            batch, kept = [], []
    arrived += _written(joiner, batch)
    assert arrived == expected + _renumbered(batch, kept)
    assert not joiner.dropped
    assert (cutter.too_large, cutter.unusable) == (0, 0)


# One byte that is changed, if any: where, counted from the start of UDP's header, and what to.
changes = st.just((0, 0x9C)) | st.tuples(
    st.sampled_from([-40, -36, -35, -34, -33, -20, -19, -17, -14, -13, -12, -11, -8, -1, 0, 4, 5]),
    st.sampled_from([0, 1, 6, 0x20, 0x44, 0x46, 0x50, 0x60, 0xFF]),
)
# Datagrams whose neighbours often are of the same flow; and what is none, and what lies.
several = st.tuples(
    versions,
    st.sampled_from([0, 1, 1, 1100]),  # bytes of payload; of the last, fewer than 64 fit together
    st.sampled_from([0, 2, 0xFFFF]),
    changes,
    st.sampled_from([1, 1, 2, 3, MOST_DATAGRAMS + 1]),
)


@given(st.lists(several, max_size=4))
def test_neighbours_of_one_flow_are_joined_and_all_others_are_as_they_came(
    drawn: list[tuple[int, int, int, tuple[int, int], int]],
) -> None:
    packets = [
        _datagram(version, size, number + index, change)
        for version, size, number, change, count in drawn
        for index in range(count)
    ]
    joiner = Joiner(admit)
    plaintexts = [b"" + packet for packet in packets]
    frames = iter([b"".join(buffers) for buffers in joiner.join(plaintexts)])
    refused = 0
    for group in _groups(packets):
        if len(group) > 1:
            segments = [segment for packet in group for segment in finish(_alone(packet))]
            number = number_of(group[0])
            assert write(next(frames)) == [
                numbered(segment, number + index) for index, segment in enumerate(segments)
            ]
            continue
        try:
            frame = _alone(group[0])
        except RemoteProtocolError:
            refused += 1
        else:
            assert next(frames) == frame
    assert next(frames, None) is None
    assert joiner.dropped.total() == joiner.dropped["malformed"] == refused


@given(reads=reads)
def test_coupled_trains_are_the_same_plaintexts(reads: list[tuple[bytes, int]]) -> None:
    cutter = Cutter(LARGEST)
    trains = [t for packet, size in reads for t in cutter.cut(memoryview(frame_of(packet, size)))]
    coupled = couple(trains)
    assert [part for train in coupled for part in train] == [part for t in trains for part in t]
    assert len(coupled) <= len(trains)
    for train in coupled:
        lengths = [len(plaintext) for plaintext in train]
        assert set(lengths[:-1]) <= {lengths[0]}
        assert lengths[-1] <= lengths[0]
        assert len(train) <= TRAIN_DATAGRAMS
        assert sum(lengths) + SEALING * len(train) <= TRAIN_BYTES


@given(
    st.lists(
        st.binary(max_size=100)
        | st.tuples(st.binary(min_size=5, max_size=5), packets).map(b"".join)
        | st.tuples(st.sampled_from([b"\0", b"\1"]), packets).map(b"".join),
        max_size=10,
    )
)
def test_of_anything_else_nothing_is_written_that_is_not_admitted(plaintexts: list[bytes]) -> None:
    asked = 0

    def admits(_source: bytes, _destination: bytes) -> bool:
        nonlocal asked
        asked += 1
        return False

    joiner = Joiner(admits)
    assert joiner.join(plaintexts) == []
    assert joiner.dropped.total() == sum(1 for plaintext in plaintexts if plaintext)
    assert asked == joiner.dropped["foreign"]


def _written(joiner: Joiner, batch: list[bytes]) -> list[bytes]:
    """Return the packets that a kernel makes of what is written."""
    return [packet for buffers in joiner.join(batch) for packet in write(b"".join(buffers))]


def _renumbered(batch: list[bytes], segments: list[bytes]) -> list[bytes]:
    """Return the segments with the numbers that they have where datagrams are joined."""
    arrived = iter(segments)
    found = []
    for group in _groups([part[1:] if part[0] == 1 else b"" for part in batch]):
        first = next(arrived)
        found.append(first)
        found += [
            numbered(next(arrived), number_of(first) + index) for index in range(1, len(group))
        ]
    return found


def _groups(packets: list[bytes]) -> list[list[bytes]]:
    """Return packets as they are joined; an empty one stands for what is joined otherwise."""
    groups: list[list[bytes]] = []
    for packet in packets:
        group = groups[-1] if groups else []
        end = 28 if packet[:1] == b"\x45" else 48
        if (
            group
            and are_one_flow(group[0], packet)
            and len(group) < MOST_DATAGRAMS
            and end + (len(packet) - end) * (len(group) + 1) <= 65_535
        ):
            group.append(packet)
        else:
            groups.append([packet])
    return groups


def _datagram(version: int, size: int, number: int, change: tuple[int, int]) -> bytes:
    """Return one with a partial sum, after a change."""
    start = 20 if version == 4 else 40
    packet = bytearray(udp(PAYLOAD[:size], version=version, identification=number & 0xFFFF))
    where, value = change
    if start + where >= 0:
        packet[start + where] = value
    addresses = bytes(packet[12:20] if version == 4 else packet[8:40])
    packet[start + 6 : start + 8] = pseudo(addresses, UDP, 8 + size).to_bytes(2, "big")
    return bytes(packet)


def _alone(packet: bytes) -> bytes:
    """Return the frame of a packet by itself, the long way; raises RemoteProtocolError."""
    found = ip.parse(packet)
    end = ip.end_of_headers(packet, found)
    offset = ip.CHECKSUM_AT[found.protocol]
    offload = virtio.Offload(virtio.NEEDS_CHECKSUM, 0, end, 0, found.transport_at, offset)
    return virtio.encode(offload) + packet
