"""Sealed datagrams, which carry a VPN's packets beside QUIC, and the frames about their keys.

A sealed datagram is the transport data message of WireGuard, without its padding:

    04 00 00 00 | receiver index (4) | counter (8, little-endian) | ciphertext | tag (16)

Its first byte tells it apart: QUIC's packets have the bit 0x40 set there (RFC 9000, section 17),
and our own messages begin with a letter. The index is that of a key, named by who opens with it, so
that a datagram of an earlier key is known as such. The counter is the number of the datagram under
that key, and the nonce as well.

The frames travel on the control streams, big-endian like all others:

    KEY_OFFER    epoch (4)  index (4)  X25519 public key (32)  ciphers, the best first (1 each)
    KEY_ANSWER   epoch (4)  index (4)  X25519 public key (32)  cipher (1)
    KEY_CONFIRM  epoch (4)
    KEY_WANTED   epoch (4)

What they mean is in `tunnel.keying`; `docs/protocol.md` describes the same.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError

PREFIX: Final = b"\x04\0\0\0"  # WireGuard's type 4, transport data, and three bytes kept free
FIRST: Final = PREFIX[0]
INDEX_AT: Final = len(PREFIX)  # where the index begins
INDEX_SIZE: Final = 4  # bytes
HEAD_SIZE: Final = INDEX_AT + INDEX_SIZE  # bytes that all datagrams of one key begin with
HEADER_SIZE: Final = 16  # bytes before the ciphertext
TAG_SIZE: Final = 16  # bytes, of either cipher
OVERHEAD: Final = HEADER_SIZE + TAG_SIZE  # bytes that a sealed datagram is larger than its content
SMALLEST: Final = OVERHEAD  # bytes, with nothing in it: a keepalive
PUBLIC_SIZE: Final = 32  # bytes of an X25519 public key (RFC 7748, section 5)

# Ciphers that an offer may name. There are two today; a peer must not have us look at a kilobyte.
MOST_CIPHERS: Final = 16

Buffer = bytes | bytearray | memoryview
Message = tuple[bytes, int, bytes]  # a sealed datagram: head, counter, ciphertext with its tag

# The head (prefix and index) and the counter, for those who write and read many of them.
HEADER: Final = struct.Struct("<8sQ")
_COUNTERS: Final = 1 << 64  # as many as 8 bytes hold

_EPOCH: Final = struct.Struct("!I")
_KEY: Final = struct.Struct(f"!I{INDEX_SIZE}s{PUBLIC_SIZE}s")
_EPOCHS: Final = 1 << 32  # as many as 4 bytes hold

# What becomes of a datagram that is too small to be a sealed one.
_NONE: Final[Message] = (b"", 0, b"")


@dataclass(frozen=True, slots=True)
class Offer:
    """One side's half of a key: in KEY_OFFER the client's, in KEY_ANSWER the server's.

    epoch     the number of the key, 1 for the first
    index     what the datagrams that this side is to open have to name
    public    the X25519 public key
    ciphers   numbers of ciphers, the best first; an answer has the one that was chosen
    """

    epoch: int
    index: bytes
    public: bytes
    ciphers: tuple[int, ...]


# -- datagrams ----------------------------------------------------------------------------------


def is_sealed(data: Buffer) -> bool:
    """Return True if a datagram begins as a sealed one does; it may be too short all the same."""
    return data[:INDEX_AT] == PREFIX


def encode_header(index: bytes, counter: int) -> bytes:
    """Return the 16 bytes before the ciphertext; raises LocalProtocolError if they cannot be."""
    if len(index) != INDEX_SIZE or not 0 <= counter < _COUNTERS:
        raise LocalProtocolError(f"index {index.hex()}, counter {counter}")
    return HEADER.pack(PREFIX + index, counter)


def index_of(data: Buffer) -> bytes:
    """Return which receiver a sealed datagram names; raises RemoteProtocolError if it is too short.

    To be asked only when `is_sealed`.
    """
    _check_size(data)
    return bytes(data[INDEX_AT:HEAD_SIZE])


def counter_of(data: Buffer) -> int:
    """Return the number of a sealed datagram; raises RemoteProtocolError if it is too short."""
    _check_size(data)
    return int(HEADER.unpack_from(data)[1])


def split(run: Buffer, size: int) -> list[Message]:
    """Return of each datagram in a run its head (prefix and index), its counter, and the rest.

    A run are datagrams of `size` bytes each, one behind the other, of which the last may be
    smaller: what the kernel's receive offload joins. What is too small to be a sealed datagram has
    an empty head, and what is none another head than any key's.
    """
    if len(run) <= size:  # one alone, which has any size
        return [_split_one(run)]
    if size < SMALLEST:
        return [_NONE] * (-(-len(run) // size) if size > 0 else 1)
    # All of one size at once, without a step of Python's for each.
    rest = len(run) % size
    whole = memoryview(run)[: len(run) - rest]
    found = list(struct.iter_unpack(f"<8sQ{size - HEADER_SIZE}s", whole))
    if rest:
        found.append(_split_one(run[-rest:]))
    return found


def _split_one(data: Buffer) -> Message:
    if len(data) < SMALLEST:
        return _NONE
    head, counter = HEADER.unpack_from(data)
    return head, counter, bytes(data[HEADER_SIZE:])


def _check_size(data: Buffer) -> None:
    if len(data) < SMALLEST:
        raise RemoteProtocolError(f"a sealed datagram of {len(data)} bytes")


# -- frames -------------------------------------------------------------------------------------


def encode_offer(offer: Offer) -> bytes:
    """Return the value of KEY_OFFER or KEY_ANSWER; raises LocalProtocolError if it cannot be."""
    if not (
        0 < offer.epoch < _EPOCHS
        and len(offer.index) == INDEX_SIZE
        and len(offer.public) == PUBLIC_SIZE
        and 0 < len(offer.ciphers) <= MOST_CIPHERS
        and all(0 <= each <= 0xFF for each in offer.ciphers)  # noqa: PLR2004 (what a byte holds)
    ):
        raise LocalProtocolError(f"{offer} is no half of a key")
    return _KEY.pack(offer.epoch, offer.index, offer.public) + bytes(offer.ciphers)


def decode_offer(value: bytes) -> Offer:
    """Return what a KEY_OFFER says; raises RemoteProtocolError."""
    ciphers = value[_KEY.size :]
    if not 0 < len(ciphers) <= MOST_CIPHERS:
        raise RemoteProtocolError(f"an offer of a key of {len(value)} bytes")
    epoch, index, public = _KEY.unpack_from(value)
    return Offer(_checked(epoch), index, public, tuple(ciphers))


def decode_answer(value: bytes) -> Offer:
    """Return what a KEY_ANSWER says, which names one cipher; raises RemoteProtocolError."""
    answer = decode_offer(value)
    if len(answer.ciphers) != 1:
        raise RemoteProtocolError(f"an answer with {len(answer.ciphers)} ciphers")
    return answer


def encode_epoch(epoch: int) -> bytes:
    """Return the value of KEY_CONFIRM or KEY_WANTED; raises LocalProtocolError if it cannot be."""
    if not 0 < epoch < _EPOCHS:
        raise LocalProtocolError(f"a key with the number {epoch}")
    return _EPOCH.pack(epoch)


def decode_epoch(value: bytes) -> int:
    """Return what a KEY_CONFIRM or KEY_WANTED says; raises RemoteProtocolError."""
    if len(value) != _EPOCH.size:
        raise RemoteProtocolError(f"the number of a key in {len(value)} bytes")
    return _checked(_EPOCH.unpack(value)[0])


def _checked(epoch: int) -> int:
    if not epoch:
        raise RemoteProtocolError("a key with the number 0")
    return epoch
