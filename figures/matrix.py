"""Figure: which pairs of gateways connect, and how long that takes."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from matplotlib.patches import Patch, Rectangle

from figures.runs import APART, KINDS, LOSS, PAIRS, PATIENCE, Pairing, share
from figures.style import GREY, caption, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from figures.runs import Outcome

PAIRINGS = tuple(Pairing(*pair, poison) for poison in (False, True) for pair in PAIRS)

_NAMES = {
    "none": "no NAT",
    "eim": "open to all",
    "adf": "by address",
    "apdf": "by endpoint",
    "sequential": "counts ports",
    "random": "random ports",
}

# (seconds, colour): a median below that. One hue, lighter is faster; dark text is readable on all.
_SHADES = ((1.0, "#e3eef8"), (10.0, "#b5d4ec"), (30.0, "#7db8de"), (PATIENCE, "#4a98cb"))
_NEVER = "#f2f2f2"


def draw(outcomes: Mapping[Pairing, Sequence[Outcome]]) -> Figure:
    """Draw two matrices, without and with poisoning."""
    figure = new_figure(5.4)
    titles = ("gateways drop uninvited packets", "gateways take uninvited packets for their own")
    for poison, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        axes.set_title(titles[poison])
        _draw_grid(axes)
        for pair in PAIRS:
            _draw_cell(axes, pair, outcomes[Pairing(*pair, bool(poison))])
    shades = [Patch(facecolor=colour, label=f"under {limit:.0f} s") for limit, colour in _SHADES]
    never = Patch(facecolor=_NEVER, hatch="///", edgecolor=GREY, linewidth=0, label="not found")
    figure.legend(
        handles=[*shades, never], loc="outside upper center", ncols=5, title="median of a cell"
    )
    runs = len(next(iter(outcomes.values())))
    caption(
        figure,
        f"Simulator, {runs} runs a cell, {LOSS:.0%} loss, starts 0 to {APART:.0f} s apart. Share"
        f" that connects within {PATIENCE:.0f} s of the later start, and its median.\n"
        "* Both sides have a hint: a port that the peer's gateway used lately.",
    )
    return figure


def _draw_grid(axes: Axes) -> None:
    size = len(KINDS)
    axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    names = [_NAMES[kind] for kind in KINDS]
    places = [index + 0.5 for index in range(size)]
    axes.set_xticks(places, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: Axes, pair: tuple[str, str], outcomes: Sequence[Outcome]) -> None:
    """Draw one cell; the other half of the matrix would say the same again."""
    column, row = (KINDS.index(kind) for kind in pair)
    times = [outcome.waited for outcome in outcomes if outcome.waited is not None]
    found = share(outcomes)
    text, colour, hatch = f"{found:.0%}", _NEVER, "///"
    if times:
        middle = median(times)
        colour = next(shade for limit, shade in _SHADES if middle <= limit)
        text += f"\n{middle:.1f} s" if middle < 10 else f"\n{middle:.0f} s"
        hatch = ""
    if pair == ("sequential", "sequential"):
        text += " *"
    axes.add_patch(
        Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", hatch=hatch, lw=1.5)
    )
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5)
