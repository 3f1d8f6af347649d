"""The plain tunnel under any sequence of messages, data, errors, timers and pauses.

What one datagram of n bytes brings forth, and is checked here:

- what is not from this tunnel's peer, by its nonce: nothing;
- a hello of the peer's: one ack of at most n bytes. The first on a path that was not chosen brings
  a hello forward, as in the handshake;
- an ack: nothing, but for the handshake's two short `done` after a confirmation;
- either, when with it the tunnel ends: two copies of `closing`, at most twice in its life.

With a peer of 0.7 the tunnel sends nothing at all, whatever comes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.punch.handshake import Handshake, HandshakeSettings
from nat_traverse.punch.legacy import GRACE
from nat_traverse.punch.machine import Connected, Send
from nat_traverse.tunnel.plain import (
    CONSENT,
    DeliveryKnown,
    Ended,
    Event,
    PeerClosed,
    PeerFinished,
    PeerRestarted,
    PeerVanished,
    PlainTunnel,
)
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    MAGIC_PREFIX,
    Bare,
    Counts,
    Kind,
    Message,
    Reason,
    decode,
    encode,
)
from property import strategies as given_by
from property.footprint import bytes_held

if TYPE_CHECKING:
    from nat_traverse.model import NetworkError, Path

OURS, STRANGER = b"\x80" * 16, b"\x7f" * 16
# Towards the first of these we are controlled, towards the other controlling.
PEER, LESSER = b"\xff" * 16, bytes(16)
DIRECT = given_by.DIRECT
ANYBODY = given_by.datagrams([OURS, *[PEER, LESSER] * 4, STRANGER], [None, OURS, OURS, STRANGER])
ANYWHERE = st.sampled_from((DIRECT,) * 6 + given_by.PATHS + given_by.STRANGE_PATHS)
MEMORY = 60_000  # bytes; a tunnel and its handshake, with room for no log of what came

DONE_BYTES = 2 * 60  # two copies of the handshake's `done`

ONCE = (PeerFinished, DeliveryKnown, PeerClosed, PeerVanished, PeerRestarted, Ended)
# Calls of handle_timer at one and the same time after which nothing may be due any more. A timer
# that finds that it was postponed takes one call, and there are six of them.
CALLS = 8

HOSTS = {path.remote.host for path in given_by.PATHS}


def parse(data: bytes) -> Message | Bare | None:
    try:
        return decode(data)
    except RemoteProtocolError:
        return None


def connected(start: float, *, peer: bytes = PEER, legacy: bool = False) -> PlainTunnel:
    """Return a tunnel over a path that a real handshake has connected."""
    earlier = start - 2 * GRACE  # a 0.7 peer is believed after a moment only
    handshake = Handshake(HandshakeSettings(OURS), given_by.PATHS, earlier)
    handshake.handle_timer(earlier)
    if legacy:
        handshake.receive_datagram(ACK_MAGIC, DIRECT, earlier)
        handshake.handle_timer(start)
    else:
        # An ack makes the controlling side nominate; the nomination connects the controlled one.
        for kind in (Kind.ACK, Kind.HELLO, Kind.ACK):
            message = Message(kind, peer, nominate=True, echo=OURS)
            handshake.receive_datagram(encode(message, size=1400), DIRECT, start)
    list(handshake.effects(start))
    while (event := handshake.next_event()) is not None:
        if isinstance(event, Connected):
            return PlainTunnel(handshake, event, start, room=65_536)
    raise AssertionError("no connection to start from")


class TunnelUnderFire(RuleBasedStateMachine):
    @initialize(start=given_by.starts, peer=st.sampled_from([PEER, LESSER, None]))
    def begin(self, start: float, peer: bytes | None) -> None:
        self.now = start
        self.peer = peer
        self.tunnel = connected(start, peer=peer or PEER, legacy=peer is None)
        self.events: list[Event] = []
        self.seen = [b""]
        self.farewells = 0
        self.forward: Counter[Path] = Counter()

    @rule(arrived=st.lists(st.tuples(ANYBODY, ANYWHERE), min_size=1, max_size=8))
    def receive(self, arrived: list[tuple[bytes, Path]]) -> None:
        for data, path in arrived:
            self.take(data, path)

    @rule(which=st.integers(0, 10**6))
    def replay_or_reflect(self, which: int) -> None:
        self.take(self.seen[which % len(self.seen)], DIRECT)

    @rule(datagrams=st.integers(0, 3), octets=st.sampled_from([0, 1, 10_000, 10**9]))
    def carry(self, datagrams: int, octets: int) -> None:
        self.tunnel.note_received(datagrams, octets, self.now)
        self.tunnel.note_sent(datagrams, octets, self.now)
        marks = self.drain()
        assert len(marks) <= 1
        assert all(len(mark.data) == HELLO_SIZE for mark in marks)

    @rule(congested=st.booleans())
    def read_slowly(self, *, congested: bool) -> None:
        self.tunnel.set_congested(congested=congested)
        assert len(self.drain()) <= 1

    @rule(error=given_by.errors)
    def refuse(self, error: NetworkError) -> None:
        self.tunnel.receive_error(error, self.now)
        assert self.drain() == []

    @rule()
    def finish(self) -> None:
        self.tunnel.finish(self.now)
        assert len(self.drain()) <= 1

    @rule(reason=st.sampled_from(Reason), really=st.integers(0, 9).map(lambda n: n == 0))
    def close(self, reason: Reason, *, really: bool) -> None:
        if really:
            self.tunnel.close(reason)
            assert len(self.drain()) <= 2

    @rule(pause=given_by.pauses)
    def wait(self, pause: float) -> None:
        self.now += pause

    @rule()
    def act_at_any_time(self) -> None:
        self.tunnel.handle_timer(self.now)
        self.check_scheduled(self.drain())

    @precondition(lambda self: self.tunnel.get_timer() is not None)
    @rule(times=st.integers(1, 10))
    def act_in_time(self, times: int) -> None:
        for _ in range(times):
            at = self.tunnel.get_timer()
            if at is None:
                return
            self.now = max(self.now, at)
            for _ in range(CALLS):
                self.tunnel.handle_timer(self.now)
                self.check_scheduled(self.drain())
            following = self.tunnel.get_timer()
            assert following is None or following > self.now, "it would spin"

    # -- what is checked ----------------------------------------------------------------------

    def take(self, data: bytes, path: Path) -> None:
        over = self.is_over()
        taken = self.tunnel.take_message(data, path, self.now)
        sends = self.drain()
        self.seen = [*self.seen[-50:], data, *(send.data for send in sends)]
        message = parse(data)
        if message is None:
            assert not taken
        if not isinstance(message, Message) or message.nonce != self.peer:
            assert sends == []
            return
        acks = [send for send in sends if send.data.startswith(ACK_MAGIC)]
        farewells = [send for send in sends if self.is_closing(send)]
        hellos = [send for send in sends if send not in acks and send not in farewells]
        assert all(ack.path == path for ack in acks)
        if message.kind is Kind.HELLO:
            assert len(acks) <= 1
            assert sum(len(send.data) for send in acks) <= len(data)
        elif acks:
            assert message.nominate
            assert sum(len(send.data) for send in acks) == DONE_BYTES
        for hello in hellos:
            assert hello.path == path != DIRECT
            self.forward[path] += 1
            assert self.forward[path] == 1
        if farewells:
            assert not over
            self.farewells += 1
            assert self.farewells <= 2
            assert len(farewells) == 2

    def check_scheduled(self, sends: list[Send]) -> None:
        """What no datagram asked for: keepalive, `finished`, a late ack of it, `closing`."""
        assert len(sends) <= 5

    def is_closing(self, send: Send) -> bool:
        message = parse(send.data)
        return isinstance(message, Message) and message.closing is not None

    def is_over(self) -> bool:
        return any(isinstance(event, Ended) for event in self.events)

    def drain(self) -> list[Send]:
        sends = given_by.only_sends(self.tunnel.effects(self.now))
        assert not (self.tunnel.is_legacy and sends)
        for send in sends:
            # The peer's other ports, which its gateway may have given it, get acks only.
            assert send.path in given_by.PATHS or send.data.startswith(ACK_MAGIC)
            assert send.path.remote.host in HOSTS
            assert len(send.data) <= 1400
            assert isinstance(parse(send.data), Message)
        while (event := self.tunnel.next_event()) is not None:
            self.events.append(event)
        counts = Counter(map(type, self.events))
        assert all(counts[kind] <= 1 for kind in ONCE)
        if self.is_over():
            assert self.tunnel.get_timer() is None
        return sends

    def teardown(self) -> None:
        if hasattr(self, "tunnel"):  # else nothing was begun
            assert bytes_held(self.tunnel) < MEMORY


TestTunnelUnderFire = TunnelUnderFire.TestCase
# Explaining a failure takes longer here than the run itself, and the steps speak for themselves.
TestTunnelUnderFire.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, phases=set(Phase) - {Phase.explain}
)


@settings(max_examples=200, deadline=None)
@given(given_by.messages([PEER], [None, OURS]), given_by.sizes)
@example(Message(Kind.HELLO, PEER), 0)
def test_no_ack_is_larger_than_the_hello_it_answers(message: Message, size: int) -> None:
    hello = encode(dataclasses.replace(message, kind=Kind.HELLO), size=size)
    tunnel = connected(0.0)
    tunnel.take_message(hello, DIRECT, 0.1)
    acks = [
        send.data
        for send in given_by.only_sends(tunnel.effects(0.1))
        if send.data.startswith(ACK_MAGIC)
    ]
    assert sum(map(len, acks)) <= len(hello)


# -- user data is never mistaken ------------------------------------------------------------------

user_data = st.one_of(
    given_by.noise,
    given_by.bare,
    given_by.datagrams([OURS, STRANGER, bytes(16)], [None, STRANGER, PEER]),
).filter(lambda data: data.startswith(MAGIC_PREFIX))


@settings(max_examples=300, deadline=None)
@given(user_data, st.booleans())
def test_what_does_not_name_this_tunnels_nonces_is_user_data(data: bytes, late: bool) -> None:
    """Two exceptions: our own, come back, and a first hello: the peer was started again."""
    message = parse(data)
    is_message = isinstance(message, Message) and (
        message.nonce == OURS or (message.kind is Kind.HELLO and message.echo is None)
    )
    tunnel = connected(0.0)
    assert tunnel.take_message(data, DIRECT, 100.0 if late else 0.1) == is_message


@settings(max_examples=200, deadline=None)
@given(user_data)
def test_from_an_old_peer_all_is_data_after_five_seconds(data: bytes) -> None:
    tunnel = connected(0.0, legacy=True)
    assert not tunnel.take_message(data, DIRECT, 5.1)
    assert tunnel.take_message(data, DIRECT, 0.1) == (data in (HELLO_MAGIC, ACK_MAGIC))


# -- time -----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(given_by.starts, st.floats(0, 40))
def test_silence_ends_the_tunnel_and_the_sending(start: float, heard: float) -> None:
    tunnel = connected(start)
    tunnel.note_received(1, 1, start + heard)
    now, sent = start + heard, 0
    for _ in range(200):
        at = tunnel.get_timer()
        if at is None:
            break
        now = max(now, at)
        tunnel.handle_timer(now)
        sent += len(list(tunnel.effects(now)))
    assert tunnel.get_timer() is None, "the timers do not come to rest"
    assert now <= start + heard + CONSENT + 1e-3
    assert sent <= CONSENT


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1e6), st.sampled_from(["stragglers", "consent", "quiet"]))
@example(92.0 / 7, "consent")
def test_no_timer_is_set_for_a_time_that_is_already_here(heard: float, which: str) -> None:
    """The owner would call again and again, and in virtual time never get any further."""
    tunnel = connected(heard, legacy=which == "quiet")
    if which == "stragglers":
        from_peer = Message(Kind.HELLO, PEER, echo=OURS, finished=Counts(9, 9))
        tunnel.take_message(encode(from_peer, size=HELLO_SIZE), DIRECT, heard)
    if which == "quiet":
        tunnel.finish(heard)
    for _ in range(200):
        at = tunnel.get_timer()
        if at is None or at > heard + 31:
            return
        for _ in range(CALLS):
            tunnel.handle_timer(at)
        list(tunnel.effects(at))
        following = tunnel.get_timer()
        assert following is None or following > at
    raise AssertionError("it makes no progress")
