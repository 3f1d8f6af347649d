"""--wireguard: a path for a WireGuard device, and another one whenever that is lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from nat_traverse.carry import wg_watch
from nat_traverse.carry.wg_device import NEW, Device, WireGuardError, held, missing_right
from nat_traverse.carry.wg_watch import Sign, Watch
from nat_traverse.cli.search import punch_settings, watched
from nat_traverse.session import punch
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from nat_traverse.carry.wg_device import State
    from nat_traverse.carry.wireguard import Configuration
    from nat_traverse.cli.report import Report
    from nat_traverse.cli.settings import Connect
    from nat_traverse.model import Endpoint
    from nat_traverse.session import PunchSettings

_LOOK_EVERY: Final = 2.0  # s; wg takes 3 ms, and what is looked for takes a minute


async def use_wireguard(connect: Connect, configuration: Configuration, report: Report) -> NoReturn:
    """Keep the device on a path that works, until a signal ends it.

    Everything is undone then: a device that was made here is removed. One that was there before
    stays on the path that it has.
    """
    keeper = _Keeper(configuration, Device(configuration), connect.keepalive, report)
    with held(configuration):
        await _keep(keeper, punch_settings(connect, Mode.PORTS), report)


async def _keep(keeper: _Keeper, settings: PunchSettings, report: Report) -> NoReturn:
    try:
        watch = keeper.begin()
        if watch is None:
            watch = keeper.use(*await _found(settings, report))
        # The limit of time is for the first path.
        settings = replace(settings, timeout=None)
        while True:
            report.lost(await keeper.lost(watch))
            keeper.let_go()
            watch = keeper.use(*await _found(settings, report))
    finally:
        keeper.end()


async def _found(settings: PunchSettings, report: Report) -> tuple[int, Endpoint]:
    """Find a path; return its ends: our port, and the peer's endpoint."""
    hole = await watched(report, punch, settings)
    try:
        await hole.settle()
        return hole.socket.local.port, hole.connected.path.remote
    finally:
        hole.close()


class _Keeper:
    """The device, and what is to be undone to it at the end."""

    def __init__(
        self, configuration: Configuration, device: Device, keepalive: int, report: Report
    ) -> None:
        self._configuration = configuration
        self._device = device
        self._keepalive = configuration.keepalive or keepalive
        self._report = report
        self._is_ours = False
        self._parked: State | None = None

    def begin(self) -> Watch | None:
        """Get hold of the port; return a watch if the device is in use already.

        The device is not made before there is a path: it would send its own packets at once, for
        which the gateway of the other side is not prepared.
        """
        if not self._device.exists():
            reason = missing_right()
            if reason is not None:
                raise WireGuardError(
                    f"There is no WireGuard device {self._device.name}, and to make it {reason}. Or"
                    f" run before: wg-quick up {self._configuration.path}"
                )
            return None
        state = self._device.look()
        # The handshake is a time of the clock on the wall.
        if time.time() - state.handshake < wg_watch.AGED_AFTER:
            self._tell("found", "is in use already, and is watched", peer=state.endpoint)
            return Watch(state.handshake, state.received, time.monotonic(), is_up=True)
        self.let_go()
        return None

    def let_go(self) -> None:
        """Take the device off the port, which the search needs."""
        self._parked = self._device.park()

    def use(self, local_port: int, remote: Endpoint) -> Watch:
        """Give a path to the device, which is made now if there is none."""
        # The counters of a device that was made here may have moved on before they are read.
        before = self._parked or NEW
        if self._parked is None:
            self._device.up()
            self._is_ours = True
            self._tell("up", "was brought up")
        self._device.use(local_port, remote, self._keepalive)
        self._parked = None
        self._tell(
            "endpoint",
            f"uses port {local_port} to {remote}, and keeps it open every {self._keepalive} s",
            peer=str(remote),
            local_port=local_port,
            keepalive=self._keepalive,
        )
        return Watch(before.handshake, before.received, time.monotonic())

    async def lost(self, watch: Watch) -> str:
        """Watch the device until it has lost its way; return why that is to be thought."""
        while True:
            state = self._device.look()
            sign = watch.look(state.handshake, state.received, time.monotonic())
            if sign is Sign.SHAKEN:
                self._tell("handshake", "has shaken hands with the peer", peer=state.endpoint)
            elif sign is not None:
                return f"wireguard: {sign.value}"
            await asyncio.sleep(_LOOK_EVERY)

    def end(self) -> None:
        """Undo what was done, as far as the device is still there."""
        with suppress(WireGuardError):
            if self._is_ours:
                self._device.down()
                self._tell("down", "was taken down")
            elif self._parked is not None:
                self._device.restore(self._parked)

    def _tell(self, event: str, text: str, **fields: object) -> None:
        name = self._device.name
        self._report.wireguard(event, f"{name} {text}", device=name, **fields)
