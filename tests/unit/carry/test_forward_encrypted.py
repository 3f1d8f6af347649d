"""Port forwards through the real thing: two links with a QUIC tunnel between them on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.forward import Forwards
from nat_traverse.carry.specs import parse_exposed, parse_local, parse_remote
from nat_traverse.carry.streams import ForwardRefused, Listening
from nat_traverse.link.establish import Purpose, establish
from nat_traverse.session import PunchSettings, punch
from nat_traverse.tunnel.proof import Means
from nat_traverse.wire.hello import Mode
from support.ends import free_ports
from support.forwards import reset, run, service, sockets_open, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nat_traverse.carry.streams import ForwardEvent
    from nat_traverse.link.link import Link

SEED = 23
DATA = random.Random(SEED).randbytes(10_000_000)


@asynccontextmanager
async def links() -> AsyncIterator[tuple[Link, Link]]:
    """Punch two holes, and make a link of each."""
    left, right = free_ports()
    settings = [
        PunchSettings(*ports, timeout=20.0, mode=Mode.TUNNEL, legacy=False)
        for ports in ((left, "127.0.0.1", right), (right, "127.0.0.1", left))
    ]
    holes = await asyncio.gather(*(punch(each, lambda _: None) for each in settings))
    one, other = await asyncio.gather(
        *(establish(hole, Means(), Purpose.FORWARDS) for hole in holes)
    )
    try:
        yield one, other
    finally:
        one.abort()
        other.abort()


class Side:
    """The forwards of one side, and what they tell."""

    def __init__(
        self,
        link: Link,
        *,
        local: Sequence[str] = (),
        remote: Sequence[str] = (),
        expose: Sequence[str] = (),
    ) -> None:
        self.events: list[ForwardEvent] = []
        self.forwards = Forwards(
            link,
            self.events.append,
            locals_=map(parse_local, local),
            remotes=map(parse_remote, remote),
            exposed=map(parse_exposed, expose),
        )

    async def port(self, number: int = 0) -> int:
        def found() -> list[str]:
            return [each.address for each in self.events if isinstance(each, Listening)]

        await until(lambda: len(found()) > number)
        return int(found()[number].rpartition(":")[2])


@asynccontextmanager
async def sides(
    *, local: Sequence[str] = (), remote: Sequence[str] = (), expose: Sequence[str] = ("any",)
) -> AsyncIterator[tuple[Side, Side]]:
    before = sockets_open(), asyncio.all_tasks()
    async with links() as (one, other):
        left, right = Side(one, local=local, remote=remote), Side(other, expose=expose)
        await left.forwards.start()
        await right.forwards.start()
        try:
            yield left, right
        finally:
            await left.forwards.stop()
            await right.forwards.stop()
    await until(lambda: (sockets_open(), asyncio.all_tasks()) == before)


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = asyncio.ensure_future(reader.read())
    writer.write(data)
    writer.write_eof()
    answer = await received
    writer.close()
    return answer


def test_ten_megabytes_each_way_on_two_forwards_at_once() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides(local=[f"0:localhost:{port}"], remote=[f"0:localhost:{port}"]) as (left, _),
        ):
            answers = await asyncio.gather(
                ask(await left.port(0), DATA), ask(await left.port(1), DATA)
            )
            digests = {hashlib.sha256(each).hexdigest() for each in answers}
            assert digests == {hashlib.sha256(DATA).hexdigest()}, f"seed {SEED}"

    run(test())


def test_each_direction_ends_on_its_own() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DATA[:100_000])
        writer.write_eof()
        assert await reader.read() == b"and I go on"
        writer.close()

    async def test() -> None:
        async with service(count) as port, sides(local=[f"0:localhost:{port}"]) as (left, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            assert await reader.read() == DATA[:100_000]
            writer.write(b"and I go on")
            writer.close()
            await until(lambda: not left.forwards._traffic._open)

    run(test())


def test_resets_are_carried_both_ways() -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.read(1) == b"!":
                reset(writer)
                return
            await reader.read()
        except ConnectionResetError:
            await heard.put("reset")
        writer.close()

    async def test() -> None:
        async with service(wait) as port, sides(local=[f"0:localhost:{port}"]) as (left, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            writer.write(b"!")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            _, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            writer.write(b"?")
            await until(lambda: len(left.forwards._traffic._open) == 1)
            reset(writer)
            assert await heard.get() == "reset"

    run(test())


def test_who_does_not_read_stalls_only_himself() -> None:
    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    async def test() -> None:
        async with (
            service(pour) as pouring,
            service() as echoing,
            sides(local=[f"0:localhost:{pouring}", f"0:localhost:{echoing}"]) as (left, _),
        ):
            with socket.create_connection(("127.0.0.1", await left.port())):
                for _ in range(5):
                    assert await ask(await left.port(1), DATA[:1_000_000]) == DATA[:1_000_000]

    run(test())


def test_a_refusal_is_told_on_both_sides() -> None:
    async def test() -> None:
        async with sides(local=["0:localhost:1"], expose=["localhost:2"]) as (left, right):
            reader, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            for each, by_peer in ((left, True), (right, False)):
                (event,) = (found for found in each.events if isinstance(found, ForwardRefused))
                assert event.by_peer == by_peer
                assert event.text == "not allowed without --expose localhost:1"

    run(test())


@pytest.mark.parametrize("option", ["local", "remote"])
def test_udp(option: str) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data, addr)  # type: ignore[attr-defined]

    async def test() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        spec = [f"udp/0:127.0.0.1:{port}"]
        async with sides(
            local=spec if option == "local" else (), remote=spec if option == "remote" else ()
        ) as (left, _):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.connect(("127.0.0.1", await left.port()))
                for size in (1, 500, 4096, 60_000, 10):
                    client.send(DATA[:size])
                    assert await loop.sock_recv(client, 65_535) == DATA[:size]
        transport.close()
        await asyncio.sleep(0)

    run(test())


def test_the_end_of_the_link_resets_connections_and_another_one_takes_its_place() -> None:
    async def test() -> None:
        async with service() as port, sides(local=[f"0:localhost:{port}"]) as (left, right):
            here = await left.port()
            reader, writer = await asyncio.open_connection("127.0.0.1", here)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            link = left.forwards._traffic.link
            assert link is not None
            link.abort()  # type: ignore[attr-defined]
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            for each in (left, right):
                each.forwards.rebind(None)
            async with links() as (one, other):
                left.forwards.rebind(one)
                right.forwards.rebind(other)
                assert await ask(here, b"again") == b"again"
                await left.forwards.stop()
                await right.forwards.stop()

    run(test())
