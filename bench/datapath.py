"""Goodput and processor time of the relay, next to Perl 0.7 and socat, in one run.

    python -m bench.datapath [--bytes N] [--rounds N] [--ours COMMAND]

Two hosts behind two kernel NATs and an Internet with an MTU of 1,500 between them: see
`nat_traverse.lab`, which needs root or unprivileged user namespaces. In each round each program
relays the same number of bytes from a pipe on the left to a pipe on the right. Printed are medians:

goodput     bytes that came out on the right, per second from the first byte fed to the last out
loss        of what was fed; a plain tunnel has no retransmission, and neither has 0.7
CPU s/GB    processor time of both ends with all their children, per 10^9 bytes received

The exit status is 1 when a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench._contestants import OURS_TEMPLATE, Contestant, contestants
from bench._stats import Verdict, median, print_table
from bench._traffic import Consumer, Producer

from nat_traverse.lab.ruleset import Kind
from nat_traverse.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nat_traverse.lab.topology import Host

# What the project promises of its data path.
_OVER_ORIGINAL = 1.5
_OVER_SOCAT = 3.0

_PATIENCE = 60.0  # s for anything to happen at all, on however slow a machine
_IDLE = 1.0  # s without a byte: a program that does not know the end has come to it
_POLL = 0.02  # s between looks
_FIRST_PORT = 40000  # each transfer has a port pair of its own, since NATs remember for minutes


@dataclass(frozen=True, slots=True)
class Result:
    """One transfer."""

    goodput: float  # bytes a second
    loss: float  # 0 to 1
    cpu: float  # seconds per 10^9 bytes received


class End:
    """One running end of a relay, with our ends of its pipes."""

    def __init__(self, host: Host, argv: list[str], directory: Path) -> None:
        self._errors = directory / f"{host.name}.stderr"
        self._report = directory / f"{host.name}.json"
        stdin, self.feed = os.pipe()
        self.output, stdout = os.pipe()
        meter = [sys.executable, str(Path(__file__).with_name("_meter.py")), str(self._report)]
        with self._errors.open("wb") as stderr:
            self.process = host.popen([*meter, *argv], stdin=stdin, stdout=stdout, stderr=stderr)
        os.close(stdin)
        os.close(stdout)

    def said(self, text: str) -> bool:
        """Return whether the program has printed `text` on its standard error."""
        return text in self.errors()

    def errors(self) -> str:
        """Return what the program has printed on its standard error."""
        return self._errors.read_text(errors="replace")

    def end_input(self) -> None:
        """Close the program's standard input."""
        if self.feed >= 0:
            os.close(self.feed)
            self.feed = -1

    def finish(self) -> float:
        """Wait for the program to end and return its processor time in seconds."""
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(_PATIENCE)
        return float(json.loads(self._report.read_text())["cpu"])

    def status(self) -> int:
        """Return the exit status of the program, which has ended."""
        return int(json.loads(self._report.read_text())["status"])

    def close(self) -> None:
        """Leave nothing behind, however it went."""
        self.end_input()
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_IDLE)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.output)


def transfer(lab: Lab, contestant: Contestant, size: int, port: int) -> Result:
    """Relay `size` bytes from left to right; `port` and the next one are used."""
    with ends(lab, contestant, port) as (left, right):
        consumer = Consumer(right.output)
        consumer.start()
        make_ready(contestant, left, right, consumer)
        before = consumer.count
        producer = Producer(left.feed, size)
        producer.start()
        wait_for(lambda: not producer.is_alive(), "the sender to take its input", left)
        if not contestant.knows_the_end:
            wait_for(lambda: time.monotonic() - consumer.last > _IDLE, "the rest", right)
        left.end_input()
        right.end_input()
        cpu = left.finish() + right.finish()
        consumer.join()
        received = consumer.count - before
        seconds = consumer.last - producer.started
    return Result(received / seconds, 1 - received / size, cpu / (received / 1e9))


@contextmanager
def ends(lab: Lab, contestant: Contestant, port: int) -> Iterator[tuple[End, End]]:
    """Start both ends of a relay, and close them."""
    assert lab.left.public.v4 is not None
    assert lab.right.public.v4 is not None
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        argv = contestant.argv(local_port=port, peer=lab.right.public.v4, peer_port=port + 1)
        left = End(lab.left, argv, directory)
        stack.callback(left.close)
        argv = contestant.argv(local_port=port + 1, peer=lab.left.public.v4, peer_port=port)
        right = End(lab.right, argv, directory)
        stack.callback(right.close)
        yield left, right


def make_ready(contestant: Contestant, left: End, right: End, consumer: Consumer) -> None:
    """Wait until bytes from the left come out on the right."""
    if contestant.ready:
        wait_for(lambda: left.said(contestant.ready), "the connection", left)
        wait_for(lambda: right.said(contestant.ready), "the connection", right)
        return

    def poke() -> bool:
        os.write(right.feed, b".")
        os.write(left.feed, b".")
        return consumer.count > 0

    wait_for(poke, "a first byte", left)
    settled = consumer.count
    wait_for(lambda: time.monotonic() - consumer.last > _IDLE, f"byte {settled}", right)


def wait_for(condition: Callable[[], bool], what: str, end: End) -> None:
    """Wait until `condition` is true. Raises `RuntimeError` if `end` is gone or it takes long."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if end.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what}; the program said:\n{end.errors()}")
        time.sleep(_POLL)


def main() -> int:
    """Run all rounds, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes", type=float, default=1e9, help="per transfer (10^9)")
    parser.add_argument("--rounds", type=int, default=3, help="of each program (3)")
    parser.add_argument("--ours", default=OURS_TEMPLATE, help="template of our command line")
    options = parser.parse_args()
    programs = contestants(options.ours)
    results: dict[str, list[Result]] = {program.name: [] for program in programs}
    port = _FIRST_PORT
    with Lab(Kind.DROP, Kind.DROP, hops=1) as lab:
        for number in range(1, options.rounds + 1):
            for program in programs:
                result = transfer(lab, program, int(options.bytes), port)
                port += 2
                results[program.name].append(result)
                print(
                    f"round {number}  {program.name:9}"
                    f"  {result.goodput * 8 / 1e9:6.2f} Gbit/s  loss {result.loss:7.3%}"
                    f"  {result.cpu:5.2f} CPU s/GB",
                    flush=True,
                )
    return judge(results)


def judge(results: dict[str, list[Result]]) -> int:
    """Print medians and ratios, and return the exit status."""
    goodput = {name: median([run.goodput for run in runs]) for name, runs in results.items()}
    loss = {name: median([run.loss for run in runs]) for name, runs in results.items()}
    cpu = {name: median([run.cpu for run in runs]) for name, runs in results.items()}
    print("\nmedians; pipe to UDP to pipe, two kernel NATs, MTU 1,500")
    print_table(
        ["", "Gbit/s", "loss", "CPU s/GB", "ours / it", "its CPU / ours"],
        [
            [
                name,
                f"{goodput[name] * 8 / 1e9:.2f}",
                f"{loss[name]:.3%}",
                f"{cpu[name]:.2f}",
                f"{goodput['ours'] / goodput[name]:.2f}",
                f"{cpu[name] / cpu['ours']:.2f}",
            ]
            for name in results
        ],
    )
    verdict = Verdict()
    verdict.at_least("goodput over Perl 0.7", goodput["ours"] / goodput["Perl 0.7"], _OVER_ORIGINAL)
    verdict.at_least("goodput over socat", goodput["ours"] / goodput["socat"], _OVER_SOCAT)
    verdict.at_most("loss in %, next to Perl 0.7's", 100 * loss["ours"], 100 * loss["Perl 0.7"])
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
