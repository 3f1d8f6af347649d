"""What a rung wants done: its vocabulary towards the ladder.

A rung is a pure function of its settings, of what it was told, and of the time. It sends nothing
itself: it yields actions, and the ladder and the handshake turn them into messages and effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from nat_traverse.punch.machine import CloseSocket, OpenSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.model import Path, Rung

# When the later rungs begin, in s after the start. They stand here and not beside their rungs: the
# modules of these are not loaded by a traversal that is over by then.
#
# A direct path with a round trip below a third of a second is agreed on by then. Opening takes
# three seconds, and every tenth of one later is one more that users wait.
SPRAY_STARTS = 0.5
# The quick part of the direct rung is over, and the peer's gateway has had its chance.
QUIET_STARTS = HOP_STARTS = 10.0

# Pairs that the hop rung has at a time: this minute's and, in its lead, the next one's.
HOP_SOCKETS = 2


class Probe(NamedTuple):
    """Action: a hello on `path`. An opening must not get as far as the peer's gateway.

    `turn` counts the openings of this rung in series, so that each may try another TTL.
    """

    path: Path
    rung: Rung
    opening: bool = False
    turn: int = 0


class Began(NamedTuple):
    """Action: tell the owner that a rung has begun; see `RungStarted`."""

    rung: Rung
    until: float | None = None


Action = Probe | OpenSocket | CloseSocket | Began


class Strategy(Protocol):
    """One rung. All times are on the owner's clock.

    `next_time` is when `due` wants to be called, None for never. It is asked for far more often
    than it changes, so a rung works it out when it does.
    """

    next_time: float | None

    def due(self, now: float) -> Iterator[Action]:
        """Yield what is to be done at `now`."""

    def socket_opened(self, number: int, port: int, now: float) -> None:
        """Learn that a socket of this rung is open."""

    def socket_failed(self, number: int, now: float) -> None:
        """Learn that it could not be opened."""

    def stop(self) -> list[int]:
        """End; return the numbers of the sockets that this rung had opened or asked for."""
