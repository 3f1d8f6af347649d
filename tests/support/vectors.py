"""Test vectors of the proof: whole runs, byte by byte, from chance that is fixed.

    PYTHONPATH=src:tests python -m support.vectors      writes docs/vectors/proof.json

An implementation that does the same from the same `random` sends the same frames.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nat_traverse.tunnel.keys import encode_public, public_of
from nat_traverse.tunnel.proof import Means, Proof
from nat_traverse.tunnel.transcript import Binding
from nat_traverse.wire.control import Frame

VECTORS = Path(__file__).parents[2] / "docs" / "vectors" / "proof.json"

PHRASE = "correct horse battery stäple"
PURPOSE = 1
BINDING = Binding(
    client_nonce=bytes(range(16, 32)),
    server_nonce=bytes(range(16)),
    client_mode=2,
    server_mode=2,
    fingerprint=hashlib.sha256(b"certificate").digest(),
)
# Private keys, and 64 bytes of chance for each side.
CLIENT_IDENTITY = bytes(range(64, 96))
SERVER_IDENTITY = bytes(range(96, 128))
CLIENT_RANDOM = bytes(range(128, 192))
SERVER_RANDOM = bytes(range(192, 256))


def sides(*, secret: bool, keys: bool) -> tuple[Means, Means]:
    """Return the means of a client and a server that fit each other."""
    phrase = PHRASE.encode() if secret else None
    if not keys:
        return Means(phrase), Means(phrase)
    return (
        Means(phrase, CLIENT_IDENTITY, (public_of(SERVER_IDENTITY),)),
        Means(phrase, SERVER_IDENTITY, (public_of(CLIENT_IDENTITY),)),
    )


def generate() -> str:
    """Return the file's text."""
    runs = [
        _run(name, *sides(secret=secret, keys=keys))
        for name, secret, keys in (
            ("neither", False, False),
            ("secret", True, False),
            ("keys", False, True),
            ("secret and keys", True, True),
        )
    ]
    return json.dumps({"version": 1, "runs": runs}, indent=1, ensure_ascii=False) + "\n"


def _run(name: str, client_means: Means, server_means: Means) -> dict[str, Any]:
    client = Proof(client_means, PURPOSE, is_client=True, binding=BINDING, random=CLIENT_RANDOM)
    server = Proof(server_means, PURPOSE, is_client=False, binding=BINDING, random=SERVER_RANDOM)
    frames = []
    for sender, source, sink in (("client", client, server), ("server", server, client)) * 4:
        for kind, value in source.messages():
            frames.append({"from": sender, "frame": Frame(kind).name, "value": value.hex()})
            sink.receive(kind, value)
    assert client.outcome is not None
    assert server.outcome is not None
    greetings = [bytes.fromhex(each["value"]) for each in frames if each["frame"] == "GREETING"]
    return {
        "name": name,
        "secret": None if client_means.secret is None else client_means.secret.decode(),
        "client": _side(client_means, CLIENT_RANDOM),
        "server": _side(server_means, SERVER_RANDOM),
        "purpose": PURPOSE,
        "client_nonce": BINDING.client_nonce.hex(),
        "server_nonce": BINDING.server_nonce.hex(),
        "client_mode": BINDING.client_mode,
        "server_mode": BINDING.server_mode,
        "fingerprint": BINDING.fingerprint.hex(),
        "transcript": BINDING.transcript(*greetings).hex(),
        "frames": frames,
        "code": client.outcome.code,
    }


def _side(means: Means, random: bytes) -> dict[str, Any]:
    if means.identity is None:
        return {"random": random.hex()}
    return {
        "identity": means.identity.hex(),
        "public_key": encode_public(public_of(means.identity)),
        "random": random.hex(),
    }


if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(generate(), "utf-8")
