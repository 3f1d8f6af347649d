"""The grid: every pair of gateway kinds, in many circumstances, in as many processes as there are.

A cell is an unordered pair of kinds, with or without poisoning, with or without loss: both sides
run the same machine, so which of the two kinds is on the left is one more circumstance, and drawn
from the seed like the start difference, the clocks, the latency and the second of the minute.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, NamedTuple

from sim import kinds
from sim.pool import in_parallel
from sim.run import Link, Run, Side, ladder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nat_traverse.punch.machine import DeadlinePassed
    from sim.nat import Behaviour

KINDS = tuple(kinds.GRID)
EASY = ("none", "eim", "adf", "apdf")  # those that keep ports
LATEST = 90.0  # s between the two starts, at most
LIMIT = 150.0  # s from the later start, after which a run has failed
SKEW = 10.0  # s between the two clocks, at most
LOSS = 0.1  # of the packets, each way

# How many ports of a counting gateway others may have used between the hint and the start.
_DRIFT = 50


class Cell(NamedTuple):
    """What stands in front of the two sides."""

    one: str
    other: str
    poison: bool
    lossy: bool
    hinted: bool = False  # each user knows a port that the other's gateway used lately

    def __str__(self) -> str:
        names = ("poison", "lossy", "hinted")
        extra = "".join(f"-{name}" for name in names if getattr(self, name))
        return f"{self.one}-{self.other}{extra}"

    @property
    def is_direct(self) -> bool:
        """Both keep ports, and nothing takes packets for its own."""
        return not self.poison and self.one in EASY and self.other in EASY

    @property
    def is_hard(self) -> bool:
        """Both change ports."""
        return self.one not in EASY and self.other not in EASY


class Outcome(NamedTuple):
    """One run. `waited` is in seconds from the later start; None: no path in time."""

    seed: int
    waited: float | None
    rung: str | None
    difference: float  # s between the starts
    most_sockets: int
    busiest: int  # unsolicited packets in the busiest second of either side


CELLS = tuple(
    Cell(one, other, poison, lossy)
    for one, other in combinations_with_replacement(KINDS, 2)
    for poison in (False, True)
    for lossy in (False, True)
)


def build(cell: Cell, seed: int, *, timeout: float | None = None) -> Run:
    """Return the run of this seed."""
    chance = random.Random(f"{cell} {seed}")
    # Half of all people start within seconds of each other; others after up to a minute and a half.
    difference = chance.choice((3.0, LATEST)) * chance.random()
    names = [cell.one, cell.other]
    chance.shuffle(names)
    gateways = [kinds.GRID[name](poison=cell.poison) for name in names]
    hints: list[tuple[int, ...]] = [(), ()]
    if cell.hinted:
        for side, chain in enumerate(gateways):
            gateways[side], hints[1 - side] = _counting(chain, chance)
    skew = chance.uniform(-SKEW, SKEW)
    late = chance.randrange(2)
    sides = [
        Side(
            gateways[side],
            starts=difference if side == late else 0.0,
            clock=skew if side else 0.0,
            factory=ladder(timeout, hints=hints[side]),
        )
        for side in (0, 1)
    ]
    link = Link(loss=LOSS if cell.lossy else 0.0, latency=chance.uniform(0.005, 0.1), jitter=0.01)
    return Run(seed, sides[0], sides[1], link)


def play(cell: Cell, seed: int) -> Outcome:
    """Run one seed to its end."""
    run = build(cell, seed)
    start = max(run.left.side.starts, run.right.side.starts)
    run.run(start + LIMIT)
    return Outcome(
        seed,
        run.waited,
        run.left.rung.value if run.left.rung else None,
        start,
        max(end.most_sockets for end in run.ends),
        max(end.busiest(unsolicited=True) for end in run.ends),
    )


def play_all(cells: Sequence[Cell], runs: int) -> dict[Cell, list[Outcome]]:
    """Play `runs` seeds of every cell, on all processors."""
    work = [(cell, seed) for cell in cells for seed in range(runs)]
    outcomes: dict[Cell, list[Outcome]] = {cell: [] for cell in cells}
    for (cell, _), outcome in zip(work, in_parallel(_play, work), strict=True):
        outcomes[cell].append(outcome)
    return outcomes


def _play(work: tuple[Cell, int]) -> Outcome:
    return play(*work)


def summary(cell: Cell, outcomes: Sequence[Outcome]) -> str:
    """Return one line about a cell."""
    times = sorted(each.waited for each in outcomes if each.waited is not None)
    failed = [each.seed for each in outcomes if each.waited is None]
    rungs = Counter(each.rung for each in outcomes if each.rung)
    middle = f"{times[len(times) // 2]:.2f} s, at most {times[-1]:.1f} s" if times else "never"
    return (
        f"{cell}: {len(times)} of {len(outcomes)} connected, median {middle},"
        f" {dict(rungs)}, failed seeds {failed[:10]}"
    )


def end_of(cell: Cell, seed: int, timeout: float) -> list[DeadlinePassed]:
    """Run until both sides give up, and return what they say."""
    run = build(cell, seed, timeout=timeout)
    run.run(timeout + LATEST)
    run.go_on(LATEST)
    return [end.failed[1] for end in run.ends if end.failed is not None]


def _counting(
    chain: Sequence[Behaviour], chance: random.Random
) -> tuple[tuple[Behaviour, ...], tuple[int, ...]]:
    """Return gateways that count from a known port, and a hint from a little earlier."""
    low, size = chain[-1].ports.low, chain[-1].ports.size
    start = low + chance.randrange(size)
    hint = low + (start - low - 1 - chance.randrange(_DRIFT)) % size
    return (*chain[:-1], replace(chain[-1], start=start)), (hint,)
