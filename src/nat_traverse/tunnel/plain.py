"""The plain tunnel: user data as bare datagrams, and what two ends of today say beside it.

A peer of generation 0.7 knows data and nothing else, so nothing else is sent to it. Between two
ends of today, hellos go on beside the data, on the same path, and carry what 0.7 had no words for:

- *finished*: no more data will come, and so much was sent. The other side acknowledges once all of
  it arrived, or once nothing more has arrived for a while, and says how much it got. So both ends
  know the end of the stream, and neither overlooks a loss: datagrams are not retransmitted here.
- *keepalive*: a hello now and then keeps the mappings in the gateways alive (RFC 4787 REQ-5 asks
  for two minutes, IMC 2010 measured gateways with 30 s), and its ack is the proof of life without
  which sending has to end after 30 s (consent, RFC 7675).
- *mark*: the peer answers when it has taken what came before, which bounds what is under way
  (`window`). A peer whose output is read slowly answers late.
- *closing*: the tunnel is over for the sender, and why.

A datagram is a message when it starts with a magic, has a sound tail and names one of this tunnel's
nonces, which are 128 bits that nobody else has. One more is no user data: the hello of a stranger,
the peer's next run perhaps. All else is, with a magic or without. An end of today never begins a
datagram of user data with a magic (`carry/sender.py`), so it loses none, not even when one tunnel
runs through another.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.model import ErrorKind, Generation, NetworkError, Path
from nat_traverse.punch.machine import Connected, Send
from nat_traverse.tunnel.window import SendWindow
from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import Bare, Counts, Kind, Message, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.punch.handshake import Handshake
    from nat_traverse.punch.machine import Effect

# Keepalive after this many seconds: the first earlier, since Linux keeps a flow for 30 s until it
# has seen traffic both ways for 2 s, then for 120 s; 15 s stays below every gateway measured.
_FIRST_KEEPALIVE = 10.0
_KEEPALIVE = 15.0
# Unanswered, it is repeated at this interval (s), so that loss alone never ends the consent.
_KEEPALIVE_RETRY = 1.0
CONSENT = 30.0  # s without any sign of the peer (RFC 7675, section 5.1)

# `finished` is repeated after this many seconds, then ever more slowly up to the second number.
_FINISH_RETRY = 0.1
_FINISH_RETRY_LIMIT = 1.0
# When less has arrived than was sent, wait this long (s) after the last datagram for stragglers, or
# after the word that it was the last: ten times the reordering that a jittery mobile link shows.
_STRAGGLERS = 0.5

# A mark that is not answered is followed by another after this time (s): the mark or its answer was
# lost, or the peer's output is read slowly.
_MARK_RETRY = 0.1

# A peer that is done too says so; wait at most this long (s) for it, answering what it repeats. It
# repeats at least once a second. Only after a loss is this waited out.
_CLOSE_LINGER = 3.0
_CLOSING_COPIES = 2  # never answered, so one copy more against loss

# A peer of 0.7 has no word for "finished": after our end of data, go on taking its data until it
# has been silent for this long (s). 0.7 itself leaves at once and loses what is under way.
LEGACY_QUIET = 1.0

# Two refusals this far apart (s) with no sign of life between them: the peer's process is gone.
# One alone may be a leftover of the time before the path was open, or forged.
_REFUSAL_SPAN = 0.5
# Refusals of what was sent before the connection arrive within this time (s).
_LATE = 2.0
# And so long (s) bare magics of a 0.7 peer are late ones, not data: reordering on the way.
_LATE_MAGIC = 5.0


@dataclass(frozen=True, slots=True)
class PeerFinished:
    """Event: the peer sends no more data; `sent` is what it sent, None if it did not say."""

    sent: Counts | None
    received: Counts


@dataclass(frozen=True, slots=True)
class DeliveryKnown:
    """Event: the peer acknowledged the end of our data; `received` is what reached it."""

    sent: Counts
    received: Counts


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """Event: the peer ended the tunnel; `received` is what had reached it."""

    reason: Reason
    received: Counts | None


@dataclass(frozen=True, slots=True)
class PeerVanished:
    """Event: no sign of life. `errno` is ECONNREFUSED or ETIMEDOUT."""

    errno: int


@dataclass(frozen=True, slots=True)
class PeerRestarted:
    """Event: a hello of somebody with another nonce came from the peer's address."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Event: all is said; the socket may be closed."""


Event = PeerFinished | DeliveryKnown | PeerClosed | PeerVanished | PeerRestarted | Ended


class PlainTunnel:
    """One tunnel over the path that `handshake` connected.

    The owner moves the data itself, past this machine, for speed: it asks `take_message` about
    each datagram that starts with `wire.hello.MAGIC_PREFIX`, and reports all other ones to
    `note_received` and what it sent to `note_sent`. It stops reading its source while `has_room`
    is false. Times are seconds on one monotonic clock. `room` is how many bytes of datagrams the
    receive buffer holds.
    """

    def __init__(
        self, handshake: Handshake, connected: Connected, now: float, *, room: int = 0
    ) -> None:
        self.path = connected.path
        self.generation = connected.generation
        self.datagram_size = connected.datagram_size
        self._handshake = handshake
        self._start = now
        self._heard = now
        self._refused: float | None = None
        self._asked: float | None = None  # when the keepalive that is unanswered was first sent
        self._sent = Counts(0, 0)
        self._received = Counts(0, 0)
        self._last_data = now
        self._peer_sent: Counts | None = None
        self._peer_said_so = now  # when it first said that it has finished
        self._peer_finished = False
        self._finish_retry = _FINISH_RETRY
        self._finishing = False
        self._delivered = False
        self._restart_told = False
        self._serial = 0
        self._finish_serial: int | None = None
        self._over = False
        self._window = SendWindow(connected.round_trip)
        self._room = room
        self._congested = False
        self._unanswered_mark: int | None = None
        self._effects: deque[Send] = deque()
        self._events: deque[Event] = deque()
        self._timers: dict[str, float] = {}
        if not self.is_legacy:
            self._timers = {"keepalive": now + _FIRST_KEEPALIVE, "consent": now + CONSENT}

    @property
    def is_legacy(self) -> bool:
        """True if the peer is of generation 0.7."""
        return self.generation is Generation.LEGACY

    @property
    def sent(self) -> Counts:
        """What was sent so far."""
        return self._sent

    @property
    def received(self) -> Counts:
        """What arrived so far."""
        return self._received

    @property
    def has_room(self) -> bool:
        """True if the peer can take more data now; always so for a 0.7 peer, which can't tell."""
        return self.is_legacy or self._window.has_room

    @property
    def peer_finished(self) -> bool:
        """True when the peer's data has ended: what still comes is late or doubled."""
        return self._peer_finished

    @property
    def delivered(self) -> bool:
        """True when the peer has acknowledged the end of our data."""
        return self._delivered

    # -- inputs -------------------------------------------------------------------------------

    def note_sent(self, datagrams: int, octets: int, now: float) -> None:
        """Count user data that went out."""
        self._sent = Counts(self._sent.datagrams + datagrams, self._sent.octets + octets)
        if self._window.note_sent(octets) and not self.is_legacy:
            self._send_mark(now)

    def set_congested(self, *, congested: bool) -> None:
        """Say whether what arrives is read too slowly; the peer is kept waiting meanwhile."""
        self._congested = congested
        if not congested and self._unanswered_mark is not None:
            self._acknowledge(self._unanswered_mark, room=self._room)
            self._unanswered_mark = None

    def note_received(self, datagrams: int, octets: int, now: float) -> None:
        """Count user data that came in; not behind its end, when the peer knows the count."""
        self._heard = self._last_data = now
        self._refused = None
        if not self._peer_finished:
            self._received = Counts(
                self._received.datagrams + datagrams, self._received.octets + octets
            )

    def take_message(self, data: bytes, path: Path, now: float) -> bool:
        """Take a datagram that starts like a message; False if it is user data after all."""
        try:
            message = wire.decode(data)
        except RemoteProtocolError:
            return False
        if isinstance(message, Bare):
            late = now - self._start < _LATE_MAGIC
            return self.is_legacy and late
        if self.is_legacy:
            return False
        if message.nonce != self._handshake.peer_nonce:
            return self._take_foreign(message, path)
        if path == self.path:
            self._take_peers(message, data, now)
        elif not self._over:
            # Late, from the search for a path: no proof that this one works, and not its business.
            self._handshake.receive_datagram(data, path, now)
        return True

    def receive_error(self, error: NetworkError, now: float) -> None:
        """Take a refusal of something that was sent on the tunnel's path."""
        if self._over or error.kind is not ErrorKind.PORT_UNREACHABLE:
            return
        if now - self._start < _LATE:
            return
        if self._refused is None:
            self._refused = now
        elif now - self._refused >= _REFUSAL_SPAN:
            self._vanish(errno.ECONNREFUSED)
            return
        if not self.is_legacy:
            self._timers["keepalive"] = min(self._timers["keepalive"], now + _REFUSAL_SPAN)

    def finish(self, now: float) -> None:
        """Say that no more data will be sent."""
        if self._finishing or self._over:
            return
        self._finishing = True
        if self.is_legacy:
            self._timers["quiet"] = now + LEGACY_QUIET
        else:
            self._send_finished(now)

    def close(self, reason: Reason, *, unread: int = 0) -> None:
        """End the tunnel at once; the peer is told, a 0.7 peer can't be.

        `unread` is how many of the bytes that arrived never came out on this side.
        """
        if not self._over:
            self._received = self._received._replace(octets=self._received.octets - unread)
            self._say_closing(reason)
            self._end()

    # -- the machine --------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self._over:
            return
        for name in [name for name, at in self._timers.items() if at <= now]:
            if self._timers.pop(name, None) is not None:  # None: one before it took it back
                self._do(name, now)

    def get_timer(self) -> float | None:
        """Return when `handle_timer` is next wanted."""
        return None if self._over else min(self._timers.values(), default=None)

    def effects(self, now: float) -> Iterator[Effect]:
        """Yield the messages to be sent, the handshake's late answers among them."""
        yield from self._handshake.effects(now)
        while self._effects:
            yield self._effects.popleft()

    def next_event(self) -> Event | None:
        """Return the oldest unread event."""
        return self._events.popleft() if self._events else None

    def _do(self, due: str, now: float) -> None:
        match due:
            case "keepalive":
                self._keep_alive(now)
            case "consent":
                self._check_consent(now)
            case "finish":
                self._send_finished(now)
            case "mark":
                self._send_mark(now)
            case "stragglers":
                self._check_stragglers(now)
            case "quiet":
                self._check_quiet(now)
            case "linger":
                self._end()

    # -- receiving ----------------------------------------------------------------------------

    def _take_foreign(self, message: Message, path: Path) -> bool:
        """Take a message with another nonce than the peer's: a restart, or somebody's data."""
        ours = self._handshake.nonce
        if ours in (message.nonce, message.echo):
            return True  # our own come back, or an answer to us by who is not the peer any more
        if message.echo is not None or message.kind is not Kind.HELLO:
            return False
        if path == self.path and not self._restart_told:
            self._restart_told = True
            self._events.append(PeerRestarted())
        return True

    def _take_peers(self, message: Message, data: bytes, now: float) -> None:
        """Take a message of the peer's on the tunnel's path."""
        self._heard = now
        self._refused = None
        short = len(data) < wire.HELLO_SIZE and message.closing is None
        if self._over or (message.kind is Kind.HELLO and short):
            return  # an answer could be longer than the question
        if message.kind is Kind.HELLO:
            self._take_hello(message, data, now)
        elif message.echo == self._handshake.nonce:
            self._take_ack(message, data, now)

    def _take_hello(self, message: Message, data: bytes, now: float) -> None:
        if message.closing is not None:
            self._take_closing(message.closing, message.received)
        elif message.finished is not None:
            if self._peer_sent is None:
                self._peer_said_so = now
            self._peer_sent = message.finished
            self._finish_serial = message.serial
            self._check_stragglers(now)
        elif message.nominate:
            self._handshake.receive_datagram(data, self.path, now)
        elif message.mark and self._congested:
            self._unanswered_mark = message.serial
        else:
            self._acknowledge(message.serial, room=self._room if message.mark else None)

    def _take_ack(self, message: Message, data: bytes, now: float) -> None:
        if message.serial is not None and message.room is not None:
            self._window.take_answer(message.serial, message.room)
            if self._window.is_open:
                self._timers.pop("mark", None)
        elif message.received is None:
            self._handshake.receive_datagram(data, self.path, now)
        elif self._finishing and not self._delivered:
            self._delivered = True
            self._timers.pop("finish", None)
            self._events.append(DeliveryKnown(self._sent, message.received))
            self._check_both(now)

    def _take_closing(self, reason: Reason, received: Counts | None) -> None:
        if reason is Reason.COMPLETE and self._finishing and received is not None:
            if not self._delivered:
                # The acknowledgement was lost, but this says the same.
                self._delivered = True
                self._events.append(DeliveryKnown(self._sent, received))
            # It waits to hear the same of us, and what we said of it may have been lost.
            self._say_closing(Reason.COMPLETE)
        else:
            # Nothing is complete while we have not finished, whatever it says.
            lies = reason is Reason.COMPLETE
            self._events.append(PeerClosed(Reason.STOPPED if lies else reason, received))
        self._end()

    def _check_stragglers(self, now: float) -> None:
        """Acknowledge the peer's end of data once all is here or nothing more seems to come."""
        if self._peer_sent is None:
            return
        missing = self._received.octets < self._peer_sent.octets
        patient_until = max(self._last_data, self._peer_said_so) + _STRAGGLERS
        if missing and now < patient_until and not self._peer_finished:
            self._timers["stragglers"] = patient_until
            return
        self._acknowledge(self._finish_serial, received=self._received)
        if not self._peer_finished:
            self._peer_finished = True
            self._events.append(PeerFinished(self._peer_sent, self._received))
            self._check_both(now)

    def _check_quiet(self, now: float) -> None:
        quiet_at = self._last_data + LEGACY_QUIET
        if now < quiet_at:
            self._timers["quiet"] = quiet_at
        else:
            self._end()

    def _check_both(self, now: float) -> None:
        """Both directions ended: say so, and wait a moment for the peer to say the same."""
        if self._peer_finished and self._delivered:
            self._say_closing(Reason.COMPLETE)
            self._timers["linger"] = now + _CLOSE_LINGER

    # -- staying alive ------------------------------------------------------------------------

    def _keep_alive(self, now: float) -> None:
        """Send a keepalive, or repeat it while nothing at all has come since it was sent."""
        if self._asked is not None and self._heard >= self._asked and self._refused is None:
            self._timers["keepalive"] = self._asked + _KEEPALIVE
            self._asked = None
            return
        if self._asked is None:
            self._asked = now
        self._send(self._hello())
        retry = _KEEPALIVE_RETRY if self._refused is None else _REFUSAL_SPAN
        self._timers["keepalive"] = now + retry

    def _check_consent(self, now: float) -> None:
        ends_at = self._heard + CONSENT
        if now < ends_at:
            self._timers["consent"] = ends_at
        else:
            self._vanish(errno.ETIMEDOUT)

    def _vanish(self, number: int) -> None:
        if self._peer_finished and self._delivered:
            self._end()  # it only did not wait for our last word
            return
        self._events.append(PeerVanished(number))
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._timers.clear()
            self._events.append(Ended())

    # -- sending ------------------------------------------------------------------------------

    def _hello(self, **fields: object) -> Message:
        self._serial = (self._serial + 1) & 0xFFFFFFFF
        return Message(
            kind=Kind.HELLO,
            nonce=self._handshake.nonce,
            echo=self._handshake.peer_nonce,
            serial=self._serial,
            **fields,  # type: ignore[arg-type]  # the callers below name the fields
        )

    def _send(self, message: Message) -> None:
        size = wire.HELLO_SIZE if message.kind is Kind.HELLO else 0
        self._effects.append(Send(wire.encode(message, size=size), self.path))

    def _send_mark(self, now: float) -> None:
        if self._window.is_open or self._finishing:
            return  # the end of the data is answered as well
        hello = self._hello(mark=True)
        self._window.mark(self._serial)
        self._send(hello)
        self._timers["mark"] = now + _MARK_RETRY

    def _send_finished(self, now: float) -> None:
        self._send(self._hello(finished=self._sent))
        self._timers["finish"] = now + self._finish_retry
        self._finish_retry = min(self._finish_retry * 1.5, _FINISH_RETRY_LIMIT)

    def _say_closing(self, reason: Reason) -> None:
        if self.is_legacy:
            return
        for _ in range(_CLOSING_COPIES):
            self._send(self._hello(closing=reason, received=self._received))

    def _acknowledge(
        self, serial: int | None, *, received: Counts | None = None, room: int | None = None
    ) -> None:
        self._send(
            Message(
                kind=Kind.ACK,
                nonce=self._handshake.nonce,
                echo=self._handshake.peer_nonce,
                serial=serial,
                received=received,
                room=room,
            )
        )
