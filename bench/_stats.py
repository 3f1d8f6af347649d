"""Medians, tables and verdicts: everything is printed next to a peer that ran in the same run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """Return the median, or NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), flush=True)


@dataclass(slots=True)
class Verdict:
    """Collects what was promised and what was measured."""

    broken: list[str] = field(default_factory=list)

    def at_least(self, what: str, value: float, limit: float) -> None:
        """Note and print that `value` has to reach `limit`; NaN does not."""
        self._note(f"{what}: {value:.2f}, promised at least {limit:.2f}", kept=value >= limit)

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Note and print that `value` must not pass `limit`; NaN does."""
        self._note(f"{what}: {value:.2f}, promised at most {limit:.2f}", kept=value <= limit)

    def exit_code(self) -> int:
        """Return 0 if all promises were kept, else 1."""
        return 1 if self.broken else 0

    def _note(self, text: str, *, kept: bool) -> None:
        print(f"{'ok    ' if kept else 'BROKEN'}  {text}", flush=True)
        if not kept:
            self.broken.append(text)
