"""The relay of an encrypted tunnel, on real links over loopback and real pipes."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import stream_relay as module
from nat_traverse.carry.descriptors import HIGH_WATER, LIMIT, Sink, Source
from nat_traverse.carry.stream_relay import AllArrived, AllDelivered
from nat_traverse.errors import ErrnoError, OutputError, PeerGoneError
from nat_traverse.tunnel.credit import FIRST_WINDOW, LARGEST_WINDOW
from nat_traverse.tunnel.events import Closing, PeerClosed
from nat_traverse.tunnel.secure import ENGINE_ROOM
from support.ends import run
from support.stream_ends import stream_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.stream_ends import StreamEnd

DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(DESCRIPTORS.iterdir())
    yield
    assert set(DESCRIPTORS.iterdir()) == before


@pytest.fixture(params=["client", "server"])
def swapped(request: pytest.FixtureRequest) -> bool:
    """Whether the end that is tested is the server's, to which the stream is opened."""
    return bool(request.param == "server")


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (nothing announces it; `run` bounds the whole)
        await asyncio.sleep(0.005)


def error_of(relaying: asyncio.Task[None]) -> BaseException | None:
    return relaying.exception()


def ends_with(relaying: asyncio.Task[None], number: int, text: str = "") -> None:
    error = relaying.exception()
    assert isinstance(error, PeerGoneError), error
    assert error.errno == number
    assert text in str(error)


async def fill(end: StreamEnd) -> int:
    """Write into its pipe until nobody takes any more; returns how many bytes that were."""
    os.set_blocking(end.input, False)
    count = refused = 0
    while refused < 40:
        try:
            count += os.write(end.input, bytes(65536))
            refused = 0
        except BlockingIOError:
            refused += 1
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
    os.set_blocking(end.input, True)
    return count


def has_sent(end: StreamEnd) -> bool:
    return end.main._opened.done() and end.main.written > 0


class TestBothDirections:
    @pytest.mark.parametrize(("there", "back"), [(0, 0), (1, 0), (0, 1), (300_000, 5_000_000)])
    def test_carry_every_byte_and_the_ends(self, there: int, back: int, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                relaying = [left.start(), right.start()]
                words, answer = noise(there), noise(back, 2)
                writing = [
                    asyncio.ensure_future(left.write(words, end=True)),
                    asyncio.ensure_future(right.write(answer, end=True)),
                ]
                assert await right.read_all() == words
                assert await left.read_all() == answer
                await asyncio.gather(*relaying, *writing)
                assert left.relay.complete
                assert right.relay.complete
                assert left.events == [AllArrived(back), AllDelivered(there)] or left.events == [
                    AllDelivered(there),
                    AllArrived(back),
                ]

        run(test())

    def test_end_apart(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                relaying = [left.start(), right.start()]
                await left.write(b"all of it", end=True)
                assert await right.read_all() == b"all of it"
                for number in range(20):
                    await right.write(b"%d\n" % number)
                    assert await left.read(3 if number > 9 else 2) == b"%d\n" % number
                assert not any(each.done() for each in relaying)
                right.close_input()
                assert await left.read_all() == b""
                await asyncio.gather(*relaying)

        run(test())

    def test_begin_whenever_the_other_side_is_ready(self) -> None:
        async def test() -> None:
            async with stream_ends() as (left, right):
                first = left.start()
                await left.write(b"early", end=True)
                await asyncio.sleep(0.1)
                second = right.start()
                right.close_input()
                assert await right.read_all() == b"early"
                await asyncio.gather(first, second)

        run(test())

    def test_a_source_that_can_not_be_read_is_an_error(self) -> None:
        async def test() -> None:
            async with stream_ends() as (left, right):
                directory = os.open("/", os.O_RDONLY)
                left.source.close()
                left.relay._source = Source(directory)
                relaying = [left.start(), right.start()]
                with pytest.raises(ErrnoError) as caught:
                    await relaying[0]
                assert caught.value.errno == errno.EISDIR
                await asyncio.wait(relaying)
                ends_with(relaying[1], errno.ECONNRESET, "was stopped")
                os.close(directory)

        run(test())


class TestTheReaderLeaves:
    def test_with_all_it_was_sent_is_a_success_for_the_peer(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                relaying = [left.start(), right.start()]
                await right.write(b"12345")
                assert await left.read(5) == b"12345"
                left.close_output()
                left.relay._guarded_reader_left(BrokenPipeError())  # as a write would tell it
                await asyncio.wait(relaying)
                assert isinstance(error_of(relaying[0]), BrokenPipeError)
                assert error_of(relaying[1]) is None
                assert right.link.ending == PeerClosed(Closing.NOT_READING, "5")

        run(test())

    def test_what_did_not_get_through_is_counted(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                relaying = [left.start(), right.start()]
                await right.write(b"12345")
                assert await left.read(5) == b"12345"
                left.close_output()
                await right.write(bytes(1234))
                await asyncio.wait(relaying)
                assert isinstance(error_of(relaying[0]), BrokenPipeError)
                ends_with(relaying[1], errno.ECONNRESET, "; 1,234 bytes did not get through.")

        run(test())

    def test_what_waited_for_it_did_not_get_through_either(self) -> None:
        async def test() -> None:
            async with stream_ends() as (left, right):
                relaying = [left.start(), right.start()]
                sent = await fill(right)
                await until(lambda: left.sink.buffered)
                left.close_output()
                await asyncio.wait(relaying)
                assert isinstance(error_of(relaying[0]), BrokenPipeError)
                error = error_of(relaying[1])
                assert isinstance(error, PeerGoneError)
                missing = int(str(error).rpartition(";")[2].split()[0].replace(",", ""))
                # All but what is in the pipe that nobody read, and in the one before the relay.
                assert sent - 2 * (1 << 20) < missing <= sent

        run(test())

    def test_and_the_peer_can_not_be_made_to_believe_any_number(self) -> None:
        async def test() -> None:
            for text in ("", "-1", "many", "\u0664", "1" * 1000):
                async with stream_ends() as (left, right):
                    relaying = right.start()
                    await right.write(b"12345")
                    await until(partial(has_sent, right))
                    left.link.abort(Closing.NOT_READING, text)
                    await asyncio.wait({relaying})
                    if text == "1" * 1000:
                        assert error_of(relaying) is None
                    else:
                        missing = 1 if text == "\u0664" else 5
                        ends_with(relaying, errno.ECONNRESET, f"; {missing} bytes did not")

        run(test())

    @pytest.mark.parametrize("ours_ended", [False, True])
    def test_before_the_end_that_has_come(self, ours_ended: bool) -> None:
        """The peer has sent all, and must not be told that all was taken."""

        async def test() -> None:
            async with stream_ends() as (left, right):
                relaying = [left.start(), right.start()]
                if ours_ended:
                    left.close_input()
                    assert await right.read_all() == b""
                await right.write(bytes(3_000_000), end=True)
                await until(lambda: left.main.has_ended)
                assert left.sink.buffered
                left.close_output()
                await asyncio.wait(relaying)
                assert isinstance(error_of(relaying[0]), BrokenPipeError)
                ends_with(relaying[1], errno.ECONNRESET, " bytes did not get through.")
                assert not left.told(AllArrived)
                assert not right.told(AllDelivered)

        run(test())


class Failing(Sink):
    """A sink that fails when all is written, as a file on a server does that is full."""

    async def aclose(self) -> None:
        await self.drain()
        self.close()
        raise OutputError("Cannot write: No space left on device.", errno.ENOSPC)


class TestDisks:
    @pytest.mark.parametrize("ours_ended", [False, True])
    def test_that_fail_at_the_very_end(self, ours_ended: bool, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                left.sink.close()
                left.sink = left.relay._sink = Failing(left._writing)
                relaying = [left.start(), right.start()]
                if ours_ended:
                    left.close_input()
                    assert await right.read_all() == b""
                await right.write(b"12345", end=True)
                await asyncio.wait(relaying)
                assert isinstance(error_of(relaying[0]), OutputError)
                ends_with(relaying[1], errno.ECONNRESET, "was stopped")
                assert not right.told(AllDelivered)

        run(test())

    def test_that_fail_when_the_tunnel_is_over(self) -> None:
        async def test() -> None:
            async with stream_ends() as (left, right):
                left.sink.close()
                left.sink = left.relay._sink = Failing(left._writing)
                relaying = [left.start(), right.start()]
                await right.write(b"12345")
                assert await left.read(5) == b"12345"
                left.close_input()
                assert await right.read_all() == b""
                right.relay.leave()  # which it may, though it has more to send
                right.close_input()
                await asyncio.wait(relaying)
                assert isinstance(error_of(relaying[0]), OutputError)

        run(test())

    def test_a_full_one_ends_it_on_both_sides(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                full = os.open("/dev/full", os.O_WRONLY)
                left.sink.close()
                left.relay._sink = Sink(full)
                relaying = [left.start(), right.start()]
                await right.write(b"12345")
                await asyncio.wait(relaying)
                error = error_of(relaying[0])
                assert isinstance(error, OutputError)
                assert error.exit_code == errno.ENOSPC == 28
                ends_with(relaying[1], errno.ECONNRESET, "was stopped")
                os.close(full)

        run(test())


class TestASlowReader:
    def test_that_leaves_while_more_waits_than_a_sink_takes(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0) as (left, right):
                relaying = [left.start(), right.start()]
                await until(lambda: left.main._user is not None)
                left.relay.data_received(bytes(HIGH_WATER + LARGEST_WINDOW))
                assert left.relay._waiting
                left.close_output()
                await until(left.main.stream.is_reading)
                assert not left.relay._waiting
                assert left.main.taken == HIGH_WATER + LARGEST_WINDOW
                for each in relaying:
                    each.cancel()
                await asyncio.wait(relaying)

        run(test())

    def test_has_all_that_waits_before_a_pause(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0) as (left, right):
                relaying = [left.start(), right.start()]
                await until(lambda: left.main._user is not None)
                data = noise(HIGH_WATER + LARGEST_WINDOW)
                left.relay.data_received(data)
                pausing = asyncio.ensure_future(left.relay.pause())
                assert await left.read(len(data)) == data
                await asyncio.gather(pausing, relaying[0])
                relaying[1].cancel()
                await asyncio.wait(relaying)

        run(test())

    def test_stops_the_sender_and_loses_nothing(self) -> None:
        async def test() -> None:
            async with stream_ends() as (left, right):
                relaying = [left.start(), right.start()]
                sent = await fill(right)
                held = HIGH_WATER + LARGEST_WINDOW + ENGINE_ROOM + FIRST_WINDOW + (4 << 20)
                assert HIGH_WATER < sent < held
                assert left.sink.buffered <= LIMIT
                assert sum(map(len, left.relay._waiting)) <= LARGEST_WINDOW
                right.close_input()
                assert await left.read_all() == bytes(sent)
                left.close_input()
                assert await right.read_all() == b""
                await asyncio.gather(*relaying)

        run(test())

    def test_gets_a_window_at_once_when_a_gap_is_closed(self) -> None:
        """More than a sink takes in one piece, while it holds nearly as much as it may."""

        async def test() -> None:
            async with stream_ends() as (left, right):
                relaying = [left.start(), right.start()]
                await until(lambda: left.main._user is not None)
                first, second = noise(HIGH_WATER - 1), noise(LARGEST_WINDOW, 2)
                left.relay.data_received(first)
                left.relay.data_received(second)
                assert left.sink.buffered <= LIMIT
                assert not left.main.stream.is_reading()
                assert await left.read(len(first) + len(second)) == first + second
                await until(left.main.stream.is_reading)
                assert left.main.taken == len(first) + len(second)
                for each in relaying:
                    each.cancel()
                await asyncio.wait(relaying)

        run(test())

    def test_a_command_that_reads_no_more_holds_up_nothing(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0) as (left, right):
                relaying = [left.start(), right.start()]
                writing = asyncio.ensure_future(right.write(noise(40_000_000), end=True))
                await until(lambda: left.sink.congested)
                left.close_output()
                await writing
                await left.write(b"still here", end=True)
                assert await right.read_all() == b"still here"
                await asyncio.gather(*relaying)
                assert left.main.taken == 40_000_000

        run(test())


@contextmanager
def mute(end: StreamEnd) -> Iterator[None]:
    """Let its link say nothing, as if its host had lost its network."""
    link = end.link
    link._leave_loop()
    yield
    link._stop()


class TestTheTunnelsEnd:
    def test_a_peer_that_vanishes(self) -> None:
        async def test() -> None:
            async with stream_ends(consent=0.3) as (left, right):
                relaying = [left.start(), right.start()]
                await right.write(b"before")
                await left.write(b"all", end=True)
                assert await right.read_all() == b"all"
                with mute(right):
                    await asyncio.wait({relaying[0]})
                    # What had arrived is written, and then the reader sees the end.
                    assert await left.read_all() == b"before"
                    ends_with(relaying[0], errno.ETIMEDOUT, "Nothing has come")
                    relaying[1].cancel()
                    await asyncio.wait(relaying)

        run(test())

    def test_what_arrived_is_written_however_slow_the_reader(self) -> None:
        async def test() -> None:
            async with stream_ends() as (left, right):
                relaying = [left.start(), right.start()]
                data = noise(5_000_000)
                await right.write(data)
                await until(lambda: left.main.taken == len(data))
                relaying[1].cancel()
                await asyncio.wait({relaying[1]})
                await until(lambda: left.link.is_over)
                assert not relaying[0].done()
                assert await left.read_all() == data
                await asyncio.wait({relaying[0]})
                ends_with(relaying[0], errno.ECONNRESET, "was stopped")
                assert not left.relay.complete

        run(test())

    def test_a_command_has_only_so_long_to_read_it(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=0.1) as (left, right):
                relaying = [left.start(), right.start()]
                await right.write(bytes(5_000_000))
                await until(lambda: left.main.taken == 5_000_000)
                relaying[1].cancel()
                await asyncio.wait(relaying)
                ends_with(relaying[0], errno.ECONNRESET, "was stopped")

        run(test())

    @pytest.mark.parametrize("attached", [True, False])
    def test_cancelled_it_tells_the_peer(self, attached: bool, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(swapped=swapped) as (left, right):
                mine = left.start()
                if attached:
                    theirs = right.start()
                    await until(lambda: left.main._user is not None)
                else:
                    await asyncio.sleep(0)
                mine.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await mine
                if not attached:
                    theirs = right.start()
                await asyncio.wait({theirs})
                ends_with(theirs, errno.ECONNRESET, "was stopped")
                assert right.link.ending == PeerClosed(Closing.STOPPED, "")

        run(test())

    def test_of_the_loops_own_complaints_there_are_none(self) -> None:
        """A task that failed and nobody looked at is told on standard error, with a traceback."""
        complaints: list[object] = []

        async def test() -> None:
            asyncio.get_running_loop().set_exception_handler(
                lambda _, what: complaints.append(what)
            )
            async with stream_ends() as (left, right):
                relaying = [left.start(), right.start()]
                # Ours has ended, and the peer has not taken it: its reader is slow.
                await left.write(bytes(3_000_000), end=True)
                relaying[1].cancel()
                await asyncio.wait({relaying[0], relaying[1]})
                ends_with(relaying[0], errno.ECONNRESET)

        run(test())
        assert complaints == []


class TestLeaving:
    def test_whatever_the_peer_still_sends(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(grace=1.0, swapped=swapped) as (left, right):
                relaying = [left.start(), right.start()]
                await right.write(b"12345")
                assert await left.read(5) == b"12345"
                left.relay.leave()
                await left.write(b"bye", end=True)
                assert await right.read_all() == b"bye"
                await asyncio.gather(*relaying)
                assert left.relay.complete
                assert not right.relay.complete

        run(test())

    def test_the_peer_learns_what_it_sent_in_vain(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(grace=1.0, swapped=swapped) as (left, right):
                relaying = [left.start(), right.start()]
                sent = await fill(right)
                left.relay.leave()
                left.close_input()
                await asyncio.wait(relaying)
                assert error_of(relaying[0]) is None
                ends_with(relaying[1], errno.ECONNRESET, "stopped reading")
                assert sent > HIGH_WATER

        run(test())

    def test_waits_until_the_peer_has_all(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=1.0) as (left, right):
                relaying = [left.start(), right.start()]
                data = noise(20_000_000)
                writing = asyncio.ensure_future(left.write(data, end=True))
                left.relay.leave()
                await asyncio.sleep(0.2)
                assert await right.read_all() == data
                await asyncio.gather(writing, *relaying)

        run(test())


class TestPausing:
    def test_another_relay_goes_on(self, swapped: bool) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0, swapped=swapped) as (left, right):
                mine, theirs = left.start(), right.start()
                for words in (noise(20_000), noise(20_000, 2)):
                    await right.write(words)
                    assert await left.read(20_000) == words
                    await left.write(words)
                    assert await right.read(20_000) == words
                    await left.relay.pause()
                    assert left.relay.paused
                    await mine
                    left.renew()
                    # What comes in between waits.
                    await right.write(b"between")
                    await asyncio.sleep(0.05)
                    mine = left.start()
                    assert await left.read(7) == b"between"
                # Bytes that the first relays took count for the last one as well.
                left.relay.leave()
                left.close_input()
                await asyncio.gather(mine, theirs)

        run(test())

    def test_after_the_peers_end(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0) as (left, right):
                mine, theirs = left.start(), right.start()
                await right.write(b"last words", end=True)
                assert await left.read(10) == b"last words"
                await until(lambda: left.main.has_ended)
                await left.relay.pause()
                await mine
                assert left.sink.ended  # and the descriptor is closed
                left._writing = os.open(os.devnull, os.O_WRONLY)
                left.renew()
                mine = left.start()
                await left.write(b"answer", end=True)
                assert await right.read_all() == b"answer"
                await asyncio.gather(mine, theirs)

        run(test())

    def test_holds_back_nothing_for_a_slow_reader(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0) as (left, right):
                mine, theirs = left.start(), right.start()
                data = noise(3_000_000)
                await right.write(data)
                await until(lambda: left.main.taken == len(data))
                pausing = asyncio.ensure_future(left.relay.pause())
                await asyncio.sleep(0.05)
                assert not pausing.done()
                assert await left.read(len(data)) == data
                await asyncio.gather(pausing, mine)
                theirs.cancel()
                await asyncio.wait({theirs})

        run(test())

    def test_is_none_when_the_tunnel_ends_meanwhile(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=0.2) as (left, right):
                mine, theirs = left.start(), right.start()
                await right.write(bytes(3_000_000))
                await until(lambda: left.main.taken == 3_000_000)
                pausing = asyncio.ensure_future(left.relay.pause())
                theirs.cancel()
                await asyncio.wait({mine, theirs, pausing})
                assert not left.relay.paused
                ends_with(mine, errno.ECONNRESET, "was stopped")

        run(test())

    def test_with_a_command_that_reads_no_more(self) -> None:
        async def test() -> None:
            async with stream_ends(grace=5.0) as (left, right):
                mine, theirs = left.start(), right.start()
                left.close_output()
                await right.write(bytes(300_000))
                await until(lambda: left.main.taken == 300_000)
                await left.relay.pause()
                await mine
                assert left.relay.paused
                theirs.cancel()
                await asyncio.wait({theirs})

        run(test())


def test_pieces_fit_into_a_sink_that_is_not_congested() -> None:
    assert HIGH_WATER - 1 + module._PIECE <= LIMIT
