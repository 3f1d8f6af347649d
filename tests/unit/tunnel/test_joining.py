from __future__ import annotations

import os

import pytest

from nat_traverse.tunnel import joining
from nat_traverse.tunnel.cutting import Cutter
from nat_traverse.tunnel.joining import Joiner
from nat_traverse.wire import virtio, vpn
from support.packets import (
    ACK,
    ADDRESSES,
    PSH,
    UDP,
    admit,
    finish,
    frames,
    ipv4,
    ipv6,
    join,
    partial,
    tcp,
    udp,
    verify,
    write,
)


def dropped(*parts: bytes) -> dict[str, int]:
    joiner = Joiner(admit)
    assert joiner.join(parts) == []
    return dict(joiner.dropped)


def part(index: int, size: int, headers: bytes, chunk: bytes, kind: int = vpn.PART) -> bytes:
    return vpn.HEAD.pack(kind, index, size) + headers + chunk


TCP_HEADERS, UDP_HEADERS = tcp(b""), udp(b"")
# A super-packet, and its parts.
SUPER = partial(tcp(bytes(range(250)) * 20), 1300)
PARTS = Cutter(1368).cut(memoryview(SUPER))[0]


# -- datagrams that came as packets ---------------------------------------------------------------


def whole_datagram(payload: bytes, number: int = 7, version: int = 4) -> bytes:
    """Return the plaintext of a datagram with a partial sum."""
    return b"\1" + partial(udp(payload, version=version, identification=number))[10:]


def changed(plaintext: bytes, *places: tuple[int, bytes]) -> bytes:
    found = bytearray(plaintext)
    for at, new in places:
        found[at : at + len(new)] = new
    return bytes(found)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_of_one_flow_become_one_super_packet(version: int) -> None:
    texts = [b"abc", b"def", b"ghi"]
    plaintexts = [
        whole_datagram(text, 65535 + 5 * at & 0xFFFF, version) for at, text in enumerate(texts)
    ]
    (written,) = join(plaintexts)
    offload = virtio.decode(written)
    end = 28 if version == 4 else 48
    assert offload == virtio.Offload(1, virtio.GSO_UDP, end, 3, end - 8, 6)
    # IPv4's numbers go on from the first one's, whatever they were.
    assert write(written) == [
        udp(text, version=version, identification=65535 + at & 0xFFFF)
        for at, text in enumerate(texts)
    ]


def test_datagrams_are_written_from_where_they_are() -> None:
    (buffers,) = Joiner(admit).join([whole_datagram(bytes(1000))] * 3)
    assert [len(buffer) for buffer in buffers] == [10 + 28, 1000, 1000, 1000]


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_alone_is_left_as_it_is(version: int) -> None:
    plaintext = whole_datagram(b"abc", 7, version)
    end = 28 if version == 4 else 48
    expected = virtio.encode(virtio.Offload(1, 0, end, 0, end - 8, 6)) + plaintext[1:]
    assert join([plaintext]) == [expected]
    assert join([plaintext, PARTS[0], plaintext])[::2] == [expected, expected]


@pytest.mark.parametrize(
    "other",
    [
        whole_datagram(b"ab"),
        whole_datagram(b"abcd"),
        whole_datagram(b"abc", version=6),
        b"\0" + udp(b"abc"),
        *(
            changed(whole_datagram(b"abc"), (1 + at, new))
            for at, new in (
                (1, b"\x02"),  # its service
                (8, b"\x3f"),  # its TTL
                (15, b"\x07"),  # its source
                (19, b"\x07"),  # its destination
                (20, b"\0"),  # its ports
                (23, b"\0"),
                (26, b"\xff"),  # a sum that is none
            )
        ),
    ],
)
def test_datagrams_of_different_flows_stay_apart(other: bytes) -> None:
    one = whole_datagram(b"abc")
    found = join([one, other, one, one])
    assert [frame[10:] for frame in found[:2]] == [one[1:], other[1:]]
    assert virtio.decode(found[2]).gso_type == virtio.GSO_UDP
    assert len(found) == 3


@pytest.mark.parametrize("at", [1, 3, 7, 8, 23, 24, 39, 40, 43, 46, 47])
def test_so_they_do_with_ipv6(at: int) -> None:
    one = whole_datagram(b"abc", version=6)
    other = changed(one, (1 + at, bytes([one[1 + at] ^ 1])))
    found = join([one, other, other])
    assert found[0][10:] == one[1:]
    assert [write(frame) for frame in join([one, one])] == [[udp(b"abc", version=6)] * 2]
    assert len(found) == 2


@pytest.mark.parametrize(
    "plaintext",
    [
        whole_datagram(b""),
        whole_datagram(b"", version=6),
        changed(whole_datagram(b"abc"), (1 + 6, b"\0")),  # may be fragmented
        changed(whole_datagram(b"abc"), (1 + 6, b"\xc0")),  # a reserved bit
        changed(whole_datagram(b"abc"), (1 + 24, b"\0\x0a")),  # another length than it has
        changed(whole_datagram(b"abc", version=6), (1 + 44, b"\0\x0c")),
        changed(whole_datagram(b"abc"), (1 + 26, b"\0\0")),  # no sum
        changed(whole_datagram(b"abc", version=6), (1 + 46, b"\0\0")),
        b"\1" + ipv4(UDP, whole_datagram(b"abc")[21:], options=bytes(4)),
        b"\1" + ipv6(UDP, whole_datagram(b"a", 0, 6)[41:], extensions=((60, bytes(7)),)),
        b"\1" + partial(tcp(b"abc"))[10:],
    ],
)
def test_what_would_not_be_the_same_afterwards_stays_apart(plaintext: bytes) -> None:
    assert [frame[10:] for frame in join([plaintext] * 3)] == [plaintext[1:]] * 3


def test_datagrams_stay_apart_for_a_kernel_without_super_packets_of_udp() -> None:
    plaintext = whole_datagram(b"abc")
    written = frames(Joiner(admit, joins_udp=False).join([plaintext] * 3))
    assert [frame[10:] for frame in written] == [plaintext[1:]] * 3


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (1, [64, 64, 2]),
        (1000, [64, 64, 2]),
        (1023, [64, 64, 2]),
        (1024, [63, 63, 4]),
        (32_754, [1] * 130),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_so_many_become_one(size: int, counts: list[int], version: int) -> None:
    written = Joiner(admit).join([whole_datagram(bytes(size), 0, version)] * 130)
    assert [len(buffers) - 1 for buffers in written] == counts
    assert max(sum(map(len, buffers)) for buffers in written) <= 10 + 65_535


def test_a_sign_of_life_between_datagrams_parts_nothing() -> None:
    plaintext = whole_datagram(b"abc")
    assert len(join([b"", plaintext, b"", plaintext, b""])) == 1


def test_what_is_dropped_is_not_joined() -> None:
    asked = []

    def admits(source: bytes, destination: bytes) -> bool:
        asked.append((source, destination))
        return source == ADDRESSES[4][0]

    joiner = Joiner(admits)
    stranger = changed(whole_datagram(b"abc"), (1 + 12, bytes([192, 0, 2, 9])))
    good = whole_datagram(b"abc")
    cut_short = good[:-1]
    (first, second) = joiner.join([good, good, stranger, stranger, cut_short, good, good])
    assert len(first) == len(second) == 3
    assert joiner.dropped == {joining.FOREIGN: 2, joining.MALFORMED: 1}
    spoofed = (bytes([192, 0, 2, 9]), ADDRESSES[4][1])
    assert asked == [ADDRESSES[4], spoofed, spoofed]
    joiner.join([good])  # in another call it is asked again
    assert asked[3:] == [ADDRESSES[4]]


# -- a peer that lies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plaintext", "word"),
    [
        (b"\0", joining.MALFORMED),
        (b"\2" * 20, joining.MALFORMED),
        (b"\0" + b"\x55" * 40, joining.MALFORMED),
        (b"\0" + udp(b"x") + b"y", joining.MALFORMED),
        (b"\0" + udp(b"x")[:-1], joining.MALFORMED),
        (b"\1" + ipv4(1, bytes(8)), joining.MALFORMED),
        (b"\1" + ipv4(17, bytes(8), fragment=0x2000), joining.MALFORMED),
        (b"\1" + ipv4(17, bytes(7)), joining.MALFORMED),
        (b"\1" + ipv4(6, bytes(40)), joining.MALFORMED),
        (part(0, 1, ipv4(1, bytes(20)), b"x"), joining.MALFORMED),
        (part(0, 1, ipv4(17, bytes(8), fragment=1), b"x"), joining.MALFORMED),
        (part(0, 1, ipv4(6, bytes(20)), b"x"), joining.MALFORMED),
        (part(0, 1, b"\x05" * 40, b"x"), joining.MALFORMED),
        (part(0, 1, UDP_HEADERS[:24], b""), joining.MALFORMED),
        (part(0, 8, UDP_HEADERS, b""), joining.BAD_SEGMENT),
        (part(0, 0, UDP_HEADERS, b""), joining.BAD_SEGMENT),
        (part(0, 0, UDP_HEADERS, b"x"), joining.BAD_SEGMENT),
        (part(0, 0, UDP_HEADERS, b"x", vpn.LAST), joining.BAD_SEGMENT),
        (part(0, 9, UDP_HEADERS, b"12345678"), joining.BAD_SEGMENT),
        (part(0, 7, UDP_HEADERS, b"12345678"), joining.BAD_SEGMENT),
        (part(0, 7, UDP_HEADERS, b"12345678", vpn.LAST), joining.BAD_SEGMENT),
        (part(0, 7, UDP_HEADERS, b"", vpn.LAST), joining.BAD_SEGMENT),
        (part(65, 1000, TCP_HEADERS, bytes(1000)), joining.TOO_LONG),
        (part(65535, 1, TCP_HEADERS, b"x"), joining.TOO_LONG),
        (part(65535, 65535, TCP_HEADERS, b"x", vpn.LAST), joining.TOO_LONG),
        (part(0, 1, UDP_HEADERS, b"x", 4), joining.UNKNOWN_KIND),
        (b"\xff" + udp(b"x"), joining.UNKNOWN_KIND),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_lie_is_dropped_and_counted(plaintext: bytes, word: str) -> None:
    assert dropped(plaintext) == {word: 1}
    joiner = Joiner(admit)
    written = joiner.join([*PARTS[:2], plaintext, *PARTS[2:]])
    assert [packet for frame in frames(written) for packet in write(frame)] == finish(SUPER)
    assert joiner.dropped == {word: 1}


def test_a_super_packet_is_at_most_a_packet() -> None:
    parts = [part(index, 1000, TCP_HEADERS, bytes(1000)) for index in range(66)]
    assert len(join(parts[:65])) == 1
    assert dropped(*parts) == {joining.TOO_LONG: 66}
    largest = part(65, 1000, TCP_HEADERS, bytes(65535 - 40 - 65_000), vpn.LAST)
    assert len(join([*parts[:65], largest])[0]) == 10 + 65535
    more = part(65, 1000, TCP_HEADERS, bytes(65536 - 40 - 65_000), vpn.LAST)
    assert dropped(*parts[:65], more) == {joining.TOO_LONG: 66}


@pytest.mark.parametrize(
    ("count", "pieces"), [(1000, [1000]), (1001, [1000, 1]), (2500, [1000, 1000, 500])]
)
def test_as_many_pieces_as_one_write_takes(count: int, pieces: list[int]) -> None:
    super_packet = partial(
        tcp(bytes(index % 251 for index in range(3 * count - 1)), flags=ACK | PSH), 3
    )
    parts = [each for train in Cutter(1368).cut(memoryview(super_packet)) for each in train]
    joiner = Joiner(admit)
    written = joiner.join(parts)
    assert [len(buffers) - 1 for buffers in written] == pieces
    assert max(map(len, written)) <= os.sysconf("SC_IOV_MAX")
    assert not joiner.dropped
    segments = [packet for frame in frames(written) for packet in write(frame)]
    assert segments == finish(super_packet)


@pytest.mark.parametrize("kind", [vpn.PART, vpn.LAST])
@pytest.mark.parametrize("size", [0, 999, 1001])
def test_a_wrong_segment_in_a_row_is_dropped(kind: int, size: int) -> None:
    if (kind, size) == (vpn.LAST, 999):
        return  # that is a right one
    row = [part(0, 1000, TCP_HEADERS, bytes(1000)), part(1, 1000, TCP_HEADERS, bytes(size), kind)]
    joiner = Joiner(admit)
    assert len(joiner.join(row)) == 1
    assert joiner.dropped == {joining.BAD_SEGMENT: 1}


def test_parts_of_another_size_are_not_joined() -> None:
    row = [part(0, 1000, TCP_HEADERS, bytes(1000)), part(1, 500, TCP_HEADERS, bytes(500))]
    assert [len(frame) for frame in join(row)] == [10 + 1040, 10 + 540]


def test_a_last_part_of_another_size_is_not_joined() -> None:
    row = [part(0, 10, TCP_HEADERS, bytes(10)), part(1, 9, TCP_HEADERS, bytes(5), vpn.LAST)]
    assert [len(frame) for frame in join(row)] == [60, 55]


@pytest.mark.parametrize(
    ("kind", "word"),
    [(0, joining.MALFORMED), (1, joining.MALFORMED), (4, joining.UNKNOWN_KIND)],
)
def test_what_is_no_part_continues_none(kind: int, word: str) -> None:
    row = [part(0, 10, TCP_HEADERS, bytes(10)), part(1, 10, TCP_HEADERS, bytes(10), kind)]
    joiner = Joiner(admit)
    assert len(joiner.join(row)) == 1
    assert joiner.dropped == {word: 1}


def test_the_end_of_a_super_packet_is_its_end() -> None:
    row = [
        part(0, 10, TCP_HEADERS, bytes(10), vpn.LAST),
        part(1, 10, TCP_HEADERS, bytes(10)),
        part(2, 10, TCP_HEADERS, bytes(10), vpn.LAST),
        part(3, 10, TCP_HEADERS, bytes(10)),
    ]
    assert [len(frame) for frame in join(row)] == [60, 70, 60]


def test_only_what_is_admitted_is_written() -> None:
    asked = []

    def admits(source: bytes, destination: bytes) -> bool:
        asked.append((source, destination))
        return source == ADDRESSES[4][0]

    joiner = Joiner(admits)
    spoofed = ipv4(1, b"ping", source=bytes([192, 0, 2, 9]))
    unlike = tcp(b"", version=6)
    parts = [*PARTS, *(part(index, 9, unlike, bytes(9)) for index in range(4))]
    datagrams = [b"\0" + udp(b"x"), b"\0" + udp(b"y"), b"\0" + udp(b"x", version=6)]
    written = joiner.join([b"\0" + spoofed, *datagrams, *parts])
    assert len(written) == 3
    assert joiner.dropped == {joining.FOREIGN: 1 + 1 + 4}
    assert asked[:4] == [
        (bytes([192, 0, 2, 9]), ADDRESSES[4][1]),
        ADDRESSES[4],  # once for packets with the same addresses
        ADDRESSES[6],
        ADDRESSES[4],  # once for all that is joined
    ]
    assert asked[4:] == [ADDRESSES[6]] * 4
    assert dropped(b"\0") == {joining.MALFORMED: 1}


def test_what_the_headers_say_of_sums_and_lengths_does_not_matter() -> None:
    headers = bytearray(TCP_HEADERS)
    headers[2:4] = b"\xff\xff"
    headers[10:12] = b"\x12\x34"
    headers[36:38] = bytes(2)
    (written,) = join([part(0, 3, bytes(headers), b"abc")])
    (packet,) = write(written)
    verify(packet)
    assert packet == tcp(b"abc")
