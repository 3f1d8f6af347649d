"""Until a relay has taken over, somebody else has to tell the peer that the tunnel is over."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nat_traverse.punch.machine import Send
from nat_traverse.wire.hello import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.session import Hole
    from nat_traverse.tunnel.plain import PlainTunnel


@contextmanager
def goodbye(hole: Hole, tunnel: PlainTunnel) -> Iterator[None]:
    """Tell the peer that the tunnel is over if this is left by an exception that no relay saw.

    A relay does so itself once it runs. But a command takes its time to start, a relay may be
    cancelled before its first step, and between two relays nobody looks after the tunnel. To enter
    in the same step of the task in which the hole came to be: so long the session sees to it.
    """
    try:
        yield
    except BaseException:
        tunnel.close(Reason.STOPPED)  # nothing, if the tunnel is over
        for effect in tunnel.effects(asyncio.get_running_loop().time()):
            if isinstance(effect, Send) and effect.path == tunnel.path:
                hole.socket.send(effect.data, effect.path.remote, effect.ttl)
        raise
