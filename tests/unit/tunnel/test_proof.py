"""Both sides of a proof, and everybody who may stand between them."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from nat_traverse.tunnel.keys import encode_public, public_of
from nat_traverse.tunnel.proof import RANDOM_SIZE, VERSION, Means, Proof
from nat_traverse.tunnel.refusals import (
    MalformedProofError,
    MeansDifferError,
    ProofError,
    PurposesDifferError,
    Refusal,
    WrongKeyError,
    WrongSecretError,
)
from nat_traverse.wire.control import Frame
from support.vectors import (
    BINDING,
    CLIENT_IDENTITY,
    CLIENT_RANDOM,
    PURPOSE,
    SERVER_IDENTITY,
    SERVER_RANDOM,
    VECTORS,
    generate,
    sides,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.tunnel.transcript import Binding

    Wire = list[tuple[int, bytes]]
    Tamper = Callable[[bool, Wire], Wire]  # (sent by the client, frames) -> frames that arrive

COMBINATIONS = list(itertools.product((False, True), repeat=2))
STRANGER = bytes(range(1, 33))  # a private key


@dataclass
class End:
    """One side, what became of it, and what it has sent."""

    proof: Proof
    failure: ProofError | None = None
    sent: Wire = field(default_factory=list)
    fresh: Wire = field(default_factory=list)

    def take(self, kind: int, value: bytes) -> None:
        try:
            self.proof.receive(kind, value)
        except ProofError as error:
            self.failure = error

    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.sent]


def make(
    means: Means, *, is_client: bool, binding: Binding = BINDING, purpose: int = PURPOSE
) -> End:
    chance = CLIENT_RANDOM if is_client else SERVER_RANDOM
    return End(Proof(means, purpose, is_client=is_client, binding=binding, random=chance))


def unchanged(_by_client: bool, frames: Wire) -> Wire:
    return frames


def converse(client: End, server: End, tamper: Tamper = unchanged) -> tuple[End, End]:
    """Let both talk, at once, until nobody has anything to say; who has failed says no more."""
    under_way = True
    while under_way:
        for end in (client, server):
            end.fresh = list(end.proof.messages()) if end.failure is None else []
            end.sent += end.fresh
        under_way = bool(client.fresh or server.fresh)
        for source, sink in ((client, server), (server, client)):
            for kind, value in tamper(source is client, source.fresh):
                if sink.failure is None:
                    sink.take(kind, value)
    return client, server


def run(client: Means, server: Means, tamper: Tamper = unchanged) -> tuple[End, End]:
    return converse(make(client, is_client=True), make(server, is_client=False), tamper)


def complete(*ends: End) -> list[bool]:
    return [end.proof.outcome is not None for end in ends]


# -- who fits, gets in --------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
def test_those_who_demand_the_same_agree(secret: bool, keys: bool) -> None:
    client, server = run(*sides(secret=secret, keys=keys))
    assert client.failure is server.failure is None
    assert client.proof.outcome is not None
    assert server.proof.outcome is not None
    assert client.proof.outcome.purpose == server.proof.outcome.purpose == PURPOSE
    assert client.proof.outcome.code == server.proof.outcome.code
    assert (client.proof.outcome.code is not None) is not (secret or keys)
    assert client.proof.outcome.peer_key == (public_of(SERVER_IDENTITY) if keys else None)
    assert server.proof.outcome.peer_key == (public_of(CLIENT_IDENTITY) if keys else None)


def test_one_of_several_keys_is_enough_and_is_told() -> None:
    _, server = sides(secret=False, keys=True)
    keys = (public_of(STRANGER), public_of(SERVER_IDENTITY))
    client, _ = run(Means(None, CLIENT_IDENTITY, keys), server)
    assert client.proof.outcome is not None
    assert client.proof.outcome.peer_key == public_of(SERVER_IDENTITY)


def test_both_sides_may_share_one_key() -> None:
    means = Means(None, CLIENT_IDENTITY, (public_of(CLIENT_IDENTITY),))
    assert complete(*run(means, means)) == [True, True]


def test_the_client_is_the_first_to_show_anything() -> None:
    client, server = run(*sides(secret=True, keys=True))
    frames = [Frame.GREETING, Frame.PAKE, Frame.PROOF, Frame.SIGNATURE]
    assert client.kinds() == server.kinds() == frames
    waiting = make(sides(secret=True, keys=True)[1], is_client=False)
    for kind, value in client.sent[:2]:
        waiting.proof.receive(kind, value)
    assert [kind for kind, _ in waiting.proof.messages()] == frames[:2]


def test_the_code_is_the_same_whatever_a_later_version_adds_to_its_greeting() -> None:
    def longer(_by_client: bool, frames: Wire) -> Wire:
        return [(kind, value + b"more") if kind == 1 else (kind, value) for kind, value in frames]

    ends = run(Means(), Means(), longer)
    assert complete(*ends) == [True, True]  # it is understood
    codes = {end.proof.outcome.code for end in ends if end.proof.outcome is not None}
    assert len(codes) == 2  # and it is part of what is compared


def test_other_chance_gives_another_code() -> None:
    codes = set()
    for first in range(8):
        client = End(Proof(Means(), 1, is_client=True, binding=BINDING, random=bytes([first]) * 64))
        converse(client, make(Means(), is_client=False))
        assert client.proof.outcome is not None
        codes.add(client.proof.outcome.code)
    assert len(codes) == 8


# -- who does not, is told why ------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True])
def test_a_client_that_does_not_know_the_secret_gets_no_proof_of_the_server(keys: bool) -> None:
    wrong, right = sides(secret=True, keys=keys)
    client, server = run(replace(wrong, secret=b"guess"), right)
    assert isinstance(server.failure, WrongSecretError)
    assert Frame.PROOF in client.kinds()
    assert Frame.PROOF not in server.kinds()
    assert list(server.proof.messages()) == []
    assert complete(client, server) == [False, False]


@pytest.mark.parametrize("keys", [False, True])
def test_a_server_that_does_not_know_the_secret_sees_one_proof_and_is_refused(keys: bool) -> None:
    right, wrong = sides(secret=True, keys=keys)
    client = make(right, is_client=True)
    server = make(replace(wrong, secret=b"guess"), is_client=False)
    frames = [*server.proof.messages(), (Frame.PROOF, bytes(32))]
    for kind, value in frames[:-1]:
        client.proof.receive(kind, value)
    with pytest.raises(WrongSecretError):
        client.proof.receive(*frames[-1])
    sent = [kind for kind, _ in client.proof.messages()]
    assert sent == [Frame.GREETING, Frame.PAKE, Frame.PROOF]
    assert not complete(client)[0]


MEANS = {0: {"secret": False, "keys": False}, 1: {"secret": True, "keys": False}}
MEANS |= {2: {"secret": False, "keys": True}, 3: {"secret": True, "keys": True}}


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.permutations(MEANS, 2)))
def test_different_means_are_refused_by_both(ours: int, theirs: int) -> None:
    client, server = run(sides(**MEANS[ours])[0], sides(**MEANS[theirs])[1])
    assert isinstance(client.failure, MeansDifferError)
    assert isinstance(server.failure, MeansDifferError)
    assert (client.failure.ours, client.failure.theirs) == (ours, theirs)
    for bit, word in ((1, "secret"), (2, "keys")):
        both = f"{client.failure}|{server.failure}"
        assert (f"This side demands {'a ' * (bit == 1)}{word}" in both) is bool(
            (ours ^ theirs) & bit
        )
    demands = str(client.failure).count("This side demands")
    assert demands == (ours & ~theirs).bit_count()


def test_unknown_means_ask_for_an_update() -> None:
    end = make(Means(), is_client=True)
    with pytest.raises(MeansDifferError, match="update it"):
        end.proof.receive(Frame.GREETING, bytes((VERSION, 0x80, PURPOSE)))


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_unknown_key_is_refused_and_shown(role: str) -> None:
    client, server = sides(secret=False, keys=True)
    if role == "client":
        client = replace(client, identity=STRANGER)
    else:
        server = replace(server, identity=STRANGER)
    ends = run(client, server)
    refuser = ends[1] if role == "client" else ends[0]
    assert isinstance(refuser.failure, WrongKeyError)
    assert refuser.failure.key == encode_public(public_of(STRANGER))
    assert refuser.failure.key in str(refuser.failure)
    assert not complete(refuser)[0]
    if role == "client":
        assert Frame.SIGNATURE not in refuser.kinds()


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("secret", [True, False])
def test_knowing_the_public_key_is_not_owning_it(by_client: bool, secret: bool) -> None:
    stolen = public_of(CLIENT_IDENTITY if by_client else SERVER_IDENTITY)

    def impersonate(sender_is_client: bool, frames: Wire) -> Wire:
        return [
            (kind, stolen + value[32:])
            if kind == Frame.SIGNATURE and sender_is_client is by_client
            else (kind, value)
            for kind, value in frames
        ]

    client, server = sides(secret=secret, keys=True)
    if by_client:
        client = replace(client, identity=STRANGER)
    else:
        server = replace(server, identity=STRANGER)
    ends = run(client, server, impersonate)
    refuser = ends[1] if by_client else ends[0]
    assert isinstance(refuser.failure, WrongKeyError)
    assert refuser.failure.key is None


@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
def test_other_purposes_are_found_by_both_after_the_proof(secret: bool, keys: bool) -> None:
    client_means, server_means = sides(secret=secret, keys=keys)
    client = make(client_means, is_client=True, purpose=1)
    server = make(server_means, is_client=False, purpose=2)
    for source, sink in ((client, server), (server, client)) * 8:
        # A side that has failed sends what it still had to send.
        for kind, value in source.proof.messages():
            source.sent.append((kind, value))
            sink.take(kind, value)
    assert isinstance(client.failure, PurposesDifferError)
    assert isinstance(server.failure, PurposesDifferError)
    assert (client.failure.ours, client.failure.theirs) == (1, 2)
    assert complete(client, server) == [False, False]
    assert client.sent[-1][0] != Frame.GREETING  # it came out at the end, not at the greeting


def test_a_stranger_is_not_told_of_the_purpose() -> None:
    means = Means(b"secret")
    client = make(replace(means, secret=b"guess"), is_client=True, purpose=1)
    _, server = converse(client, make(means, is_client=False, purpose=2))
    assert isinstance(server.failure, WrongSecretError)


# -- a man in the middle ------------------------------------------------------------------------

OTHERS = (
    replace(BINDING, fingerprint=bytes(32)),
    replace(BINDING, client_nonce=bytes(16)),
    replace(BINDING, server_nonce=b"\xff" * 16),
    replace(BINDING, client_mode=0),
    replace(BINDING, server_mode=7),
)


@pytest.mark.parametrize("seen", OTHERS)
@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
def test_a_proof_is_worth_nothing_on_another_connection(
    seen: Binding, secret: bool, keys: bool
) -> None:
    client_means, server_means = sides(secret=secret, keys=keys)
    client = make(client_means, is_client=True, binding=seen)
    client, server = converse(client, make(server_means, is_client=False))
    if secret or keys:
        assert complete(client, server) == [False, False]
        assert isinstance(server.failure, WrongSecretError if secret else WrongKeyError)
    else:
        assert client.proof.outcome is not None
        assert server.proof.outcome is not None
        assert client.proof.outcome.code != server.proof.outcome.code


@pytest.mark.parametrize("offset", [2, 3])
@pytest.mark.parametrize("by_client", [True, False])
def test_a_greeting_that_was_changed_on_the_way_is_noticed(offset: int, by_client: bool) -> None:
    def change(sender_is_client: bool, frames: Wire) -> Wire:
        return [
            (kind, value[:offset] + b"\x63" + value[offset + 1 :])
            if kind == Frame.GREETING and sender_is_client is by_client
            else (kind, value)
            for kind, value in frames
        ]

    client, server = run(*sides(secret=True, keys=False), change)
    assert isinstance(server.failure, WrongSecretError)
    assert complete(client, server) == [False, False]


@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
@pytest.mark.parametrize("is_client", [True, False])
def test_who_sends_everything_back_gets_nowhere(secret: bool, keys: bool, is_client: bool) -> None:
    pair = sides(secret=secret, keys=keys)
    end = make(pair[0 if is_client else 1], is_client=is_client)
    if keys:  # the hardest case: the peer's key is our own
        means = Means(pair[0].secret, CLIENT_IDENTITY, (public_of(CLIENT_IDENTITY),))
        end = make(means, is_client=is_client)
    while end.failure is None and (frames := list(end.proof.messages())):
        for kind, value in frames:
            end.take(kind, value)
    assert not complete(end)[0]
    if not is_client and not secret:
        assert end.failure is None  # it has shown nothing yet, and waits for the client
    else:
        assert isinstance(end.failure, (MalformedProofError, WrongKeyError))


@pytest.mark.parametrize("is_client", [True, False])
def test_a_proof_sent_back_is_not_accepted(is_client: bool) -> None:
    """Even to somebody who has got through the exchange: the keys of both directions differ."""
    ends = run(Means(b"secret"), Means(b"secret"))
    ours, theirs = ends if is_client else ends[::-1]
    again = make(Means(b"secret"), is_client=is_client)
    for kind, value in theirs.sent[:2]:
        again.proof.receive(kind, value)
    with pytest.raises(WrongSecretError):
        again.proof.receive(Frame.PROOF, dict(ours.sent)[Frame.PROOF])


# -- frames that cannot be ----------------------------------------------------------------------

ZERO = (1).to_bytes(32, "little")  # the neutral element
ORDER_TWO = ((1 << 255) - 20).to_bytes(32, "little")
BASE = bytes.fromhex("58" + "66" * 31)


@pytest.mark.parametrize(
    "value",
    [
        b"S" + ZERO,
        b"S" + ORDER_TWO,
        b"S" + (2).to_bytes(32, "little"),  # not on the curve
        b"S" + b"\xff" * 32,
        b"S" + bytes(32),
        *(side + BASE for side in (b"A", b"B", b"s", b"\x00")),
    ],
)
@pytest.mark.parametrize("is_client", [True, False])
def test_what_is_no_point_of_the_group_is_malformed(value: bytes, is_client: bool) -> None:
    end = make(Means(b"secret"), is_client=is_client)
    end.proof.receive(Frame.GREETING, bytes((VERSION, 1, PURPOSE)))
    with pytest.raises(MalformedProofError, match="SPAKE2"):
        end.proof.receive(Frame.PAKE, value)
    sent = [kind for kind, _ in end.proof.messages()]
    assert Frame.PROOF not in sent


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01\x00", b"\x00\x00\x01", b"\x02\x00\x01"])
def test_a_greeting_has_a_version_and_more(value: bytes) -> None:
    with pytest.raises(MalformedProofError):
        make(Means(), is_client=True).proof.receive(Frame.GREETING, value)


def test_another_number_than_the_client_stands_for_is_refused() -> None:
    def late_choice(_by_client: bool, frames: Wire) -> Wire:
        return [
            (kind, bytes(32)) if kind == Frame.REVEAL else (kind, value) for kind, value in frames
        ]

    _, server = run(Means(), Means(), late_choice)
    assert isinstance(server.failure, MalformedProofError)
    assert server.proof.outcome is None


@pytest.mark.parametrize("kind", [*Frame, 0, 8, 255])
@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
def test_nothing_may_follow(kind: int, secret: bool, keys: bool) -> None:
    for end in run(*sides(secret=secret, keys=keys)):
        with pytest.raises(MalformedProofError):
            end.proof.receive(kind, bytes(32))


def _victims(secret: bool, keys: bool) -> list[tuple[bool, Means, Wire]]:
    """Return each role with its means, and with what its peer sends in a run that goes well."""
    means = sides(secret=secret, keys=keys)
    client, server = run(*means)
    return [(True, means[0], server.sent), (False, means[1], client.sent)]


def _fed(is_client: bool, means: Means, frames: Wire) -> ProofError | None:
    """Give all frames to a fresh side: its failure, or None if it was content all the time."""
    end = make(means, is_client=is_client)
    for kind, value in frames:
        list(end.proof.messages())
        try:
            end.proof.receive(kind, value)
        except ProofError as error:
            assert end.proof.outcome is None or kind == frames[-1][0]
            with pytest.raises(type(error)):
                end.proof.receive(kind, value)
            return error
    return None


@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
def test_frames_of_wrong_length_or_place_are_malformed(secret: bool, keys: bool) -> None:
    for is_client, means, frames in _victims(secret, keys):
        assert _fed(is_client, means, frames) is None
        for index, (kind, value) in enumerate(frames):
            before, after = frames[:index], frames[index + 1 :]
            wrong = [[(kind, b"")], [(kind, value[:-1])], [(kind, value), (kind, value)]]
            wrong += [[(kind, value + b"\0")]] if kind != Frame.GREETING else []
            wrong += [[(other, value)] for other in (*Frame, 0, 8, 255) if other != kind]
            wrong += [[*after[:1], (kind, value)]] if after else []
            for frame in wrong:
                failure = _fed(is_client, means, [*before, *frame, *after])
                assert isinstance(failure, MalformedProofError), (index, frame)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("secret", "keys"), COMBINATIONS)
def test_whatever_comes_it_is_a_proof_error_or_right(seed: int, secret: bool, keys: bool) -> None:
    chance = random.Random(seed)
    for _ in range(5):
        for is_client, means, frames in _victims(secret, keys):
            index = chance.randrange(len(frames))
            kind, value = frames[index]
            bit = chance.randrange(8 * len(value))
            flipped = bytearray(value)
            flipped[bit // 8] ^= 1 << bit % 8
            noise = chance.randbytes(chance.choice((0, 1, len(value), 300)))
            new = chance.choice((bytes(flipped), noise))
            failure = _fed(is_client, means, [*frames[:index], (kind, new), *frames[index + 1 :]])
            if secret or keys:
                assert failure is not None, (index, kind, new.hex())


def test_a_failure_is_final() -> None:
    client, server = run(*sides(secret=True, keys=False))
    end = make(Means(b"secret"), is_client=False)
    with pytest.raises(MalformedProofError):
        end.proof.receive(Frame.PROOF, bytes(32))
    for kind, value in client.sent:
        with pytest.raises(MalformedProofError):
            end.proof.receive(kind, value)
    assert complete(end, server) == [False, True]


# -- what a caller may not ask for --------------------------------------------------------------


def test_chance_is_wanted_in_full() -> None:
    with pytest.raises(ValueError, match="64"):
        Proof(Means(), 1, is_client=True, binding=BINDING, random=bytes(RANDOM_SIZE - 1))


@pytest.mark.parametrize(
    ("secret", "identity", "peers"),
    [
        (b"", None, ()),
        (None, STRANGER, ()),
        (None, None, (STRANGER,)),
        (None, STRANGER, (b"short",)),
        (None, b"short", (STRANGER,)),
    ],
)
def test_means_that_make_no_sense(
    secret: bytes | None, identity: bytes | None, peers: tuple[bytes, ...]
) -> None:
    with pytest.raises(ValueError, match=r"secret|key"):
        Means(secret, identity, peers)


def test_means_can_be_printed_without_telling_anything() -> None:
    text = repr(Means(b"hush", STRANGER, (public_of(STRANGER),)))
    assert "hush" not in text
    assert repr(STRANGER) not in text


# -- test vectors -------------------------------------------------------------------------------


def test_the_vectors_are_those_of_the_documents() -> None:
    assert VECTORS.read_text("utf-8") == generate(), (
        "the proof has changed on the wire: that takes another version. If no version with this"
        " one was ever released: PYTHONPATH=src:tests python -m support.vectors"
    )


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(len(part).to_bytes(2, "big") + part for part in parts)).digest()


def test_transcript_commitment_and_code_by_hand() -> None:
    vector = json.loads(VECTORS.read_text("utf-8"))["runs"][0]
    frames = {
        (each["from"], each["frame"]): bytes.fromhex(each["value"]) for each in vector["frames"]
    }
    transcript = _hash(
        b"nat-traverse proof 1: transcript",
        bytes.fromhex(vector["client_nonce"]),
        bytes.fromhex(vector["server_nonce"]),
        bytes([vector["client_mode"]]),
        bytes([vector["server_mode"]]),
        bytes.fromhex(vector["fingerprint"]),
        frames["client", "GREETING"],
        frames["server", "GREETING"],
    )
    assert transcript.hex() == vector["transcript"]
    reveal, challenge = frames["client", "REVEAL"], frames["server", "CHALLENGE"]
    assert _hash(b"nat-traverse proof 1: commitment", reveal) == frames["client", "COMMITMENT"]
    hashed = _hash(b"nat-traverse proof 1: code", transcript, reveal, challenge)
    digits = f"{int.from_bytes(hashed[:8], 'big') % 1_000_000:06}"
    assert vector["code"] == f"{digits[:3]} {digits[3:]}"


def test_each_refusal_has_an_error() -> None:
    errors = {error.refusal for error in ProofError.__subclasses__()}
    assert errors == set(Refusal)
