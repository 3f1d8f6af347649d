"""A shutter before a socket: for a while the kernel lets in only what may be the peer's.

Each datagram that wakes a Python program costs it about ten microseconds, whatever it does then. A
flood of 50,000 a second would take half a processor. A filter (SO_ATTACH_FILTER, in the language of
the Berkeley Packet Filter, McCanne and Jacobson 1993) has the kernel throw them away for less than
a hundredth of that.

It lets in what begins with what only the peer knows, or somebody who can read what passes:

    hellos and acks     the nonce of the peer's run
    packets of QUIC     short header, with the connection ID that the peer was given
    sealed datagrams    with an index that the peer was told, if a VPN goes beside QUIC

wherever it comes from, for the peer may move. Of a run of datagrams (UDP_GRO) the kernel shows the
first one only; they are all from one sender.
"""

from __future__ import annotations

import socket
import struct
from array import array
from typing import TYPE_CHECKING, Final

from nat_traverse.net import features
from nat_traverse.wire.hello import MAGIC_PREFIX, NONCE_AT
from nat_traverse.wire.sealed import INDEX_AT
from nat_traverse.wire.sealed import PREFIX as SEALED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# struct sock_filter: code, jump if true, jump if false, operand (linux/filter.h).
_INSTRUCTION: Final = struct.Struct("=HBBI")
# struct sock_fprog: how many, and where; with the machine's own alignment.
_PROGRAM: Final = struct.Struct("@HP")

_LOAD_WORD: Final = 0x20  # 4 bytes of the packet, big-endian; beyond its end the packet is dropped
_LOAD_BYTE: Final = 0x30
_JUMP_EQUAL: Final = 0x15
_JUMP_SET: Final = 0x45  # any of these bits
_RETURN: Final = 0x06
_ALL: Final = 0xFFFFFFFF  # bytes of the packet that are let in
_NONE: Final = 0

_PAYLOAD: Final = 8  # behind the UDP header, at which the kernel shows the packet
_LONG_HEADER: Final = 0x80  # bit of the first byte: a packet of QUIC's handshake, which is over
_NAME_AT: Final = 1  # where the connection ID of a short header is


def program(nonce: bytes, name: bytes, indices: Sequence[bytes] = ()) -> bytes:
    """Return the filter that lets in messages with this nonce and packets with this name.

    And sealed datagrams with one of `indices`; there are few: those of keys that are in use.
    """
    messages = list(_compare(_PAYLOAD + NONCE_AT, nonce))
    packets = list(_compare(_PAYLOAD + _NAME_AT, name))
    sealed = list(_choose(_PAYLOAD + INDEX_AT, indices))
    instructions = [
        _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _PAYLOAD),
        # What follows each part is skipped, since its last instruction returns.
        _INSTRUCTION.pack(_JUMP_EQUAL, 0, len(messages), _number(MAGIC_PREFIX)),
        *messages,
        _INSTRUCTION.pack(_JUMP_EQUAL, 0, len(sealed), _number(SEALED)),
        *sealed,
        _INSTRUCTION.pack(_LOAD_BYTE, 0, 0, _PAYLOAD),
        _INSTRUCTION.pack(_JUMP_SET, len(packets) - 1, 0, _LONG_HEADER),
        *packets,
    ]
    return b"".join(instructions)


def close(sock: socket.socket, filter_: bytes) -> bool:
    """Have the kernel drop what `filter_` does not let in; False where it can't do that."""
    if features.SO_ATTACH_FILTER is None:
        return False
    kept = array("B", filter_)
    address, size = kept.buffer_info()
    try:
        sock.setsockopt(
            socket.SOL_SOCKET,
            features.SO_ATTACH_FILTER,
            _PROGRAM.pack(size // _INSTRUCTION.size, address),
        )
    except OSError:
        return False
    return True


def open_again(sock: socket.socket) -> None:
    """Let everything in again, if it was not."""
    if features.SO_DETACH_FILTER is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, features.SO_DETACH_FILTER, 0)
        except OSError:
            return  # there was no filter, or there is no socket any more


def _compare(at: int, wanted: bytes) -> Iterator[bytes]:
    """Yield what lets in a packet that has the first 8 bytes of `wanted` at this place.

    That is all of a connection ID, and 64 bits of a nonce that nobody guesses either.
    """
    first, second = _number(wanted), _number(wanted[4:])
    yield _INSTRUCTION.pack(_LOAD_WORD, 0, 0, at)
    yield _INSTRUCTION.pack(_JUMP_EQUAL, 0, 3, first)
    yield _INSTRUCTION.pack(_LOAD_WORD, 0, 0, at + 4)
    yield _INSTRUCTION.pack(_JUMP_EQUAL, 0, 1, second)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _ALL)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _NONE)


def _choose(at: int, wanted: Sequence[bytes]) -> Iterator[bytes]:
    """Yield what lets in a packet that has one of these words of 4 bytes at this place."""
    yield _INSTRUCTION.pack(_LOAD_WORD, 0, 0, at)
    for number, word in enumerate(wanted):
        # Over the comparisons that are left, and over the return that drops it.
        yield _INSTRUCTION.pack(_JUMP_EQUAL, len(wanted) - number, 0, _number(word))
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _NONE)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _ALL)


def _number(word: bytes) -> int:
    return int.from_bytes(word[:4], "big")
