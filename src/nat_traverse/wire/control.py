"""Control frames: what the two ends of an encrypted tunnel tell each other beside the data.

Each end has one control stream, which carries frames one after the other and never ends:

    type (1)  length (2, big-endian)  value (length)

Frames of the proof come first. Until it has succeeded nothing else is looked at. A frame of a type
that is not known is skipped: another version may say more. `docs/protocol.md` describes the same.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = struct.Struct("!BH")
_CREDIT = struct.Struct("!QQ")
_STREAM = struct.Struct("!Q")

# The longest value. The longest frame of today has 96 bytes (a signature with its key), and a peer
# that has not proven anything must not make us keep 64 KiB.
LONGEST = 1024


class Frame(IntEnum):
    """The types of frames."""

    GREETING = 0x01
    PAKE = 0x02
    PROOF = 0x03
    SIGNATURE = 0x04
    COMMITMENT = 0x05
    CHALLENGE = 0x06
    REVEAL = 0x07
    CREDIT = 0x10
    DONE = 0x11
    BYE = 0x12
    KEY_OFFER = 0x20
    KEY_ANSWER = 0x21
    KEY_CONFIRM = 0x22
    KEY_WANTED = 0x23
    NETWORK = 0x24


class Credit(NamedTuple):
    """The sender of this has room for the first `limit` bytes of a stream, counted from its start.

    They count both what has long been consumed and what is still to come.
    """

    stream: int
    limit: int


def encode_frame(kind: int, value: bytes = b"") -> bytes:
    """Return one frame. Raises LocalProtocolError if `value` is too long for it."""
    if len(value) > LONGEST:
        raise LocalProtocolError(f"a frame of {len(value)} bytes")
    return _HEAD.pack(kind, len(value)) + value


def encode_credit(credit: Credit) -> bytes:
    """Return the frame that extends the credit of a stream."""
    return encode_frame(Frame.CREDIT, _CREDIT.pack(*credit))


def encode_done(stream: int) -> bytes:
    """Return the frame that says: all of this stream, to its end, has been consumed here."""
    return encode_frame(Frame.DONE, _STREAM.pack(stream))


def decode_credit(value: bytes) -> Credit:
    """Return what a CREDIT frame says; raises RemoteProtocolError."""
    if len(value) != _CREDIT.size:
        raise RemoteProtocolError(f"a credit of {len(value)} bytes")
    return Credit(*_CREDIT.unpack(value))


def decode_done(value: bytes) -> int:
    """Return which stream a DONE frame is about; raises RemoteProtocolError."""
    if len(value) != _STREAM.size:
        raise RemoteProtocolError(f"a stream number of {len(value)} bytes")
    return int(_STREAM.unpack(value)[0])


class FrameReader:
    """Cuts the bytes of a control stream into frames; keeps at most one that is incomplete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the type and the value of each frame that `data` completes.

        Raises RemoteProtocolError at a frame that is too long.
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            if length > LONGEST:
                raise RemoteProtocolError(f"a frame of {length} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            value = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield kind, value
