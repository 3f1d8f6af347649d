"""What the handshake says: its hellos, their acks, and when each hello was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.punch.machine import Send
from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import Kind, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.model import Path
    from nat_traverse.wire.hello import Agreed, Mode

_REMEMBERED = 1024  # hellos whose time is kept: ten seconds' worth at the highest pace

# `done` is said this often: it is not answered, so nobody would notice that it was lost, and the
# peer would wait for nothing.
_DONE_COPIES = 2

_MICROSECONDS = 1_000_000  # in a second
_LONGEST_ROUND_TRIP = 2**32 - 1  # microseconds, what the field can say: over an hour


class Sent(NamedTuple):
    """A hello that is remembered: when it went out, and how long it was in bytes."""

    at: float
    size: int


class Writer:
    """Writes messages in the name of one nonce.

    `is_agreed` tells whether a path is one of the agreed ports. `peer` is the peer's nonce, as soon
    as it is known.
    """

    def __init__(self, nonce: bytes, mode: Mode, is_agreed: Callable[[Path], bool]) -> None:
        self.peer: bytes | None = None
        self._nonce = nonce
        self._mode = mode
        self._is_agreed = is_agreed
        self._serial = 0
        self._sent: dict[int, Sent] = {}
        self._search: bytes | None = None

    def hello(
        self,
        path: Path,
        now: float,
        *,
        nominate: bool = False,
        round_trip: float | None = None,
        agreed: Agreed | None = None,
        size: int = wire.HELLO_SIZE,
        ttl: int | None = None,
    ) -> Send:
        """Return a hello of `size` bytes; `round_trip` (s) is what was measured on its path."""
        self._serial += 1
        self._sent[self._serial] = Sent(now, size)
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]
        message = Message(
            kind=Kind.HELLO,
            nonce=self._nonce,
            nominate=nominate,
            astray=not self._is_agreed(path),
            serial=self._serial,
            echo=self.peer,
            observed=None if self.peer is None else path.remote,
            mode=self._mode,
            round_trip=None if round_trip is None else _in_microseconds(round_trip),
            agreed=agreed,
        )
        return Send(wire.encode(message, size=size), path, ttl)

    def search(self, path: Path, ttl: int | None) -> Send:
        """Return a hello for a path of which nothing is remembered: nobody waits for its ack.

        Thousands go out, so it is put together once.
        """
        if self._search is None:
            message = Message(Kind.HELLO, self._nonce, astray=True, mode=self._mode)
            self._search = wire.encode(message, size=wire.HELLO_SIZE)
        return Send(self._search, path, ttl)

    def answer(
        self,
        asked: Message,
        size: int,
        path: Path,
        *,
        nominate: bool = False,
        pad_to: int = 0,
        agreed: Agreed | None = None,
    ) -> list[Send]:
        """Return the ack of a hello of `size` bytes; nothing where it would be longer than that."""
        ack = Message(
            kind=Kind.ACK,
            nonce=self._nonce,
            nominate=nominate,
            astray=not self._is_agreed(path),
            serial=asked.serial,
            echo=asked.nonce,
            observed=path.remote,
            mode=self._mode,
            agreed=agreed,
        )
        data = wire.encode(ack, size=min(size, pad_to))
        return [Send(data, path)] if len(data) <= size else []

    def done(self, path: Path) -> list[Send]:
        """Return the word that the handshake is over for us, in copies."""
        message = Message(Kind.ACK, self._nonce, done=True, echo=self.peer)
        return [Send(wire.encode(message), path)] * _DONE_COPIES

    def sent(self, serial: int | None) -> Sent | None:
        """Return what is remembered of the hello of this number."""
        return None if serial is None else self._sent.get(serial)


def in_seconds(round_trip: int | None) -> float | None:
    """Return what a ROUND_TRIP field says."""
    return None if round_trip is None else round_trip / _MICROSECONDS


def _in_microseconds(seconds: float) -> int:
    return min(round(seconds * _MICROSECONDS), _LONGEST_ROUND_TRIP)
