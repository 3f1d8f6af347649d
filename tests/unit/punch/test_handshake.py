from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from nat_traverse.model import Endpoint, ErrorKind, Generation, NetworkError, Path
from nat_traverse.punch.handshake import (
    DATAGRAM_SIZE,
    LINGER,
    LINGER_LIMIT,
    Handshake,
    HandshakeSettings,
)
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
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    Kind,
    Message,
    decode,
    encode,
)
from support.pair import LEFT, RIGHT, TO_LEFT, TO_RIGHT, Link, Pair

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = bytes(16)  # as a nonce: the controlled side
LARGE = b"\xff" * 16  # the controlling one
MIDDLE = b"\x80" * 16


def make(nonce: bytes, *paths: Path, timeout: float | None = 180.0, window: int = 0) -> Handshake:
    return Handshake(HandshakeSettings(nonce, timeout, window), paths or (TO_RIGHT,), 0.0)


def left(nonce: bytes = LARGE, timeout: float | None = 180.0) -> Callable[[float], Handshake]:
    return lambda now: Handshake(HandshakeSettings(nonce, timeout), (TO_RIGHT,), now)


def right(nonce: bytes = SMALL, timeout: float | None = 180.0) -> Callable[[float], Handshake]:
    return lambda now: Handshake(HandshakeSettings(nonce, timeout), (TO_LEFT,), now)


def events(machine: Handshake) -> list[Event]:
    found = []
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def sent(machine: Handshake, now: float = 0.0) -> list[Send]:
    return list(machine.effects(now))


def hello(nonce: bytes, **fields: object) -> bytes:
    return encode(Message(Kind.HELLO, nonce, **fields), size=HELLO_SIZE)  # type: ignore[arg-type]


def ack(nonce: bytes, **fields: object) -> bytes:
    return encode(Message(Kind.ACK, nonce, **fields))  # type: ignore[arg-type]


def parsed(send: Send) -> Message:
    message = decode(send.data)
    assert isinstance(message, Message)
    return message


def connected(pair: Pair) -> tuple[Connected, Connected]:
    ends = []
    for end in (pair.left, pair.right):
        found = end.event(Connected)
        assert found is not None
        assert isinstance(found[1], Connected)
        ends.append(found[1])
    return ends[0], ends[1]


class TestTwoOfToday:
    @pytest.mark.parametrize("nonces", [(LARGE, SMALL), (SMALL, LARGE)])
    def test_both_connect_on_the_same_path_and_settle(self, nonces: tuple[bytes, bytes]) -> None:
        pair = Pair(left(nonces[0]), right(nonces[1]))
        pair.run(1.0)
        ours, theirs = connected(pair)
        assert (ours.path, theirs.path) == (TO_RIGHT, TO_LEFT)
        assert ours.observed == LEFT
        assert theirs.observed == RIGHT
        assert ours.generation is theirs.generation is Generation.CURRENT
        assert ours.datagram_size == theirs.datagram_size == DATAGRAM_SIZE
        assert ours.round_trip == pytest.approx(0.02)
        for end in (pair.left, pair.right):
            settled = end.event(Settled)
            assert settled is not None
            assert settled[0] < 0.3

    @pytest.mark.parametrize("later", [0.0, 1.5, 61.0, 170.0])
    def test_two_round_trips_after_the_later_start(self, later: float) -> None:
        pair = Pair(left(), right(), right_starts=later)
        pair.run(later + 1.0)
        for end in (pair.left, pair.right):
            found = end.event(Connected)
            assert found is not None
            assert found[0] - later <= 0.15 + 2 * 0.02 + 1e-6

    def test_everything_stops_after_connecting(self) -> None:
        pair = Pair(left(), right())
        pair.run(60.0)
        for end in (pair.left, pair.right):
            assert max(at for at, _ in end.sent) < 0.5
            assert end.machine.get_timer() is None

    @pytest.mark.parametrize("seed", range(200))
    def test_heavy_loss_costs_time_and_never_the_attempt(self, seed: int) -> None:
        chance = random.Random(seed)
        pair = Pair(
            left(chance.randbytes(16)),
            right(chance.randbytes(16)),
            seed=seed,
            link=Link(loss=0.3, latency=0.03, jitter=0.05, duplication=0.05),
            right_starts=chance.uniform(0, 5),
        )
        pair.run(30.0)
        ours, theirs = connected(pair)
        assert (ours.path, theirs.path) == (TO_RIGHT, TO_LEFT)

    def test_openings_have_a_low_ttl_and_come_first(self) -> None:
        machine = make(LARGE)
        for now in (0.0, 0.05, 0.15):
            machine.handle_timer(now)
        assert [send.ttl for send in sent(machine)] == [2, 2, None]

    def test_a_late_timer_sends_one_hello_and_not_all_it_missed(self) -> None:
        machine = make(LARGE)
        machine.handle_timer(30.0)
        assert len(sent(machine)) == 1
        assert machine.get_timer() == pytest.approx(31.0)

    def test_a_path_that_only_takes_small_datagrams_is_found_out(self) -> None:
        pair = Pair(left(), right(), link=Link(largest=1300))
        pair.run(2.0)
        assert [end.datagram_size for end in connected(pair)] == [1232, 1232]
        pair = Pair(left(), right(), link=Link(largest=700))
        pair.run(2.0)
        assert [end.datagram_size for end in connected(pair)] == [548, 548]

    def test_a_smaller_nomination_later_on_lowers_the_size(self) -> None:
        machine = make(SMALL)
        for size in (1400, 1232):
            data = encode(
                Message(Kind.HELLO, LARGE, nominate=True, echo=SMALL, serial=size), size=size
            )
            machine.receive_datagram(data, TO_RIGHT, 0.1)
        acks = [send for send in sent(machine) if parsed(send).nominate]
        assert [len(send.data) for send in acks] == [1400, 1232]

    def test_a_reported_mtu_bounds_the_nomination(self) -> None:
        machine = make(LARGE)
        too_big = NetworkError(ErrorKind.TOO_BIG, 90, mtu=1300)
        machine.receive_error(too_big, TO_RIGHT, 0.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        assert len(sent(machine)[-1].data) == 1300 - 28
        # In the middle of nominating it is repeated at once; a larger report changes nothing.
        machine.receive_error(NetworkError(ErrorKind.TOO_BIG, 90, mtu=1200), TO_RIGHT, 0.12)
        assert machine.get_timer() == pytest.approx(0.12)
        machine.receive_error(NetworkError(ErrorKind.TOO_BIG, 90, mtu=1500), TO_RIGHT, 0.13)
        machine.handle_timer(0.13)
        assert len(sent(machine)[-1].data) == 1200 - 28

    def test_ipv6_headers_are_longer(self) -> None:
        path = Path(0, Endpoint("2001:db8::7", 40001))
        machine = make(LARGE, path)
        machine.receive_error(NetworkError(ErrorKind.TOO_BIG, 90, mtu=1280), path, 0.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE), path, 0.1)
        assert len(sent(machine)[-1].data) == 1232

    def test_nominations_slow_down(self) -> None:
        machine = make(LARGE, timeout=None)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.0)
        times = [0.0]
        for _ in range(30):
            at = machine.get_timer()
            assert at is not None
            machine.handle_timer(at)
            times.append(at)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert gaps[0] == pytest.approx(0.1)
        assert gaps[-1] == pytest.approx(1.0)
        assert sum(gaps[:20]) < 3.0


class TestControlled:
    def nominate(self, machine: Handshake, now: float, serial: int = 1) -> None:
        data = hello(LARGE, nominate=True, echo=SMALL, serial=serial)
        machine.receive_datagram(data, TO_RIGHT, now)

    def test_lingers_until_done(self) -> None:
        machine = make(SMALL)
        self.nominate(machine, 1.0)
        assert machine.get_timer() == 1.0 + LINGER
        machine.receive_datagram(ack(LARGE, echo=SMALL, done=True), TO_RIGHT, 1.1)
        assert any(isinstance(event, Settled) for event in events(machine))
        assert machine.get_timer() is None

    def test_answers_repeated_nominations_and_settles_after_the_last(self) -> None:
        machine = make(SMALL)
        self.nominate(machine, 1.0)
        self.nominate(machine, 2.5, serial=2)
        confirmations = [send for send in sent(machine) if parsed(send).nominate]
        assert [parsed(send).serial for send in confirmations] == [1, 2]
        assert machine.get_timer() == 2.5 + LINGER
        machine.handle_timer(2.5 + LINGER)
        assert sum(isinstance(event, Settled) for event in events(machine)) == 1

    def test_does_not_linger_for_ever(self) -> None:
        machine = make(SMALL)
        now = 1.0
        while now < 30.0:
            self.nominate(machine, now)
            machine.handle_timer(now)
            now += 0.5
        assert machine.get_timer() is None
        sent(machine)
        found = events(machine)
        assert sum(isinstance(event, Settled) for event in found) == 1
        assert LINGER_LIMIT < 30.0

    def test_done_before_being_connected_means_nothing(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(ack(LARGE, echo=SMALL, done=True), TO_RIGHT, 0.1)
        assert not any(isinstance(event, Settled | Connected) for event in events(machine))

    def test_a_nomination_from_the_smaller_nonce_is_just_a_hello(self) -> None:
        machine = make(LARGE)
        data = hello(SMALL, nominate=True, echo=LARGE, serial=1)
        machine.receive_datagram(data, TO_RIGHT, 0.1)
        assert not any(isinstance(event, Connected) for event in events(machine))
        assert not parsed(sent(machine)[0]).nominate

    def test_a_nomination_of_a_second_path_is_not_confirmed(self) -> None:
        second = Path(1, Endpoint("2001:db8::7", 40001))
        machine = make(SMALL, TO_RIGHT, second)
        self.nominate(machine, 0.1)
        sent(machine)
        machine.receive_datagram(hello(LARGE, nominate=True, echo=SMALL), second, 0.2)
        assert sent(machine) == []
        # An ordinary hello there is still answered, for the peer to know that we live.
        machine.receive_datagram(hello(LARGE, echo=SMALL), second, 0.3)
        assert [parsed(send).kind for send in sent(machine)] == [Kind.ACK]


class TestControlling:
    def test_repeated_confirmations_are_told_done_again(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        nomination = parsed(sent(machine)[-1])
        for now in (0.2, 0.3):
            data = ack(SMALL, echo=LARGE, nominate=True, serial=nomination.serial)
            machine.receive_datagram(data, TO_RIGHT, now)
        assert [parsed(send).done for send in sent(machine)] == [True] * 4
        assert sum(isinstance(event, Connected) for event in events(machine)) == 1

    def test_early_data_waits_for_the_confirmation(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(b"noise", TO_RIGHT, 0.05)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        for data in (b"one", b"two", b""):
            machine.receive_datagram(data, TO_RIGHT, 0.2)
        assert not any(isinstance(event, Connected) for event in events(machine))
        assert machine.get_timer() == pytest.approx(0.2)  # it goes on asking
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), TO_RIGHT, 0.3)
        found = [event for event in events(machine) if isinstance(event, Connected)]
        assert [event.early_data for event in found] == [(b"one", b"two")]
        assert machine.evidence.not_ours == 2

    def test_early_data_is_bounded(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        for _ in range(1000):
            machine.receive_datagram(b"x", TO_RIGHT, 0.2)
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), TO_RIGHT, 0.3)
        found = [event for event in events(machine) if isinstance(event, Connected)]
        assert len(found[0].early_data) == 64

    def test_a_forgotten_serial_is_no_obstacle(self) -> None:
        machine = make(LARGE, timeout=None)
        machine.receive_datagram(ack(SMALL, echo=LARGE, serial=999), TO_RIGHT, 0.1)
        for _ in range(100):
            at = machine.get_timer()
            assert at is not None
            machine.handle_timer(at)
        data = ack(SMALL, echo=LARGE, nominate=True, serial=2)
        machine.receive_datagram(data, TO_RIGHT, 99.0)
        found = [event for event in events(machine) if isinstance(event, Connected)]
        assert [(event.round_trip, event.datagram_size) for event in found] == [(None, 1400)]

    def test_a_peer_that_was_restarted_starts_it_over(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        machine.receive_datagram(ack(MIDDLE, echo=LARGE), TO_RIGHT, 0.2)
        assert machine.peer_nonce == MIDDLE
        assert parsed(sent(machine)[-1]).echo == MIDDLE
        data = ack(MIDDLE, echo=LARGE, nominate=True)
        machine.receive_datagram(data, TO_RIGHT, 0.3)
        # Once agreed, another one is too late.
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.4)
        assert machine.peer_nonce == MIDDLE
        assert machine.evidence.stale == 1


class TestStrangers:
    STRANGER = Path(0, Endpoint("192.0.2.66", 40001))

    def test_nothing_from_elsewhere_is_answered(self) -> None:
        machine = make(LARGE)
        for data in (hello(SMALL), hello(SMALL, echo=LARGE, nominate=True), ack(SMALL, echo=LARGE)):
            machine.receive_datagram(data, self.STRANGER, 0.1)
        machine.receive_datagram(HELLO_MAGIC, self.STRANGER, 0.1)
        machine.receive_datagram(b"noise", self.STRANGER, 0.1)
        assert sent(machine) == []
        assert events(machine) == []
        assert machine.evidence.strangers == 5

    def test_an_ack_that_does_not_name_our_nonce_validates_nothing(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=MIDDLE), TO_RIGHT, 0.1)
        machine.receive_datagram(ack(SMALL), TO_RIGHT, 0.1)
        assert events(machine) == []
        assert machine.evidence.stale == 2

    def test_our_own_packets_come_back_unharmed(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(hello(LARGE), TO_RIGHT, 0.1)
        machine.receive_datagram(ack(LARGE, echo=LARGE), TO_RIGHT, 0.1)
        machine.receive_datagram(hello(LARGE), self.STRANGER, 0.1)
        assert machine.evidence.reflected == 2
        assert sent(machine) == []

    def test_malformed_ones_are_counted(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(HELLO_MAGIC + b"x", TO_RIGHT, 0.1)
        machine.receive_datagram(HELLO_MAGIC[:15], self.STRANGER, 0.1)
        assert machine.evidence.malformed == 2

    def test_an_ack_is_never_larger_than_its_hello(self) -> None:
        for size in range(38, 200):
            machine = make(LARGE)
            data = encode(Message(Kind.HELLO, SMALL, serial=1), size=size)
            machine.receive_datagram(data, TO_RIGHT, 0.1)
            acks = [send for send in sent(machine) if parsed(send).kind is Kind.ACK]
            assert all(len(send.data) <= len(data) for send in acks)
            assert bool(acks) == (len(data) >= 38 + 7 + 19 + 9 + 3)

    def test_hellos_do_not_beget_hellos(self) -> None:
        machine = make(LARGE)
        for _ in range(100):
            machine.receive_datagram(hello(SMALL), TO_RIGHT, 0.1)
        kinds = [parsed(send).kind for send in sent(machine)]
        assert kinds.count(Kind.HELLO) == 1
        assert kinds.count(Kind.ACK) == 100

    def test_the_port_that_the_peer_really_has_is_reported_once(self) -> None:
        machine = make(LARGE, TO_RIGHT, Path(1, Endpoint("2001:db8::7", 40001)))
        moved = Path(0, RIGHT._replace(port=28710))
        machine.receive_datagram(hello(SMALL), moved, 0.1)
        machine.receive_datagram(HELLO_MAGIC, moved, 0.2)
        assert events(machine) == [PortChanged(TO_RIGHT, moved.remote)]
        assert sent(machine) == []


class TestLegacyPeer:
    def test_gets_one_ack_at_its_first_garbage_and_nothing_after(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.5)
        assert [send.data for send in sent(machine)] == [ACK_MAGIC]
        for now in (1.5, 2.5, 3.5):
            machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, now)
            machine.handle_timer(now)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 10.5)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 10.6)
        assert sent(machine) == []
        found = events(machine)
        assert found[0] == PeerHeard(TO_RIGHT, Generation.LEGACY)
        assert [type(event) for event in found[1:]] == [Connected, Settled]
        assert machine.peer_nonce is None
        assert not machine.controlling

    def test_that_sends_its_ack_first_is_answered_too(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 0.5)
        assert [send.data for send in sent(machine)] == [ACK_MAGIC]
        assert isinstance(events(machine)[1], Connected)

    def test_gets_its_window_of_bare_hellos_first(self) -> None:
        machine = make(LARGE, window=3)
        machine.handle_timer(0.0)
        sent(machine)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.01)
        assert sent(machine) == []
        assert machine.get_timer() == pytest.approx(1.01)
        machine.handle_timer(1.01)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 1.5)
        assert not any(isinstance(event, Connected) for event in events(machine))
        machine.handle_timer(2.01)
        assert [send.data for send in sent(machine)] == [HELLO_MAGIC, HELLO_MAGIC, ACK_MAGIC]
        assert isinstance(events(machine)[0], Connected)

    def test_whose_ack_was_lost_is_known_by_its_data(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(b"too early", TO_RIGHT, 0.1)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.5)
        machine.receive_datagram(b"", TO_RIGHT, 0.6)
        machine.receive_datagram(b"hello\n", TO_RIGHT, 0.7)
        found = [event for event in events(machine) if isinstance(event, Connected)]
        assert [event.early_data for event in found] == [(b"hello\n",)]

    def test_gets_no_answer_to_a_tail_once_it_is_connected(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 0.5)
        sent(machine)
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 0.6)
        assert sent(machine) == []

    def test_that_turns_out_to_know_tails_was_somebody_else(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.5)
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 0.6)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.7)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 0.8)
        assert machine.evidence.stale == 1
        assert machine.peer_nonce == SMALL
        assert not any(isinstance(event, Connected) for event in events(machine))
        assert parsed(sent(machine)[-1]).nominate


class TestEnd:
    def test_the_deadline_ends_it_with_the_evidence(self) -> None:
        machine = make(LARGE, timeout=20.0)
        machine.receive_error(
            NetworkError(ErrorKind.PORT_UNREACHABLE, 111, "203.0.113.2"), TO_RIGHT, 1.0
        )
        machine.handle_timer(20.0)
        found = events(machine)
        assert isinstance(found[0], PeerRefused)
        assert found[-1] == DeadlinePassed(machine.evidence)
        assert machine.evidence.paths[TO_RIGHT].errors
        assert machine.get_timer() is None
        machine.handle_timer(21.0)
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 21.0)
        machine.receive_error(NetworkError(ErrorKind.OTHER, 1), TO_RIGHT, 21.0)
        assert sent(machine) == []

    def test_without_a_deadline_it_goes_on(self) -> None:
        pair = Pair(left(timeout=None), right(timeout=None), right_starts=5000.0)
        pair.run(5001.0)
        connected(pair)

    def test_an_error_of_an_unknown_path_is_nobodys(self) -> None:
        machine = make(LARGE)
        machine.receive_error(NetworkError(ErrorKind.OTHER, 1), TO_LEFT, 0.0)
        assert events(machine) == []

    def test_the_same_refusal_is_told_once(self) -> None:
        machine = make(LARGE)
        for now in (0.1, 0.2, 0.3):
            refusal = NetworkError(ErrorKind.NOT_PERMITTED, 1)
            machine.receive_error(refusal, TO_RIGHT, now)
        assert len(events(machine)) == 1
        assert machine.evidence.paths[TO_RIGHT].errors == {(ErrorKind.NOT_PERMITTED, None): 3}


def test_a_second_path_may_win() -> None:
    other = Path(1, Endpoint("2001:db8::7", 40001))
    machine = make(LARGE, TO_RIGHT, other)
    machine.handle_timer(0.0)
    assert {send.path for send in sent(machine)} == {TO_RIGHT, other}
    machine.receive_datagram(ack(SMALL, echo=LARGE, serial=2), other, 0.1)
    machine.receive_datagram(ack(SMALL, echo=LARGE, serial=1), TO_RIGHT, 0.2)
    nominations = [send for send in sent(machine) if parsed(send).nominate]
    assert [send.path for send in nominations] == [other]
    validated = [event for event in events(machine) if isinstance(event, PathValidated)]
    assert [event.path for event in validated] == [other, TO_RIGHT]
    machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), other, 0.3)
    found = [event for event in events(machine) if isinstance(event, Connected)]
    assert [event.path for event in found] == [other]
