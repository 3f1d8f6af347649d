"""Standard input to the peer, the peer to standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nat_traverse.carry.descriptors import Sink, Source

if TYPE_CHECKING:
    from nat_traverse.carry.command import Relaying

# By number: Python's own objects for them may be closed or replaced, and buffer.
STANDARD_INPUT = 0
STANDARD_OUTPUT = 1


class MakeRelay(Protocol):
    """Makes a relay between a tunnel and two descriptors."""

    def __call__(self, source: Source, sink: Sink) -> Relaying:
        """Return the relay."""
        ...


async def relay_standard_streams(make_relay: MakeRelay) -> None:
    """Relay until both directions have ended; raises what the relay's `run` raises."""
    await make_relay(Source(STANDARD_INPUT), Sink(STANDARD_OUTPUT)).run()
