"""The relay: moves bytes between a tunnel's path and two descriptors until the tunnel is over.

The `Sender` and the `Receiver` move the data, as fast as the kernel does. The relay runs the tunnel
beside them: its messages, its timers, and what it says about the end.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from nat_traverse.carry.receiver import RUNS, OutputOverflowed, Receiver
from nat_traverse.carry.sender import Sender
from nat_traverse.errors import DataLostError, OutputError, PeerGoneError
from nat_traverse.model import Path
from nat_traverse.punch.machine import CloseSocket, OpenSocket, Send
from nat_traverse.tunnel.plain import (
    DeliveryKnown,
    Ended,
    Event,
    PeerClosed,
    PeerFinished,
    PeerRestarted,
    PeerVanished,
)
from nat_traverse.wire.hello import MAGIC_PREFIX, Counts, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.descriptors import Sink, Source
    from nat_traverse.errors import NatTraverseError
    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.session import Hole
    from nat_traverse.tunnel.plain import PlainTunnel

# The sockets of paths that were not chosen answer late packets for this long (s), then close and
# leave it to the kernel to refuse.
_OTHERS = 5.0

RelayEvent = Event | OutputOverflowed


class Relay:
    """Moves data until the tunnel is over. `observe` is told what the user may want to know.

    `grace` is for a sink that a command reads: how long (s) it may go on reading what has arrived
    when the tunnel is gone. A command may also stop reading and go on writing. None is for standard
    output: its reader may take its time, and when it leaves, so do we.
    """

    def __init__(
        self,
        hole: Hole,
        tunnel: PlainTunnel,
        source: Source,
        sink: Sink,
        observe: Callable[[RelayEvent], None],
        *,
        grace: float | None = None,
    ) -> None:
        self._grace = grace
        self._hole = hole
        self._socket = hole.socket
        self._tunnel = tunnel
        self._source = source
        self._sink = sink
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._sender = Sender(self._socket, tunnel, source, self._guarded, self._end_input)
        self._receiver = Receiver(
            self._socket, tunnel, sink, observe, may_stop_reading=grace is not None
        )
        self.complete = False  # our data ended before the tunnel did
        self.paused = False  # `run` returned, or is about to, with the tunnel alive
        self._leaving = False
        self._ending: asyncio.Task[None] | None = None
        self._lost: list[str] = []
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        # A relay before this one may have closed them.
        self._others = {n: sock for n, sock in hole.others.items() if sock.fileno() >= 0}
        self._running = False

    async def run(self) -> None:
        """Relay until both directions have ended.

        Raises PeerGoneError, DataLostError, OutputError, or BrokenPipeError when nobody reads our
        output any more; in the first two cases all that arrived is written. Cancelled, it tells the
        peer that the tunnel is over.
        """
        self._start()
        try:
            await self._over
            if self.paused:
                return
            self.complete = self._source.ended
            await self._write_rest()
        except PeerGoneError:
            await self._write_rest()
            raise
        except (BrokenPipeError, OutputError) as error:
            gone = isinstance(error, BrokenPipeError)
            reason = Reason.NOT_READING if gone else Reason.STOPPED
            self._tunnel.close(reason, unread=self._sink.dropped)
            raise
        except BaseException:
            self._tunnel.close(Reason.STOPPED)
            raise
        finally:
            self._carry_out()
            self.stop()
        if self._lost:
            raise DataLostError(" ".join(self._lost))

    def leave(self) -> None:
        """End the tunnel as soon as the peer has all of our data, whatever it still sends."""
        self._leaving = True
        self._leave_if_done()
        if self._running:
            self._carry_out()

    async def pause(self) -> None:
        """Make `run` return while the tunnel lives, so that another relay can go on with it.

        Nothing is held here then: what was read is sent, and what was received is written.
        """
        await self._sender.flush()
        try:
            await self._sink.drain()
        except BrokenPipeError as error:
            self._receiver.reader_left(error)
        self.paused = not self._over.done()
        self._fail(None)

    def stop(self) -> None:
        """Stop relaying; nothing is closed but what this relay opened."""
        if not self._running:
            return
        self._running = False
        self._loop.remove_reader(self._socket.fileno())
        for sock in self._others.values():
            self._loop.remove_reader(sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
        if self._ending is not None:
            self._ending.cancel()
        self._sender.stop()
        self._sink.close()

    def output_progressed(self) -> None:
        """Take the sink's word that it has room again, or has failed."""
        self._guarded(self._receiver.check_output)

    def _start(self) -> None:
        self._running = True
        self._socket.enable_offload()
        self._sink.on_progress = self.output_progressed
        self._loop.add_reader(self._socket.fileno(), self._guarded, self._receive)
        for number, sock in self._others.items():
            self._loop.add_reader(sock.fileno(), self._guarded, self._receive_late, number)
        if self._others:
            self._loop.call_later(_OTHERS, self._close_others)
        for data in self._hole.connected.early_data:
            self._guarded(self._receiver.deliver, memoryview(data))
        self._sender.start()
        self._guarded(self._advance)

    def _guarded(self, action: Callable[..., None], *arguments: object) -> None:
        """Run one callback of the event loop; what goes wrong ends the relay, not the loop."""
        if not self._running:
            return
        try:
            action(*arguments)
            self._carry_out()
        except Exception as error:  # noqa: BLE001 (handed to whoever awaits `run`)
            self._fail(error)

    def _fail(self, error: Exception | None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    # -- what moves the data reports ----------------------------------------------------------

    def _receive(self) -> None:
        self._sender.take_errors()
        self._receiver.receive()

    def _receive_late(self, number: int) -> None:
        """Answer what still arrives on a path that was not chosen; it is never data."""
        sock = self._others[number]
        sock.receive_errors()
        for _ in range(RUNS):
            arrived = sock.receive()
            if arrived is None:
                return
            data, remote = arrived
            if data.startswith(MAGIC_PREFIX):
                self._tunnel.take_message(data, Path(number, remote), self._loop.time())

    def _close_others(self) -> None:
        for number in list(self._others):
            self._close_other(number)

    def _close_other(self, number: int) -> None:
        sock = self._others.pop(number, None)
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _end_input(self) -> None:
        """Say that no more will come: the source has ended, and all of it is sent."""
        self._tunnel.finish(self._loop.time())
        self._leave_if_done()

    # -- the tunnel ---------------------------------------------------------------------------

    def _advance(self) -> None:
        self._tunnel.handle_timer(self._loop.time())

    def _carry_out(self) -> None:
        """Send what the tunnel wants sent, and act on what it reports."""
        now = self._loop.time()
        for effect in self._tunnel.effects(now):
            match effect:
                case Send(data, path, ttl):
                    self._send(data, path, ttl)
                case CloseSocket(number):
                    self._close_other(number)
                case OpenSocket(number):
                    # Whatever it is for, the path is found.
                    self._hole.handshake.socket_failed(number, now)
        while (event := self._tunnel.next_event()) is not None:
            self._observe(event)
            self._handle(event)
        self._sender.go_on()
        self._schedule()

    def _send(self, data: bytes, path: Path, ttl: int | None) -> None:
        sock = self._sending_socket(path)
        error = None if sock is None else sock.send(data, path.remote, ttl)
        if error is not None and path == self._tunnel.path:
            self._tunnel.receive_error(error, self._loop.time())

    def _schedule(self) -> None:
        """See that the tunnel's timer is called in time; once too early does no harm.

        A timer that is due stays, for the reason given in `net.driver`.
        """
        at = self._tunnel.get_timer()
        if at is None or not self._running:
            return
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._guarded, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._advance()

    def _sending_socket(self, path: Path) -> UdpSocket | None:
        if path.socket == self._tunnel.path.socket:
            return self._socket
        return self._others.get(path.socket)

    def _handle(self, event: Event) -> None:
        match event:
            case PeerFinished(sent, received):
                self._compare(sent, received, "on the way here")
                self._end_output()
            case DeliveryKnown(sent, received):
                self._compare(sent, received, "on the way to the peer")
                self._leave_if_done()
            case PeerClosed(reason, received):
                self._fail(self._closed(reason, received))
            case PeerVanished(number):
                self._fail(_vanished(number))
            case Ended():
                self._fail(None)
            case PeerRestarted():
                pass

    def _leave_if_done(self) -> None:
        """Close the tunnel if this side wants to leave and all of its data has arrived.

        A peer of generation 0.7 does not say what arrived, so there it is enough to have sent it.
        """
        sent = self._tunnel.delivered or (self._tunnel.is_legacy and self._source.ended)
        if self._leaving and sent:
            self._tunnel.close(Reason.NOT_READING)

    def _end_output(self) -> asyncio.Task[None]:
        """Write what is left and let the reader see the end; once, however often it is asked."""
        if self._ending is None:
            self._ending = self._loop.create_task(self._sink.aclose())
            self._ending.add_done_callback(self._output_ended)
        return self._ending

    def _output_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not self._is_unread(error):
            self._fail(error)

    async def _write_rest(self) -> None:
        """Write what is left when the tunnel is over; a command has to read it within `grace`."""
        try:
            async with asyncio.timeout(self._grace):
                await self._end_output()
        except TimeoutError:
            pass
        except BrokenPipeError as error:
            if not self._is_unread(error):
                raise

    def _is_unread(self, error: Exception) -> bool:
        """Tell whether `error` is no more than a command that does not want its input."""
        return self._grace is not None and isinstance(error, BrokenPipeError)

    def _compare(self, sent: Counts | None, received: Counts, where: str) -> None:
        if sent is None or sent == received:
            return
        datagrams, octets = sent.datagrams - received.datagrams, sent.octets - received.octets
        if octets > 0:
            self._lost.append(
                f"{octets:,} of {sent.octets:,} bytes ({datagrams:,} of {sent.datagrams:,}"
                f" datagrams) were lost {where}: the plain tunnel does not send again. Send more"
                " slowly, or run something over it that repeats what is lost."
            )
        else:
            self._lost.append(
                f"{-octets:,} bytes more arrived than were sent {where}: the network doubled some."
            )

    def _closed(self, reason: Reason, received: Counts | None) -> NatTraverseError | None:
        """Return what it means that the peer ended the tunnel; None if nothing is missing."""
        complete = received is not None and received.octets == self._tunnel.sent.octets
        if reason is Reason.NOT_READING and complete and not self._sender.unsent:
            return None
        if reason is Reason.NOT_READING:
            arrived = 0 if received is None else received.octets
            unread = self._tunnel.sent.octets + self._sender.unsent - arrived
            return PeerGoneError(
                f"The other side stopped reading; {unread:,} bytes did not get through.",
                errno.ECONNRESET,
            )
        return PeerGoneError(
            "The other side was stopped, by a signal or an error of its own; see what it says.",
            errno.ECONNRESET,
        )


def _vanished(number: int) -> PeerGoneError:
    if number == errno.ECONNREFUSED:
        return PeerGoneError(
            "The other side's port is closed: nat-traverse has ended there. Start both again.",
            number,
        )
    return PeerGoneError(
        "Nothing has come from the other side for 30 seconds: its host or its network is down, or"
        " a gateway has forgotten the path. Start both again.",
        number,
    )
