"""The encrypted tunnel on paths as they are in the world, next to kernel TCP with cubic and bbr.

    python -m bench.wan [--rounds N] [--seconds S] [--ours COMMAND] [--only NAME]...

Two hosts and the relay of relay.c between them: both the tunnel and TCP run over the very same
wire, which delays, limits, loses and reorders packets one by one. Its queue holds one round trip at
the full rate. Each transfer is a new connection, measured from its first byte for so many seconds,
slow start included. Rounds are interleaved; printed are medians in Mbit/s of what came out.

A row with many packets that the relay delivered late, or with any that never reached it, says more
about this machine than about the programs. Both are printed, and a promise counts as broken where
too many were late.

The exit status is 1 when a promise was not kept. There is none where packets are lost or reordered:
the tunnel's congestion control is cubic's, which takes every loss for a full queue.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench import _streams
from bench._paths import Weather, Wire, wire
from bench._stats import Verdict, median, print_table
from bench._streams import UnavailableError

_OURS, _CUBIC, _BBR = _NAMES = ("ours", "cubic", "bbr")

# Share of packets that the relay may deliver more than 1 ms late. On two processors that have
# nothing else to do it is less than one percent; above this the machine was measured, and not the
# programs.
_LATE = 0.05

_FIRST_PORT = 40000  # each transfer has a port pair of its own: nobody waits for a port


@dataclass(slots=True)
class Row:
    """One kind of path, and what was measured on it."""

    weather: Weather
    promise: float | None = None  # ours over cubic, at least
    rates: dict[str, list[float]] = field(default_factory=dict)
    delivered: int = 0
    late: int = 0

    @property
    def name(self) -> str:
        """What the path is like, in words."""
        weather = self.weather
        text = f"{weather.round_trip * 1e3:.0f} ms, {weather.rate / 1e6:.0f} Mbit/s"
        if weather.loss:
            text += f", {weather.loss * 100:g} % lost"
        if weather.reordering:
            text += f", {weather.reordering * 100:g} % reordered"
        return text

    @property
    def lateness(self) -> float:
        """The share of packets that the relay delivered late."""
        return self.late / max(1, self.delivered)

    def middle(self, name: str) -> float:
        """Return the median of a program, or NaN if it did not run."""
        return median(self.rates.get(name, []))


def _path(
    milliseconds: float, megabits: float, *, loss: float = 0.0, reordering: float = 0.0
) -> Weather:
    seconds = milliseconds / 1e3
    return Weather(seconds, megabits * 1e6, loss, reordering, queue=seconds)


def rows() -> list[Row]:
    """Return the paths to measure."""
    return [
        Row(_path(20, 500), promise=0.90),
        Row(_path(50, 1000), promise=0.75),
        Row(_path(50, 500, loss=0.0001)),
        Row(_path(50, 100, loss=0.001)),
        Row(_path(50, 100, loss=0.01)),
        Row(_path(50, 100, reordering=0.01)),
    ]


def measure(name: str, joined: Wire, port: int, seconds: float, template: str) -> float:
    """Run one program once, and return its bit/s."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if name == _OURS:
            stream = _streams.ours(joined, directory, port, template)
        else:
            stream = _streams.tcp(joined, directory, port, name)
        with stream as running:
            return _streams.window(running, seconds)


def main() -> int:
    """Measure all rows, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each program on each path (3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (10)")
    parser.add_argument("--ours", default=_streams.OURS_TEMPLATE, help="template of our command")
    parser.add_argument("--only", action="append", choices=_NAMES, help="leave out the others")
    options = parser.parse_args()
    names = list(options.only or _NAMES)
    measured = rows()
    port = _FIRST_PORT
    with wire(measured[0].weather) as joined:
        for row in measured:
            joined.set(row.weather)
            for _ in range(options.rounds):
                for name in tuple(names):
                    try:
                        rate = measure(name, joined, port, options.seconds, options.ours)
                    except UnavailableError as error:
                        print(f"{name} is not available: {error}", flush=True)
                        names.remove(name)
                        continue
                    port += 2
                    _note(row, joined, name, rate)
        print(f"packets lost between a host and the relay: {joined.dropped_by_hosts()}")
    return judge(measured)


def _note(row: Row, joined: Wire, name: str, rate: float) -> None:
    sums = joined.set(row.weather)
    row.rates.setdefault(name, []).append(rate)
    row.delivered += sums.delivered
    row.late += sums.late
    print(f"{row.name:34}  {name:5}  {rate / 1e6:7.1f} Mbit/s  {sums.words()}", flush=True)


def judge(measured: list[Row]) -> int:
    """Print medians and ratios, and return the exit status."""
    print("\nmedians, Mbit/s")
    print_table(
        ["round trip, rate, trouble", *_NAMES, "ours / cubic", "ours / bbr", "relay late"],
        [
            [
                row.name,
                *(f"{row.middle(name) / 1e6:.1f}" for name in _NAMES),
                f"{row.middle(_OURS) / row.middle(_CUBIC):.2f}",
                f"{row.middle(_OURS) / row.middle(_BBR):.2f}",
                f"{row.lateness:.1%}",
            ]
            for row in measured
        ],
    )
    verdict = Verdict()
    for row in measured:
        if row.promise is not None and _OURS in row.rates and _CUBIC in row.rates:
            ratio = row.middle(_OURS) / row.middle(_CUBIC)
            verdict.at_least(f"goodput over cubic's, {row.name}", ratio, row.promise)
            verdict.at_most(f"share that the relay was late with, {row.name}", row.lateness, _LATE)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
