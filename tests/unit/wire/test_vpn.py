from __future__ import annotations

from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire import vpn
from nat_traverse.wire.control import LONGEST
from nat_traverse.wire.vpn import Terms, decode_terms, encode_terms

TERMS = Terms(
    (ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
    (ip_network("192.168.7.0/24"), ip_network("0.0.0.0/0"), ip_network("2001:db8::/33")),
    1368,
)
# The wire format, byte by byte: it must never change, since other versions are out there.
GOLDEN = bytes.fromhex(
    "0558 02 0003"
    "04 18 0a4d0001"
    "06 40 fd770000000000000000000000000001"
    "04 18 c0a807"
    "04 00"
    "06 21 20010db800"
)


def test_golden_terms() -> None:
    assert encode_terms(TERMS) == GOLDEN
    assert decode_terms(GOLDEN) == TERMS


def test_the_protocols_page_has_the_same_terms() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text("utf-8")
    assert GOLDEN.hex() in "".join(page.split())


def test_the_numbers_of_parts_never_change() -> None:
    assert (vpn.WHOLE, vpn.PARTIAL, vpn.PART, vpn.LAST) == (0, 1, 2, 3)
    assert vpn.HEAD.pack(vpn.PART, 258, 1348) == bytes.fromhex("02 0102 0544")
    assert (vpn.WHOLE_OVERHEAD, vpn.PART_OVERHEAD) == (1, 5)


def test_later_versions_may_say_more() -> None:
    assert decode_terms(GOLDEN + b"whatever") == TERMS


def test_there_may_be_nothing() -> None:
    assert decode_terms(encode_terms(Terms((), (), 0))) == Terms((), (), 0)


# From bytes: `st.ip_addresses` draws from the registry of special ones, which takes a tenth of a
# second each on a busy machine, and here no address is special.
addresses = st.builds(
    lambda host, prefix: ip_interface((host, prefix % (len(host) * 8 + 1))),
    st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    st.integers(0, 128),
)
networks = addresses.map(lambda interface: interface.network)


@given(
    st.lists(addresses, max_size=10), st.lists(networks, max_size=30), st.integers(0, (1 << 16) - 1)
)
def test_what_is_encoded_is_decoded(own: list, announced: list, largest: int) -> None:  # type: ignore[type-arg]  # of both families
    terms = Terms(tuple(own), tuple(announced), largest)
    assert decode_terms(encode_terms(terms)) == terms


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda end: GOLDEN[:25] + end))
def test_any_bytes_are_terms_or_refused(data: bytes) -> None:
    try:
        terms = decode_terms(data)
    except RemoteProtocolError:
        return
    assert data.startswith(encode_terms(terms))


# -- what is refused ------------------------------------------------------------------------------


def test_terms_may_not_be_cut_short() -> None:
    for size in range(len(GOLDEN)):
        with pytest.raises(RemoteProtocolError, match=r"cut short|terms of"):
            decode_terms(GOLDEN[:size])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("0000 01 0000 05 18 0a4d0001", "family 5"),
        ("0000 01 0000 04 21 0a4d0001", "prefix of 33 bits"),
        ("0000 00 0001 06 81 0a4d0001", "prefix of 129 bits"),
        ("0000 00 0001 04 17 c0a807", "no network"),
    ],
)
def test_contradictions_are_refused(data: str, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode_terms(bytes.fromhex(data))


def test_too_many_networks_and_how_many_fit() -> None:
    many = tuple(ip_network((index << 8, 24)) for index in range(300))
    with pytest.raises(LocalProtocolError, match=r"300 networks .* only the first 203 do"):
        encode_terms(Terms((), many, 0))
    fitting = Terms(TERMS.addresses, many[:190], 1)
    assert len(encode_terms(fitting)) <= LONGEST


def test_too_many_addresses() -> None:
    with pytest.raises(LocalProtocolError, match="60 addresses"):
        encode_terms(Terms(TERMS.addresses[1:] * 60, (), 1))


@pytest.mark.parametrize("largest", [-1, 65536])
def test_the_largest_has_16_bits(largest: int) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        encode_terms(TERMS._replace(largest=largest))


def test_more_addresses_than_can_be_counted() -> None:
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        encode_terms(TERMS._replace(addresses=TERMS.addresses * 128))
