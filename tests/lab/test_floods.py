"""Floods at the encrypted tunnel: wrong guesses while it waits, garbage while it carries data."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench._flood import FLOODS, count_floods, flood, flooded

from nat_traverse.api import MOST_FAILURES
from nat_traverse.lab import Kind, Lab
from nat_traverse.tunnel.refusals import EXIT_NOT_PROVEN
from support.lab import eventually
from support.programs import Program, ours
from support.sides import LEFT_PORT, RIGHT_PORT, address

if TYPE_CHECKING:
    from collections.abc import Iterator

GUESSES = 200

# Makes so many attempts at the same time, each with a guess of its own and from a port of its own,
# the first one from the agreed port. Prints a line when all have begun, and one for each that was
# found wrong; stops at nothing else.
GUESSER = """\
import asyncio, sys
from nat_traverse.api import Rejected, Settings, reach
from nat_traverse.link.establish import Purpose
from nat_traverse.punch.settings import Hard
from nat_traverse.session import Opened, PunchSettings
from nat_traverse.tunnel.proof import Means
from nat_traverse.wire.hello import Mode

own_port, peer, port, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
begun = 0

def observe(event):
    global begun
    if isinstance(event, Opened):
        begun += 1
        if begun == count:
            print("begun", flush=True)
    elif isinstance(event, Rejected):
        print("rejected", flush=True)
        raise asyncio.CancelledError  # a guess is a guess: no second attempt with it

async def guess(number):
    punch = PunchSettings(
        own_port if number == 0 else 0, peer, port, mode=Mode.TUNNEL, legacy=False, hard=Hard.NEVER
    )
    await reach(Settings(punch, Means(b"guess %d" % number), Purpose.STREAM), observe)

async def main():
    await asyncio.gather(*map(guess, range(count)), return_exceptions=True)

asyncio.run(main())
"""

# Bytes that three evaluated guesses may leave behind, after two with which all code was loaded and
# all buffers made. Nothing should, but an allocator keeps some; windows would be 64 MiB.
MEMORY_OF_GUESSES = 4 * 1024 * 1024

# Datagrams a second that are sent. How fast the transfer then is tells `python -m bench.flood`.
RATE = 60_000
# s that each kind of flood lasts.
LASTS = 0.6

CREDIT = 16 * 1024 * 1024  # bytes of a stream that may be under way


def memory_of(program: Program) -> int:
    """Return the resident memory of a process in bytes, 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{program.process.pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def test_two_hundred_wrong_guesses(tmp_path: Path) -> None:
    """At most five of them are evaluated, nothing is kept of them, and the user learns why."""
    mark = tmp_path / "mark"
    script = (sys.executable, "-c", GUESSER)
    with Lab(Kind.NONE, Kind.NONE) as lab:
        targets = map(str, (LEFT_PORT, address(lab.right), RIGHT_PORT, GUESSES))
        with Program([*script, *targets], lab.left) as guesser:
            guesser.prints(len("begun\n"))
            with ours(
                "--json",
                "--timeout",
                "60",
                "--cmd",
                f"touch {mark}",
                f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}",
                node=lab.right,
                env={"NAT_TRAVERSE_SECRET": "the right one"},
            ) as waiting:
                waiting.event("rejected", failures=2)
                first = last = memory_of(waiting)
                while waiting.process.poll() is None:
                    last = memory_of(waiting) or last
                    time.sleep(0.005)  # between looks; a guess takes about 50 ms
                assert waiting.wait() == EXIT_NOT_PROVEN
                rejected = [event for event in waiting.events if event["event"] == "rejected"]
                message = waiting.event("error")["message"]
        evaluated = guesser.output.decode().splitlines().count("rejected")
    assert [event["failures"] for event in rejected] == list(range(1, MOST_FAILURES))
    assert f"That was attempt {MOST_FAILURES}" in message
    assert "does not know the secret" in message
    assert "Agree with the other user, then start both again" in message
    assert evaluated <= MOST_FAILURES
    assert last - first <= MEMORY_OF_GUESSES
    assert not mark.exists()


class Transfer(NamedTuple):
    """A tunnel through which as much flows as it takes, from left to right."""

    left: Program
    right: Program
    received: list[int]  # one number: bytes

    def goes_on(self) -> None:
        """Wait until something that is written only now must have arrived."""
        mark = self.received[0] + 2 * CREDIT
        eventually(lambda: self.received[0] >= mark, "more of the transfer")


@contextmanager
def transferring(lab: Lab) -> Iterator[Transfer]:
    """Begin a transfer; what arrives is counted, and goes no further."""
    received = [0]
    output, into = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)

    def count() -> None:
        while size := os.splice(output, null, 1 << 20):
            received[0] += size

    counting = threading.Thread(target=count)
    env = {"NAT_TRAVERSE_SECRET": "words"}
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as zeros:
        assert zeros.stdout is not None
        try:
            with (
                ours(
                    "--json",
                    f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}",
                    node=lab.left,
                    stdin=zeros.stdout.fileno(),
                    env=env,
                ) as left,
                ours(
                    "--json",
                    f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}",
                    node=lab.right,
                    stdout=into,
                    env=env,
                ) as right,
            ):
                os.close(into)
                counting.start()
                left.event("connected")
                right.event("connected")
                yield Transfer(left, right, received)
        finally:
            zeros.kill()
            counting.join()
            os.close(output)
            os.close(null)


def test_a_transfer_goes_on_through_floods(tmp_path: Path) -> None:
    """Without offload each datagram arrives alone, which is the most work."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (a failure has to be repeatable)
    chance = random.Random(seed)
    with Lab(Kind.NONE, Kind.NONE, offload=False) as lab, transferring(lab) as transfer:
        count_floods(lab.right)
        transfer.goes_on()
        memory = memory_of(transfer.right)
        for each in FLOODS:
            source = (address(lab.left), LEFT_PORT) if each.as_peer else ("192.0.2.200", 5555)
            to = (address(lab.right), RIGHT_PORT)
            before = flooded(lab.right)
            trains = each.trains(chance)
            with flood(lab.internet[-1], trains, source, to, rate=RATE, directory=tmp_path):
                time.sleep(LASTS)
                transfer.goes_on()
            assert flooded(lab.right) - before > RATE * LASTS / 10, each.name
        transfer.goes_on()
        # How much of the stream's credit is in use changes all the time, and it is copied once.
        assert memory_of(transfer.right) - memory < 3 * CREDIT
        for side in (transfer.left, transfer.right):
            assert side.process.poll() is None
            names = {event["event"] for event in side.events}
            assert not names & {"moved", "closed", "vanished", "error", "rejected"}
