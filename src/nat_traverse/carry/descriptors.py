"""The two ends of a stream on this host: a `Source` to read and a `Sink` to write.

Both work on an asyncio loop and on any descriptor: pipe, terminal, regular file, device, socket.
How that goes without disturbing whoever shares the descriptor stands in `opening`. Neither closes
what it was given, except that `Sink.aclose` ends the output.

A `Source` calls back when there may be something to read, and its user reads as much as there is
room for. A `Sink` takes everything at once and writes it in order as fast as the reader allows;
its user looks at `congested` and stops taking data from the network meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.opening import end_output, is_character_device, open_channel
from nat_traverse.errors import ErrnoError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

# What a sink holds for a slow reader. UDP cannot be told to wait, so what does not fit here and in
# the socket's buffer is lost; but memory must not be at the mercy of the reader. 16 MiB are 13 ms
# at 10 Gbit/s, over a second at 100 Mbit/s: a reader that pauses, not one that is too slow.
LIMIT: Final = 16 * 1024 * 1024
# From here on a sink is congested. What is already in the user's hands when it stops reading still
# fits between this and the limit.
HIGH_WATER: Final = 15 * 1024 * 1024
# Down to here it stays so; the reader then has enough left until the network gets going again.
LOW_WATER: Final = 8 * 1024 * 1024

# Small datagrams are joined into blocks of this size: each for itself, a 16 MiB queue of 1-byte
# datagrams would need a hundred times as much memory.
_BLOCK: Final = 256 * 1024
# Blocks handed to one writev: 2 MiB, more than any pipe takes at once.
_BLOCKS_A_CALL: Final = 8

# The reader went away. ECONNRESET is how a socket says it.
_READER_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET})


class Source:
    """Reads `descriptor`; `name` is what a user calls it. Raises `ErrnoError` if it is closed."""

    def __init__(self, descriptor: int, *, name: str = "standard input") -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._callback: Callable[[], None] | None = None
        self._soon: asyncio.Handle | None = None
        self._watching = False
        self.ended = False
        try:
            self._may_hang_up = is_character_device(descriptor)
            self._channel = open_channel(descriptor, writing=False)
        except OSError as error:
            raise self._explained(error) from error

    def start(self, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` each time that `readinto` may have something, until paused or ended.

        What is always ready, such as a regular file, gets its turn once in each round of the event
        loop: whoever reads a bounded amount in a call leaves the others theirs.
        """
        self._callback = on_readable
        self.resume()

    def pause(self) -> None:
        """Stop calling back; the bytes stay where they are."""
        if not self._watching:
            return
        self._watching = False
        if self._channel.watched >= 0:
            self._loop.remove_reader(self._channel.watched)
        elif self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def resume(self) -> None:
        """Call back again; nothing happens if it was not paused, or has ended."""
        if self._watching or self.ended or self._callback is None:
            return
        self._watching = True
        if self._channel.watched >= 0:
            self._loop.add_reader(self._channel.watched, self._callback)
        else:
            self._soon = self._loop.call_soon(self._take_turn)

    def readinto(self, view: memoryview) -> int | None:
        """Read into `view`: the number of bytes, 0 at the end, None if nothing is there now.

        A terminal that was hung up has ended. Raises `ErrnoError` for what cannot be read.
        """
        if self.ended:
            return 0
        try:
            size = self._channel.readinto(view)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO or not self._may_hang_up:
                self.close()
                raise self._explained(error) from error
            size = 0
        if size == 0 and len(view) > 0:
            self.close()
        return size

    def close(self) -> None:
        """Stop reading for good. The descriptor stays open; calling this again does nothing."""
        if self.ended:
            return
        self.pause()
        self.ended = True
        self._channel.close()

    def _take_turn(self) -> None:
        self._soon = None
        if not self._watching or self._callback is None:
            return
        # Before the call, which may pause or end the source, and that cancels it again.
        self._soon = self._loop.call_soon(self._take_turn)
        self._callback()

    def _explained(self, error: OSError) -> ErrnoError:
        number = error.errno or errno.EIO
        return ErrnoError(f"Cannot read {self._name}: {os.strerror(number)}.", number)


class Sink:
    """Writes to `descriptor`; `name` is what a user calls it.

    `on_progress` is called when a congested sink is so no more, and when writing has failed; what
    failed is then in `failure`, and raised by whatever is called next: `BrokenPipeError` when the
    reader has gone, `OutputError` for the rest, such as a full disk. Raises `OutputError` if the
    descriptor is closed.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        name: str = "standard output",
        on_progress: Callable[[], None] | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._name = name
        self.on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._blocks: deque[bytearray] = deque()
        self._start = 0  # of what is left in the first block
        self._writing = False
        self._closed = False
        self.dropped = 0  # bytes that were taken and, since writing failed, not written
        self.ended = False  # the reader has been shown the end; the descriptor is gone
        self._waiters: list[asyncio.Future[None]] = []
        self.buffered = 0
        self.congested = False
        self.failure: BrokenPipeError | OutputError | None = None
        try:
            self._channel = open_channel(descriptor, writing=True)
        except OSError as error:
            raise self._explained(error) from error

    def write(self, data: memoryview | bytes) -> None:
        """Write all of `data`, now or as soon as it can be; `data` may be reused at once.

        Raises `BufferError` when a user goes on although the sink is congested.
        """
        self._raise_failure()
        view = memoryview(data)
        if not self._blocks:
            view = view[self._write_now(view) :]
        if not len(view):
            return
        if self.buffered + len(view) > LIMIT:
            raise BufferError(f"{self.buffered} bytes are waiting for {self._name} already")
        self._append(view)
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._channel.watched, self._flush)
        self.congested = self.congested or self.buffered >= HIGH_WATER

    async def drain(self) -> None:
        """Wait until all is written; raises what `write` would."""
        if self._blocks:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        self._raise_failure()

    async def aclose(self) -> None:
        """Wait until all is written, then let the reader see the end; raises what `write` would."""
        if self._closed:
            return
        try:
            await self.drain()
        finally:
            self.close()
        try:
            self.ended = True
            end_output(self._descriptor)
        except OSError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Drop what is not yet written. The descriptor stays open and is as it was."""
        if self._closed:
            return
        self._closed = True
        self._forget()
        self._channel.close()

    def _write_now(self, view: memoryview) -> int:
        """Write as much of `view` as can be at once, and return how much it was."""
        written = 0
        try:
            while written < len(view):
                written += self._channel.write([view[written:]])
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            self._raise_failure()
        return written

    def _append(self, view: memoryview) -> None:
        if not self._blocks or len(self._blocks[-1]) + len(view) > _BLOCK:
            self._blocks.append(bytearray())
        self._blocks[-1] += view
        self.buffered += len(view)

    def _flush(self) -> None:
        """Write what is buffered, as much as can be now."""
        try:
            while self._blocks:
                self._consume(self._channel.write(self._first_blocks()))
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return
        if self.congested and self.buffered <= LOW_WATER:
            self.congested = False
            self._report()
        if not self._blocks:
            self._forget()

    def _first_blocks(self) -> list[memoryview]:
        count = min(_BLOCKS_A_CALL, len(self._blocks))
        views = [memoryview(self._blocks[index]) for index in range(count)]
        views[0] = views[0][self._start :]
        return views

    def _consume(self, written: int) -> None:
        self.buffered -= written
        written += self._start
        while self._blocks and written >= len(self._blocks[0]):
            written -= len(self._blocks.popleft())
        self._start = written

    def _fail(self, error: OSError) -> None:
        if error.errno in _READER_GONE:
            self.failure = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        else:
            self.failure = self._explained(error)
        self.dropped += self.buffered
        self._forget()
        self._report()

    def _forget(self) -> None:
        """Have nothing left to write, and tell those who wait for that."""
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._channel.watched)
        self._blocks.clear()
        self._start = self.buffered = 0
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _explained(self, error: OSError) -> OutputError:
        number = error.errno or errno.EIO
        hint = " Make room and run it again." if number in (errno.ENOSPC, errno.EDQUOT) else ""
        text = f"Cannot write to {self._name}: {os.strerror(number)}.{hint}"
        return OutputError(text, number)
