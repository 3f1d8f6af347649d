"""Figure: how long each rung of the ladder takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.runs import APART, LOSS, PATIENCE, Pairing
from figures.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, caption, new_figure
from nat_traverse.model import Rung
from nat_traverse.punch.settings import Hard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from figures.runs import Outcome, Search

# Two gateways that take uninvited packets, and no search that would mostly be faster: what is left
# for them are the rungs on the wall clock.
MINUTES = Pairing("apdf", "apdf", poison=True, hard=Hard.NEVER)

_STYLES = {
    Rung.DIRECT: (BLUE, "-"),
    Rung.SPRAY: (ORANGE, "--"),
    Rung.PREDICT: (PURPLE, ":"),
    Rung.HOP: (GREEN, "-"),
}

_FEWEST = 10  # runs, for a curve: fewer are no distribution
_DASHED = (0, (1, 1))


def draw(
    outcomes: Mapping[Pairing, Sequence[Outcome]],
    minutes: Sequence[Outcome],
    searches: Sequence[Search],
) -> Figure:
    """Draw the share that is connected by a time, one curve a rung."""
    figure = new_figure(4.2)
    axes = figure.subplots()
    for rung, (colour, line) in _STYLES.items():
        runs = minutes if rung is Rung.HOP else [run for each in outcomes.values() for run in each]
        times = [run.waited for run in runs if run.rung is rung and run.waited is not None]
        if len(times) >= _FEWEST:
            axes.ecdf(times, color=colour, ls=line, label=f"{rung.value} ({len(times):,} runs)")
    quiet = [
        run.waited
        for run in minutes
        if run.waited is not None and (run.rung, run.early) == (Rung.DIRECT, Rung.QUIET)
    ]
    axes.ecdf(quiet, color=BLACK, ls="-.", label=f"quiet, then direct ({len(quiet):,})")
    together = [search.waited for search in searches if search.waited is not None]
    label = f"spray, started together ({len(together):,})"
    axes.ecdf(together, color=ORANGE, ls=_DASHED, label=label)
    axes.set(
        xscale="log",
        xlim=(0.1, PATIENCE),
        xlabel="seconds from the later start until both sides are connected",
        ylabel="share of the rung's runs",
    )
    ticks = (0.1, 0.3, 1, 3, 10, 30, 100)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3)
    caption(
        figure,
        f"Simulator, all pairs of gateways, {LOSS:.0%} loss, starts 0 to {APART:.0f} s apart; a run"
        " counts for the rung that the later side names.\nhop and quiet: two gateways that keep"
        " ports and take uninvited packets, --hard never; quiet: the early side has fallen quiet.\n"
        "Started together: kept ports and random ports, no loss.",
    )
    return figure
