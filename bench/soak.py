"""One tunnel for a long time, on a path that turns bad and good again.

    python -m bench.soak [--seconds S] [--gigabytes N] [--ours COMMAND]

Both ends are on this machine, and between them is a process (_meddler.py) that passes everything on
until its weather changes, every few seconds: clear, losses, reordering, both. A stream goes from a
pipe on the left to a pipe on the right; both sides keep a running checksum, and the resident memory
of both processes is looked at every second.

The exit status is 1 when a byte is missing, added or changed, when less than N gigabytes (10^9)
went through, when memory was not flat, or when either process failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bench._stats import Verdict, median, print_table
from bench._streams import OURS_TEMPLATE, write_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

# Shares of the datagrams, in both directions alike: lost, and out of order. The round trip is what
# the processes need: losses cost cubic a rate that falls with it, and 50 GB have to pass. What is
# soaked is the machinery, not the congestion control.
_CLEAR = (0.0, 0.0)
_WEATHERS = {
    "clear": _CLEAR,
    "0.1 % lost": (0.001, 0.0),
    "1 % reordered": (0.0, 0.01),
    "both": (0.001, 0.01),
}
# s of each weather: so that each of them comes several times even in a short run, and lasts for
# thousands of round trips.
_SPELL = 1.5
_SPELLS_LONG = 5.0
_SHORT = 60.0  # s: a run that is shorter has the short spells

# Bytes that the last third of a run may have above the first. Windows and socket buffers of some
# MiB fill and empty with the weather, and the allocator keeps what was needed once. A leak that
# matters is larger: a byte for every thousand carried are 50 MB in 50 GB.
_ALLOWANCE = 16 * 1024 * 1024

_BLOCK = 1024 * 1024  # bytes
_NUMBER = 8  # bytes of each block that tell its number, so that no two are alike

_MEDDLER = str(Path(__file__).with_name("_meddler.py"))
_PATIENCE = 60.0  # s for the connection, and for the end
_SAMPLE = 1.0  # s between looks at the memory
_GRACE = 5.0  # s after SIGTERM


class Feeder(threading.Thread):
    """Writes numbered blocks of random bytes until it is told to stop, and sums them up."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._stopped = False
        self.count = 0
        self.sum = 0

    def stop(self) -> None:
        """End after the block that is being written."""
        self._stopped = True

    def run(self) -> None:
        """Write, and close the pipe."""
        block = bytearray(os.urandom(_BLOCK))
        try:
            with suppress(BrokenPipeError):
                for number in itertools.count():
                    if self._stopped:
                        return
                    block[:_NUMBER] = number.to_bytes(_NUMBER, "big")
                    self._write(block)
        finally:
            os.close(self._descriptor)

    def _write(self, block: bytearray) -> None:
        self.sum = zlib.crc32(block, self.sum)
        left = memoryview(block)
        while left:
            written = os.write(self._descriptor, left)
            self.count += written
            left = left[written:]


class Taker(threading.Thread):
    """Reads to the end of a pipe, and sums up what comes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self.count = 0
        self.sum = 0

    def run(self) -> None:
        """Read, and close the pipe."""
        try:
            while data := os.read(self._descriptor, _BLOCK):
                self.sum = zlib.crc32(data, self.sum)
                self.count += len(data)
        finally:
            os.close(self._descriptor)


class Side:
    """One end of the tunnel: its process, its pipes, and its memory over time."""

    def __init__(self, name: str, argv: list[str], directory: Path) -> None:
        self.name = name
        self._errors = directory / f"{name}.stderr"
        self.memory: list[int] = []  # resident bytes, at each look
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def detach(self) -> tuple[int, int]:
        """Return the descriptors of its input and its output, which are the caller's now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        descriptors = os.dup(self.process.stdin.fileno()), os.dup(self.process.stdout.fileno())
        self.process.stdin.close()
        self.process.stdout.close()
        return descriptors

    def said(self) -> str:
        """Return all that it has printed on standard error."""
        return self._errors.read_text(errors="replace")

    def sample(self) -> None:
        """Note the resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                self.memory.append(int(line.split()[1]) * 1024)

    def growth(self) -> float:
        """Return by how many bytes the median of the last third is above that of the first."""
        third = max(1, len(self.memory) // 3)
        return median(self.memory[-third:]) - median(self.memory[:third])

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class Meddler:
    """The process in the middle, while it runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def set(self, weather: tuple[float, float]) -> str:
        """Change the weather, and return the counts of all time before, as JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("{} {}\n".format(*weather).encode())
        self._process.stdin.flush()
        answer = self._process.stdout.readline().decode().strip()
        if not answer:
            raise RuntimeError("the process in the middle is gone")
        return answer


@contextmanager
def meddler(ports: list[int]) -> Iterator[Meddler]:
    """Pass datagrams between two ends; the ports are those of `_meddler.py`."""
    command = [sys.executable, _MEDDLER, *map(str, ports)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # ^C is for us: it goes after both ends have gone
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the process in the middle did not start")
            yield Meddler(process)
        finally:
            process.stdin.close()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def free_ports(count: int) -> list[int]:
    """Return UDP ports that nobody has at the moment."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(count)
        ]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def start(ports: list[int], template: str, directory: Path, stack: ExitStack) -> tuple[Side, Side]:
    """Start both sides, and wait until they are connected; the ports are `_meddler.py`'s."""
    secret = write_secret(directory)

    def side(name: str, mine: int, yours: int) -> Side:
        values = {
            "secret": secret,
            "local_port": mine,
            "peer": "127.0.0.1",
            "peer_port": yours,
        }
        argv = [word.format(**values) for word in shlex.split(template)]
        started = Side(name, argv, directory)
        stack.callback(started.close)
        return started

    to_left, left_port, to_right, right_port = ports
    left = side("left", left_port, to_left)
    right = side("right", right_port, to_right)
    deadline = time.monotonic() + _PATIENCE
    while not all('"connected"' in end.said() for end in (left, right)):
        for end in (left, right):
            if end.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the {end.name} side did not connect:\n{end.said()}")
        time.sleep(0.05)
    return left, right


def soak(between: Meddler, sides: tuple[Side, Side], taker: Taker, seconds: float) -> None:
    """Let the weather change for so long, and tell what passed in each spell."""
    spell = _SPELL if seconds < _SHORT else _SPELLS_LONG
    begin = time.monotonic()
    next_sample = begin
    for name, weather in itertools.cycle(_WEATHERS.items()):
        between.set(weather)
        started, count = time.monotonic(), taker.count
        while time.monotonic() < min(started + spell, begin + seconds):
            for side in sides:
                if side.process.poll() is not None:
                    raise RuntimeError(f"the {side.name} side has ended:\n{side.said()}")
            if time.monotonic() >= next_sample:
                next_sample += _SAMPLE
                for side in sides:
                    side.sample()
            time.sleep(0.1)
        now = time.monotonic()
        rate = (taker.count - count) * 8 / (now - started)
        memory = ", ".join(f"{side.memory[-1] / 2**20:.1f}" for side in sides)
        print(
            f"{now - begin:6.1f} s  {name:13}  {rate / 1e6:7.0f} Mbit/s"
            f"  {taker.count / 1e9:6.2f} GB  {memory} MiB  {between.set(weather)}",
            flush=True,
        )
        if now - begin >= seconds:
            return


def finish(sides: tuple[Side, Side], taker: Taker) -> bool:
    """Wait until all has arrived and both have ended; returns whether both say it went well."""
    deadline = time.monotonic() + _PATIENCE
    taker.join(_PATIENCE)
    good = not taker.is_alive()
    for side in sides:
        try:
            status: int | str = side.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = "none: it did not end"
        if status != 0:
            good = False
            print(f"the {side.name} side's exit status is {status}; it said:\n{side.said()}")
    return good


def run(seconds: float, gigabytes: float, template: str) -> int:
    """Soak, print, and return the exit status."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = free_ports(4)
        between = stack.enter_context(meddler(ports))
        sides = left, right = start(ports, template, directory, stack)
        feed, nothing = left.detach()
        back, output = right.detach()
        # Nothing goes from right to left, and both ends of that are told so.
        os.close(back)
        stack.callback(os.close, nothing)
        feeder, taker = Feeder(feed), Taker(output)
        taker.start()
        feeder.start()
        soak(between, sides, taker, seconds)
        between.set(_CLEAR)
        feeder.stop()
        well = finish(sides, taker)
        for side in sides:
            side.close()
        feeder.join()
        taker.join()
        return judge(sides, feeder, taker, gigabytes, well=well)


def judge(
    sides: tuple[Side, Side], feeder: Feeder, taker: Taker, gigabytes: float, *, well: bool
) -> int:
    """Print what came out of it, and return the exit status."""
    print()
    print_table(
        ["resident, MiB", "first", "least", "most", "last"],
        [
            [
                side.name,
                *(
                    f"{value / 2**20:.1f}"
                    for value in (
                        side.memory[0],
                        min(side.memory),
                        max(side.memory),
                        side.memory[-1],
                    )
                ),
            ]
            for side in sides
        ],
    )
    verdict = Verdict()
    verdict.at_most("bytes missing or too many", abs(feeder.count - taker.count), 0)
    verdict.at_most("checksums that differ", int(feeder.sum != taker.sum), 0)
    verdict.at_most("sides that failed, or did not end", int(not well), 0)
    verdict.at_least("GB through the tunnel", taker.count / 1e9, gigabytes)
    for side in sides:
        grown = side.growth() / 2**20
        verdict.at_most(f"MiB that the {side.name} side has grown", grown, _ALLOWANCE / 2**20)
    return verdict.exit_code()


def main() -> int:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="to run (600)")
    parser.add_argument("--gigabytes", type=float, default=50.0, help="that must pass (50)")
    parser.add_argument("--ours", default=OURS_TEMPLATE, help="template of our command line")
    options = parser.parse_args()
    return run(options.seconds, options.gigabytes, options.ours)


if __name__ == "__main__":
    sys.exit(main())
