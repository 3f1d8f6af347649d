from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire.sealed import (
    FIRST,
    HEAD_SIZE,
    HEADER_SIZE,
    INDEX_AT,
    INDEX_SIZE,
    MOST_CIPHERS,
    OVERHEAD,
    PREFIX,
    PUBLIC_SIZE,
    SMALLEST,
    TAG_SIZE,
    Offer,
    counter_of,
    decode_answer,
    decode_epoch,
    decode_offer,
    encode_epoch,
    encode_header,
    encode_offer,
    index_of,
    is_sealed,
    split,
)

INDEX = b"\x01\x02\x03\x04"
PUBLIC = bytes(range(32))
# The wire format, byte by byte: it must never change, since other versions are out there.
HEADER = b"\x04\0\0\0" + INDEX + b"\x09\0\0\0\0\0\0\x80"
DATAGRAM = HEADER + b"ciphertext" + bytes(16)
OFFER = Offer(258, INDEX, PUBLIC, (1, 2))
GOLDEN = b"\0\0\x01\x02" + INDEX + PUBLIC + b"\x01\x02"

offers = st.builds(
    Offer,
    st.integers(1, 2**32 - 1),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=32, max_size=32),
    st.lists(st.integers(0, 255), min_size=1, max_size=MOST_CIPHERS).map(tuple),
)


# -- datagrams ----------------------------------------------------------------------------------


def test_sizes_are_wireguards() -> None:
    assert (PREFIX, FIRST, INDEX_AT, INDEX_SIZE) == (b"\x04\0\0\0", 4, 4, 4)
    assert (HEAD_SIZE, HEADER_SIZE, TAG_SIZE, OVERHEAD, SMALLEST) == (8, 16, 16, 32, 32)
    assert PUBLIC_SIZE == 32


def test_the_golden_header() -> None:
    assert encode_header(INDEX, 9 + (1 << 63)) == HEADER


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_parts_of_a_datagram(form: type[bytes | bytearray | memoryview]) -> None:
    data = form(DATAGRAM)
    assert is_sealed(data)
    assert index_of(data) == INDEX
    assert counter_of(data) == 9 + (1 << 63)


@given(st.binary(min_size=4, max_size=4), st.integers(0, 2**64 - 1), st.binary(min_size=16))
def test_what_is_written_is_read(index: bytes, counter: int, rest: bytes) -> None:
    data = encode_header(index, counter) + rest
    assert (index_of(data), counter_of(data)) == (index, counter)
    assert split(data, len(data)) == [(PREFIX + index, counter, rest)]


@pytest.mark.parametrize("counter", [-1, 1 << 64])
def test_a_counter_has_eight_bytes(counter: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_header(INDEX, counter)


@pytest.mark.parametrize("index", [b"", b"abc", b"abcde"])
def test_an_index_has_four_bytes(index: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        encode_header(index, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x04\0\0",
        b"\x04\0\0\x01" + bytes(40),
        b"\x44\0\0\0" + bytes(40),  # QUIC's fixed bit
        b"nat-traverse-garbage" + bytes(40),
    ],
)
def test_what_is_not_sealed(data: bytes) -> None:
    assert not is_sealed(data)


@given(st.binary(max_size=31))
def test_what_is_too_short_is_no_datagram(data: bytes) -> None:
    for read in (index_of, counter_of):
        with pytest.raises(RemoteProtocolError, match=f"of {len(data)} bytes"):
            read(data)
    assert split(data, 100) == [(b"", 0, b"")]


# -- runs ---------------------------------------------------------------------------------------


def datagram(counter: int, size: int, index: bytes = INDEX) -> bytes:
    return encode_header(index, counter) + bytes([counter % 256]) * (size - 16)


@given(
    st.integers(32, 90),
    st.integers(0, 6),
    st.integers(0, 89),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_a_run_is_its_datagrams_one_by_one(
    size: int, count: int, last: int, form: type[bytes | bytearray | memoryview]
) -> None:
    sizes = [size] * count + [min(last, size)] * (last > 0 or not count)
    datagrams = [datagram(number, each)[:each] for number, each in enumerate(sizes)]
    single = [split(each, size)[0] for each in datagrams]
    assert split(form(b"".join(datagrams)), size) == single


def test_a_stranger_takes_nothing_along() -> None:
    stranger = b"\x40" + bytes(49)
    run = stranger + datagram(1, 50) + stranger + datagram(2, 50) + b"\x04\0\0\0"
    heads = [head for head, _, _ in split(run, 50)]
    assert heads == [stranger[:8], PREFIX + INDEX, stranger[:8], PREFIX + INDEX, b""]


@pytest.mark.parametrize("size", [-1, 0, 1, 5, 31])
def test_datagrams_can_be_too_small(size: int) -> None:
    found = split(bytes(64), size)
    assert set(found) == {(b"", 0, b"")}
    assert len(found) == (-(-64 // size) if size > 0 else 1)


# -- frames -------------------------------------------------------------------------------------


def test_golden_frames() -> None:
    assert encode_offer(OFFER) == GOLDEN
    assert decode_offer(GOLDEN) == OFFER
    assert encode_epoch(258) == b"\0\0\x01\x02"
    assert decode_epoch(b"\0\0\x01\x02") == 258


@given(offers)
def test_an_offer_is_read_as_it_was_written(offer: Offer) -> None:
    value = encode_offer(offer)
    assert decode_offer(value) == offer
    if len(offer.ciphers) == 1:
        assert decode_answer(value) == offer
    else:
        with pytest.raises(RemoteProtocolError, match=f"{len(offer.ciphers)} ciphers"):
            decode_answer(value)


@given(st.binary(max_size=70) | offers.map(encode_offer).flatmap(lambda value: st.just(value[:-1])))
def test_any_bytes_are_a_value_or_an_error(value: bytes) -> None:
    for decode, encode in ((decode_offer, encode_offer), (decode_answer, encode_offer)):
        try:
            found = decode(value)
        except RemoteProtocolError:
            continue
        assert encode(found) == value
    try:
        assert encode_epoch(decode_epoch(value)) == value
    except RemoteProtocolError:
        assert len(value) != 4 or value == bytes(4)


@pytest.mark.parametrize("size", [0, 39, 40, 57])
def test_an_offer_has_ciphers_and_not_too_many(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"of {size} bytes"):
        decode_offer(b"\x01" * size)


def test_keys_are_counted_from_one() -> None:
    with pytest.raises(RemoteProtocolError, match="number 0"):
        decode_offer(bytes(41))
    with pytest.raises(RemoteProtocolError, match="number 0"):
        decode_epoch(bytes(4))
    for epoch in (-1, 0, 1 << 32):
        with pytest.raises(LocalProtocolError):
            encode_epoch(epoch)


@pytest.mark.parametrize(
    "offer",
    [
        Offer(0, INDEX, PUBLIC, (1,)),
        Offer(1 << 32, INDEX, PUBLIC, (1,)),
        Offer(1, INDEX[1:], PUBLIC, (1,)),
        Offer(1, INDEX, PUBLIC[1:], (1,)),
        Offer(1, INDEX, PUBLIC, ()),
        Offer(1, INDEX, PUBLIC, (1,) * 17),
        Offer(1, INDEX, PUBLIC, (256,)),
        Offer(1, INDEX, PUBLIC, (-1,)),
    ],
)
def test_an_offer_that_cannot_be_is_not_written(offer: Offer) -> None:
    with pytest.raises(LocalProtocolError):
        encode_offer(offer)
