"""Cutting and joining: whatever is lost on the way, the rest are the segments that a kernel makes.

The kernel is the one of `support.packets`, which shares no code with the Cutter and the Joiner, and
adds up its checksums word by word. Segments are compared to the byte, with IPv4's numbers, TCP's
sequence and flags, and checksums.
"""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.tunnel.packets import (
    SEALING,
    TRAIN_BYTES,
    TRAIN_DATAGRAMS,
    Cutter,
    Joiner,
    couple,
)
from support.packets import ACK, CWR, FIN, PSH, finish, partial, tcp, udp, verify, whole, write

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
    batch: list[bytes] = []
    for plaintext, fate in zip(sent, fates, strict=True):
        if fate:  # 0: lost
            batch.append(plaintext)
        if fate == 1:  # the end of what is received at once
            arrived += _written(joiner, batch)
            batch = []
    arrived += _written(joiner, batch)
    kept = [segment for segment, fate in zip(segments, fates, strict=True) if fate]
    assert arrived == kept
    assert not joiner.dropped
    assert (cutter.too_large, cutter.unusable) == (0, 0)


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
