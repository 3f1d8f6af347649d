"""Splices of real sockets with each other; the far ends of both are in the test's hands."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.splice import Splice, Waiting
from support.forwards import run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SEED = 22
DATA = random.Random(SEED).randbytes(3_000_000)

Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


def unix_pair() -> Pair:
    return socket.socketpair()


class Spliced:
    """Two sockets whose other ends are spliced."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self.one = one
        self.other = other
        self.closed: list[Splice] = []
        self.splice: Splice
        for sock in (one, other):
            sock.setblocking(False)

    async def send(self, sock: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, data)

    async def receive(self, sock: socket.socket, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            limit = min(size - len(found), 1 << 18)
            data = await asyncio.get_running_loop().sock_recv(sock, limit)
            if not data:
                break
            found += data
        return bytes(found)

    async def receive_all(self, sock: socket.socket) -> bytes:
        return await self.receive(sock, 1 << 62)


@asynccontextmanager
async def spliced(
    pair: Callable[[], Pair] = tcp_pair, from_one: bytes = b"", from_other: bytes = b""
) -> AsyncIterator[Spliced]:
    loop = asyncio.get_running_loop()
    (one, inner_one), (other, inner_other) = pair(), pair()
    first, _ = await loop.create_connection(Waiting, sock=inner_one)
    second, _ = await loop.create_connection(Waiting, sock=inner_other)
    both = Spliced(one, other)
    both.splice = Splice(
        first, second, both.closed.append, from_one=from_one, from_other=from_other
    )
    try:
        yield both
    finally:
        one.close()
        other.close()
        both.splice.abort()
        await until(lambda: both.closed)
        await asyncio.sleep(0)


PAIRS = pytest.mark.parametrize("pair", [tcp_pair, unix_pair])


@PAIRS
def test_much_both_ways_at_once(pair: Callable[[], Pair]) -> None:
    async def test() -> None:
        async with spliced(pair) as both:
            answers = await asyncio.gather(
                both.receive(both.one, len(DATA)),
                both.receive(both.other, len(DATA)),
                both.send(both.one, DATA),
                both.send(both.other, DATA[::-1]),
            )
            assert answers[0] == DATA[::-1], f"seed {SEED}"
            assert answers[1] == DATA, f"seed {SEED}"
            assert not both.closed

    run(test())


@PAIRS
def test_each_direction_ends_on_its_own(pair: Callable[[], Pair]) -> None:
    async def test() -> None:
        async with spliced(pair) as both:
            sending = asyncio.ensure_future(both.send(both.one, DATA))
            sending.add_done_callback(lambda _: both.one.shutdown(socket.SHUT_WR))
            assert await both.receive_all(both.other) == DATA
            for piece in (b"still", b" going", b" on"):
                await both.send(both.other, piece)
                assert await both.receive(both.one, len(piece)) == piece
            assert not both.closed
            both.other.shutdown(socket.SHUT_WR)
            assert await both.receive_all(both.one) == b""
            await until(lambda: both.closed)

    run(test())


def test_a_direction_that_has_ended_is_not_read_again() -> None:
    async def test() -> None:
        async with spliced() as both:
            # One ends while the other one takes nothing, so that it is paused and read on later.
            sending = asyncio.ensure_future(both.send(both.one, DATA))
            sending.add_done_callback(lambda _: both.one.shutdown(socket.SHUT_WR))
            filling = asyncio.ensure_future(both.send(both.other, DATA))
            await asyncio.sleep(0)
            assert await both.receive_all(both.other) == DATA
            assert await both.receive(both.one, len(DATA)) == DATA
            await asyncio.gather(sending, filling)
            await both.send(both.other, b"x")
            assert await both.receive(both.one, 1) == b"x"

    run(test())


@pytest.mark.parametrize("from_one", [True, False])
def test_a_reset_is_carried(from_one: bool) -> None:
    async def test() -> None:
        async with spliced() as both:
            near, far = (both.one, both.other) if from_one else (both.other, both.one)
            await both.send(near, b"beginning of")
            assert await both.receive(far, 12) == b"beginning of"
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            near.close()
            with pytest.raises(ConnectionResetError):
                await both.receive(far, 1)
            await until(lambda: both.closed)

    run(test())


def test_who_has_closed_cannot_be_written_to_and_the_writer_learns_it() -> None:
    async def test() -> None:
        async with spliced() as both:
            both.one.close()
            assert await both.receive_all(both.other) == b""
            with pytest.raises(OSError, match=r"reset|Broken"):  # noqa: PT012 (the kernel needs several)
                while True:
                    await both.send(both.other, b"is there anybody?")
                    await asyncio.sleep(0)
            await until(lambda: both.closed)

    run(test())


def test_a_reader_that_does_not_read_stops_the_sender() -> None:
    async def test() -> None:
        async with spliced() as both:
            sent = waited = 0
            while waited < 500:  # rounds of the loop, of which each takes on what it can
                try:
                    sent += both.one.send(DATA)
                    waited = 0
                except BlockingIOError:
                    waited += 1
                    await asyncio.sleep(0)
            # The buffers of two connections, and 64 KiB of asyncio's.
            assert sent < 64_000_000
            assert len(await both.receive(both.other, sent)) == sent

    run(test())


def test_what_was_read_before_comes_first() -> None:
    async def test() -> None:
        async with spliced(from_one=DATA, from_other=b"you ") as both:
            await asyncio.gather(both.send(both.one, b"end"), both.send(both.other, b"there"))
            assert await both.receive(both.one, 9) == b"you there"
            assert await both.receive(both.other, len(DATA) + 3) == DATA + b"end"

    run(test())


def test_what_was_read_before_may_fill_the_other_side() -> None:
    async def test() -> None:
        much = DATA * 10  # more than the kernel takes at once
        async with spliced(from_one=much) as both:
            reading = both.splice._sides[0].transport
            assert isinstance(reading, asyncio.Transport)
            assert not reading.is_reading()
            assert await both.receive(both.other, len(much)) == much
            await until(reading.is_reading)

    run(test())


def test_abort_resets_both() -> None:
    async def test() -> None:
        async with spliced() as both:
            both.splice.abort()
            for sock in (both.one, both.other):
                with pytest.raises(ConnectionResetError):
                    await both.receive(sock, 1)
            await until(lambda: both.closed)
            both.splice.abort()
            await asyncio.sleep(0)
            assert len(both.closed) == 1

    run(test())


class Gone(asyncio.Transport):
    """A connection that was reset, of which nobody has been told yet."""

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: object = None) -> object:
        del name
        return default

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        pass


def test_the_end_of_one_is_not_said_to_one_that_is_gone() -> None:
    one, other = Gone(), Gone()
    closed: list[Splice] = []
    Splice(one, other, closed.append)
    assert isinstance(one.protocol, asyncio.Protocol)
    assert one.protocol.eof_received()
    assert isinstance(other.protocol, asyncio.Protocol)
    other.protocol.connection_lost(ConnectionResetError())
    one.protocol.connection_lost(None)
    assert len(closed) == 1
