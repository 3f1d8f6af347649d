"""The keys of sealed datagrams: agreed on, renewed and forgotten, inside the authenticated session.

Theory of operation
-------------------
A key is one X25519 exchange, from which HKDF makes two keys, one for each direction. The client of
the session drives it, by frames on the control streams, which are encrypted, authenticated,
reliable and in order:

    client    KEY_OFFER     the number of the key, an index, a public key, ciphers
    server    KEY_ANSWER    the same, with one cipher; from now on it opens with the new key
    client    KEY_CONFIRM   from now on it seals and opens with it
    server                  seals with it, from this frame on, or from the first datagram that opens

So nobody seals what the other can't open yet. What is sealed with the key before may still be
under way, or still be sent by a server that waits for KEY_CONFIRM; it opens for a while longer.

The client renews a key before it is old or worn out. A server says by KEY_WANTED that a key is worn
out on its side, or has ended there, since frames were long under way. A key that was not renewed is
used by nobody beyond its end, in either direction.

    what                          when                     why
    the client offers             120 s after the answer   WireGuard's REKEY_AFTER_TIME
                                  1 s after it             2**22 messages sealed, or KEY_WANTED
    a key ends                    180 s after it was made  WireGuard's REJECT_AFTER_TIME
    the one before ends           30 s after it was        in so much silence the tunnel ends, so
                                  replaced                 nothing takes longer and still matters

Since the client waits a second before it offers again, whatever the server wants, and the server
ends the session of a client that does not, neither has the other compute more than that. Frames
that are malformed, out of order, repeated, or not the sender's to send break the rules, and the
session ends; a stream that is reliable and in order has no innocent ones. The one exception is a
KEY_WANTED that crosses the renewal that it asks for: it has no effect, and neither has a second
one. Datagrams break no rules, since anybody may have sent them: they are only counted.

The public keys travel inside QUIC and are seen by nobody else, so what protects it (ML-KEM-768, for
instance) protects these keys as well. Private keys are forgotten as soon as the other half is
there, so a key that is gone is gone for both.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.tunnel.sealing import KEY_SIZE, LIMIT, Cipher, Opener, Sealer
from nat_traverse.wire.control import Frame
from nat_traverse.wire.sealed import (
    INDEX_SIZE,
    Offer,
    decode_answer,
    decode_epoch,
    decode_offer,
    encode_epoch,
    encode_offer,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nat_traverse.wire.sealed import Buffer, Message

# s after which a key is renewed, and after which it is not used any more, if it was not. Both are
# WireGuard's (its paper, section 6.2): what a thief of this host's memory can decrypt is at most
# three minutes old.
RENEW_AFTER: Final = 120.0
REJECT_AFTER: Final = 180.0
# Messages after which it is renewed. Half of what a key may seal at all: at a million datagrams a
# second the other half lasts for four seconds, and an exchange takes a round trip.
RENEW_AFTER_MESSAGES: Final = LIMIT // 2
# s for which the key before still opens. After so long a silence the tunnel is over (RFC 7675), so
# a datagram or a KEY_CONFIRM that takes longer finds nobody.
OVERLAP: Final = 30.0
# s at least between two exchanges, which take 0.2 ms of a processor each.
PACE: Final = 1.0
# Exchanges that a server takes ahead of that pace: a clock that stood still while this host slept,
# when the client's did not, makes an honest client look hasty.
AHEAD: Final = 5
# Messages that one host seals in a second at most; counts are looked at when they could be reached.
_FASTEST: Final = 1 << 20

_PRIVATE_SIZE: Final = 32  # bytes of an X25519 private key (RFC 7748, section 5)
# Begins what HKDF is told, so that the keys mean nothing elsewhere.
_LABEL: Final = b"nat-traverse sealed 1"


@dataclass(slots=True)
class _Key:
    """One key: both directions of it, and when it ends."""

    epoch: int
    sealer: Sealer
    opener: Opener
    ends: float
    name: bytes


class Keying:
    """One side of the agreement, and what there is to seal and open with at present.

    `ciphers` are those that this side has, the best one first. `random` returns so many random
    bytes, and all chance comes from it. `binding` are bytes that belong to this session alone and
    are the same on both sides. Times are seconds, of any clock that runs on.

    Give what the peer sends to `receive_frame` and `open_run`, send what `frames` yields, and call
    `handle_timer` when it is the time of `get_timer`. To be asked for both after every call of
    `receive_frame` and `handle_timer`.

    Counts datagrams: `opened`, `forged` and `replayed` as an `Opener` does, and `unknown` for those
    that name no key of ours.
    """

    def __init__(
        self,
        *,
        is_client: bool,
        ciphers: Sequence[Cipher],
        random: Callable[[int], bytes],
        now: float,
        binding: bytes,
    ) -> None:
        if not ciphers or not binding:
            raise ValueError("keys need a cipher, and a session to belong to")
        self._is_client = is_client
        self._ciphers = tuple(ciphers)
        self._random = random
        self._binding = binding
        self._outgoing: deque[tuple[int, bytes]] = deque()
        # The one to seal with; the one before; and on a server the one to come.
        self._current: _Key | None = None
        self._previous: _Key | None = None
        self._next: _Key | None = None
        self._by_head: dict[bytes, _Key] = {}
        self._first_end = float("inf")  # of all keys that there are
        self._epoch = 0  # of the last offer
        self._settled = 0  # of the last key: answered on the client, confirmed on the server
        self._asked = (
            0  # which key the server wanted to be renewed last, or the client was asked for
        )
        self._paced = now  # a server: up to when offers have used up their pace
        self._renew_at = now  # a client: when it offers next, if the last offer was answered
        self._look_at = now  # when to look next how many messages were sealed
        self._private: bytes = b""  # a client: its half of the key that it offers
        self._offered: Offer | None = None
        self._ended: list[int] = [0, 0, 0]  # opened, forged, replayed with keys that are gone
        self.unknown = 0
        self._is_over = False
        if is_client:
            self._take: dict[int, Callable[[bytes, float], None]] = {
                Frame.KEY_ANSWER: self._take_answer,
                Frame.KEY_WANTED: self._take_wanted,
            }
            self._offer()
        else:
            self._take = {
                Frame.KEY_OFFER: self._take_offer,
                Frame.KEY_CONFIRM: self._take_confirm,
            }

    # -- what there is --------------------------------------------------------------------------

    @property
    def sealer(self) -> Sealer | None:
        """What to seal with at present; None while nothing is agreed on, or not any more."""
        key = self._current
        return None if key is None or key.sealer.counter >= LIMIT else key.sealer

    @property
    def names(self) -> tuple[bytes, ...]:
        """The indices that the peer's datagrams may name at present, the newest first."""
        return tuple(key.name for key in self._keys())

    @property
    def opened(self) -> int:
        """How many datagrams were the peer's, and new."""
        return self._ended[0] + sum(key.opener.opened for key in self._keys())

    @property
    def forged(self) -> int:
        """How many named a key and did not open."""
        return self._ended[1] + sum(key.opener.forged for key in self._keys())

    @property
    def replayed(self) -> int:
        """How many came again, or too late."""
        return self._ended[2] + sum(key.opener.replayed for key in self._keys())

    # -- datagrams ------------------------------------------------------------------------------

    def open_run(self, run: Buffer, size: int, now: float) -> list[bytes]:
        """Return what is in the datagrams of a run, in their order.

        They have `size` bytes each, the last one maybe fewer. Each may be of another key, or
        anybody's: what does not open is left out and counted, and takes no other one along. An
        empty content is a sign of life.
        """
        if now >= self._first_end:
            self._end_keys(now)
        messages = split(run, size)
        head = messages[0][0]
        if len(messages) == 1 or [each[0] for each in messages].count(head) == len(messages):
            return self._open(head, messages, now)
        found: list[bytes] = []
        for each, group in groupby(messages, itemgetter(0)):
            found += self._open(each, list(group), now)
        return found

    def _open(self, head: bytes, messages: Sequence[Message], now: float) -> list[bytes]:
        """Return what is in messages that all have the same head."""
        key = self._by_head.get(head)
        if key is None:
            self.unknown += len(messages)
            return []
        found = key.opener.open(messages)
        if found and key is self._next:
            self._replace_current(key, now)
        return found

    def forget(self) -> None:
        """Forget all keys, since the session is over: nothing opens or is agreed on from now on.

        The counts stay. Forgetting twice does nothing.
        """
        self._is_over = True
        for key in self._keys():
            self._retire(key)
        self._current = self._previous = self._next = None
        self._keys_changed()
        self._private, self._offered = b"", None
        self._renew_at = float("inf")
        self._outgoing.clear()

    # -- frames ---------------------------------------------------------------------------------

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield the frames (type, value) that are to be sent now, each of them once."""
        while self._outgoing:
            yield self._outgoing.popleft()

    def receive_frame(self, kind: int, value: bytes, now: float) -> None:
        """Take the peer's next frame about keys; raises RemoteProtocolError if it breaks the rules.

        The session has to end then.
        """
        if self._is_over:
            return
        take = self._take.get(kind)
        if take is None:
            side = "server" if self._is_client else "client"
            raise RemoteProtocolError(f"a {side} does not send a frame {kind:#04x} about keys")
        take(value, now)

    def _take_offer(self, value: bytes, now: float) -> None:
        offer = decode_offer(value)
        if self._settled != self._epoch:
            raise RemoteProtocolError(f"key {self._epoch} was not confirmed before the next offer")
        if offer.epoch != self._epoch + 1:
            raise RemoteProtocolError(f"key {offer.epoch} is offered after key {self._epoch}")
        self._paced = max(self._paced, now) + PACE
        if self._paced > now + PACE * (AHEAD + 1):
            raise RemoteProtocolError("keys are offered too fast")
        cipher = _choose(offer.ciphers, self._ciphers)
        private, answer = self._half(offer.epoch, (cipher,))
        self._epoch = offer.epoch
        self._next = self._agree(private, answer, offer, cipher, now)
        self._keys_changed()
        self._outgoing.append((Frame.KEY_ANSWER, encode_offer(answer)))

    def _take_answer(self, value: bytes, now: float) -> None:
        answer = decode_answer(value)
        if self._offered is None or answer.epoch != self._offered.epoch:
            raise RemoteProtocolError(f"nobody asked for an answer about key {answer.epoch}")
        (number,) = answer.ciphers
        if number not in self._ciphers:
            raise RemoteProtocolError(f"cipher {number} was not offered")
        private, offer = self._private, self._offered
        self._private, self._offered = b"", None
        key = self._agree(private, offer, answer, Cipher(number), now)
        self._settled = answer.epoch
        self._renew_at = now + RENEW_AFTER
        self._replace_current(key, now)
        self._outgoing.append((Frame.KEY_CONFIRM, encode_epoch(answer.epoch)))

    def _take_confirm(self, value: bytes, now: float) -> None:
        epoch = decode_epoch(value)
        if epoch != self._epoch or epoch == self._settled:
            raise RemoteProtocolError(f"key {epoch} is confirmed and was not answered")
        self._settled = epoch
        if self._next is not None:
            self._replace_current(self._next, now)
        elif self._current is None or self._current.epoch != epoch:
            self._want(epoch)  # it has ended meanwhile; otherwise a datagram was faster

    def _take_wanted(self, value: bytes, _now: float) -> None:
        epoch = decode_epoch(value)
        if epoch > self._settled:
            raise RemoteProtocolError(f"key {epoch} is to be renewed, and there is none")
        if epoch == self._settled:
            self._want(epoch)

    # -- time -----------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """Return when `handle_timer` is to be called, or None as long as nothing can be due."""
        due = self._first_end
        if self._current is not None:
            due = min(due, self._look_at)
        if self._is_client and self._offered is None:
            due = min(due, self._renew_at)
        return None if due == float("inf") else due

    def handle_timer(self, now: float) -> None:
        """Do what is due: end keys, and see to it that they are renewed."""
        if now >= self._first_end:
            self._end_keys(now)
        key = self._current
        if key is not None and now >= self._look_at:
            left = RENEW_AFTER_MESSAGES - key.sealer.counter
            self._look_at = now + max(PACE, left / _FASTEST)
            if left <= 0:
                self._want(key.epoch)
        if self._is_client and self._offered is None and now >= self._renew_at:
            self._offer()

    def _want(self, epoch: int) -> None:
        """Have a key renewed without waiting for its time: by an offer, or a word to the client."""
        if epoch <= self._asked:
            return
        self._asked = epoch
        if self._is_client:
            self._renew_at += PACE - RENEW_AFTER
        else:
            self._outgoing.append((Frame.KEY_WANTED, encode_epoch(epoch)))

    # -- keys -----------------------------------------------------------------------------------

    def _offer(self) -> None:
        """Offer a new key."""
        self._epoch += 1
        self._private, self._offered = self._half(self._epoch, self._ciphers)
        self._outgoing.append((Frame.KEY_OFFER, encode_offer(self._offered)))

    def _half(self, epoch: int, ciphers: Sequence[Cipher]) -> tuple[bytes, Offer]:
        """Return a new private key, and what the peer is to know of it."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import (  # noqa: PLC0415
            X25519PrivateKey,
        )

        private = self._random(_PRIVATE_SIZE)
        public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        # By chance, so that nobody off the path finds one that has us try to open his datagrams.
        index = self._random(INDEX_SIZE)
        while index in self.names:  # at most three
            index = (int.from_bytes(index, "big") + 1 & 0xFFFFFFFF).to_bytes(INDEX_SIZE, "big")
        return private, Offer(epoch, index, public, tuple(ciphers))

    def _agree(
        self, private: bytes, ours: Offer, theirs: Offer, cipher: Cipher, now: float
    ) -> _Key:
        """Return the key of both halves; raises RemoteProtocolError if theirs makes none."""
        client, server = (ours, theirs) if self._is_client else (theirs, ours)
        secret = _exchange(private, theirs.public)
        keys = derive(secret, self._binding, cipher, client=client, server=server)
        sealing, opening = keys if self._is_client else keys[::-1]
        return _Key(
            ours.epoch,
            Sealer(sealing, theirs.index, cipher),
            Opener(opening, ours.index, cipher),
            now + REJECT_AFTER,
            ours.index,
        )

    def _replace_current(self, key: _Key, now: float) -> None:
        """Seal with `key` from now on."""
        self._retire(self._previous)
        self._previous, self._current, self._next = self._current, key, None
        if self._previous is not None:
            self._previous.ends = min(self._previous.ends, now + OVERLAP)
        self._look_at = now + RENEW_AFTER_MESSAGES / _FASTEST
        self._keys_changed()

    def _end_keys(self, now: float) -> None:
        """Forget the keys whose end has come."""
        for key in self._keys():
            if now < key.ends:
                continue
            self._retire(key)
            if key is self._next:
                self._next = None
            elif key is self._current:
                self._current = None
                self._want(key.epoch)
            else:
                self._previous = None
        self._keys_changed()

    def _retire(self, key: _Key | None) -> None:
        """Keep the counts of a key that goes."""
        if key is not None:
            opener = key.opener
            for at, count in enumerate((opener.opened, opener.forged, opener.replayed)):
                self._ended[at] += count

    def _keys(self) -> list[_Key]:
        return [key for key in (self._next, self._current, self._previous) if key is not None]

    def _keys_changed(self) -> None:
        keys = self._keys()
        self._by_head = {key.opener.head: key for key in keys}
        self._first_end = min((key.ends for key in keys), default=float("inf"))


def derive(
    secret: bytes, binding: bytes, cipher: Cipher, *, client: Offer, server: Offer
) -> tuple[bytes, bytes]:
    """Return the keys that the client and the server seal with, from what X25519 gave both."""
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    # Each part has a fixed length, so no two sets of them look the same.
    info = b"".join(
        (_LABEL, bytes((cipher,)), encode_epoch(client.epoch), client.public, server.public)
    )
    keys = HKDF(SHA256(), 2 * KEY_SIZE, salt=binding, info=info).derive(secret)
    return keys[:KEY_SIZE], keys[KEY_SIZE:]


def _exchange(private: bytes, public: bytes) -> bytes:
    """Return the shared secret; raises RemoteProtocolError for a key that gives none.

    There are a few points that every private key turns into zeros (RFC 7748, section 6.1).
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import (  # noqa: PLC0415
        X25519PrivateKey,
        X25519PublicKey,
    )

    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise RemoteProtocolError("a public key of which nothing comes") from error


def _choose(theirs: Iterable[int], ours: Sequence[Cipher]) -> Cipher:
    """Return the cipher of a key; raises RemoteProtocolError if both sides have none in common.

    The one that both like best. If they differ, one of them has no AES in its processor, and would
    be several times slower with it: ChaCha20 then.
    """
    shared = [Cipher(number) for number in theirs if number in ours]
    if not shared:
        raise RemoteProtocolError("the two sides have no cipher in common")
    best = next(cipher for cipher in ours if cipher in shared)
    if best is not shared[0] and Cipher.CHACHA20_POLY1305 in shared:
        return Cipher.CHACHA20_POLY1305
    return best
