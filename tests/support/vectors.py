"""Test vectors of the proof and of sealed datagrams: whole runs, byte by byte, from fixed chance.

    PYTHONPATH=src:tests python -m support.vectors      writes docs/vectors/*.json

An implementation that does the same from the same chance sends the same frames and datagrams.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from nat_traverse.tunnel.keying import RENEW_AFTER, Keying, derive
from nat_traverse.tunnel.keys import encode_public, public_of
from nat_traverse.tunnel.proof import Means, Proof
from nat_traverse.tunnel.sealing import Cipher
from nat_traverse.tunnel.transcript import Binding
from nat_traverse.wire.control import Frame
from nat_traverse.wire.sealed import decode_offer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VECTORS = Path(__file__).parents[2] / "docs" / "vectors" / "proof.json"

SEALED_VECTORS = VECTORS.with_name("sealed.json")

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


# -- sealed datagrams ---------------------------------------------------------------------------

# Private key and index of each side, for the first key and the one that renews it.
CLIENT_HALVES = (bytes(range(32)), b"\xc1\xc2\xc3\xc4", bytes(range(32, 64)), b"\xc5\xc6\xc7\xc8")
SERVER_HALVES = (bytes(range(64, 96)), b"\xd1\xd2\xd3\xd4", bytes(range(96, 128)), bytes(4))
# What each side sends with each key, one datagram each.
CONTENTS = (b"", b"nat-traverse", bytes(range(100)))
# As the encrypted tunnel makes it: both nonces, and the fingerprint.
SESSION = BINDING.client_nonce + BINDING.server_nonce + BINDING.fingerprint


def generate_sealed() -> str:
    """Return the text of the file about sealed datagrams."""
    runs = [_sealed_run(cipher) for cipher in Cipher]
    return json.dumps({"version": 1, "runs": runs}, indent=1) + "\n"


def _sealed_run(cipher: Cipher) -> dict[str, Any]:
    client, server = (
        Keying(
            is_client=is_client,
            ciphers=(cipher,),
            random=_one_after_the_other(halves),
            now=0.0,
            binding=SESSION,
        )
        for is_client, halves in ((True, CLIENT_HALVES), (False, SERVER_HALVES))
    )
    keys = []
    for turn in range(2):
        client.handle_timer(turn * RENEW_AFTER)
        keys.append(_sealed_key(turn, client, server))
    return {
        "name": cipher.name,
        "cipher": int(cipher),
        "session": SESSION.hex(),
        "keys": keys,
    }


def _one_after_the_other(values: Sequence[bytes]) -> Callable[[int], bytes]:
    """Return chance that is none."""
    waiting = list(values)
    return lambda _size: waiting.pop(0)


def _sealed_key(turn: int, client: Keying, server: Keying) -> dict[str, Any]:
    """Let both sides agree on a key and use it; returns all there is to know of it."""
    frames = []
    halves = {}
    for sender, source, sink in (("client", client, server), ("server", server, client)) * 2:
        for kind, value in source.frames():
            frames.append({"from": sender, "frame": Frame(kind).name, "value": value.hex()})
            sink.receive_frame(kind, value, turn * RENEW_AFTER)
            if kind != Frame.KEY_CONFIRM:
                halves[sender] = decode_offer(value)
    privates = {"client": CLIENT_HALVES[2 * turn], "server": SERVER_HALVES[2 * turn]}
    secret = X25519PrivateKey.from_private_bytes(privates["client"]).exchange(
        X25519PublicKey.from_public_bytes(halves["server"].public)
    )
    cipher = Cipher(halves["server"].ciphers[0])
    keys = derive(secret, SESSION, cipher, client=halves["client"], server=halves["server"])
    sides = {
        name: {
            "private": privates[name].hex(),
            "public": half.public.hex(),
            "index": half.index.hex(),
            "key": key.hex(),
        }
        for (name, half), key in zip(sorted(halves.items()), keys, strict=True)
    }
    datagrams = []
    for sender, source, sink in (("client", client, server), ("server", server, client)):
        assert source.sealer is not None
        for counter, content in enumerate(CONTENTS):
            datagram = source.sealer.seal([content])
            assert sink.open_run(datagram, len(datagram), turn * RENEW_AFTER) == [content]
            datagrams.append(
                {
                    "from": sender,
                    "counter": counter,
                    "content": content.hex(),
                    "datagram": datagram.hex(),
                }
            )
    return {
        "epoch": turn + 1,
        **sides,
        "secret": secret.hex(),
        "frames": frames,
        "datagrams": datagrams,
    }


if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(generate(), "utf-8")
    SEALED_VECTORS.write_text(generate_sealed(), "utf-8")
