"""The handshake: from hellos on some paths to one path that both sides use.

Theory of operation. Both sides run the same machine.

1. The ladder says when a hello goes out on which path, and how far (`ladder`). Each hello that
   arrives from the peer's host is answered by an ack which repeats the hello's nonce and serial,
   and says where the hello came from. Little is remembered of it: anybody can forge one.
2. An ack (or a hello) that names our nonce proves that the path is open both ways: it is
   *validated*. Nobody who can't read our packets can forge that. Whoever named our nonce first is
   the peer; from then on our messages name its nonce, and the ladder pauses.
3. The side with the larger nonce is *controlling* (the role of RFC 8445, section 6.1.1, decided
   without a tie). It nominates a validated path: a hello with a flag, repeated until an ack with
   the same flag confirms it. The controlled side is connected when the first nomination arrives,
   the controlling side when a confirmation does: both use the path that the controlled side took.
4. The controlling side says `done`. Until it hears that, the controlled side answers repeated
   nominations: its confirmation may have been lost.

The parts that need no messages to be understood have modules of their own: what is known of each
path (`route`), where the peer is knocked at (`insistence`), which path is nominated, and how large
(`nomination`). What goes out is put together by `writer`.

Where one side needs the agreed pair of ports and another path was found first, the controlling side
does not nominate that one yet: it brings up the agreed pair over it (`bringup`).

A peer of generation 0.7 sends bare magics. It takes one ack, prints anything that comes later, and
sends one ack itself: `legacy`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.model import ErrorKind, Generation, NetworkError, Path, Rung
from nat_traverse.punch.bringup import SILENCE, BringUp
from nat_traverse.punch.evidence import Evidence
from nat_traverse.punch.insistence import Insistence
from nat_traverse.punch.ladder import Knock, Ladder
from nat_traverse.punch.legacy import LegacyPeer
from nat_traverse.punch.machine import (
    AgreedPairAwaited,
    Connected,
    DeadlinePassed,
    Effect,
    Event,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    RungStarted,
    Send,
    Settled,
)
from nat_traverse.punch.nomination import Nominations
from nat_traverse.punch.route import MOST as MOST_ROUTES
from nat_traverse.punch.route import Route, Routes
from nat_traverse.punch.settings import DATAGRAM_SIZE, HandshakeSettings
from nat_traverse.punch.writer import Writer, in_seconds
from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import Agreed, Bare, Kind, Message, Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["DATAGRAM_SIZE", "LINGER", "LINGER_LIMIT", "Handshake", "HandshakeSettings"]

# What every IPv4 host accepts (576, RFC 791), less the IPv4 and UDP headers.
_IPV4_MINIMUM = 548

# How long (s) after the last nomination the controlled side waits for `done` before it may close
# its socket. Twenty repetitions fit in; at 30 % loss each way one chance in a million is left.
LINGER = 2.0
# And how long (s) at most, should the peer ask on: then nothing of ours reaches it any more.
LINGER_LIMIT = 10.0

# Datagrams of user data that are kept until the path is agreed on: a little more than a peer of
# today sends before it waits for an answer.
_EARLY_DATAGRAMS = 64

# s without a proof of life from the peer after which the ladder goes on: a validated path that is
# not agreed on by then has died.
_PAUSE = 5.0
# The same while the agreed pair is brought up: five reminders may be lost.
_LONG_PAUSE = 12.0

# Paths that get hellos because the peer was heard on them, at the same time; what more are heard of
# are not needed.
_INSIST_PATHS = 8


class Handshake:
    """One traversal over a set of agreed paths; a `Machine`."""

    def __init__(self, settings: HandshakeSettings, paths: Sequence[Path], now: float) -> None:
        self._settings = settings
        self._routes = Routes(paths, settings.datagram_size)
        self.evidence = Evidence({route.path: route.evidence for route in self._routes})
        self._writer = Writer(settings.nonce, settings.mode, self._routes.is_agreed)
        self._ladder = Ladder(settings.ladder, paths, now)
        self._effects: deque[Effect] = deque()
        self._events: deque[Event] = deque()
        self._peer_mode = Mode.PLAIN
        self._nominations = Nominations(settings.mode)
        self._insistence = Insistence()
        self._bring_up: BringUp | None = None
        self._helper: Route | None = None
        self._told: set[Path] = set()  # validated, and the owner knows
        self._awaited: float | None = None  # which silence (s) the user was told of, if at all
        self._connected: Connected | None = None
        # All timers but the ladder's own: name, time.
        self._timers: dict[str, float] = {}
        if settings.timeout is not None:
            self._timers["deadline"] = now + settings.timeout
        self._early_data: list[bytes] = []
        self._linger_limit = now
        self._legacy_seen = False  # most peers are none, and nobody need look for them all the time
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
        return self._writer.peer

    @property
    def mode(self) -> Mode:
        """What this side wants the path for."""
        return self._settings.mode

    @property
    def peer_mode(self) -> Mode:
        """What the peer wants the path for, as far as it has said."""
        return self._peer_mode

    @property
    def controlling(self) -> bool:
        """True if this side nominates."""
        return self.peer_nonce is not None and self.nonce > self.peer_nonce

    @property
    def promised(self) -> tuple[Path, ...]:
        """Paths over one of which the peer is connected by now, or may be.

        The agreed one, or before the confirmation those that were nominated.
        """
        if self._connected is not None:
            return (self._connected.path,)
        return tuple(route.path for route in self._routes if route.nominations)

    # -- Machine ------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Take a datagram from anybody."""
        if self._over:
            return
        try:
            message = wire.decode(data)
        except RemoteProtocolError:
            self._receive_other(data, path)
            return
        if path.remote.host not in self._routes.hosts and not self._adopts(message, path):
            self._receive_stranger(message, path)
        elif isinstance(message, Bare):
            self._receive_bare(message, path, now)
        elif message.nonce == self.nonce:
            self.evidence.reflected += 1
        elif message.kind is Kind.HELLO:
            self._receive_hello(message, len(data), path, now)
        else:
            self._receive_ack(message, path, now)

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        """Take a refusal: it is noted, and teaches the ladder; it never ends the attempt."""
        if self._over:
            return
        self._ladder.refused(error, path, now)
        route = self._routes.get(path)
        if route is None:
            self.evidence.refused_probes += error.kind is ErrorKind.PORT_UNREACHABLE
            return
        if error.kind is ErrorKind.TOO_BIG and error.mtu:
            self._learn_mtu(route, error.mtu, now)
        if route.evidence.note_error(error.kind, error.reporter):
            self._events.append(PeerRefused(path, error))

    def socket_opened(self, number: int, port: int, now: float) -> None:
        """Learn that a socket is open, and use it."""
        self._effects.extend(self._ladder.socket_opened(number, port, now))
        if not self._over and self._connected is None:
            self._climb(now)

    def socket_failed(self, number: int, now: float) -> None:
        """Learn that a socket could not be opened: the ladder does without."""
        self._ladder.socket_failed(number, now)

    def handle_timer(self, now: float) -> None:
        """Send what is due and end what has run out."""
        if self._over:
            return
        due = [name for name, at in self._timers.items() if at <= now] if self._timers else ()
        for name in due:
            # An earlier one of the same moment may have stopped this one.
            if self._timers.pop(name, None) is not None:
                self._handle(name, now)
        if self._connected is None and not self._over:
            if self._legacy_seen:
                self._serve_all_legacy(now)
            self._climb(now)

    def get_timer(self) -> float | None:
        """Return the earliest time at which something is due."""
        if self._over:
            return None
        earliest = min(self._timers.values()) if self._timers else None
        if self._connected is not None:
            return earliest
        for route in self._routes if self._legacy_seen else ():
            legacy = route.legacy
            if (
                legacy is not None
                and not legacy.ack_sent
                and (earliest is None or legacy.probe_at < earliest)
            ):
                earliest = legacy.probe_at
        climbs = self._ladder.next_time()
        if earliest is None or (climbs is not None and climbs < earliest):
            return climbs
        return earliest

    def effects(self, now: float) -> Iterator[Effect]:  # noqa: ARG002 (the interface's argument)
        """Yield what is to be sent, opened and closed."""
        while self._effects:
            yield self._effects.popleft()

    def next_event(self) -> Event | None:
        """Return the oldest unread event."""
        return self._events.popleft() if self._events else None

    def _handle(self, name: str, now: float) -> None:
        """Do what the timer of this name is for."""
        if name == "nominate":
            self._nominate(now)
        elif name == "insist":
            self._insist(self._insistence.due(now, self._works), now)
        elif name == "bring up":
            self._bring_up_further(now)
        elif name == "linger":
            self._settle()
        else:  # the deadline
            self._give_up()

    # -- receiving ----------------------------------------------------------------------------

    def _receive_other(self, data: bytes, path: Path) -> None:
        """Take a datagram that is no message: noise, or the first user data.

        A 0.7 peer that sends data, with our ack on its way, is connected: its own ack was lost or
        overtaken. A peer of today may send data as soon as it has confirmed. That is kept until
        the confirmation, which is asked for until it comes, arrives as well: data proves nothing.
        """
        route = self._routes.get(path)
        if data.startswith(wire.MAGIC_PREFIX):
            self.evidence.malformed += 1
        elif path.remote.host not in self._routes.hosts:
            self.evidence.strangers += 1
        elif self._connected is not None or not data or route is None:
            self.evidence.not_ours += 1
        elif route.legacy is not None and route.legacy.ack_sent:
            self._early_data.append(data)
            self._connect(route)
        elif route.nominations and len(self._early_data) < _EARLY_DATAGRAMS:
            self._early_data.append(data)
        else:
            self.evidence.not_ours += 1

    def _adopts(self, message: Message | Bare, path: Path) -> bool:
        """Tell whether a message from an address that was not agreed is taken for the peer's.

        One that names our nonce comes from somebody who has seen our packets, so it is probably the
        peer, behind a gateway with several addresses. That is enough where the peer has to prove
        itself afterwards.
        """
        return (
            self._settings.roaming
            and self._connected is None
            and isinstance(message, Message)
            and message.echo == self.nonce
            and self._accept_peer(message.nonce)  # before: another run's addresses are forgotten
            and self._routes.adopt(path)
        )

    def _receive_stranger(self, message: Message | Bare, path: Path) -> None:
        """Take a message from an address that was not agreed; nothing is answered.

        One that names our nonce is probably the peer's (see `_adopts`), which is not enough to talk
        to it.
        """
        self.evidence.strangers += 1
        if isinstance(message, Message) and message.echo == self.nonce:
            self.evidence.note_elsewhere(path.remote.host)

    def _receive_bare(self, message: Bare, path: Path, now: float) -> None:
        """Take a 0.7 magic."""
        route = self._routes.get(path)
        if route is None:
            self.evidence.strangers += 1  # 0.7 writes from the agreed port, or is not understood
            self._note_port(path)
            return
        if (
            route.evidence.generation is Generation.CURRENT
            or self.peer_nonce is not None
            or self._connected is not None
        ):
            # A peer that was proven to speak with tails does not fall back: somebody else did.
            self.evidence.stale += 1
            return
        secret = self._settings.ladder is not None and self._settings.ladder.secret
        if secret or not self._settings.legacy:
            self.evidence.unwanted_legacy += 1
            return
        self._hear(message.kind, path, Generation.LEGACY)
        self._legacy_seen = True
        if route.legacy is None:
            route.legacy = LegacyPeer(self._settings.window, now)
        route.legacy.receive(message.kind)
        self._serve_legacy(route, route.legacy, now)

    def _receive_hello(self, message: Message, size: int, path: Path, now: float) -> None:
        if self._connected is not None and self._connected.generation is Generation.LEGACY:
            return  # whoever this is, the peer would take an answer for data
        self._unmask(path)
        self._hear(Kind.HELLO, path, Generation.CURRENT)
        if message.echo != self.nonce or not self._accept_peer(message.nonce):
            self._effects.extend(self._writer.answer(message, size, path))
            self._trigger(path, now)
            return
        route = self._prove(message, path, in_seconds(message.round_trip))
        if route is not None and message.nominate and not self.controlling:
            self._confirm(message, size, route, now)
            return
        step = None if route is None else self._take_step(message, route, now)
        self._effects.extend(self._writer.answer(message, size, path, agreed=step))
        self._proceed(route, now)

    def _receive_ack(self, message: Message, path: Path, now: float) -> None:
        if message.echo != self.nonce or not self._accept_peer(message.nonce):
            self.evidence.stale += 1
            return
        self._unmask(path)
        self._hear(Kind.ACK, path, Generation.CURRENT)
        sent = self._writer.sent(message.serial)
        route = self._prove(message, path, None if sent is None else now - sent.at)
        if route is None:
            return
        if message.done and self._connected is not None:
            self._settle()
        elif message.nominate and self.controlling and route.nominations:
            self._take_confirmation(route, None if sent is None else sent.size)
        else:
            if self._bring_up is not None and route is self._helper:
                self._bring_up.answered(message.agreed, now)
                self._bring_up_further(now)
            self._proceed(route, now)

    def _unmask(self, path: Path) -> None:
        """Take note of a message with a tail: bare magics from there were not the peer's own."""
        route = self._routes.get(path)
        if route is not None and route.legacy is not None:
            route.legacy = None
            route.evidence.generation = None
            self._ladder.keep_to_agreed(any(r.legacy for r in self._routes))

    def _hear(self, kind: Kind, path: Path, generation: Generation) -> None:
        """Note what arrived; from another port than the agreed one, too."""
        route = self._routes.of_host(path)
        evidence = route.evidence
        first = evidence.generation is None
        evidence.generation = generation
        if path == route.path:
            evidence.hellos_received += kind is Kind.HELLO
            evidence.acks_received += kind is Kind.ACK
        if first:
            self._events.append(PeerHeard(path, generation))
        self._note_port(path)

    def _note_port(self, path: Path) -> None:
        """Note a port of the peer's that was not agreed, on a socket that the agreed one knows."""
        route = self._routes.of_host(path)
        if (
            route.path.socket == path.socket
            and route.path.remote != path.remote
            and route.evidence.note_port(path.remote.port)
        ):
            self._events.append(PortChanged(route.path, path.remote))
            if len(route.evidence.other_ports) == 1 and self._routes.is_agreed(route.path):
                self._ladder.port_seen(path)

    def _accept_peer(self, nonce: bytes) -> bool:
        """Take `nonce`, whose owner has just named ours, as the peer's.

        A peer that was restarted comes with another nonce; that is fine until a path is agreed.
        """
        if nonce != self.peer_nonce:
            if self._connected is not None:
                return False
            self._writer.peer = nonce
            self._forget_progress()
        return True

    def _forget_progress(self) -> None:
        """Begin anew: what is known to work was so with another run of the peer, or has died."""
        self._nominations = Nominations(self._settings.mode)
        self._routes.begin_anew()
        self._early_data.clear()
        self._insistence.clear()
        self._bring_up = self._helper = self._awaited = None
        for name in ("nominate", "insist", "bring up"):
            self._timers.pop(name, None)

    def _prove(self, message: Message, path: Path, round_trip: float | None) -> Route | None:
        """Take a message that names our nonce: its path is validated.

        None if it is a path that nobody needs any more.
        """
        route = self._routes.get(path) if self._connected else self._routes.add(path)
        if route is None:
            return None
        route.observed = message.observed or route.observed
        route.astray = message.astray
        self._peer_mode = message.mode or self._peer_mode
        evidence = route.evidence
        if round_trip is not None:
            known = evidence.round_trip
            evidence.round_trip = round_trip if known is None else min(known, round_trip)
        if not route.works:
            route.works = evidence.validated = True
            self._tell_validated(route)
        return route

    def _tell_validated(self, route: Route) -> None:
        """Tell of a path once, however often the peer is restarted or seems to be."""
        if route.path not in self._told and len(self._told) < MOST_ROUTES:
            self._told.add(route.path)
            self._events.append(PathValidated(route.path, route.evidence.round_trip))

    def _trigger(self, path: Path, now: float) -> None:
        """Send a hello where one came from: the way in is open, so the way out probably is.

        A triggered check (RFC 8445, section 7.3.1.4). On the agreed path once only: hellos must not
        beget hellos. On a socket that waits for a probe of the peer's, several times: the probe
        does not come again.
        """
        if self._connected is not None:
            return
        if self._ladder.is_sprayed(path):
            if len(self._insistence) < _INSIST_PATHS:
                self._insist_on(path, now)
            return
        route = self._routes.get(path)
        if route is not None and not route.triggered and not route.works:
            route.triggered = True
            self._say(self._writer.hello(path, now))

    def _proceed(self, route: Route | None, now: float) -> None:
        """Go on from a validated path to an agreed one."""
        if self._connected is not None or route is None:
            return
        helping = self._bring_up is not None or self._awaited is not None
        self._ladder.pause(now + (_LONG_PAUSE if helping else _PAUSE))
        if self.controlling:
            self._choose(route, now)
        elif self._awaited is None:
            self._insist_on(route.path, now)

    # -- nominating ---------------------------------------------------------------------------

    def _choose(self, proven: Route, now: float) -> None:
        """Nominate a path that will do, or see to it over `proven` that there will be one."""
        if self._nominations.route is not None:
            return
        if self._nominees():
            self._nominate(now)
            return
        if self._bring_up is None:
            self._helper = proven
            self._bring_up = BringUp(now)
            self._tell_awaited(self._helper.path, 0.0)
            self._bring_up_further(now)

    def _will_do(self, route: Route) -> bool:
        """Tell whether a path serves what both sides want it for."""
        if Mode.PORTS not in (self._settings.mode, self._peer_mode):
            return True
        if self._routes.is_agreed(route.path) or self._changes_ports(route):
            return True
        return self._bring_up is not None and self._bring_up.is_over

    def _changes_ports(self, route: Route) -> bool:
        """Tell whether our gateway is known to give a fresh socket another port."""
        local = self._ladder.local_port(route.path.socket)
        return local is not None and route.observed is not None and route.observed.port != local

    def _nominate(self, now: float) -> None:
        route = self._nominations.choose(self._nominees())
        size = self._nominations.size(route)
        measured = route.evidence.round_trip
        self._say(
            self._writer.hello(route.path, now, nominate=True, round_trip=measured, size=size)
        )
        self._timers["nominate"] = self._nominations.note_sent(route, now)

    def _nominees(self) -> list[Route]:
        """Return the paths that work and will do."""
        return [route for route in self._routes if route.works and self._will_do(route)]

    def _take_confirmation(self, route: Route, size: int | None) -> None:
        if self._connected is None:
            proven = self._settings.datagram_size if size is None else size
            route.size_limit = min(route.size_limit, max(proven, _IPV4_MINIMUM))
            self._connect(route)
        self._effects.extend(self._writer.done(route.path))
        self._settle()

    def _confirm(self, message: Message, size: int, route: Route, now: float) -> None:
        """Agree to a nomination; the answer is as long as the question, which was as long as data.

        A smaller nomination that follows a larger one says that our large confirmation was lost.
        """
        route.size_limit = min(route.size_limit, max(size, _IPV4_MINIMUM))
        if self._connected is None:
            self._connect(route)
            self._linger_limit = now + LINGER_LIMIT
        if self._connected is not None and self._connected.path == route.path:
            answer = self._writer.answer(
                message, size, route.path, nominate=True, pad_to=route.size_limit
            )
            self._effects.extend(answer)
            if not self._settled:
                self._timers["linger"] = min(now + LINGER, self._linger_limit)

    def _connect(self, route: Route) -> None:
        generation = Generation.CURRENT if route.legacy is None else Generation.LEGACY
        self._connected = Connected(
            path=route.path,
            generation=generation,
            round_trip=route.evidence.round_trip,
            observed=route.observed,
            datagram_size=route.size_limit,
            early_data=tuple(self._early_data),
            rung=self._ladder.rung_of(route.path),
            agreed=self._routes.is_agreed(route.path) and not route.astray,
        )
        self._events.append(self._connected)
        self._timers.clear()
        self._insistence.clear()
        self._bring_up = None
        self._stop_ladder(keep=route.path.socket)
        if generation is Generation.LEGACY:
            self._settle()

    def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            self._timers.pop("linger", None)
            self._events.append(Settled())

    def _give_up(self) -> None:
        self._over = True
        self._timers.clear()
        self._stop_ladder()
        self._events.append(DeadlinePassed(self.evidence))

    def _stop_ladder(self, keep: int | None = None) -> None:
        self.evidence.ports_tried = self._ladder.ports_tried
        self.evidence.openings_sent = self._ladder.openings_sent
        self._effects.extend(self._ladder.stop(keep))

    def _learn_mtu(self, route: Route, mtu: int, now: float) -> None:
        limit = max(mtu - route.path.remote.headers, _IPV4_MINIMUM)
        if limit < route.size_limit:
            route.size_limit = limit
            if route is self._nominations.route and "nominate" in self._timers:
                self._timers["nominate"] = now  # what was too big has gone nowhere

    # -- bringing up the agreed pair ------------------------------------------------------------

    def _bring_up_further(self, now: float) -> None:
        """Make the controlling side's next move."""
        bring_up, helper = self._bring_up, self._helper
        if bring_up is None or helper is None:
            return
        if bring_up.is_dead(now):
            self._forget_progress()
            self._ladder.resume()
            return
        move = bring_up.move(now)
        if bring_up.is_over:
            self._choose(helper, now)
            return
        self._timers["bring up"] = bring_up.next_time
        self._postpone_deadline(now)
        if bring_up.is_silent:
            self._keep_silent(helper.path, bring_up.silence, now)
        if move is not None and move.ask is None:
            self._say(self._writer.hello(self._routes.of_host(helper.path).path, now))
        elif move is not None:
            self._say(self._writer.hello(helper.path, now, agreed=move.ask))

    def _take_step(self, message: Message, route: Route, now: float) -> Agreed | None:
        """Do what the controlling side asks for on the agreed pair; return what to answer."""
        if message.agreed is None or self.controlling or self._connected is not None:
            return None
        self._insistence.clear()
        self._timers.pop("insist", None)
        self._postpone_deadline(now)
        if self._routes.is_agreed(route.path) or self._changes_ports(route):
            return Agreed.HOPELESS
        if message.agreed is Agreed.SILENT:
            self._keep_silent(route.path, SILENCE, now)
            return Agreed.SILENT
        self._tell_awaited(route.path, 0.0)
        pair = self._routes.of_host(route.path).path
        self._say(self._writer.hello(pair, now, ttl=self._ladder.opening_ttl(pair)))
        return Agreed.OPENED

    def _keep_silent(self, helper: Path, silence: float, now: float) -> None:
        """Send nothing on the pair, even if the other end is not heard for a while."""
        self._ladder.pause(now + SILENCE)
        self._tell_awaited(helper, silence)

    def _tell_awaited(self, helper: Path, silence: float) -> None:
        if self._awaited is None or silence > self._awaited:
            self._awaited = silence
            self._events.append(AgreedPairAwaited(helper, silence))

    def _postpone_deadline(self, now: float) -> None:
        """Put the deadline off: it is for finding a path, and there is one."""
        if "deadline" in self._timers:
            self._timers["deadline"] = max(self._timers["deadline"], now + _LONG_PAUSE)

    # -- sending ------------------------------------------------------------------------------

    def _climb(self, now: float) -> None:
        """Do what the ladder says."""
        for order in self._ladder.due(now):
            if isinstance(order, RungStarted):
                if order.rung not in self.evidence.rungs:
                    self.evidence.rungs.append(order.rung)
                self._events.append(order)
            elif not isinstance(order, Knock):
                self._effects.append(order)
            elif order.rung in (Rung.SPRAY, Rung.PREDICT):
                self._effects.append(self._writer.search(order.path, order.ttl))
            else:
                route = self._routes.get(order.path)
                if route is None or route.legacy is None or not route.legacy.is_believed(now):
                    self._say(self._writer.hello(order.path, now, ttl=order.ttl))

    def _works(self, path: Path) -> bool:
        route = self._routes.get(path)
        return route is not None and route.works

    def _insist_on(self, path: Path, now: float) -> None:
        self._insist(self._insistence.add(path, now, self._works), now)

    def _insist(self, paths: Sequence[Path], now: float) -> None:
        """Send hellos on paths that the peer was heard on."""
        for path in paths:
            self._say(self._writer.hello(path, now))
        if self._insistence.next_time is not None:
            self._timers["insist"] = self._insistence.next_time

    def _say(self, hello: Send) -> None:
        """Send a hello, and count it where it goes on an agreed or validated path."""
        self._effects.append(hello)
        route = self._routes.get(hello.path)
        if route is not None:
            route.evidence.hellos_sent += 1

    # -- peers of generation 0.7 ----------------------------------------------------------------

    def _serve_all_legacy(self, now: float) -> None:
        for route in self._routes:
            legacy = route.legacy
            if legacy is None or legacy.ack_sent or legacy.probe_at > now:
                continue
            legacy.probe_at = max(legacy.probe_at, now) + LegacyPeer.INTERVAL
            self._ladder.keep_to_agreed(True)
            self._serve_legacy(route, legacy, now)
            if not legacy.ack_sent:
                # Bare and once a second, as 0.7 does, until the window is used up.
                self._effects.append(Send(wire.HELLO_MAGIC, route.path))
                route.evidence.hellos_sent += 1

    def _serve_legacy(self, route: Route, legacy: LegacyPeer, now: float) -> None:
        """Send a 0.7 peer its one ack when it is time, and connect when both acks went through."""
        if legacy.wants_ack(route.evidence.hellos_sent, now):
            legacy.ack_sent = True
            self._effects.append(Send(wire.ACK_MAGIC, route.path))
        if legacy.complete and self._connected is None:
            self._connect(route)
