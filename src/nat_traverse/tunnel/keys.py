"""Long-lived keys: Ed25519, as texts that people exchange and as files that stay where they are.

A public key is written as

    nt1 + base32(key (32 bytes) + check (3 bytes))      59 characters

in lower-case letters and the digits 2 to 7. The check is the beginning of a SHA-256, so a mistake
in copying is found at once, and only one in 16 million is not. 35 bytes are 56 characters of
base32 without a rest, so a key has one spelling. It has no punctuation, so a double click selects
all of it, and it can be read out: capitals are the same, and 0 and 1 are read as o and l.

A private key is the usual PEM file (PKCS #8, RFC 8410) that other programs read and write, too.

cryptography is imported where it is needed, since most runs need no key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from nat_traverse.errors import UsageError

KEY_SIZE: Final = 32  # bytes of a key of either half
SIGNATURE_SIZE: Final = 64  # bytes

PREFIX: Final = "nt1"  # nat-traverse, first form
_CHECK_SIZE: Final = 3  # bytes
_TEXT_SIZE: Final = len(PREFIX) + (KEY_SIZE + _CHECK_SIZE) * 8 // 5


def encode_public(key: bytes) -> str:
    """Return the text of a public key of 32 bytes."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"a public key has {KEY_SIZE} bytes, not {len(key)}")
    return PREFIX + base64.b32encode(key + _check(key)).decode().lower()


def decode_public(text: str) -> bytes:
    """Return the public key that `text` is; raises UsageError if it is none."""
    bare = text.strip().lower()
    if not bare.startswith(PREFIX):
        raise UsageError(f"{text!r} is no public key: one begins with {PREFIX}.")
    if len(bare) != _TEXT_SIZE:
        raise UsageError(
            f"{text!r} is no public key: it has {len(bare)} characters instead of {_TEXT_SIZE}."
            " Was part of it lost in copying?"
        )
    try:
        # Bytes, since in str some foreign letters have ours as their capitals.
        raw = base64.b32decode(bare[len(PREFIX) :].encode().upper(), map01=b"L")
    except binascii.Error:
        raise UsageError(
            f"{text!r} is no public key: only letters and digits occur in one."
        ) from None
    key, check = raw[:KEY_SIZE], raw[KEY_SIZE:]
    if check != _check(key):
        raise UsageError(
            f"{text!r} is no public key: a character of it is wrong. Copy it again, as a whole."
        )
    return key


def encode_private(key: bytes) -> bytes:
    """Return the PEM file of a private key of 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return Ed25519PrivateKey.from_private_bytes(key).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def decode_private(pem: bytes) -> bytes:
    """Return the private key in a PEM file; raises UsageError, which says what it is instead."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_pem_private_key,
    )

    if pem.lstrip().lower().startswith(PREFIX.encode()):
        raise UsageError("This is a public key; the private half is wanted here.")
    if b"BEGIN OPENSSH PRIVATE KEY" in pem:
        raise UsageError(
            "This is a key of OpenSSH's, in a form of its own: `nat-traverse keygen` makes one."
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:  # that is how it asks for a password
        raise UsageError(
            "This key is encrypted, and nobody could type a password when a service starts."
            " Use one that is not."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            "This is no private key in PEM form: `nat-traverse keygen` makes one."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            "This is a key of another kind than Ed25519: `nat-traverse keygen` makes one."
        )
    return key.private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Return the public half (32 bytes) of a private key (32 bytes)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, message: bytes) -> bytes:
    """Return the signature (64 bytes) of `message`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )

    return Ed25519PrivateKey.from_private_bytes(private).sign(message)


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Return True if `signature` is one of `message`; False for bytes that are no key, too."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PublicKey,
    )

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _check(key: bytes) -> bytes:
    return hashlib.sha256(b"nat-traverse public key: " + key).digest()[:_CHECK_SIZE]
