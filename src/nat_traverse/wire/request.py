"""The first line of a stream: what it is for; and the line that answers it.

Each stream carries one connection. Its opener says in one line of UTF-8 where that is to go, and
the other side answers in one line before anything else. What follows are the bytes themselves.

    tcp HOST:PORT            connect to there; an IPv6 address stands in brackets
    udp HOST:PORT            the same for datagrams, see below
    unix /PATH               the same for a Unix socket
    listen KIND ADDRESS      listen there for as long as this stream is open; port 0 is any free
                             one, `localhost` both loopback addresses, `*` every address
    accepted NUMBER CLIENT   a connection that the listening of stream NUMBER has accepted
    stream                   a stream for the program that uses the library

    ok [PORT]                done; with the port, if it is listening
    refused WORD TEXT        not done: a word for programs, and a text for people

A UDP flow is a stream, too. Its datagrams travel as datagrams that belong to the stream, and those
that are too large for that over the stream itself, each behind its length in 2 bytes. What is sent
before the answer is here goes that way as well, since a datagram might arrive before the stream.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Bytes of a line with its newline. A host name has at most 253 (RFC 1035), a Unix path 107, and a
# text for people should fit on a screen's line or two; an SMTP command line has 512 as well
# (RFC 5321, section 4.5.3.1.4).
LINE_LIMIT = 512
HIGHEST_PORT = 65535  # RFC 768, RFC 9293: 16 bits
LARGEST_DATAGRAM = 65535  # bytes; UDP itself can't carry more (RFC 768)
ANYWHERE = "*"  # as a host to listen at: every address of both families

_LENGTH = struct.Struct("!H")
_NUMBER_DIGITS = 19  # a QUIC stream's number has at most 62 bits (RFC 9000, section 2.1)
_PORT_DIGITS = 5


class Kind(Enum):
    """What kind of socket is at the end."""

    TCP = "tcp"
    UDP = "udp"
    UNIX = "unix"


class Address(NamedTuple):
    """Where to connect or to listen. For a Unix socket `host` is its path, and `port` 0.

    A host is a name, or an address as text without brackets; to listen, ANYWHERE as well.
    """

    kind: Kind
    host: str
    port: int = 0

    @property
    def place(self) -> str:
        """The address without its kind, as it is written on a line: `[::1]:22`, `/run/x`."""
        if self.kind is Kind.UNIX:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.kind.value} {self.place}"


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to `address`."""

    address: Address

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Listen:
    """Listen at `address` as long as the stream is open."""

    address: Address

    def __str__(self) -> str:
        return f"listen {self.address}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection from `client` (a text without blanks), for whoever opened stream `listening`."""

    listening: int
    client: str

    def __str__(self) -> str:
        return f"accepted {self.listening} {self.client}"


@dataclass(frozen=True, slots=True)
class Plain:
    """A stream that belongs to a program, which knows what it is for."""

    def __str__(self) -> str:
        return "stream"


Request: TypeAlias = Connect | Listen | Accepted | Plain


class Word(Enum):
    """Why a request was refused, for programs."""

    NOT_EXPOSED = "not-exposed"  # the user of that side has not allowed it
    UNREACHABLE = "unreachable"
    REFUSED = "refused"  # nobody listens there
    UNKNOWN_HOST = "unknown-host"
    DENIED = "denied"  # the operating system does not allow it
    BUSY = "busy"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Ok:
    """It is done. `port` is the one that is listened at."""

    port: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not done. `text` is the other side's and may hold any character but a newline."""

    word: Word
    text: str = ""


Reply: TypeAlias = Ok | Refused


def split_line(data: bytes | bytearray) -> tuple[bytes, bytes] | None:
    """Return the first line without its newline and what follows; None if more has to arrive.

    Raises RemoteProtocolError when the line is too long to be one.
    """
    end = data.find(b"\n", 0, LINE_LIMIT)
    if end >= 0:
        return bytes(data[:end]), bytes(data[end + 1 :])
    if len(data) >= LINE_LIMIT:
        raise RemoteProtocolError("first line too long")
    return None


def encode_request(request: Request) -> bytes:
    """Return the line that asks for it; raises LocalProtocolError if there is no such line."""
    line = _encode(str(request))
    try:
        known = decode_request(line[:-1])
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"{request} can't be asked for: {error}") from error
    if known != request:
        raise LocalProtocolError(f"{request} would be understood as {known}")
    return line


def decode_request(line: bytes) -> Request:
    """Return what a line (without newline) asks for; raises RemoteProtocolError, nothing else."""
    text = _text(line)
    word, _, rest = text.partition(" ")
    if word == "listen":
        return Listen(_address(rest, listening=True))
    if word == "accepted":
        return _accepted(rest)
    if text == "stream":
        return Plain()
    return Connect(_address(text, listening=False))


def encode_reply(reply: Reply) -> bytes:
    """Return the line that answers; a text that is too long is cut, and stays on its line."""
    if isinstance(reply, Ok):
        return b"ok\n" if reply.port is None else f"ok {reply.port}\n".encode()
    text = " ".join(reply.text.splitlines())
    line = f"refused {reply.word.value} {text}".encode(errors="replace")[: LINE_LIMIT - 1]
    return line.decode(errors="ignore").rstrip().encode() + b"\n"


def decode_reply(line: bytes) -> Reply:
    """Return what a line (without newline) answers; raises RemoteProtocolError, nothing else."""
    text = line.decode(errors="replace")
    head, _, rest = text.partition(" ")
    if head == "ok":
        return Ok(_number(rest, _PORT_DIGITS, HIGHEST_PORT) if rest else None)
    if head == "refused":
        word, _, why = rest.partition(" ")
        try:
            return Refused(Word(word), why)
        except ValueError:
            raise RemoteProtocolError("refused without a known reason") from None
    raise RemoteProtocolError("no answer")


def encode_datagram(datagram: bytes) -> bytes:
    """Return a datagram as it goes over the stream itself."""
    if len(datagram) > LARGEST_DATAGRAM:
        raise LocalProtocolError(f"a datagram of {len(datagram)} bytes")
    return _LENGTH.pack(len(datagram)) + datagram


def take_datagrams(buffer: bytearray) -> Iterator[bytes]:
    """Yield the datagrams that are complete, and take them out of `buffer`.

    What stays there is less than one datagram with its length.
    """
    at = 0
    try:
        while at + _LENGTH.size <= len(buffer):
            (length,) = _LENGTH.unpack_from(buffer, at)
            start = at + _LENGTH.size
            if start + length > len(buffer):
                return
            at = start + length
            yield bytes(buffer[start:at])
    finally:
        del buffer[:at]


def _encode(text: str) -> bytes:
    try:
        line = text.encode() + b"\n"
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{text!r} is no text") from error
    if len(line) > LINE_LIMIT:
        raise LocalProtocolError(f"a line of {len(line)} bytes, and {LINE_LIMIT} is the limit")
    return line


def _text(line: bytes) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("line is not UTF-8") from None
    if not text.isprintable():
        raise RemoteProtocolError("line with control characters")
    return text


def _accepted(text: str) -> Accepted:
    number, _, client = text.partition(" ")
    if not client or " " in client:
        raise RemoteProtocolError("accepted from whom?")
    return Accepted(_number(number, _NUMBER_DIGITS, (1 << 62) - 1), client)


def _address(text: str, *, listening: bool) -> Address:
    word, _, place = text.partition(" ")
    try:
        kind = Kind(word)
    except ValueError:
        raise RemoteProtocolError("unknown request") from None
    if kind is Kind.UNIX:
        if not place.startswith("/"):
            raise RemoteProtocolError("path does not begin with a slash")
        return Address(kind, place)
    host, colon, digits = place.rpartition(":")
    if not colon:
        raise RemoteProtocolError("no port")
    port = _number(digits, _PORT_DIGITS, HIGHEST_PORT)
    if not port and not listening:
        raise RemoteProtocolError("nothing is at port 0")
    return Address(kind, _host(host, listening=listening), port)


def _host(text: str, *, listening: bool) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise RemoteProtocolError("no IPv6 address in brackets") from None
        return text[1:-1]
    if not text or any(each in text for each in "[]:/ "):
        raise RemoteProtocolError("no host")
    if ANYWHERE in text and not (listening and text == ANYWHERE):
        raise RemoteProtocolError("an asterisk is no host")
    return text


def _number(text: str, digits: int, highest: int) -> int:
    """Read a decimal number in its one form: without sign, leading zeros or other digits."""
    if text.isascii() and text.isdigit() and len(text) <= digits and str(int(text)) == text:
        number = int(text)
        if number <= highest:
            return number
    raise RemoteProtocolError("no number where one belongs")
