"""Datagrams over a real link, between sockets that keep packets apart, and between pipes."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.datagram_relay import DatagramsDropped, DatagramTooLarge, is_packet_socket
from nat_traverse.carry.descriptors import Source
from nat_traverse.carry.stream_relay import AllArrived
from nat_traverse.errors import ErrnoError, PeerGoneError
from nat_traverse.tunnel.events import Closing
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
    return bool(request.param == "server")


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (nothing announces it; `run` bounds the whole)
        await asyncio.sleep(0.005)


async def packet(end: StreamEnd) -> bytes:
    """Be the program behind it: one read, one packet."""
    return await asyncio.to_thread(os.read, end.output, 65_536)


async def started(left: StreamEnd, right: StreamEnd) -> list[asyncio.Task[None]]:
    """Start both; datagrams for who is not there yet are lost."""
    relaying = [left.start(), right.start()]
    await until(lambda: left.main._user is not None and right.main._user is not None)
    return relaying


def test_boundaries_are_kept_both_ways(swapped: bool) -> None:
    async def test() -> None:
        rng = random.Random(1)
        async with stream_ends(datagrams=True, swapped=swapped) as (left, right):
            relaying = await started(left, right)
            limit = left.main.stream.datagram_limit
            assert 1000 < limit < 1500
            for size in (1, 2, 1000, limit, 7, limit - 1):
                for one, other in ((left, right), (right, left)):
                    data = rng.randbytes(size)
                    os.write(one.input, data)
                    assert await packet(other) == data
            left.close_input()
            assert await packet(right) == b""
            os.write(right.input, b"still open")
            assert await packet(left) == b"still open"
            right.close_input()
            assert await packet(left) == b""
            await asyncio.gather(*relaying)
            # How much arrived can be told; that all did can't.
            assert len(right.events) == 1
            assert isinstance(right.events[0], AllArrived)

    run(test())


def test_many_at_once_are_paced_by_the_source() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True) as (left, right):
            relaying = await started(left, right)
            got: list[bytes] = []

            async def read() -> None:
                while data := await packet(right):
                    got.append(data)

            reading = asyncio.ensure_future(read())
            sent = [b"%06d" % number * 100 for number in range(1000)]

            def write() -> None:
                for each in sent:
                    os.write(left.input, each)

            await asyncio.to_thread(write)
            left.close_input()
            await reading
            right.close_input()
            await asyncio.gather(*relaying)
            assert set(got) <= set(sent)
            assert got == sorted(got)  # nothing on loopback overtakes
            # The reader may have been slower than the sender, and a pipe holds what it holds.
            assert len(got) == len(sent) or right.told(DatagramsDropped)
            assert len(got) > len(sent) // 10

    run(test())


def test_one_that_is_too_large_is_not_sent_and_told_once(swapped: bool) -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True, swapped=swapped) as (left, right):
            relaying = await started(left, right)
            limit = left.main.stream.datagram_limit
            for size in (limit + 1, 9000, 3):
                os.write(left.input, b"x" * size)
            assert await packet(right) == b"xxx"
            assert left.told(DatagramTooLarge) == [DatagramTooLarge(limit + 1, limit)]
            for each in (left, right):
                each.close_input()
            await asyncio.gather(*relaying)

    run(test())


def test_a_slow_reader_loses_what_it_does_not_read() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True) as (left, right):
            relaying = await started(left, right)

            def write() -> None:
                for number in range(5000):
                    os.write(left.input, b"%05d" % number * 200)

            await asyncio.to_thread(write)
            await until(lambda: right.told(DatagramsDropped))
            assert right.sink.buffered <= 1000  # one
            left.close_input()
            sizes = set()
            while data := await packet(right):
                sizes.add(len(data))
            assert sizes == {1000}
            assert len(right.told(DatagramsDropped)) == 1
            right.close_input()
            await asyncio.gather(*relaying)

    run(test())


def test_from_a_pipe_each_read_is_one() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True, packets=False) as (left, right):
            relaying = await started(left, right)
            await left.write(b"one")
            assert await packet(right) == b"one"
            limit = left.main.stream.datagram_limit
            # What is read goes out whole: never more than fits.
            await left.write(bytes(3 * limit + 5), end=True)
            assert await right.read_all() == bytes(3 * limit + 5)
            assert not left.told(DatagramTooLarge)
            right.close_input()
            await asyncio.gather(*relaying)

    run(test())


def test_late_ones_come_before_the_end() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True) as (left, right):
            relaying = await started(left, right)
            left.close_input()
            await until(lambda: right.main.has_ended)
            right.relay.datagram_received(b"overtaken")
            assert await packet(right) == b"overtaken"
            assert await packet(right) == b""
            right.close_input()
            await asyncio.gather(*relaying)

    run(test())


def test_stopped_between_the_end_and_its_telling() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True, grace=1.0) as (left, right):
            relaying = await started(left, right)
            right.close_input()
            await until(lambda: left.main.has_ended)
            await left.relay.pause()
            await relaying[0]
            left.renew()
            again = left.start()
            await asyncio.sleep(0)
            # The end belongs to the second one, and comes once.
            assert await packet(left) == b""
            left.close_input()
            assert await packet(right) == b""
            await asyncio.gather(relaying[1], again)

    run(test())


def test_bytes_in_the_stream_are_nobodys() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True) as (left, right):
            relaying = await started(left, right)
            left.main.stream.write(b"bytes")
            os.write(left.input, b"datagram")
            assert await packet(right) == b"datagram"
            for each in (left, right):
                each.close_input()
            assert await packet(right) == b""
            await asyncio.gather(*relaying)

    run(test())


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_peer_that_reads_no_more(has_ended: bool) -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True) as (left, right):
            relaying = await started(left, right)
            if has_ended:
                left.close_input()
                await until(lambda: left.source.ended)
            right.link.abort(Closing.NOT_READING, "7")
            await asyncio.wait(relaying)
            error = relaying[0].exception()
            if has_ended:
                assert error is None
            else:
                assert isinstance(error, PeerGoneError)
                assert error.errno == errno.ECONNRESET
                assert str(error) == "The other side stopped reading."

    run(test())


def test_a_source_that_can_not_be_read_is_an_error() -> None:
    async def test() -> None:
        async with stream_ends(datagrams=True, packets=False) as (left, right):
            directory = os.open("/", os.O_RDONLY)
            left.source.close()
            left.relay._source = Source(directory)
            relaying = [left.start(), right.start()]
            await asyncio.wait(relaying)
            error = relaying[0].exception()
            assert isinstance(error, ErrnoError)
            assert error.errno == errno.EISDIR
            os.close(directory)

    run(test())


def test_what_is_a_packet_socket() -> None:
    expected = {socket.SOCK_DGRAM: True, socket.SOCK_SEQPACKET: True, socket.SOCK_STREAM: False}
    for kind, is_one in expected.items():
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        with one, other:
            assert is_packet_socket(one.fileno()) is is_one
            assert one.fileno() >= 0  # it is open as before
    reading, writing = os.pipe()
    assert not is_packet_socket(reading)
    os.close(reading)
    os.close(writing)
