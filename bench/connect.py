"""How long connecting takes, from the start of the later side's process, next to Perl 0.7.

    python -m bench.connect [--runs N] [--left KIND] [--right KIND] [--skip-original]
                            [--against PROGRAM]

Both sides run with `--quit-after-connect` behind kernel NATs (nat_traverse.lab). The clock starts
just before the later side's process is made, so Python's own start counts, and stops when that side
says that it is connected. 0.7 is measured once, both sides started together: it sleeps for ten
seconds each time.

`--against` names another version of this program, the one before a change: the two take turns, and
the ratio of their medians is printed.

The exit status is 1 when the median is above the promise, or a tenth above the other version's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from bench._contestants import ORIGINAL, OURS
from bench._stats import Verdict, median, print_table

from nat_traverse.lab.ruleset import Kind
from nat_traverse.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.lab.topology import Host

_PROMISE = 0.5  # s, the median
_SLOWER = 1.1  # times the median of another version; less is the noise of twenty runs
# s that the earlier side is ahead: it is then up and has said hello, whatever the machine. The
# third digit is odd so that the start falls nowhere special in the earlier side's schedule.
_AHEAD = 1.537
_PATIENCE = 60.0  # s
_FIRST_PORT = 40000  # each run has a port pair of its own, since NATs remember for minutes


class Side:
    """One process, and the moment at which it said that it is connected."""

    def __init__(self, host: Host, argv: list[str], is_connected: Callable[[str], bool]) -> None:
        self._is_connected = is_connected
        self._lines: list[str] = []
        self.started = time.monotonic()
        self.connected: float | None = None
        self.process = host.popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()

    def seconds_to_connect(self) -> float:
        """Wait for the end of the process; raises `RuntimeError` if it did not connect."""
        try:
            status: int | None = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if self.connected is None or status != 0:
            raise RuntimeError(f"not connected, exit status {status}:\n{''.join(self._lines)}")
        return self.connected - self.started

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                text = line.decode(errors="replace")
                self._lines.append(text)
                if self.connected is None and self._is_connected(text):
                    self.connected = time.monotonic()


def connect(
    lab: Lab,
    command: list[str],
    port: int,
    is_connected: Callable[[str], bool],
    *,
    ahead: float,
) -> float:
    """Connect left with right, started `ahead` seconds later, and return the right's seconds."""
    to_left = f"{port + 1}:{lab.left.public.v4 or lab.left.public.v6}:{port}"
    to_right = f"{port}:{lab.right.public.v4 or lab.right.public.v6}:{port + 1}"
    left = Side(lab.left, [*command, to_right], is_connected)
    time.sleep(ahead)
    right = Side(lab.right, [*command, to_left], is_connected)
    try:
        return right.seconds_to_connect()
    finally:
        left.seconds_to_connect()


def reports_connected(line: str) -> bool:
    """Return whether `line` is our report, in JSON, that the path is there."""
    with suppress(ValueError):
        report = json.loads(line)
        return isinstance(report, dict) and report.get("event") == "connected"
    return False


def measure(lab: Lab, programs: list[str], runs: int) -> dict[str, list[float]]:
    """Connect so often with each of `programs`, in turn, and return the seconds of each."""
    seconds: dict[str, list[float]] = {program: [] for program in programs}
    port = _FIRST_PORT
    for _ in range(runs):
        for program in programs:
            command = [program, "--json", "--quit-after-connect"]
            seconds[program].append(connect(lab, command, port, reports_connected, ahead=_AHEAD))
            port += 2
    return seconds


def measure_original(lab: Lab) -> float:
    """Connect once with 0.7, and return the seconds."""
    command = [ORIGINAL, "--quit-after-connect"]
    port = _FIRST_PORT - 2
    return connect(lab, command, port, lambda line: "established" in line, ahead=0)


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="of ours (20)")
    parser.add_argument("--left", type=Kind, default=Kind.DROP, help="the left gateway (drop)")
    parser.add_argument("--right", type=Kind, default=Kind.DROP, help="the right gateway (drop)")
    parser.add_argument("--skip-original", action="store_true", help="measure ours only")
    parser.add_argument("--against", metavar="PROGRAM", help="another version of ours")
    options = parser.parse_args()
    # Whoever has installed a program has its byte code; to compile it anew is not what takes time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = [OURS, *([options.against] if options.against else [])]
    with Lab(options.left, options.right) as lab:
        seconds = measure(lab, programs, options.runs)
        original = None if options.skip_original else measure_original(lab)
    middle = median(seconds[OURS])
    rows = [
        [name, *(f"{value:.3f}" for value in (median(values), min(values), max(values)))]
        for name, values in zip(("ours", "other version"), seconds.values(), strict=False)
    ]
    if original is not None:
        rows.append(["Perl 0.7", f"{original:.3f}", "", ""])
        rows.append(["0.7 / ours", f"{original / middle:.1f}", "", ""])
    print_table(["seconds to connect", "median", "fastest", "slowest"], rows)
    verdict = Verdict()
    verdict.at_most("seconds to connect, median", middle, _PROMISE)
    if options.against:
        ratio = middle / median(seconds[options.against])
        verdict.at_most("times the other version's median", ratio, _SLOWER)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
