"""Figure: whether the spray finds a port as soon as the theory says."""

from __future__ import annotations

from itertools import accumulate
from math import sqrt
from typing import TYPE_CHECKING

from figures.style import BLUE, GREY, ORANGE, caption, new_figure
from nat_traverse.punch.ports import PORTS
from nat_traverse.punch.rung import HOP_SOCKETS
from nat_traverse.punch.spray import MAX_SOCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from figures.runs import Search

# Each socket but those of the hop rung has a mapping that lets the prober in: the agreed one, too.
OPENINGS = MAX_SOCKETS - HOP_SOCKETS

_PROBES = 2200  # as far as the axis goes
_POINTS = (100, 300, 1000, 2000)
_WIDE = 2.576  # standard deviations on either side of 99 % of a normal distribution


def formula(probes: int, openings: int = OPENINGS) -> list[float]:
    """Return the chance of a hit among n distinct probes, for n from 0 to `probes`.

    1 - C(N - s, n) / C(N, n), where the quotient is a product of n factors.
    """
    factors = ((PORTS - openings - n) / (PORTS - n) for n in range(probes))
    return [1 - missed for missed in accumulate(factors, float.__mul__, initial=1.0)]


def measured(searches: Sequence[Search], probes: int) -> float:
    """Return the share of the searches that were over after so many probes."""
    return sum(each.probes is not None and each.probes <= probes for each in searches) / len(
        searches
    )


def band(chance: float, runs: int) -> float:
    """Return how far 99 % of measurements of so many runs are from `chance`, at most."""
    return _WIDE * sqrt(chance * (1 - chance) / runs)


def draw(searches: Sequence[Search]) -> Figure:
    """Draw theory and measurement on top of each other."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    runs = len(searches)
    # A curve of every tenth point looks the same, and is a tenth of the size.
    places = range(0, _PROBES + 1, 10)
    curve = formula(_PROBES)
    theory = [curve[n] for n in places]
    low = [max(chance - band(chance, runs), 0) for chance in theory]
    high = [min(chance + band(chance, runs), 1) for chance in theory]
    axes.fill_between(places, low, high, color=BLUE, alpha=0.2, lw=0, label="99 % of measurements")
    axes.plot(places, theory, color=BLUE, label="1 - C(N - s, n) / C(N, n)")
    axes.plot(
        places,
        [measured(searches, n) for n in places],
        color=ORANGE,
        ls="--",
        label=f"measured, {runs:,} runs",
    )
    for n in _POINTS:
        share = measured(searches, n)
        axes.plot([n], [share], "o", color=ORANGE, ms=4)
        axes.annotate(
            f"n = {n:,}: {share:.1%}\n(formula {curve[n]:.1%})",
            (n, share),
            xytext=(6, -8),
            textcoords="offset points",
            va="top",
            fontsize=7.5,
            color=GREY,
        )
    axes.set(
        xlim=(0, _PROBES + 250), ylim=(0, 1.03), xlabel="probes n", ylabel="share that has a path"
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="center right")
    caption(
        figure,
        "Simulator: kept ports search random ports, started together, no loss."
        f" N = {PORTS:,} ports, s = {OPENINGS} openings, no port probed twice.",
    )
    return figure
