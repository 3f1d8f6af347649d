"""The direct rung: when to send hellos on the agreed port pair, and how far each may travel.

Two openings with a low TTL create the mapping in our own gateway and die before the peer's. A
packet that arrives at the peer's gateway uninvited can make it take the flow for its own, after
which the peer's own packets leave from another port ("poisoning"). Hellos that are meant to arrive
follow: often at first, since the later side decides how long everybody waits, and rarely in the
end, since a peer that is missing for ten seconds is probably started by hand.
"""

from __future__ import annotations

from typing import NamedTuple

_OPENINGS = (0.0, 0.05)  # s; two, for one may be lost
# (from, until, interval) in seconds since the start. The first is three times the distance of the
# openings: the mapping exists by then. A round trip is rarely above 0.1 s, and patience is human.
_PACES = ((0.15, 2.0, 0.1), (2.0, 10.0, 0.25), (10.0, float("inf"), 1.0))


class Step(NamedTuple):
    """A hello to be sent at the time `at`; an opening must not reach the peer's gateway."""

    at: float
    opening: bool


def next_step(elapsed: float) -> Step:
    """Return the first hello due later than `elapsed` seconds after the start (-1: the first)."""
    for at in _OPENINGS:
        if at > elapsed:
            return Step(at, opening=True)
    begin, until, interval = next(pace for pace in _PACES if elapsed < pace[1])
    if elapsed < begin:
        return Step(begin, opening=False)
    at = begin + (int((elapsed - begin) / interval) + 1) * interval
    # Floating point may take the step just made for one that is an ulp short of it.
    if at - elapsed < interval * 1e-6:
        at += interval
    return Step(min(at, until), opening=False)
