"""UDP forwards between real sockets, with a link in memory between the two sides."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from nat_traverse.carry import udp_forward
from nat_traverse.carry.streams import Forwarded, ForwardRefused
from nat_traverse.wire.request import Word
from support.forwards import run, side, sides, until, unused_port
from support.streams import links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SEED = 21
DATA = random.Random(SEED).randbytes(65_000)


class Echo(asyncio.DatagramProtocol):
    """A service that sends back what it gets, with the number of its clients before it."""

    def __init__(self) -> None:
        self.clients: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if addr not in self.clients:
            self.clients.append(addr)
        self.transport.sendto(data, addr)


class Client:
    """A program that sends datagrams to a port of loopback."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((host, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 65_535)

    async def ask(self, data: bytes) -> bytes:
        self.sock.send(data)
        return await self.receive()


@asynccontextmanager
async def echo(port: int = 0) -> AsyncIterator[tuple[int, Echo]]:
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1", port)
    transport, protocol = await loop.create_datagram_endpoint(Echo, local_addr=address)
    try:
        yield transport.get_extra_info("sockname")[1], protocol
    finally:
        transport.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [1, 100, 1200, 1201, 4096, 60_000])
def test_datagrams_of_all_sizes(size: int) -> None:
    async def test() -> None:
        async with (
            echo() as (port, _),
            sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            with Client(await left.port()) as client:
                for at in range(3):
                    data = DATA[at : at + size]
                    assert await client.ask(data) == data, f"seed {SEED}"
            name = f"udp 127.0.0.1:{port}"
            assert right.events == [Forwarded(name, "the other side")]
            # What fits into a datagram is one, once the way is known.
            assert (left.link.datagrams > 0) == (size <= 1200)

    run(test())


def test_each_client_is_a_flow_of_its_own() -> None:
    async def test() -> None:
        async with (
            echo() as (port, service),
            sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, _),
        ):
            here = await left.port()
            with Client(here) as one, Client(here) as other, Client(here, "::1") as third:
                for client in (one, other, third):
                    client.sock.send(str(client.sock.getsockname()).encode())
                for client in (one, other, third):
                    assert await client.receive() == str(client.sock.getsockname()).encode()
                assert len(service.clients) == 3
                await one.ask(b"again")
                assert len(service.clients) == 3

    run(test())


def test_datagrams_may_get_lost_but_the_first_ones_do_not() -> None:
    async def test() -> None:
        async with (
            echo() as (port, service),
            sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            left.link.losing = True
            with Client(await left.port()) as client:
                assert await client.ask(b"first") == b"first"
                before = left.link.datagrams
                client.sock.send(b"lost")
                await until(lambda: left.link.datagrams > before)
                assert await client.ask(DATA[:2000]) == DATA[:2000]  # not a datagram of the link's
                right.link.losing = True
                client.sock.send(b"lost as well")
                left.link.losing = False
                assert await client.ask(DATA[:3000]) == DATA[:3000]
            assert len(service.clients) == 1

    run(test())


def test_a_remote_forward() -> None:
    async def test() -> None:
        async with (
            echo() as (port, _),
            sides({"R": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            with Client(await left.port()) as client:
                assert await client.ask(b"small") == b"small"
                assert await client.ask(DATA[:4096]) == DATA[:4096]
            assert len([each for each in right.events if isinstance(each, Forwarded)]) == 1
            assert await right.listening() == f"localhost:{await left.port()}"

    run(test())


def test_the_end_of_a_remote_forward_closes_its_sockets() -> None:
    async def test() -> None:
        async with sides({"R": ["udp/0:127.0.0.1:1"]}, {"expose": ["any"]}) as (left, _):
            port = await left.port()
            await left.forwards.stop()

            def is_free() -> bool:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    return sock.connect_ex(("127.0.0.1", port)) == 0 and not _listens(port)

            await until(is_free)

    run(test())


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_a_refusal_is_told_once_on_both_sides() -> None:
    async def test() -> None:
        async with sides({"L": ["udp/0:127.0.0.1:53"]}) as (left, right):
            with Client(await left.port()) as client:
                for _ in range(50):
                    client.sock.send(b"hello?")
                await until(lambda: left.refusals(by_peer=True))
                for _ in range(50):
                    client.sock.send(b"hello?")
                    await asyncio.sleep(0)
            (event,) = right.refusals(by_peer=False)
            text = "not allowed without --expose udp/127.0.0.1:53"
            assert event == ForwardRefused("udp 127.0.0.1:53", False, Word.NOT_EXPOSED, text)
            (event,) = left.refusals(by_peer=True)
            assert event.text == text

    run(test())


def test_a_client_that_was_refused_may_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_forward, "REFUSED_FOR", 0.0)

    async def test() -> None:
        async with sides({"L": ["udp/0:127.0.0.1:53"]}) as (left, _):
            with Client(await left.port()) as client:
                for count in (1, 2):
                    client.sock.send(b"hello?")
                    await until(lambda: len(left.refusals(by_peer=True)) == count)  # noqa: B023

    run(test())


def test_a_service_that_is_down_loses_datagrams_and_no_more() -> None:
    async def test() -> None:
        port = unused_port(socket.SOCK_DGRAM)
        async with sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, _):
            with Client(await left.port()) as client:
                for _ in range(5):
                    client.sock.send(b"hello?")
                    await asyncio.sleep(0)
                await until(lambda: len(left.events) == 2)  # listening, forwarded
                async with echo(port):
                    assert await client.ask(b"hello!") == b"hello!"
                    assert len(left.link.streams) == 1
            assert len(left.events) == 2

    run(test())


def test_an_idle_flow_ends_and_the_next_datagram_begins_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp_forward, "SWEEP", 0.01)
    monkeypatch.setattr(udp_forward, "IDLE_LIMIT", 0.2)

    async def test() -> None:
        async with (
            echo() as (port, service),
            sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            with Client(await left.port()) as client:
                assert await client.ask(b"one") == b"one"
                await until(lambda: not left.link.streams and not right.link.streams)
                assert await client.ask(b"two") == b"two"
            assert len(service.clients) == 2

    run(test())


def test_there_is_a_limit_of_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_forward, "FLOW_LIMIT", 2)

    async def test() -> None:
        async with (
            echo() as (port, _),
            sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, _),
        ):
            here = await left.port()
            with Client(here) as one, Client(here) as two, Client(here) as three:
                for client in (one, two):
                    await client.ask(b"hello")
                for _ in range(3):
                    three.sock.send(b"hello")
                await until(lambda: left.refusals(by_peer=False))
                await one.ask(b"still here")
            (event,) = left.refusals(by_peer=False)
            assert event.word is Word.BUSY
            assert len(left.link.streams) == 2

    run(test())


def test_without_a_link_it_is_refused() -> None:
    async def test() -> None:
        async with sides({"L": ["udp/0:127.0.0.1:53"]}) as (left, _):
            left.forwards.rebind(None)
            with Client(await left.port()) as client:
                client.sock.send(b"hello?")
                await until(lambda: left.refusals(by_peer=False))

    run(test())


@pytest.mark.parametrize("answer", [b"what?\n", b"ok 99999\n", bytes(600)])
def test_an_answer_that_makes_no_sense(answer: bytes) -> None:
    async def test() -> None:
        one, other = links()
        left = side(one, L=["udp/0:127.0.0.1:53"])

        class Liar(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                for at in range(0, len(answer), 5):
                    transport.write(answer[at : at + 5])

        other.on_stream = Liar
        await left.forwards.start()
        with Client(await left.port()) as client:
            client.sock.send(b"hello?")
            await until(lambda: left.refusals(by_peer=True))
        (event,) = left.refusals(by_peer=True)
        assert event.word is Word.MALFORMED
        await left.forwards.stop()

    run(test())


def test_a_peer_that_resets_every_flow_is_not_asked_for_each_datagram() -> None:
    async def test() -> None:
        one, other = links()
        left = side(one, L=["udp/0:127.0.0.1:53"])
        opened = 0

        class Resetting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                nonlocal opened
                opened += 1
                assert isinstance(transport, asyncio.Transport)
                asyncio.get_running_loop().call_soon(transport.abort)

        other.on_stream = Resetting
        await left.forwards.start()
        with Client(await left.port()) as client:
            for _ in range(20):
                client.sock.send(b"hello?")
                await asyncio.sleep(0)
            await until(lambda: left.refusals(by_peer=False))
        assert opened == 1
        await left.forwards.stop()

    run(test())


def test_the_end_of_a_flow_that_had_an_answer_is_silent() -> None:
    async def test() -> None:
        async with (
            echo() as (port, service),
            sides({"L": [f"udp/0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            with Client(await left.port()) as client:
                await client.ask(b"one")
                for stream in list(right.link.streams):
                    stream.abort()
                await until(lambda: not left.link.streams)
                await client.ask(b"two")
            assert len(service.clients) == 2
            assert not left.refusals(by_peer=False)

    run(test())


def test_a_peer_that_does_not_read_costs_datagrams_and_no_memory() -> None:
    async def test() -> None:
        one, other = links()
        left = side(one, L=["udp/0:127.0.0.1:53"])

        class Sleeper(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                transport.pause_reading()

        other.on_stream = Sleeper
        await left.forwards.start()
        with Client(await left.port()) as client:
            for _ in range(100):
                client.sock.send(DATA[:5000])
                await asyncio.sleep(0)
        (stream,) = left.link.streams
        assert 0 < stream.get_write_buffer_size() < 100_000
        await left.forwards.stop()

    run(test())
