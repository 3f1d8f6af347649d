"""The wall-clock minute, which two machines share without having exchanged a packet.

A gateway that takes an uninvited packet for its own gives its host another port afterwards, and
forgets that only after 30 s of silence. So a packet that travels all the way must not arrive before
the other side has opened its gateway. Nobody is there to say when that is, but a clock on the wall
does: in each minute both sides first open (the *lead*, with a TTL that ends before the other
gateway), then knock (`FULL`), then at most keep open (`HOLD`).

Clocks may differ by `SKEW`: the lead is longer than that. What the other side knocked in vain is
forgotten before the next lead: 5 + 30 + 10 s after the minute is 45 s, and the lead begins at 48.
"""

from __future__ import annotations

from enum import Enum

MINUTE = 60.0  # s
SKEW = 10.0  # s; NTP keeps milliseconds, a clock set by hand is rarely worse than this
LEAD = 12.0  # s, more than SKEW by what the first packets need to get out
FULL = 5.0  # s; twenty-five knocks, of which one has to arrive and its answer to come back


class Phase(Enum):
    """What a second of the minute is for."""

    LEAD = "lead"
    FULL = "full"
    HOLD = "hold"


def second_of(wall: float) -> float:
    """Return how many seconds of its minute have passed at `wall`, s since the epoch."""
    return wall % MINUTE


def minute_of(wall: float) -> int:
    """Return the minute, counted from the epoch; its lead counts as a part of it."""
    return int((wall + LEAD) // MINUTE)


def phase(wall: float) -> Phase:
    """Return what the moment `wall`, in s since the epoch, is for."""
    second = second_of(wall)
    if second < FULL:
        return Phase.FULL
    return Phase.HOLD if second < MINUTE - LEAD else Phase.LEAD


def next_full(wall: float) -> float:
    """Return the beginning of the next minute after `wall`."""
    return (wall // MINUTE + 1) * MINUTE
