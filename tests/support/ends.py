"""Both ends of a real tunnel over loopback in one event loop, with pipes where users would be."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from nat_traverse.carry.descriptors import Sink, Source
from nat_traverse.carry.relay import Relay
from nat_traverse.session import Hole, PunchSettings, punch
from nat_traverse.tunnel.plain import PlainTunnel
from nat_traverse.wire.hello import ACK_MAGIC, HELLO_MAGIC, MAGIC_SIZE
from support.sockets import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from nat_traverse.carry.relay import RelayEvent

PATIENCE = 30.0  # s; only a failing test waits so long


def run(test: Coroutine[None, None, None]) -> None:
    """Run `test` in an event loop of its own, for a bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test

    asyncio.run(bounded())


def free_ports(count: int = 2, family: socket.AddressFamily = socket.AF_INET) -> list[int]:
    """Return ports that nobody had open a moment ago."""
    socks = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(count)]
    for sock in socks:
        sock.bind((LOOPBACK[family], 0))
    ports = [int(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return ports


@asynccontextmanager
async def holes(peer: str = "127.0.0.1") -> AsyncIterator[tuple[Hole, Hole]]:
    """Punch two holes towards each other."""
    left, right = free_ports()
    settings = PunchSettings(left, peer, right, 20.0), PunchSettings(right, peer, left, 20.0)
    punched = await asyncio.gather(*(punch(each, lambda _: None) for each in settings))
    try:
        yield punched[0], punched[1]
    finally:
        for hole in punched:
            hole.close()


@asynccontextmanager
async def hole_to_original() -> AsyncIterator[tuple[Hole, socket.socket]]:
    """Punch a hole towards a socket that behaves as nat-traverse 0.7 does; yield both."""
    loop = asyncio.get_running_loop()
    (port,) = free_ports(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.setblocking(False)
        peer.bind(("127.0.0.1", 0))
        # Connected, so that it hears nobody else; refused while nobody listens yet.
        peer.connect(("127.0.0.1", port))
        settings = PunchSettings(port, "127.0.0.1", peer.getsockname()[1], 20.0)
        punching = asyncio.ensure_future(punch(settings, lambda _: None))
        while (await loop.sock_recv(peer, 65_535))[:MAGIC_SIZE] != HELLO_MAGIC:
            pass
        peer.send(HELLO_MAGIC)
        while await loop.sock_recv(peer, 65_535) != ACK_MAGIC:
            pass
        peer.send(ACK_MAGIC)
        hole = await punching
        try:
            yield hole, peer
        finally:
            hole.close()


def tunnel_through(hole: Hole) -> PlainTunnel:
    """Return the tunnel that belongs to a hole."""
    now = asyncio.get_running_loop().time()
    return PlainTunnel(hole.handshake, hole.connected, now, room=hole.socket.receive_room)


@dataclass
class End:
    """One end: a relay with a pipe on either side, and the test at the far ends of the pipes."""

    hole: Hole
    tunnel: PlainTunnel
    grace: float | None = None
    events: list[RelayEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reading, self.input = os.pipe()
        self.output, self._writing = os.pipe()
        self.renew()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        self.source.close()  # a relay that was never started has closed neither
        self.sink.close()
        for descriptor in (self._reading, self.input, self.output, self._writing):
            with suppress(OSError):
                os.close(descriptor)

    def renew(self) -> None:
        """Put a new relay between the tunnel and the pipes."""
        self.source, self.sink = Source(self._reading), Sink(self._writing)
        self.relay = Relay(
            self.hole,
            self.tunnel,
            self.source,
            self.sink,
            self.events.append,
            grace=self.grace,
        )

    def start(self) -> asyncio.Task[None]:
        """Run the relay; its task tells how it ended."""
        return asyncio.ensure_future(self.relay.run())

    async def write(self, data: bytes, *, end: bool = False) -> None:
        """Be the program before it: write all of `data`, and close the pipe if that is the end."""
        await asyncio.to_thread(self._write, data)
        if end:
            os.close(self.input)
            self.input = -1

    async def read(self, size: int) -> bytes:
        """Be the program behind it: read exactly `size` bytes, or what there is before the end."""
        return await asyncio.to_thread(self._read, size)

    async def read_all(self) -> bytes:
        """Read to the end, which the relay has to show."""
        return await self.read(1 << 62)

    def close_output(self) -> None:
        """Be a program that leaves without reading on."""
        os.close(self.output)
        self.output = -1

    def hang_up(self) -> None:
        """Close the relay's own end of its input, as its exit would: whoever writes sees EPIPE."""
        os.close(self._reading)
        self._reading = -1

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.input, view) :]

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            data = os.read(self.output, min(size - len(found), 1 << 20))
            if not data:
                break
            found += data
        return bytes(found)


@asynccontextmanager
async def ends(
    peer: str = "127.0.0.1", *, grace: float | None = None
) -> AsyncIterator[tuple[End, End]]:
    """Two ends; only the left one has `grace`, as a command's has."""
    async with holes(peer) as (one, other):
        with (
            End(one, tunnel_through(one), grace) as left,
            End(other, tunnel_through(other)) as right,
        ):
            yield left, right


@asynccontextmanager
async def end_and_original() -> AsyncIterator[tuple[End, socket.socket]]:
    """One end, and the socket of a peer that behaves as 0.7 does."""
    async with hole_to_original() as (hole, peer):
        with End(hole, tunnel_through(hole)) as end:
            yield end, peer
