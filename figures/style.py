"""How all figures look, and how they are written: the same bytes each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

# Okabe and Ito's colours, which those who can't tell red from green can tell apart.
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#009e73"
PURPLE = "#aa4499"
BLACK = "#000000"
GREY = "#767676"  # the lightest that is readable on white

WIDTH = 8.0  # inches; a page of the documentation is about as wide


def new_figure(height: float) -> Figure:
    """Return an empty figure, `height` inches high."""
    # Text stays text: small, and searchable. The names of the parts would be drawn by lot.
    mpl.rc("svg", fonttype="none", hashsalt="nat-traverse")
    mpl.rc("font", **{"family": "sans-serif", "sans-serif": ["DejaVu Sans", "Verdana"], "size": 9})
    mpl.rc("axes", titlesize=9)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("legend", frameon=False, fontsize=8)
    # A page in dark colours shows the figure as a white sheet, and not black lines on black.
    mpl.rc("savefig", facecolor="white")
    return Figure((WIDTH, height), layout="constrained")


def caption(figure: Figure, text: str) -> None:
    """Say under the figure how its numbers were made."""
    figure.supxlabel(text, fontsize=7.5, color=GREY)


def save(figure: Figure, path: Path) -> None:
    """Write an SVG without the date and the version of the program that drew it."""
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
