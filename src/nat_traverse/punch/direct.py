"""The direct rung: when to send hellos on the agreed port pair, and how far each may travel.

Two openings with a low TTL create the mapping in our own gateway and die before the peer's. A
packet that arrives at the peer's gateway uninvited can make it take the flow for its own, after
which the peer's own packets leave from another port ("poisoning"). Hellos that are meant to arrive
follow: often at first, since the later side decides how long everybody waits, and rarely in the
end, since a peer that is missing for ten seconds is probably started by hand.
"""

from __future__ import annotations

from typing import NamedTuple

# Crosses one home gateway and dies at the first router behind it. Dolphin and LiteNetLib use 2.
OPENING_TTL = 2

_OPENINGS = (0.0, 0.05)  # s; two, for one may be lost
# (from, until, interval) in seconds since the start. The first is three times the distance of the
# openings: the mapping exists by then. A round trip is rarely above 0.1 s, and patience is human.
_PACES = ((0.15, 2.0, 0.1), (2.0, 10.0, 0.25), (10.0, float("inf"), 1.0))


class Probe(NamedTuple):
    """A hello to be sent `at` seconds after the start; `ttl` None means the system's default."""

    at: float
    ttl: int | None


def next_probe(elapsed: float) -> Probe:
    """Return the first hello due later than `elapsed` seconds after the start (-1: the first)."""
    for at in _OPENINGS:
        if at > elapsed:
            return Probe(at, OPENING_TTL)
    begin, until, interval = next(pace for pace in _PACES if elapsed < pace[1])
    if elapsed < begin:
        return Probe(begin, None)
    at = begin + (int((elapsed - begin) / interval) + 1) * interval
    # Floating point may take the step just made for one that is an ulp short of it.
    if at - elapsed < interval * 1e-6:
        at += interval
    return Probe(min(at, until), None)
