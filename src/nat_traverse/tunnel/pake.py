"""The proof by a secret: SPAKE2, and a confirmation of its key in each direction.

SPAKE2 turns a phrase that both know, however short, into a strong key. Who listens learns nothing
of the phrase, and who takes part without knowing it can test one guess in a run. A confirmation
is an HMAC over the transcript, so that it holds for this one connection only.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_Symmetric  # type: ignore[import-untyped]  # it comes without types

from nat_traverse.tunnel.transcript import framed

_SIDE: Final = b"S"  # the first byte of each message of the symmetric form
MESSAGE_SIZE: Final = 33  # bytes: the side and a point on the curve
_KEY_SIZE: Final = 32  # bytes, as long as the hash: more would not make an HMAC stronger


class Exchange:
    """One side's part; `entropy` is 64 random bytes that are used for nothing else."""

    def __init__(self, secret: bytes, entropy: bytes, *, is_client: bool) -> None:
        self._is_client = is_client
        self._spake = SPAKE2_Symmetric(
            secret, idSymmetric=framed(b"spake2"), entropy_f=lambda size: entropy[:size]
        )
        self.message: bytes = self._spake.start()

    def finish(self, peer_message: bytes, transcript: bytes) -> Confirmation:
        """Return what this side has to show and to see; ValueError if it is no such message.

        Somebody who sends our own message back is not let in that way: that too is a ValueError.
        """
        if len(peer_message) != MESSAGE_SIZE or not peer_message.startswith(_SIDE):
            raise ValueError("the message of SPAKE2 is none of the symmetric form")
        try:
            key: bytes = self._spake.finish(peer_message)
        except Exception as error:
            # Among them assertions and bare Exceptions: the library says in many ways that a
            # stranger's bytes are no point, or a point of the wrong kind, or our own.
            raise ValueError(f"the message of SPAKE2 is refused ({error!r})") from error
        pair = (self.message, peer_message)
        client_message, server_message = pair if self._is_client else pair[::-1]
        return Confirmation(
            key, transcript, client_message + server_message, is_client=self._is_client
        )


class Confirmation:
    """The two HMACs by which each side shows that it has the same key and transcript."""

    def __init__(self, key: bytes, transcript: bytes, messages: bytes, *, is_client: bool) -> None:
        tags = [_tag(key, transcript, messages, label) for label in (b"client key", b"server key")]
        self.ours, self._theirs = tags if is_client else tags[::-1]
        self.messages = messages  # the client's and the server's, for the signatures

    def accepts(self, tag: bytes) -> bool:
        """Return True if `tag` is what only somebody who knows the secret can send."""
        return hmac.compare_digest(tag, self._theirs)


def _tag(key: bytes, transcript: bytes, messages: bytes, label: bytes) -> bytes:
    derivation = HKDF(SHA256(), _KEY_SIZE, salt=transcript, info=framed(label, messages))
    return hmac.digest(derivation.derive(key), framed(b"confirmation", transcript), hashlib.sha256)
