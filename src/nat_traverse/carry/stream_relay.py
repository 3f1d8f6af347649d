"""The relay of an encrypted tunnel: bytes between its main stream and two descriptors.

It does what `Relay` does for the plain tunnel, and less, since the stream repeats what is lost, and
slows its sender down by itself. What is left: to know when both directions have ended, and to tell
a complete end from one that lost something.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nat_traverse.carry.descriptors import HIGH_WATER, LIMIT
from nat_traverse.errors import OutputError, PeerGoneError
from nat_traverse.tunnel.events import Closing, PeerClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.descriptors import Sink, Source
    from nat_traverse.carry.main_stream import MainStream

# Bytes read at a time: a quarter of an enlarged pipe, so that its writer never has to wait for us.
_CHUNK = 256 * 1024
# Chunks in one go, before receiving and the timers get their turn.
_CHUNKS = 4
# What a sink takes in one piece as long as it is not congested. A gap in the stream that is closed
# at last may bring a whole window at once.
_PIECE = LIMIT - HIGH_WATER


@dataclass(frozen=True, slots=True)
class AllArrived:
    """Event: the peer sends no more; `octets` came from it, and are written."""

    octets: int


@dataclass(frozen=True, slots=True)
class AllDelivered:
    """Event: the peer has written all of our `octets`, to their end."""

    octets: int


StreamEvent = AllArrived | AllDelivered


class StreamRelay:
    """Moves bytes until the tunnel is over; `grace` is as in `Relay`."""

    # Whether a stream carries the data, of which all arrives that the peer says has arrived.
    _is_reliable: ClassVar[bool] = True

    def __init__(
        self,
        main: MainStream,
        source: Source,
        sink: Sink,
        observe: Callable[[StreamEvent], None] | None = None,
        *,
        grace: float | None = None,
    ) -> None:
        self._main = main
        self._observe_stream = observe
        self._link = main.link
        self._source = source
        self._sink = sink
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(_CHUNK))
        self._output: asyncio.Task[None] | None = None  # writes the rest and the end
        self._has_shown_end = False  # to the reader of our output, who has had all before
        self._unread = False  # the command has closed its input
        self._leaving = False
        self._stopping = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._news = asyncio.Event()
        self._waiting: deque[memoryview] = deque()  # what the sink has no room for
        self.complete = False  # our data ended before the tunnel did
        self.paused = False  # `run` returned, or is about to, with the tunnel alive

    async def run(self) -> None:
        """Relay until both directions have ended.

        Raises PeerGoneError, OutputError, or BrokenPipeError when nobody reads our output any more;
        in the first case all that arrived is written. Cancelled, it tells the peer that the tunnel
        is over.
        """
        try:
            await self._main.wait()
            self._start()
            await self._until_over()
            if self.paused:
                return
            self.complete = self._source.ended
            await self._write_rest()
            if self._over.done():
                self._over.result()
        except PeerGoneError:
            await self._write_rest()
            raise
        except (BrokenPipeError, OutputError) as error:
            gone = isinstance(error, BrokenPipeError)
            self._link.abort(
                Closing.NOT_READING if gone else Closing.STOPPED,
                str(self._main.taken - self._sink.dropped),
            )
            raise
        except BaseException:
            self._link.abort(Closing.STOPPED)
            raise
        finally:
            self._stop()

    def leave(self) -> None:
        """End the tunnel as soon as the peer has all of our data, whatever it still sends."""
        self._leaving = True
        self._news.set()

    async def pause(self) -> None:
        """Make `run` return while the tunnel lives, so that another relay can go on with it."""
        self._stopping = True
        self._source.pause()
        self._main.detach()
        try:
            await self._write_out()
        except BrokenPipeError as error:
            self._reader_left(error)
        self.paused = not self._link.is_over
        self._news.set()

    # -- the course of it ---------------------------------------------------------------------

    def _start(self) -> None:
        self._sink.on_progress = self._output_progressed
        self._main.attach(self)
        self._source.start(self._read)
        if not self._main.is_writable:
            self._source.pause()

    async def _until_over(self) -> None:
        """Wait for the end of both directions, say so, and wait for the peer to say so, too."""
        drained: asyncio.Task[None] | None = None
        try:
            while not self.paused:
                if drained is None and self._source.ended:
                    drained = self._loop.create_task(self._link.drain())
                    drained.add_done_callback(self._note_drained)
                delivered = drained is not None and drained.done()
                if delivered and (self._leaving or self._has_shown_end):
                    await self._part()
                    return
                if await self._is_over_after_news():
                    return
        finally:
            if drained is not None:
                drained.cancel()

    def _note_drained(self, drained: asyncio.Task[None]) -> None:
        """Look at the news; what went wrong there is what ended the tunnel, and told by it."""
        if not drained.cancelled() and drained.exception() is None and self._is_reliable:
            self._tell(AllDelivered(self._main.written))
        self._news.set()

    async def _is_over_after_news(self) -> bool:
        """Wait until something has happened; True if it was the end. Raises what went wrong."""
        news = self._loop.create_task(self._news.wait())
        try:
            waited: set[asyncio.Future[Any]] = {news, self._over, self._link.closed}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        self._news.clear()
        if self._over.done():
            self._over.result()
        if self._link.is_over:
            self._judge_end()
        return self._link.is_over

    async def _part(self) -> None:
        """Leave with the peer's consent, or without waiting for it when nobody reads here."""
        if self._has_shown_end:
            await self._link.leave()
        else:
            self._link.abort(Closing.NOT_READING, str(self._main.taken))

    def _judge_end(self) -> None:
        """Raise what it means that the tunnel is over, unless nothing is missing."""
        ending = self._link.ending
        if isinstance(ending, PeerClosed) and ending.code == Closing.NOT_READING:
            self._judge_unread(ending.text)
        else:
            self._link.closed.result()

    def _judge_unread(self, text: str) -> None:
        """Raise what it means that the peer reads no more, having taken `text` bytes."""
        unread = self._main.written - (int(text) if text.isdecimal() else 0)
        if unread > 0:
            raise PeerGoneError(
                f"The other side stopped reading; {unread:,} bytes did not get through.",
                errno.ECONNRESET,
            )

    # -- from the source to the stream ----------------------------------------------------------

    def _read(self) -> None:
        """Read what the source has, as long as the stream takes it."""
        try:
            for _ in range(_CHUNKS):
                size = self._source.readinto(self._buffer)
                if size is None:
                    return
                if size == 0:
                    self._main.stream.write_eof()
                    self._news.set()
                    return
                self._main.stream.write(self._buffer[:size])
                if not self._main.is_writable:
                    return
        except Exception as error:  # noqa: BLE001 (handed to whoever awaits `run`)
            self._fail(error)

    def pause_writing(self) -> None:
        """Stop reading the source: the stream has enough."""
        self._source.pause()

    def resume_writing(self) -> None:
        """Read the source again."""
        if not self._stopping:
            self._source.resume()

    # -- from the stream to the sink ------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Write what the peer sent."""
        view = memoryview(data)
        self._waiting.extend(view[at : at + _PIECE] for at in range(0, len(view), _PIECE))
        self._write_waiting()
        if not self._has_room():
            self._main.stream.pause_reading()

    def _has_room(self) -> bool:
        """Tell whether more may come: what nobody reads needs no room."""
        return not self._waiting and (self._unread or not self._sink.congested)

    def _write_waiting(self) -> None:
        """Write as much as the sink has room for."""
        while self._waiting and (self._unread or not self._sink.congested):
            piece = self._waiting.popleft()
            try:
                if not self._unread:
                    self._sink.write(piece)
            except BrokenPipeError as error:
                self._guarded_reader_left(error)
            except OutputError as error:
                self._fail(error)
            if self._over.done():
                return
            # What a command does not want to know has arrived all the same.
            self._main.taken += len(piece)

    async def _write_out(self) -> None:
        """Wait until all that arrived is written; raises what the sink does."""
        while self._waiting:
            await self._sink.drain()
            self._write_waiting()
        await self._sink.drain()

    def eof_received(self) -> None:
        """Let our reader see the end, and the peer know that it has."""
        if self._output is None:
            self._output = self._loop.create_task(self._end_output())
            self._output.add_done_callback(lambda _: self._news.set())

    def datagram_received(self, data: bytes) -> None:
        """Ignore a datagram: both sides have agreed on a stream."""

    def datagrams_writable(self) -> None:
        """Ignore that datagrams may be sent."""

    def _output_progressed(self) -> None:
        failure = self._sink.failure
        if isinstance(failure, BrokenPipeError):
            self._guarded_reader_left(failure)
        elif failure is not None:
            self._fail(failure)
        self._write_waiting()
        if self._has_room() and not self._stopping:
            self._main.stream.resume_reading()

    async def _end_output(self) -> None:
        try:
            await self._write_out()
            await self._sink.aclose()
        except BrokenPipeError as error:
            self._guarded_reader_left(error)
        except OutputError as error:
            self._fail(error)
        if self._over.done():
            return  # not all went where it belongs
        self._has_shown_end = True
        self._tell(AllArrived(self._main.taken))
        if not self._link.is_over:
            self._main.stream.finish_receiving()

    async def _write_rest(self) -> None:
        """Write what is left when the tunnel is over; a command has to read it within `grace`."""
        self._source.pause()
        try:
            async with asyncio.timeout(self._grace):
                if self._output is not None:
                    await self._output
                else:
                    await self._write_out()
                    await self._sink.aclose()
        except TimeoutError:
            pass
        except BrokenPipeError:
            if self._grace is None:
                raise

    def _guarded_reader_left(self, error: BrokenPipeError) -> None:
        try:
            self._reader_left(error)
        except BrokenPipeError as left:
            self._fail(left)

    def _reader_left(self, error: BrokenPipeError) -> None:
        """Let a command go on without its input; without a reader of our output, end."""
        if self._grace is None:
            raise error
        self._unread = True
        if not self._stopping:
            self._main.stream.resume_reading()

    def _tell(self, event: StreamEvent) -> None:
        if self._observe_stream is not None:
            self._observe_stream(event)

    # -- ends -----------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _stop(self) -> None:
        self._source.close()
        self._sink.close()
        if self._output is not None:
            self._output.cancel()
        if not self._over.done():
            self._over.cancel()
