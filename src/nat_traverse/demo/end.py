"""One of the two programs: its process, what it says, what comes out of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Mapping, Sequence

    from nat_traverse.demo.stage import Place

# Seconds after which the program gives up. Ports that are kept connect within one; of searches for
# the ports of one gateway 99 in 100 end within 25; and what has to wait for the next full minute
# tries at 10 s at the earliest, so at 70 s at the latest. A demo of what can't connect has to come
# to its end before the user does.
DEADLINE: Final = 80

# The program as a user runs it, but for its words, which it is to say as data, and the deadline.
# -P: a file in the working directory that is called like a module of Python's is none of ours.
COMMAND: Final = (
    *(sys.executable, "-P", "-m", "nat_traverse"),
    *("--json", "--window", "0", "--timeout", str(DEADLINE)),
)

_READ: Final = 65536  # bytes; what a pipe holds
# What is kept of the output; only a short answer is ever looked at, the rest counts by its digest.
_KEPT: Final = 4096
# Seconds between asking the program to end and making it. It takes milliseconds.
_LEAVE: Final = 5.0


class Happening(NamedTuple):
    """What one side said. `at` is in seconds on the demo's clock; `event` a line of --json."""

    side: str
    at: float
    event: Mapping[str, Any]


class End:
    """The program at `place`. `tell` hears all that it says; `clock` is the demo's."""

    def __init__(
        self, place: Place, clock: Callable[[], float], tell: Callable[[Happening], None]
    ) -> None:
        self.place = place
        self.received = 0  # bytes of output so far
        self.head = b""  # the first of them
        self._digest = hashlib.sha256()
        self._clock = clock
        self._tell = tell
        self._process: Process | None = None
        # When its own clock was zero. Every line arrives a little late; the least late tells it.
        self._zero = math.inf
        self._connected: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._listening: asyncio.Task[None] | None = None
        self._receiving: asyncio.Task[None] | None = None

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, of the output so far."""
        return self._digest.hexdigest()

    async def start(self, argv: Sequence[str]) -> None:
        """Start the program by a command line that leads to its place."""
        self._process = process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # ^C is for the demo, which ends the program in order.
            start_new_session=True,
        )
        assert process.stderr is not None  # noqa: S101 (pipes were asked for)
        assert process.stdout is not None  # noqa: S101
        self._listening = asyncio.create_task(self._listen(process.stderr))
        self._receiving = asyncio.create_task(self._receive(process.stdout))

    async def connected(self) -> float | None:
        """Wait until it is connected, and return when; None if it ended without that."""
        return await asyncio.shield(self._connected)

    async def write(self, data: bytes | memoryview) -> bool:
        """Write to its standard input, in time with the pipe; False if it no longer reads."""
        assert self._process is not None  # noqa: S101 (started)
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def close_input(self) -> None:
        """End its standard input."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def output_ended(self) -> None:
        """Wait for the end of its output."""
        assert self._receiving is not None  # noqa: S101 (started)
        await asyncio.shield(self._receiving)

    async def ended(self) -> int:
        """Wait for its end and for its last words; returns the status, -n for signal n."""
        assert self._process is not None  # noqa: S101 (started)
        assert self._listening is not None  # noqa: S101
        await asyncio.shield(self._listening)
        await self.output_ended()
        return await self._process.wait()

    async def stop(self) -> None:
        """End it if it still runs. Stopping twice does nothing."""
        process = self._process
        if process is None:
            return
        self.close_input()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_LEAVE):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        tasks = [task for task in (self._listening, self._receiving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        try:
            async for line in stream:
                self._hear(line)
        finally:
            if not self._connected.done():
                self._connected.set_result(None)

    def _hear(self, line: bytes) -> None:
        arrival = self._clock()
        event = _read_event(line)
        elapsed = event.get("elapsed")
        at = arrival
        if isinstance(elapsed, int | float):
            self._zero = min(self._zero, arrival - elapsed)
            at = self._zero + elapsed
        self._tell(Happening(self.place.side, at, event))
        if event["event"] == "connected" and not self._connected.done():
            self._connected.set_result(at)

    async def _receive(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_READ):
            self.received += len(data)
            self.head = (self.head + data)[:_KEPT]
            self._digest.update(data)


def _read_event(line: bytes) -> dict[str, Any]:
    """Read a line of --json; anything else that was said becomes an event called `output`."""
    with suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return {"event": "output", "text": line.decode(errors="replace").rstrip()}
