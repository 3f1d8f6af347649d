from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import UsageError
from nat_traverse.tunnel.keys import (
    decode_private,
    decode_public,
    encode_private,
    encode_public,
    is_signed,
    public_of,
    sign,
)
from support.tools import need

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = bytes(range(32))
PUBLIC = public_of(PRIVATE)
TEXT = encode_public(PUBLIC)


@given(st.binary(min_size=32, max_size=32))
def test_a_public_key_survives(key: bytes) -> None:
    text = encode_public(key)
    assert decode_public(text) == key
    assert len(text) == 59
    assert text.isalnum()
    assert text == text.lower()


def test_the_text_of_a_key_stays_what_it_is() -> None:
    assert TEXT == "nt1aoqqpp7tzyil4hlq3umoos6atft6jvrqtosq2xy53sdgiesvgg4etllx"
    assert decode_public(f"  {TEXT.upper()}\n") == PUBLIC


def test_digits_that_look_like_letters_are_read_as_such() -> None:
    key = next(
        bytes([n]) * 32 for n in range(256) if {"o", "l"} <= set(encode_public(bytes([n]) * 32))
    )
    text = "nt1" + encode_public(key)[3:].replace("o", "0").replace("l", "1")
    assert decode_public(text) == key


@pytest.mark.parametrize("index", range(59))
def test_every_wrong_character_is_found(index: int) -> None:
    for character in "abcdefghijklmnopqrstuvwxyz234567-_ =\u017f\u0131\u2126":
        text = TEXT[:index] + character + TEXT[index + 1 :]
        if text != TEXT:
            with pytest.raises(UsageError, match="no public key"):
                decode_public(text)


@pytest.mark.parametrize("index", range(3, 58))
def test_swapped_characters_are_found(index: int) -> None:
    text = TEXT[:index] + TEXT[index + 1] + TEXT[index] + TEXT[index + 2 :]
    if text != TEXT:
        with pytest.raises(UsageError):
            decode_public(text)


@pytest.mark.parametrize("text", ["", "nt1", TEXT[:-1], TEXT + "a", "ssh-ed25519 AAAA", TEXT[3:]])
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(UsageError, match="no public key"):
        decode_public(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_whole_keys_have_a_text(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        encode_public(bytes(size))


def test_a_private_key_survives() -> None:
    assert decode_private(encode_private(PRIVATE)) == PRIVATE


def test_openssl_reads_and_writes_the_same(tmp_path: Path) -> None:
    openssl = need("openssl", package="openssl")
    path = tmp_path / "key"
    path.write_bytes(encode_private(PRIVATE))
    command = [openssl, "pkey", "-in", str(path), "-pubout", "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    assert der.endswith(PUBLIC)
    command = [openssl, "genpkey", "-algorithm", "ed25519"]
    pem = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(decode_private(pem)) == 32


def _pem(*, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    key = Ed25519PrivateKey.from_private_bytes(PRIVATE)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _other_kind() -> bytes:
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "no private key"),
        (b"\xff\x00", "no private key"),
        (encode_private(PRIVATE)[:60], "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n", "no private key"),
        (TEXT.encode(), "public key"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "OpenSSH"),
        (_pem(password=b"x"), "encrypted"),
        (_other_kind(), "another kind"),
    ],
    ids=["empty", "noise", "cut", "hollow", "public", "openssh", "encrypted", "ecdsa"],
)
def test_what_is_no_private_key_is_said(pem: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        decode_private(pem)


def test_a_signature_is_of_one_key_and_one_message() -> None:
    signature = sign(PRIVATE, b"message")
    assert is_signed(PUBLIC, signature, b"message")
    assert not is_signed(PUBLIC, signature, b"other")
    assert not is_signed(public_of(bytes(32)), signature, b"message")
    assert not is_signed(PUBLIC, bytes(64), b"message")


@pytest.mark.parametrize("key", [b"", b"\xff" * 32, bytes(32), b"\2" + bytes(31)])
@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64])
def test_bytes_that_are_no_key_have_signed_nothing(key: bytes, signature: bytes) -> None:
    assert not is_signed(key, signature, b"message")
