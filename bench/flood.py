"""What floods of garbage leave of a transfer's speed.

    python -m bench.flood [--rounds N]

As much as it takes flows through one tunnel, while somebody sends its right end 50,000 datagrams a
second and more of each kind that costs work to tell from the tunnel's own: hellos, acks, bare
magics, what looks like QUIC, in the peer's name and from elsewhere. They arrive one by one, which
is the most work.

The exit status is 1 when a flood leaves less than half of the speed that there is before and after
it, or when so many a second could not be sent.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench._contestants import OURS
from bench._flood import FLOODS, count_floods, flood, flooded
from bench._stats import Verdict, median, print_table
from bench._streams import write_secret
from bench.datapath import End, wait_for

from nat_traverse.lab import Kind, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench._flood import Flood

# Datagrams a second: what is sent, and what has to arrive for the figure to mean anything.
_RATE = 62_000
_ENOUGH = 50_000
_LEAST_SPEED = 0.5  # share of the usual one

# s that are measured, and s that a change is given to show.
_MEASURED = 1.0
_SETTLE = 0.3

_LEFT_PORT, _RIGHT_PORT = 40000, 40001


class _Transfer(NamedTuple):
    """A tunnel through which as much flows as it takes, from left to right."""

    lab: Lab
    received: list[int]  # one number: bytes

    def measure(self) -> tuple[float, float]:
        """Return bytes a second of the transfer, and datagrams a second of floods."""
        time.sleep(_SETTLE)
        begun, received, floods = time.monotonic(), self.received[0], flooded(self.lab.right)
        time.sleep(_MEASURED)
        floods = flooded(self.lab.right) - floods
        seconds = time.monotonic() - begun
        return (self.received[0] - received) / seconds, floods / seconds


@contextmanager
def _transferring(lab: Lab, directory: Path) -> Iterator[_Transfer]:
    """Begin a transfer; what arrives is counted, and goes no further."""
    received = [0]
    ours = [OURS, "--json", "--secret-file", str(write_secret(directory))]
    ends = []
    for host, other, ports in (
        (lab.left, lab.right, (_LEFT_PORT, _RIGHT_PORT)),
        (lab.right, lab.left, (_RIGHT_PORT, _LEFT_PORT)),
    ):
        place = directory / host.name
        place.mkdir()
        ends.append(End(host, [*ours, f"{ports[0]}:{other.public.v4}:{ports[1]}"], place))
    left, right = ends
    null = os.open(os.devnull, os.O_WRONLY)

    def count() -> None:
        while size := os.splice(right.output, null, 1 << 20):
            received[0] += size

    counting = threading.Thread(target=count)
    with subprocess.Popen(["cat", "/dev/zero"], stdout=left.feed) as zeros:
        try:
            counting.start()
            for end in ends:
                wait_for(lambda end=end: end.said('"connected"'), "a connection", end)  # type: ignore[misc]
            yield _Transfer(lab, received)
        finally:
            zeros.kill()
            for end in ends:
                end.process.kill()
            counting.join()
            for end in ends:
                end.close()
            os.close(null)


def _measure(
    transfer: _Transfer, each: Flood, chance: random.Random, directory: Path
) -> tuple[float, float, float]:
    """Return the speed without and with a flood, in bytes a second, and the flood's rate."""
    lab = transfer.lab
    source = (str(lab.left.public.v4), _LEFT_PORT) if each.as_peer else ("192.0.2.200", 5555)
    to = (str(lab.right.public.v4), _RIGHT_PORT)
    before, _ = transfer.measure()
    trains = each.trains(chance)
    with flood(lab.internet[-1], trains, source, to, rate=_RATE, directory=directory):
        during, rate = transfer.measure()
    after, _ = transfer.measure()
    return (before + after) / 2, during, rate


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each kind of flood (3)")
    options = parser.parse_args()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rows, verdict = [], Verdict()
    with tempfile.TemporaryDirectory() as name, Lab(Kind.NONE, Kind.NONE, offload=False) as lab:
        directory = Path(name)
        with _transferring(lab, directory) as transfer:
            count_floods(lab.right)
            for each in FLOODS:
                seen = [_measure(transfer, each, chance, directory) for _ in range(options.rounds)]
                usual, during, rate = (median([row[at] for row in seen]) for at in range(3))
                share = median([row[1] / row[0] for row in seen])
                rows.append(
                    [
                        each.name,
                        f"{usual * 8e-6:.0f}",
                        f"{during * 8e-6:.0f}",
                        f"{rate:,.0f}",
                        f"{share:.2f}",
                    ]
                )
                verdict.at_least(f"share of the speed under {each.name}", share, _LEAST_SPEED)
                verdict.at_least(f"datagrams a second of {each.name}", rate, _ENOUGH)
    print_table(["flood", "Mbit/s without", "with", "datagrams/s", "share"], rows)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
