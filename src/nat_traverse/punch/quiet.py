"""The quiet rung: the agreed pair, when nobody answers and uninvited packets may do harm.

From then on hellos that travel all the way go out in the first seconds of each wall-clock minute
only; see `minute`. In between, openings with a low TTL keep our own gateway open, so that a peer
that starts at any second of the minute gets in with its first hello. They reach nobody's gateway,
and so can't spoil anything there.
"""

from __future__ import annotations

from typing import Final

from nat_traverse.punch.direct import Step
from nat_traverse.punch.minute import FULL, LEAD, MINUTE, second_of

# s; a hello that could not go out in time, because the ladder paused, is left out: its second of
# the minute is over.
BELATED = 0.5

_KNOCK_EVERY = 0.2  # s; not often enough to be mistaken for a flood, even on eight paths
# s; a third of the 30 s after which a Linux gateway forgets a mapping that never saw an answer, the
# shortest lifetime that was found among 34 home gateways (Hätönen et al., IMC 2010).
HOLD_EVERY = 10.0
LEAD_EVERY = 1.0  # s; every one but the first is there for those that were lost


def _table() -> tuple[tuple[float, bool], ...]:
    """Return the seconds of the minute at which a hello is due, and whether it is an opening."""
    lead = MINUTE - LEAD
    steps = [(index * _KNOCK_EVERY, False) for index in range(round(FULL / _KNOCK_EVERY))]
    hold = FULL + HOLD_EVERY
    while hold < lead:
        steps.append((hold, True))
        hold += HOLD_EVERY
    steps += [(lead + index * LEAD_EVERY, True) for index in range(round(LEAD / LEAD_EVERY))]
    return tuple(steps)


_STEPS: Final = _table()


def next_step(wall: float) -> Step:
    """Return the first hello due later than `wall` (s since the epoch), on the same clock."""
    second = second_of(wall)
    for at, opening in _STEPS:
        # Nearer than a microsecond is the step that was just made, after rounding.
        if at > second + 1e-6:
            return Step(wall - second + at, opening)
    return Step(wall - second + MINUTE, opening=False)
