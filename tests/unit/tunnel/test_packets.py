from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nat_traverse.tunnel.packets import Joiner
from nat_traverse.wire import virtio
from support.packets import (
    ACK,
    ADDRESSES,
    CWR,
    FIN,
    GSO_ECN,
    PAYLOAD,
    PSH,
    UDP,
    admit,
    cut,
    finish,
    frames,
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


def test_the_protocols_page_has_worked_parts() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text("utf-8")
    parts = cut(partial(udp(b"abcdefgh"), 3))
    (datagram,) = write(*join(parts[1:2]))
    shown = "".join([part.hex() for part in parts] + [datagram.hex()])
    assert shown in "".join(page.split())


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


@pytest.mark.parametrize("name", sorted(set(SUPERS) - {"one segment", "tiny segments"}))
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


def test_tcp_is_cut_smaller_where_segments_do_not_fit() -> None:
    frame = partial(tcp(PAYLOAD[:5000], flags=ACK | PSH), 1300)
    parts = cut(frame, 600)
    assert [len(part) for part in parts] == [600] * 9 + [5 + 40 + 5000 - 9 * 555]
    assert write(join(parts)[0]) == finish(partial(tcp(PAYLOAD[:5000], flags=ACK | PSH), 555))
