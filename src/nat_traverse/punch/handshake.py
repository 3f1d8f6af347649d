"""The handshake: from hellos on some paths to one path that both sides use.

Theory of operation. Both sides run the same machine.

1. On every path, hellos go out when the direct rung says so. Each hello that arrives is answered
   by an ack which repeats the hello's nonce and serial, and says where the hello came from.
2. An ack (or a hello) that names our nonce proves that the path is open both ways: it is
   *validated*. Nobody who can't read our packets can forge that. Whoever named our nonce first is
   the peer; from then on our messages name its nonce.
3. The side with the larger nonce is *controlling* (the role of RFC 8445, section 6.1.1, decided
   without a tie). It nominates the first validated path: a hello with a flag, repeated until an
   ack with the same flag confirms it. The controlled side is connected when the nomination
   arrives, the controlling side when the confirmation does.
4. The controlling side says `done`. Until it hears that, the controlled side answers repeated
   nominations: its confirmation may have been lost.

A nomination is padded to the size that data datagrams are going to have, and so is its
confirmation: the exchange proves on the way that such datagrams cross the path (the idea of
RFC 8899). When large ones stay unanswered, smaller ones follow.

A peer of generation 0.7 sends bare magics. It takes one ack, prints anything that comes later, and
sends one ack itself: `punch/legacy.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.model import Endpoint, ErrorKind, Generation, NetworkError, Path
from nat_traverse.punch.direct import next_probe
from nat_traverse.punch.evidence import Evidence, PathEvidence
from nat_traverse.punch.legacy import LegacyPeer
from nat_traverse.punch.machine import (
    Connected,
    DeadlinePassed,
    Effect,
    Event,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    Send,
    Settled,
)
from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import Bare, Kind, Message, Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Data datagrams: 1,400 bytes leave room on a 1,500-byte path for IPv6 and one layer of tunnelling.
DATAGRAM_SIZE = 1400
# What every IPv6 path carries (1,280, RFC 8200 section 5), less the IPv6 and UDP headers.
_IPV6_MINIMUM = 1232
# What every IPv4 host accepts (576, RFC 791), less the IPv4 and UDP headers.
_IPV4_MINIMUM = 548
# (number of nominations, size): several of each, since one may be lost for any other reason.
_NOMINATION_SIZES = ((4, DATAGRAM_SIZE), (4, _IPV6_MINIMUM))

# Nominations are repeated this often (s): the pace of the hellos before them.
_NOMINATE_EVERY = 0.1
_NOMINATE_SLOWLY = 1.0  # s, after two seconds without a confirmation, as the hellos do
_NOMINATE_HURRY = 20  # that many at the quick pace

# How long (s) after the last nomination the controlled side waits for `done` before it may close
# its socket. Twenty repetitions fit in; at 30 % loss each way one chance in a million is left.
LINGER = 2.0
# And how long (s) at most, should the peer ask on: then nothing of ours reaches it any more.
LINGER_LIMIT = 10.0

# `done` is said this often: it is not answered, so nobody would notice that it was lost, and the
# peer would wait for nothing.
_DONE_COPIES = 2

_MICROSECONDS = 1_000_000  # in a second
_LONGEST_ROUND_TRIP = 2**32 - 1  # microseconds, what the field can say: over an hour

# Datagrams of user data that are kept until the path is agreed on: a little more than a peer of
# today sends before it waits for an answer.
_EARLY_DATAGRAMS = 64

_REMEMBERED = 64  # hellos whose time is kept: a round trip of 6 s at the quick pace


@dataclass(frozen=True, slots=True)
class HandshakeSettings:
    """What the owner decides.

    nonce          16 random bytes, fresh for each run
    timeout        seconds until the attempt is given up; None: never
    window         how many hellos a 0.7 peer gets before the ack; 0: none
    datagram_size  the largest datagram in bytes that the user's data should travel in
    """

    nonce: bytes
    timeout: float | None = None
    window: int = 0
    datagram_size: int = DATAGRAM_SIZE


@dataclass(slots=True)
class _Route:
    """What is known of one path."""

    path: Path
    evidence: PathEvidence
    probe_at: float  # when the next hello is due, in seconds since the start
    probe_ttl: int | None
    size_limit: int
    triggered: bool = False
    legacy: LegacyPeer | None = None
    observed: Endpoint | None = None
    sent: dict[int, tuple[float, int]] = field(default_factory=dict)  # serial: (time, size)


class Handshake:
    """One traversal over a set of paths; a `Machine`."""

    def __init__(self, settings: HandshakeSettings, paths: Sequence[Path], now: float) -> None:
        self._settings = settings
        self._start = now
        first = next_probe(-1.0)
        self._routes = {
            path: _Route(path, PathEvidence(), first.at, first.ttl, settings.datagram_size)
            for path in paths
        }
        self.evidence = Evidence({path: route.evidence for path, route in self._routes.items()})
        self._effects: deque[Effect] = deque()
        self._events: deque[Event] = deque()
        self._serial = 0
        self._peer_nonce: bytes | None = None
        self._nominated: _Route | None = None
        self._nominations = 0
        self._connected: Connected | None = None
        # All timers but the routes' own: name, time.
        self._timers: dict[str, float] = {}
        if settings.timeout is not None:
            self._timers["deadline"] = now + settings.timeout
        self._early_data: list[bytes] = []
        self._linger_limit = now
        self._settled = False
        self._over = False

    # -- what the owner may ask ---------------------------------------------------------------

    @property
    def nonce(self) -> bytes:
        """Our nonce."""
        return self._settings.nonce

    @property
    def peer_nonce(self) -> bytes | None:
        """The peer's nonce, once an answer proved it; None for a 0.7 peer."""
        return self._peer_nonce

    @property
    def controlling(self) -> bool:
        """True if this side nominates."""
        return self._peer_nonce is not None and self.nonce > self._peer_nonce

    # -- Machine ------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Take a datagram from anybody."""
        if self._over:
            return
        route = self._routes.get(path)
        try:
            message = wire.decode(data)
        except RemoteProtocolError:
            self._receive_other(data, route)
            return
        if route is None:
            self._receive_astray(message, path)
        elif isinstance(message, Bare):
            self._receive_bare(message, route, now)
        elif message.nonce == self.nonce:
            self.evidence.reflected += 1
        elif message.kind is Kind.HELLO:
            self._receive_hello(message, len(data), route, now)
        else:
            self._receive_ack(message, route, now)

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        """Take a refusal: it is noted, and tells sizes; it never ends the attempt."""
        route = self._routes.get(path)
        if self._over or route is None:
            return
        if error.kind is ErrorKind.TOO_BIG and error.mtu:
            self._learn_mtu(route, error.mtu, now)
        if route.evidence.note_error(error.kind, error.reporter):
            self._events.append(PeerRefused(path, error))

    def handle_timer(self, now: float) -> None:
        """Send what is due and end what has run out."""
        if self._over:
            return
        for name in [name for name, at in self._timers.items() if at <= now]:
            del self._timers[name]
            if name == "nominate" and self._nominated is not None:
                self._nominate(self._nominated, now)
            elif name == "linger":
                self._settle()
            else:
                self._give_up()
                return
        for route in self._routes.values():
            if self._wants_probes(route) and self._start + route.probe_at <= now:
                self._probe(route, now)

    def get_timer(self) -> float | None:
        """Return the earliest time at which something is due."""
        if self._over:
            return None
        times = list(self._timers.values())
        times += [
            self._start + route.probe_at
            for route in self._routes.values()
            if self._wants_probes(route)
        ]
        return min(times, default=None)

    def effects(self, now: float) -> Iterator[Effect]:  # noqa: ARG002 (the interface's argument)
        """Yield the datagrams to be sent."""
        while self._effects:
            yield self._effects.popleft()

    def next_event(self) -> Event | None:
        """Return the oldest unread event."""
        return self._events.popleft() if self._events else None

    # -- receiving ----------------------------------------------------------------------------

    def _receive_other(self, data: bytes, route: _Route | None) -> None:
        """Take a datagram that is no message: noise, or the first user data.

        A 0.7 peer that sends data, with our ack on its way, is connected: its own ack was lost or
        overtaken. A peer of today may send data as soon as it has confirmed. That is kept until
        the confirmation, which is asked for until it comes, arrives as well: data proves nothing.
        """
        if data.startswith(wire.MAGIC_PREFIX):
            self.evidence.malformed += 1
        elif route is None:
            self.evidence.strangers += 1
        elif self._connected is not None or not data:
            self.evidence.not_ours += 1
        elif route.legacy is not None and route.legacy.ack_sent:
            self._early_data.append(data)
            self._connect(route)
        elif route is self._nominated and len(self._early_data) < _EARLY_DATAGRAMS:
            self._early_data.append(data)
        else:
            self.evidence.not_ours += 1

    def _receive_astray(self, message: Message | Bare, path: Path) -> None:
        """Take a message from an endpoint that was not agreed; nothing is answered."""
        self.evidence.strangers += 1
        if isinstance(message, Message) and message.nonce == self.nonce:
            return
        for route in self._routes.values():
            same_host = route.path.remote.host == path.remote.host
            if same_host and route.path.socket == path.socket:
                if route.evidence.note_port(path.remote.port):
                    self._events.append(PortChanged(route.path, path.remote))
                return

    def _receive_bare(self, message: Bare, route: _Route, now: float) -> None:
        """Take a 0.7 magic."""
        if route.evidence.generation is Generation.CURRENT or self._connected is not None:
            # A peer that was proven to speak with tails does not fall back: somebody else did.
            self.evidence.stale += 1
            return
        self._hear(route, message.kind, Generation.LEGACY)
        if route.legacy is None:
            route.legacy = LegacyPeer(window=self._settings.window)
            route.probe_at = now - self._start + LegacyPeer.INTERVAL
        route.legacy.receive(message.kind)
        self._serve_legacy(route, route.legacy)

    def _receive_hello(self, message: Message, size: int, route: _Route, now: float) -> None:
        if self._connected is not None and self._connected.generation is Generation.LEGACY:
            return  # whoever this is, the peer would take an answer for data
        if route.legacy is not None:
            # Bare magics came first, but this peer knows tails: those were not its own.
            route.legacy = None
            route.evidence.generation = None
        self._hear(route, Kind.HELLO, Generation.CURRENT)
        if message.echo == self.nonce and self._accept_peer(message.nonce):
            told = message.round_trip
            route.observed = message.observed or route.observed
            self._validate(route, None if told is None else told / _MICROSECONDS)
            if message.nominate and not self.controlling:
                self._confirm(message, size, route, now)
                return
        self._answer(message, size, route)
        if not route.triggered and not route.evidence.validated:
            # The way in is open, so the way out probably is: don't wait for the schedule (a
            # triggered check, RFC 8445 section 7.3.1.4). Once only: hellos must not beget hellos.
            route.triggered = True
            self._send_hello(route, now)

    def _receive_ack(self, message: Message, route: _Route, now: float) -> None:
        if message.echo != self.nonce or not self._accept_peer(message.nonce):
            self.evidence.stale += 1
            return
        self._hear(route, Kind.ACK, Generation.CURRENT)
        route.observed = message.observed or route.observed
        sent = None if message.serial is None else route.sent.get(message.serial)
        self._validate(route, None if sent is None else now - sent[0])
        if message.done and self._connected is not None:
            self._settle()
        elif self.controlling and self._nominated is None:
            self._nominated = route
            self._nominate(route, now)
        elif message.nominate and self.controlling and route is self._nominated:
            if self._connected is None:
                size = self._settings.datagram_size if sent is None else sent[1]
                route.size_limit = min(route.size_limit, max(size, _IPV4_MINIMUM))
                self._connect(route)
            self._say_done(route)
            self._settle()

    def _hear(self, route: _Route, kind: Kind, generation: Generation) -> None:
        """Note what arrived."""
        evidence = route.evidence
        first = evidence.generation is None
        evidence.generation = generation
        if kind is Kind.HELLO:
            evidence.hellos_received += 1
        else:
            evidence.acks_received += 1
        if first:
            self._events.append(PeerHeard(route.path, generation))

    def _accept_peer(self, nonce: bytes) -> bool:
        """Take `nonce`, whose owner has just named ours, as the peer's.

        A peer that was restarted comes with another nonce; that is fine until a path is agreed.
        """
        if nonce != self._peer_nonce:
            if self._connected is not None:
                return False
            self._peer_nonce = nonce
            self._nominated = None
            self._nominations = 0
            self._early_data.clear()
            self._timers.pop("nominate", None)
        return True

    def _validate(self, route: _Route, round_trip: float | None) -> None:
        evidence = route.evidence
        if round_trip is not None:
            known = evidence.round_trip
            evidence.round_trip = round_trip if known is None else min(known, round_trip)
        if not evidence.validated:
            evidence.validated = True
            self._events.append(PathValidated(route.path, evidence.round_trip))

    # -- nominating ---------------------------------------------------------------------------

    def _nominate(self, route: _Route, now: float) -> None:
        size = min(self._nomination_size(), route.size_limit)
        self._send_hello(route, now, nominate=True, size=size)
        self._nominations += 1
        hurry = self._nominations < _NOMINATE_HURRY
        self._timers["nominate"] = now + (_NOMINATE_EVERY if hurry else _NOMINATE_SLOWLY)

    def _nomination_size(self) -> int:
        count = self._nominations
        for times, size in _NOMINATION_SIZES:
            if count < times:
                return size
            count -= times
        return wire.HELLO_SIZE

    def _confirm(self, message: Message, size: int, route: _Route, now: float) -> None:
        """Agree to a nomination; the answer is as long as the question, which was as long as data.

        A smaller nomination that follows a larger one says that our large confirmation was lost.
        """
        route.size_limit = min(route.size_limit, max(size, _IPV4_MINIMUM))
        if self._connected is None:
            self._connect(route)
            self._linger_limit = now + LINGER_LIMIT
        if self._connected is not None and self._connected.path == route.path:
            self._answer(message, size, route, nominate=True, pad=True)
            if not self._settled:
                self._timers["linger"] = min(now + LINGER, self._linger_limit)

    def _connect(self, route: _Route) -> None:
        generation = Generation.CURRENT if route.legacy is None else Generation.LEGACY
        self._connected = Connected(
            path=route.path,
            generation=generation,
            round_trip=route.evidence.round_trip,
            observed=route.observed,
            datagram_size=route.size_limit,
            early_data=tuple(self._early_data),
        )
        self._events.append(self._connected)
        self._timers.clear()
        if generation is Generation.LEGACY:
            self._settle()

    def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            self._timers.pop("linger", None)
            self._events.append(Settled())

    def _give_up(self) -> None:
        self._over = True
        self._events.append(DeadlinePassed(self.evidence))

    def _learn_mtu(self, route: _Route, mtu: int, now: float) -> None:
        limit = max(mtu - route.path.remote.headers, _IPV4_MINIMUM)
        if limit < route.size_limit:
            route.size_limit = limit
            if route is self._nominated and "nominate" in self._timers:
                self._timers["nominate"] = now  # what was too big has gone nowhere

    # -- sending ------------------------------------------------------------------------------

    def _wants_probes(self, route: _Route) -> bool:
        if self._connected is not None or self._nominated is not None:
            return False
        return route.legacy is None or not route.legacy.ack_sent

    def _probe(self, route: _Route, now: float) -> None:
        """Send the hello that is due, and put the next one on the list."""
        elapsed = max(now - self._start, route.probe_at)
        if route.legacy is not None:
            # Bare and once a second, as 0.7 does, until the window is used up.
            route.probe_at = elapsed + LegacyPeer.INTERVAL
            self._effects.append(Send(wire.HELLO_MAGIC, route.path))
            route.evidence.hellos_sent += 1
            self._serve_legacy(route, route.legacy)
            return
        ttl = route.probe_ttl
        route.probe_at, route.probe_ttl = next_probe(elapsed)
        self._send_hello(route, now, ttl=ttl)

    def _send_hello(
        self,
        route: _Route,
        now: float,
        *,
        nominate: bool = False,
        size: int = wire.HELLO_SIZE,
        ttl: int | None = None,
    ) -> None:
        self._serial += 1
        route.sent[self._serial] = (now, size)
        if len(route.sent) > _REMEMBERED:
            del route.sent[next(iter(route.sent))]
        measured = route.evidence.round_trip if nominate else None
        message = Message(
            kind=Kind.HELLO,
            nonce=self.nonce,
            nominate=nominate,
            serial=self._serial,
            echo=self._peer_nonce,
            observed=route.path.remote if nominate else None,
            mode=Mode.PLAIN,
            round_trip=None if measured is None else _in_microseconds(measured),
        )
        self._send(route, message, size=size, ttl=ttl)
        route.evidence.hellos_sent += 1

    def _answer(
        self,
        asked: Message,
        size: int,
        route: _Route,
        *,
        nominate: bool = False,
        pad: bool = False,
    ) -> None:
        """Send the ack of a hello of `size` bytes; never one that is longer than that."""
        ack = Message(
            kind=Kind.ACK,
            nonce=self.nonce,
            nominate=nominate,
            serial=asked.serial,
            echo=asked.nonce,
            observed=route.path.remote,
        )
        data = wire.encode(ack, size=min(size, route.size_limit) if pad else 0)
        if len(data) <= size:
            self._effects.append(Send(data, route.path))

    def _say_done(self, route: _Route) -> None:
        message = Message(Kind.ACK, self.nonce, done=True, echo=self._peer_nonce)
        for _ in range(_DONE_COPIES):
            self._send(route, message)

    def _send(
        self, route: _Route, message: Message, *, size: int = 0, ttl: int | None = None
    ) -> None:
        self._effects.append(Send(wire.encode(message, size=size), route.path, ttl))

    def _serve_legacy(self, route: _Route, legacy: LegacyPeer) -> None:
        """Send a 0.7 peer its one ack when it is time, and connect when both acks went through."""
        if legacy.wants_ack(route.evidence.hellos_sent):
            legacy.ack_sent = True
            self._effects.append(Send(wire.ACK_MAGIC, route.path))
        if legacy.complete and self._connected is None:
            self._connect(route)


def _in_microseconds(seconds: float) -> int:
    return min(round(seconds * _MICROSECONDS), _LONGEST_ROUND_TRIP)
