"""Both ends of a real tunnel over loopback in one event loop, with pipes where users would be."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from itertools import cycle, islice
from typing import TYPE_CHECKING, Self

from nat_traverse.carry.descriptors import Sink, Source
from nat_traverse.carry.relay import Relay
from nat_traverse.session import Hole, PunchSettings, punch
from nat_traverse.tunnel.plain import PlainTunnel
from nat_traverse.wire.hello import ACK_MAGIC, HELLO_MAGIC, MAGIC_SIZE
from support.sockets import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from nat_traverse.carry.relay import RelayEvent

PATIENCE = 30.0  # s; only a failing test waits so long

# Ports of a test process: enough that one is used again only after minutes.
_BLOCK = 500
_FIRST_BLOCK, _END_OF_BLOCKS = 10_000, 32_000
_held: list[socket.socket] = []  # by which a block is ours


def run(test: Coroutine[None, None, None]) -> None:
    """Run `test` in an event loop of its own, for a bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test

    asyncio.run(bounded())


def free_ports(count: int = 2, family: socket.AddressFamily = socket.AF_INET) -> list[int]:
    """Return ports that nobody had open a moment ago, and that no other test process takes.

    Tests run in several processes at the same time, and a program may open such a port a second
    after it was found to be free. So each process has a block of its own, below the ports that the
    kernel gives to those who ask for any (net.ipv4.ip_local_port_range).
    """
    found: list[int] = []
    for port in islice(_OWN_PORTS, _BLOCK):
        with socket.socket(family, socket.SOCK_DGRAM) as sock, suppress(OSError):
            sock.bind((LOOPBACK[family], port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"not {count} ports of the block are free")


def _own_ports() -> Iterator[int]:
    """Return the ports of this process's block, over and over: who asks twice gets others."""
    for number in range((_END_OF_BLOCKS - _FIRST_BLOCK) // _BLOCK):
        # A name that one process can have at a time, and that ends with it.
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0nat-traverse tests, block of ports {number}")
        except OSError:
            holder.close()
            continue
        _held.append(holder)
        first = _FIRST_BLOCK + number * _BLOCK
        return cycle(range(first, first + _BLOCK))
    raise AssertionError("too many processes run tests at the same time")


# Not when it is first needed: tests look whether they leave descriptors open.
_OWN_PORTS = _own_ports()


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


class PipeEnd:
    """What stands between two pipes, and the test at the far ends of them.

    With `packets` they are sockets that keep packets apart.
    """

    def __init__(self, *, packets: bool = False) -> None:
        self._reading, self.input = _packet_pipe() if packets else os.pipe()
        self.output, self._writing = _packet_pipe() if packets else os.pipe()
        self.source, self.sink = Source(self._reading), Sink(self._writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()  # a relay that was never started has closed neither
        self.sink.close()
        for descriptor in (self._reading, self.input, self.output, self._writing):
            with suppress(OSError):
                os.close(descriptor)

    async def write(self, data: bytes, *, end: bool = False) -> None:
        """Be the program before it: write all of `data`, and close the pipe if that is the end."""
        await asyncio.to_thread(self._write, data)
        if end:
            self.close_input()

    async def read(self, size: int) -> bytes:
        """Be the program behind it: read exactly `size` bytes, or what there is before the end."""
        return await asyncio.to_thread(self._read, size)

    async def read_all(self) -> bytes:
        """Read to the end, which the relay has to show."""
        return await self.read(1 << 62)

    def close_input(self) -> None:
        """Be a program that has written all."""
        os.close(self.input)
        self.input = -1

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


def _packet_pipe() -> tuple[int, int]:
    """Return what reads and what writes."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return reading.detach(), writing.detach()


class End(PipeEnd):
    """One end of a plain tunnel: a relay with a pipe on either side."""

    def __init__(
        self,
        hole: Hole,
        tunnel: PlainTunnel,
        grace: float | None = None,
    ) -> None:
        super().__init__()
        self.hole = hole
        self.tunnel = tunnel
        self.grace = grace
        self.events: list[RelayEvent] = []
        self._make_relay()

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        super().__exit__()

    def renew(self) -> None:
        """Put a new relay between the tunnel and the pipes."""
        self.source, self.sink = Source(self._reading), Sink(self._writing)
        self._make_relay()

    def start(self) -> asyncio.Task[None]:
        """Run the relay; its task tells how it ended."""
        return asyncio.ensure_future(self.relay.run())

    def _make_relay(self) -> None:
        self.relay = Relay(
            self.hole,
            self.tunnel,
            self.source,
            self.sink,
            self.events.append,
            grace=self.grace,
        )


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
