"""Standard input to the peer, the peer to standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nat_traverse.carry.descriptors import Sink, Source
from nat_traverse.carry.relay import Relay, RelayEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.session import Hole
    from nat_traverse.tunnel.plain import PlainTunnel

# By number: Python's own objects for them may be closed or replaced, and buffer.
_STANDARD_INPUT = 0
_STANDARD_OUTPUT = 1


async def relay_standard_streams(
    hole: Hole, tunnel: PlainTunnel, observe: Callable[[RelayEvent], None]
) -> None:
    """Relay until both directions have ended; raises what `Relay.run` raises."""
    source, sink = Source(_STANDARD_INPUT), Sink(_STANDARD_OUTPUT)
    await Relay(hole, tunnel, source, sink, observe).run()
