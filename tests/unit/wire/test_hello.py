from __future__ import annotations

import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.model import Endpoint
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    Agreed,
    Bare,
    Counts,
    Kind,
    Message,
    Mode,
    Reason,
    decode,
    encode,
    is_from,
)

NONCE = bytes(range(16))
OTHER = bytes(range(100, 116))
HEAD = HELLO_MAGIC + b"\x01\x00" + NONCE
END = b"\x00\x00\x00"

# The wire format, byte by byte: it must never change, since other versions are out there.
GOLDEN = {
    HEAD + END: Message(Kind.HELLO, NONCE),
    HELLO_MAGIC + b"\x01\x03" + NONCE + END: Message(Kind.HELLO, NONCE, nominate=True, done=True),
    ACK_MAGIC + b"\x01\x02" + NONCE + b"\x01\x00\x10" + OTHER + END: Message(
        Kind.ACK, NONCE, done=True, echo=OTHER
    ),
    HEAD + b"\x08\x00\x04\x00\x01\x02\x03" + END: Message(Kind.HELLO, NONCE, serial=0x010203),
    HELLO_MAGIC + b"\x01\x04" + NONCE + END: Message(Kind.HELLO, NONCE, mark=True),
    HEAD + b"\x0d\x00\x04\x00\x20\x00\x00" + END: Message(Kind.HELLO, NONCE, room=2 << 20),
    HEAD + b"\x0c\x00\x04\x00\x00\x4e\x20" + END: Message(Kind.HELLO, NONCE, round_trip=20_000),
    HEAD + b"\x03\x00\x01\x00" + END: Message(Kind.HELLO, NONCE, mode=Mode.PLAIN),
    HEAD + b"\x03\x00\x01\x01" + END: Message(Kind.HELLO, NONCE, mode=Mode.PORTS),
    HEAD + b"\x03\x00\x01\x02" + END: Message(Kind.HELLO, NONCE, mode=Mode.TUNNEL),
    HELLO_MAGIC + b"\x01\x08" + NONCE + END: Message(Kind.HELLO, NONCE, astray=True),
    HEAD + b"\x0e\x00\x01\x01" + END: Message(Kind.HELLO, NONCE, agreed=Agreed.OPEN),
    ACK_MAGIC + b"\x01\x00" + NONCE + b"\x0e\x00\x01\x02" + END: Message(
        Kind.ACK, NONCE, agreed=Agreed.OPENED
    ),
    HEAD + b"\x0e\x00\x01\x03" + END: Message(Kind.HELLO, NONCE, agreed=Agreed.SILENT),
    ACK_MAGIC + b"\x01\x00" + NONCE + b"\x0e\x00\x01\x04" + END: Message(
        Kind.ACK, NONCE, agreed=Agreed.HOPELESS
    ),
    HEAD + b"\x02\x00\x06\x9c\x40\xc6\x33\x64\x02" + END: Message(
        Kind.HELLO, NONCE, observed=Endpoint("198.51.100.2", 40000)
    ),
    HEAD
    + b"\x02\x00\x12\x9c\x41"
    + bytes.fromhex("20010db8000000000000000000000007")
    + END: Message(Kind.HELLO, NONCE, observed=Endpoint("2001:db8::7", 40001)),
    HEAD
    + b"\x09\x00\x10"
    + struct.pack("!QQ", 3, 4000)
    + b"\x0a\x00\x10"
    + struct.pack("!QQ", 2, 2600)
    + b"\x0b\x00\x01\x01"
    + END: Message(
        Kind.HELLO,
        NONCE,
        finished=Counts(3, 4000),
        received=Counts(2, 2600),
        closing=Reason.NOT_READING,
    ),
}


@pytest.mark.parametrize("data", GOLDEN, ids=lambda data: f"{len(data)} bytes")
def test_golden_messages(data: bytes) -> None:
    assert decode(data) == GOLDEN[data]
    assert encode(GOLDEN[data]) == data


@pytest.mark.parametrize("kind", Kind)
def test_bare_magic_is_the_old_generation(kind: Kind) -> None:
    assert decode(kind.value) == Bare(kind)


def test_the_magics_are_those_of_the_original() -> None:
    assert (HELLO_MAGIC, ACK_MAGIC) == (b"nat-traverse-garbage", b"nat-traverse-ackacka")
    assert len(HELLO_MAGIC) == len(ACK_MAGIC) == 20


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no magic"),
        (b"nat-traverse-garbagf", "no magic"),
        (HELLO_MAGIC[:-1], "no magic"),
        (HEAD[:-1], "cut short"),
        (HELLO_MAGIC + b"\x02\x00" + NONCE + END, "version 2"),
        (HEAD + b"\x08\x00", "header cut short"),
        (HEAD + b"\x08\x00\x04\x00\x00\x00", "field 8 cut short"),
        (HEAD + b"\x63\xff\xff" + bytes(10), "field 99 cut short"),
        (HEAD + b"\x03\x00\x01\x00" * 2, "twice"),
        (HEAD + b"\x63\x00\x01\x00" * 2, "twice"),
        (HEAD + b"\x08\x00\x05" + bytes(5), "5 bytes where 4"),
        (HEAD + b"\x01\x00\x0f" + bytes(15), "15 bytes where 16"),
        (HEAD + b"\x02\x00\x07" + bytes(7), "observed address of 7"),
        (HEAD + b"\x09\x00\x08" + bytes(8), "8 bytes where 16"),
        (HEAD + b"\x03\x00\x00", "0 bytes where 1"),
        (HEAD + b"\x0b\x00\x02\x00\x00", "2 bytes where 1"),
        (HEAD + b"\x0e\x00\x00", "0 bytes where 1"),
        (HEAD + b"\x0e\x00\x02\x01\x01", "2 bytes where 1"),
    ],
)
def test_malformed_datagrams_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode(data)


def test_unknown_fields_flags_and_trailing_bytes_are_skipped() -> None:
    data = HELLO_MAGIC + b"\x01\xf0" + NONCE + b"\x63\x00\x02ab" + b"\x03\x00\x01\x00" + END
    assert decode(data + b"\xff garbage") == Message(Kind.HELLO, NONCE, mode=Mode.PLAIN)


def test_a_tail_may_end_without_an_end() -> None:
    assert decode(HEAD) == Message(Kind.HELLO, NONCE)
    assert decode(HEAD + b"\x03\x00\x01\x00").mode is Mode.PLAIN  # type: ignore[union-attr]


def test_unknown_values_have_a_meaning_of_their_own() -> None:
    message = decode(HEAD + b"\x03\x00\x01\xfe" + b"\x0b\x00\x01\xfe" + b"\x0e\x00\x01\xfe")
    assert message == Message(Kind.HELLO, NONCE, mode=None, closing=Reason.STOPPED, agreed=None)


def test_padding_reaches_the_size_and_changes_nothing() -> None:
    message = Message(Kind.HELLO, NONCE, serial=7)
    padded = encode(message, size=HELLO_SIZE)
    assert len(padded) == HELLO_SIZE
    assert decode(padded) == message
    assert len(encode(message, size=1)) == len(encode(message))


def test_an_ack_with_every_field_is_smaller_than_a_hello() -> None:
    largest = Message(
        Kind.ACK,
        NONCE,
        nominate=True,
        done=True,
        mark=True,
        room=2**32 - 1,
        serial=2**32 - 1,
        echo=OTHER,
        observed=Endpoint("2001:db8::7", 65535),
        received=Counts(2**64 - 1, 2**64 - 1),
        mode=Mode.PORTS,
        astray=True,
        agreed=Agreed.OPENED,
    )
    assert len(encode(largest)) < HELLO_SIZE


@pytest.mark.parametrize(
    "message",
    [
        Message(Kind.HELLO, NONCE[:15]),
        Message(Kind.HELLO, NONCE, echo=NONCE + b"x"),
        Message(Kind.HELLO, NONCE, serial=2**32),
        Message(Kind.HELLO, NONCE, serial=-1),
        Message(Kind.HELLO, NONCE, round_trip=2**32),
        Message(Kind.HELLO, NONCE, observed=Endpoint("a.name", 1)),
        Message(Kind.HELLO, NONCE, observed=Endpoint("198.51.100.2", 65536)),
        Message(Kind.HELLO, NONCE, finished=Counts(0, 2**64)),
        Message(Kind.HELLO, NONCE, received=Counts(-1, 0)),
    ],
)
def test_what_the_format_has_no_room_for_is_refused(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


nonces = st.binary(min_size=16, max_size=16)
counts = st.builds(Counts, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
# A scope says something to one host alone, so it does not travel.
endpoints = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(0, 65535), scope=st.just(0))
messages = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    nonce=nonces,
    nominate=st.booleans(),
    done=st.booleans(),
    serial=st.none() | st.integers(0, 2**32 - 1),
    echo=st.none() | nonces,
    observed=st.none() | endpoints,
    mode=st.none() | st.sampled_from(Mode),
    finished=st.none() | counts,
    received=st.none() | counts,
    closing=st.none() | st.sampled_from(Reason),
    round_trip=st.none() | st.integers(0, 2**32 - 1),
    mark=st.booleans(),
    room=st.none() | st.integers(0, 2**32 - 1),
    astray=st.booleans(),
    agreed=st.none() | st.sampled_from(Agreed),
)


@given(messages, st.integers(0, 1500))
def test_decode_reverses_encode(message: Message, size: int) -> None:
    assert decode(encode(message, size=size)) == message


@given(st.sampled_from([b"", HELLO_MAGIC, ACK_MAGIC, HEAD]), st.binary(max_size=200))
def test_anything_decodes_or_is_a_remote_protocol_error(start: bytes, rest: bytes) -> None:
    try:
        message = decode(start + rest)
    except RemoteProtocolError:
        return
    if isinstance(message, Message):
        assert decode(encode(message)) == message


@given(messages, st.data())
def test_one_changed_byte_decodes_or_is_refused(message: Message, data: st.DataObject) -> None:
    whole = bytearray(encode(message))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(RemoteProtocolError):
        decode(bytes(whole))


def test_messages_are_values() -> None:
    message = Message(Kind.HELLO, NONCE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.nonce = OTHER  # type: ignore[misc]


@given(messages, nonces)
def test_the_sender_is_told_at_a_glance(message: Message, other: bytes) -> None:
    data = encode(message)
    assert is_from(data, message.nonce)
    assert is_from(data, other) == (other == message.nonce)


@given(st.sampled_from([b"", HELLO_MAGIC, ACK_MAGIC, HEAD]), st.binary(max_size=60))
def test_the_glance_agrees_with_decoding(start: bytes, rest: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        message = decode(start + rest)
        assert is_from(start + rest, NONCE) == (
            isinstance(message, Message) and message.nonce == NONCE
        )


def test_what_is_too_short_for_a_nonce_is_from_nobody() -> None:
    for size in range(len(HEAD)):
        assert not is_from(HEAD[:size], NONCE)
