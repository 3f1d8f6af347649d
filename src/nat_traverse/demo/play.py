"""The play: two starts, a file from left to right, an answer back, two ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Final

from nat_traverse.demo.end import COMMAND, DEADLINE, End
from nat_traverse.demo.outcome import Moment, Outcome, Transfer
from nat_traverse.demo.stage import LEFT
from nat_traverse.demo.words import words
from nat_traverse.errors import NatTraverseError

if TYPE_CHECKING:
    from nat_traverse.demo.end import Happening
    from nat_traverse.demo.screen import Screen
    from nat_traverse.demo.stage import Stage

SIZE: Final = 10_000_000  # bytes of the file
LATER: Final = 1.0  # s by which the right side starts later: nobody has to be simultaneous

# Seconds for all of it: the deadlines of both, half a minute until a program misses a peer that
# died, and as much again for a slow machine.
_LIMIT: Final = LATER + DEADLINE + 30 + 45


async def perform(stage: Stage, screen: Screen) -> Outcome:
    """Run both programs and show what they do. Nothing of them is left, whatever happens."""
    play = _Play(stage, screen)
    try:
        async with asyncio.timeout(_LIMIT):
            return await play.run()
    except TimeoutError:
        text = f"The two programs were still running after {_LIMIT:g} s, and were stopped."
        raise NatTraverseError(text) from None
    finally:
        await asyncio.gather(play.left.stop(), play.right.stop())


class _Play:
    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._loop = asyncio.get_running_loop()
        self._stage = stage
        self._screen = screen
        self._file = os.urandom(SIZE)
        self._digest = hashlib.sha256(self._file).hexdigest()
        self._moments: list[Moment] = []
        self.left = End(stage.left, self._clock, self._hear)
        self.right = End(stage.right, self._clock, self._hear)
        self._zero = self._loop.time()

    async def run(self) -> Outcome:
        """Play it from the first start to the last end."""
        await self._start(self.left)
        await asyncio.sleep(LATER)
        later = await self._start(self.right)
        ends = [asyncio.create_task(self._see_off(end)) for end in (self.left, self.right)]
        try:
            connected = await asyncio.gather(self.left.connected(), self.right.connected())
            times = [at for at in connected if at is not None]
            both = len(times) == len(connected)
            transfer = await self._transfer() if both else None
            self.left.close_input()
            self.right.close_input()
            left, right = await asyncio.gather(*ends)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        outcome = Outcome(max(times) - later if both else None, transfer, (left, right))
        self._screen.concluded(self._clock(), outcome, self._moments, later)
        return outcome

    def _clock(self) -> float:
        """Return the seconds since the first start."""
        return self._loop.time() - self._zero

    def _hear(self, happening: Happening) -> None:
        label = words(happening.event).label
        if label:
            self._moments.append(Moment(happening.at, happening.side, label))
        self._screen.happened(happening)

    async def _start(self, end: End) -> float:
        """Start one program, and return the time just before that."""
        specification = self._stage.specification(end.place)
        at = self._clock()
        self._moments.append(Moment(at, end.place.side, "started"))
        argv = end.place.enter([*COMMAND, specification])
        self._screen.started(at, end.place, specification, argv)
        await end.start(argv)
        return at

    async def _see_off(self, end: End) -> int:
        """Wait for the end of one program."""
        status = await end.ended()
        at = self._clock()
        self._moments.append(Moment(at, end.place.side, f"exited: {status}"))
        self._screen.ended(at, end.place.side, status)
        return status

    async def _transfer(self) -> Transfer:
        """Move the file to the right and its digest back to the left, as two users could."""
        begin = self._clock()
        self._moments.append(Moment(begin, LEFT, "file goes in"))
        self._screen.sending(begin, SIZE)
        await self.left.write(self._file)
        self.left.close_input()
        await self.right.output_ended()
        seconds = self._clock() - begin
        answer = f"{self.right.digest}\n".encode()
        await self.right.write(answer)
        self.right.close_input()
        await self.left.output_ended()
        return Transfer(
            sent=SIZE,
            received=self.right.received,
            sent_digest=self._digest,
            received_digest=self.right.digest,
            answered=self.left.received == len(answer) and self.left.head == answer,
            seconds=seconds,
        )
