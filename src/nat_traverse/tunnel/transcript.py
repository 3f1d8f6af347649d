"""What both sides prove to each other: that they look at one and the same connection.

The transcript is a hash over everything that was said before the proof, and over the certificate
that the QUIC server has shown. The server puts its own certificate there, the client the one that
it has seen. A man in the middle has to show a certificate of his own to the client, so the two
sides then have different transcripts, and no proof of one side is worth anything to the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

# Begins every label, so that nothing that is hashed or signed here means anything elsewhere. The
# number is that of the protocol, as in the greeting.
_LABEL: Final = b"nat-traverse proof 1: "

NONCE_SIZE: Final = 16  # bytes, as in the hello
FINGERPRINT_SIZE: Final = 32  # bytes of SHA-256


def framed(label: bytes, *parts: bytes) -> bytes:
    """Return `label` and `parts` as one string that can't be read as any other parts.

    Each is preceded by its length, 2 bytes, big-endian, as a control frame's is.
    """
    strings = (_LABEL + label, *parts)
    return b"".join(len(each).to_bytes(2, "big") + each for each in strings)


def digest(label: bytes, *parts: bytes) -> bytes:
    """Return the SHA-256 of `framed(label, *parts)`."""
    return hashlib.sha256(framed(label, *parts)).digest()


@dataclass(frozen=True, slots=True)
class Binding:
    """What is known of the connection before its first byte: both hellos, and the certificate.

    `fingerprint` is the SHA-256 of the QUIC server's certificate: one's own on the server, and on
    the client that of the one which the server has shown.
    """

    client_nonce: bytes
    server_nonce: bytes
    client_mode: int
    server_mode: int
    fingerprint: bytes

    def __post_init__(self) -> None:
        sizes = (len(self.client_nonce), len(self.server_nonce), len(self.fingerprint))
        if sizes != (NONCE_SIZE, NONCE_SIZE, FINGERPRINT_SIZE):
            raise ValueError(f"nonces and fingerprint have the lengths {sizes}")

    def transcript(self, client_greeting: bytes, server_greeting: bytes) -> bytes:
        """Return the hash that is proven; the greetings are whole values of their frames."""
        return digest(
            b"transcript",
            self.client_nonce,
            self.server_nonce,
            bytes((self.client_mode,)),
            bytes((self.server_mode,)),
            self.fingerprint,
            client_greeting,
            server_greeting,
        )
