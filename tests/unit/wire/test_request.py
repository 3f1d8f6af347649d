from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire.request import (
    LARGEST_DATAGRAM,
    LINE_LIMIT,
    Accepted,
    Address,
    Connect,
    Kind,
    Listen,
    Ok,
    Plain,
    Refused,
    Reply,
    Request,
    Word,
    decode_reply,
    decode_request,
    encode_datagram,
    encode_reply,
    encode_request,
    split_line,
    take_datagrams,
)

# The wire format: it must never change, since other versions are out there.
REQUESTS: dict[bytes, Request] = {
    b"tcp 127.0.0.1:22": Connect(Address(Kind.TCP, "127.0.0.1", 22)),
    b"tcp [2001:db8::7]:65535": Connect(Address(Kind.TCP, "2001:db8::7", 65535)),
    b"tcp [fe80::1%eth0]:1": Connect(Address(Kind.TCP, "fe80::1%eth0", 1)),
    b"udp ns.example.org:53": Connect(Address(Kind.UDP, "ns.example.org", 53)),
    "tcp b\u00fccher.example:80".encode(): Connect(Address(Kind.TCP, "b\u00fccher.example", 80)),
    b"unix /run/a b.sock": Connect(Address(Kind.UNIX, "/run/a b.sock")),
    b"listen tcp localhost:0": Listen(Address(Kind.TCP, "localhost", 0)),
    b"listen tcp *:8080": Listen(Address(Kind.TCP, "*", 8080)),
    b"listen udp [::1]:53": Listen(Address(Kind.UDP, "::1", 53)),
    b"listen unix /run/x.sock": Listen(Address(Kind.UNIX, "/run/x.sock")),
    b"accepted 8 127.0.0.1:55555": Accepted(8, "127.0.0.1:55555"),
    b"accepted 4611686018427387903 -": Accepted((1 << 62) - 1, "-"),
    b"stream": Plain(),
}

REPLIES: dict[bytes, Reply] = {
    b"ok": Ok(),
    b"ok 8080": Ok(8080),
    b"refused not-exposed it is not allowed": Refused(Word.NOT_EXPOSED, "it is not allowed"),
    b"refused busy": Refused(Word.BUSY),
}

MALFORMED = [
    b"",
    b"tcp",
    b"tcp ",
    b"tcp 127.0.0.1",
    b"tcp :22",
    b"tcp 127.0.0.1:0",
    b"tcp 127.0.0.1:65536",
    b"tcp 127.0.0.1:022",
    b"tcp 127.0.0.1:+22",
    b"tcp 127.0.0.1:",
    "tcp 127.0.0.1:\u0663".encode(),
    b"tcp 127.0.0.1:" + b"9" * 400,
    b"tcp *:22",
    b"tcp a*:22",
    b"listen tcp a*:22",
    b"tcp ::1:22",
    b"tcp [::1:22",
    b"tcp [127.0.0.1]:22",
    b"tcp []:22",
    b"tcp a b:22",
    b"tcp a/b:22",
    b"tcp  a:22",
    b"TCP a:22",
    b"tcp a:22\r",
    b"tcp a\x1b[2J:22",
    b"tcp \xff:22",
    b"unix",
    b"unix run/x.sock",
    b"listen",
    b"listen stream",
    b"listen listen tcp a:1",
    b"accepted",
    b"accepted 8",
    b"accepted 8 ",
    b"accepted 8 a b",
    b"accepted x a",
    b"accepted 4611686018427387904 a",
    b"stream 1",
    b"streams",
]


@pytest.mark.parametrize("line", REQUESTS, ids=repr)
def test_requests(line: bytes) -> None:
    assert decode_request(line) == REQUESTS[line]
    assert encode_request(REQUESTS[line]) == line + b"\n"


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: repr(line[:30]))
def test_what_is_no_request(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(line)


@pytest.mark.parametrize(
    "request_",
    [
        Connect(Address(Kind.TCP, "a b", 1)),
        Connect(Address(Kind.TCP, "a\nb", 1)),
        Connect(Address(Kind.TCP, "a", 0)),
        Connect(Address(Kind.TCP, "*", 1)),
        Connect(Address(Kind.TCP, "a", 65536)),
        Connect(Address(Kind.UNIX, "relative")),
        Connect(Address(Kind.UNIX, "/run/\udcff")),
        Connect(Address(Kind.UNIX, "/" + "x" * LINE_LIMIT)),
        Connect(Address(Kind.UNIX, "/x", 5)),
        Accepted(-1, "a"),
        Accepted(1, "a b"),
    ],
    ids=str,
)
def test_a_request_that_would_not_be_understood_is_not_sent(request_: Request) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request(request_)


@given(st.binary(max_size=LINE_LIMIT))
def test_any_line_is_a_request_or_malformed(line: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        request = decode_request(line)
        assert decode_request(encode_request(request)[:-1]) == request


@given(
    st.sampled_from(["tcp ", "udp ", "unix ", "listen tcp ", "listen unix ", "accepted "]),
    st.text(st.sampled_from("abc1290:[]%*/ .-\u0663"), max_size=20),
)
def test_any_line_that_looks_like_one(head: str, tail: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        request = decode_request((head + tail).encode())
        assert decode_request(encode_request(request)[:-1]) == request


@pytest.mark.parametrize("line", REPLIES, ids=repr)
def test_replies(line: bytes) -> None:
    assert decode_reply(line) == REPLIES[line]
    assert encode_reply(REPLIES[line]) == line + b"\n"


@pytest.mark.parametrize(
    "line", [b"", b"OK", b"ok x", b"ok 65536", b"ok 1 2", b"refused", b"refused now", b"no"]
)
def test_what_is_no_reply(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_reply(line)


@given(st.binary(max_size=LINE_LIMIT) | st.binary(max_size=99).map(b"refused busy ".__add__))
def test_any_line_is_a_reply_or_malformed(line: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_reply(line)


@given(st.sampled_from(Word), st.text(max_size=600))
def test_a_text_stays_on_its_line(word: Word, text: str) -> None:
    line = encode_reply(Refused(word, text))
    assert len(line) <= LINE_LIMIT
    assert line.index(b"\n") == len(line) - 1
    reply = decode_reply(line[:-1])
    assert isinstance(reply, Refused)
    assert reply.word is word


def test_a_line_is_split_off() -> None:
    assert split_line(b"") is None
    assert split_line(b"tcp a:1") is None
    assert split_line(bytearray(b"tcp a:1\nGET /\n")) == (b"tcp a:1", b"GET /\n")
    assert split_line(b"x" * (LINE_LIMIT - 1)) is None
    assert split_line(b"x" * (LINE_LIMIT - 1) + b"\n") == (b"x" * (LINE_LIMIT - 1), b"")


@pytest.mark.parametrize("tail", [b"", b"\n", b"x"])
def test_a_line_has_a_limit(tail: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        split_line(b"x" * LINE_LIMIT + tail)


def test_datagrams_go_over_the_stream() -> None:
    assert encode_datagram(b"abc") == b"\x00\x03abc"
    assert encode_datagram(b"") == b"\x00\x00"
    assert len(encode_datagram(bytes(LARGEST_DATAGRAM))) == 2 + LARGEST_DATAGRAM
    with pytest.raises(LocalProtocolError):
        encode_datagram(bytes(LARGEST_DATAGRAM + 1))


@given(st.lists(st.binary(max_size=300), max_size=10), st.integers(1, 700))
def test_datagrams_come_out_as_they_went_in(datagrams: list[bytes], piece: int) -> None:
    data = b"".join(map(encode_datagram, datagrams))
    buffer = bytearray()
    found: list[bytes] = []
    for at in range(0, len(data), piece):
        buffer += data[at : at + piece]
        found += take_datagrams(buffer)
    assert found == datagrams
    assert not buffer


def test_a_reader_may_stop_between_datagrams() -> None:
    buffer = bytearray(b"\x00\x01a\x00\x01b\x00\x02c")
    assert next(iter(take_datagrams(buffer))) == b"a"
    assert list(take_datagrams(buffer)) == [b"b"]
    assert buffer == b"\x00\x02c"
