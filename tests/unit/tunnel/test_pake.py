"""The exchange on its own; who may stand between both sides is in `test_proof`."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from nat_traverse.tunnel.pake import MESSAGE_SIZE, Exchange

CLIENT = bytes(range(64))
SERVER = bytes(range(64, 128))
TRANSCRIPT = bytes(range(128, 160))


def pair(client_secret: bytes, server_secret: bytes) -> tuple[Exchange, Exchange]:
    return (
        Exchange(client_secret, CLIENT, is_client=True),
        Exchange(server_secret, SERVER, is_client=False),
    )


def test_who_knows_the_secret_accepts_each_other() -> None:
    client, server = pair(b"secret", b"secret")
    assert len(client.message) == len(server.message) == MESSAGE_SIZE
    ours = client.finish(server.message, TRANSCRIPT)
    theirs = server.finish(client.message, TRANSCRIPT)
    assert ours.accepts(theirs.ours)
    assert theirs.accepts(ours.ours)
    assert ours.messages == theirs.messages == client.message + server.message


@pytest.mark.parametrize("other", [b"Secret", b"secret ", b"s"])
def test_who_does_not_is_not(other: bytes) -> None:
    client, server = pair(b"secret", other)
    ours = client.finish(server.message, TRANSCRIPT)
    theirs = server.finish(client.message, TRANSCRIPT)
    assert not ours.accepts(theirs.ours)
    assert not theirs.accepts(ours.ours)


def test_a_confirmation_is_of_one_direction_and_one_transcript() -> None:
    client, server = pair(b"secret", b"secret")
    ours = client.finish(server.message, TRANSCRIPT)
    theirs = server.finish(client.message, bytes(32))
    assert not ours.accepts(ours.ours)
    assert not ours.accepts(theirs.ours)
    assert not ours.accepts(b"")


def test_one_s_own_message_is_refused() -> None:
    client, _ = pair(b"secret", b"secret")
    with pytest.raises(ValueError, match="Reflection"):
        client.finish(client.message, TRANSCRIPT)


def test_the_message_tells_nothing_of_the_secret_but_depends_on_it() -> None:
    one, other = (Exchange(secret, CLIENT, is_client=True).message for secret in (b"a", b"b"))
    assert one != other
    assert Exchange(b"a", CLIENT, is_client=True).message == one


def _extract_and_expand(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes as RFC 5869 has them."""
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def _framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def test_the_confirmation_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    key = hashlib.sha256(b"key").digest()
    client, server = pair(b"secret", b"secret")
    monkeypatch.setattr(client._spake, "finish", lambda _: key)
    ours = client.finish(server.message, TRANSCRIPT)
    info = _framed(b"nat-traverse proof 1: client key", client.message + server.message)
    message = _framed(b"nat-traverse proof 1: confirmation", TRANSCRIPT)
    assert ours.ours == hmac.digest(_extract_and_expand(key, TRANSCRIPT, info), message, "sha256")
