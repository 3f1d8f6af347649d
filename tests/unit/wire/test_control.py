from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire.control import (
    LONGEST,
    Credit,
    Frame,
    FrameReader,
    decode_credit,
    decode_done,
    encode_credit,
    encode_done,
    encode_frame,
)

# The wire format, byte by byte: it must never change, since other versions are out there.
GOLDEN = {
    b"\x01\x00\x03\x01\x01\x04": encode_frame(Frame.GREETING, b"\x01\x01\x04"),
    b"\x12\x00\x00": encode_frame(Frame.BYE),
    b"\x10\x00\x10" + struct.pack("!QQ", 4, 1 << 40): encode_credit(Credit(4, 1 << 40)),
    b"\x11\x00\x08" + struct.pack("!Q", 8): encode_done(8),
}

TYPES = {
    "GREETING": 0x01,
    "PAKE": 0x02,
    "PROOF": 0x03,
    "SIGNATURE": 0x04,
    "COMMITMENT": 0x05,
    "CHALLENGE": 0x06,
    "REVEAL": 0x07,
    "CREDIT": 0x10,
    "DONE": 0x11,
    "BYE": 0x12,
    "KEY_OFFER": 0x20,
    "KEY_ANSWER": 0x21,
    "KEY_CONFIRM": 0x22,
    "KEY_WANTED": 0x23,
    "NETWORK": 0x24,
}

frames = st.tuples(st.integers(0, 255), st.binary(max_size=LONGEST))
numbers = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize("data", GOLDEN, ids=lambda data: f"{len(data)} bytes")
def test_golden_frames(data: bytes) -> None:
    assert GOLDEN[data] == data


def test_types_never_change() -> None:
    assert {each.name: each.value for each in Frame} == TYPES


def test_a_value_may_be_as_long_as_the_longest_and_no_longer() -> None:
    frame = encode_frame(Frame.PROOF, bytes(LONGEST))
    assert list(FrameReader().feed(frame)) == [(Frame.PROOF, bytes(LONGEST))]
    with pytest.raises(LocalProtocolError, match="1025 bytes"):
        encode_frame(Frame.PROOF, bytes(LONGEST + 1))


@pytest.mark.parametrize("length", [LONGEST + 1, 0xFFFF])
def test_a_longer_frame_is_refused_at_its_head(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{length} bytes"):
        list(FrameReader().feed(struct.pack("!BH", Frame.PROOF, length)))


def test_frames_before_a_bad_one_are_read() -> None:
    frames = FrameReader().feed(encode_done(4) + b"\x01\xff\xff")
    assert next(frames)[0] == Frame.DONE
    with pytest.raises(RemoteProtocolError):
        next(frames)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_credit_has_one_length(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes"):
        decode_credit(bytes(size))


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_stream_number_has_one_length(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes"):
        decode_done(bytes(size))


@given(numbers, numbers)
def test_decode_reverses_encode(stream: int, limit: int) -> None:
    ((kind, value),) = FrameReader().feed(encode_credit(Credit(stream, limit)))
    assert (kind, decode_credit(value)) == (Frame.CREDIT, Credit(stream, limit))
    ((kind, value),) = FrameReader().feed(encode_done(stream))
    assert (kind, decode_done(value)) == (Frame.DONE, stream)


@given(st.lists(frames, max_size=5), st.data())
def test_however_it_is_cut_the_same_frames_come_out(
    sent: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    whole = b"".join(encode_frame(kind, value) for kind, value in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    reader = FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += list(reader.feed(whole[start:end]))
    assert found == sent


@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_anything_is_frames_or_a_remote_protocol_error(pieces: list[bytes]) -> None:
    reader = FrameReader()
    with contextlib.suppress(RemoteProtocolError):
        for piece in pieces:
            for kind, value in reader.feed(piece):
                assert 0 <= kind <= 255
                assert len(value) <= LONGEST
            assert len(reader._buffer) < 3 + LONGEST, "at most one frame is kept"
