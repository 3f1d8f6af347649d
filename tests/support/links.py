"""Two links over loopback in one event loop, and protocols that note all that they are told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from nat_traverse.link.establish import Purpose, establish
from nat_traverse.session import PunchSettings, punch
from nat_traverse.tunnel.proof import Means
from nat_traverse.wire.hello import Mode
from support.ends import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nat_traverse.link.link import Link
    from nat_traverse.link.stream import Stream
    from nat_traverse.session import Hole
    from nat_traverse.tunnel.events import Event

SECRET = Means(b"correct horse")


def settings(mode: Mode = Mode.TUNNEL, peer: str = "127.0.0.1") -> list[PunchSettings]:
    """Return what two ends of this host need to find each other."""
    left, right = free_ports()
    return [
        PunchSettings(left, peer, right, timeout=20.0, mode=mode, legacy=False),
        PunchSettings(right, peer, left, timeout=20.0, mode=mode, legacy=False),
    ]


@asynccontextmanager
async def tunnel_holes(
    modes: tuple[Mode, Mode] = (Mode.TUNNEL, Mode.TUNNEL),
) -> AsyncIterator[tuple[Hole, Hole]]:
    """Punch two holes that are meant for encrypted tunnels; the first one's end is the client."""
    left, right = free_ports()
    both = [
        PunchSettings(ours, "127.0.0.1", theirs, timeout=20.0, mode=mode, legacy=False)
        for ours, theirs, mode in zip((left, right), (right, left), modes, strict=True)
    ]
    punched = await asyncio.gather(*(punch(each, lambda _: None) for each in both))
    punched.sort(key=lambda hole: hole.handshake.controlling, reverse=True)
    try:
        yield punched[0], punched[1]
    finally:
        for hole in punched:
            hole.close()


@asynccontextmanager
async def links(
    *, observe: Callable[[Event], None] | None = None
) -> AsyncIterator[tuple[Link, Link]]:
    """Two links that are connected to each other; the first one is the client."""
    async with tunnel_holes() as holes:
        made = await asyncio.gather(
            *(establish(hole, SECRET, Purpose.PROGRAM, observe) for hole in holes)
        )
        try:
            yield made[0], made[1]
        finally:
            for link in made:
                link.abort()


class Noting(asyncio.Protocol):
    """Notes what it is told, in order; bytes are joined."""

    def __init__(self, *, keeps_open: bool = True) -> None:
        self.told: list[str] = []
        self.received = bytearray()
        self.datagrams: list[bytes] = []
        self.error: Exception | None = None
        self.keeps_open = keeps_open
        self.changed = asyncio.Event()
        self.paused = False

    @property
    def stream(self) -> Stream:
        return self._stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._stream = cast("Stream", transport)
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.told[-1] != "data":
            self._note("data")
        self.changed.set()

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.append(data)
        self.changed.set()

    def eof_received(self) -> bool:
        self._note("eof")
        return self.keeps_open

    def pause_writing(self) -> None:
        self.paused = True
        self._note("pause")

    def resume_writing(self) -> None:
        self.paused = False
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")

    async def until(self, condition: Callable[[Noting], object]) -> None:
        """Wait until something is so."""
        while not condition(self):
            self.changed.clear()
            await self.changed.wait()

    async def until_told(self, what: str) -> None:
        await self.until(lambda noting: what in noting.told)

    def _note(self, what: str) -> None:
        self.told.append(what)
        self.changed.set()


class Accepting:
    """The other side of a link: makes a protocol for each stream that comes."""

    def __init__(self, link: Link, *, keeps_open: bool = True) -> None:
        self.protocols: list[Noting] = []
        self._keeps_open = keeps_open
        self._arrived = asyncio.Event()
        link.on_stream = self._make

    def _make(self) -> Noting:
        self.protocols.append(Noting(keeps_open=self._keeps_open))
        self._arrived.set()
        return self.protocols[-1]

    async def next(self, number: int = 0) -> Noting:
        """Return the protocol of the stream with this index, when it has come."""
        while len(self.protocols) <= number:
            self._arrived.clear()
            await self._arrived.wait()
        return self.protocols[number]
