"""The relay: moves bytes between a tunnel's path and two descriptors, as fast as the kernel does.

Bytes from the source leave as datagrams of the path's size, many in one system call. Datagrams
that arrive go to the sink as they are. The tunnel's own messages travel on the same path; they are
told apart by how they start, and handed to the tunnel. Whatever the user sends, no datagram of data
begins as a message does: one that would goes out in two pieces.

While the sink's reader is slow the sink buffers, and the tunnel keeps the peer waiting. A peer of
generation 0.7 can't be asked to wait: what no longer fits is dropped and counted. The path goes on
being read, since the proof that the peer lives comes on it too.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_traverse.carry.descriptors import LIMIT
from nat_traverse.errors import DataLostError, OutputError, PeerGoneError
from nat_traverse.model import ErrorKind, Path
from nat_traverse.net.address import endpoint_from, sockaddr
from nat_traverse.net.offload import MAX_DATAGRAM, burst_size
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
    from nat_traverse.model import NetworkError
    from nat_traverse.net.address import SocketAddress
    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.session import Hole
    from nat_traverse.tunnel.plain import PlainTunnel

# Runs of datagrams taken in one go, before sending and the timers get their turn: 2 MiB at most.
_RUNS = 32

# Bursts sent in one go, for the same reason: 1 MiB at most.
_BURSTS = 16

# The sockets of paths that were not chosen answer late packets for this long (s), then close and
# leave it to the kernel to refuse.
_OTHERS = 5.0

_IPV4_HEADERS = 28  # bytes: IPv4 and UDP
_IPV6_HEADERS = 48  # bytes: IPv6 and UDP
_SMALLEST_DATAGRAM = 548  # bytes; every host takes an IPv4 packet of 576 (RFC 791)


@dataclass(frozen=True, slots=True)
class OutputOverflowed:
    """Event, once: the reader of our output is too slow, and datagrams are being dropped."""


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
        remote = tunnel.path.remote
        self._to = sockaddr(remote, self._socket.family)
        self._from: SocketAddress | None = None  # how the kernel spells the peer's address
        self._headers = _IPV6_HEADERS if remote.is_ipv6 else _IPV4_HEADERS
        self._incoming = bytearray(MAX_DATAGRAM)
        self._outgoing = memoryview(bytearray(burst_size(tunnel.datagram_size)))
        self._unsent = self._outgoing[:0]
        self._input_ended = False
        self._waiting = False  # for the peer to take what is under way
        self._room = asyncio.Event()  # set while nothing is unsent
        self._room.set()
        self.complete = False  # our data ended before the tunnel did
        self.paused = False  # `run` returned, or is about to, with the tunnel alive
        self._pausing = False
        self._leaving = False
        self._unread = False  # the command has closed its input
        self._ending: asyncio.Task[None] | None = None
        self._overflowed = False
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
            self._tunnel.close(Reason.NOT_READING if gone else Reason.STOPPED)
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
        self._pausing = True
        self._source.pause()
        await self._room.wait()
        try:
            await self._sink.drain()
        except BrokenPipeError as error:
            self._reader_left(error)
        self.paused = not self._over.done()
        self._fail(None)

    def stop(self) -> None:
        """Stop relaying; nothing is closed but what this relay opened."""
        if not self._running:
            return
        self._running = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        for sock in self._others.values():
            self._loop.remove_reader(sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
        if self._ending is not None:
            self._ending.cancel()
        self._source.close()
        self._sink.close()

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
            self._guarded(self._deliver, memoryview(data))
        self._source.start(lambda: self._guarded(self._read))
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

    # -- outgoing -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Read what the source has, and send it, until it has no more or the peer needs time."""
        for _ in range(_BURSTS):
            burst = self._outgoing[: burst_size(self._tunnel.datagram_size)]
            count, ended = self._fill(burst)
            if count:
                self._transmit(burst[:count])
            if ended:
                self._end_input()
            if ended or self._unsent or count < len(burst):
                return
            if not self._tunnel.has_room:
                self._waiting = True
                self._source.pause()
                return

    def _fill(self, burst: memoryview) -> tuple[int, bool]:
        """Read until `burst` is full or nothing more is there; tells how much, and if it is all."""
        count = 0
        while count < len(burst):
            size = self._source.readinto(burst[count:])
            if not size:
                return count, size == 0
            count += size
        return count, False

    def _end_input(self) -> None:
        """Say that no more will come, as soon as all that came is sent."""
        self._input_ended = True
        if not self._unsent:
            self._tunnel.finish(self._loop.time())
            self._leave_if_done()

    def _transmit(self, data: memoryview) -> None:
        """Send `data` now, or what there is no room for as soon as there is."""
        while data:
            size = self._tunnel.datagram_size
            burst = self._next_burst(data, size)
            accepted = self._socket.send_segments([burst], size, self._to)
            self._tunnel.note_sent(-(-accepted // size), accepted, self._loop.time())
            data = data[accepted:]
            if not accepted and not self._shrink(size):
                break
        self._unsent = data
        if data:
            self._room.clear()
            self._source.pause()
            self._loop.add_writer(self._socket.fileno(), self._guarded, self._resume)

    def _resume(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._transmit(self._unsent)
        if not self._unsent:
            self._room.set()
            if self._input_ended:
                self._end_input()
            self._resume_source()

    def _resume_source(self) -> None:
        if not self._pausing:
            self._source.resume()

    def _next_burst(self, data: memoryview, size: int) -> memoryview:
        """Return what of `data` may go out in one call, in datagrams of `size` bytes."""
        burst = data[: burst_size(size)]
        if self._tunnel.is_legacy or MAGIC_PREFIX[0] not in bytes(burst[::size]):
            return burst
        for at in range(0, len(burst), size):
            if burst[at : at + len(MAGIC_PREFIX)] == MAGIC_PREFIX:
                return burst[: at or 1]  # what follows the one byte is no magic
        return burst

    def _shrink(self, size: int) -> bool:
        """Tell whether nothing could be sent because the path takes less than `size`."""
        self._take_errors()
        return self._tunnel.datagram_size < size

    def _take_errors(self) -> None:
        now = self._loop.time()
        for remote, error, _ in self._socket.receive_errors():
            if remote != self._tunnel.path.remote:
                continue
            if error.kind is ErrorKind.TOO_BIG:
                self._tunnel.datagram_size = self._size_after(error)
            self._tunnel.receive_error(error, now)

    def _size_after(self, error: NetworkError) -> int:
        """Return the size of datagrams from now on, after one was too big."""
        size = self._tunnel.datagram_size
        if error.reporter is not None:
            # By a message that anybody may have sent; what it says is believed within reason.
            fits = max(error.mtu - self._headers, _SMALLEST_DATAGRAM) if error.mtu else size
        elif error.mtu:
            fits = error.mtu - self._headers
        else:
            fits = size // 2  # this host refused it, and does not say why: find out
        return max(min(size, fits), 1)

    # -- incoming -----------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take runs of datagrams from the path, and hand them on."""
        self._take_errors()
        view = memoryview(self._incoming)
        for _ in range(_RUNS):
            run = self._socket.receive_into(self._incoming)
            if run is None:
                return
            if run.address != self._from and not self._is_peer(run.address):
                continue
            self._sort(view[: run.length], run.segment_size)

    def _is_peer(self, address: SocketAddress) -> bool:
        """Tell whether `address` is the peer's endpoint: the socket hears everybody."""
        if endpoint_from(address) != self._tunnel.path.remote:
            return False
        self._from = address
        return True

    def _sort(self, run: memoryview, size: int) -> None:
        """Part messages from data in a run of datagrams of `size` bytes."""
        begin = 0
        for at in range(0, len(run), size):
            if not self._incoming.startswith(MAGIC_PREFIX, at, at + size):
                continue
            end = min(at + size, len(run))
            if self._tunnel.take_message(bytes(run[at:end]), self._tunnel.path, self._loop.time()):
                self._deliver(run[begin:at], size)
                begin = end
        self._deliver(run[begin:], size)

    def _deliver(self, data: memoryview, size: int = MAX_DATAGRAM) -> None:
        if not data or self._tunnel.peer_finished:
            return
        if not self._unread and self._sink.buffered + len(data) > LIMIT:
            if not self._overflowed:
                self._overflowed = True
                self._observe(OutputOverflowed())
            return
        self._write(data)
        self._tunnel.note_received(-(-len(data) // size), len(data), self._loop.time())

    def _write(self, data: memoryview) -> None:
        if self._unread:
            return  # what a command does not want to know has arrived all the same
        try:
            self._sink.write(data)
        except BrokenPipeError as error:
            self._reader_left(error)
        else:
            if self._sink.congested:
                self._tunnel.set_congested(congested=True)

    def output_progressed(self) -> None:
        """Take the sink's word that it has room again, or has failed."""
        self._guarded(self._check_output)

    def _check_output(self) -> None:
        failure = self._sink.failure
        if isinstance(failure, BrokenPipeError):
            self._reader_left(failure)
        elif failure is not None:
            raise failure
        self._tunnel.set_congested(congested=self._sink.congested and failure is None)

    def _reader_left(self, error: BrokenPipeError) -> None:
        """Let a command go on without its input; without a reader of our output, end."""
        if self._grace is None:
            raise error
        self._unread = True

    def _receive_late(self, number: int) -> None:
        """Answer what still arrives on a path that was not chosen; it is never data."""
        sock = self._others[number]
        sock.receive_errors()
        for _ in range(_RUNS):
            arrived = sock.receive()
            if arrived is None:
                return
            data, remote = arrived
            if data.startswith(MAGIC_PREFIX):
                self._tunnel.take_message(data, Path(number, remote), self._loop.time())

    def _close_others(self) -> None:
        others, self._others = self._others, {}
        for sock in others.values():
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()

    # -- the tunnel ---------------------------------------------------------------------------

    def _advance(self) -> None:
        self._tunnel.handle_timer(self._loop.time())

    def _carry_out(self) -> None:
        """Send what the tunnel wants sent, and act on what it reports."""
        now = self._loop.time()
        for effect in self._tunnel.effects(now):
            sock = self._sending_socket(effect.path)
            error = None if sock is None else sock.send(effect.data, effect.path.remote, effect.ttl)
            if error is not None and effect.path == self._tunnel.path:
                self._tunnel.receive_error(error, now)
        while (event := self._tunnel.next_event()) is not None:
            self._observe(event)
            self._handle(event)
        if self._waiting and self._tunnel.has_room:
            self._waiting = False
            self._resume_source()
        self._schedule()

    def _schedule(self) -> None:
        """See that the tunnel's timer is called in time; once too early does no harm."""
        at = self._tunnel.get_timer()
        if at is None or not self._running:
            return
        if self._timer is not None:
            if self._loop.time() < self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._guarded, self._advance)

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
        if reason is Reason.NOT_READING and complete and not self._unsent:
            return None
        if reason is Reason.NOT_READING:
            arrived = 0 if received is None else received.octets
            unread = self._tunnel.sent.octets + len(self._unsent) - arrived
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
