"""The hop rung: a fresh pair of ports each minute, on which no gateway has been spoiled.

Both sides derive the pair from the agreed ports, the minute and the secret if there is one, and use
it as the quiet rung uses the agreed one: openings in the lead, hellos in the first seconds of the
minute. A pair lives until the next minute is over its own first seconds, so that clocks that differ
by ten seconds still have it in common.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_traverse.model import Endpoint, Path, Rung
from nat_traverse.punch.machine import CloseSocket, OpenSocket
from nat_traverse.punch.minute import FULL, LEAD, MINUTE, minute_of
from nat_traverse.punch.ports import FIRST_PORT, PORTS
from nat_traverse.punch.rung import HOP_SOCKETS as SOCKETS
from nat_traverse.punch.rung import HOP_STARTS as STARTS
from nat_traverse.punch.rung import Action, Began, Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LEAD_EVERY = 1.0  # s
_KNOCK_EVERY = 0.2  # s
# s between the first opening and the first hello of somebody who comes late in the minute.
_BELATED = 0.5

_LABEL = b"nat-traverse hop 1"
_INPUT = struct.Struct("!HHQ")


def hop_port(own: int, other: int, minute: int, secret: bytes = b"") -> int:
    """Return the port that takes the place of the agreed port `own` in this minute.

    `other` is the agreed port of the other side; `minute` counts from the epoch. HMAC-SHA256 keeps
    who does not know the secret from telling the port in advance. Never a privileged port.
    """
    data = _LABEL + _INPUT.pack(own, other, minute)
    digest = hmac.new(secret, data, hashlib.sha256).digest()
    return FIRST_PORT + int.from_bytes(digest[:8], "big") % PORTS


@dataclass(slots=True)
class _Pair:
    """The ports of one minute."""

    minute: int
    socket: int
    remotes: tuple[Endpoint, ...]
    opened: float | None = None  # since when openings go out
    next: float = 0.0


class HopRung:
    """A `Strategy`. `remotes` are the peer's agreed endpoints, `local_port` our agreed port.

    `wall` is what has to be added to the owner's clock to get the wall clock's. The rung opens
    sockets under the numbers from `first_socket` on, `SOCKETS` of them in turn.
    """

    def __init__(
        self,
        remotes: Sequence[Endpoint],
        local_port: int,
        secret: bytes,
        *,
        first_socket: int,
        start: float,
        wall: float,
    ) -> None:
        self._remotes = tuple(remotes)
        self._local_port = local_port
        self._secret = secret
        self._first_socket = first_socket
        self._wall = wall
        self._pairs: dict[int, _Pair] = {}
        self._next_minute = start + STARTS
        self._minute = minute_of(self._next_minute + wall)
        self._over = False
        self.next_time: float | None = self._next_minute

    def due(self, now: float) -> Iterator[Action]:
        """Yield the sockets of a new minute, and the hellos of this one."""
        if self._over:
            return
        if self._next_minute <= now:
            yield from self._turn(now)
        for pair in self._pairs.values():
            if pair.opened is not None and pair.next <= now:
                opening = self._is_lead(pair, now)
                if not opening and now >= self._end(pair):
                    pair.next = float("inf")  # the ladder paused, and the time has passed
                    continue
                for remote in pair.remotes:
                    yield Probe(Path(pair.socket, remote), Rung.HOP, opening, pair.minute)
                self._advance(pair, now)
        self.next_time = self._earliest()

    def socket_opened(self, number: int, port: int, now: float) -> None:
        """Begin with the openings of the pair whose socket this is."""
        del port
        for pair in self._pairs.values():
            if pair.socket == number:
                pair.opened = pair.next = now
        self.next_time = self._earliest()

    def socket_failed(self, number: int, now: float) -> None:
        """Do without this minute: somebody else has the port."""
        del now
        self._pairs = {
            minute: pair for minute, pair in self._pairs.items() if pair.socket != number
        }
        self.next_time = self._earliest()

    def stop(self) -> list[int]:
        """End; return the sockets that are open."""
        self._over = True
        self.next_time = None
        numbers = [pair.socket for pair in self._pairs.values()]
        self._pairs.clear()
        return numbers

    def _earliest(self) -> float | None:
        """Return when something is due."""
        if self._over:
            return None
        times = [pair.next for pair in self._pairs.values() if pair.opened is not None]
        return min([self._next_minute, *times])

    def _turn(self, now: float) -> Iterator[Action]:
        """Open the pair of the next minute, and close the one before the last."""
        minute = max(self._minute, minute_of(now + self._wall))
        for old in [each for each in self._pairs if each <= minute - SOCKETS]:
            yield CloseSocket(self._pairs.pop(old).socket)
        self._minute = minute + 1
        self._next_minute = self._minute * MINUTE - LEAD - self._wall
        begin = minute * MINUTE - self._wall
        if now >= begin + FULL:
            return  # too late for this one
        number = self._first_socket + minute % SOCKETS
        remotes = tuple(
            remote._replace(port=hop_port(remote.port, self._local_port, minute, self._secret))
            for remote in self._remotes
        )
        self._pairs[minute] = _Pair(minute, number, remotes)
        yield Began(Rung.HOP, begin)
        port = hop_port(self._local_port, self._remotes[0].port, minute, self._secret)
        yield OpenSocket(number, port=port)

    def _is_lead(self, pair: _Pair, now: float) -> bool:
        opened = now if pair.opened is None else pair.opened
        return now < max(pair.minute * MINUTE - self._wall, opened + _BELATED)

    def _end(self, pair: _Pair) -> float:
        """Return when knocking ends; a little early, for sums of floating point."""
        return pair.minute * MINUTE - self._wall + FULL - _KNOCK_EVERY / 2

    def _advance(self, pair: _Pair, now: float) -> None:
        begin = pair.minute * MINUTE - self._wall
        if self._is_lead(pair, now):
            opened = now if pair.opened is None else pair.opened
            pair.next = min(now + _LEAD_EVERY, max(begin, opened + _BELATED))
        elif now + _KNOCK_EVERY < self._end(pair):
            pair.next = now + _KNOCK_EVERY
        else:
            pair.next = float("inf")
