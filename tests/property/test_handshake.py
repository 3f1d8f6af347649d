"""The handshake under any sequence of datagrams, errors, timers and pauses, from anybody.

What holds for the bytes that one datagram of n bytes brings forth, and is checked here:

- from a host that is not the peer's: none. What is no message: none either;
- a bare magic: at most one bare ack of the same 20 bytes, a moment later, and one in the whole life
  of a path; from a port that was not agreed: none;
- a hello: one ack of at most n bytes, to where the hello came from. Once in the life of an agreed
  path the first of them also brings the next hello forward;
- what names our nonce, so comes from somebody who reads our packets, and from a path that works:
  one more hello. For a confirmation, two short `done`. Any other ack: none.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.model import Generation, Path
from nat_traverse.punch.handshake import DATAGRAM_SIZE, LINGER_LIMIT, Handshake, HandshakeSettings
from nat_traverse.punch.legacy import GRACE
from nat_traverse.punch.machine import (
    Connected,
    DeadlinePassed,
    Event,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    Send,
    Settled,
)
from nat_traverse.punch.ttl import FIRST as OPENING_TTL
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    Bare,
    Kind,
    Message,
    decode,
    encode,
)
from property import strategies as given_by
from property.footprint import bytes_held

if TYPE_CHECKING:
    from nat_traverse.model import NetworkError

OURS = b"\x80" * 16
SMALLER, LARGER = bytes(16), b"\xff" * 16  # we are controlling towards the one, not the other
NEVER_MET = b"\x7f" * 16

ANYBODY = given_by.datagrams(
    [OURS, SMALLER, SMALLER, LARGER, LARGER], [None, OURS, OURS, NEVER_MET]
)
ANYWHERE = st.sampled_from(given_by.PATHS * 4 + given_by.STRANGE_PATHS)

# Two `done` of 60 bytes each: the magic's head (38), an echo (19) and END (3).
DONE_BYTES = 2 * 60

# How often each event may be reported in a whole life: times the number of paths, and once.
EVENTS_A_PATH = {PeerHeard: 2, PeerRefused: 8, PortChanged: 8, PathValidated: 1}
EVENTS_ONCE = (Connected, Settled, DeadlinePassed)

# All that a handshake over two paths may hold on to; one that remembered every datagram would pass
# this after a thousand. The larger part are 1,024 hellos whose time is kept.
MEMORY = 300_000  # bytes

MOST_HOPS = 8  # of an opening, whatever routers report


def parse(data: bytes) -> Message | Bare | None:
    try:
        return decode(data)
    except RemoteProtocolError:
        return None


class UnderFire(RuleBasedStateMachine):
    """Whoever sends whatever whenever: the promises above hold after every step."""

    @initialize(
        start=given_by.starts,
        window=st.integers(0, 3),
        timeout=st.none() | st.sampled_from([0.0, 1.0, 20.0, 180.0]),
        paths=st.integers(1, 2),
    )
    def begin(self, start: float, window: int, timeout: float | None, paths: int) -> None:
        self.now = start
        self.paths = given_by.PATHS[:paths]
        self.machine = Handshake(HandshakeSettings(OURS, timeout, window), self.paths, start)
        self.seen: list[bytes] = [b""]
        self.events: list[Event] = []
        self.bare_acks: Counter[Path] = Counter()
        self.forward: Counter[Path] = Counter()
        self.hosts = {path.remote.host for path in self.paths}

    @rule(arrived=st.lists(st.tuples(ANYBODY, ANYWHERE), min_size=1, max_size=8))
    def receive(self, arrived: list[tuple[bytes, Path]]) -> None:
        for data, path in arrived:
            self.take(data, path)

    @rule(which=st.integers(0, 10**6), path=ANYWHERE)
    def replay_or_reflect(self, which: int, path: Path) -> None:
        self.take(self.seen[which % len(self.seen)], path)

    @rule(error=given_by.errors, path=ANYWHERE)
    def refuse(self, error: NetworkError, path: Path) -> None:
        self.machine.receive_error(error, path, self.now)
        assert self.drain() == []

    @rule(pause=given_by.pauses)
    def wait(self, pause: float) -> None:
        self.now += pause

    @rule()
    def act_at_any_time(self) -> None:
        self.machine.handle_timer(self.now)
        self.check_scheduled(self.drain())

    @precondition(lambda self: self.machine.get_timer() is not None)
    @rule(times=st.integers(1, 20))
    def act_in_time(self, times: int) -> None:
        for _ in range(times):
            at = self.machine.get_timer()
            if at is None:
                return
            self.now = max(self.now, at)
            self.machine.handle_timer(self.now)
            self.check_scheduled(self.drain())
            following = self.machine.get_timer()
            assert following is None or following > self.now, "it would spin"

    # -- what is checked ----------------------------------------------------------------------

    def take(self, data: bytes, path: Path) -> None:
        self.machine.receive_datagram(data, path, self.now)
        sends = self.drain()
        self.seen = [*self.seen[-50:], data, *(send.data for send in sends)]
        message = parse(data)
        if path.remote.host not in self.hosts or message is None:
            assert sends == []
        elif isinstance(message, Bare):
            self.check_bare(sends, path)
        elif message.nonce == OURS:
            assert sends == []
        elif message.echo == OURS:
            self.check_after_proof(sends, message, data, path)
        else:
            assert all(send.path == path and send.ttl is None for send in sends)
            if message.kind is Kind.HELLO:
                self.check_answer(sends, message, data)
            else:
                self.check_after_ack(sends, message)

    def are_done(self, sends: list[Send]) -> bool:
        acks = [decode(send.data) for send in sends]
        done = all(isinstance(ack, Message) and ack.done for ack in acks)
        return done and sum(len(send.data) for send in sends) in (0, DONE_BYTES)

    def check_bare(self, sends: list[Send], path: Path) -> None:
        if sends:
            assert path in self.paths
            assert sends == [Send(ACK_MAGIC, path)]
            self.bare_acks[path] += 1
            assert self.bare_acks[path] == 1

    def check_answer(self, sends: list[Send], asked: Message, data: bytes) -> None:
        answers = [send for send in sends if send.data.startswith(ACK_MAGIC)]
        assert len(answers) <= 1
        for answer in answers:
            assert len(answer.data) <= len(data)
            message = decode(answer.data)
            assert isinstance(message, Message)
            assert (message.echo, message.serial) == (asked.nonce, asked.serial)
            assert message.observed == answer.path.remote._replace(scope=0)  # never on the wire
        for send in sends:
            if send not in answers:
                assert len(send.data) == HELLO_SIZE
                assert send.path in self.paths
                self.forward[send.path] += 1
                assert self.forward[send.path] == 1

    def check_after_ack(self, sends: list[Send], message: Message) -> None:
        assert message.echo != OURS
        assert sends == []

    def check_after_proof(
        self, sends: list[Send], message: Message, data: bytes, path: Path
    ) -> None:
        """From the peer: an answer, and at most one hello to go on with, wherever that goes."""
        hellos = [send for send in sends if send.data.startswith(HELLO_MAGIC)]
        assert len(hellos) <= 1
        acks = [send for send in sends if send not in hellos]
        assert all(ack.path == path for ack in acks)
        if message.kind is Kind.HELLO:
            assert len(acks) <= 1
            assert all(len(ack.data) <= len(data) for ack in acks)
        else:
            assert self.are_done(acks)
            assert not acks or message.nominate

    def check_scheduled(self, sends: list[Send]) -> None:
        """What no datagram asked for: a hello a path and time, or a 0.7 peer's one ack.

        To that come a nomination, and hellos on the paths that work or were heard of.
        """
        assert len(sends) <= 2 * len(self.paths) + 1 + 4
        for send in sends:
            if send.data == ACK_MAGIC:
                self.bare_acks[send.path] += 1
                assert self.bare_acks[send.path] == 1
            else:
                assert send.data.startswith(HELLO_MAGIC)

    def drain(self) -> list[Send]:
        sends = given_by.only_sends(self.machine.effects(self.now))
        assert list(self.machine.effects(self.now)) == []
        for send in sends:
            assert send.path.remote.host in self.hosts
            assert send.ttl in (None, OPENING_TTL) or send.ttl <= MOST_HOPS
            assert len(send.data) <= DATAGRAM_SIZE
            assert parse(send.data) is not None
        while (event := self.machine.next_event()) is not None:
            self.events.append(event)
        self.check_events()
        return sends

    def teardown(self) -> None:
        if hasattr(self, "machine"):  # else nothing was begun
            assert bytes_held(self.machine) < MEMORY

    def check_events(self) -> None:
        counts = Counter(map(type, self.events))
        paths = len(self.paths) + len(given_by.STRANGE_PATHS)
        for kind, times in EVENTS_A_PATH.items():
            assert counts[kind] <= times * paths
        assert all(counts[kind] <= 1 for kind in EVENTS_ONCE)
        if counts[DeadlinePassed]:
            assert isinstance(self.events[-1], DeadlinePassed)
            assert self.machine.get_timer() is None
        for event in self.events:
            if isinstance(event, Connected):
                assert event.path.remote.host in self.hosts
                assert 0 < event.datagram_size <= DATAGRAM_SIZE
                assert event.round_trip is None or event.round_trip >= 0


TestUnderFire = UnderFire.TestCase
# Explaining a failure takes longer here than the run itself, and the steps speak for themselves.
TestUnderFire.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, phases=set(Phase) - {Phase.explain}
)


# -- what a stranger can and can't do -------------------------------------------------------------

# He can spoof any sender's address, but sees nothing, so he knows no nonce of this run.
STRANGER = given_by.datagrams([SMALLER, LARGER, NEVER_MET], [None, NEVER_MET, SMALLER])
STRANGER_TODAY = given_by.datagrams(
    [SMALLER, LARGER, NEVER_MET], [None, NEVER_MET, SMALLER], legacy=False
).filter(lambda data: not isinstance(parse(data), Bare))


def attack(data: list[tuple[bytes, Path, float]]) -> tuple[Handshake, list[Event], list[Send]]:
    """Let a stranger alone, without any peer, do what he likes."""
    machine = Handshake(HandshakeSettings(OURS), given_by.PATHS, 0.0)
    now = 0.0
    events: list[Event] = []
    sends: list[Send] = []
    for datagram, path, pause in data:
        now += pause
        machine.handle_timer(now)
        machine.receive_datagram(datagram, path, now)
        sends += given_by.only_sends(machine.effects(now))
        while (event := machine.next_event()) is not None:
            events.append(event)
    return machine, events, sends


def attacks(
    datagrams: st.SearchStrategy[bytes],
) -> st.SearchStrategy[list[tuple[bytes, Path, float]]]:
    return st.lists(st.tuples(datagrams, ANYWHERE, st.sampled_from([0.0, 0.1, 1.0])), max_size=40)


@settings(max_examples=200, deadline=None)
@given(attacks(STRANGER_TODAY))
def test_a_stranger_who_knows_no_nonce_validates_nothing(
    data: list[tuple[bytes, Path, float]],
) -> None:
    machine, events, _ = attack(data)
    assert machine.peer_nonce is None
    assert not [event for event in events if isinstance(event, Connected | PathValidated)]


@settings(max_examples=200, deadline=None)
@given(attacks(STRANGER))
def test_with_bare_magics_he_passes_for_an_old_peer_at_most(
    data: list[tuple[bytes, Path, float]],
) -> None:
    machine, events, _ = attack(data)
    assert machine.peer_nonce is None
    assert not [event for event in events if isinstance(event, PathValidated)]
    for event in events:
        if isinstance(event, Connected):
            assert event.generation is Generation.LEGACY
            assert any(datagram in (HELLO_MAGIC, ACK_MAGIC) for datagram, _, _ in data)


def test_what_one_spoofed_bare_ack_does() -> None:
    """0.7 authenticates nothing, so whoever can spoof the peer's address passes for a 0.7 peer.

    It is so in 0.7, and it ends when a secret is given. What bounds it: it works only from the
    agreed address and port, and never once a peer of today was heard on that path.
    """
    machine, events, _ = attack([(ACK_MAGIC, given_by.STRANGE_PATHS[1], 0.0)])
    assert not [event for event in events if isinstance(event, Connected)]

    waits = [(b"", given_by.DIRECT, 0.5)] * 4
    machine, events, sends = attack([(ACK_MAGIC, given_by.DIRECT, 0.0), *waits])
    assert [event.generation for event in events if isinstance(event, Connected)] == [
        Generation.LEGACY
    ]
    assert [send for send in sends if send.path == given_by.DIRECT][-1] == Send(
        ACK_MAGIC, given_by.DIRECT
    )

    today = encode(Message(Kind.HELLO, SMALLER), size=HELLO_SIZE)
    machine, events, _ = attack(
        [(today, given_by.DIRECT, 0.0), (ACK_MAGIC, given_by.DIRECT, 0.0)],
    )
    assert not [event for event in events if isinstance(event, Connected)]
    assert machine.evidence.stale == 1

    # A peer of today that is there answers in that moment, and he has done nothing at all.
    machine, events, sends = attack(
        [(ACK_MAGIC, given_by.DIRECT, 0.0), (today, given_by.DIRECT, 0.5), *waits]
    )
    assert not [event for event in events if isinstance(event, Connected)]
    assert Send(ACK_MAGIC, given_by.DIRECT) not in sends


def test_one_spoofed_bare_hello_costs_one_bare_ack_and_no_more() -> None:
    _, events, sends = attack([(HELLO_MAGIC, given_by.DIRECT, 0.1)] * 20)
    assert not [event for event in events if isinstance(event, Connected)]
    assert [send for send in sends if send.data == ACK_MAGIC] == [Send(ACK_MAGIC, given_by.DIRECT)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ANYBODY, st.sampled_from(given_by.PATHS)), max_size=20))
def test_an_old_peer_that_is_connected_gets_nothing_more(data: list[tuple[bytes, Path]]) -> None:
    """It would print it: to 0.7 everything that arrives after the one ack is data."""
    machine = Handshake(HandshakeSettings(OURS), given_by.PATHS, 0.0)
    machine.handle_timer(0.0)
    machine.receive_datagram(ACK_MAGIC, given_by.DIRECT, 0.1)
    machine.handle_timer(0.1 + GRACE)
    assert Send(ACK_MAGIC, given_by.DIRECT) in list(machine.effects(0.1 + GRACE))
    for datagram, path in data:
        machine.receive_datagram(datagram, path, 1.2)
    machine.handle_timer(5.0)
    sends = given_by.only_sends(machine.effects(5.0))
    assert [send for send in sends if send.path == given_by.DIRECT] == []


@pytest.mark.parametrize("kind", ["noise", "hellos", "acks", "mixed"])
def test_memory_is_flat_under_a_flood(kind: str) -> None:
    machine = Handshake(HandshakeSettings(OURS), given_by.PATHS, 0.0)
    held = 0
    for number in range(20_000):
        now = number * 0.1  # half of it takes 1,000 s: by then 1,024 hellos are remembered
        nonce = number.to_bytes(16, "big")
        hello = encode(Message(Kind.HELLO, nonce, serial=number), size=HELLO_SIZE)
        ack = encode(Message(Kind.ACK, nonce, echo=nonce, serial=number))
        data = {"noise": nonce, "hellos": hello, "acks": ack}.get(
            kind, (nonce, hello, ack)[number % 3]
        )
        port = 1 + number % 65535
        for path in (given_by.DIRECT, Path(0, given_by.PEER._replace(port=port))):
            machine.receive_datagram(data, path, now)
        machine.handle_timer(now)
        list(machine.effects(0.0))
        while machine.next_event() is not None:
            pass
        if number == 10_000:
            held = bytes_held(machine)
    assert bytes_held(machine) <= held + 200  # a few counters grow by a digit


# -- a connection comes to its end ----------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ANYBODY, st.sampled_from(given_by.PATHS)), max_size=12), st.booleans())
def test_whoever_is_connected_settles_by_time_alone(
    data: list[tuple[bytes, Path]], early: bool
) -> None:
    """`--quit-after-connect` and `--handoff` wait for this: without it they never end."""
    machine = Handshake(HandshakeSettings(OURS, None), given_by.PATHS, 0.0)
    machine.handle_timer(0.0)
    events: list[Event] = []
    if early:  # an answer, so that data from the peer may count as its confirmation
        data = [(encode(Message(Kind.ACK, SMALLER, echo=OURS)), given_by.DIRECT), *data]
    for datagram, path in data:
        machine.receive_datagram(datagram, path, 0.1)
    now = 0.1
    for _ in range(100):
        list(machine.effects(now))
        while (event := machine.next_event()) is not None:
            events.append(event)
        at = machine.get_timer()
        if at is None or at > 0.1 + LINGER_LIMIT:
            break
        now = max(now, at)
        machine.handle_timer(now)
    kinds = set(map(type, events))
    assert Connected not in kinds or Settled in kinds
