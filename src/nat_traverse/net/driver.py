"""The driver: runs one machine on real sockets. All waiting of a traversal happens here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nat_traverse.model import Path

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.punch.machine import Event, Machine

# Datagrams taken from one socket before the others and the timers get their turn. A flood must
# not starve them; 64 datagrams are well below a millisecond of work.
_BATCH = 64


class Driver:
    """Feeds `machine` from `sockets` and carries out its effects, until stopped.

    `on_event` is called for each event, in order; it may call `stop`, after which nothing more is
    read: what is still in the sockets is left for whoever comes next.
    """

    def __init__(
        self,
        machine: Machine,
        sockets: Mapping[int, UdpSocket],
        loop: asyncio.AbstractEventLoop,
        on_event: Callable[[Event], None],
    ) -> None:
        self._machine = machine
        self._sockets = sockets
        self._loop = loop
        self._on_event = on_event
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    def start(self) -> None:
        """Start reading, sending and waiting."""
        self._running = True
        for number, socket in self._sockets.items():
            self._loop.add_reader(socket.fileno(), self._read, number)
        self._advance(self._loop.time())

    def stop(self) -> None:
        """Stop; the sockets stay open. Calling it twice does nothing."""
        if not self._running:
            return
        self._running = False
        for socket in self._sockets.values():
            self._loop.remove_reader(socket.fileno())
        self._cancel_timer()

    def _read(self, number: int) -> None:
        """Take what has arrived on one socket: refusals first, for they are older."""
        socket = self._sockets[number]
        for remote, error, _ in socket.receive_errors():
            self._machine.receive_error(error, Path(number, remote), self._loop.time())
        self._settle()
        for _ in range(_BATCH):
            arrived = socket.receive() if self._running else None
            if arrived is None:
                break
            data, remote = arrived
            self._machine.receive_datagram(data, Path(number, remote), self._loop.time())
            self._settle()
        self._schedule()

    def _advance(self, now: float) -> None:
        if not self._running:
            return
        self._machine.handle_timer(now)
        self._settle()
        self._schedule()

    def _settle(self) -> None:
        """Carry out effects and report events until there are none."""
        now = self._loop.time()
        for effect in self._machine.effects(now):
            error = self._sockets[effect.path.socket].send(
                effect.data, effect.path.remote, effect.ttl
            )
            if error is not None:
                self._machine.receive_error(error, effect.path, now)
        while (event := self._machine.next_event()) is not None:
            self._on_event(event)

    def _schedule(self) -> None:
        """See that the machine's timer is called in time; once too early does no harm.

        A timer that is due stays: the event loop reads first, and a flood of datagrams, each of
        which led here, would else put the timer off for as long as it lasts.
        """
        at = self._machine.get_timer()
        if self._running and at is not None:
            if self._timer is not None and self._timer.when() <= at:
                return
            self._cancel_timer()
            self._timer = self._loop.call_at(at, self._fire, at)

    def _fire(self, at: float) -> None:
        self._timer = None
        # The loop's clock has a resolution, and may wake us an instant early.
        self._advance(max(at, self._loop.time()))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
