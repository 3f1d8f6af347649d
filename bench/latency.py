"""What a forwarded port (-L) adds to the round trip of small TCP messages.

    python -m bench.latency [--messages N]

One echo server, asked in turn directly and through the tunnel, over the same virtual cable: so the
difference of the medians is what both ends of the tunnel need to pass a message on, there and back.

The exit status is 1 when that is above the promise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench._contestants import OURS
from bench._paths import cable
from bench._stats import Verdict, median, print_table
from bench._streams import write_secret
from bench.datapath import End, wait_for

if TYPE_CHECKING:
    from bench._paths import Pair

_PROMISE = 1.0  # ms that the median may be longer

_SERVICE, _FORWARDED = 7007, 7008  # TCP ports: of the server, and of the forward
_LEFT_PORT, _RIGHT_PORT = 40000, 40001  # UDP ports of the tunnel
_PROGRAM = str(Path(__file__).with_name("_echo.py"))
_PATIENCE = 120.0  # s for all messages


def measure(pair: Pair, messages: int, directory: Path) -> list[list[float]]:
    """Return the round trips, direct and forwarded, in seconds."""
    left, right = str(pair.left.public.v4), str(pair.right.public.v4)
    secret = write_secret(directory)
    ours = [OURS, "--json", "--secret-file", str(secret)]
    with ExitStack() as stack:

        def start(name: str, argv: list[str], ready: str) -> None:
            place = directory / name
            place.mkdir()
            end = End(pair.left if name == "left" else pair.right, argv, place)
            stack.callback(end.close)
            started.append((end, ready))

        started: list[tuple[End, str]] = []
        start("server", [sys.executable, _PROGRAM, "serve", "0.0.0.0", str(_SERVICE)], "listening")  # noqa: S104 (in a namespace)
        start(
            "right",
            [*ours, "--expose", f"127.0.0.1:{_SERVICE}", f"{_RIGHT_PORT}:{left}:{_LEFT_PORT}"],
            '"connected"',
        )
        forward = f"{_FORWARDED}:127.0.0.1:{_SERVICE}"
        start("left", [*ours, "-L", forward, f"{_LEFT_PORT}:{right}:{_RIGHT_PORT}"], '"connected"')
        for end, ready in started:
            wait_for(lambda end=end, ready=ready: end.said(ready), ready, end)  # type: ignore[misc]
        wait_for(lambda: _listens(pair, _FORWARDED), "the forwarded port", started[-1][0])
        ways = [right, str(_SERVICE), "127.0.0.1", str(_FORWARDED)]
        asked = pair.left.run(
            [sys.executable, _PROGRAM, "ask", str(messages), *ways], timeout=_PATIENCE
        )
        if asked.returncode:
            raise RuntimeError(f"no round trip:\n{asked.stderr}\n{started[-1][0].errors()}")
    answer: list[list[float]] = json.loads(asked.stdout)
    return answer


def _listens(pair: Pair, port: int) -> bool:
    table = pair.left.run(["cat", "/proc/self/net/tcp"]).stdout
    return f":{port:04X} 00000000:0000 0A" in table  # 0A: LISTEN


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=2000, help="on each way (2,000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, cable() as (pair, _):
        direct, forwarded = measure(pair, options.messages, Path(directory))
    rows = []
    for name, seconds in (("direct", direct), ("through -L", forwarded)):
        tenths = statistics.quantiles(seconds, n=100)
        values = (median(seconds), tenths[89], tenths[98])
        rows.append([name, *(f"{1e3 * value:.3f}" for value in values)])
    print_table(["round trip in ms", "median", "90 %", "99 %"], rows)
    verdict = Verdict()
    added = 1e3 * (median(forwarded) - median(direct))
    verdict.at_most("ms that -L adds to the median", added, _PROMISE)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
