from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire.socks import (
    GREETING_LIMIT,
    REQUEST_LIMIT,
    Code,
    Command,
    Request,
    UnsupportedAddressError,
    decode_greeting,
    decode_request,
    encode_choice,
    encode_refusal_4,
    encode_reply,
)

V6 = ipaddress.ip_address("2001:db8::7").packed

# Taken from RFC 1928, sections 3 to 5, byte by byte.
REQUESTS = {
    b"\x05\x01\x00\x01\xc6\x33\x64\x02\x00\x50": Request(Command.CONNECT, "198.51.100.2", 80),
    b"\x05\x01\x00\x03\x09localhost\x1f\x90": Request(Command.CONNECT, "localhost", 8080),
    b"\x05\x02\x00\x04" + V6 + b"\x00\x16": Request(Command.BIND, "2001:db8::7", 22),
    b"\x05\x03\xff\x01\x00\x00\x00\x00\x00\x00": Request(Command.UDP_ASSOCIATE, "0.0.0.0", 0),  # noqa: S104 (what a client sends, not an address to bind)
    b"\x05\x09\x00\x03\x01a\xff\xff": Request(9, "a", 65535),
}


@pytest.mark.parametrize("data", REQUESTS, ids=lambda data: f"{len(data)} bytes")
def test_requests(data: bytes) -> None:
    assert decode_request(data) == (REQUESTS[data], len(data))
    assert decode_request(bytearray(data) + b"GET /") == (REQUESTS[data], len(data))
    for size in range(len(data)):
        assert decode_request(data[:size]) is None


@pytest.mark.parametrize("methods", [b"", b"\x00", b"\x02\x00", bytes(255)])
def test_greetings(methods: bytes) -> None:
    data = bytes([5, len(methods)]) + methods
    assert decode_greeting(data + b"\x05") == (methods, len(data))
    for size in range(len(data)):
        assert decode_greeting(data[:size]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        b"GET / HTTP/1.1\r\n",
        b"\x05\x01\x00\x03\x00\x00\x50",
        b"\x05\x01\x00\x03\x02\xff\xff\x00\x50",
        b"\x05\x01\x00\x03\x02a\n\x00\x50",
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(data)


@pytest.mark.parametrize("data", [b"\x04", b"GET / HTTP/1.1\r\n"])
def test_what_is_no_greeting(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_greeting(data)


def test_an_unknown_type_of_address_has_a_code_of_its_own() -> None:
    with pytest.raises(UnsupportedAddressError):
        decode_request(b"\x05\x01\x00\x02\x00")


def test_what_the_server_answers() -> None:
    assert encode_choice(b"\x02\x00") == (b"\x05\x00", True)
    assert encode_choice(b"\x02") == (b"\x05\xff", False)
    assert encode_choice(b"") == (b"\x05\xff", False)
    assert encode_reply(Code.SUCCEEDED) == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    assert encode_reply(Code.COMMAND_NOT_SUPPORTED)[1] == 7
    assert encode_refusal_4() == b"\x00\x5b\x00\x00\x00\x00\x00\x00"


@given(st.binary() | st.binary().map(b"\x05\x01\x00\x03".__add__))
def test_anything_is_a_message_or_malformed(data: bytes) -> None:
    for decode in (decode_greeting, decode_request):
        with contextlib.suppress(RemoteProtocolError):
            decode(data)


@given(st.integers(0, 255), st.binary(min_size=REQUEST_LIMIT, max_size=REQUEST_LIMIT))
def test_more_than_the_limit_is_never_waited_for(kind: int, data: bytes) -> None:
    assert decode_greeting(b"\x05" + data[:GREETING_LIMIT]) is not None
    with contextlib.suppress(RemoteProtocolError):
        assert decode_request(b"\x05\x01\x00" + bytes([kind]) + data) is not None
