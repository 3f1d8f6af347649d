"""Self-signed certificates for the programs that want one: OpenVPN and bare qh3."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from pathlib import Path

_VALID = dt.timedelta(days=1)


class Certificate(NamedTuple):
    """Two PEM files, and the SHA-256 of the certificate as OpenVPN wants it."""

    certificate: Path
    key: Path
    fingerprint: str


def make(directory: Path, name: str) -> Certificate:
    """Write a new key and its certificate into `directory`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(
        directory / f"{name}.crt",
        directory / f"{name}.key",
        certificate.fingerprint(hashes.SHA256()).hex(":"),
    )
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
