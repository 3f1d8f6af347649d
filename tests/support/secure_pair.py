"""Two encrypted tunnels and a network between them, in virtual time: a failure is a seed number.

Only the keys that the QUIC library makes are not the seed's; what is lost, doubled or overtaken is.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.punch.handshake import Handshake, HandshakeSettings
from nat_traverse.punch.machine import Connected, Send
from nat_traverse.tunnel.engine import StreamData
from nat_traverse.tunnel.events import Proven
from nat_traverse.tunnel.proof import RANDOM_SIZE, Means, Proof
from nat_traverse.tunnel.quic import QuicEngine, connection_name
from nat_traverse.tunnel.secure import CONSENT, SecureTunnel
from nat_traverse.tunnel.transcript import Binding
from nat_traverse.wire.hello import Mode
from support.pair import LEFT, RIGHT, TO_LEFT, TO_RIGHT
from support.pair import Pair as HandshakePair

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.tunnel.events import Event

_T = TypeVar("_T")

LARGE, SMALL = b"\xff" * 16, bytes(16)  # nonces: the controlling side's, the controlled side's
SECRET = Means(b"correct horse")
PURPOSE = 4
DATAGRAM_SIZE = 1350

# More turns than any of these exchanges needs: two tunnels that answer each other for ever are a
# failure, not a hang.
TURNS = 200_000


@dataclass
class Network:
    """What the network does, in each direction: loss and duplication as chances, seconds."""

    loss: float = 0.0
    latency: float = 0.01
    jitter: float = 0.0
    duplication: float = 0.0


@dataclass
class Side:
    """One tunnel, where it is, and all that came out of it."""

    name: str
    handshake: Handshake
    connected: Connected
    address: Endpoint
    tunnel: SecureTunnel = field(init=False)
    engine: QuicEngine = field(init=False)
    events: list[Event] = field(default_factory=list)
    received: dict[int, bytearray] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    consuming: bool = True
    unread: dict[int, int] = field(default_factory=dict)
    writing: dict[int, tuple[memoryview, bool]] = field(default_factory=dict)
    sent: list[bytes] = field(default_factory=list)
    keep_sent: bool = False

    def event(self, kind: type[_T]) -> _T | None:
        return next((event for event in self.events if isinstance(event, kind)), None)

    def all(self, kind: type[_T]) -> list[_T]:
        return [event for event in self.events if isinstance(event, kind)]

    def open(self) -> int:
        number = self.tunnel.open_stream()
        assert number is not None
        return number

    def write(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Have it sent as there is room."""
        assert stream not in self.writing
        self.writing[stream] = memoryview(data), fin
        self.pump()

    def pump(self) -> None:
        for stream, (data, fin) in list(self.writing.items()):
            if not self.tunnel.is_sending(stream):
                del self.writing[stream]
                continue
            size = min(len(data), self.tunnel.room(stream))
            rest = data[size:]
            if size or (fin and not rest):
                self.tunnel.send(stream, data[:size], fin=fin and not rest)
            self.writing[stream] = rest, fin
            if not rest:
                del self.writing[stream]

    def consume(self) -> None:
        """Take all that has arrived, as a program that reads."""
        for stream, size in self.unread.items():
            self.tunnel.consume(stream, size)
            if stream in self.ended:
                self.tunnel.finish_receiving(stream)
        self.unread.clear()

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StreamData):
            self.received.setdefault(event.stream, bytearray()).extend(event.data)
            self.unread[event.stream] = self.unread.get(event.stream, 0) + len(event.data)
            if event.fin:
                self.ended.add(event.stream)


class SecurePair:
    """Runs two tunnels against each other. The left one is the client."""

    def __init__(
        self,
        *,
        seed: int = 1,
        network: Network | None = None,
        means: tuple[Means, Means] = (SECRET, SECRET),
        purposes: tuple[int, int] = (PURPOSE, PURPOSE),
        keepalive: float = 15.0,
        consent: float = CONSENT,
        nonces: tuple[bytes, bytes] = (LARGE, SMALL),
    ) -> None:
        self.nonces = nonces
        self.random = random.Random(seed)
        self.network = network or Network()
        # (from, to, datagram): True if it was dealt with and does not go on.
        self.tap: Callable[[Endpoint, Endpoint, bytes], bool] = lambda _source, _to, _data: False
        self.elsewhere: list[tuple[Endpoint, bytes]] = []  # what went to nobody, and where
        self.refusing = False  # an ICMP message for each datagram that goes to nobody
        self.carried: list[tuple[str, bytes]] = []  # all that arrived, if `keep_carried`
        self.keep_carried = False
        self._order = count()
        self._flying: list[tuple[float, int, Endpoint, Endpoint, bytes]] = []
        handshakes = HandshakePair(
            lambda now: Handshake(_settings(nonces[0]), (TO_RIGHT,), now),
            lambda now: Handshake(_settings(nonces[1]), (TO_LEFT,), now),
        )
        handshakes.run(1.0)
        self.now = handshakes.now
        self.left = _side("left", handshakes, LEFT)
        self.right = _side("right", handshakes, RIGHT)
        self.sides = self.left, self.right
        for side, mean, purpose in zip(self.sides, means, purposes, strict=True):
            self._make_tunnel(side, mean, purpose, keepalive, consent)
        self.settle()

    def _make_tunnel(
        self, side: Side, means: Means, purpose: int, keepalive: float, consent: float
    ) -> None:
        is_client = side is self.left

        def make_proof(fingerprint: bytes) -> Proof:
            modes = Mode.TUNNEL.value, Mode.TUNNEL.value
            binding = Binding(*self.nonces, *modes, fingerprint)
            chance = self.random.randbytes(RANDOM_SIZE)
            return Proof(means, purpose, is_client=is_client, binding=binding, random=chance)

        side.engine = QuicEngine(
            is_client=is_client,
            datagram_size=DATAGRAM_SIZE,
            name=connection_name(*self.nonces),
        )
        side.tunnel = SecureTunnel(
            side.handshake,
            side.connected,
            side.engine,
            make_proof,
            self.now,
            keepalive=keepalive,
            consent=consent,
        )

    def other(self, side: Side) -> Side:
        return self.right if side is self.left else self.left

    # -- time ---------------------------------------------------------------------------------

    def step(self) -> bool:
        """Go to the next time at which something happens; False if nothing ever will."""
        times = [at for side in self.sides if (at := side.tunnel.get_timer()) is not None]
        if self._flying:
            times.append(self._flying[0][0])
        if not times:
            return False
        self.now = max(self.now, min(times))
        while self._flying and self._flying[0][0] <= self.now:
            _, _, source, to, data = heapq.heappop(self._flying)
            self._arrive(source, to, data)
        for side in self.sides:
            at = side.tunnel.get_timer()
            if at is not None and at <= self.now:
                side.tunnel.handle_timer(self.now)
        self.settle()
        return True

    def drive(self, until: Callable[[], Any] | None = None, *, seconds: float = 60.0) -> None:
        """Let virtual time pass until something is so; fails if it is not so in time."""
        end = self.now + seconds
        self.settle()
        for _ in range(TURNS):
            if until is not None and until():
                return
            at = self._next_time()
            if at is None or at > end:
                assert until is None, f"it did not come to be in {seconds} s"
                self.now = end
                return
            self.step()
        raise AssertionError("the tunnels do not come to rest")

    def _next_time(self) -> float | None:
        times = [at for side in self.sides if (at := side.tunnel.get_timer()) is not None]
        times += [self._flying[0][0]] if self._flying else []
        return min(times, default=None)

    def prove(self) -> None:
        """Let both get so far that the peer is proven."""
        self.drive(lambda: all(side.event(Proven) for side in self.sides), seconds=10.0)

    # -- the network --------------------------------------------------------------------------

    def settle(self) -> None:
        """Do all that the tunnels want done now."""
        for side in self.sides:
            while (event := side.tunnel.next_event()) is not None:
                side.take(event)
            if side.consuming:
                side.consume()
            side.pump()
            for effect in side.tunnel.effects(self.now):
                assert isinstance(effect, Send)
                self.transmit(side.address, effect.path.remote, effect.data)
            for data in side.tunnel.datagrams_to_send(self.now):
                if side.keep_sent:
                    side.sent.append(data)
                self.transmit(side.address, side.tunnel.path.remote, data)

    def transmit(self, source: Endpoint, to: Endpoint, data: bytes) -> None:
        """Put a datagram into the network."""
        assert len(data) <= DATAGRAM_SIZE + 50, "the path takes no more"
        if self.tap(source, to, data):
            return
        network = self.network
        for _ in range(2 if self.random.random() < network.duplication else 1):
            if self.random.random() >= network.loss:
                at = self.now + network.latency + self.random.random() * network.jitter
                self.fly(at, source, to, data)

    def fly(self, at: float, source: Endpoint, to: Endpoint, data: bytes) -> None:
        """Have a datagram arrive at a time."""
        heapq.heappush(self._flying, (at, next(self._order), source, to, data))

    def inject(self, side: Side, data: bytes, source: Endpoint | None = None) -> None:
        """Give a side a datagram now, from its peer's address or from another."""
        path = Path(0, source or self.other(side).address)
        side.tunnel.receive(data, path, self.now)
        self.settle()

    def _arrive(self, source: Endpoint, to: Endpoint, data: bytes) -> None:
        for side in self.sides:
            if side.address == to:
                if self.keep_carried:
                    self.carried.append((side.name, data))
                side.tunnel.receive(data, Path(0, source), self.now)
                return
        self.elsewhere.append((to, data))
        if self.refusing:
            refused = NetworkError(ErrorKind.PORT_UNREACHABLE, 111, reporter=to.host)
            for side in self.sides:
                if side.address == source:
                    side.tunnel.receive_error(refused, Path(0, to), self.now)


def _settings(nonce: bytes) -> HandshakeSettings:
    return HandshakeSettings(
        nonce, 180.0, datagram_size=DATAGRAM_SIZE, mode=Mode.TUNNEL, legacy=False
    )


def _side(name: str, pair: HandshakePair, address: Endpoint) -> Side:
    end = pair.ends[name]
    found = end.event(Connected)
    assert found is not None
    assert isinstance(found[1], Connected)
    assert isinstance(end.machine, Handshake)
    return Side(name, end.machine, found[1], address)
