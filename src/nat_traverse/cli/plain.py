"""The plain tunnel of the command line: what 0.7 did, with more to say about how it ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nat_traverse.carry.command import Detached, continue_detached, run_command
from nat_traverse.carry.goodbye import goodbye
from nat_traverse.carry.relay import Relay
from nat_traverse.carry.stdio import relay_standard_streams
from nat_traverse.tunnel.plain import PlainTunnel
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.cli.report import Report
    from nat_traverse.cli.settings import Connect
    from nat_traverse.session import Hole


@dataclass(frozen=True, slots=True)
class PlainBackground:
    """The command has left a process behind, for which the tunnel has to stay."""

    detached: Detached
    hole: Hole
    tunnel: PlainTunnel

    async def go_on(self, observe: Callable[..., None]) -> None:
        """Go on with the tunnel until that process has ended, or the tunnel has."""
        try:
            with goodbye(self.hole, self.tunnel):
                make_relay = partial(Relay, self.hole, self.tunnel, observe=observe)
                await continue_detached(self.detached, make_relay)
        finally:
            self.hole.close()


async def use_plain(connect: Connect, report: Report, hole: Hole) -> int | PlainBackground:
    """Carry data in the clear, as 0.7 does."""
    loop = asyncio.get_running_loop()
    tunnel = PlainTunnel(hole.handshake, hole.connected, loop.time(), room=hole.socket.receive_room)
    keep = False
    try:
        with goodbye(hole, tunnel):
            check_plain(hole)
            report.plain_after_all()
            make_relay = partial(Relay, hole, tunnel, observe=report.observe)
            if connect.cmd is None:
                await relay_standard_streams(make_relay)
                return 0
            report.running(connect.cmd)
            status = await run_command(connect.cmd, make_relay)
        if isinstance(status, int):
            return status
        keep = True
        return PlainBackground(status, hole, tunnel)
    finally:
        if not keep:
            hole.close()


def check_plain(hole: Hole) -> None:
    """Raise ModesDifferError if the peer wants an encrypted tunnel."""
    theirs = hole.handshake.peer_mode
    if theirs is Mode.TUNNEL:
        from nat_traverse.link.establish import ModesDifferError  # noqa: PLC0415 (slow to import)

        raise ModesDifferError(
            "This side was started with --plain and the other one was not. Nothing was sent in"
            " the clear. Leave it out here, or give it there too."
        )
