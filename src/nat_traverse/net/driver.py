"""The driver: runs one machine on real sockets. All waiting of a traversal happens here."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Path
from nat_traverse.net.udp import UdpSocket
from nat_traverse.punch.machine import CloseSocket, OpenSocket, Send

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, MutableMapping

    from nat_traverse.punch.machine import Effect, Event, Machine

# Datagrams taken from one socket before the others and the timers get their turn. A flood must
# not starve them; 64 datagrams are well below a millisecond of work.
_BATCH = 64


class Driver:
    """Feeds `machine` from `sockets` and carries out its effects, until stopped.

    The machine may ask for more sockets and have them closed: `sockets` is changed accordingly, and
    whatever is in it is the owner's to close.

    `on_event` is called for each event, in order; it may call `stop`, after which nothing more is
    read: what is still in the sockets is left for whoever comes next.
    """

    def __init__(
        self,
        machine: Machine,
        sockets: MutableMapping[int, UdpSocket],
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
        for number in self._sockets:
            self._listen(number)
        self._advance(self._loop.time())

    def stop(self) -> None:
        """Stop; the sockets stay open. Calling it twice does nothing."""
        if not self._running:
            return
        self._running = False
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
        self._cancel_timer()

    def _listen(self, number: int) -> None:
        self._loop.add_reader(self._sockets[number].fileno(), self._read, number)

    def _read(self, number: int) -> None:
        """Take what has arrived on one socket: refusals first, for they are older."""
        sock = self._sockets[number]
        for remote, error, _ in sock.receive_errors():
            self._machine.receive_error(error, Path(number, remote), self._loop.time())
        self._settle()
        for _ in range(_BATCH):
            arrived = sock.receive() if self._is_read(number, sock) else None
            if arrived is None:
                break
            data, remote = arrived
            self._machine.receive_datagram(data, Path(number, remote), self._loop.time())
            self._settle()
        self._schedule()

    def _is_read(self, number: int, sock: UdpSocket) -> bool:
        """Tell whether `sock` is still to be read: what it brought may have had it closed."""
        return self._running and self._sockets.get(number) is sock

    def _advance(self, now: float) -> None:
        if not self._running:
            return
        self._machine.handle_timer(now)
        self._settle()
        self._schedule()

    def _settle(self) -> None:
        """Carry out effects and report events until there are none."""
        now = self._loop.time()
        # What the machine learns while one effect is carried out may lead to more of them.
        while effects := list(self._machine.effects(now)):
            for effect in effects:
                self._carry_out(effect, now)
        while (event := self._machine.next_event()) is not None:
            self._on_event(event)

    def _carry_out(self, effect: Effect, now: float) -> None:
        match effect:
            case Send(data, path, ttl):
                sock = self._sockets.get(path.socket)
                # A socket that could not be opened, or is closed by now, has nothing to send.
                error = None if sock is None else sock.send(data, path.remote, ttl)
                if error is not None:
                    self._machine.receive_error(error, path, now)
            case OpenSocket():
                self._open(effect, now)
            case CloseSocket(number):
                self._close(number)

    def _open(self, wanted: OpenSocket, now: float) -> None:
        family = socket.AF_INET6 if wanted.ipv6 else socket.AF_INET
        try:
            sock = UdpSocket(family, wanted.port)
        except LocalNetworkError:
            self._machine.socket_failed(wanted.number, now)
            return
        self._close(wanted.number)  # or the socket that had this number would be nobody's
        self._sockets[wanted.number] = sock
        if self._running:
            self._listen(wanted.number)
        self._machine.socket_opened(wanted.number, sock.local.port, now)

    def _close(self, number: int) -> None:
        sock = self._sockets.pop(number, None)
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        sock.close()

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
