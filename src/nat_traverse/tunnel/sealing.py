"""Sealing and opening datagrams with one key: an AEAD, a counter, and a window against replays.

This is WireGuard's transport of data (its paper, section 5.4.6) with a choice of two AEADs: the
nonce is four zero bytes and the counter in little-endian, nothing is authenticated beside the
content, and each direction has a key of its own. The header needs no authentication: a counter that
was changed gives another nonce, an index that was changed another key, and neither opens.

Every packet of a VPN goes through here, so a datagram costs one call of the AEAD and little else:
trains are sealed into one piece of memory, and runs are opened without a step for each header.

cryptography is imported where it is needed, since most runs have no VPN.
"""

from __future__ import annotations

import struct
from array import array
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

from nat_traverse.wire.sealed import HEADER, INDEX_SIZE, PREFIX, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nat_traverse.wire.sealed import Buffer, Message

KEY_SIZE: Final = 32  # bytes, of either cipher

# Messages that are sealed with one key, and no more. RFC 9001, section 6.6: at most 2**23 with
# AES-GCM, where packets may have up to 2**16 bytes; up to 2**11 bytes it would be 2**28. With
# ChaCha20-Poly1305 there is no such limit; one number for both is simpler. How many forgeries a key
# may refuse (the same section: 2**52, and 2**36 with ChaCha20-Poly1305) is not counted: no line
# brings so many in the three minutes that a key lives.
LIMIT: Final = 1 << 23

# Messages behind the newest one that may still arrive out of order. WireGuard has 2**13 on Linux;
# at 600,000 datagrams a second, which is what one processor can do, that were 14 ms.
WINDOW: Final = 1 << 14

# Messages in a run from which on it is worth the look whether they are in order.
_RUN: Final = 4

_NONCE: Final = struct.Struct("<4xQ")
_NEVER: Final = 0xFFFFFFFF  # no counter: it is beyond LIMIT


class Cipher(IntEnum):
    """The AEADs that a key may be for, by their numbers on the wire."""

    AES_256_GCM = 1  # the faster one where the processor has AES
    CHACHA20_POLY1305 = 2  # RFC 8439, as WireGuard has it; the faster one elsewhere


class _Aead(Protocol):
    def encrypt(self, nonce: bytes, data: Buffer, associated_data: None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: None) -> bytes: ...


class Sealer:
    """Seals with one key.

    `key` has 32 bytes; `index`, 4 bytes, is the one that the receiver has given to it. `counter` is
    how many messages were sealed, `refused` how many were not since they would have gone beyond
    LIMIT.
    """

    def __init__(self, key: bytes, index: bytes, cipher: Cipher) -> None:
        self._encrypt = _aead(key, cipher).encrypt
        self._head = _head(index)
        self.counter = 0
        self.refused = 0

    def seal(self, plaintexts: Sequence[Buffer]) -> bytes:
        """Return the sealed datagrams one behind the other, each 32 bytes longer than its content.

        Returns nothing at all, and counts it, if the key has not enough messages left for all of
        them: a nonce is never used twice.
        """
        first = self.counter
        if first + len(plaintexts) > LIMIT:
            self.refused += len(plaintexts)
            return b""
        # Before anything is sealed, so that whatever goes wrong below takes its nonces along.
        self.counter = first + len(plaintexts)
        encrypt, head, header, nonce = self._encrypt, self._head, HEADER.pack, _NONCE.pack
        pieces = []
        for counter, plaintext in enumerate(plaintexts, first):
            pieces.append(header(head, counter))
            pieces.append(encrypt(nonce(counter), plaintext, None))
        return b"".join(pieces)


class Opener:
    """Opens what was sealed with one key, each message once.

    `key` has 32 bytes; `index`, 4 bytes, is what the datagrams have to name. Counts how many were
    `opened`, `forged` (whatever does not open, and so was changed on the way or made by somebody
    else) and `replayed` (opened before, or so old that nobody knows any more). Only a datagram that
    opens changes anything but these counts.
    """

    def __init__(self, key: bytes, index: bytes, cipher: Cipher) -> None:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        self._invalid = InvalidTag
        self._decrypt = _aead(key, cipher).decrypt
        self.head = _head(index)
        self.opened = 0
        self.forged = 0
        self.replayed = 0
        # The window of RFC 6479, with the counter itself in place of a bit: the place of a counter
        # is its remainder, and has the last counter that was opened there. So nothing has to be
        # shifted or cleared when the window moves on, at the price of 64 KiB.
        self._seen = array("I", (_NEVER,)) * WINDOW
        self._newest = -1  # the largest counter that was opened

    def open_run(self, run: Buffer, size: int) -> list[bytes]:
        """Return what is in the datagrams of a run, in their order.

        They have `size` bytes each, the last one maybe fewer. Those that do not name this key are
        left out, and so are those that were forged or replayed: that concerns no other one.
        """
        return self.open([each for each in split(run, size) if each[0] == self.head])

    def open(self, messages: Sequence[Message]) -> list[bytes]:
        """Do the same with messages which are known to name this key."""
        found: list[bytes] = []
        if len(messages) >= _RUN:
            self._open_in_order(messages, found)
        if len(found) < len(messages):
            self._open_each(messages[len(found) :], found)
        self.opened += len(found)
        return found

    def _open_in_order(self, messages: Sequence[Message], found: list[bytes]) -> None:
        """Open messages that are newer than all before, one after the other, up to a forged one.

        That is how they come when nothing goes wrong, and then there is no need to look at the
        window for each of them: one note for all does, unless it would go round the window's end.
        """
        decrypt, nonce = self._decrypt, _NONCE.pack
        counters = [counter for _, counter, _ in messages]
        first = counters[0]
        end = first + len(counters)
        place = first % WINDOW
        if (
            first <= self._newest
            or end > LIMIT
            or place + len(counters) > WINDOW
            or counters != list(range(first, end))
        ):
            return
        try:
            for _, counter, sealed in messages:
                found.append(decrypt(nonce(counter), sealed, None))
        except self._invalid:
            if not found:
                return
        self._newest = first + len(found) - 1
        self._seen[place : place + len(found)] = array("I", counters[: len(found)])

    def _open_each(self, messages: Sequence[Message], found: list[bytes]) -> None:
        """Open messages in any order, each by itself."""
        decrypt, nonce, seen = self._decrypt, _NONCE.pack, self._seen
        for _, counter, sealed in messages:
            place = counter % WINDOW
            if counter <= self._newest - WINDOW or seen[place] == counter:
                self.replayed += 1
                continue
            if counter >= LIMIT:  # nobody seals that, and the window has no room for it
                self.forged += 1
                continue
            try:
                found.append(decrypt(nonce(counter), sealed, None))
            except self._invalid:
                self.forged += 1
                continue
            seen[place] = counter
            self._newest = max(self._newest, counter)


def _aead(key: bytes, cipher: Cipher) -> _Aead:
    from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415
        AESGCM,
        ChaCha20Poly1305,
    )

    if len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
    return AESGCM(key) if cipher is Cipher.AES_256_GCM else ChaCha20Poly1305(key)


def _head(index: bytes) -> bytes:
    if len(index) != INDEX_SIZE:
        raise ValueError(f"an index has {INDEX_SIZE} bytes, not {len(index)}")
    return PREFIX + index
