"""Prediction: when and whereto the openings of the spray go, blind or with a hint.

A gateway that counts its ports upwards is predictable: if somebody has seen which port it used
lately, the next ones are near. Against one such gateway a hint only changes the order in which its
ports are tried (`ports.after`). Two of them can't be found by trying, hint or not: each opening
lets in one single port. But they can meet. Each side opens more than 250 mappings in a row, all
towards one port that the other side's gateway is going to reach in its own row. The one mapping
that stands on that port there and the one that stands on the chosen port here are each other's
peers.

So both sides choose `hint + AHEAD`. The openings are made in the lead of a minute (`minute`), and
the hellos that travel all the way follow in its first seconds, so that no gateway is spoiled.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple, Protocol

from nat_traverse.punch.minute import MINUTE, second_of
from nat_traverse.punch.ports import wrap

# The port chosen is this far ahead of the hint: the row of 253 begins behind what was used in
# between (our own first probes, and other programs behind the same gateway), and still covers
# it. A multiple of the usual steps 1, 2, 3, 4, 5, 6.
AHEAD = 180

# s between two series of openings. A gateway may forget a mapping after 30 s.
REFRESH = 28.0

# Probes before the row is opened: each takes one port of our own gateway's row. These are the ports
# next to the hint, which are all that is needed if our own gateway is an easy one.
_PROBES_BEFORE = 70

# All probes of an attempt: four series of 253 a minute are more important than trying at random.
_PROBES_LIMIT = 600

# Seconds of the minute at which a series begins: (second, whether it travels all the way). The lead
# is longer than that of the quiet rung, since a series takes three seconds. Two full series: one
# packet of them is the right one, and may be lost.
_SERIES = ((0.0, True), (3.0, True), (20.0, False), (46.0, False))
_FIRST_SERIES = 46.0
# s from the beginning of the first series to when both full ones, 3 s each, have been made.
_MEETING = MINUTE - _FIRST_SERIES + 6.0
_LATE = 2.0  # s that a series may be behind its time; it is then still within the skew of clocks


class Sweep(NamedTuple):
    """A series of openings: when it begins, and whether it travels all the way."""

    at: float
    full: bool


class SweepPlan(Protocol):
    """Which series of openings come when, and whereto."""

    @property
    def port(self) -> int:
        """The port of the peer's that all of them go to."""

    @property
    def most(self) -> int:
        """How many series an attempt may have."""

    def next_sweep(self, after: float, *, first: bool) -> Sweep:
        """Return the first series not before `after`; `first`: none has been made yet."""

    def probes_held(self, sent: int) -> float | None:
        """Return until when probes have to wait after `sent` of them, or None if they don't."""


class BlindPlan:
    """Openings towards the agreed port, from the beginning on; a `SweepPlan`."""

    # They last for 170 of the 180 seconds. What is saved is better spent on probes.
    most = 6

    def __init__(self, port: int) -> None:
        self.port = port
        self._last = 0.0

    def next_sweep(self, after: float, *, first: bool) -> Sweep:
        """Return the series that refreshes the last one."""
        self._last = after if first else max(self._last + REFRESH, after)
        return Sweep(self._last, full=False)

    def probes_held(self, sent: int) -> float | None:
        """Probes need not wait for anything."""
        del sent
        return None


class MeetingPlan:
    """Openings towards the port at which two counting gateways meet; a `SweepPlan`.

    `hint` is a port that the peer's gateway used lately; `wall` is what has to be added to the
    owner's clock to get the wall clock's.
    """

    most = 13  # three minutes' worth, and the first one

    def __init__(self, hint: int, wall: float) -> None:
        self.port = wrap(hint + AHEAD)
        self._wall = wall
        self._met = self._last = 0.0

    def next_sweep(self, after: float, *, first: bool) -> Sweep:
        """Return the next series of the minute; the first one of all is made in a lead."""
        wall = after + self._wall
        minute = wall - second_of(wall) - self._wall
        if first:
            at = minute + _FIRST_SERIES
            if at < after:
                at += MINUTE
            self._last = at
            self._met = at + _MEETING
            return Sweep(at, full=False)
        for begin in (minute - MINUTE, minute, minute + MINUTE):
            for second, full in _SERIES:
                # One that is late because of the series before it is still made, once.
                if begin + second > self._last and begin + second > after - _LATE:
                    self._last = begin + second
                    return Sweep(max(self._last, after), full)
        raise AssertionError("unreachable: the next minute has a series")

    def probes_held(self, sent: int) -> float | None:
        """Only the likeliest ports are tried before both rows stand and have met."""
        if sent >= _PROBES_LIMIT:
            return inf
        return self._met if sent >= _PROBES_BEFORE else None
