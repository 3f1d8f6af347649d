"""The encrypted tunnel: QUIC on a punched hole, with the peer proven before anything is served.

Theory of operation
-------------------
    connecting ──Established──▶ proving ──Proof.outcome──▶ open ──leave, close──▶ over
        └───────── no answer, a refusal, the peer's goodbye, no sign of life ───────▲

*Connecting*: the controlling side is the QUIC client. Its first packets are repeated by the engine.
*Proving*: each side has a control stream, on which the frames of `proof` are exchanged. What the
engine brings of other streams waits until the proof has succeeded: the peer may have finished a
moment earlier. If the proof fails, the connection ends with a code that says why.
*Open*: streams and datagrams. Credit frames say how much of each stream the other side may send.

Leaving is mutual: a side that has all it wants says *bye*; when both have said it the connection
is closed. A goodbye that is lost costs nothing: who has said bye has had everything.

Beside QUIC, on the same path, the messages of the traversal go on: late nominations are answered,
the peer is followed to another address (`follow`), and a hello of somebody with another nonce, from
the peer's address, is taken for a sign that the peer was started again. As anybody can forge that,
it only makes us ask the peer for a sign of life; without one the tunnel is over.

There too go the sealed datagrams of a VPN (`keying`), past the engine: whoever carries them keeps
their keys, agrees on them by control frames of its own, and tells of what has proven to be the
peer's.
"""

from __future__ import annotations

import errno
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.model import ErrorKind
from nat_traverse.punch.machine import Send
from nat_traverse.tunnel import engine as quic
from nat_traverse.tunnel.credit import Budget, ReceiveCredit, SendCredit
from nat_traverse.tunnel.events import (
    Closing,
    CreditGrown,
    Ended,
    Event,
    FlowDatagram,
    FrameReceived,
    NoSuchStreamError,
    NotEstablished,
    NotProven,
    PathChanged,
    PeerClosed,
    PeerVanished,
    Proven,
    StreamDone,
    StreamOpened,
)
from nat_traverse.tunnel.follow import Follower
from nat_traverse.tunnel.refusals import (
    ProofError,
    ProofWithheldError,
    PurposesDifferError,
    refused_by_peer,
)
from nat_traverse.wire import control
from nat_traverse.wire import hello as wire
from nat_traverse.wire.control import Frame
from nat_traverse.wire.hello import MAGIC_PREFIX, Bare, Kind, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.model import NetworkError, Path
    from nat_traverse.punch.handshake import Handshake
    from nat_traverse.punch.machine import Connected, Effect
    from nat_traverse.tunnel.proof import Proof

# The channel and the proof take two or three round trips. This long (s) allows for the repetitions
# that heavy loss asks for, and is short enough to begin anew within the usual limit of 180 s.
ESTABLISH = 10.0

# Until the tunnel is open, the datagrams that were sent last are sent again after so many seconds
# and a third as much again each time, as they are: the receiver's engine drops what it has already.
# The engine begins later and doubles the distance each time, and all of these few first packets
# have to get through; with 30 % lost, one attempt in a hundred would take five seconds.
_AGAIN = 0.1
_AGAIN_GROWTH = 1.3
_LAST_SENT = 8  # datagrams: a part of QUIC's handshake has two or three, and acks come between
# And for this long (s) afterwards: the side that is done first has sent what the other waits for.
_STILL_AGAIN = 2.0

# A ping after this many seconds, answered or not: the first earlier, since Linux keeps a flow for
# 30 s until it has seen traffic both ways for 2 s, then for 120 s; 15 s stays below every gateway
# measured (shortest in IMC 2010: 30 s).
FIRST_KEEPALIVE = 10.0
KEEPALIVE = 15.0
CONSENT = 30.0  # s without any sign of the peer (RFC 7675, section 5.1)

# After a doubt (a refusal, a hello of another run of the peer's) it has this long (s), or five
# round trips, for a sign of life: room for several of the engine's repetitions.
_DOUBT = 1.5
_DOUBT_ROUND_TRIPS = 5
# Refusals of what was sent before the connection arrive within this time (s).
_LATE = 2.0

# Who has said bye, and heard nothing for this long (s), leaves all the same.
_LINGER = 3.0

# Copies of the goodbye, for nobody is there any more to repeat it.
_GOODBYES = 2

# Bytes of one stream that may wait in the engine: enough for it never to run dry between two turns
# of the event loop, and little enough to be given up quickly when a stream is reset.
ENGINE_ROOM = 1024 * 1024

# What a peer may make us keep before it has proven itself. Its streams begin only afterwards, so
# this much means reordering on the way, and more means somebody else.
_EARLY_EVENTS = 256
_EARLY_BYTES = 1024 * 1024

# Of what comes from elsewhere, or is a message with a foreign nonce, so many datagrams are looked
# at in so many seconds. A flood of them is thrown away at once: it must not take the time that the
# tunnel's own packets need. A peer whose address has changed is noticed by its first packets.
_STRANGERS = 64
_NAME_AT = 1  # where a packet of QUIC with a short header has the connection ID
_TURN = 0.05

# Datagrams between two looks at what congestion control allows: a train of them.
_DATAGRAM_BURST = 64

# Control frames from this number on are not the tunnel's own.
_CARRIED = 0x20

# Datagrams begin with the number of the stream that they belong to, in so many bytes.
_FLOW_SIZE = 4
# The number of those that belong to the tunnel as a whole; QUIC's streams never get that far.
NO_STREAM = 0xFFFFFFFF


class State(Enum):
    """How far the tunnel is."""

    CONNECTING = "connecting"
    PROVING = "proving"
    OPEN = "open"
    OVER = "over"


class _Stream:
    """What is kept of one stream while either direction lasts."""

    __slots__ = ("receive", "receiving", "send", "sending")

    def __init__(self, budget: Budget) -> None:
        self.send = SendCredit()
        self.receive = ReceiveCredit(budget)
        self.sending = True
        self.receiving = True


class SecureTunnel:
    """One tunnel over the path that `handshake` connected.

    `make_proof` is called with the fingerprint of the server's certificate. Times are seconds on
    one monotonic clock. `keepalive` is in seconds.
    """

    def __init__(
        self,
        handshake: Handshake,
        connected: Connected,
        engine: quic.Engine,
        make_proof: Callable[[bytes], Proof],
        now: float,
        *,
        keepalive: float = KEEPALIVE,
        consent: float = CONSENT,
    ) -> None:
        peer_nonce = handshake.peer_nonce
        if peer_nonce is None:
            raise ValueError("a peer of generation 0.7 has no encrypted tunnel")
        self.path = connected.path
        self.state = State.CONNECTING
        self.is_client = handshake.controlling
        self.datagram_limit = engine.datagram_limit - _FLOW_SIZE
        self._handshake = handshake
        self._engine = engine
        self._make_proof = make_proof
        self._proof: Proof | None = None
        self._fingerprint = b""  # of the server's certificate
        self._follower = Follower(handshake.nonce, peer_nonce)
        self._keepalive = keepalive
        self.consent = consent
        self._doubt = max(_DOUBT, _DOUBT_ROUND_TRIPS * (connected.round_trip or 0.0))
        self._start = self._heard = now
        self._doubted: int | None = None  # the errno that it will have been
        self._frames = control.FrameReader()
        self._peer_nonce = peer_nonce
        self._next_turn = now
        self._admitted = 0
        self._control: int | None = None
        self._streams: dict[int, _Stream] = {}
        self._next_peers = 1 if self.is_client else 0  # the peer's stream that none was heard after
        self._skipped: set[int] = set()  # streams before it of which nothing was heard yet
        self._budget = Budget()
        self._early: list[quic.EngineEvent] = []
        self._early_room = _EARLY_BYTES
        self._undone: set[int] = set()
        self._has_shown = False  # what proves this side, for a guess at the secret to be tested by
        self._refusal: ProofError | None = None  # that is told when the last frames have arrived
        self._waiting_datagrams = 0  # since the engine was last asked what to send
        self._said_bye = False
        self._heard_bye = False
        self._last_sent: deque[bytes] = deque(maxlen=_LAST_SENT)
        self._again: list[bytes] = []
        self._ends_proof = False  # what is sent next is the end of our proof
        self._enough = float("inf")  # when nothing is sent again any more
        self._until_again = max(_AGAIN, 2 * (connected.round_trip or 0.0))
        self._messages: deque[Send] = deque()
        self._events: deque[Event] = deque()
        self._timers = {"establish": now + ESTABLISH}
        engine.start(now)

    @property
    def session(self) -> bytes:
        """What is this connection's alone, the same on both sides; once it is established."""
        nonces = (self._handshake.nonce, self._peer_nonce)
        return b"".join(nonces if self.is_client else nonces[::-1]) + self._fingerprint

    @property
    def undone(self) -> int:
        """How many streams were ended here and not consumed to their end there."""
        return len(self._undone)

    @property
    def heard(self) -> float:
        """When the peer last gave a sign of life that only it can give; the start if it did not."""
        return self._heard

    @property
    def round_trip(self) -> float | None:
        """Seconds from a packet to its answer, smoothed; None if unknown."""
        return self._engine.round_trip

    # -- inputs -------------------------------------------------------------------------------

    def receive(self, data: bytes, path: Path, now: float) -> None:
        """Take one datagram from anybody."""
        is_message = data.startswith(MAGIC_PREFIX)
        # Who names the peer's nonce is the peer, or can read what passes: no flood comes of that,
        # and an answer from a new address must not be lost among the packets from there.
        if is_message:
            known = wire.is_from(data, self._peer_nonce)
        else:
            known = path == self.path and self._is_addressed(data)
        if not known and not self._admits(1, now):
            return
        if is_message and self._take_message(data, path, now):
            return
        if path != self.path:
            self._hear_elsewhere(path, len(data), now)
        # From elsewhere too: the engine knows what is its own, whatever way it came.
        self._engine.receive([data], now)
        self._read_engine(now)

    def receive_many(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams that came on `path` one by one, all at once."""
        name = self._engine.name
        # No message of the traversal has the connection's name where a packet has it.
        ours = [data for data in datagrams if data.startswith(name, _NAME_AT)]
        if self.state is not State.OPEN:
            ours = []
        if len(ours) < len(datagrams):
            for data in datagrams:
                if not ours or not data.startswith(name, _NAME_AT):
                    self.receive(data, self.path, now)
        if ours:
            self._engine.receive(ours, now)
            self._read_engine(now)

    def receive_run(self, run: bytes, size: int, path: Path, now: float) -> None:
        """Take datagrams of `size` bytes each, the last perhaps shorter, in one piece."""
        last = (len(run) - 1) // size * size  # only this one may be shorter, and so a message
        if last == 0 or run.startswith(MAGIC_PREFIX) or run.startswith(MAGIC_PREFIX, last):
            for at in range(0, len(run), size):
                self.receive(run[at : at + size], path, now)
            return
        known = path == self.path and self._is_addressed(run)
        if not known and not self._admits(-(-len(run) // size), now):
            return
        if path != self.path:
            self._hear_elsewhere(path, len(run), now)
        self._engine.receive_run(run, size, now)
        self._read_engine(now)

    def note_peer(self, path: Path, size: int, now: float) -> None:
        """Take note of a datagram of `size` bytes, beside QUIC's, that has proven to be the peer's.

        From elsewhere it makes us ask whether the peer has moved there.
        """
        self._hear_peer(now)
        if path != self.path:
            self._hear_elsewhere(path, size, now)

    def note_own_move(self, now: float) -> None:
        """Take note that this host has another address now: the old path may lead nowhere.

        A peer that lets anybody in follows us, and all others have to be found again. Which of the
        two it is shows within the time for a sign of life, and not only after `CONSENT`.
        """
        self._doubt_peer(errno.ENETRESET, now)

    def note_strangers(self, datagrams: int, now: float) -> None:
        """Count datagrams beside QUIC's that proved to be nobody's; they may be a flood."""
        self._admits(datagrams, now)

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        """Take a refusal of something that was sent."""
        if error.kind is not ErrorKind.PORT_UNREACHABLE or path != self.path:
            return
        if self._said_bye:
            self._end()
        elif now - self._start >= _LATE:
            self._doubt_peer(errno.ECONNREFUSED, now)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self.state is State.OVER:
            return
        at = self._engine.get_timer()
        if at is not None and at <= now:
            self._engine.handle_timer(now)
            self._read_engine(now)
        for name in [name for name, at in self._timers.items() if at <= now]:
            if self._timers.pop(name, None) is not None:  # None: one before it took it back
                self._do(name, now)

    def get_timer(self) -> float | None:
        """Return when `handle_timer` is next wanted."""
        if self.state is State.OVER:
            return None
        times = list(self._timers.values())
        at = self._engine.get_timer()
        if at is not None:
            times.append(at)
        return min(times, default=None)

    # -- outputs ------------------------------------------------------------------------------

    def effects(self, now: float) -> Iterator[Effect]:
        """Yield the traversal's messages that are to be sent, the handshake's among them."""
        yield from self._handshake.effects(now)
        while self._messages:
            yield self._messages.popleft()

    def datagrams_to_send(self, now: float) -> Sequence[bytes]:
        """Return the datagrams that are to be sent on `path` now; they count as sent."""
        self._waiting_datagrams = 0
        datagrams = self._engine.datagrams_to_send(now)
        if self.state is State.OPEN and not self._ends_proof:
            if not self._again:
                return datagrams
        elif self.state is State.OVER:
            return datagrams * _GOODBYES
        elif datagrams:
            # The first of an open tunnel are the end of this side's proof.
            self._ends_proof = False
            self._last_sent.extend(datagrams[:_LAST_SENT])
            self._timers["again"] = now + self._until_again
        again, self._again = self._again, []
        return [*datagrams, *again]

    def next_event(self) -> Event | None:
        """Return the oldest unread event."""
        return self._events.popleft() if self._events else None

    # -- what the user of an open tunnel does -------------------------------------------------

    def open_stream(self) -> int | None:
        """Open a stream and return its number; None while the peer allows no more of them."""
        if self.state is not State.OPEN:
            return None
        number = self._engine.open_stream()
        if number is not None:
            self._streams[number] = _Stream(self._budget)
        return number

    def is_sending(self, stream: int) -> bool:
        """Tell whether this side has neither ended its half of a stream nor given it up."""
        known = self._streams.get(stream)
        return known is not None and known.sending and self.state is State.OPEN

    def room(self, stream: int) -> int:
        """Return how many bytes of a stream may be sent now; 0 for one that is over."""
        known = self._streams.get(stream)
        if known is None or not known.sending or self.state is not State.OPEN:
            return 0
        return max(0, min(known.send.room, ENGINE_ROOM - self._engine.unsent(stream)))

    def send(self, stream: int, data: bytes | memoryview, *, fin: bool = False) -> None:
        """Send bytes of a stream, at most `room`; `fin` if they are its last."""
        known = self._streams.get(stream)
        if known is None or not known.sending or self.state is not State.OPEN:
            raise NoSuchStreamError(stream)
        if len(data) > known.send.room:
            raise ValueError(f"{len(data)} bytes, and the peer has room for {known.send.room}")
        known.send.sent += len(data)
        self._engine.send(stream, data, fin=fin)
        if fin:
            self._undone.add(stream)
            self._stop_sending(stream, known)

    def consume(self, stream: int, size: int) -> None:
        """Say that `size` bytes of a stream were taken by whoever they are for."""
        known = self._streams.get(stream)
        if known is None or not known.receiving:
            return
        limit = known.receive.consume(size)
        if limit is not None:
            self._say(control.encode_credit(control.Credit(stream, limit)))

    def finish_receiving(self, stream: int) -> None:
        """Say that all of a stream, to its end, was taken by whoever it is for."""
        if self.state is State.OPEN:
            self._say(control.encode_done(stream))

    def reset(self, stream: int, code: int = Closing.STOPPED) -> None:
        """Give up sending on a stream."""
        known = self._streams.get(stream)
        if known is not None and known.sending:
            self._engine.reset(stream, code)
            self._stop_sending(stream, known)

    def stop(self, stream: int, code: int = Closing.NOT_READING) -> None:
        """Take no more of a stream, and let the peer know."""
        known = self._streams.get(stream)
        if known is not None and known.receiving:
            self._engine.stop(stream, code)
            self._stop_receiving(stream, known)

    @property
    def has_datagram_room(self) -> bool:
        """True if a datagram that is sent now goes out soon; else it would wait in the engine."""
        return self._waiting_datagrams < _DATAGRAM_BURST and self._engine.has_room

    def send_datagram(self, stream: int, data: bytes) -> None:
        """Send an unreliable datagram of at most `datagram_limit` bytes.

        Where there is no room for it, it is lost, as in any queue on the way.
        """
        if len(data) > self.datagram_limit:
            raise ValueError(f"a datagram of {len(data)} bytes, and {self.datagram_limit} fit")
        if self.state is State.OPEN and self.has_datagram_room:
            self._waiting_datagrams += 1
            self._engine.send_datagram(stream.to_bytes(_FLOW_SIZE, "big") + data)

    def send_frame(self, kind: int, value: bytes) -> None:
        """Send a control frame for what the tunnel carries; the peer gets a FrameReceived."""
        if self.state is State.OPEN:
            self._say(control.encode_frame(kind, value))

    def leave(self, now: float) -> None:
        """Say that this side has all it wants; the tunnel ends when the other side says so, too."""
        if self._said_bye or self.state is not State.OPEN:
            return
        self._said_bye = True
        self._say(control.encode_frame(Frame.BYE))
        self._timers["linger"] = now + _LINGER
        self._part_if_mutual()

    def close(self, code: int, text: str = "") -> None:
        """End the tunnel at once; the peer is told, `datagrams_to_send` has the goodbye."""
        if self.state is State.OVER:
            return
        if self.state is State.CONNECTING:
            # There is no channel to say it in yet, or the peer can't read it. Twice, against loss.
            closing = Message(
                Kind.HELLO,
                self._handshake.nonce,
                echo=self._handshake.peer_nonce,
                closing=wire.Reason.STOPPED,
            )
            self._messages.extend([Send(wire.encode(closing), self.path)] * 2)
        self._engine.close(code, text)
        self._finish()

    # -- timers -------------------------------------------------------------------------------

    def _do(self, due: str, now: float) -> None:
        match due:
            case "establish":
                self._finish(NotEstablished())
            case "refuse" if self._refusal is not None:
                self._engine.close(self._refusal.refusal, "")
                self._finish(NotProven(self._refusal))
            case "again" if now < self._enough:
                self._again = list(self._last_sent)
                self._until_again *= _AGAIN_GROWTH
                self._timers["again"] = now + self._until_again
            case "keepalive":
                self._engine.ping()
                self._timers["keepalive"] = now + self._keepalive
            case "consent":
                self._check_consent(now)
            case "doubt":
                self._finish(PeerVanished(self._doubted or errno.ETIMEDOUT))
            case "linger":
                self._engine.close(Closing.COMPLETE, "")
                self._end()

    def _check_consent(self, now: float) -> None:
        if now >= self._heard + self.consent:
            self._finish(PeerVanished(errno.ETIMEDOUT))
        else:
            self._timers["consent"] = self._heard + self.consent

    def _doubt_peer(self, number: int, now: float) -> None:
        """Ask the peer for a sign of life; without one, the tunnel ends with this errno."""
        if self.state is State.OPEN and "doubt" not in self._timers:
            self._doubted = number
            self._timers["doubt"] = now + self._doubt
            self._engine.ping()

    # -- the traversal's messages -------------------------------------------------------------

    def _take_message(self, data: bytes, path: Path, now: float) -> bool:
        """Take a datagram that starts like a message; False if it is none."""
        try:
            message = wire.decode(data)
        except RemoteProtocolError:
            return False
        if isinstance(message, Bare) or self.state is State.OVER:
            return True
        if not self._follower.is_peers(message):
            self._take_doubtful(message, data, path, now)
        elif message.closing is not None:
            self._take_closing(now)
        elif message.nominate or message.mode is not None:
            self._handshake.receive_datagram(data, path, now)
        elif message.kind is Kind.HELLO:
            answer = self._follower.answer(message, len(data), path)
            if answer is not None:
                self._messages.append(answer)
        elif self._follower.take_answer(message, path) and path != self.path:
            self.path = path
            self._events.append(PathChanged(path))
        return True

    def _take_doubtful(self, message: Message, data: bytes, path: Path, now: float) -> None:
        """Take a message that does not name both nonces."""
        if message.nonce == self._handshake.peer_nonce:
            self._handshake.receive_datagram(data, path, now)
        elif self._is_restart(message, path):
            self._doubt_peer(errno.ECONNRESET, now)

    def _take_closing(self, now: float) -> None:
        """Take a goodbye of the traversal's; in an open tunnel it proves too little."""
        if self.state is State.OPEN:
            self._doubt_peer(errno.ECONNRESET, now)
        else:
            self._finish(PeerClosed(Closing.STOPPED, ""))

    def _is_restart(self, message: Message, path: Path) -> bool:
        """Tell whether this may be another run of the peer's, looking for us."""
        ours = self._handshake.nonce
        return (
            message.kind is Kind.HELLO
            and ours not in (message.nonce, message.echo)
            and path.remote.host == self.path.remote.host
        )

    def _is_addressed(self, data: bytes) -> bool:
        """Tell whether a packet of QUIC names this connection; before it is open, any may."""
        return self.state is not State.OPEN or data.startswith(self._engine.name, _NAME_AT)

    def _admits(self, datagrams: int, now: float) -> bool:
        """Tell whether there is time to look at what is probably a stranger's."""
        if now >= self._next_turn:
            self._next_turn = now + _TURN
            self._admitted = 0
        self._admitted += datagrams
        return self._admitted <= _STRANGERS

    def is_flooded(self, now: float) -> bool:
        """Tell whether an open tunnel gets more from strangers than it looks at."""
        crowded = self._admitted > _STRANGERS and now < self._next_turn
        return crowded and self.state is State.OPEN

    @property
    def names(self) -> tuple[bytes, bytes]:
        """By what the peer's datagrams are known: its nonce, and the name of the connection."""
        return self._peer_nonce, self._engine.name

    def _hear_elsewhere(self, path: Path, size: int, now: float) -> None:
        if self.state is not State.OPEN:
            return
        question = self._follower.hear(path, size, now)
        if question is not None:
            self._messages.append(question)

    # -- the engine's events ------------------------------------------------------------------

    def _read_engine(self, now: float) -> None:
        while self.state is not State.OVER and (event := self._engine.next_event()) is not None:
            self._hear_peer(now)
            self._take(event, now)

    def _hear_peer(self, now: float) -> None:
        """Take note of a sign of life."""
        self._heard = now
        if self._doubted is not None:
            self._doubted = None
            self._timers.pop("doubt", None)

    def _take(self, event: quic.EngineEvent, now: float) -> None:
        match event:
            case quic.Established(fingerprint):
                self._begin_proof(fingerprint)
            case quic.Terminated(code, reason):
                self._take_end(code, reason)
            case quic.StreamData(stream, data, _) if stream == self._peers_control:
                self._take_frames(data, now)
            case quic.StreamReset(stream, _) if stream == self._peers_control:
                self._break_off("the control stream was reset")
            case quic.Alive():
                pass
            case _ if self.state is State.OPEN:
                self._serve(event)
            case _:
                self._keep(event)

    def _keep(self, event: quic.EngineEvent) -> None:
        """Keep what comes before the proof has succeeded: on the peer's side it has, perhaps."""
        match event:
            case quic.StreamData(_, data) | quic.Datagram(data):
                self._early_room -= len(data)
        if len(self._early) < _EARLY_EVENTS and self._early_room >= 0:
            self._early.append(event)
        elif not isinstance(event, quic.Datagram):  # which may get lost at any time
            self._break_off("data before the proof")

    @property
    def _peers_control(self) -> int:
        """The number of the peer's control stream: its first that goes one way."""
        return 3 if self.is_client else 2

    def _begin_proof(self, fingerprint: bytes) -> None:
        self.state = State.PROVING
        self._fingerprint = fingerprint
        self._control = self._engine.open_stream(both_ways=False)
        self._proof = self._make_proof(fingerprint)
        self._send_proof()

    def _take_frames(self, data: bytes, now: float) -> None:
        try:
            for kind, value in self._frames.feed(data):
                if self.state is State.OVER:
                    return
                self._take_frame(kind, value, now)
        except RemoteProtocolError as error:
            self._break_off(str(error))

    def _take_frame(self, kind: int, value: bytes, now: float) -> None:
        if self._refusal is not None:
            return
        if self.state is State.PROVING:
            self._prove(kind, value, now)
        elif kind == Frame.CREDIT:
            credit = control.decode_credit(value)
            known = self._streams.get(credit.stream)
            if known is not None and known.send.extend(credit.limit):
                self._events.append(CreditGrown(credit.stream))
        elif kind == Frame.DONE:
            stream = control.decode_done(value)
            self._undone.discard(stream)
            self._events.append(StreamDone(stream))
        elif kind == Frame.BYE:
            self._heard_bye = True
            self._part_if_mutual()
        elif kind >= _CARRIED:
            self._events.append(FrameReceived(kind, value))

    def _prove(self, kind: int, value: bytes, now: float) -> None:
        proof = self._proof
        if proof is None:
            raise AssertionError("the proof begins with the channel")
        try:
            proof.receive(kind, value)
        except ProofError as error:
            self._send_proof()
            self._refuse(error, now)
            return
        self._send_proof()
        if proof.outcome is not None:
            self.state = State.OPEN
            self._timers = {
                "keepalive": now + min(FIRST_KEEPALIVE, self._keepalive),
                "consent": now + self.consent,
            }
            self._ends_proof = True
            self._enough = now + _STILL_AGAIN
            self._events.append(Proven(proof.outcome))
            early, self._early = self._early, []
            for event in early:
                self._serve(event)

    def _refuse(self, error: ProofError, now: float) -> None:
        """End it, because the peer has not proven what it has to."""
        if isinstance(error, PurposesDifferError):
            # It is the right one, and is to find that out: what was sent last must arrive first.
            self._refusal = error
            self._timers = {"refuse": now + self._doubt}
        else:
            self._engine.close(error.refusal, "")
            self._finish(NotProven(error))

    def _send_proof(self) -> None:
        if self._proof is not None:
            for kind, value in self._proof.messages():
                self._has_shown = self._has_shown or kind == Frame.PROOF
                self._say(control.encode_frame(kind, value))

    def _serve(self, event: quic.EngineEvent) -> None:
        """Take what belongs to the user's streams."""
        match event:
            case quic.StreamData(stream, data, fin):
                self._take_data(event, stream, len(data), fin=fin)
            case quic.StreamReset(stream, _):
                known = self._known(stream)
                # An engine whose peer stops it answers with a reset, which is no news to the peer.
                if known is not None and known.receiving:
                    self._stop_receiving(stream, known)
                    self._events.append(event)
            case quic.StreamStopped(stream, _):
                known = self._known(stream)
                sending = known is not None and known.sending
                # Repeated on the way, it comes several times.
                if sending or stream in self._undone:
                    self._events.append(event)
                self._undone.discard(stream)
                if known is not None and sending:
                    self._stop_sending(stream, known)
            case quic.Datagram(data) if len(data) >= _FLOW_SIZE:
                stream = int.from_bytes(data[:_FLOW_SIZE], "big")
                self._events.append(FlowDatagram(stream, data[_FLOW_SIZE:]))

    def _take_data(self, event: quic.StreamData, stream: int, size: int, *, fin: bool) -> None:
        known = self._known(stream)
        if known is None or not known.receiving:
            return
        if not known.receive.receive(size):
            self._break_off(f"more than the credit of stream {stream}")
            return
        self._events.append(event)
        if fin:
            known.receiving = False
            self._forget_if_over(stream, known)

    def _known(self, stream: int) -> _Stream | None:
        """Return what is known of a stream, which may be a new one of the peer's."""
        known = self._streams.get(stream)
        if known is None and self._is_new(stream):
            known = self._streams[stream] = _Stream(self._budget)
            self._events.append(StreamOpened(stream))
        return known

    def _is_new(self, stream: int) -> bool:
        """Tell whether this is the first that is heard of a stream of the peer's.

        They may be heard of in any order; the engine bounds how many the peer may begin.
        """
        if stream in self._skipped:
            self._skipped.remove(stream)
            return True
        if stream < self._next_peers or stream % 4 != self._next_peers % 4:
            return False
        self._skipped.update(range(self._next_peers, stream, 4))
        self._next_peers = stream + 4
        return True

    # -- ends ---------------------------------------------------------------------------------

    def _stop_sending(self, stream: int, known: _Stream) -> None:
        known.sending = False
        self._forget_if_over(stream, known)

    def _stop_receiving(self, stream: int, known: _Stream) -> None:
        known.receiving = False
        self._forget_if_over(stream, known)

    def _forget_if_over(self, stream: int, known: _Stream) -> None:
        if not known.receiving:
            known.receive.release()
        if not known.sending and not known.receiving:
            self._streams.pop(stream, None)

    def _take_end(self, code: int | None, reason: str) -> None:
        """Take the end of the connection."""
        if self._said_bye:
            self._end()
        elif code is None and not reason:
            self._finish(PeerVanished(errno.ETIMEDOUT))
        elif code is None:
            self._finish(PeerClosed(Closing.PROTOCOL, reason))
        else:
            # In an open tunnel too: the server is content one message earlier than the client,
            # which may then refuse what the server has shown last.
            refusal = refused_by_peer(code)
            self._finish(PeerClosed(code, reason) if refusal is None else NotProven(refusal))

    def _break_off(self, why: str) -> None:
        """End the connection with a peer that breaks the rules."""
        self._engine.close(Closing.PROTOCOL, why)
        self._finish(PeerClosed(Closing.PROTOCOL, why))

    def _part_if_mutual(self) -> None:
        if self._said_bye and self._heard_bye:
            self._engine.close(Closing.COMPLETE, "")
            self._end()

    def _end(self) -> None:
        self._finish(Ended())

    def _finish(self, event: Event | None = None) -> None:
        """Be over; `event` says why, unless the user of the tunnel ended it."""
        if self.state is State.OVER:
            return
        if event is not None:
            self._events.append(self._judged(event))
        self.state = State.OVER
        self._timers.clear()
        self._early.clear()

    def _judged(self, event: Event) -> Event:
        """Return what an end means: who was shown our proof and gave none has made a guess.

        Whether it then says something, breaks the rules or falls silent makes no difference: it
        was able to test one guess at the secret, and each of them has to be counted.
        """
        if self._refusal is not None:
            return NotProven(self._refusal)
        if self.state is State.PROVING and self._has_shown and not isinstance(event, NotProven):
            return NotProven(ProofWithheldError())
        return event

    def _say(self, frame: bytes) -> None:
        """Send a control frame."""
        if self._control is not None and self.state is not State.OVER:
            self._engine.send(self._control, frame)
