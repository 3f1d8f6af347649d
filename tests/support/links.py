"""Two links over loopback in one event loop, and protocols that note all that they are told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from nat_traverse.link.establish import Purpose, establish
from nat_traverse.net.udp import UdpSocket
from nat_traverse.session import PunchSettings, punch
from nat_traverse.tunnel.proof import Means
from nat_traverse.tunnel.secure import CONSENT
from nat_traverse.wire.hello import Mode
from nat_traverse.wire.sealed import HEADER_SIZE, INDEX_SIZE, PREFIX
from support.ends import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import pytest

    from nat_traverse.link.link import Link
    from nat_traverse.link.stream import Stream
    from nat_traverse.net.address import SocketAddress
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
    *,
    observe: Callable[[Event], None] | None = None,
    purpose: Purpose = Purpose.PROGRAM,
    consent: float = CONSENT,
) -> AsyncIterator[tuple[Link, Link]]:
    """Two links that are connected to each other; the first one is the client."""
    async with tunnel_holes() as holes:
        made = await asyncio.gather(
            *(establish(hole, SECRET, purpose, observe, consent=consent) for hole in holes)
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


INDEX, FOREIGN = b"\x11\x22\x33\x44", b"\x99\x99\x99\x99"  # a key's, and one of nobody


def sealed(number: int, size: int, index: bytes = INDEX) -> bytes:
    """Return what looks like a sealed datagram of `size` bytes; `number` is in it."""
    head = PREFIX + index + number.to_bytes(HEADER_SIZE - 8, "little")
    return head.ljust(size, b"\xee")


class Sealing:
    """Has the sealed datagrams of a link: takes those with INDEX for the peer's, and notes all."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.names: Sequence[bytes] = (INDEX,)
        self.runs: list[tuple[bytes, int]] = []
        self.came: list[bytes] = []  # one by one
        self.frames: list[tuple[int, bytes]] = []
        self.moved = 0
        self.sizes: list[int] = []  # to which the path was narrowed
        self.unsent: list[tuple[memoryview, int]] = []
        self.writable = 0  # how often there was room again
        self.changed = asyncio.Event()
        link.sealed_user = self

    @property
    def numbers(self) -> list[int]:
        """The numbers of what came from the peer."""
        return [
            int.from_bytes(each[8:HEADER_SIZE], "little")
            for each in self.came
            if each[4 : 4 + INDEX_SIZE] == INDEX
        ]

    def sealed_received(self, runs: Sequence[tuple[bytes, int]], now: float) -> int:
        assert now <= self.link.loop.time()
        genuine = 0
        for run, size in runs:
            found = [run[at : at + size] for at in range(0, len(run), size)]
            assert all(each.startswith(PREFIX[:1]) for each in found)
            self.runs.append((run, size))
            self.came += found
            genuine += sum(each[4 : 4 + INDEX_SIZE] == INDEX for each in found)
        self.changed.set()
        return genuine

    def frame_received(self, kind: int, value: bytes) -> None:
        self.frames.append((kind, value))
        self.changed.set()

    def send(self, run: bytes, size: int) -> None:
        """Send a run, the rest of it when there is room."""
        self.unsent.append((memoryview(run), size))
        if len(self.unsent) == 1:
            self._go_on()

    def sealed_writable(self) -> None:
        self.writable += 1
        assert self.unsent
        self._go_on()
        self.changed.set()

    def _go_on(self) -> None:
        while self.unsent:
            run, size = self.unsent[0]
            taken = self.link.send_sealed(run, size)
            assert taken % size == 0 or taken == len(run)
            if taken < len(run):
                self.unsent[0] = run[taken:], size
                return
            del self.unsent[0]

    def path_changed(self) -> None:
        self.moved += 1
        self.changed.set()

    def path_narrowed(self, datagram_size: int) -> None:
        self.sizes.append(datagram_size)
        self.changed.set()

    async def until(self, condition: Callable[[Sealing], object]) -> None:
        """Wait until something is so."""
        while not condition(self):
            self.changed.clear()
            await self.changed.wait()


def crowd(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have sockets be full from now on for each third send, and take one datagram of each other.

    Returns the sizes of the datagrams that were to be sent, one for each call, as they are made.
    """
    send = UdpSocket.send_segments
    calls: list[int] = []

    def sometimes_full(self: UdpSocket, buffers: list[bytes], size: int, to: SocketAddress) -> int:
        calls.append(size)
        if len(calls) % 3 == 0:
            return 0
        if len(calls) % 3 == 1:
            buffers = [b"".join(buffers)[:size]]
        return send(self, buffers, size, to)

    monkeypatch.setattr(UdpSocket, "send_segments", sometimes_full)
    return calls
