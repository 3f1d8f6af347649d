from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.net.offload import burst_size
from nat_traverse.tunnel import packets
from nat_traverse.tunnel.packets import Cutter, Joiner, couple
from nat_traverse.wire import virtio, vpn
from support.packets import (
    ACK,
    ADDRESSES,
    CWR,
    FIN,
    GSO_ECN,
    PSH,
    UDP,
    finish,
    ipv4,
    ipv6,
    partial,
    tcp,
    udp,
    verify,
    whole,
    words,
    write,
)

if TYPE_CHECKING:
    from nat_traverse.wire.ip import Buffer

LARGEST = 1368  # of a datagram of 1,400 bytes
# Nothing may be in both: each byte of the payload tells where it comes from.
PAYLOAD = struct.pack("!16250I", *range(16250))


def cut(frame: bytes, largest: int = LARGEST) -> list[bytes]:
    return [part for train in Cutter(largest).cut(memoryview(frame)) for part in train]


def admit(_source: bytes, _destination: bytes) -> bool:
    return True


def frames(written: list[list[Buffer]]) -> list[bytes]:
    return [b"".join(buffers) for buffers in written]


def join(parts: list[bytes]) -> list[bytes]:
    """Return the frames that are written, where nothing may be dropped."""
    joiner = Joiner(admit)
    found = frames(joiner.join(parts))
    assert not joiner.dropped
    return found


def dropped(*parts: bytes) -> dict[str, int]:
    joiner = Joiner(admit)
    assert joiner.join(parts) == []
    return dict(joiner.dropped)


# -- packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", [tcp(b"x"), udp(b"x", version=6), ipv4(1, b"ping")])
def test_a_packet_goes_through_as_it_is(packet: bytes) -> None:
    assert cut(whole(packet)) == [b"\0" + packet]
    assert join([b"\0" + packet]) == [whole(packet)]


def test_a_checksum_that_was_found_right_is_one() -> None:
    frame = virtio.encode(virtio.Offload(virtio.DATA_VALID)) + tcp(b"x")
    assert cut(frame) == [b"\0" + tcp(b"x")]


@pytest.mark.parametrize("version", [4, 6])
def test_a_partial_checksum_stays_so(version: int) -> None:
    for packet in (tcp(b"abc", version=version, options=bytes(12)), udp(b"", version=version)):
        frame = partial(packet)
        assert cut(frame) == [b"\1" + frame[10:]]
        (written,) = join(cut(frame))
        assert write(written) == [packet]


def test_a_partial_checksum_behind_extension_headers() -> None:
    transport = udp(b"abc", version=6)[40:]
    packet = ipv6(UDP, transport, extensions=((60, b"\0" + bytes(6)),))
    offload = virtio.Offload(virtio.NEEDS_CHECKSUM, 0, 56, 0, 48, 6)
    frame = virtio.encode(offload) + packet
    assert cut(frame) == [b"\1" + packet]
    assert join(cut(frame)) == [frame]


@pytest.mark.parametrize("inner", [tcp(b"inner"), udp(b"inn"), tcp(b"inner", version=6)], ids=len)
def test_a_checksum_that_the_other_end_would_not_find_is_completed(inner: bytes) -> None:
    _, _, _, _, start, offset = struct.unpack_from("=BBHHHH", partial(inner))
    outer = udp(inner)
    unfinished = outer[:28] + partial(inner)[10:]
    head = virtio.encode(virtio.Offload(virtio.NEEDS_CHECKSUM, 0, 80, 0, 28 + start, offset))
    assert cut(head + unfinished) == [b"\0" + outer[:28] + inner]


def test_a_sum_of_zero_is_written_as_the_other_zero() -> None:
    # In UDP, zero says that there is no checksum.
    packet = ipv4(1, b"\xff\xff" + bytes(6))
    head = virtio.encode(virtio.Offload(virtio.NEEDS_CHECKSUM, 0, 28, 0, 20, 6))
    (plaintext,) = cut(head + packet)
    assert plaintext[-2:] == b"\xff\xff"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes(10),
        virtio.encode(virtio.Offload(1, 0, 0, 0, 20, 100)) + udp(b"x"),
        virtio.encode(virtio.Offload(1, 0, 0, 0, 20, 16)) + ipv4(6, bytes(19)),
        virtio.encode(virtio.Offload(1, 0, 0, 0, 20, 6)) + b"\x55" * 40,
        virtio.encode(virtio.Offload(1, 1, 0, 8, 20, 16)) + udp(bytes(100)),
        virtio.encode(virtio.Offload(1, 3, 0, 8, 20, 6)) + udp(bytes(100)),
        virtio.encode(virtio.Offload(1, 5, 0, 8, 20, 6)) + tcp(bytes(100)),
        virtio.encode(virtio.Offload(1, 4, 0, 8, 20, 16)) + tcp(bytes(100)),
        virtio.encode(virtio.Offload(1, 1, 0, 0, 20, 16)) + tcp(bytes(100)),
        virtio.encode(virtio.Offload(1, 1, 0, 8, 20, 16)) + tcp(b""),
        virtio.encode(virtio.Offload(1, 1, 0, 8, 20, 16)) + tcp(bytes(100))[:-1],
        virtio.encode(virtio.Offload(1, 5, 0, 8, 20, 6)) + ipv4(17, bytes(99), fragment=0x2000),
    ],
)
def test_a_frame_that_makes_no_sense_is_counted(frame: bytes) -> None:
    cutter = Cutter(LARGEST)
    assert cutter.cut(memoryview(frame)) == []
    assert (cutter.unusable, cutter.too_large) == (1, 0)


# -- super-packets: what is cut -------------------------------------------------------------------


def test_a_part_is_described_byte_by_byte() -> None:
    frame = partial(tcp(b"abcdefgh", flags=ACK | PSH), 3)
    headers = frame[10:50]
    assert cut(frame) == [
        b"\2\0\0\0\3" + headers + b"abc",
        b"\2\0\1\0\3" + headers + b"def",
        b"\3\0\2\0\3" + headers + b"gh",
    ]


def test_the_protocols_page_has_worked_parts() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text("utf-8")
    parts = cut(partial(udp(b"abcdefgh"), 3))
    (datagram,) = write(*join(parts[1:2]))
    shown = "".join([part.hex() for part in parts] + [datagram.hex()])
    assert shown in "".join(page.split())


def test_trains_fit_into_one_send() -> None:
    assert burst_size(1000) == 64_000
    assert burst_size(1) == packets.TRAIN_DATAGRAMS
    assert burst_size(1400) // 1400 == packets.TRAIN_BYTES // 1400
    for size in (1, 88, 1000, 1316, 9000, 60_000):
        trains = Cutter(65_000).cut(memoryview(partial(tcp(PAYLOAD[:64_000]), size)))
        for train in trains:
            sealed = [len(plaintext) + packets.SEALING for plaintext in train]
            assert len(set(sealed[:-1])) <= 1
            assert sealed[-1] <= sealed[0]
            assert sum(sealed) <= burst_size(sealed[0])
        for first, second in pairwise(trains):  # none could have taken more
            taken = len(first) + len(second)
            assert taken * (len(first[0]) + packets.SEALING) > burst_size(len(first[0]) + 32)


def test_parts_do_not_refer_to_the_buffer() -> None:
    buffer = bytearray(partial(tcp(PAYLOAD[:5000]), 1300))
    parts = Cutter(LARGEST).cut(memoryview(buffer))[0]
    before = list(map(bytes, parts))
    buffer[:] = bytes(len(buffer))
    assert parts == before


# -- super-packets: cut and joined ----------------------------------------------------------------

SUPERS = {
    "TCP": partial(tcp(PAYLOAD[:5000], flags=ACK | PSH, options=bytes(12)), 1300),
    "TCP over IPv6": partial(tcp(PAYLOAD[:5000], version=6, flags=ACK | FIN), 1300),
    "TCP with CWR": partial(tcp(PAYLOAD[:5000], flags=ACK | CWR | PSH), 1300),
    "TCP that wraps": partial(tcp(PAYLOAD[:5000], sequence=0xFFFFFF00, identification=65534), 1300),
    "small segments": partial(tcp(PAYLOAD), 88),
    "tiny segments": partial(tcp(PAYLOAD), 1),
    "one segment": partial(tcp(PAYLOAD[:100]), 1300),
    "full segments": partial(tcp(PAYLOAD[:3900]), 1300),
    "UDP": partial(udp(PAYLOAD[:5000]), 1300),
    "UDP over IPv6": partial(udp(PAYLOAD[:5000], version=6), 1300),
}


@pytest.mark.parametrize("name", sorted(set(SUPERS) - {"one segment"}))
def test_nothing_lost(name: str) -> None:
    parts = cut(SUPERS[name])
    (written,) = join(parts)
    assert written[10:] == SUPERS[name][10:]
    head = virtio.decode(written)
    assert head == virtio.decode(SUPERS[name])._replace(header_length=head.header_length)
    assert head.header_length == len(parts[0]) - 5 - head.gso_size


@pytest.mark.parametrize("name", sorted(set(SUPERS) - {"tiny segments"}))
def test_each_part_alone_is_its_segment(name: str) -> None:
    expected = finish(SUPERS[name]) if name != "one segment" else [tcp(PAYLOAD[:100])]
    for part, segment in zip(cut(SUPERS[name]), expected, strict=True):
        (written,) = join([part])
        assert virtio.decode(written).gso_type == virtio.GSO_NONE
        assert write(written) == [segment]
        verify(segment)


@pytest.mark.parametrize("name", ["TCP", "TCP over IPv6", "TCP with CWR", "UDP", "UDP over IPv6"])
@pytest.mark.parametrize("lost", range(4))
def test_one_lost_part_is_one_lost_segment(name: str, lost: int) -> None:
    parts, segments = cut(SUPERS[name]), finish(SUPERS[name])
    assert len(parts) == 4
    del parts[lost], segments[lost]
    written = join(parts)
    assert len(written) == (1 if lost in {0, 3} else 2)
    assert [packet for frame in written for packet in write(frame)] == segments


def test_parts_that_were_overtaken() -> None:
    parts, segments = cut(SUPERS["UDP"]), finish(SUPERS["UDP"])
    order = (0, 2, 1, 3)
    written = join([parts[index] for index in order])
    assert [write(frame) for frame in written] == [[segments[index]] for index in order]


def test_flags_belong_to_the_first_and_the_last_segment() -> None:
    parts = cut(SUPERS["TCP with CWR"])
    (first,) = join(parts[:2])
    assert first[10 + 33] == ACK | CWR
    assert virtio.decode(first).gso_type & GSO_ECN
    (last,) = join(parts[2:])
    assert last[10 + 33] == ACK | PSH
    assert virtio.decode(last).gso_type == virtio.GSO_TCPV4


def test_super_packets_are_not_mixed_up() -> None:
    one, other = SUPERS["TCP"], SUPERS["UDP"]
    a, b = cut(one), cut(other)
    mixed = [a[0], b[1], b[2], a[3], b"\0" + udp(b"x"), a[1], a[2]]
    x, y = finish(one), finish(other)
    expected = [[x[0]], [y[1], y[2]], [x[3]], [udp(b"x")], [x[1], x[2]]]
    assert [write(frame) for frame in join(mixed)] == expected


def test_each_super_packet_is_one_write() -> None:
    parts = cut(SUPERS["TCP"]) + cut(SUPERS["TCP"]) + cut(SUPERS["UDP"])
    assert [frame[10:] for frame in join(parts)] == [
        SUPERS[name][10:] for name in ("TCP", "TCP", "UDP")
    ]


def test_segments_are_written_from_where_they_are() -> None:
    (buffers,) = Joiner(admit).join(cut(SUPERS["TCP"]))
    assert [len(buffer) for buffer in buffers] == [10 + 52, 1300, 1300, 1300, 1100]


def test_a_kernel_without_super_packets_of_udp() -> None:
    joiner = Joiner(admit, joins_udp=False)
    written = frames(joiner.join(cut(SUPERS["UDP"]) + cut(SUPERS["TCP"])))
    assert [packet for frame in written for packet in write(frame)] == [
        *finish(SUPERS["UDP"]),
        *finish(SUPERS["TCP"]),
    ]
    assert len(written) == 4 + 1


def test_options_of_ip_are_in_every_segment() -> None:
    transport = tcp(PAYLOAD[:3000])[20:]
    frame = partial(ipv4(6, transport, options=bytes([1] * 8)), 1000)
    (written,) = join(cut(frame))
    assert write(written) == finish(frame)
    for packet in write(written):
        verify(packet)


def test_extension_headers_are_in_every_segment() -> None:
    # With a routing header, the sum is over another destination than the one in the header: so
    # what the kernel has summed is kept, and only the length in it is changed.
    transport = bytearray(udp(PAYLOAD[:2500], version=6)[40:])
    final = b"\xfd\x99" + bytes(14)
    transport[6:8] = words(ADDRESSES[6][0] + final + struct.pack("!HH", UDP, 2508)).to_bytes(2)
    routing = b"\x02\x02\x01" + bytes(4) + final
    packet = ipv6(UDP, bytes(transport), extensions=((43, routing),))
    offload = virtio.Offload(virtio.NEEDS_CHECKSUM, virtio.GSO_UDP, 72, 1000, 64, 6)
    parts = cut(virtio.encode(offload) + packet)
    assert join(parts) == [virtio.encode(offload) + packet]
    (last,) = join(parts[2:])
    assert last[14:16] == (24 + 508).to_bytes(2)
    expected = words(ADDRESSES[6][0] + final + struct.pack("!HH", UDP, 508))
    assert last[10 + 70 : 10 + 72] == expected.to_bytes(2)


def test_udp_without_checksums_gets_them() -> None:
    frame = bytearray(SUPERS["UDP"])
    frame[10 + 26 : 10 + 28] = bytes(2)
    (written,) = join(cut(bytes(frame)))
    assert write(written) == finish(SUPERS["UDP"])


def test_a_sign_of_life_is_no_part() -> None:
    parts = cut(SUPERS["TCP"])
    assert join([b""]) == []
    assert len(join([b"", parts[0], b"", parts[1]])) == 1


# -- what does not fit ----------------------------------------------------------------------------


def test_a_packet_that_is_too_large_is_reported() -> None:
    reported = []
    cutter = Cutter(1000, lambda packet, largest: reported.append((bytes(packet), largest)))
    assert cutter.mtu == 995
    for packet in (udp(bytes(972)), tcp(bytes(940), version=6)):
        assert cutter.cut(memoryview(whole(packet))) == []
        assert cutter.cut(memoryview(partial(packet))) == []
    assert [largest for _, largest in reported] == [995] * 4
    assert reported[0][0] == udp(bytes(972))
    assert (cutter.too_large, cutter.unusable) == (4, 0)


def test_the_largest_fits() -> None:
    assert [len(part) for part in cut(whole(udp(bytes(971))), 1000)] == [1000]
    assert [len(part) for part in cut(partial(tcp(PAYLOAD[:2865]), 955), 1000)] == [1000] * 3


def test_nobody_has_to_listen() -> None:
    cutter = Cutter(100)
    assert cutter.cut(memoryview(whole(udp(bytes(200))))) == []
    assert cutter.too_large == 1


def test_tcp_is_cut_smaller_where_segments_do_not_fit() -> None:
    frame = partial(tcp(PAYLOAD[:5000], flags=ACK | PSH), 1300)
    parts = cut(frame, 600)
    assert [len(part) for part in parts] == [600] * 9 + [5 + 40 + 5000 - 9 * 555]
    assert write(join(parts)[0]) == finish(partial(tcp(PAYLOAD[:5000], flags=ACK | PSH), 555))


def test_datagrams_of_udp_are_not_cut() -> None:
    reported = []
    cutter = Cutter(600, lambda packet, _: reported.append(len(packet)))
    assert cutter.cut(memoryview(SUPERS["UDP"])) == []
    assert reported == [5028]


def test_headers_that_leave_no_room() -> None:
    cutter = Cutter(45)
    assert cutter.cut(memoryview(partial(tcp(PAYLOAD[:100]), 10))) == []
    assert cutter.too_large == 1
    cutter.largest_plaintext = 46
    assert len(cutter.cut(memoryview(partial(tcp(PAYLOAD[:100]), 10)))[0]) == 64


# -- trains of several reads ----------------------------------------------------------------------


def test_trains_are_coupled_while_sizes_are_equal() -> None:
    a, b, c = b"a" * 100, b"b" * 100, b"c" * 60
    assert couple([[a], [b], [c], [c], [a]]) == [[a, b, c], [c], [a]]
    assert couple([[c], [a], [a, c], [a]]) == [[c], [a, a, c], [a]]
    assert couple([[a], [c, c]]) == [[a], [c, c]]
    assert couple([]) == []


def test_coupled_trains_fit_into_one_send() -> None:
    small, large = b"s" * 100, b"l" * 1368
    assert [len(train) for train in couple([[small]] * 130)] == [64, 64, 2]
    assert [len(train) for train in couple([[large] * 40, [large] * 6, [large] * 5])] == [46, 5]
    assert [len(train) for train in couple([[large] * 40, [large] * 7])] == [40, 7]


def test_coupling_changes_no_train_that_it_was_given() -> None:
    given = [[b"a"], [b"b"]]
    couple(given)
    assert given == [[b"a"], [b"b"]]


# -- a peer that lies -----------------------------------------------------------------------------


def part(index: int, size: int, headers: bytes, chunk: bytes, kind: int = vpn.PART) -> bytes:
    return vpn.HEAD.pack(kind, index, size) + headers + chunk


TCP_HEADERS, UDP_HEADERS = tcp(b""), udp(b"")


@pytest.mark.parametrize(
    ("plaintext", "word"),
    [
        (b"\0", packets.MALFORMED),
        (b"\2" * 20, packets.MALFORMED),
        (b"\0" + b"\x55" * 40, packets.MALFORMED),
        (b"\0" + udp(b"x") + b"y", packets.MALFORMED),
        (b"\0" + udp(b"x")[:-1], packets.MALFORMED),
        (b"\1" + ipv4(1, bytes(8)), packets.MALFORMED),
        (b"\1" + ipv4(17, bytes(8), fragment=0x2000), packets.MALFORMED),
        (b"\1" + ipv4(17, bytes(7)), packets.MALFORMED),
        (b"\1" + ipv4(6, bytes(40)), packets.MALFORMED),
        (part(0, 1, ipv4(1, bytes(20)), b"x"), packets.MALFORMED),
        (part(0, 1, ipv4(17, bytes(8), fragment=1), b"x"), packets.MALFORMED),
        (part(0, 1, ipv4(6, bytes(20)), b"x"), packets.MALFORMED),
        (part(0, 1, b"\x05" * 40, b"x"), packets.MALFORMED),
        (part(0, 1, UDP_HEADERS[:24], b""), packets.MALFORMED),
        (part(0, 8, UDP_HEADERS, b""), packets.BAD_SEGMENT),
        (part(0, 0, UDP_HEADERS, b""), packets.BAD_SEGMENT),
        (part(0, 0, UDP_HEADERS, b"x"), packets.BAD_SEGMENT),
        (part(0, 0, UDP_HEADERS, b"x", vpn.LAST), packets.BAD_SEGMENT),
        (part(0, 9, UDP_HEADERS, b"12345678"), packets.BAD_SEGMENT),
        (part(0, 7, UDP_HEADERS, b"12345678"), packets.BAD_SEGMENT),
        (part(0, 7, UDP_HEADERS, b"12345678", vpn.LAST), packets.BAD_SEGMENT),
        (part(0, 7, UDP_HEADERS, b"", vpn.LAST), packets.BAD_SEGMENT),
        (part(65, 1000, TCP_HEADERS, bytes(1000)), packets.TOO_LONG),
        (part(65535, 1, TCP_HEADERS, b"x"), packets.TOO_LONG),
        (part(65535, 65535, TCP_HEADERS, b"x", vpn.LAST), packets.TOO_LONG),
        (part(0, 1, UDP_HEADERS, b"x", 4), packets.UNKNOWN_KIND),
        (b"\xff" + udp(b"x"), packets.UNKNOWN_KIND),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_lie_is_dropped_and_counted(plaintext: bytes, word: str) -> None:
    assert dropped(plaintext) == {word: 1}
    parts = cut(SUPERS["TCP"])
    joiner = Joiner(admit)
    written = joiner.join([*parts[:2], plaintext, *parts[2:]])
    assert [packet for frame in frames(written) for packet in write(frame)] == finish(SUPERS["TCP"])
    assert joiner.dropped == {word: 1}


def test_a_super_packet_is_at_most_a_packet() -> None:
    parts = [part(index, 1000, TCP_HEADERS, bytes(1000)) for index in range(66)]
    assert len(join(parts[:65])) == 1
    assert dropped(*parts) == {packets.TOO_LONG: 66}
    largest = part(65, 1000, TCP_HEADERS, bytes(65535 - 40 - 65_000), vpn.LAST)
    assert len(join([*parts[:65], largest])[0]) == 10 + 65535
    more = part(65, 1000, TCP_HEADERS, bytes(65536 - 40 - 65_000), vpn.LAST)
    assert dropped(*parts[:65], more) == {packets.TOO_LONG: 66}


@pytest.mark.parametrize("kind", [vpn.PART, vpn.LAST])
@pytest.mark.parametrize("size", [0, 999, 1001])
def test_a_wrong_segment_in_a_row_is_dropped(kind: int, size: int) -> None:
    if (kind, size) == (vpn.LAST, 999):
        return  # that is a right one
    row = [part(0, 1000, TCP_HEADERS, bytes(1000)), part(1, 1000, TCP_HEADERS, bytes(size), kind)]
    joiner = Joiner(admit)
    assert len(joiner.join(row)) == 1
    assert joiner.dropped == {packets.BAD_SEGMENT: 1}


def test_parts_of_another_size_are_not_joined() -> None:
    row = [part(0, 1000, TCP_HEADERS, bytes(1000)), part(1, 500, TCP_HEADERS, bytes(500))]
    assert [len(frame) for frame in join(row)] == [10 + 1040, 10 + 540]


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
    parts = [*cut(SUPERS["TCP"]), *cut(SUPERS["TCP over IPv6"])]
    written = joiner.join([b"\0" + spoofed, b"\0" + udp(b"x"), *parts])
    assert len(written) == 2
    assert joiner.dropped == {packets.FOREIGN: 1 + 4}
    assert asked[:3] == [
        (bytes([192, 0, 2, 9]), ADDRESSES[4][1]),
        ADDRESSES[4],
        ADDRESSES[4],  # once for all that is joined
    ]
    assert asked[3:] == [ADDRESSES[6]] * 4
    assert dropped(b"\0") == {packets.MALFORMED: 1}


def test_what_the_headers_say_of_sums_and_lengths_does_not_matter() -> None:
    headers = bytearray(TCP_HEADERS)
    headers[2:4] = b"\xff\xff"
    headers[10:12] = b"\x12\x34"
    headers[36:38] = bytes(2)
    (written,) = join([part(0, 3, bytes(headers), b"abc")])
    (packet,) = write(written)
    verify(packet)
    assert packet == tcp(b"abc")
