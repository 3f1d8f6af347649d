"""Hello and ack: the two messages of a traversal, on the wire of 0.7 and of today.

A datagram of 0.7 is a bare 20-byte magic. 0.7 compares exactly 20 bytes of what it reads, so what
follows the magic is free for us: the *tail*. One exchange serves both generations.

    magic (20)  version (1)  flags (1)  nonce of the sender (16)  field ...  END  padding
    field: type (1)  length (2, big-endian)  value (length)

Fields of unknown types are skipped, as are flags, and everything behind END; a type that is known
may occur once and has the length that belongs to it. Types 4 to 7 are kept free for
authentication. `docs/protocol.md` describes the same, field by field.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELLO_MAGIC = b"nat-traverse-garbage"
ACK_MAGIC = b"nat-traverse-ackacka"
MAGIC_SIZE = 20  # what 0.7 compares, and all it reads while it waits
MAGIC_PREFIX = b"nat-traverse-"  # shared by both magics: the quick test for "not user data"

VERSION = 1
NONCE_SIZE = 16  # 128 bits: an off-path stranger can't guess one

# Hellos are padded to this many bytes, so that the ack is the smaller one. The largest ack of
# today has 127 bytes; a proof of identity is going to need about 170 more.
HELLO_SIZE = 320

_HEAD = struct.Struct(f"!{MAGIC_SIZE}sBB{NONCE_SIZE}s")
NONCE_AT = MAGIC_SIZE + 2  # where a message names its sender
_FIELD = struct.Struct("!BH")
_COUNTS = struct.Struct("!QQ")
_NUMBER = struct.Struct("!I")

_NOMINATE = 0x01
_DONE = 0x02
_MARK = 0x04
_ASTRAY = 0x08

_END = 0x00
_ECHO = 0x01
_OBSERVED = 0x02
_MODE = 0x03
_SERIAL = 0x08
_FINISHED = 0x09
_RECEIVED = 0x0A
_CLOSING = 0x0B
_ROUND_TRIP = 0x0C
_ROOM = 0x0D
_AGREED = 0x0E

_IPV4_FIELD = 6  # port and 4 bytes of address
_IPV6_FIELD = 18  # port and 16 bytes of address
# Addresses whose other form is remembered: it takes as long as the rest of a message, and a
# traversal meets the same few. More of them, from strangers, push each other out.
_HOSTS_REMEMBERED = 64
_NUMBER_LIMIT = 1 << 32
_COUNT_LIMIT = 1 << 64


class Kind(Enum):
    """A hello asks, an ack answers; an ack is never answered."""

    HELLO = HELLO_MAGIC
    ACK = ACK_MAGIC


class Mode(Enum):
    """What the sender wants to use the path for."""

    PLAIN = 0  # the plain tunnel
    PORTS = 1  # another program is to use the agreed pair of ports
    TUNNEL = 2  # the encrypted tunnel


class Agreed(Enum):
    """How the agreed pair of ports is brought up over another path."""

    OPEN = 1  # hello: open your gateway for it and say so
    OPENED = 2  # ack: done
    SILENT = 3  # hello: let the gateways forget it; ack: understood
    HOPELESS = 4  # ack: my gateway changes ports, it can't work


class Reason(Enum):
    """Why the sender closes the tunnel."""

    COMPLETE = 0  # both directions ended and were acknowledged
    NOT_READING = 1  # what takes the data here (a command, a pipe) has ended
    STOPPED = 2  # a signal, or an error on that side


_MODES = {mode.value: mode for mode in Mode}
_STEPS = {step.value: step for step in Agreed}
_REASONS = {reason.value: reason for reason in Reason}


class Counts(NamedTuple):
    """How much user data went through, in one direction."""

    datagrams: int
    octets: int


@dataclass(frozen=True, slots=True)
class Bare:
    """A 20-byte magic with nothing behind it: a peer of generation 0.7."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Message:
    """A hello or an ack with its tail.

    nonce       the sender's, 16 bytes, random for each run
    nominate    hello: the sender wants this path; ack: the sender agrees
    done        ack: the sender has all it needs and asks no more
    serial      of a hello; its ack repeats it, which makes round trips measurable in spite of
                retransmission (the ambiguity that Karn's algorithm works around, RFC 6298)
    echo        the peer's nonce, which proves that something of the peer's arrived
    observed    ack and nomination: the receiver's address as seen by the sender (a mapped
                address, RFC 8489)
    mode        hello: what the path is for
    finished    hello: no more data will be sent, and this much was
    received    ack of finished, and closing: how much has arrived
    closing     hello: the tunnel is over for the sender
    mark        hello: to be answered when all that came before it was taken
    astray      the receiver's address is not the one that the sender's user named
    agreed      a step in bringing up the agreed pair of ports
    room        ack of a mark: bytes that the sender's receive buffer holds
    round_trip  nominating hello: what the sender measured on this path, in microseconds
    """

    kind: Kind
    nonce: bytes
    nominate: bool = False
    done: bool = False
    mark: bool = False
    astray: bool = False
    serial: int | None = None
    echo: bytes | None = None
    observed: Endpoint | None = None
    mode: Mode | None = None
    finished: Counts | None = None
    received: Counts | None = None
    closing: Reason | None = None
    round_trip: int | None = None
    room: int | None = None
    agreed: Agreed | None = None


def is_from(datagram: bytes, nonce: bytes) -> bool:
    """Tell whether a message names `nonce` as its sender's; quick, for floods of others."""
    return datagram.startswith(nonce, NONCE_AT)


def encode(message: Message, *, size: int = 0) -> bytes:
    """Return `message` as a datagram, padded with zeros to `size` bytes if it is shorter.

    Raises LocalProtocolError for values that the format has no room for.
    """
    if len(message.nonce) != NONCE_SIZE:
        raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(message.nonce)}")
    flags = _NOMINATE * message.nominate | _DONE * message.done
    flags |= _MARK * message.mark | _ASTRAY * message.astray
    parts = [_HEAD.pack(message.kind.value, VERSION, flags, message.nonce)]
    for kind, value in _encode_fields(message):
        parts.append(_FIELD.pack(kind, len(value)) + value)
    parts.append(_FIELD.pack(_END, 0))
    return b"".join(parts).ljust(size, b"\0")


def decode(datagram: bytes) -> Message | Bare:
    """Return what `datagram` says; raises RemoteProtocolError if it is no message, nothing else."""
    try:
        kind = Kind(datagram[:MAGIC_SIZE])
    except ValueError:
        raise RemoteProtocolError("no magic") from None
    if len(datagram) == MAGIC_SIZE:
        return Bare(kind)
    if len(datagram) < _HEAD.size:
        raise RemoteProtocolError("tail cut short")
    _, version, flags, nonce = _HEAD.unpack_from(datagram)
    if version != VERSION:
        raise RemoteProtocolError(f"tail of version {version}")
    fields = _decode_fields(datagram)
    return Message(
        kind=kind,
        nonce=nonce,
        nominate=bool(flags & _NOMINATE),
        done=bool(flags & _DONE),
        mark=bool(flags & _MARK),
        astray=bool(flags & _ASTRAY),
        serial=_decode_number(fields.get(_SERIAL)),
        echo=_exactly(fields.get(_ECHO), NONCE_SIZE),
        observed=_decode_endpoint(fields.get(_OBSERVED)),
        mode=_decode_mode(fields.get(_MODE)),
        finished=_decode_counts(fields.get(_FINISHED)),
        received=_decode_counts(fields.get(_RECEIVED)),
        closing=_decode_reason(fields.get(_CLOSING)),
        round_trip=_decode_number(fields.get(_ROUND_TRIP)),
        room=_decode_number(fields.get(_ROOM)),
        agreed=_decode_agreed(fields.get(_AGREED)),
    )


def _encode_fields(message: Message) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of the fields that the message has."""
    encoders: tuple[tuple[int, Any, Callable[[Any], bytes]], ...] = (
        (_SERIAL, message.serial, _encode_number),
        (_ECHO, message.echo, _encode_echo),
        (_OBSERVED, message.observed, _encode_endpoint),
        (_MODE, message.mode, _encode_choice),
        (_FINISHED, message.finished, _encode_counts),
        (_RECEIVED, message.received, _encode_counts),
        (_CLOSING, message.closing, _encode_choice),
        (_ROUND_TRIP, message.round_trip, _encode_number),
        (_ROOM, message.room, _encode_number),
        (_AGREED, message.agreed, _encode_choice),
    )
    for kind, value, encoder in encoders:
        if value is not None:
            yield kind, encoder(value)


def _decode_fields(datagram: bytes) -> dict[int, bytes]:
    """Split the tail into its fields; what is behind END is padding and stays unread."""
    fields: dict[int, bytes] = {}
    at = _HEAD.size
    while at < len(datagram):
        if datagram[at] == _END:
            return fields
        if at + _FIELD.size > len(datagram):
            raise RemoteProtocolError("field header cut short")
        kind, length = _FIELD.unpack_from(datagram, at)
        at += _FIELD.size
        if at + length > len(datagram):
            raise RemoteProtocolError(f"field {kind} cut short")
        if kind in fields:
            raise RemoteProtocolError(f"field {kind} twice")
        fields[kind] = datagram[at : at + length]
        at += length
    return fields


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    """Port and address; the length tells the family. A scope means nothing to the other host."""
    try:
        return endpoint.port.to_bytes(2, "big") + _pack_host(endpoint.host)
    except (ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{endpoint} is no transport address") from error


@lru_cache(maxsize=_HOSTS_REMEMBERED)
def _pack_host(host: str) -> bytes:
    """Return the 4 or 16 bytes of an address."""
    return ipaddress.ip_address(host).packed


@lru_cache(maxsize=_HOSTS_REMEMBERED)
def _unpack_host(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def _decode_endpoint(value: bytes | None) -> Endpoint | None:
    if value is None:
        return None
    if len(value) not in {_IPV4_FIELD, _IPV6_FIELD}:
        raise RemoteProtocolError(f"observed address of {len(value)} bytes")
    return Endpoint(_unpack_host(value[2:]), int.from_bytes(value[:2], "big"))


def _encode_echo(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_SIZE:
        raise LocalProtocolError(f"an echo has {NONCE_SIZE} bytes, not {len(nonce)}")
    return nonce


def _encode_choice(choice: Mode | Reason | Agreed) -> bytes:
    return bytes([choice.value])


def _encode_number(number: int) -> bytes:
    if not 0 <= number < _NUMBER_LIMIT:
        raise LocalProtocolError(f"{number} does not fit into 32 bits")
    return _NUMBER.pack(number)


def _encode_counts(counts: Counts) -> bytes:
    if not all(0 <= count < _COUNT_LIMIT for count in counts):
        raise LocalProtocolError(f"{counts} does not fit into 64 bits each")
    return _COUNTS.pack(*counts)


def _decode_counts(value: bytes | None) -> Counts | None:
    exact = _exactly(value, _COUNTS.size)
    return None if exact is None else Counts(*_COUNTS.unpack(exact))


def _decode_number(value: bytes | None) -> int | None:
    exact = _exactly(value, _NUMBER.size)
    return None if exact is None else int.from_bytes(exact, "big")


def _decode_mode(value: bytes | None) -> Mode | None:
    """Return the mode; one that this version does not know is like none, for the session to see."""
    exact = _exactly(value, 1)
    return None if exact is None else _MODES.get(exact[0])


def _decode_agreed(value: bytes | None) -> Agreed | None:
    """Return the step; one that this version does not know is like none, and gets no answer."""
    exact = _exactly(value, 1)
    return None if exact is None else _STEPS.get(exact[0])


def _decode_reason(value: bytes | None) -> Reason | None:
    """Return the reason; closing for an unknown one is still closing."""
    exact = _exactly(value, 1)
    return None if exact is None else _REASONS.get(exact[0], Reason.STOPPED)


def _exactly(value: bytes | None, size: int) -> bytes | None:
    if value is not None and len(value) != size:
        raise RemoteProtocolError(f"field of {len(value)} bytes where {size} belong")
    return value
