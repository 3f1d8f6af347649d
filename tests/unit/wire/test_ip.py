from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire import ip
from support import packets
from support.packets import ADDRESSES, ipv4, ipv6, tcp, udp

# Extension headers without their first byte, which says what follows.
OPTIONS = b"\x00" + bytes(6)
LONG_OPTIONS = b"\x02" + bytes(22)
AUTHENTICATION = b"\x04" + bytes(22)
FIRST = b"\x00\x00\x01" + bytes(4)
MIDDLE = b"\x00\x05\xa9" + bytes(4)
LAST = b"\x00\x05\xa8" + bytes(4)
ATOMIC = b"\x00\x00\x00" + bytes(4)


# -- well-formed packets --------------------------------------------------------------------------


def test_ipv4() -> None:
    packet = udp(b"hello")
    assert ip.parse(packet) == ip.Header(
        version=4,
        source=ADDRESSES[4][0],
        destination=ADDRESSES[4][1],
        protocol=ip.UDP,
        transport_at=20,
        length=33,
        is_fragment=False,
    )
    assert ip.parse(memoryview(packet)) == ip.parse(bytearray(packet)) == ip.parse(packet)


def test_ipv6() -> None:
    assert ip.parse(tcp(b"hello", version=6)) == ip.Header(
        version=6,
        source=ADDRESSES[6][0],
        destination=ADDRESSES[6][1],
        protocol=ip.TCP,
        transport_at=40,
        length=65,
        is_fragment=False,
    )


def test_options_of_ipv4_are_passed_over() -> None:
    packet = ipv4(1, b"ping", options=bytes(8))
    assert ip.parse(packet).transport_at == 28
    assert ip.parse(ipv4(1, b"", options=bytes(40))).transport_at == 60


@pytest.mark.parametrize(
    ("field", "expected"), [(0, False), (0x4000, False), (0x8000, False), (0x2000, True), (5, True)]
)
def test_fragments_of_ipv4(field: int, expected: bool) -> None:
    assert ip.parse(ipv4(17, bytes(16), fragment=field)).is_fragment is expected


@pytest.mark.parametrize(
    ("extensions", "at"),
    [
        (((0, OPTIONS),), 48),
        (((60, LONG_OPTIONS),), 64),
        (((43, OPTIONS), (60, OPTIONS)), 56),
        (((51, AUTHENTICATION),), 64),
        (((44, ATOMIC),), 48),
        (((60, OPTIONS),) * 8, 104),
    ],
)
def test_extension_headers_are_passed_over(
    extensions: tuple[tuple[int, bytes], ...], at: int
) -> None:
    header = ip.parse(ipv6(17, bytes(8), extensions=extensions))
    assert (header.protocol, header.transport_at, header.is_fragment) == (17, at, False)


@pytest.mark.parametrize("fragment", [FIRST, MIDDLE, LAST])
def test_fragments_of_ipv6(fragment: bytes) -> None:
    header = ip.parse(ipv6(17, bytes(8), extensions=((44, fragment),)))
    assert (header.protocol, header.transport_at, header.is_fragment) == (17, 48, True)


def test_what_is_behind_the_first_fragment_header_is_walked_too() -> None:
    packet = ipv6(17, bytes(8), extensions=((44, FIRST), (60, OPTIONS)))
    header = ip.parse(packet)
    assert (header.protocol, header.transport_at, header.is_fragment) == (17, 56, True)


def test_an_atomic_fragment_does_not_undo_another_one() -> None:
    assert ip.parse(ipv6(17, bytes(8), extensions=((44, FIRST), (44, ATOMIC)))).is_fragment


def test_the_middle_of_something_is_not_read_as_a_header() -> None:
    header = ip.parse(ipv6(60, b"\xff" * 8, extensions=((44, MIDDLE),)))
    assert (header.protocol, header.transport_at) == (60, 48)


@pytest.mark.parametrize("protocol", [50, 58, 59, 135, 253])
def test_other_headers_are_the_transports(protocol: int) -> None:
    assert ip.parse(ipv6(protocol, bytes(3))).protocol == protocol


def test_headers_can_be_read_without_the_rest() -> None:
    for packet in (tcp(bytes(5000)), tcp(bytes(5000), version=6)):
        at = ip.parse(packet).transport_at
        assert ip.parse_headers(packet[:at]) == ip.parse(packet)


# -- packets that are none ------------------------------------------------------------------------

WRONG = {
    "": "version 0",
    "00" * 40: "version 0",
    "55" * 40: "version 5",
    "45" + "00" * 18: "header of 19 bytes",
    "44000014" + "00" * 16: "header of 16 bytes",
    "4f000014" + "00" * 16: "header of 60 bytes in a packet of 20",
    "4f00003c" + "00" * 16: "header of 60 bytes in a packet of 60",
    "45000013" + "00" * 16: "in a packet of 19",
    "45000015" + "00" * 16: "packet of 21 bytes in 20",
    "45000014" + "00" * 17: "packet of 20 bytes in 21",
    "60" + "00" * 38: "header of 39 bytes",
    "6000000000013b" + "00" * 33: "packet of 41 bytes in 40",
    "60000000000000" + "00" * 33: "cut short",
    "60000000000700" + "00" * 33 + "11000000000000": "headers are cut short",
    "60000000000800" + "00" * 33 + "1101000000000000": "header is cut short",
    "60000000000033" + "00" * 33 + "1101000000000000": "header is cut short",
    "60000000000000" + "00" * 33 + "1100000000000000": "headers of 48 bytes in a packet of 40",
    "60000000004800" + "00" * 33 + "0000000000000000" * 9: "more than 8",
}


@pytest.mark.parametrize("data", WRONG)
def test_what_is_no_packet_is_refused(data: str) -> None:
    with pytest.raises(RemoteProtocolError, match=WRONG[data]):
        ip.parse(bytes.fromhex(data))


@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_refused(data: bytes) -> None:
    try:
        header = ip.parse(data)
    except RemoteProtocolError:
        return
    assert header.transport_at <= header.length == len(data)


# -- the end of the headers -----------------------------------------------------------------------


def end(packet: bytes) -> int:
    return ip.end_of_headers(packet, ip.parse(packet))


def test_headers_of_tcp_and_udp_have_an_end() -> None:
    assert end(udp(b"x")) == 28
    assert end(udp(b"", version=6)) == 48
    assert end(tcp(b"")) == 40
    assert end(tcp(b"x", options=bytes(40))) == 80


def transport(offset: int, size: int) -> bytes:
    return struct.pack("!12xB", offset << 4) + bytes(size - 13)


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (ipv4(17, bytes(8), fragment=0x2000), "fragment"),
        (ipv4(1, bytes(20)), "protocol 1"),
        (ipv4(17, bytes(7)), "28 bytes in 27"),
        (ipv4(6, transport(5, 19)), "protocol 6"),
        (ipv4(6, transport(4, 20)), "TCP header of 16 bytes"),
        (ipv4(6, transport(6, 20)), "44 bytes in 40"),
    ],
)
def test_no_end_where_there_is_no_such_header(packet: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        end(packet)


# -- usual packets --------------------------------------------------------------------------------


def the_long_way(packet: bytes) -> tuple[int, int, int]:
    """Return what `locate` has to return for a packet that is usual, or wrong."""
    try:
        header = ip.parse(packet)
        return header.protocol, header.transport_at, ip.end_of_headers(packet, header)
    except RemoteProtocolError:
        return 0, 0, 0


@pytest.mark.parametrize("version", [4, 6])
def test_usual_packets_are_found_the_short_way(version: int) -> None:
    at = 20 if version == 4 else 40
    assert ip.locate(udp(b"", version=version)) == (ip.UDP, at, at + 8)
    assert ip.locate(memoryview(udp(b"x", version=version))) == (ip.UDP, at, at + 8)
    assert ip.locate(tcp(b"", version=version)) == (ip.TCP, at, at + 20)
    assert ip.locate(tcp(b"x", version=version, options=bytes(40))) == (ip.TCP, at, at + 60)


@pytest.mark.parametrize("field", [0, 0x2000, 0x4000, 0x8000, 0x2001, 5])
def test_a_fragment_is_not_usual(field: int) -> None:
    packet = ipv4(17, bytes(16), fragment=field)
    assert ip.locate(packet) == the_long_way(packet)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        udp(b"", version=6)[:39],
        ipv4(1, bytes(20)),
        ipv6(58, bytes(20)),
        ipv4(17, bytes(8), options=bytes(4)),
        ipv6(17, bytes(8), extensions=((60, OPTIONS),)),
        ipv4(17, bytes(7)),
        ipv6(17, bytes(7)),
        ipv4(6, transport(5, 19)),
        ipv4(6, transport(4, 20)),
        ipv6(6, transport(6, 20)),
        udp(b"x")[:-1],
        udp(b"x", version=6) + b"x",
        b"\x55" + udp(b"x")[1:],
    ],
)
def test_whatever_else_is_left_to_the_long_way(packet: bytes) -> None:
    assert ip.locate(packet) == (0, 0, 0)


@given(
    packet=st.sampled_from(
        [
            make(payload, version=version)
            for make in (tcp, udp)
            for payload in (b"", b"x", bytes(30))
            for version in (4, 6)
        ]
    ),
    at=st.integers(0, 60),
    new=st.binary(max_size=2),
    length=st.integers(0, 100) | st.just(100),
)
def test_the_short_way_says_what_the_long_way_says(
    packet: bytes, at: int, new: bytes, length: int
) -> None:
    changed = (packet[:at] + new + packet[at + len(new) :])[:length]
    found = ip.locate(changed)
    if found != (0, 0, 0):
        assert found == the_long_way(changed)
    elif the_long_way(changed) != (0, 0, 0):
        assert the_long_way(changed)[1] not in {20, 40}  # options, or extension headers


# -- checksums ------------------------------------------------------------------------------------


def test_the_example_of_rfc_1071() -> None:
    assert ip.ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2  # section 3
    assert ip.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_the_two_zeros() -> None:
    assert ip.ones_sum(bytes(8)) == 0
    assert ip.ones_sum(b"\xff\xff\xff\xff") == 0xFFFF
    assert ip.ones_sum(b"\x12\x34\xed\xcb") == 0xFFFF
    assert ip.ones_sum(b"") == 0
    assert ip.ones_sum(b"\x01") == 0x0100


@given(st.binary(max_size=200))
def test_sums_are_those_of_adding_word_by_word(data: bytes) -> None:
    assert ip.ones_sum(data) == packets.words(data)
    assert ip.ones_sum(memoryview(data)) == ip.ones_sum(bytearray(data)) == ip.ones_sum(data)


@pytest.mark.parametrize("packet", [tcp(b"abc"), tcp(b"abc", version=6), udp(b"", version=6)])
def test_a_right_packet_sums_up(packet: bytes) -> None:
    header = ip.parse(packet)
    at = header.transport_at
    assert header.version == 6 or ip.checksum(packet[:at]) == 0
    total = ip.pseudo_sum(header, len(packet) - at) + ip.ones_sum(packet[at:])
    assert total % 0xFFFF == 0


def test_the_sum_of_a_pseudo_header_is_never_zero() -> None:
    header = ip.Header(4, bytes(4), b"\0\0\xff\xee", 17, 20, 28, is_fragment=False)
    assert ip.pseudo_sum(header, 0) == 0xFFFF
