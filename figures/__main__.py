"""Draw all figures: `python -m figures`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from figures import exchange, matrix, search, times
from figures.runs import MINUTE_RUNS, PAIR_RUNS, SEARCH_RUNS, run_pairs, run_searches
from figures.story import find_story
from figures.style import save

_DIRECTORY = Path(__file__).parents[1] / "docs" / "figures"


def main() -> None:
    """Run the simulator, then write one SVG a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=_DIRECTORY, help="where to write the figures")
    parser.add_argument("--runs", type=int, default=PAIR_RUNS, help="runs a pair of gateways")
    parser.add_argument("--searches", type=int, default=SEARCH_RUNS, help="runs of the search")
    parser.add_argument("--minutes", type=int, default=MINUTE_RUNS, help="runs of quiet and hop")
    options = parser.parse_args()
    began = time.monotonic()
    searches = run_searches(options.searches)
    minutes = run_pairs([times.MINUTES], options.minutes)[times.MINUTES]
    outcomes = run_pairs(matrix.PAIRINGS, options.runs)
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = {
        "matrix": matrix.draw(outcomes),
        "times": times.draw(outcomes, minutes, searches),
        "search": search.draw(searches),
        "exchange": exchange.draw(find_story()),
    }
    for name, figure in drawn.items():
        save(figure, options.out / f"{name}.svg")
        print(f"{options.out / name}.svg")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
