from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from nat_traverse.net.offload import burst_size
from nat_traverse.tunnel import cutting
from nat_traverse.tunnel.cutting import Cutter, couple
from nat_traverse.wire import virtio
from support.packets import (
    ACK,
    CWR,
    FIN,
    LARGEST,
    PAYLOAD,
    PSH,
    SYN,
    TCP,
    UDP,
    Headers,
    cut,
    finish,
    ipv4,
    ipv6,
    join,
    partial,
    tcp,
    udp,
    verify,
    whole,
    words,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# -- packets --------------------------------------------------------------------------------------


# The short way for usual packets; the long way is the one with options or extension headers.
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_usual", [True, False])
def test_a_partial_checksum_where_it_is_found(protocol: int, version: int, is_usual: bool) -> None:
    if is_usual:
        packet = (tcp if protocol == TCP else udp)(b"abc", version=version)
    elif version == 4:
        packet = ipv4(protocol, (tcp if protocol == TCP else udp)(b"abc")[20:], options=bytes(8))
    else:
        transport = (tcp if protocol == TCP else udp)(b"abc", version=6)[40:]
        packet = ipv6(protocol, transport, extensions=((60, bytes(7)),))
    start = (20 if version == 4 else 40) + (0 if is_usual else 8)
    offset = 16 if protocol == TCP else 6
    head = virtio.encode(virtio.Offload(1, 0, 99, 0, start, offset))
    assert cut(head + packet) == [b"\1" + packet]
    # Elsewhere it is completed, as for what is in a tunnel inside.
    for at, to in ((start, offset + 2), (start - 2, offset), (start - 2, offset + 2)):
        (plaintext,) = cut(virtio.encode(virtio.Offload(1, 0, 99, 0, at, to)) + packet)
        assert plaintext[0] == 0
        place = 1 + at + to
        assert (
            plaintext[1:place] + plaintext[place + 2 :] == packet[: place - 1] + packet[place + 1 :]
        )
        assert plaintext[place : place + 2] == (0xFFFF - words(packet[at:])).to_bytes(2, "big")


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


def test_trains_fit_into_one_send() -> None:
    assert burst_size(1000) == 64_000
    assert burst_size(1) == cutting.TRAIN_DATAGRAMS
    assert burst_size(1400) // 1400 == cutting.TRAIN_BYTES // 1400
    for size in (1, 88, 1000, 1316, 9000, 60_000):
        trains = Cutter(65_000).cut(memoryview(partial(tcp(PAYLOAD[:64_000]), size)))
        for train in trains:
            sealed = [len(plaintext) + cutting.SEALING for plaintext in train]
            assert len(set(sealed[:-1])) <= 1
            assert sealed[-1] <= sealed[0]
            assert sum(sealed) <= burst_size(sealed[0])
        for first, second in pairwise(trains):  # none could have taken more
            taken = len(first) + len(second)
            assert taken * (len(first[0]) + cutting.SEALING) > burst_size(len(first[0]) + 32)


def test_parts_do_not_refer_to_the_buffer() -> None:
    buffer = bytearray(partial(tcp(PAYLOAD[:5000]), 1300))
    parts = Cutter(LARGEST).cut(memoryview(buffer))[0]
    before = list(map(bytes, parts))
    buffer[:] = bytes(len(buffer))
    assert parts == before


# -- what does not fit ----------------------------------------------------------------------------


def test_a_packet_that_is_too_large_is_reported() -> None:
    reported = []
    cutter = Cutter(1000, lambda packet, largest: reported.append((bytes(packet), largest)))
    assert cutter.mtu == 995
    for packet in (udp(bytes(972)), udp(bytes(952), version=6)):
        assert cutter.cut(memoryview(whole(packet))) == []
        assert cutter.cut(memoryview(partial(packet))) == []
    assert [largest for _, largest in reported] == [995] * 4
    assert reported[0][0] == udp(bytes(972))
    assert (cutter.too_large, cutter.unusable) == (4, 0)


@pytest.mark.parametrize("frame_of", [whole, partial])
@pytest.mark.parametrize(
    "packet",
    [
        tcp(PAYLOAD[:960], flags=ACK | PSH),  # one byte more than fits whole
        tcp(PAYLOAD[:2801], flags=ACK | FIN, options=bytes(12)),
        tcp(PAYLOAD[:1220], version=6, flags=ACK | CWR),
        tcp(PAYLOAD[:1221], sequence=0xFFFFFF00, identification=65535),
        ipv4(TCP, tcp(PAYLOAD[:1200])[20:], options=bytes([1] * 8)),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_a_packet_of_tcp_that_is_too_large_is_cut(
    packet: bytes, frame_of: Callable[[bytes], bytes]
) -> None:
    cutter = Cutter(1000)
    (parts,) = cutter.cut(memoryview(frame_of(packet)))
    assert (cutter.too_large, cutter.unusable) == (0, 0)
    end = Headers.of(packet).end
    assert {len(part) for part in parts[:-1]} == {1000}
    assert b"".join(part[5 + end :] for part in parts) == packet[end:]
    # As if the kernel had brought it as a super-packet.
    expected = partial(packet, 995 - end)
    (written,) = join(parts)
    assert written[10:] == expected[10:]
    assert write(written) == finish(expected)
    for segment in write(written):
        verify(segment)


def test_so_it_is_behind_extension_headers() -> None:
    transport = tcp(PAYLOAD[:1200], version=6)[40:]
    packet = ipv6(TCP, transport, extensions=((60, bytes(7)),))
    sums = words(packet[8:40] + bytes((0, TCP)) + len(transport).to_bytes(2, "big"))
    unfinished = packet[:64] + sums.to_bytes(2, "big") + packet[66:]
    offload = virtio.Offload(virtio.NEEDS_CHECKSUM, 0, 99, 0, 48, 16)
    for frame in (whole(packet), virtio.encode(offload) + unfinished):
        (written,) = join(cut(frame, 1000))
        assert virtio.decode(written)[1:4] == (virtio.GSO_TCPV6, 68, 1000 - 5 - 68)
        assert written[10:] == unfinished


def spoiled(packet: bytes, at: int, value: int) -> bytes:
    changed = bytearray(packet)
    changed[at] ^= value
    return bytes(changed)


LONG = tcp(PAYLOAD[:1200])


@pytest.mark.parametrize(
    "frame",
    [
        whole(udp(PAYLOAD[:1200])),
        whole(ipv4(1, PAYLOAD[:1200])),
        whole(ipv4(TCP, LONG[20:], fragment=0x2000)),  # the first of several fragments
        whole(ipv4(TCP, LONG[20:], fragment=0x0010)),
        whole(tcp(PAYLOAD[:1200], flags=SYN)),
        whole(tcp(PAYLOAD[:1200], flags=ACK | 0x20)),  # URG
        whole(spoiled(LONG, 36, 1)),  # a sum that is wrong stays so
        whole(spoiled(LONG, 1000, 1)),
        whole(spoiled(LONG, 32, 0xF0)),  # headers that are none
        whole(LONG + b"x"),
        virtio.encode(virtio.Offload(1, 0, 40, 0, 20, 6)) + LONG,  # a sum that is elsewhere
        virtio.encode(virtio.Offload(1, 0, 40, 0, 24, 16)) + LONG,
    ],
    ids=lambda frame: f"{len(frame)}",
)
def test_other_packets_that_are_too_large_are_not(frame: bytes) -> None:
    reported = []
    cutter = Cutter(1000, lambda packet, largest: reported.append((bytes(packet), largest)))
    assert cutter.cut(memoryview(frame)) == []
    assert reported == [(frame[10:], 995)]
    assert (cutter.too_large, cutter.unusable) == (1, 0)


def test_the_largest_fits() -> None:
    assert [len(part) for part in cut(whole(udp(bytes(971))), 1000)] == [1000]
    assert [len(part) for part in cut(partial(tcp(PAYLOAD[:2865]), 955), 1000)] == [1000] * 3


def test_nobody_has_to_listen() -> None:
    cutter = Cutter(100)
    assert cutter.cut(memoryview(whole(udp(bytes(200))))) == []
    assert cutter.too_large == 1


def test_datagrams_of_udp_are_not_cut() -> None:
    reported = []
    cutter = Cutter(600, lambda packet, _: reported.append(len(packet)))
    assert cutter.cut(memoryview(partial(udp(PAYLOAD[:5000]), 1300))) == []
    assert reported == [5028]


def test_headers_that_leave_no_room() -> None:
    cutter = Cutter(45)
    assert cutter.cut(memoryview(partial(tcp(PAYLOAD[:100]), 10))) == []
    assert cutter.cut(memoryview(partial(tcp(PAYLOAD[:100])))) == []
    assert cutter.too_large == 2
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
