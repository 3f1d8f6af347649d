"""Following a peer whose address changes in mid-tunnel, because its gateway forgot the mapping.

Theory of operation
-------------------
What comes from an unknown address may be the peer's, from behind a new mapping, or anybody's. It is
asked with a hello that names both nonces; whoever answers with both, from there, has read it and is
the peer: a path validation (RFC 9000, section 8.2) in the words of the traversal, with 128 bits
that an off-path attacker can't guess. An attacker on the path can pass packets on from elsewhere;
that gives him no more than being on the path does, for the data stays encrypted and authenticated.

An address is asked only when it has sent as many bytes as the question has, and at most a few are
asked at a time, so that nobody can have us send to somebody else more than he sends himself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nat_traverse.punch.machine import Send
from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import Kind, Message

if TYPE_CHECKING:
    from nat_traverse.model import Path

# Addresses that are watched at a time; a flood from forged ones pushes out what is older.
_WATCHED = 16
# s between two questions, whatever is heard from how many addresses.
_PACE = 0.2


class Follower:
    """Asks unknown addresses whether they are the peer's."""

    def __init__(self, nonce: bytes, peer_nonce: bytes) -> None:
        self._nonce = nonce
        self._peer_nonce = peer_nonce
        self._heard: dict[Path, int] = {}  # bytes that came, and were not spent on a question yet
        self._asked: dict[int, Path] = {}
        self._serial = 0
        self._next_question = float("-inf")

    def hear(self, path: Path, size: int, now: float) -> Send | None:
        """Count `size` bytes from an unknown address; returns a question when it is time."""
        self._heard[path] = heard = self._heard.pop(path, 0) + size
        if len(self._heard) > _WATCHED:
            del self._heard[next(iter(self._heard))]
        if now < self._next_question:
            return None
        question = self._question()
        if heard < len(question):
            return None
        self._next_question = now + _PACE
        self._heard[path] = 0
        self._asked[self._serial] = path
        if len(self._asked) > _WATCHED:
            del self._asked[next(iter(self._asked))]
        return Send(question, path)

    def is_peers(self, message: Message) -> bool:
        """Tell whether a message names both nonces, as only the peer can."""
        return message.nonce == self._peer_nonce and message.echo == self._nonce

    def answer(self, message: Message, size: int, path: Path) -> Send | None:
        """Answer the peer's question of `size` bytes; None where the answer would be longer."""
        ack = Message(Kind.ACK, self._nonce, serial=message.serial, echo=self._peer_nonce)
        data = wire.encode(ack)
        return Send(data, path) if len(data) <= size else None

    def take_answer(self, message: Message, path: Path) -> bool:
        """Take an ack of the peer's; True if it proves that the peer is at `path` now."""
        if message.serial is None or self._asked.get(message.serial) != path:
            return False
        self._asked.clear()
        self._heard.clear()
        return True

    def _question(self) -> bytes:
        self._serial = (self._serial + 1) & 0xFFFFFFFF
        hello = Message(Kind.HELLO, self._nonce, serial=self._serial, echo=self._peer_nonce)
        return wire.encode(hello)
