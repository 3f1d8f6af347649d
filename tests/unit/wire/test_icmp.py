from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalProtocolError
from nat_traverse.wire import icmp, ip
from nat_traverse.wire.icmp import too_big
from support.packets import ADDRESSES, fold, ipv4, ipv6, pseudo, tcp, udp, words

ROUTER = {4: bytes([192, 0, 2, 1]), 6: b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"}


def answer(packet: bytes, mtu: int = 1400) -> bytes | None:
    return too_big(packet, mtu, ROUTER[packet[0] >> 4])


# -- what it says ---------------------------------------------------------------------------------


def test_fragmentation_needed() -> None:
    packet = tcp(bytes(range(250)) * 6)
    found = answer(packet, 1395)
    assert found is not None
    header = ip.parse(found)
    assert (header.source, header.destination) == (ROUTER[4], ADDRESSES[4][0])
    assert (header.protocol, len(found)) == (ip.ICMP, 576)
    assert words(found[:20]) == 0xFFFF
    assert words(found[20:]) == 0xFFFF
    assert struct.unpack_from("!BBxxHH", found, 20) == (3, 4, 0, 1395)
    assert found[28:] == packet[:548]


def test_packet_too_big() -> None:
    packet = udp(bytes(range(250)) * 6, version=6)
    found = answer(packet, 1395)
    assert found is not None
    header = ip.parse(found)
    assert (header.source, header.destination) == (ROUTER[6], ADDRESSES[6][0])
    assert (header.protocol, len(found)) == (ip.ICMPV6, 1280)
    total = pseudo(ROUTER[6] + ADDRESSES[6][0], ip.ICMPV6, len(found) - 40) + words(found[40:])
    assert fold(total) == 0xFFFF
    assert struct.unpack_from("!BBxxI", found, 40) == (2, 0, 1395)
    assert found[48:] == packet[:1232]


@pytest.mark.parametrize("version", [4, 6])
def test_a_short_packet_is_quoted_in_full(version: int) -> None:
    packet = udp(b"odd", version=version)
    found = answer(packet)
    assert found is not None
    assert found.endswith(packet)
    assert ip.parse(memoryview(found)).length == len(found)


def test_an_mtu_has_16_bits_in_ipv4() -> None:
    found = answer(udp(b""), 70_000)
    assert found is not None
    assert found[26:28] == b"\xff\xff"


# -- when it is not said --------------------------------------------------------------------------


def echo(kind: int, version: int = 4) -> bytes:
    body = bytes([kind]) + bytes(7)
    return ipv4(1, body) if version == 4 else ipv6(58, body)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_no_error_for_an_error_of_ipv4(kind: int) -> None:
    assert answer(echo(kind)) is None


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 127, 137])
def test_no_error_for_an_error_of_ipv6(kind: int) -> None:
    assert answer(echo(kind, 6)) is None


def test_a_question_is_answered() -> None:
    assert answer(echo(8)) is not None
    assert answer(echo(0)) is not None
    assert answer(echo(128, 6)) is not None
    assert answer(echo(135, 6)) is not None


def test_icmp_without_a_type_is_not() -> None:
    assert answer(ipv4(1, b"")) is None
    assert answer(ipv6(58, b"")) is None


def test_only_the_first_fragment_of_ipv4() -> None:
    assert answer(ipv4(17, bytes(8), fragment=0x6000)) is not None
    assert answer(ipv4(17, bytes(8), fragment=0x4001)) is None


def test_every_fragment_of_ipv6() -> None:
    middle = ((44, b"\x00\x05\xa9" + bytes(4)),)
    assert answer(ipv6(17, bytes(8), extensions=middle)) is not None
    assert answer(ipv6(58, b"\x01" + bytes(7), extensions=middle)) is not None


def test_not_for_a_packet_that_may_be_fragmented() -> None:
    assert answer(ipv4(17, bytes(8), fragment=0)) is None


@pytest.mark.parametrize(
    "source", ["00000000", "7f000001", "e0000001", "efffffff", "f0000001", "ffffffff"]
)
def test_not_to_who_is_no_single_host(source: str) -> None:
    assert answer(ipv4(17, bytes(8), source=bytes.fromhex(source))) is None


@pytest.mark.parametrize("destination", ["e0000001", "ffffffff"])
def test_not_for_what_went_to_many(destination: str) -> None:
    assert answer(ipv4(17, bytes(8), destination=bytes.fromhex(destination))) is None


def test_what_went_to_many_of_ipv6_is_answered() -> None:
    many = b"\xff\x02" + bytes(13) + b"\x01"
    assert answer(ipv6(17, bytes(8), destination=many)) is not None
    assert answer(ipv6(17, bytes(8), source=many)) is None
    assert answer(ipv6(17, bytes(8), source=bytes(16))) is None


def test_ipv6_does_not_go_below_its_smallest() -> None:
    packet = udp(bytes(1300), version=6)
    assert answer(packet, 1280) is not None
    assert answer(packet, 1279) is None


def test_no_answer_to_its_own_answer() -> None:
    for version in (4, 6):
        first = answer(udp(bytes(2000), version=version))
        assert first is not None
        assert answer(first) is None


def test_a_source_of_the_other_family_is_a_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="16 bytes for IPv4"):
        too_big(udp(b""), 1400, ROUTER[6])
    with pytest.raises(LocalProtocolError, match="4 bytes for IPv6"):
        too_big(udp(b"", version=6), 1400, ROUTER[4])


@pytest.mark.parametrize("packet", [b"", b"\x45", udp(b"x")[:-1], udp(b"x", version=6) + b"y"])
def test_what_is_no_packet_is_not_answered(packet: bytes) -> None:
    assert too_big(packet, 1400, ROUTER[4]) is None


@given(st.sampled_from([4, 6]), st.binary(max_size=80), st.integers(0, 1 << 17))
def test_any_packet_gets_a_right_answer_or_none(version: int, body: bytes, mtu: int) -> None:
    packet = ipv4(body[0] if body else 1, body) if version == 4 else ipv6(58, body)
    found = answer(packet, mtu)
    if found is not None:
        assert len(found) <= (icmp.LONGEST_IPV4 if version == 4 else icmp.LONGEST_IPV6)
        assert ip.parse(found).version == version
