"""Figure: a poisoned exchange and how it heals, as a sequence diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.story import LATER, LEFT, LEFT_GATEWAY, RIGHT, RIGHT_GATEWAY
from figures.style import BLACK, BLUE, GREY, ORANGE, caption, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from figures.story import Step, Story

_NAMES = {
    LEFT: "left",
    LEFT_GATEWAY: "left's gateway",
    RIGHT_GATEWAY: "right's gateway",
    RIGHT: "right",
}
# Of the two gateways, those of the same side are near: the Internet is between them.
_PLACES = {LEFT: 0.0, LEFT_GATEWAY: 0.75, RIGHT_GATEWAY: 2.25, RIGHT: 3.0}
_TIMES = -0.5  # where the times stand


def draw(story: Story) -> Figure:
    """Draw one row a step; the times are not to scale."""
    figure = new_figure(0.4 * len(story.steps) + 1.0)
    axes = figure.subplots()
    axes.set_axis_off()
    last = len(story.steps)
    axes.set(xlim=(_TIMES - 0.1, 3.5), ylim=(last - 0.3, -1.1))
    for line, x in _PLACES.items():
        axes.plot([x, x], [-0.5, last - 0.4], color=GREY, lw=0.8)
        axes.text(x, -0.8, _NAMES[line], ha="center", va="center", fontweight="bold")
    for row, step in enumerate(story.steps):
        axes.text(_TIMES, row, f"{step.at:.2f} s", ha="left", va="center", fontsize=7.5, color=GREY)
        if step.origin == step.target:
            _draw_word(axes, row, step)
        else:
            _draw_packet(axes, row, step)
    caption(
        figure,
        "Simulator, one recorded run: two gateways that keep ports and take uninvited packets for"
        f" their own;\nright starts {LATER:.0f} s after left. Only the packets that matter are"
        " shown; seconds since left's start.",
    )
    return figure


def _draw_packet(axes: Axes, row: int, step: Step) -> None:
    begin, end = _PLACES[step.origin], _PLACES[step.target]
    colour = ORANGE if step.taken or "ICMP" in step.text else BLUE
    axes.annotate(
        "", (end, row), (begin, row), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2}
    )
    if step.taken:
        axes.plot([end], [row], "X", color=ORANGE, ms=8)
    _write(axes, row, step.text, (begin + end) / 2, above=True)


def _draw_word(axes: Axes, row: int, step: Step) -> None:
    x = _PLACES[step.origin]
    axes.plot([x], [row], "o", color=BLACK, ms=4)
    _write(axes, row, step.text, x, above=False)


def _write(axes: Axes, row: int, text: str, x: float, *, above: bool) -> None:
    """Write on a white ground, since lifelines cross; beside the dot, inwards, if not above."""
    middle = (_PLACES[LEFT] + _PLACES[RIGHT]) / 2
    side = "center" if above else "left" if x < middle else "right"
    # Near the edge of the figure a text in the middle of a short arrow would leave it.
    if above and not _PLACES[LEFT_GATEWAY] < x < _PLACES[RIGHT_GATEWAY]:
        side = "left" if x < middle else "right"
        x = _PLACES[LEFT] if x < middle else _PLACES[RIGHT]
    shift = {"left": 0.06, "right": -0.06, "center": 0.0}[side]
    axes.text(
        x + shift,
        row - (0.32 if above else 0.0),
        text,
        ha=side,
        va="center",
        fontsize=7.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )
