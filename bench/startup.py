"""How long `nat-traverse --version` takes, next to a bare `python -c pass`, interleaved.

    python -m bench.startup [--runs N]

The exit status is 1 when the ratio of the medians is above the promise.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench._contestants import OURS
from bench._stats import Verdict, median, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROMISE = 2.5


def duration(argv: Sequence[str]) -> float:
    """Run `argv` and return how long it took, in seconds. Raises if it fails."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=31, help="of each command (31)")
    runs = parser.parse_args().runs
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "nat-traverse --version": [OURS, "--version"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for argv in commands.values():
        duration(argv)  # once for the page cache and the compiled files
    for _ in range(runs):
        for name, argv in commands.items():
            times[name].append(duration(argv))
    medians = {name: median(values) for name, values in times.items()}
    print_table(
        ["", "median ms", "fastest ms"],
        [
            [name, f"{1000 * medians[name]:.1f}", f"{1000 * min(values):.1f}"]
            for name, values in times.items()
        ],
    )
    bare, ours = medians.values()
    verdict = Verdict()
    verdict.at_most("nat-traverse --version over python -c pass", ours / bare, _PROMISE)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
