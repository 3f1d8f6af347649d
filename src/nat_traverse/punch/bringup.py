"""Bringing up the agreed pair of ports over a path that works but is another one.

Somebody else is going to use the agreed pair, and can't be told of other ports. Often the pair
could work: only, a gateway took early packets for its own. The controlling end leads:

1. It asks the other end to open its gateway for the pair (`OPEN`). When that is done (`OPENED`) it
   sends hellos on the pair, which open its own gateway on the way.
2. Nothing arrived? Then both keep still on the pair until every gateway has forgotten it
   (`SILENT`), and step 1 comes once more; and again after a longer silence.
3. Still nothing, or an end that knows that its own gateway changes ports (`HOPELESS`): the pair
   can't work, and the path that does is nominated.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from nat_traverse.wire.hello import Agreed

# A gateway forgets a one-way mapping after 30 s (Linux; shorter ones were not found). Both ends
# begin to be silent within a round trip, and a gateway's clock ticks in seconds.
SILENCE = 33.0
# Linux prefers the port that other mappings of the same socket have, also while these have expired
# and wait to be cleared away. A socket that has probed many ports has many. They are cleared away
# every 60 s at the latest.
_SILENCES = (SILENCE, 65.0)
# s for hellos on the pair: twenty, of which one and its answer have to get through.
TRY = 2.0
ASK_EVERY = 0.2  # s between two questions that stay unanswered
REMIND_EVERY = 2.0  # s; keeps the helping path open, and the other end silent
# s without an answer on the helping path, after which it is taken for dead.
PATIENCE = 10.0


class _Step(Enum):
    OPEN = "ask the other end to open"
    TRY = "hellos on the pair"
    ASK_SILENCE = "ask the other end for silence"
    SILENCE = "both are silent"
    OVER = "the pair does not work"


class Move(NamedTuple):
    """What to do now: ask this over the helping path, or (None) send a hello on the pair."""

    ask: Agreed | None


class BringUp:
    """The controlling end's part; pure. The handshake asks `move` when `next_time` has come."""

    def __init__(self, now: float) -> None:
        self._step = _Step.OPEN
        self._since = now
        self._at = now
        self._answered = now
        self._silences = list(_SILENCES)

    @property
    def next_time(self) -> float:
        """When the next move is due."""
        return self._at

    @property
    def is_over(self) -> bool:
        """True if the pair can't be brought up."""
        return self._step is _Step.OVER

    @property
    def silence(self) -> float:
        """How long (s) the silence that was asked for lasts; 0 if none was."""
        return self._silences[0] if self.is_silent else 0.0

    @property
    def is_silent(self) -> bool:
        """True from when silence is asked for until it has lasted."""
        return self._step in (_Step.ASK_SILENCE, _Step.SILENCE)

    def is_dead(self, now: float) -> bool:
        """Tell whether the helping path has stopped to work."""
        return now - self._answered > PATIENCE

    def move(self, now: float) -> Move | None:
        """Return what is due at `now`, or None."""
        if self._step is _Step.TRY and now - self._since >= TRY:
            self._go(_Step.ASK_SILENCE if self._silences else _Step.OVER, now)
        elif self._step is _Step.SILENCE and now - self._since >= self._silences[0]:
            del self._silences[0]
            self._go(_Step.OPEN, now)
        if self._step is _Step.OVER or now < self._at:
            return None
        if self._step is _Step.OPEN:
            self._at = now + ASK_EVERY
            return Move(Agreed.OPEN)
        if self._step is _Step.TRY:
            self._at = now + TRY / 20
            return Move(None)
        if self._step is _Step.ASK_SILENCE:
            self._at = now + ASK_EVERY
        else:
            self._at = min(now + REMIND_EVERY, self._since + self._silences[0])
        return Move(Agreed.SILENT)

    def answered(self, answer: Agreed | None, now: float) -> None:
        """Take an ack from the helping path."""
        self._answered = now
        if answer is Agreed.HOPELESS:
            self._go(_Step.OVER, now)
        elif answer is Agreed.OPENED and self._step is _Step.OPEN:
            self._go(_Step.TRY, now)
        elif answer is Agreed.SILENT and self._step is _Step.ASK_SILENCE:
            self._go(_Step.SILENCE, now)
            self._at = now + REMIND_EVERY

    def _go(self, step: _Step, now: float) -> None:
        self._step, self._since, self._at = step, now, now
