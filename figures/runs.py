"""The simulated runs that the figures show, each a function of its seed; all in processes."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.punch.machine import PathValidated
from nat_traverse.punch.settings import Hard
from sim import kinds
from sim.nat import ALL_PORTS, Allocation
from sim.pool import in_parallel
from sim.run import Link, Run, Side, ladder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nat_traverse.model import Rung
    from sim.run import Factory

KINDS = tuple(kinds.GRID)
PAIRS = tuple(combinations_with_replacement(KINDS, 2))

# Of each pair of gateways, with and without poisoning. All the runs together keep two processors
# busy for two minutes; more would say the same with another digit.
PAIR_RUNS = 16
SEARCH_RUNS = 1000  # of the spray alone: a 99 % band of four points at most
MINUTE_RUNS = 200  # of the rungs that keep to the wall clock, alone

PATIENCE = 150.0  # s after the later start, within which a run counts as connected
APART = 90.0  # s between the two starts, at most
LOSS = 0.1  # of the packets, each way
# s that a clock may be wrong: two that are wrong in opposite directions differ by the ten seconds
# that the rungs on the wall clock allow for.
CLOCK = 5.0

# A hint is what a user read off some minutes ago: the gateway has used so many ports since, at
# most.
_HINT_AGE = 50

_PIECE = 4  # runs handed out at once: they differ much in length

# s of the search for one run: 2,500 probes go out in that time, and one in 10,000 runs needs more.
_SEARCH_LASTS = 35.0


class Pairing(NamedTuple):
    """Two gateways, by name. `hard` is the option of that name."""

    first: str
    second: str
    poison: bool
    hard: Hard = Hard.AUTO


class Outcome(NamedTuple):
    """What became of one run."""

    waited: float | None  # s from the later start until both sides are connected; None: they aren't
    rung: Rung | None  # that found the path, as the side says which started later
    early: Rung | None  # the same as the other side says: it may have become quiet meanwhile


class Search(NamedTuple):
    """What the search for one gateway's port took."""

    probes: int | None  # the one of this number was the first to be answered
    waited: float | None  # s from the start until both sides are connected


def run_pairs(pairings: Iterable[Pairing], runs: int) -> dict[Pairing, list[Outcome]]:
    """Run each pairing so often."""
    wanted = [(pairing, number, runs) for pairing in pairings for number in range(runs)]
    outcomes = defaultdict(list)
    played = in_parallel(_run_pair, wanted, piece=_PIECE)
    for (pairing, _, _), outcome in zip(wanted, played, strict=True):
        outcomes[pairing].append(outcome)
    return dict(outcomes)


def run_searches(runs: int) -> list[Search]:
    """Search so often."""
    return in_parallel(_run_search, range(runs), piece=_PIECE)


def share(outcomes: Sequence[Outcome]) -> float:
    """Return which share of the runs connected."""
    return sum(outcome.waited is not None for outcome in outcomes) / len(outcomes)


def _run_pair(wanted: tuple[Pairing, int, int]) -> Outcome:
    pairing, number, runs = wanted
    rng = random.Random(f"{pairing} {number}")
    # The differences are spread evenly, so that a few runs are as good as many drawn by chance.
    apart = (number + rng.random()) / runs * APART
    ports = rng.randrange(ALL_PORTS.size), rng.randrange(ALL_PORTS.size)
    hints = tuple(_hint(port - rng.randrange(1, _HINT_AGE)) for port in ports)
    hinted = pairing.first == pairing.second == "sequential"
    sides: list[Side] = []
    for own, name in enumerate((pairing.first, pairing.second)):
        gateways = tuple(
            replace(each, start=ALL_PORTS.low + ports[own])
            if each.allocation is Allocation.SEQUENTIAL
            else each
            for each in kinds.GRID[name](poison=pairing.poison)
        )
        known = (hints[1 - own],) if hinted else ()
        factory: Factory = ladder(None, hints=known, hard=pairing.hard)
        sides.append(
            Side(
                gateways,
                # Each kind is the early one in half of the runs.
                starts=apart if (number + own) % 2 else 0.0,
                clock=rng.uniform(-CLOCK, CLOCK),
                factory=factory,
            )
        )
    left, right = sides
    run = Run(rng.randrange(2**32), left, right, Link(loss=LOSS))
    if not run.run(apart + PATIENCE):
        return Outcome(None, None, None)
    early, late = sorted(run.ends, key=lambda end: end.side.starts)
    return Outcome(run.waited, late.rung, early.rung)


def _hint(port: int) -> int:
    return ALL_PORTS.low + port % ALL_PORTS.size


def _run_search(seed: int) -> Search:
    """Search for the port of a random gateway from behind one that keeps its ports.

    Both sides start at once and nothing is lost: what is left to chance is what the formula is
    about. There is no budget, or the slow part of the search would take minutes.
    """
    factory = ladder(None, hard=Hard.ALWAYS)
    run = Run(
        seed,
        Side(kinds.apdf(), factory=factory),
        Side(kinds.random(), factory=factory),
        record=True,
    )
    if not run.run(_SEARCH_LASTS):
        return Search(None, None)
    found = run.left.event(PathValidated)
    assert found is not None
    assert isinstance(found[1], PathValidated)
    # The agreed port is one of those that were tried: chance may have given it to an opening.
    tried = dict.fromkeys(
        send.path.remote.port
        for _, send in run.left.records
        if send.path.socket == 0 and send.ttl is None
    )
    return Search(list(tried).index(found[1].path.remote.port) + 1, run.waited)
