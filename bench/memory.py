"""Memory of an idle tunnel, and of many tunnels in one process.

    python -m bench.memory [--tunnels N]

Printed is what is resident (VmRSS) on the left side, shared libraries included: of the interpreter
with the library alone, with one idle tunnel, and with many, each of which has carried a few bytes
before. Nothing is promised, so the exit status is 0 unless a tunnel could not be made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench._paths import cable
from bench._stats import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench._paths import Pair

    from nat_traverse.lab.topology import Host

_PROGRAM = str(Path(__file__).with_name("_many.py"))
_LEFT_PORT, _RIGHT_PORT = 30000, 31000  # the first of each side
_PATIENCE = 10.0  # s for the end of a process


@contextmanager
def _holder(host: Host, count: int, port: int, peer: str, peer_port: int) -> Iterator[list[str]]:
    """Start a process that holds so many tunnels; gives the lines that it will have printed."""
    argv = [sys.executable, _PROGRAM, str(count), str(port), peer, str(peer_port)]
    lines: list[str] = []
    process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield lines
            assert process.stdout is not None
            lines.extend(process.stdout.readline().decode() for _ in range(3))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(pair: Pair, count: int) -> dict[str, int]:
    """Return the left side's resident bytes: "loaded", "connected" and "idle"."""
    left, right = str(pair.left.public.v4), str(pair.right.public.v4)
    with (
        _holder(pair.left, count, _LEFT_PORT, right, _RIGHT_PORT) as lines,
        _holder(pair.right, count, _RIGHT_PORT, left, _LEFT_PORT),
    ):
        pass
    if not all(lines):
        raise RuntimeError(f"{count} tunnels could not be made")
    return {report["what"]: report["rss"] for report in map(json.loads, lines)}


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tunnels", type=int, default=200, help="in one process (200)")
    count = parser.parse_args().tunnels
    with cable() as (pair, _):
        one = measure(pair, 1)
        many = measure(pair, count)
    rows: list[list[str | int]] = [["the library alone", one["loaded"], ""]]
    rows += [["1 tunnel, idle", one["idle"], ""]]
    for what in ("connected", "idle"):
        # What is loaded with the first tunnel is not that of the others.
        each = (many[what] - one[what]) // max(1, count - 1)
        rows.append([f"{count} tunnels, {what}", many[what], f"{each / 2**10:.0f}"])
    print_table(
        ["", "MiB resident", "KiB per further tunnel"],
        [[str(name), f"{int(rss) / 2**20:.1f}", str(each)] for name, rss, each in rows],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
