"""Both ends of an encrypted tunnel's main stream, with pipes where users would be."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from nat_traverse.carry.datagram_relay import DatagramRelay
from nat_traverse.carry.descriptors import Sink, Source
from nat_traverse.carry.main_stream import MainStream
from nat_traverse.carry.stream_relay import StreamRelay
from nat_traverse.tunnel.secure import CONSENT
from support.ends import PipeEnd
from support.links import links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nat_traverse.carry.datagram_relay import DatagramEvent
    from nat_traverse.carry.stream_relay import StreamEvent
    from nat_traverse.link.link import Link

Kind = TypeVar("Kind")


class StreamEnd(PipeEnd):
    """One end: a relay of the main stream with a pipe on either side."""

    def __init__(
        self,
        link: Link,
        grace: float | None = None,
        *,
        datagrams: bool = False,
        packets: bool = True,
    ) -> None:
        super().__init__(packets=datagrams and packets)
        self.link = link
        self.main = MainStream(link)
        self.grace = grace
        self.events: list[DatagramEvent | StreamEvent] = []
        self._datagrams = datagrams
        self._packets = packets
        self._make_relay()

    def renew(self) -> None:
        """Put a new relay between the stream and the pipes."""
        self.source, self.sink = Source(self._reading), Sink(self._writing)
        self._make_relay()

    def start(self) -> asyncio.Task[None]:
        """Run the relay; its task tells how it ended."""
        return asyncio.ensure_future(self.relay.run())

    def told(self, kind: type[Kind]) -> list[Kind]:
        """Return the events of this kind."""
        return [each for each in self.events if isinstance(each, kind)]

    def _make_relay(self) -> None:
        if self._datagrams:
            self.relay: StreamRelay = DatagramRelay(
                self.main,
                self.source,
                self.sink,
                self.events.append,
                keeps_packets=self._packets,
                grace=self.grace,
            )
        else:
            self.relay = StreamRelay(
                self.main, self.source, self.sink, self.events.append, grace=self.grace
            )


@asynccontextmanager
async def stream_ends(
    *,
    grace: float | None = None,
    swapped: bool = False,
    datagrams: bool = False,
    packets: bool = True,
    consent: float = CONSENT,
) -> AsyncIterator[tuple[StreamEnd, StreamEnd]]:
    """Two ends; only the left one, the client's unless `swapped`, has `grace`, as a command's."""
    async with links(consent=consent) as pair:
        one, other = reversed(pair) if swapped else pair
        with (
            StreamEnd(one, grace, datagrams=datagrams, packets=packets) as left,
            StreamEnd(other, datagrams=datagrams, packets=packets) as right,
        ):
            yield left, right
