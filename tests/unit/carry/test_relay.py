"""The relay on real sockets and real pipes, against another relay and against a peer by hand."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import pytest

from nat_traverse import session
from nat_traverse.carry import descriptors
from nat_traverse.carry import receiver as receiver_module
from nat_traverse.carry import relay as relay_module
from nat_traverse.carry.descriptors import Sink, Source
from nat_traverse.carry.receiver import OutputOverflowed
from nat_traverse.carry.relay import Relay
from nat_traverse.errors import DataLostError, ErrnoError, OutputError, PeerGoneError
from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from nat_traverse.model import Path as PathToPeer
from nat_traverse.net.address import endpoint_from
from nat_traverse.net.errqueue import QueuedError
from nat_traverse.punch.machine import CloseSocket, OpenSocket
from nat_traverse.tunnel import plain
from nat_traverse.tunnel.plain import DeliveryKnown, Ended, PeerClosed, PeerFinished
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    Kind,
    Message,
    Reason,
    decode,
    encode,
)
from support.ends import End, end_and_original, ends, holes, run, tunnel_through

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.net.address import SocketAddress
    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.punch.machine import Effect

Kinds = TypeVar("Kinds")

DESCRIPTORS = Path("/proc/self/fd")


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def only(end: End, kind: type[Kinds]) -> Kinds:
    (event,) = (event for event in end.events if isinstance(event, kind))
    return event


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (nothing announces it; `run` bounds the whole)
        await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(DESCRIPTORS.iterdir())
    yield
    assert set(DESCRIPTORS.iterdir()) == before


class TestBothWays:
    @pytest.mark.parametrize("size", [0, 1, 1399, 1400, 1401, 65_536, 3_000_000])
    def test_every_byte_arrives_in_order_and_then_the_end(self, size: int) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                out, back = noise(size), noise(size, 2)
                got = await asyncio.gather(
                    left.start(),
                    right.start(),
                    left.write(out, end=True),
                    right.write(back, end=True),
                    left.read_all(),
                    right.read_all(),
                )
                assert (got[4], got[5]) == (back, out)
                for end in (left, right):
                    known, told = only(end, DeliveryKnown), only(end, PeerFinished)
                    assert known.sent == known.received
                    assert told.sent == told.received
                    assert known.sent.octets == told.received.octets == size
                    assert end.events[-1] == Ended()
                    assert end.relay.complete

        run(test())

    def test_one_direction_may_end_before_the_other_begins(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                running = asyncio.gather(left.start(), right.start())
                await left.write(b"that is all", end=True)
                assert await right.read_all() == b"that is all"
                for number in range(20):
                    line = b"%d\n" % number
                    await right.write(line)
                    assert await left.read(len(line)) == line
                await right.write(b"", end=True)
                assert await left.read_all() == b""
                await running

        run(test())

    def test_words_go_back_and_forth(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                running = asyncio.gather(left.start(), right.start())
                for number in range(200):
                    word = noise(number + 1, number)
                    await left.write(word)
                    assert await right.read(len(word)) == word
                    await right.write(word)
                    assert await left.read(len(word)) == word
                await left.write(b"", end=True)
                await right.write(b"", end=True)
                await running

        run(test())

    def test_a_regular_file_is_read_to_its_end(self, tmp_path: Path) -> None:
        data = noise(500_000)
        path = tmp_path / "file"
        path.write_bytes(data)

        async def test() -> None:
            async with holes() as (one, other):
                reading = os.open(path, os.O_RDONLY)
                with End(other, tunnel_through(other)) as right:
                    right_input, right.input = right.input, -1
                    os.close(right_input)
                    null = os.open(os.devnull, os.O_WRONLY)
                    left = Relay(
                        one, tunnel_through(one), Source(reading), Sink(null), lambda _: None
                    )
                    got = await asyncio.gather(left.run(), right.start(), right.read_all())
                    assert got[2] == data
                os.close(reading)

        run(test())


def lookalikes() -> list[bytes]:
    foreign, second = b"\x80" * 16, b"\x81" * 16
    return [
        HELLO_MAGIC,
        ACK_MAGIC,
        encode(Message(Kind.HELLO, foreign), size=HELLO_SIZE),
        encode(Message(Kind.HELLO, foreign), size=1400),
        encode(Message(Kind.HELLO, foreign, echo=second, closing=Reason.STOPPED), size=1400),
        encode(Message(Kind.ACK, foreign, echo=second)),
    ]


class TestDataThatLooksLikeAMessage:
    @pytest.mark.parametrize("data", lookalikes())
    def test_arrives_as_it_is(self, data: bytes) -> None:
        """One after the other, each as a datagram of its own, and then all in one."""

        async def test() -> None:
            async with ends() as (left, right):
                running = asyncio.gather(left.start(), right.start())
                for _ in range(5):
                    await left.write(data)
                    assert await right.read(len(data)) == data
                padded = data.ljust(1400, b"\0") * 100
                await left.write(padded, end=True)
                assert await right.read_all() == padded
                await right.write(b"", end=True)
                await running
                assert len(left.events) == len(right.events) == 3

        run(test())

    def test_leaves_whole_towards_a_peer_that_knows_no_messages(self) -> None:
        async def test() -> None:
            async with end_and_original() as (end, peer):
                running = end.start()
                data = encode(Message(Kind.HELLO, b"\x80" * 16), size=HELLO_SIZE)
                await end.write(data)
                assert await receive(peer) == data
                await stop(running)

        run(test())


async def receive(peer: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(peer, 65_535)


async def stop(running: asyncio.Task[None]) -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class TestDatagrams:
    def test_leave_with_at_most_1400_bytes_and_none_is_missing(self) -> None:
        async def test() -> None:
            async with end_and_original() as (end, peer):
                running = end.start()
                data = noise(40_000)
                await end.write(data, end=True)
                found: list[bytes] = []
                while sum(map(len, found)) < len(data):
                    found.append(await receive(peer))
                assert b"".join(found) == data
                assert max(map(len, found)) == 1400
                assert end.tunnel.sent == (len(found), len(data))
                await running

        run(test())

    @pytest.mark.parametrize("sizes", [[65_507], [1, 65_507, 2, 9000, 1400, 8192], [1] * 500])
    def test_of_every_size_are_taken_and_written_in_order(self, sizes: list[int]) -> None:
        async def test() -> None:
            async with end_and_original() as (end, peer):
                running = end.start()
                parts = [noise(size, seed) for seed, size in enumerate(sizes)]
                for part in parts:
                    peer.send(part)
                    peer.send(b"")  # says nothing, and is no end
                assert await end.read(sum(sizes)) == b"".join(parts)
                assert end.tunnel.received == (len(sizes), sum(sizes))
                os.close(end.input)
                end.input = -1
                await running
                assert await end.read_all() == b""

        run(test())

    def test_of_strangers_are_neither_written_nor_answered(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                running = asyncio.gather(left.start(), right.start())
                port = left.hole.socket.local.port
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    stranger.connect(("127.0.0.1", port))
                    mine = left.hole.handshake.nonce
                    for data in (
                        b"data",
                        HELLO_MAGIC,
                        ACK_MAGIC,
                        encode(Message(Kind.HELLO, b"\x80" * 16), size=HELLO_SIZE),
                        encode(Message(Kind.HELLO, b"\x80" * 16, echo=mine), size=HELLO_SIZE),
                        encode(Message(Kind.ACK, b"\x80" * 16, echo=mine)),
                    ):
                        stranger.send(data)
                    await right.write(b"afterwards", end=True)
                    await left.write(b"", end=True)
                    assert await left.read_all() == b"afterwards"
                    await running
                    stranger.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        stranger.recv(1)

        run(test())

    def test_that_are_doubled_behind_the_end_are_dropped(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                running = asyncio.gather(left.start(), right.start())
                await right.write(b"all", end=True)
                assert await left.read_all() == b"all"
                for _ in range(3):
                    right.hole.socket.send(b"all", right.tunnel.path.remote)
                await left.write(b"answer", end=True)
                assert await right.read_all() == b"answer"
                await running

        run(test())


class Unreliable:
    """A socket that sends less than it is asked to, and what is too big not at all.

    `lose` tells whether a burst is lost; `accept` how many datagrams are taken of so many.
    """

    def __init__(
        self,
        sock: UdpSocket,
        *,
        lose: Callable[[int], bool] = lambda _: False,
        accept: Callable[[int], int] = int,
        largest: int = 65_507,
        mtu: int = 0,
    ) -> None:
        self._sock = sock
        self._lose = lose
        self._accept = accept
        self._largest = largest
        self._mtu = mtu
        self._errors: list[QueuedError] = []
        self._calls = 0
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)

    def send_segments(
        self, buffers: Sequence[memoryview | bytes], segment_size: int, to: SocketAddress
    ) -> int:
        (burst,) = buffers
        if min(segment_size, len(burst)) > self._largest:
            refused = NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, mtu=self._mtu)
            remote = endpoint_from(to)
            self._errors.append(QueuedError(remote, refused, b""))
            return 0
        count = self._accept(-(-len(burst) // segment_size))
        taken = burst[: count * segment_size]
        self._calls += 1
        self.sizes.append(segment_size)
        if taken and not self._lose(self._calls):
            return self._sock.send_segments([taken], segment_size, to)
        return len(taken)

    def receive_errors(self) -> list[QueuedError]:
        errors, self._errors = [*self._errors, *self._sock.receive_errors()], []
        return errors


def wrap(end: End, **behaviour: object) -> Unreliable:
    """Put an unreliable socket below an end's relay."""
    wrapped = Unreliable(end.hole.socket, **behaviour)  # type: ignore[arg-type]
    for each in (end.relay, end.relay._sender, end.relay._receiver):
        each._socket = cast("UdpSocket", wrapped)
    return wrapped


class TestAFullSocket:
    @pytest.mark.parametrize("seed", range(5))
    def test_loses_nothing(self, seed: int) -> None:
        chance = random.Random(seed)

        async def test() -> None:
            async with ends() as (left, right):
                wrap(left, accept=lambda count: chance.randint(0, count))
                data = noise(1_000_000, seed)
                got = await asyncio.gather(
                    left.start(),
                    right.start(),
                    left.write(data, end=True),
                    right.write(b"", end=True),
                    right.read_all(),
                )
                assert got[4] == data
                assert left.tunnel.sent == right.tunnel.received

        run(test())

    def test_holds_back_the_end_as_well(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                full = True
                wrap(left, accept=lambda count: 0 if full else count)
                running = asyncio.gather(left.start(), right.start())
                await left.write(b"late", end=True)
                await right.write(b"here", end=True)
                assert await left.read_all() == b"here"
                full = False
                assert await right.read_all() == b"late"
                await running

        run(test())


class TestANarrowPath:
    @pytest.mark.parametrize(("largest", "mtu"), [(1200, 1228), (972, 1000), (300, 328), (500, 0)])
    def test_makes_datagrams_smaller_and_loses_nothing(self, largest: int, mtu: int) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                wrapped = wrap(left, largest=largest, mtu=mtu)
                data = noise(300_000)
                got = await asyncio.gather(
                    left.start(),
                    right.start(),
                    left.write(data, end=True),
                    right.write(b"", end=True),
                    right.read_all(),
                )
                assert got[4] == data
                assert max(wrapped.sizes) <= largest
                assert left.tunnel.datagram_size == (largest if mtu else 350)

        run(test())

    @pytest.mark.parametrize(
        ("mtu", "size"), [(1300, 1272), (1500, 1400), (68, 548), (0, 1400), (576, 548)]
    )
    def test_is_believed_within_reason_when_the_network_tells(self, mtu: int, size: int) -> None:
        async def test() -> None:
            async with ends() as (left, _):
                error = NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, "192.0.2.1", mtu)
                assert left.relay._sender._size_after(error) == size

        run(test())


class TestLosses:
    def test_are_told_by_both_ends(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                wrap(left, lose=lambda call: call == 1)
                tasks = left.start(), right.start()
                await left.write(noise(10_000))
                await until(lambda: left.tunnel.sent.octets == 10_000)
                await left.write(b"rest", end=True)
                await right.write(b"", end=True)
                found = [await raised(task) for task in tasks]
                assert await right.read_all() == b"rest"
                for error, where in zip(found, ("to the peer", "here"), strict=True):
                    assert isinstance(error, DataLostError)
                    assert error.exit_code == 5
                    assert str(error).startswith(
                        f"10,000 of 10,004 bytes (8 of 9 datagrams) were lost on the way {where}:"
                    )

        run(test())

    def test_doubled_datagrams_are_told_too(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                tasks = left.start(), right.start()
                left.hole.socket.send(b"twice", left.tunnel.path.remote)
                await left.write(b"twice", end=True)
                await right.write(b"", end=True)
                for task in tasks:
                    assert "5 bytes more arrived than were sent" in str(await raised(task))

        run(test())


def is_empty(sock: UdpSocket) -> bool:
    return not select.select([sock.fileno()], [], [], 0)[0]


async def raised(task: asyncio.Task[None]) -> BaseException:
    await asyncio.wait({task})
    error = task.exception()
    assert error is not None
    return error


class TestASlowReader:
    def test_gets_everything_in_order_and_keeps_the_peer_waiting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(descriptors, "HIGH_WATER", 200_000)
        monkeypatch.setattr(descriptors, "LOW_WATER", 100_000)
        monkeypatch.setattr(descriptors, "PIPE_SIZE", 65_536, raising=False)

        async def test() -> None:
            async with ends() as (left, right):
                data = noise(8_000_000)
                running = asyncio.gather(left.start(), right.start())
                writing = asyncio.ensure_future(left.write(data, end=True))
                await right.write(b"", end=True)
                await until(lambda: right.sink.congested)
                assert not writing.done()
                assert await right.read_all() == data
                await writing
                await running
                assert not any(isinstance(event, OutputOverflowed) for event in right.events)

        run(test())

    def test_of_an_old_peers_data_loses_what_does_not_fit_and_is_told_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = 100_000
        monkeypatch.setattr(receiver_module, "LIMIT", limit)

        async def test() -> None:
            async with end_and_original() as (end, peer):
                running = end.start()
                parts = [noise(1400, seed) for seed in range(2000)]
                for number, part in enumerate(parts):
                    peer.send(part)
                    if number % 50 == 0:
                        await asyncio.sleep(0)  # the relay's turn
                await until(lambda: OutputOverflowed() in end.events and is_empty(end.hole.socket))
                assert end.sink.buffered <= limit
                kept = end.tunnel.received
                got = await end.read(kept.octets)
                assert got == b"".join(parts[: kept.datagrams])
                peer.send(b"after")
                assert await end.read(5) == b"after"
                assert end.events.count(OutputOverflowed()) == 1
                await stop(running)

        run(test())

    @pytest.mark.parametrize("how", ["closed", "gone"])
    def test_gets_all_that_arrived_before_the_peer_was_gone(
        self, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plain, "_LATE", 0.0)

        async def test() -> None:
            async with ends() as (left, right):
                data = noise(4_000_000)
                sending, receiving = left.start(), right.start()
                await left.write(data)
                await until(lambda: right.tunnel.received.octets == len(data))
                if how == "closed":
                    await stop(sending)
                else:
                    left.relay.stop()
                    left.hole.close()
                    await right.write(b"x")
                    await until(lambda: right.tunnel._over)
                assert await right.read_all() == data
                error = await raised(receiving)
                assert isinstance(error, PeerGoneError)
                number = errno.ECONNRESET if how == "closed" else errno.ECONNREFUSED
                assert error.exit_code == number

        run(test())


class TestAReaderThatLeaves:
    def test_ends_it_and_the_peer_is_told_what_did_not_get_through(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                sending, receiving = left.start(), right.start()
                await left.write(b"first")
                assert await right.read(5) == b"first"
                right.close_output()
                await left.write(b"second")
                assert isinstance(await raised(receiving), BrokenPipeError)
                error = await raised(sending)
                assert isinstance(error, PeerGoneError)
                assert error.exit_code == errno.ECONNRESET
                assert str(error) == "The other side stopped reading; 6 bytes did not get through."
                assert only(left, PeerClosed).reason is Reason.NOT_READING

        run(test())

    def test_while_something_waits_to_be_written_ends_it_at_once(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                sending, receiving = left.start(), right.start()
                await left.write(noise(2_500_000))
                await until(lambda: right.tunnel.received.octets == 2_500_000)
                assert right.sink.buffered > 0
                right.close_output()
                assert isinstance(await raised(receiving), BrokenPipeError)
                # All of it had arrived, but did not come out.
                error = await raised(sending)
                assert isinstance(error, PeerGoneError)
                assert f"{right.sink.dropped:,} bytes did not get through" in str(error)
                assert only(left, PeerClosed).reason is Reason.NOT_READING

        run(test())

    def test_may_be_a_command_that_has_more_to_say(self) -> None:
        async def test() -> None:
            async with ends(grace=1.0) as (command, right):
                tasks = command.start(), right.start()
                command.close_output()
                for number in range(5):
                    await right.write(noise(100_000, number))
                await command.write(b"still here", end=True)
                assert await right.read_all() == b"still here"
                command.relay.leave()
                await asyncio.gather(*tasks)
                assert command.tunnel.received.octets == 500_000

        run(test())

    def test_with_data_waiting_may_be_a_command_too(self) -> None:
        async def test() -> None:
            async with ends(grace=1.0) as (command, right):
                tasks = command.start(), right.start()
                await right.write(noise(2_500_000))
                await until(lambda: command.sink.buffered > 0)
                command.close_output()
                await command.write(b"still here", end=True)
                assert await right.read_all() == b"still here"
                await right.write(b"", end=True)
                # All was taken over; that it was not read is the command's business.
                await asyncio.gather(*tasks)

        run(test())


class TestAFullDisk:
    def test_ends_it_with_the_reason(self) -> None:
        async def test() -> None:
            async with holes() as (one, other):
                with End(other, tunnel_through(other)) as right:
                    full = os.open("/dev/full", os.O_WRONLY)
                    reading, writing = os.pipe()
                    left = Relay(
                        one, tunnel_through(one), Source(reading), Sink(full), lambda _: None
                    )
                    tasks = asyncio.ensure_future(left.run()), right.start()
                    await right.write(b"x")
                    error = await raised(tasks[0])
                    assert isinstance(error, OutputError)
                    assert error.exit_code == errno.ENOSPC
                    assert str(error) == (
                        "Cannot write to standard output: No space left on device."
                        " Make room and run it again."
                    )
                    assert isinstance(await raised(tasks[1]), PeerGoneError)
                    assert only(right, PeerClosed).reason is Reason.STOPPED
                    for descriptor in (full, reading, writing):
                        os.close(descriptor)

        run(test())


class TestEnds:
    def test_a_source_that_cannot_be_read(self, tmp_path: Path) -> None:
        async def test() -> None:
            async with holes() as (one, other):
                with End(other, tunnel_through(other)) as right:
                    directory = os.open(tmp_path, os.O_RDONLY)
                    null = os.open(os.devnull, os.O_WRONLY)
                    left = Relay(
                        one, tunnel_through(one), Source(directory), Sink(null), lambda _: None
                    )
                    tasks = asyncio.ensure_future(left.run()), right.start()
                    error = await raised(tasks[0])
                    assert isinstance(error, ErrnoError)
                    assert error.exit_code == errno.EISDIR
                    assert isinstance(await raised(tasks[1]), PeerGoneError)
                    os.close(directory)
                    os.close(null)

        run(test())

    def test_leaving_waits_until_the_peer_has_everything(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                tasks = left.start(), right.start()
                data = noise(2_000_000)
                left.relay.leave()
                await left.write(data, end=True)
                assert await right.read_all() == data
                # Nothing of the right one's is missing, so neither fails.
                await asyncio.gather(*tasks)
                assert not right.relay.complete
                assert only(right, PeerClosed).reason is Reason.NOT_READING

        run(test())

    def test_leaving_an_old_peer_waits_for_nothing(self) -> None:
        async def test() -> None:
            async with end_and_original() as (end, peer):
                running = end.start()
                end.relay.leave()
                await end.write(b"bye", end=True)
                await running
                assert await receive(peer) == b"bye"

        run(test())

    def test_stopping_twice_does_nothing(self) -> None:
        async def test() -> None:
            async with ends() as (left, _):
                await stop_at_once(left)
                left.relay.stop()
                left.relay.output_progressed()

        run(test())


async def stop_at_once(end: End) -> None:
    running = end.start()
    await asyncio.sleep(0)
    await stop(running)


class TestPausing:
    def test_hands_over_to_another_relay_without_a_gap(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                running = right.start()
                await right.write(b"a" * 1000)
                for number in range(5):
                    before = left.start()
                    data = noise(200_000, number)
                    await left.write(data[:150_000])
                    await left.relay.pause()
                    await before
                    assert left.relay.paused
                    await left.write(data[150_000:])
                    left.renew()
                    after = left.start()
                    assert await right.read(len(data)) == data
                    await left.relay.pause()
                    await after
                    left.renew()
                await right.write(b"b" * 1000, end=True)
                last = left.start()
                await left.write(b"", end=True)
                assert await left.read_all() == b"a" * 1000 + b"b" * 1000
                await last
                await running

        run(test())

    def test_reads_nothing_more_while_what_was_read_has_no_room(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                room = False
                wrap(left, accept=lambda count: min(count, 1) if room else 0)
                tasks = left.start(), right.start()
                data = noise(200_000)
                await left.write(data[:50_000])
                await until(lambda: left.relay._sender.unsent > 0)
                pausing = asyncio.ensure_future(left.relay.pause())
                await left.write(data[50_000:])
                room = True
                await pausing
                await tasks[0]
                left.renew()
                again = left.start()
                assert await right.read(len(data)) == data
                await stop(again)
                assert isinstance(await raised(tasks[1]), PeerGoneError)

        run(test())

    def test_of_a_relay_that_is_over_is_no_pause(self) -> None:
        async def test() -> None:
            async with ends() as (left, right):
                tasks = left.start(), right.start()
                await left.write(b"", end=True)
                await right.write(b"", end=True)
                await asyncio.gather(*tasks)
                await left.relay.pause()
                assert not left.relay.paused

        run(test())


@pytest.fixture
def both_families(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name with an address of either family, on any machine."""
    addresses = ["127.0.0.1", "::1"]

    async def resolve(_: str, port: int) -> list[Endpoint]:
        return [Endpoint(host, port) for host in addresses]

    monkeypatch.setattr(session, "resolve", resolve)
    return "both"


class TestOtherPaths:
    """A name with two families gives two sockets, of which one is used."""

    def test_answer_and_carry_nothing(self, both_families: str) -> None:
        async def test() -> None:
            async with ends(both_families) as (left, right):
                ((number, sock),) = left.hole.others.items()
                (theirs,) = right.hole.others.values()
                running = asyncio.gather(left.start(), right.start())
                theirs.send(b"not data", sock.local._replace(host=loopback(sock)))
                hello = Message(
                    Kind.HELLO,
                    right.hole.handshake.nonce,
                    echo=left.hole.handshake.nonce,
                    serial=9,
                )
                answered = watch(right, hello.serial)
                remote = sock.local._replace(host=loopback(sock))
                theirs.send(encode(hello, size=HELLO_SIZE), remote)
                await until(lambda: bool(answered))
                assert all(path.socket == number for path in answered)
                await left.write(b"", end=True)
                await right.write(b"", end=True)
                assert await left.read_all() == b""
                await running

        run(test())

    def test_are_closed_when_the_handshake_asks_for_it(
        self, both_families: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def test() -> None:
            async with ends(both_families) as (left, right):
                ((number, sock),) = left.hole.others.items()
                asked: list[Effect] = [OpenSocket(99), CloseSocket(number), CloseSocket(98)]
                refused: list[int] = []
                effects = left.tunnel.effects

                def also_asked(now: float) -> Iterator[Effect]:
                    while asked:
                        yield asked.pop(0)
                    yield from effects(now)

                def socket_failed(wanted: int, _now: float) -> None:
                    refused.append(wanted)

                monkeypatch.setattr(left.tunnel, "effects", also_asked)
                monkeypatch.setattr(left.hole.handshake, "socket_failed", socket_failed)
                running = asyncio.gather(left.start(), right.start())
                await until(lambda: sock.fileno() < 0)
                assert refused == [99]
                await left.write(b"x", end=True)
                assert await right.read_all() == b"x"
                await right.write(b"", end=True)
                await running

        run(test())

    def test_are_closed_after_a_while_and_the_next_relay_does_without(
        self, both_families: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay_module, "_OTHERS", 0.01)

        async def test() -> None:
            async with ends(both_families) as (left, right):
                running = right.start()
                first = left.start()
                await until(lambda: all(s.fileno() < 0 for s in left.hole.others.values()))
                await left.relay.pause()
                await first
                left.renew()
                second = left.start()
                await left.write(b"x", end=True)
                assert await right.read_all() == b"x"
                await right.write(b"", end=True)
                await asyncio.gather(running, second)

        run(test())


def loopback(sock: UdpSocket) -> str:
    return "::1" if sock.local.is_ipv6 else "127.0.0.1"


def watch(end: End, serial: int | None) -> list[PathToPeer]:
    """Collect the paths on which acks of `serial` arrive at `end`."""
    found: list[PathToPeer] = []
    take = end.tunnel.take_message

    def take_message(data: bytes, path: PathToPeer, now: float) -> bool:
        message = decode(data)
        if isinstance(message, Message) and message.serial == serial:
            found.append(path)
        return take(data, path, now)

    end.tunnel.take_message = take_message  # type: ignore[method-assign]
    return found


def test_a_command_that_reads_nothing_does_not_hold_up_the_end() -> None:
    async def test() -> None:
        async with ends(grace=0.1) as (command, right):
            tasks = command.start(), right.start()
            await right.write(noise(2_500_000))
            await until(lambda: command.sink.buffered > 0)
            await stop(tasks[1])
            assert isinstance(await raised(tasks[0]), PeerGoneError)

    run(test())
