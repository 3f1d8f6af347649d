"""The contract of `asyncio.Transport`, on a real tunnel over loopback."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.errors import PeerGoneError
from nat_traverse.tunnel.credit import FIRST_WINDOW
from nat_traverse.tunnel.events import Closing
from support.ends import run
from support.links import Accepting, Noting, links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nat_traverse.link.link import Link

DATA = random.Random(1).randbytes(3_000_000)


class Opened:
    """A stream, with what both ends of it were told."""

    def __init__(self, one: Link, other: Link, ours: Noting, theirs: Noting) -> None:
        self.links = one, other
        self.ours, self.theirs = ours, theirs


@asynccontextmanager
async def opened(*, keeps_open: bool = True) -> AsyncIterator[Opened]:
    async with links() as (one, other):
        accepting = Accepting(other, keeps_open=keeps_open)
        ours = Noting(keeps_open=keeps_open)
        one.open_stream(ours)
        ours.stream.write(b"!")
        theirs = await accepting.next()
        await theirs.until(lambda noting: noting.received)
        theirs.received.clear()
        theirs.told.clear()
        theirs.told.append("made")
        yield Opened(one, other, ours, theirs)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody is told of."""
    while not condition():  # noqa: ASYNC110 (see above)
        await asyncio.sleep(0.01)


async def turns(count: int = 5) -> None:
    """Let the event loop do what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_the_protocol_is_introduced_before_anything_else() -> None:
    async def main() -> None:
        async with links() as (one, other):
            Accepting(other)
            ours = Noting()
            stream = one.open_stream(ours)
            assert ours.told == ["made"]
            assert ours.stream is stream
            assert stream.get_protocol() is ours
            assert stream.number >= 0

    run(main())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_can_be_written(kind: type) -> None:
    async def main() -> None:
        async with opened() as pair:
            pair.ours.stream.write(kind(b"abc"))
            pair.ours.stream.writelines([kind(b"de"), kind(b""), kind(b"f")])
            await pair.theirs.until(lambda noting: noting.received == b"abcdef")

    run(main())


def test_what_was_written_may_be_changed_afterwards() -> None:
    async def main() -> None:
        async with opened() as pair:
            buffer = bytearray(DATA)
            pair.ours.stream.write(buffer)  # more than there is room for
            buffer[:] = bytes(len(buffer))
            await pair.theirs.until(lambda noting: len(noting.received) == len(DATA))
            assert pair.theirs.received == DATA

    run(main())


def test_both_ways_at_once() -> None:
    async def main() -> None:
        async with opened() as pair:
            pair.ours.stream.write(DATA)
            pair.theirs.stream.write(DATA[::-1])
            await pair.theirs.until(lambda noting: len(noting.received) == len(DATA))
            await pair.ours.until(lambda noting: len(noting.received) == len(DATA))
            assert pair.theirs.received == DATA
            assert pair.ours.received == DATA[::-1]

    run(main())


class TestHalfClosing:
    def test_one_half_ends_and_the_other_goes_on(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                assert pair.ours.stream.can_write_eof()
                pair.ours.stream.write(b"question")
                pair.ours.stream.write_eof()
                pair.ours.stream.write_eof()
                await pair.theirs.until_told("eof")
                assert pair.theirs.told == ["made", "data", "eof"]
                pair.theirs.stream.write(b"answer")
                await pair.ours.until(lambda noting: noting.received == b"answer")
                assert "eof" not in pair.ours.told
                pair.theirs.stream.write_eof()
                await pair.ours.until_told("eof")
                assert "lost" not in [*pair.ours.told, *pair.theirs.told]

        run(main())

    def test_nothing_can_be_written_after_it(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.ours.stream.write_eof()
                with pytest.raises(RuntimeError, match="write_eof"):
                    pair.ours.stream.write(b"more")

        run(main())

    def test_it_waits_for_what_is_not_sent_yet(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.ours.stream.write(DATA)
                pair.ours.stream.write_eof()
                await pair.theirs.until_told("eof")
                assert pair.theirs.received == DATA

        run(main())

    def test_a_protocol_that_wants_no_half_is_closed(self) -> None:
        async def main() -> None:
            async with opened(keeps_open=False) as pair:
                pair.ours.stream.write_eof()
                await pair.theirs.until_told("lost")
                assert pair.theirs.told[-2:] == ["eof", "lost"]
                assert pair.theirs.error is None
                await pair.ours.until_told("lost")
                assert pair.ours.error is None

        run(main())


class TestClosing:
    def test_sends_what_is_left(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.ours.stream.write(DATA)
                pair.ours.stream.close()
                assert pair.ours.stream.is_closing()
                assert "lost" not in pair.ours.told
                pair.ours.stream.write(b"ignored")
                await pair.theirs.until_told("eof")
                assert pair.theirs.received == DATA
                await pair.ours.until_told("lost")
                assert pair.ours.error is None

        run(main())

    def test_is_told_to_the_protocol_once_and_later(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                stream = pair.ours.stream
                stream.close()
                assert "lost" not in pair.ours.told, "not from within the call"
                stream.close()
                stream.abort()
                await pair.ours.until_told("lost")
                stream.abort()
                stream.close()
                await turns()
                assert pair.ours.told.count("lost") == 1

        run(main())

    def test_takes_nothing_more_and_says_so(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.ours.stream.close()
                await pair.theirs.until_told("eof")
                # Both halves are over there: ours has ended, theirs is not read.
                await pair.theirs.until_told("lost")
                assert pair.theirs.error is None
                pair.theirs.stream.write(b"into the void")
                assert pair.ours.received == b""

        run(main())

    def test_what_is_written_to_a_closed_stream_is_an_error(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.ours.stream.close()
                await until(lambda: pair.theirs.stream._is_stopped)
                pair.theirs.stream.write(b"dropped")
                pair.theirs.stream.write_eof()
                pair.theirs.stream.resume_reading()
                await pair.theirs.until_told("lost")
                assert isinstance(pair.theirs.error, BrokenPipeError)

        run(main())

    def test_by_a_peer_that_was_quicker_leaves_all_to_be_read(self) -> None:
        """As with TCP: written, closed, and read to the end by a reader that takes its time."""

        async def main() -> None:
            async with links() as (one, other):
                reader = asyncio.StreamReader()
                other.on_stream = lambda: asyncio.StreamReaderProtocol(reader)
                stream = one.open_stream(Noting())
                stream.write(b"all of it")
                stream.close()
                await asyncio.sleep(0.05)
                assert await reader.read() == b"all of it"

        run(main())

    def test_of_both_ends_leaves_nothing(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.ours.stream.write_eof()
                await pair.theirs.until_told("eof")
                pair.theirs.stream.close()
                await pair.ours.until_told("eof")
                pair.ours.stream.close()
                await pair.ours.until_told("lost")
                await pair.theirs.until_told("lost")
                assert (pair.ours.error, pair.theirs.error) == (None, None)
                for link in pair.links:
                    assert not link._streams
                    assert not link._writers
                    assert not link.tunnel._streams

        run(main())

    def test_with_unread_data_does_not_hold_the_writer_up(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.ours.stream.write(b"unread")
                pair.ours.stream.write_eof()
                await until(lambda: pair.theirs.stream._fin_received)
                pair.theirs.stream.close()
                await pair.links[0].drain()

        run(main())


class TestAborting:
    def test_resets_the_peer(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.ours.stream.write(DATA)
                pair.ours.stream.abort()
                assert pair.ours.stream.get_write_buffer_size() == 0
                await pair.theirs.until_told("lost")
                assert isinstance(pair.theirs.error, ConnectionResetError)
                await pair.ours.until_told("lost")
                assert pair.ours.error is None
                assert not any(link._streams for link in pair.links)

        run(main())

    def test_while_closing_ends_the_waiting(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.ours.stream.write(DATA)
                pair.ours.stream.close()
                await turns()
                assert "lost" not in pair.ours.told
                pair.ours.stream.abort()
                await pair.ours.until_told("lost")

        run(main())

    def test_spares_other_streams(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                first, second = Noting(), Noting()
                for protocol in (first, second):
                    one.open_stream(protocol).write(b"x")
                await accepting.next(1)
                first.stream.abort()
                await accepting.protocols[0].until_told("lost")
                second.stream.write(b"y")
                await accepting.protocols[1].until(lambda noting: noting.received == b"xy")

        run(main())


class TestPausing:
    def test_nothing_is_handed_on_meanwhile_and_memory_is_bounded(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.theirs.stream.pause_reading()
                assert not pair.theirs.stream.is_reading()
                pair.ours.stream.write(DATA)
                pair.ours.stream.write_eof()
                await until(lambda: sum(map(len, pair.theirs.stream._unread)) >= FIRST_WINDOW - 1)
                await asyncio.sleep(0.1)
                assert sum(map(len, pair.theirs.stream._unread)) <= FIRST_WINDOW
                assert pair.theirs.received == b""
                pair.theirs.stream.resume_reading()
                pair.theirs.stream.resume_reading()
                assert pair.theirs.stream.is_reading()
                assert pair.theirs.received == b"", "not from within the call"
                await pair.theirs.until_told("eof")
                assert pair.theirs.received == DATA

        run(main())

    def test_in_the_middle_of_what_has_arrived(self) -> None:
        class Sipping(Noting):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                self.stream.pause_reading()
                asyncio.get_running_loop().call_soon(self.stream.resume_reading)

        async def main() -> None:
            async with links() as (one, other):
                theirs = Sipping()
                other.on_stream = lambda: theirs
                stream = one.open_stream(Noting())
                stream.write(DATA)
                stream.write_eof()
                await theirs.until_told("eof")
                assert theirs.received == DATA

        run(main())

    def test_the_end_waits_as_well(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.ours.stream.write_eof()
                await until(lambda: pair.theirs.stream._fin_received)
                assert "eof" not in pair.theirs.told
                pair.theirs.stream.resume_reading()
                await pair.theirs.until_told("eof")

        run(main())


class TestWaterMarks:
    def test_the_writer_is_paused_and_resumed(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                low, high = pair.ours.stream.get_write_buffer_limits()
                assert 0 < low < high
                pair.theirs.stream.pause_reading()
                pair.ours.stream.write(DATA)
                assert pair.ours.told == ["made", "pause"]
                assert pair.ours.stream.get_write_buffer_size() > high
                pair.theirs.stream.resume_reading()
                await pair.ours.until_told("resume")
                assert pair.ours.stream.get_write_buffer_size() <= low
                await pair.theirs.until(lambda noting: len(noting.received) == len(DATA))
                assert pair.ours.told == ["made", "pause", "resume"]

        run(main())

    def test_can_be_set_as_asyncio_has_it(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                stream = pair.ours.stream
                stream.set_write_buffer_limits(high=1000)
                assert stream.get_write_buffer_limits() == (250, 1000)
                stream.set_write_buffer_limits(low=1000)
                assert stream.get_write_buffer_limits() == (1000, 4000)
                stream.set_write_buffer_limits(high=0)
                assert stream.get_write_buffer_limits() == (0, 0)
                with pytest.raises(ValueError, match="water"):
                    stream.set_write_buffer_limits(high=1, low=2)
                with pytest.raises(ValueError, match="water"):
                    stream.set_write_buffer_limits(high=-1)
                pair.theirs.stream.pause_reading()
                stream.write(bytes(FIRST_WINDOW))
                assert pair.ours.told[-1] == "pause", "not one byte may wait"

        run(main())

    def test_a_writer_whose_peer_reads_no_more_is_not_left_paused(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                pair.theirs.stream.pause_reading()
                pair.ours.stream.write(DATA)
                paused = pair.ours.paused
                assert paused
                pair.theirs.stream.write(b"last words")
                pair.theirs.stream.close()
                await pair.ours.until_told("lost")
                assert pair.ours.received == b"last words"
                assert not pair.ours.paused
                assert isinstance(pair.ours.error, BrokenPipeError)

        run(main())


class TestExceptions:
    @pytest.mark.parametrize("where", ["data_received", "eof_received", "datagram_received"])
    def test_of_a_protocol_end_its_stream_and_nothing_else(self, where: str) -> None:
        async def main() -> None:
            caught: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, what: caught.append(what))
            async with opened() as pair:
                fault = ZeroDivisionError(where)

                def fail(*_: object) -> None:
                    raise fault

                setattr(pair.theirs, where, fail)
                pair.ours.stream.send_datagram(b"x")
                pair.ours.stream.write(b"x")
                pair.ours.stream.write_eof()
                await pair.theirs.until_told("lost")
                assert pair.theirs.error is fault
                assert [each["exception"] for each in caught] == [fault]
                await pair.ours.until_told("lost")
                assert not any(link.is_over for link in pair.links)

        run(main())

    def test_of_a_protocol_that_is_introduced(self) -> None:
        class Bad(Noting):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                raise ZeroDivisionError

        async def main() -> None:
            caught: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, what: caught.append(what))
            async with links() as (one, other):
                bad = Bad()
                other.on_stream = lambda: bad
                ours = Noting()
                one.open_stream(ours).write(b"x")
                await ours.until_told("lost")
                assert len(caught) == 1
                assert bad.told == ["made", "lost"]
                mine = Bad()
                one.open_stream(mine)
                await mine.until_told("lost")
                assert not one.is_over
                assert not other.is_over

        run(main())

    def test_of_whoever_makes_protocols_refuse_the_stream(self) -> None:
        async def main() -> None:
            caught: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, what: caught.append(what))

            def fail() -> asyncio.Protocol:
                raise ZeroDivisionError

            async with links() as (one, other):
                other.on_stream = fail
                ours = Noting()
                one.open_stream(ours).write(b"x")
                await ours.until_told("lost")
                assert len(caught) == 1
                assert not other.is_over

        run(main())


class TestStreams:
    """`asyncio.StreamReader` and `asyncio.StreamWriter` on top."""

    @staticmethod
    def stream(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = link.open_stream(protocol)
        return reader, asyncio.StreamWriter(transport, protocol, reader, link.loop)

    def test_an_echo(self) -> None:
        served: list[asyncio.Task[None]] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            writer.close()
            await writer.wait_closed()

        async def main() -> None:
            async with links() as (one, other):
                other.on_stream = lambda: asyncio.StreamReaderProtocol(
                    asyncio.StreamReader(),
                    lambda reader, writer: served.append(
                        asyncio.ensure_future(echo(reader, writer))
                    ),
                )
                reader, writer = self.stream(one)

                async def send() -> None:
                    for start in range(0, len(DATA), 100_000):
                        writer.write(DATA[start : start + 100_000])
                        await writer.drain()
                    writer.write_eof()

                sending = asyncio.ensure_future(send())
                assert await reader.read() == DATA
                await sending
                writer.close()
                await writer.wait_closed()
                await asyncio.gather(*served)

        run(main())

    def test_a_reset_is_raised_where_one_reads_and_waits(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                reader, writer = self.stream(one)
                writer.write(DATA)
                theirs = await accepting.next()
                theirs.stream.pause_reading()
                waiting = asyncio.ensure_future(writer.drain())
                await asyncio.sleep(0.05)
                theirs.stream.abort()
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                with pytest.raises(ConnectionResetError):
                    await waiting

        run(main())

    def test_lines_and_what_is_known_of_the_peer(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                reader, writer = self.stream(one)
                assert writer.get_extra_info("peername") == ("127.0.0.1", one.peer.port)
                assert writer.get_extra_info("socket") is None
                assert writer.get_extra_info("sslcontext", 7) == 7
                writer.write(b"x")
                theirs = await accepting.next()
                theirs.stream.writelines([b"first\nsec", b"ond\n"])
                assert await reader.readline() == b"first\n"
                assert await reader.readuntil() == b"second\n"

        run(main())


class TestDatagrams:
    def test_go_to_the_streams_other_end(self) -> None:
        async def main() -> None:
            async with opened() as pair:
                second = Noting()
                pair.links[0].open_stream(second).write(b"x")
                pair.ours.stream.send_datagram(b"one")
                pair.theirs.stream.send_datagram(b"other")
                largest = bytes(pair.ours.stream.datagram_limit)
                await pair.theirs.until(lambda noting: noting.datagrams == [b"one"])
                await pair.ours.until(lambda noting: noting.datagrams == [b"other"])
                pair.ours.stream.send_datagram(largest)
                await pair.theirs.until(lambda noting: noting.datagrams == [b"one", largest])
                with pytest.raises(ValueError, match="fit"):
                    pair.ours.stream.send_datagram(largest + b"x")
                assert second.datagrams == []

        run(main())

    def test_of_a_stream_that_is_over_or_wants_none_are_dropped(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                other.on_stream = asyncio.Protocol
                ours = Noting()
                stream = one.open_stream(ours)
                stream.write(b"x")
                stream.send_datagram(b"nobody wants it")
                await asyncio.sleep(0.05)
                stream.abort()
                stream.send_datagram(b"too late")
                await asyncio.sleep(0.05)
                assert not one.is_over
                assert not other.is_over

        run(main())

    def test_a_writer_is_told_when_there_is_room(self) -> None:
        class Writing(Noting):
            def datagrams_writable(self) -> None:
                self._note("writable")

        async def main() -> None:
            async with links() as (one, other):
                Accepting(other)
                ours = Writing()
                stream = one.open_stream(ours)
                stream.write(b"x")
                sent = 0
                while stream.has_datagram_room:
                    stream.send_datagram(bytes(1000))
                    sent += 1
                    assert sent < 10_000
                await ours.until_told("writable")
                assert stream.has_datagram_room

        run(main())


class TestWaiting:
    def test_streams_beyond_the_hundredth_wait_for_others_to_end(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                protocols = [Noting() for _ in range(120)]
                for index, protocol in enumerate(protocols):
                    stream = one.open_stream(protocol)
                    assert protocol.told == ["made"]
                    stream.write(b"%d" % index)
                    stream.write_eof()
                await accepting.next(99)
                await asyncio.sleep(0.05)
                assert len(accepting.protocols) == 100
                assert [p.stream.number for p in protocols[100:]] == [-1] * 20
                done = 0
                while done < 120:
                    theirs = await accepting.next(done)
                    await theirs.until_told("eof")
                    assert theirs.received == b"%d" % done
                    theirs.stream.close()
                    protocols[done].stream.close()
                    done += 1

        run(main())

    def test_one_that_waits_can_be_closed_or_aborted(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                first = [Noting() for _ in range(100)]
                for protocol in first:
                    one.open_stream(protocol).write(b"x")
                closed, aborted = Noting(), Noting()
                one.open_stream(closed).write(b"late")
                one.open_stream(aborted).write(b"never")
                assert closed.stream.number == aborted.stream.number == -1
                closed.stream.send_datagram(b"it has no number yet")
                closed.stream.close()
                aborted.stream.abort()
                await aborted.until_told("lost")
                assert "lost" not in closed.told
                await accepting.next(99)
                for protocol in first:
                    protocol.stream.abort()
                for theirs in accepting.protocols[:100]:
                    await theirs.until_told("lost")
                late = await accepting.next(100)
                await late.until_told("eof")
                assert late.received == b"late"
                await closed.until_told("lost")
                assert closed.error is None
                await late.until_told("lost")
                assert len(accepting.protocols) == 101
                assert not one._streams
                assert not other._streams

        run(main())


def test_another_protocol_takes_over() -> None:
    async def main() -> None:
        async with opened() as pair:
            other = Noting()
            other.told.append("made")
            pair.theirs.stream.set_protocol(other)
            pair.ours.stream.write(b"for the other")
            await other.until(lambda noting: noting.received == b"for the other")
            assert pair.theirs.received == b""

    run(main())


def test_the_end_of_the_tunnel_is_the_end_of_every_stream() -> None:
    async def main() -> None:
        async with opened() as pair:
            pair.links[0].abort(Closing.STOPPED)
            await pair.ours.until_told("lost")
            await pair.theirs.until_told("lost")
            assert isinstance(pair.ours.error, ConnectionResetError)
            assert isinstance(pair.theirs.error, ConnectionResetError)
            pair.ours.stream.write(b"ignored")
            pair.ours.stream.write_eof()
            pair.ours.stream.pause_reading()
            pair.ours.stream.resume_reading()
            pair.ours.stream.abort()
            pair.ours.stream.close()
            await turns()
            with pytest.raises(PeerGoneError):
                pair.links[0].open_stream(Noting())

    run(main())


def test_whose_halves_have_both_ended_is_not_harmed_by_it() -> None:
    async def main() -> None:
        async with opened() as pair:
            pair.ours.stream.write_eof()
            pair.theirs.stream.write_eof()
            await pair.ours.until_told("eof")
            await pair.theirs.until_told("eof")
            pair.links[0].abort(Closing.COMPLETE)
            await pair.ours.until_told("lost")
            await pair.theirs.until_told("lost")
            assert (pair.ours.error, pair.theirs.error) == (None, None)

    run(main())


def test_the_end_may_be_held_back() -> None:
    """As by a command's input, which takes a while to have taken all."""

    async def main() -> None:
        async with opened() as pair:
            pair.theirs.stream.holds_end = True
            pair.ours.stream.write(b"all of it")
            pair.ours.stream.write_eof()
            await pair.theirs.until_told("eof")
            draining = asyncio.ensure_future(pair.links[0].drain())
            await asyncio.sleep(0.05)
            assert not draining.done()
            pair.theirs.stream.finish_receiving()
            await draining

    run(main())
