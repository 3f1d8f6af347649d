"""Two sides with port forwards and a link in memory between them; real sockets outside of it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nat_traverse.carry.forward import Forwards
from nat_traverse.carry.specs import parse_dynamic, parse_exposed, parse_local, parse_remote
from nat_traverse.carry.streams import ForwardEvent, ForwardRefused, Listening
from support.streams import FakeLink, links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

PATIENCE = 10.0  # s; only a failing test waits so long


@dataclass
class Side:
    """One side of the link."""

    forwards: Forwards
    link: FakeLink
    events: list[ForwardEvent] = field(default_factory=list)

    def refusals(self, *, by_peer: bool) -> list[ForwardRefused]:
        return [
            each
            for each in self.events
            if isinstance(each, ForwardRefused) and each.by_peer == by_peer
        ]

    async def listening(self, number: int = 0) -> str:
        """Wait for a listener; return where it is."""
        await until(lambda: len(self._listening()) > number)
        return self._listening()[number].address

    async def port(self, number: int = 0) -> int:
        return int((await self.listening(number)).rpartition(":")[2])

    def _listening(self) -> list[Listening]:
        return [each for each in self.events if isinstance(each, Listening)]


def side(
    link: FakeLink,
    *,
    L: Sequence[str] = (),  # noqa: N803 (the options' names)
    R: Sequence[str] = (),  # noqa: N803
    D: Sequence[str] = (),  # noqa: N803
    expose: Sequence[str] = (),
) -> Side:
    events: list[ForwardEvent] = []
    forwards = Forwards(
        link,
        events.append,
        locals_=map(parse_local, L),
        remotes=map(parse_remote, R),
        dynamics=map(parse_dynamic, D),
        exposed=map(parse_exposed, expose),
    )
    return Side(forwards, link, events)


@asynccontextmanager
async def sides(
    left: dict[str, Sequence[str]] | None = None, right: dict[str, Sequence[str]] | None = None
) -> AsyncIterator[tuple[Side, Side]]:
    """Two sides with their options; at the end, both have to leave nothing behind."""
    before = sockets_open(), asyncio.all_tasks()
    one, other = links()
    pair = side(one, **left or {}), side(other, **right or {})
    # Streams to a side that has not started are not the subject here.
    for each in pair:
        each.link.on_stream = each.forwards.accept
    try:
        for each in pair:
            await each.forwards.start()
        yield pair
    finally:
        for each in pair:
            await each.forwards.stop()
    await until(lambda: (sockets_open(), asyncio.all_tasks()) == before)
    assert not one.streams
    assert not other.streams


def sockets_open() -> int:
    """How many sockets this process has."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(path.readlink()).startswith("socket:")
    return count


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that the event loop brings about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (many different things are waited for)
            await asyncio.sleep(0.005)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what arrives, to the end."""
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def service(
    handler: Handler = echo,
    path: str | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[int]:
    """Run a service on loopback or at a path; yields its port."""
    if path is not None:
        server: asyncio.Server = await asyncio.start_unix_server(handler, path)
    else:
        server = await asyncio.start_server(handler, host, 0)
    try:
        yield 0 if path is not None else server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if path is not None:
            Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 (takes no time)


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a TCP connection."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def unused_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port that nobody had open a moment ago."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run(test: Coroutine[None, None, None]) -> None:
    """Run a test in an event loop of its own, for a bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await test

    asyncio.run(bounded())
