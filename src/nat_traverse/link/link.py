"""The link: runs an encrypted tunnel on the sockets of its hole, and hands out its streams."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from nat_traverse.errors import (
    LocalNetworkError,
    NatTraverseError,
    NotAgreedError,
    PeerGoneError,
    shown,
)
from nat_traverse.link.sealed import sort_out
from nat_traverse.link.statistics import Statistics
from nat_traverse.link.stream import Stream
from nat_traverse.model import IPV6_MINIMUM_MTU, ErrorKind, Path
from nat_traverse.net import shutter
from nat_traverse.net.address import endpoint_from, sockaddr
from nat_traverse.net.offload import MAX_DATAGRAM, burst_size
from nat_traverse.net.route import source_for
from nat_traverse.punch.machine import CloseSocket, OpenSocket, Send
from nat_traverse.tunnel import engine as quic
from nat_traverse.tunnel.events import (
    Closing,
    CreditGrown,
    Ended,
    Event,
    FlowDatagram,
    FrameReceived,
    NotEstablished,
    NotProven,
    PathChanged,
    PeerClosed,
    PeerVanished,
    Proven,
    StreamDone,
    StreamOpened,
)
from nat_traverse.tunnel.refusals import MalformedProofError
from nat_traverse.tunnel.secure import CONSENT, NO_STREAM, SecureTunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nat_traverse.link.sealed import SealedUser
    from nat_traverse.model import Endpoint, NetworkError
    from nat_traverse.net.address import SocketAddress
    from nat_traverse.net.offload import Arrived
    from nat_traverse.net.udp import UdpSocket
    from nat_traverse.punch.machine import Connected
    from nat_traverse.session import Hole
    from nat_traverse.tunnel.proof import Outcome

_T = TypeVar("_T")

# Bytes taken in one go, before sending and the timers get their turn: some milliseconds' work.
_OCTETS = 1024 * 1024
# The sockets of paths that were not chosen answer late packets for this long (s), then close and
# leave it to the kernel to refuse.
_OTHERS = 5.0
# With more from strangers than the tunnel looks at, the kernel lets in nothing of theirs for this
# long (s). A peer that was started again, or has moved, is noticed that much later at most.
_SHUT = 0.5
# How often this host's own address is looked at (s): 20 microseconds' work.
_LOOK = 1.0
# Events from which on datagrams are lost that come before the owner is ready for them. Events of
# streams are bounded by their credit.
_HELD = 256
_STRAY = 64
# Bytes of the smallest IPv4 path that is believed in, as Linux does (ip-sysctl, min_pmtu).
_SMALLEST_IPV4 = 552


class NoAnswerError(NatTraverseError):
    """A path was found, and no encrypted channel came about on it."""


class Link:
    """One tunnel on one event loop. The owner awaits `proven`, then uses streams, then `aclose`s.

    `on_stream` makes the protocol for a stream that the peer opens, as in `loop.create_server`.
    `observe` is told what concerns the whole tunnel.
    """

    def __init__(
        self, hole: Hole, tunnel: SecureTunnel, observe: Callable[[Event], None] | None = None
    ) -> None:
        self.tunnel = tunnel
        self.loop = asyncio.get_running_loop()
        self.on_datagram: Callable[[bytes], None] | None = None
        self.proven: asyncio.Future[Outcome] = self.loop.create_future()
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._hole = hole
        self._observe = observe
        self._sockets: dict[int, UdpSocket] = {
            hole.connected.path.socket: hole.socket,
            **hole.others,
        }
        self._on_stream: Callable[[], asyncio.Protocol] | None = None
        self._is_ready = False  # on_stream was set
        self._held: deque[Event] = deque()  # until then
        self._held_streams: set[int] = set()
        # Datagrams that have overtaken the beginning of their stream, or come after its end.
        self._stray: deque[tuple[int, bytes]] = deque(maxlen=_STRAY)
        self._streams: dict[int, Stream] = {}
        self._unopened: deque[Stream] = deque()
        self._writers: dict[Stream, None] = {}
        self._drained: asyncio.Future[None] | None = None
        self._datagram_writers: dict[Stream, None] = {}
        self._incoming = memoryview(bytearray(MAX_DATAGRAM))
        self._unsent: deque[bytes] = deque()
        self._blocked: UdpSocket | None = None  # by a full send buffer
        self._paths: dict[tuple[int, SocketAddress], Path] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._waking: asyncio.Handle | None = None
        self._closing_others: asyncio.TimerHandle | None = None
        self._shutter: asyncio.TimerHandle | None = None  # opens it again
        self._looking: asyncio.TimerHandle | None = None  # at this host's own address
        self._source: str | None = None
        self._running = False
        self._sealed_user: SealedUser | None = None
        self._sealed_waits = False  # for room in the socket
        # Bytes in datagrams, on the path of the tunnel.
        self.octets_sent = 0
        self.octets_received = 0
        self.ending: Event | None = None  # what ended the tunnel, if it was not this side
        # Whoever does not ask how it ended is not to be told by a warning.
        self.proven.add_done_callback(_retrieve)
        self.closed.add_done_callback(_retrieve)

    @property
    def connected(self) -> Connected:
        """How the path was found."""
        return self._hole.connected

    @property
    def on_stream(self) -> Callable[[], asyncio.Protocol] | None:
        """What makes the protocol for a stream of the peer's; None: they are refused.

        The peer may be quicker: its streams and datagrams wait until this is set for the first
        time, to None or to something else.
        """
        return self._on_stream

    @on_stream.setter
    def on_stream(self, factory: Callable[[], asyncio.Protocol] | None) -> None:
        self._on_stream = factory
        self._is_ready = True
        self.wake()

    @property
    def peer(self) -> Endpoint:
        """Where the peer is at present."""
        return self.tunnel.path.remote

    @property
    def statistics(self) -> Statistics:
        """What has passed so far, and how the path is now."""
        return Statistics(
            sent=self.octets_sent,
            received=self.octets_received,
            heard=self.tunnel.heard,
            round_trip=self.tunnel.round_trip,
        )

    @property
    def is_over(self) -> bool:
        """True when nothing can be sent any more."""
        return self.closed.done()

    def start(self) -> None:
        """Begin: the sockets are this link's now, until the tunnel is over."""
        self._running = True
        for number, sock in self._sockets.items():
            sock.enable_offload()
            self.loop.add_reader(sock.fileno(), self._guarded, self._read, number)
        if len(self._sockets) > 1:
            self._closing_others = self.loop.call_later(_OTHERS, self._close_others)
        self._look()
        for data in self._hole.connected.early_data:
            self.tunnel.receive(data, self.tunnel.path, self.loop.time())
        self._guarded(self._settle)

    def open_stream(self, protocol: asyncio.BaseProtocol) -> Stream:
        """Open a stream; `protocol.connection_made` is called before this returns.

        Raises what ended the tunnel when it is over, or PeerGoneError.
        """
        if self.is_over:
            self.closed.result()
            raise PeerGoneError("The tunnel is over.", errno.EPIPE)
        number = None if self._unopened else self.tunnel.open_stream()
        stream = Stream(self, -1 if number is None else number, protocol)
        if number is None:
            self._unopened.append(stream)
        else:
            self._streams[number] = stream
        stream.start()
        return stream

    def send_datagram(self, data: bytes) -> None:
        """Send an unreliable datagram that belongs to no stream; ValueError if it is too large."""
        self.tunnel.send_datagram(NO_STREAM, data)
        self.wake()

    @property
    def sealed_user(self) -> SealedUser | None:
        """Who has the sealed datagrams. Those that come before there is somebody are lost."""
        return self._sealed_user

    @sealed_user.setter
    def sealed_user(self, user: SealedUser | None) -> None:
        self._sealed_user = user
        self._is_ready = True
        if user is not None:
            for sock in self._sockets.values():
                sock.enable_batches()
        self.wake()

    def send_sealed(self, run: bytes | memoryview, size: int) -> int:
        """Send sealed datagrams of `size` bytes, the last perhaps shorter, in one piece.

        Returns how many bytes were taken, always whole datagrams. If not all were, the user's
        `sealed_writable` is called when there is room for the rest.
        """
        sock = self._sockets.get(self.tunnel.path.socket)
        if sock is None or not self._running:
            return len(run)  # lost, as on a wire that is unplugged
        accepted = 0
        if self._blocked is None:
            accepted = sock.send_segments([run], size, sockaddr(self.peer, sock.family))
            self.octets_sent += accepted
            if accepted < len(run):
                if not self._fits(sock, size) or not self._running:
                    return len(run)
                self._block(sock)
        self._sealed_waits = accepted < len(run)
        return accepted

    async def drain(self) -> None:
        """Wait until the peer has consumed, to its end, every stream that was ended here.

        Raises what ended the tunnel, if it ends before.
        """
        while (self.tunnel.undone or self._writers) and not self.is_over:
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.wait({self._drained, self.closed}, return_when=asyncio.FIRST_COMPLETED)
        if self.is_over:
            self.closed.result()

    async def leave(self) -> None:
        """Say that this side has all it wants, and wait until the tunnel is over.

        Raises what ended it, if it was anything else than both sides' wish.
        """
        self.tunnel.leave(self.loop.time())
        self.wake()
        await asyncio.shield(self.closed)

    def abort(self, code: int = Closing.STOPPED, text: str = "") -> None:
        """End the tunnel at once; the peer is told, streams are reset."""
        if not self.is_over and self._running:
            self.tunnel.close(code, text)
            self._send_effects()
            self._transmit()
            self._end(None)
        self._stop()

    # -- for the streams ----------------------------------------------------------------------

    def wake(self) -> None:
        """See that what was done to the tunnel has its effects, once in this round of the loop."""
        if self._waking is None and self._running:
            self._waking = self.loop.call_soon(self._guarded, self._settle)

    def wants_to_write(self, stream: Stream) -> None:
        """Note that `stream` has something to send as soon as there is room."""
        self._writers[stream] = None

    def wants_datagrams(self, stream: Stream) -> None:
        """Note that `stream` has a datagram to send as soon as there is room."""
        self._datagram_writers[stream] = None

    def forget(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        self._datagram_writers.pop(stream, None)
        self._streams.pop(stream.number, None)
        self._writers.pop(stream, None)
        if stream.number < 0 and stream in self._unopened:
            self._unopened.remove(stream)

    # -- the loop -----------------------------------------------------------------------------

    def _guarded(self, action: Callable[..., None], *arguments: object) -> None:
        """Run one callback of the event loop; what goes wrong ends the link, not the loop."""
        if not self._running:
            return
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001 (handed to whoever awaits `closed`)
            self.tunnel.close(Closing.STOPPED)
            self._transmit()
            self._end(error)

    def _read(self, number: int) -> None:
        """Take what has arrived on one socket, and do what follows from it."""
        sock = self._sockets[number]
        now = self.loop.time()
        for remote, error, _ in sock.receive_errors():
            self._take_error(error, Path(number, remote), now)
        if not self._running:
            return
        self._receive(number, sock, now)
        if self._shutter is None and self.tunnel.is_flooded(now):
            self._close_shutter()
        self._settle()

    def _receive(self, number: int, sock: UdpSocket, now: float) -> None:
        """Take what has arrived: runs one by one, and what came singly all at once."""
        arrived: Sequence[Arrived] = sock.receive_many(self._incoming, _OCTETS)
        if self._sealed_user is not None:
            arrived = self._take_sealed(self._sealed_user, arrived, number, now)
        singles: list[bytes] = []
        path, spelled = self.tunnel.path, None  # how the kernel spells its remote address
        for data, size, address in arrived:
            if len(data) <= size and (address == spelled or self._path(number, address) == path):
                spelled = address
                self.octets_received += len(data)
                singles.append(data)
                continue
            if singles:
                self.tunnel.receive_many(singles, now)
                singles = []
            came = self._path(number, address)
            if came == path:
                self.octets_received += len(data)
            self.tunnel.receive_run(data, size, came, now)
            if path != self.tunnel.path:
                path, spelled = self.tunnel.path, None
        if singles:
            self.tunnel.receive_many(singles, now)

    def _take_sealed(
        self, user: SealedUser, arrived: Sequence[Arrived], number: int, now: float
    ) -> Sequence[Arrived]:
        """Hand the sealed datagrams to their user, all of one sender at once; return the others."""
        batches, others = sort_out(arrived)
        for batch in batches:
            genuine = user.sealed_received(batch.runs, now)
            if genuine:
                self.octets_received += batch.octets
                self.tunnel.note_peer(self._path(number, batch.sender), batch.octets, now)
            if genuine < batch.datagrams:
                self.tunnel.note_strangers(batch.datagrams - genuine, now)
        return others

    def _take_error(self, error: NetworkError, path: Path, now: float) -> None:
        """Take what the network, or this host, says of something that was sent."""
        self.tunnel.receive_error(error, path, now)
        if error.kind is ErrorKind.TOO_BIG and self._sealed_user is not None:
            # Anybody can send such a message, who guesses the ports; see docs/security.md.
            smallest = IPV6_MINIMUM_MTU if path.remote.is_ipv6 else _SMALLEST_IPV4
            if path == self.tunnel.path and error.mtu >= smallest:
                self._sealed_user.path_narrowed(error.mtu - path.remote.headers)

    def _close_shutter(self) -> None:
        """Leave a flood to the kernel for a while; it throws away what is not the peer's."""
        indices = () if self._sealed_user is None else self._sealed_user.names
        filter_ = shutter.program(*self.tunnel.names, indices)
        for sock in self._sockets.values():
            sock.close_shutter(filter_)
        self._shutter = self.loop.call_later(_SHUT, self._open_shutter)

    def _look(self) -> None:
        """See whether this host still has the address that it had towards the peer."""
        self._looking = self.loop.call_later(_LOOK, self._guarded, self._look)
        try:
            source = source_for(self.peer).host
        except LocalNetworkError:
            return  # there is no network; the next one shows whether the address is another
        if self._source not in (None, source):
            self.tunnel.note_own_move(self.loop.time())
            if self._sealed_user is not None:
                self._sealed_user.path_changed()
            self.wake()
        self._source = source

    def _open_shutter(self) -> None:
        if self._shutter is not None:
            self._shutter.cancel()
            self._shutter = None
            for sock in self._sockets.values():
                sock.open_shutter()

    def _path(self, number: int, address: SocketAddress) -> Path:
        """Return the path that the kernel's words stand for; most come again and again."""
        known = self._paths.get((number, address))
        if known is None:
            if len(self._paths) > len(self._sockets):
                self._paths.clear()  # strangers: what is still wanted comes back
            known = self._paths[number, address] = Path(number, endpoint_from(address))
        return known

    def _settle(self) -> None:
        """Act on events, hand on what is written, and send, until there is nothing more to do."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        while True:
            self._take_events()
            if not self._running:
                return
            self._open_waiting()
            self._pump()
            self._send_effects()
            self._transmit()
            self._offer_datagram_room()
            event = self.tunnel.next_event()
            if event is None:
                break
            self._handle(event)
        self._schedule()

    def _take_events(self) -> None:
        while self._is_ready and self._held:
            self._act(self._held.popleft())
        while (event := self.tunnel.next_event()) is not None:
            self._handle(event)

    def _open_waiting(self) -> None:
        while self._unopened:
            number = self.tunnel.open_stream()
            if number is None:
                return
            stream = self._unopened.popleft()
            stream.opened(number)
            self._streams[number] = stream
            self._writers[stream] = None

    def _pump(self) -> None:
        if not self._writers:
            return
        for stream in list(self._writers):
            if stream.number >= 0 and not stream.pump():
                self._writers.pop(stream, None)
        if not self._writers:
            self._note_drained()

    def _offer_datagram_room(self) -> None:
        if self._datagram_writers and self.tunnel.has_datagram_room:
            writers, self._datagram_writers = self._datagram_writers, {}
            for stream in writers:
                stream.offer_datagram_room()

    def _schedule(self) -> None:
        """See that the tunnel's timer is called in time; once too early does no harm.

        A timer that is due stays, for the reason given in `net.driver`.
        """
        at = self.tunnel.get_timer()
        if at is None or not self._running:
            return
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(at, self._guarded, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.tunnel.handle_timer(self.loop.time())
        self._settle()

    # -- sending ------------------------------------------------------------------------------

    def _send_effects(self) -> None:
        """Send the traversal's own messages, and do what else it wants."""
        now = self.loop.time()
        for effect in self.tunnel.effects(now):
            match effect:
                case Send(data, path, ttl):
                    sock = self._sockets.get(path.socket)
                    if sock is not None:
                        sock.send(data, path.remote, ttl)
                case CloseSocket(number):
                    self._close_other(number)
                case OpenSocket(number):
                    # Whatever it is for, the path is found.
                    self._hole.handshake.socket_failed(number, now)

    def _transmit(self) -> None:
        """Send what the engine wants sent, in trains of datagrams of one size."""
        if self._blocked is not None:
            return
        sock = self._sockets.get(self.tunnel.path.socket)
        if sock is None:
            return
        to = sockaddr(self.tunnel.path.remote, sock.family)
        self._unsent.extend(self.tunnel.datagrams_to_send(self.loop.time()))
        while self._unsent:
            train = _next_train(self._unsent)
            size = len(train[0])
            accepted = sock.send_segments(train, size, to)
            self.octets_sent += accepted
            for _ in range(-(-accepted // size)):
                self._unsent.popleft()
            if accepted < sum(map(len, train)):
                self._wait_for_room(sock)
                return

    def _wait_for_room(self, sock: UdpSocket) -> None:
        """Go on when the socket is writable; what the path is too narrow for is dropped."""
        if not self._fits(sock, len(self._unsent[0])):
            self._unsent.popleft()  # repeated by the engine, or lost as on any wire
        self._block(sock)

    def _fits(self, sock: UdpSocket, size: int) -> bool:
        """Take what the socket has to say; False if the path is too narrow for `size` bytes now."""
        most, now = size, self.loop.time()
        for remote, error, _ in sock.receive_errors():
            self._take_error(error, Path(self.tunnel.path.socket, remote), now)
            if error.kind is ErrorKind.TOO_BIG:
                # Unknown sizes are those of this very datagram.
                most = min(most, error.mtu - remote.headers if error.mtu else size - 1)
        return most >= size

    def _block(self, sock: UdpSocket) -> None:
        """Send nothing more until the socket has room."""
        if not self._running:
            return  # what the socket had to say has ended the link
        self._blocked = sock
        self.loop.add_writer(sock.fileno(), self._guarded, self._unblock, sock)

    def _unblock(self, sock: UdpSocket) -> None:
        self._blocked = None
        self.loop.remove_writer(sock.fileno())
        self._send_on()

    def _send_on(self) -> None:
        self._settle()  # first: the engine's few packets keep the tunnel alive
        if self._sealed_waits and self._sealed_user is not None and self._running:
            self._sealed_waits = False
            self._sealed_user.sealed_writable()

    # -- events -------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self._is_ready or not self._has_to_wait(event):
            self._act(event)
        else:
            self._held.append(event)

    def _has_to_wait(self, event: Event) -> bool:
        """Tell whether an event is for an owner who is not ready yet."""
        match event:
            case StreamOpened(number):
                self._held_streams.add(number)
                return True
            case (
                quic.StreamData(number)
                | quic.StreamReset(number)
                | quic.StreamStopped(number)
                | CreditGrown(number)
            ):
                return number in self._held_streams
            case FlowDatagram(number):
                return number not in self._streams and len(self._held) < _HELD
            case FrameReceived():
                return len(self._held) < _HELD
        return False

    def _act(self, event: Event) -> None:
        """Do what an event asks for."""
        match event:
            case FlowDatagram() | FrameReceived() | PathChanged():
                self._act_beside_streams(event)
            case quic.StreamData(number, data, fin):
                stream = self._streams.get(number)
                if stream is not None:
                    stream.receive(data, fin=fin)
            case StreamOpened(number):
                self._accept(number)
            case StreamDone():
                self._note_drained()
            case CreditGrown(number) | quic.StreamReset(number) | quic.StreamStopped(number):
                self._handle_in_stream(event, self._streams.get(number))
            case Proven(outcome):
                self._tell(event)
                if not self.proven.done():
                    self.proven.set_result(outcome)
            case _:
                self._tell(event)
                self.ending = event
                self._end(_failure(event, self.tunnel.consent))

    def _act_beside_streams(self, event: FlowDatagram | FrameReceived | PathChanged) -> None:
        user = self._sealed_user
        match event:
            case FlowDatagram(number, data):
                self._receive_datagram(number, data)
            case FrameReceived(kind, value) if user is not None:
                user.frame_received(kind, value)
            case PathChanged():
                self._tell(event)
                if user is not None:
                    user.path_changed()

    def _tell(self, event: Event) -> None:
        if self._observe is not None:
            self._observe(event)

    def _receive_datagram(self, number: int, data: bytes) -> None:
        if number == NO_STREAM:
            if self.on_datagram is not None:
                self.on_datagram(data)
        elif number in self._streams:
            self._streams[number].receive_datagram(data)
        else:
            self._stray.append((number, data))

    def _handle_in_stream(self, event: Event, stream: Stream | None) -> None:
        """Hand on what belongs to a stream; nothing, if it is over."""
        if stream is None:
            self._note_drained()
            return
        match event:
            case CreditGrown():
                self._writers[stream] = None
            case quic.StreamReset():
                stream.receive_reset()
            case quic.StreamStopped():
                stream.receive_stop()
                self._note_drained()

    def _note_drained(self) -> None:
        """Have `drain` look again."""
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def _accept(self, number: int) -> None:
        """Take a stream that the peer has opened, or refuse it."""
        protocol = self._protocol()
        if protocol is None:
            self.tunnel.reset(number)
            self.tunnel.stop(number)
            return
        stream = self._streams[number] = Stream(self, number, protocol)
        stream.start()
        stray, self._stray = self._stray, deque(maxlen=_STRAY)
        for of, data in stray:
            self._receive_datagram(of, data)

    def _protocol(self) -> asyncio.BaseProtocol | None:
        """Return the protocol for a stream of the peer's; None if nobody wants streams now."""
        if self.on_stream is None:
            return None
        try:
            return self.on_stream()
        except Exception as error:  # noqa: BLE001 (handed to the loop's handler, as asyncio does)
            self.loop.call_exception_handler({"message": "on_stream failed", "exception": error})
            return None

    # -- ends ---------------------------------------------------------------------------------

    @property
    def is_suspended(self) -> bool:
        """True between `suspend` and `resume`."""
        return not self._running and not self.is_over

    def suspend(self) -> None:
        """Leave the event loop alone, for `resume` on another one; streams have to be paused."""
        self._leave_loop()

    def resume(self) -> None:
        """Go on, on the loop that runs now."""
        self.loop = asyncio.get_running_loop()
        self.closed = self.loop.create_future()
        self.closed.add_done_callback(_retrieve)
        self._drained = self._timer = self._waking = self._closing_others = None
        self._blocked = None
        self._running = True
        self._look()
        for number, sock in self._sockets.items():
            self.loop.add_reader(sock.fileno(), self._guarded, self._read, number)
        self._guarded(self._settle)

    def _end(self, error: BaseException | None) -> None:
        """Tell everybody that the tunnel is over."""
        self._send_effects()
        self._transmit()
        if error is None:
            if not self.closed.done():
                self.closed.set_result(None)
            self.proven.cancel()  # nothing, if it is done
        else:
            _fail(self.closed, error)
            _fail(self.proven, error)
        lost = ConnectionResetError("the tunnel is over")
        for stream in [*self._streams.values(), *self._unopened]:
            stream.lose(lost)
        self._stop()

    def _stop(self) -> None:
        """Leave the event loop alone, and close the sockets."""
        self._leave_loop()
        self._hole.close()

    def _leave_loop(self) -> None:
        if self._running:
            self._running = False
            self._open_shutter()
            for sock in self._sockets.values():
                if sock.fileno() >= 0:
                    self.loop.remove_reader(sock.fileno())
                    self.loop.remove_writer(sock.fileno())
            for handle in (self._timer, self._waking, self._closing_others, self._looking):
                if handle is not None:
                    handle.cancel()

    def _close_others(self) -> None:
        for number in list(self._sockets):
            self._close_other(number)

    def _close_other(self, number: int) -> None:
        """Close a socket, unless the path has moved to it."""
        if number == self.tunnel.path.socket:
            return
        sock = self._sockets.pop(number, None)
        if sock is not None and sock.fileno() >= 0:
            self.loop.remove_reader(sock.fileno())
            if self._blocked is sock:
                self.loop.remove_writer(sock.fileno())
                self._blocked = None
                self.loop.call_soon(self._guarded, self._send_on)
            sock.close()


def _next_train(datagrams: Sequence[bytes] | deque[bytes]) -> list[bytes]:
    """Return the first datagrams that may go out in one call: of one size, the last may be less."""
    if not datagrams:
        return []
    size = len(datagrams[0])
    train = list(islice(datagrams, burst_size(size) // size))
    sizes = list(map(len, train))
    if sizes.count(size) < len(sizes):
        end = next(at for at, length in enumerate(sizes) if length != size)
        # Behind a shorter one nothing may follow; a longer one begins the next train.
        del train[end + (sizes[end] < size) :]
    return train


def _failure(event: Event, consent: float = CONSENT) -> BaseException | None:
    """Return what the user reads about the end of a tunnel; None if it is as it should be.

    `consent` is the silence in seconds that ends it.
    """
    match event:
        case Ended():
            return None
        case NotProven(error):
            return error
        case NotEstablished():
            return NoAnswerError(
                "A path was found, but no encrypted channel came about on it within 10 seconds."
                " The other side may have ended, or be of a version that can't do this; or the"
                " path loses nearly everything."
            )
        case PeerClosed(code, text):
            return _peer_closed(code, text)
        case PeerVanished(number):
            return _vanished(number, consent)
    return MalformedProofError("an event that nobody expects")


def _peer_closed(code: int, text: str) -> BaseException | None:
    if code == Closing.COMPLETE:
        return None
    if code == Closing.NOT_READING:
        return PeerGoneError("The other side stopped reading.", errno.ECONNRESET)
    if code == Closing.NOT_AGREED:
        return NotAgreedError(f"The other side says: {shown(text)}")
    if code == Closing.PROTOCOL:
        return PeerGoneError(
            f"The two sides do not understand each other ({text!r}): they may run different"
            " versions of nat-traverse.",
            errno.EPROTO,
        )
    return PeerGoneError(
        "The other side was stopped, by a signal or an error of its own; see what it says.",
        errno.ECONNRESET,
    )


def _vanished(number: int, consent: float) -> PeerGoneError:
    texts = {
        errno.ENETRESET: "This host has another address now, and the other side is out of reach.",
        errno.ECONNREFUSED: "The other side's port is closed: nat-traverse has ended there.",
        errno.ECONNRESET: "The other side was started again.",
    }
    text = texts.get(
        number,
        f"Nothing has come from the other side for {consent:g} seconds: its host or its network is"
        " down, or a gateway has forgotten the path.",
    )
    return PeerGoneError(f"{text} Start both again.", number)


def _fail(future: asyncio.Future[_T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _retrieve(future: asyncio.Future[_T]) -> None:
    """Look at an exception, so that asyncio does not warn of one that nobody awaited."""
    if not future.cancelled():
        future.exception()
