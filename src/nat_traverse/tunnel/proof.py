"""The proof: who is at the other end of a QUIC connection.

A machine without input or output of its own. Each side first says what it demands (its *means*) and
what it wants (its *purpose*). If both demand the same, that is done, in this order, with the client
as the first to show anything:

    both       GREETING     version, means, purpose
    secret     PAKE         both, right behind the greeting
               PROOF        the client's; the server sends its own only if that one is right
    keys       SIGNATURE    the client's; the server sends its own only if that one is right
    neither    COMMITMENT   the client's, right behind the greeting: the hash of a random number
               CHALLENGE    the server's random number
               REVEAL       the client's random number

An attacker who plays the server sees one proof of the client, one who plays the client gets to
send one: a run is one guess, in either role. With neither secret nor keys, both sides show a code
to compare. As the client has committed itself before it hears the server's number, and the server
has said its number before it hears the client's, a man in the middle can't choose numbers that
give the same code on both sides: he has one try in a million.

What is proven is the transcript (`transcript`), and with it this one connection. Whatever does not
belong where it stands, is repeated, or has another length ends the proof: there is no second try.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nat_traverse.tunnel.keys import (
    KEY_SIZE,
    SIGNATURE_SIZE,
    encode_public,
    is_signed,
    public_of,
    sign,
)
from nat_traverse.tunnel.refusals import (
    KEYS,
    SECRET,
    MalformedProofError,
    MeansDifferError,
    ProofError,
    PurposesDifferError,
    WrongKeyError,
    WrongSecretError,
)
from nat_traverse.tunnel.transcript import digest, framed
from nat_traverse.wire.control import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nat_traverse.tunnel.pake import Confirmation, Exchange
    from nat_traverse.tunnel.transcript import Binding

VERSION: Final = 1  # of the proof
RANDOM_SIZE: Final = 64  # bytes of chance that a side needs
_NUMBER_SIZE: Final = 32  # bytes of a random number that is shown: nobody finds it from its hash
_HASH_SIZE: Final = 32  # bytes of SHA-256
_PAKE_SIZE: Final = 33  # bytes of a SPAKE2 message: its side, and a point
_PAKE_ENTROPY: Final = 64  # bytes that SPAKE2 asks for, to get a scalar without bias
_GREETING_SIZE: Final = 3  # bytes at least; what follows is left to later versions
_CODES: Final = 10**6  # as many short codes as six digits can say


# The lengths that frames have, in bytes; a greeting may be longer than it has to be.
_SIZES: Final = {
    Frame.PAKE: _PAKE_SIZE,
    Frame.PROOF: _HASH_SIZE,
    Frame.SIGNATURE: KEY_SIZE + SIGNATURE_SIZE,
    Frame.COMMITMENT: _HASH_SIZE,
    Frame.CHALLENGE: _NUMBER_SIZE,
    Frame.REVEAL: _NUMBER_SIZE,
}


@dataclass(frozen=True, slots=True)
class Means:
    """What this side demands of the other, and shows to it.

    secret      the phrase, UTF-8 in normal form C, without white space around it
    identity    this side's Ed25519 private key, 32 bytes
    peer_keys   the public keys of which the peer has to own one, 32 bytes each

    Each side proves what it demands, so an identity without peer keys makes no sense, nor the
    other way round.
    """

    secret: bytes | None = field(default=None, repr=False)
    identity: bytes | None = field(default=None, repr=False)
    peer_keys: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.secret == b"":
            raise ValueError("a secret can't be empty")
        if (self.identity is None) != (not self.peer_keys):
            raise ValueError("an identity and peer keys need each other")
        keys = (*self.peer_keys, *filter(None, (self.identity,)))
        if any(len(key) != KEY_SIZE for key in keys):
            raise ValueError(f"a key has {KEY_SIZE} bytes")

    @property
    def byte(self) -> int:
        """How a greeting says it: a set of bits."""
        return (SECRET if self.secret else 0) | (KEYS if self.peer_keys else 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of the peer when the proof is complete.

    code        six digits for both users to compare, if neither secret nor keys were given
    peer_key    the one of its keys that it has shown, 32 bytes, if keys were given
    purpose     the peer's purpose byte, which is the same as our own
    by_secret   whether it has proven to know the secret
    """

    code: str | None
    peer_key: bytes | None
    purpose: int
    by_secret: bool = False

    @property
    def means(self) -> str:
        """What has proven who the peer is, in words; `code` if it is left to the users."""
        means = (("secret", self.by_secret), ("keys", self.peer_key is not None))
        return " and ".join(word for word, used in means if used) or "code"


class Proof:
    """One side of the proof.

    `purpose` is a byte that has to be the same on both sides; it is compared after the proof, so
    that nobody but the peer can end a run by wanting something else. `random` are 64 fresh random
    bytes, used for nothing else: all chance comes from them. Run it like this: send what `messages`
    yields, give what the peer sends to `receive`, one frame at a time and in order, until `outcome`
    is there. A side may be done while messages of its own are still to be sent.
    """

    def __init__(
        self, means: Means, purpose: int, *, is_client: bool, binding: Binding, random: bytes
    ) -> None:
        if len(random) != RANDOM_SIZE:
            raise ValueError(f"a proof needs {RANDOM_SIZE} random bytes, not {len(random)}")
        self._means = means
        self._purpose = purpose
        self._is_client = is_client
        self._binding = binding
        self._random = random
        self._number = self._derive(b"number", _NUMBER_SIZE)
        self._greeting = bytes((VERSION, means.byte, purpose))
        self._peer_purpose = purpose
        self._transcript = b""
        self._exchange: Exchange | None = None
        self._confirmation: Confirmation | None = None
        self._commitment = b""
        self._code: str | None = None
        self._peer_key: bytes | None = None
        self._failure: ProofError | None = None
        self._expected = deque(self._steps())
        self._outgoing = deque(self._opening())
        self.outcome: Outcome | None = None

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the frames (type, value) that are to be sent now, each of them once."""
        while self._outgoing:
            yield self._outgoing.popleft()

    def receive(self, kind: int, value: bytes) -> None:
        """Take the next control frame of the peer's; raises a ProofError, and then for ever.

        If the peer is the right one and only its purpose is another, what `messages` still has
        is worth sending: it lets the peer find out the same.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self._take(kind, value)
        except ProofError as error:
            self._failure = error
            raise

    def _take(self, kind: int, value: bytes) -> None:
        if not self._expected:
            raise MalformedProofError(f"a frame {kind} follows when it is complete")
        frame, take = self._expected.popleft()
        if kind != frame:
            raise MalformedProofError(f"a frame {kind} comes in place of {frame.name}")
        if len(value) != _SIZES.get(frame, len(value)):
            raise MalformedProofError(f"{frame.name} has {len(value)} bytes")
        take(value)
        self._speak_first()
        if not self._expected:
            self._complete()

    # -- the order of things --------------------------------------------------------------------

    def _steps(self) -> Iterator[tuple[Frame, Callable[[bytes], None]]]:
        """Yield what the peer has to send, and what takes it: it demands the same as this side."""
        yield Frame.GREETING, self._take_greeting
        if self._means.secret:
            yield Frame.PAKE, self._take_pake
            yield Frame.PROOF, self._take_proof
        if self._means.peer_keys:
            yield Frame.SIGNATURE, self._take_signature
        if not self._means.byte:
            if self._is_client:
                yield Frame.CHALLENGE, self._take_challenge
            else:
                yield Frame.COMMITMENT, self._take_commitment
                yield Frame.REVEAL, self._take_reveal

    def _opening(self) -> Iterator[tuple[int, bytes]]:
        """Yield what does not depend on anything that the peer says, to save a round trip."""
        yield Frame.GREETING, self._greeting
        if self._means.secret:
            from nat_traverse.tunnel.pake import Exchange  # noqa: PLC0415 (slow to import)

            entropy = self._derive(b"spake2", _PAKE_ENTROPY)
            self._exchange = Exchange(self._means.secret, entropy, is_client=self._is_client)
            yield Frame.PAKE, self._exchange.message
        if not self._means.byte and self._is_client:
            yield Frame.COMMITMENT, digest(b"commitment", self._number)

    def _speak_first(self) -> None:
        """Send what the peer is to answer with its like: the client does so, the server never."""
        if not self._is_client or not self._expected:
            return
        awaited, _ = self._expected[0]
        if awaited is Frame.PROOF:
            self._show_proof()
        elif awaited is Frame.SIGNATURE:
            self._show_signature()

    def _complete(self) -> None:
        if self._peer_purpose != self._purpose:
            raise PurposesDifferError(self._purpose, self._peer_purpose)
        self.outcome = Outcome(
            self._code, self._peer_key, self._peer_purpose, by_secret=self._confirmation is not None
        )

    # -- greeting -------------------------------------------------------------------------------

    def _take_greeting(self, value: bytes) -> None:
        if len(value) < _GREETING_SIZE:
            raise MalformedProofError(f"GREETING has {len(value)} bytes")
        version, means, self._peer_purpose = value[:_GREETING_SIZE]
        if version != VERSION:
            raise MalformedProofError(f"it has version {version}, this program speaks {VERSION}")
        if means != self._means.byte:
            raise MeansDifferError(self._means.byte, means)
        greetings = (self._greeting, value) if self._is_client else (value, self._greeting)
        self._transcript = self._binding.transcript(*greetings)

    # -- secret ---------------------------------------------------------------------------------

    def _take_pake(self, value: bytes) -> None:
        assert self._exchange is not None  # noqa: S101 (it was made for the opening)
        try:
            self._confirmation = self._exchange.finish(value, self._transcript)
        except ValueError as error:
            raise MalformedProofError(str(error)) from error

    def _take_proof(self, value: bytes) -> None:
        assert self._confirmation is not None  # noqa: S101 (PAKE comes before PROOF)
        if not self._confirmation.accepts(value):
            raise WrongSecretError
        if not self._is_client:
            self._show_proof()

    def _show_proof(self) -> None:
        assert self._confirmation is not None  # noqa: S101 (PAKE comes before PROOF)
        self._outgoing.append((Frame.PROOF, self._confirmation.ours))

    # -- keys -----------------------------------------------------------------------------------

    def _take_signature(self, value: bytes) -> None:
        key, signature = value[:KEY_SIZE], value[KEY_SIZE:]
        if not is_signed(key, signature, self._signed(by_client=not self._is_client)):
            raise WrongKeyError(None)
        if key not in self._means.peer_keys:
            raise WrongKeyError(encode_public(key))
        self._peer_key = key
        if not self._is_client:
            self._show_signature()

    def _show_signature(self) -> None:
        assert self._means.identity is not None  # noqa: S101 (peer keys don't come without)
        signature = sign(self._means.identity, self._signed(by_client=self._is_client))
        self._outgoing.append((Frame.SIGNATURE, public_of(self._means.identity) + signature))

    def _signed(self, *, by_client: bool) -> bytes:
        """Return what is signed. The labels differ, so nobody gets in with his peer's signature."""
        messages = b"" if self._confirmation is None else self._confirmation.messages
        label = b"client signature" if by_client else b"server signature"
        return framed(label, self._transcript, messages)

    # -- neither --------------------------------------------------------------------------------

    def _take_commitment(self, value: bytes) -> None:
        self._commitment = value
        self._outgoing.append((Frame.CHALLENGE, self._number))

    def _take_challenge(self, value: bytes) -> None:
        self._outgoing.append((Frame.REVEAL, self._number))
        self._code = _code(self._transcript, self._number, value)

    def _take_reveal(self, value: bytes) -> None:
        if not hmac.compare_digest(digest(b"commitment", value), self._commitment):
            raise MalformedProofError("REVEAL is not what COMMITMENT stands for")
        self._code = _code(self._transcript, value, self._number)

    def _derive(self, label: bytes, size: int) -> bytes:
        """Return `size` bytes of chance, others for each label."""
        return hashlib.shake_256(framed(label, self._random)).digest(size)


def _code(transcript: bytes, client_number: bytes, server_number: bytes) -> str:
    """Return the short code that both users see: 123 456."""
    hashed = digest(b"code", transcript, client_number, server_number)
    # 8 bytes, so that no code is likelier than another by more than one part in 10**13.
    number = int.from_bytes(hashed[:8], "big") % _CODES
    return f"{number // 1000:03} {number % 1000:03}"
