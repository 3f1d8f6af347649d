"""--wireguard: a path for a WireGuard device, and another one whenever that is lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from nat_traverse.carry import wg_watch
from nat_traverse.carry.wg_device import (
    NEW,
    Device,
    GoneError,
    WireGuardError,
    address,
    held,
    missing_right,
    spelled,
)
from nat_traverse.carry.wg_watch import Sign, Watch
from nat_traverse.carry.wireguard import LONGEST_KEEPALIVE
from nat_traverse.cli.search import punch_settings, watched
from nat_traverse.session import punch
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nat_traverse.carry.wg_device import State
    from nat_traverse.carry.wireguard import Configuration
    from nat_traverse.cli.report import Report
    from nat_traverse.cli.settings import Connect
    from nat_traverse.model import Endpoint
    from nat_traverse.session import PunchSettings

_T = TypeVar("_T")

_LOOK_EVERY: Final = 2.0  # s; wg takes 3 ms, and what is looked for takes a minute


async def use_wireguard(connect: Connect, configuration: Configuration, report: Report) -> NoReturn:
    """Keep the device on a path that works, until a signal ends it.

    Everything is undone then: a device that was made here is removed. One that was there before
    stays on the path that it has; one of its own it then keeps open as often as before. Raises
    WireGuardError, also for what could not be undone.
    """
    keeper = _Keeper(configuration, Device(configuration), connect.keepalive, report)
    with held(configuration):
        report.attach("wireguard", keeper.describe)
        await _keep(keeper, punch_settings(connect, Mode.PORTS), report)


async def _keep(keeper: _Keeper, settings: PunchSettings, report: Report) -> NoReturn:
    try:
        watch = await _finished(keeper.begin())
        while True:
            try:
                if watch is None:
                    # The name server may be reached through the device only.
                    settings = replace(settings, last_known=keeper.last_known)
                    watch = await _finished(keeper.use(*await _found(settings, report)))
                reason = await keeper.lost(watch)
            except GoneError as error:
                if not keeper.is_ours:
                    raise  # somebody wants it so
                reason = f"wireguard: {error}."
            report.lost(reason)
            # The limit of time is for the first path.
            settings, watch = replace(settings, timeout=None), None
            await _finished(keeper.let_go())
    finally:
        await keeper.end()


async def _found(settings: PunchSettings, report: Report) -> tuple[int, Endpoint]:
    """Find a path; return its ends: our port, and the peer's endpoint."""
    hole = await watched(report, punch, settings)
    try:
        await hole.settle()
        return hole.socket.local.port, hole.connected.path.remote
    finally:
        hole.close()


async def _finished(step: Awaitable[_T]) -> _T:
    """Return what a step returns; raises CancelledError if this task was cancelled meanwhile.

    The step itself goes on to its end: only then is it known what is to be undone.
    """
    try:
        return await step
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


async def _command(function: Callable[..., _T], *arguments: object) -> _T:
    """Run a command in a thread, to its end even if this task is cancelled: see `_finished`."""
    running = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    return running.result()


class _Keeper:
    """The device, and what is to be undone to it at the end.

    Its commands may take long, so each has a thread: other tunnels of this process go on.
    `last_known` is the last address of the peer's that is known.
    """

    def __init__(
        self, configuration: Configuration, device: Device, keepalive: int, report: Report
    ) -> None:
        self.is_ours = False
        self.last_known: str | None = None
        self._configuration = configuration
        self._device = device
        self._keepalive = configuration.keepalive or keepalive
        self._report = report
        self._parked: State | None = None
        self._too_rare: int | None = None  # the keepalive of a device that we keep open instead
        self._seen: State | None = None

    def describe(self) -> dict[str, object]:
        """Return what `nat-traverse status` shows of the device, as it was when last looked at.

        `handshake_age` is in seconds, `received` in bytes; they are None where there is none.
        """
        seen = self._seen
        age = None
        if seen is not None and seen.handshake:
            age = round(max(0.0, time.time() - seen.handshake), 3)
        return {
            "device": self._device.name,
            "endpoint": None if seen is None else seen.endpoint,
            "handshake_age": age,
            "received": None if seen is None else seen.received,
        }

    async def begin(self) -> Watch | None:
        """Get hold of the port; return a watch if the device is in use already.

        The device is not made before there is a path: it would send its own packets at once, for
        which the gateway of the other side is not prepared.
        """
        if not await _command(self._device.exists):
            reason = missing_right()
            if reason is not None:
                raise WireGuardError(
                    f"There is no WireGuard device {self._device.name}, and to make it {reason}. Or"
                    f" run before: wg-quick up {self._configuration.path}"
                )
            return None
        state = await _command(self._device.look)
        self.last_known = state.peer_address
        # The handshake is a time of the clock on the wall.
        if not state.is_parked and time.time() - state.handshake < wg_watch.AGED_AFTER:
            return await self._adopt(state)
        await self.let_go()
        return None

    async def _adopt(self, state: State) -> Watch:
        """Return a watch of a device that is in use, and see to it that it keeps its path open."""
        self._seen = state
        text = "is in use already, and is watched"
        if not 0 < state.keepalive <= LONGEST_KEEPALIVE:
            # While nobody uses it, its silence would be taken for a loss, and the gateways forget.
            self._too_rare = state.keepalive
            await _command(self._device.keep_open, self._keepalive)
            text += f" and kept open every {self._keepalive} s"
        self._tell("found", text, peer=state.endpoint)
        return Watch(state.handshake, state.received, time.monotonic(), is_up=True)

    async def let_go(self) -> None:
        """Take the device off the port, which the search needs; forget one of ours that is gone."""
        self._seen = None
        try:
            self._parked = await _command(self._device.park)
        except GoneError:
            if not self.is_ours:
                raise
            self.is_ours, self._parked = False, None
        else:
            if self._too_rare is not None:
                self._parked = self._parked._replace(keepalive=self._too_rare)
                self._too_rare = None

    async def use(self, local_port: int, remote: Endpoint) -> Watch:
        """Give a path to the device, which is made now if there is none."""
        is_there = await _command(self._device.exists)
        if not is_there and (self.is_ours or self._parked is None):
            self._parked = None
            await self._make()
        elif self._parked is None:  # the user has brought it up meanwhile
            self._parked = await _command(self._device.look)
        # The counters of a device that was made here may have moved on before they are read.
        before = self._parked or NEW
        await _command(self._device.use, local_port, remote, self._keepalive)
        self._parked = None
        self.last_known = address(spelled(remote))
        self._tell(
            "endpoint",
            f"uses port {local_port} to {remote}, and keeps it open every {self._keepalive} s",
            peer=str(remote),
            local_port=local_port,
            keepalive=self._keepalive,
        )
        return Watch(before.handshake, before.received, time.monotonic())

    async def lost(self, watch: Watch) -> str:
        """Watch the device until it has lost its way; return why that is to be thought.

        Raises GoneError when there is no device any more.
        """
        while True:
            state = self._seen = await _finished(_command(self._device.look))
            self.last_known = state.peer_address or self.last_known  # it may have moved
            sign = watch.look(state.handshake, state.received, time.monotonic())
            if sign is Sign.SHAKEN:
                self._tell("handshake", "has shaken hands with the peer", peer=state.endpoint)
            elif sign is not None:
                return f"wireguard: {sign.value}"
            await asyncio.sleep(_LOOK_EVERY)

    async def end(self) -> None:
        """Undo what was done, as far as the device is there; raises WireGuardError if it can't."""
        if not await self._may_be_there():
            return
        name, path = self._device.name, self._configuration.path
        try:
            if self.is_ours:
                left = (
                    f"The device {name} may still be there. To remove it: wg-quick down {path}, or"
                    f" if that fails again: ip link delete dev {name}"
                )
                await _command(self._device.down)
                self._tell("down", "was taken down")
            elif self._parked is not None:
                left = f"The device {name} has not got back the port and the endpoint that it had"
                await _command(self._device.restore, self._parked)
            elif self._too_rare is not None:
                left = f"The device {name} has not got back the persistent-keepalive that it had"
                await _command(self._device.keep_open, self._too_rare)
        except WireGuardError as error:
            if not await self._may_be_there():
                if not self.is_ours:
                    return
                # wg-quick runs that last, when the device is no more.
                left = f"The device {name} is gone, but PostDown was not run to its end"
            raise WireGuardError(f"{error}. {left}") from None

    async def _make(self) -> None:
        self.is_ours = False
        try:
            await _command(self._device.up)
        except WireGuardError:
            # What it leaves when it fails, or takes too long, is ours: there was none before.
            self.is_ours = await self._may_be_there()
            raise
        self.is_ours = True
        self._tell("up", "was brought up")

    async def _may_be_there(self) -> bool:
        try:
            return await _command(self._device.exists)
        except WireGuardError:
            return True

    def _tell(self, event: str, text: str, **fields: object) -> None:
        name = self._device.name
        self._report.wireguard(event, f"{name} {text}", device=name, **fields)
