from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.model import Endpoint, ErrorKind, Generation, NetworkError, Path, Rung
from nat_traverse.punch.bringup import REMIND_EVERY
from nat_traverse.punch.handshake import (
    DATAGRAM_SIZE,
    LINGER,
    LINGER_LIMIT,
    Handshake,
    HandshakeSettings,
)
from nat_traverse.punch.legacy import GRACE
from nat_traverse.punch.machine import (
    AgreedPairAwaited,
    CloseSocket,
    Connected,
    DeadlinePassed,
    Effect,
    Event,
    OpenSocket,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    RungStarted,
    Send,
    Settled,
)
from nat_traverse.punch.route import MOST_HOSTS
from nat_traverse.punch.settings import Hard, LadderSettings
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    MAGIC_SIZE,
    Agreed,
    Kind,
    Message,
    Mode,
    decode,
    encode,
)
from support.pair import LEFT, RIGHT, TO_LEFT, TO_RIGHT, Link, Pair

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = bytes(16)  # as a nonce: the controlled side
LARGE = b"\xff" * 16  # the controlling one
MIDDLE = b"\x80" * 16

EPOCH = 1_800_000_000.0  # the beginning of a minute
STEPS = 100_000  # timers, more than any of these tests needs

MOVED = Path(0, RIGHT._replace(port=28710))  # where the peer's gateway may have put it


def make(
    nonce: bytes,
    *paths: Path,
    timeout: float | None = 180.0,
    window: int = 0,
    mode: Mode = Mode.PLAIN,
    roaming: bool = False,
) -> Handshake:
    settings = HandshakeSettings(nonce, timeout, window, mode=mode, roaming=roaming)
    return Handshake(settings, paths or (TO_RIGHT,), 0.0)


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
    """What it wants to send; without a ladder it opens and closes nothing."""
    found = list(machine.effects(now))
    sends = [effect for effect in found if isinstance(effect, Send)]
    assert sends == found
    return sends


def run(machine: Handshake, until: float) -> list[tuple[float, Send]]:
    """Let time pass; return what was sent, and when."""
    found: list[tuple[float, Send]] = []
    for _ in range(STEPS):
        at = machine.get_timer()
        if at is None or at > until:
            return found
        machine.handle_timer(at)
        found += [(at, send) for send in sent(machine, at)]
    raise AssertionError("it does not come to rest")


def climber(
    nonce: bytes, *paths: Path, mode: Mode = Mode.PLAIN, wall: float = 10.0, **settings: Any
) -> Handshake:
    """A machine with the whole ladder; the wall clock stands at the tenth second of a minute."""
    ladder = LadderSettings(LEFT.port, EPOCH + wall, bytes(16), **settings)
    whole = HandshakeSettings(nonce, 180.0, mode=mode, ladder=ladder)
    return Handshake(whole, paths or (TO_RIGHT,), 0.0)


def climb(machine: Handshake, until: float, since: float = 0.0) -> list[tuple[float, Effect]]:
    """Let time pass, and give it every socket that it asks for: number n has the port 50000 + n."""
    found: list[tuple[float, Effect]] = []
    now = since
    for _ in range(STEPS):
        at = machine.get_timer()
        if at is None or at > until:
            return found
        now = max(now, at)
        machine.handle_timer(now)
        found += [(now, effect) for effect in settle(machine, now)]
    raise AssertionError("it does not come to rest")


def settle(machine: Handshake, now: float) -> list[Effect]:
    """Carry out what the machine wants now."""
    found: list[Effect] = []
    while effects := list(machine.effects(now)):
        found += effects
        for effect in effects:
            if isinstance(effect, OpenSocket):
                machine.socket_opened(effect.number, 50_000 + effect.number, now)
    return found


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
        sent(machine)
        times = [0.0]
        times += [at for at, send in run(machine, 40.0) if parsed(send).nominate]
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


def promised(machine: Handshake) -> tuple[Path, ...]:
    return machine.promised


class TestPromised:
    """Over which paths the peer may be connected: whoever leaves then has to tell it there."""

    def test_nothing_before_a_nomination(self) -> None:
        machine = make(LARGE, TO_RIGHT, MOVED)
        assert promised(machine) == ()
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 0.1)
        assert promised(machine) == ()

    def test_what_is_nominated_then_what_is_confirmed(self) -> None:
        other = Path(1, RIGHT)
        machine = make(LARGE, TO_RIGHT, other)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        assert promised(machine) == (TO_RIGHT,)
        machine.receive_datagram(ack(SMALL, echo=LARGE), other, 0.2)
        run(machine, 10.0)
        assert machine.promised[:] == (TO_RIGHT, other)  # it has had its turn as well
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), other, 10.0)
        assert promised(machine) == (other,)

    def test_what_the_other_side_has_nominated(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(ack(LARGE, echo=SMALL), TO_RIGHT, 0.1)
        assert promised(machine) == ()
        machine.receive_datagram(hello(LARGE, nominate=True, echo=SMALL), TO_RIGHT, 0.2)
        assert promised(machine) == (TO_RIGHT,)


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
        assert len(run(machine, 2000.0)) > 1024  # so many are remembered
        data = ack(SMALL, echo=LARGE, nominate=True, serial=2)
        machine.receive_datagram(data, TO_RIGHT, 2000.0)
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

    def test_whoever_alternates_between_two_nonces_is_told_of_once(self) -> None:
        machine = make(LARGE)
        for number in range(200):
            nonce = (SMALL, MIDDLE)[number % 2]
            for path in (TO_RIGHT, MOVED):
                machine.receive_datagram(ack(nonce, echo=LARGE), path, 0.1)
            list(machine.effects(0.1))
        found = [event.path for event in events(machine) if isinstance(event, PathValidated)]
        assert found == [TO_RIGHT, MOVED]


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
            assert bool(acks) == (len(data) >= 38 + 7 + 19 + 9 + 4 + 3)

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
        machine.receive_datagram(hello(SMALL), moved, 0.3)
        assert events(machine) == [
            PeerHeard(moved, Generation.CURRENT),
            PortChanged(TO_RIGHT, moved.remote),
        ]

    def test_another_port_of_the_peers_host_gets_answers_and_is_not_remembered(self) -> None:
        machine = make(LARGE)
        for port in range(1024, 2024):
            moved = Path(0, RIGHT._replace(port=port))
            data = hello(SMALL, serial=port)
            machine.receive_datagram(data, moved, 0.1)
            (answer,) = sent(machine)
            assert answer.path == moved
            assert len(answer.data) <= len(data)
            message = parsed(answer)
            assert (message.kind, message.serial, message.astray) == (Kind.ACK, port, True)
            assert message.observed == moved.remote
            machine.receive_datagram(HELLO_MAGIC, moved, 0.1)
            assert sent(machine) == []
        assert list(machine.evidence.paths) == [TO_RIGHT]
        assert len(machine._routes) == 1

    def test_another_host_that_names_our_nonce_is_noted_and_not_answered(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(hello(SMALL, echo=LARGE), self.STRANGER, 0.1)
        machine.receive_datagram(ack(SMALL, echo=LARGE), self.STRANGER, 0.1)
        machine.receive_datagram(hello(SMALL, echo=MIDDLE), self.STRANGER, 0.1)
        assert machine.evidence.elsewhere == [self.STRANGER.remote.host]
        assert sent(machine) == []


class TestRoaming:
    """A peer that has to prove itself afterwards may come from another address."""

    ELSEWHERE = TestStrangers.STRANGER

    def test_who_names_our_nonce_from_elsewhere_is_taken_for_the_peer(self) -> None:
        machine = make(LARGE, roaming=True)
        machine.receive_datagram(hello(SMALL), self.ELSEWHERE, 0.1)
        machine.receive_datagram(hello(SMALL, echo=MIDDLE), self.ELSEWHERE, 0.1)
        machine.receive_datagram(HELLO_MAGIC, self.ELSEWHERE, 0.1)
        assert sent(machine) == []
        assert machine.evidence.strangers == 3
        machine.receive_datagram(hello(SMALL, echo=LARGE), self.ELSEWHERE, 0.2)
        answers = [send for send in sent(machine) if send.path == self.ELSEWHERE]
        assert {parsed(send).kind for send in answers} == {Kind.ACK, Kind.HELLO}
        machine.receive_datagram(
            ack(SMALL, echo=LARGE, nominate=True, serial=nomination(answers)), self.ELSEWHERE, 0.3
        )
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert found.path == self.ELSEWHERE
        assert not found.agreed

    def test_only_so_many_addresses_are(self) -> None:
        machine = make(LARGE, roaming=True)
        for number in range(100):
            path = Path(0, Endpoint(f"192.0.2.{number}", 40001))
            machine.receive_datagram(hello(SMALL, echo=LARGE), path, 0.1)
        asked = {send.path.remote.host for send in sent(machine)}
        assert len(asked) == MOST_HOSTS
        assert machine.evidence.strangers == 100 - MOST_HOSTS

    def test_once_connected_nobody_is(self) -> None:
        machine = make(LARGE, roaming=True)
        machine.receive_datagram(hello(SMALL, echo=LARGE), TO_RIGHT, 0.1)
        asked = nomination(sent(machine))
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True, serial=asked), TO_RIGHT, 0.2)
        assert any(isinstance(event, Connected) for event in events(machine))
        sent(machine)
        machine.receive_datagram(hello(SMALL, echo=LARGE), self.ELSEWHERE, 0.3)
        assert sent(machine) == []

    def test_another_run_of_the_peers_begins_anew(self) -> None:
        machine = make(LARGE, roaming=True)
        machine.receive_datagram(hello(SMALL, echo=LARGE), self.ELSEWHERE, 0.1)
        machine.receive_datagram(hello(MIDDLE, echo=LARGE), TO_RIGHT, 0.2)
        sent(machine)
        machine.receive_datagram(hello(MIDDLE), self.ELSEWHERE, 0.3)
        assert sent(machine) == []

    def test_a_further_port_of_that_address_is_noted_and_not_searched_for(self) -> None:
        machine = make(LARGE, roaming=True)
        machine.receive_datagram(hello(SMALL, echo=LARGE), self.ELSEWHERE, 0.1)
        further = Path(0, self.ELSEWHERE.remote._replace(port=50000))
        machine.receive_datagram(hello(SMALL), further, 0.2)
        changed = [event for event in events(machine) if isinstance(event, PortChanged)]
        assert changed == [PortChanged(self.ELSEWHERE, further.remote)]


def nomination(sends: list[Send]) -> int:
    """Return the serial of the nomination among `sends`."""
    (found,) = {parsed(send).serial for send in sends if parsed(send).nominate}
    assert found is not None
    return found


class TestLegacyPeer:
    def test_gets_one_ack_a_moment_after_its_first_garbage_and_nothing_after(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.5)
        assert sent(machine) == []
        before = run(machine, 0.5 + GRACE - 0.001)
        # A peer of today would answer these, and then somebody else has sent the magic.
        assert len(before) > 5
        assert {parsed(send).kind for _, send in before} == {Kind.HELLO}
        assert [(at, send.data) for at, send in run(machine, 0.5 + GRACE)] == [(1.5, ACK_MAGIC)]
        for now in (1.6, 2.5, 3.5):
            machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, now)
            assert run(machine, now) == []
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
        assert not any(isinstance(event, Connected) for event in events(machine))
        bare = [send.data for _, send in run(machine, 9.0) if len(send.data) == MAGIC_SIZE]
        assert bare == [ACK_MAGIC]
        assert isinstance(events(machine)[0], Connected)

    def test_gets_its_window_of_hellos_first_the_rest_bare(self) -> None:
        machine = make(LARGE, window=15)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.01)
        with_tails = run(machine, 0.01 + GRACE - 0.001)
        assert len(with_tails) == 11
        bare = run(machine, 3.5)
        assert [at for at, _ in bare] == [pytest.approx(at) for at in (1.01, 2.01, 3.01)]
        assert {send.data for _, send in bare} == {HELLO_MAGIC}
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 3.6)
        assert not any(isinstance(event, Connected) for event in events(machine))
        rest = [send.data for _, send in run(machine, 60.0)]
        assert rest == [HELLO_MAGIC, ACK_MAGIC]
        assert isinstance(events(machine)[0], Connected)

    def test_whose_ack_was_lost_is_known_by_its_data(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.5)
        machine.receive_datagram(b"too early", TO_RIGHT, 0.6)
        run(machine, 0.5 + GRACE)
        machine.receive_datagram(b"", TO_RIGHT, 1.6)
        machine.receive_datagram(b"hello\n", TO_RIGHT, 1.7)
        found = [event for event in events(machine) if isinstance(event, Connected)]
        assert [event.early_data for event in found] == [(b"hello\n",)]
        assert machine.evidence.not_ours == 2

    def test_gets_no_answer_to_a_tail_once_it_is_connected(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 0.5)
        run(machine, 0.5 + GRACE)
        assert any(isinstance(event, Connected) for event in events(machine))
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 1.6)
        assert sent(machine) == []

    def test_a_forged_magic_stops_no_peer_of_today(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 0.5)
        run(machine, 1.4)
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 1.4)
        sends = [send for _, send in run(machine, 60.0)]
        assert all(isinstance(decode(send.data), Message) for send in sends)
        kinds = [event.generation for event in events(machine) if isinstance(event, PeerHeard)]
        assert kinds == [Generation.LEGACY, Generation.CURRENT]
        # From now on it does not work any more.
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 60.0)
        assert machine.evidence.stale == 1

    def test_is_not_sprayed_at(self) -> None:
        machine = climber(LARGE)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 0.1)
        early = climb(machine, 0.1 + GRACE - 0.001)
        assert any(isinstance(effect, OpenSocket) for _, effect in early)
        late = [effect for at, effect in climb(machine, 5.0) if at >= 0.1 + GRACE]
        assert late == [Send(ACK_MAGIC, TO_RIGHT)]
        # It was nobody of 0.7, so the search goes on.
        machine.receive_datagram(hello(SMALL), TO_RIGHT, 5.0)
        assert len(climb(machine, 7.0)) > 100

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


class TestNoLegacyPeer:
    """Who wants to encrypt has no use for a peer of generation 0.7."""

    def make(self, *, legacy: bool = False, secret: bytes = b"") -> Handshake:
        ladder = LadderSettings(LEFT.port, EPOCH, bytes(16), secret=secret)
        settings = HandshakeSettings(
            LARGE, 180.0, mode=Mode.TUNNEL, ladder=ladder if secret else None, legacy=legacy
        )
        return Handshake(settings, (TO_RIGHT,), 0.0)

    @pytest.mark.parametrize("magic", [HELLO_MAGIC, ACK_MAGIC])
    @pytest.mark.parametrize(
        ("legacy", "secret"), [(False, b""), (True, b"shared"), (False, b"shared")]
    )
    def test_it_gets_no_answer_and_is_counted(
        self, magic: bytes, legacy: bool, secret: bytes
    ) -> None:
        machine = self.make(legacy=legacy, secret=secret)
        usual = self.make(legacy=legacy, secret=secret)
        for now in (0.5, 1.5, 2.5):
            climb(machine, now)
            climb(usual, now)
            machine.receive_datagram(magic, TO_RIGHT, now)
            assert list(machine.effects(now)) == []
        assert climb(machine, 9.0, 2.5) == climb(usual, 9.0, 2.5), "it changes nothing"
        assert machine.evidence.unwanted_legacy == 3
        assert not any(isinstance(event, PeerHeard | Connected) for event in events(machine))

    def test_its_data_is_none_of_ours(self) -> None:
        machine = self.make()
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 0.5)
        run(machine, 5.0)
        machine.receive_datagram(b"hello\n", TO_RIGHT, 5.0)
        assert machine.evidence.not_ours == 1
        assert not any(isinstance(event, Connected) for event in events(machine))

    def test_a_peer_of_today_is_found_all_the_same(self) -> None:
        def tunnel(nonce: bytes, path: Path) -> Callable[[float], Handshake]:
            settings = HandshakeSettings(nonce, 180.0, mode=Mode.TUNNEL, legacy=False)
            return lambda now: Handshake(settings, (path,), now)

        pair = Pair(tunnel(LARGE, TO_RIGHT), tunnel(SMALL, TO_LEFT))
        pair.deliver("left", HELLO_MAGIC)
        pair.run(1.0)
        ours, theirs = connected(pair)
        assert ours.generation is theirs.generation is Generation.CURRENT
        for end in (pair.left, pair.right):
            assert isinstance(end.machine, Handshake)
            assert end.machine.mode is end.machine.peer_mode is Mode.TUNNEL


class TestModes:
    @pytest.mark.parametrize("mode", Mode)
    def test_what_this_side_wants_is_said_in_its_hellos(self, mode: Mode) -> None:
        machine = make(LARGE, mode=mode)
        assert machine.mode is mode
        machine.handle_timer(0.0)
        assert {parsed(send).mode or Mode.PLAIN for send in sent(machine)} == {mode}

    def test_what_the_other_side_wants(self) -> None:
        machine = make(SMALL, mode=Mode.TUNNEL)
        assert machine.peer_mode is Mode.PLAIN
        # From whoever has not named our nonce it is no news.
        machine.receive_datagram(hello(LARGE, mode=Mode.TUNNEL), TO_RIGHT, 0.1)
        assert machine.peer_mode is Mode.PLAIN
        machine.receive_datagram(hello(LARGE, echo=SMALL, mode=Mode.TUNNEL), TO_RIGHT, 0.2)
        assert machine.peer_mode.value == Mode.TUNNEL.value
        # A message that says nothing of it takes nothing back.
        machine.receive_datagram(ack(LARGE, echo=SMALL), TO_RIGHT, 0.3)
        assert machine.peer_mode.value == Mode.TUNNEL.value

    @pytest.mark.parametrize("modes", [(Mode.PLAIN, Mode.TUNNEL), (Mode.TUNNEL, Mode.PLAIN)])
    def test_that_differ_connect_and_both_know(self, modes: tuple[Mode, Mode]) -> None:
        """It is for the owner to refuse: it knows what to tell its user."""
        settings = [
            HandshakeSettings(nonce, 180.0, mode=mode)
            for nonce, mode in zip((LARGE, SMALL), modes, strict=True)
        ]
        pair = Pair(
            lambda now: Handshake(settings[0], (TO_RIGHT,), now),
            lambda now: Handshake(settings[1], (TO_LEFT,), now),
        )
        pair.run(1.0)
        connected(pair)
        for end, mode in zip((pair.left, pair.right), reversed(modes), strict=True):
            assert isinstance(end.machine, Handshake)
            assert end.machine.peer_mode is mode


class TestEnd:
    def test_after_the_deadline_no_peer_is_served(self) -> None:
        """Not even one whose ack is due at the same moment."""
        machine = make(LARGE, timeout=5.0, window=0)
        machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, 4.5)
        machine.receive_datagram(ACK_MAGIC, TO_RIGHT, 4.5)
        machine.handle_timer(5.0 + GRACE)
        assert Send(ACK_MAGIC, TO_RIGHT) not in sent(machine)
        assert events(machine)[-1] == DeadlinePassed(machine.evidence)
        assert machine.get_timer() is None

    def test_after_the_deadline_nothing_else_is_due(self) -> None:
        """Not even what was due at the same moment, as after a machine has slept."""
        machine = make(LARGE, timeout=5.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 4.9)
        assert parsed(sent(machine)[-1]).nominate
        machine.handle_timer(100.0)
        assert sent(machine) == []
        assert events(machine)[-1] == DeadlinePassed(machine.evidence)

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


def controlling(mode: Mode = Mode.PORTS, timeout: float | None = 180.0) -> Handshake:
    """A machine that has just learned that it reaches the peer, but not on the agreed pair."""
    machine = make(LARGE, mode=mode, timeout=timeout)
    machine.receive_datagram(ack(SMALL, echo=LARGE, observed=LEFT), MOVED, 1.0)
    return machine


def answer(machine: Handshake, step: Agreed | None, now: float, path: Path = MOVED) -> None:
    machine.receive_datagram(ack(SMALL, echo=LARGE, observed=LEFT, agreed=step), path, now)


def asks(machine: Handshake, until: float, step: Agreed | None = None) -> list[Message]:
    """What it asks on the helping path until then; each question is answered by `step`."""
    found: list[Message] = []
    while (at := machine.get_timer()) is not None and at <= until:
        machine.handle_timer(at)
        for send in sent(machine, at):
            if send.path == MOVED:
                found.append(parsed(send))
                if step is not None:
                    answer(machine, step, at)
    return found


class TestBringingUpTheAgreedPair:
    """The controlling side."""

    def test_it_is_asked_for_and_then_tried(self) -> None:
        machine = controlling()
        first = sent(machine)[-1]
        assert (first.path, parsed(first).agreed) == (MOVED, Agreed.OPEN)
        assert AgreedPairAwaited(MOVED, 0.0) in events(machine)
        answer(machine, Agreed.OPENED, 1.05)
        assert [(send.path, send.ttl) for send in sent(machine)] == [(TO_RIGHT, None)]
        hellos = [send for _, send in run(machine, 2.0)]
        assert {send.path for send in hellos} == {TO_RIGHT}
        assert len(hellos) in (9, 10)
        machine.receive_datagram(ack(SMALL, echo=LARGE, observed=LEFT), TO_RIGHT, 2.0)
        nomination = sent(machine)[-1]
        assert (nomination.path, parsed(nomination).nominate) == (TO_RIGHT, True)
        data = ack(SMALL, echo=LARGE, nominate=True, observed=LEFT)
        machine.receive_datagram(data, TO_RIGHT, 2.1)
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert (found.path, found.agreed) == (TO_RIGHT, True)

    def test_without_a_deadline_there_is_none_to_put_off(self) -> None:
        machine = controlling(timeout=None)
        answer(machine, Agreed.OPENED, 1.0)
        asks(machine, 300.0, Agreed.SILENT)
        assert not any(isinstance(event, DeadlinePassed) for event in events(machine))

    def test_if_nothing_arrives_both_are_silent_and_try_again(self) -> None:
        machine = controlling()
        answer(machine, Agreed.OPENED, 1.0)
        assert asks(machine, 3.1, Agreed.SILENT)[-1].agreed is Agreed.SILENT
        assert events(machine)[-1] == AgreedPairAwaited(MOVED, 33.0)
        sent(machine)
        silent = []
        while (at := machine.get_timer()) is not None and at < 35.9:
            machine.handle_timer(at)
            for send in sent(machine):
                silent.append(send)
                answer(machine, Agreed.SILENT, at)
        # On the pair not a packet; on the helping path a reminder now and then.
        assert {send.path for send in silent} == {MOVED}
        assert [parsed(send).agreed for send in silent] == [Agreed.SILENT] * int(
            33.0 / REMIND_EVERY
        )
        again = asks(machine, 36.3, Agreed.OPENED)
        assert again[0].agreed is Agreed.OPEN
        assert TO_RIGHT in {send.path for _, send in run(machine, 37.0)}
        # In vain, and after a longer silence again: the path that works is taken.
        run(machine, 38.4)
        now = 38.5
        while now < 104.0:
            asks(machine, now, Agreed.SILENT)
            now += 1.0
        asks(machine, now, Agreed.OPENED)
        last = [send for _, send in run(machine, now + 4.0) if parsed(send).nominate]
        assert {send.path for send in last} == {MOVED}
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), MOVED, now + 4.0)
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert (found.path, found.agreed) == (MOVED, False)

    def test_a_peer_that_knows_better_ends_it(self) -> None:
        machine = controlling()
        sent(machine)
        answer(machine, Agreed.HOPELESS, 1.05)
        assert [(send.path, parsed(send).nominate) for send in sent(machine)] == [(MOVED, True)]

    def test_a_helping_path_that_dies_is_given_up(self) -> None:
        machine = controlling()
        questions = [send for _, send in run(machine, 10.9) if parsed(send).agreed]
        assert len(questions) > 40
        later = [send for _, send in run(machine, 60.0)]
        assert not any(parsed(send).agreed for send in later[2:])
        assert TO_RIGHT in {send.path for send in later}  # the ladder goes on
        # The same path may help again.
        answer(machine, None, 60.0)
        assert parsed(sent(machine)[-1]).agreed is Agreed.OPEN

    def test_it_puts_the_deadline_off(self) -> None:
        machine = make(LARGE, mode=Mode.PORTS, timeout=5.0)
        answer(machine, None, 1.0)
        now = 1.0
        while now < 30.0:
            now += 1.0
            asks(machine, now, Agreed.SILENT)
            answer(machine, Agreed.OPENED if now < 2.5 else Agreed.SILENT, now)
        assert not any(isinstance(event, DeadlinePassed) for event in events(machine))

    @pytest.mark.parametrize(
        ("ours", "theirs"), [(Mode.PLAIN, Mode.PORTS), (Mode.PORTS, Mode.PLAIN)]
    )
    def test_one_side_that_needs_it_is_enough(self, ours: Mode, theirs: Mode) -> None:
        machine = make(LARGE, mode=ours)
        machine.receive_datagram(ack(SMALL, echo=LARGE, mode=theirs), MOVED, 1.0)
        assert parsed(sent(machine)[-1]).agreed is Agreed.OPEN

    def test_nobody_needs_it_for_a_plain_tunnel(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=LARGE, mode=Mode.PLAIN), MOVED, 1.0)
        assert parsed(sent(machine)[-1]).nominate

    def test_it_is_hopeless_if_our_own_gateway_changes_ports(self) -> None:
        machine = climber(LARGE, mode=Mode.PORTS)
        climb(machine, 3.0)
        path = Path(5, RIGHT)  # one of the spray's
        data = ack(SMALL, echo=LARGE, observed=LEFT._replace(port=61_000))
        machine.receive_datagram(data, path, 3.0)
        nominations = [send for send in sent(machine) if parsed(send).nominate]
        assert [send.path for send in nominations] == [path]

    def test_an_agreed_pair_that_is_astray_is_reported(self) -> None:
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=LARGE, astray=True), TO_RIGHT, 0.1)
        data = ack(SMALL, echo=LARGE, astray=True, nominate=True)
        machine.receive_datagram(data, TO_RIGHT, 0.2)
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert not found.agreed


class TestHelpingToBringItUp:
    """The controlled side."""

    def ask(
        self, machine: Handshake, step: Agreed, now: float, path: Path = MOVED, port: int = 40000
    ) -> list[Send]:
        observed = LEFT._replace(port=port)
        data = hello(LARGE, echo=SMALL, serial=9, agreed=step, observed=observed)
        machine.receive_datagram(data, path, now)
        return sent(machine, now)

    def test_it_opens_its_gateway_and_says_so(self) -> None:
        machine = make(SMALL)
        opening, done = self.ask(machine, Agreed.OPEN, 1.0)
        assert (opening.path, opening.ttl) == (TO_RIGHT, 2)
        assert (done.path, parsed(done).agreed, parsed(done).serial) == (MOVED, Agreed.OPENED, 9)
        assert AgreedPairAwaited(MOVED, 0.0) in events(machine)

    def test_it_is_silent_when_asked(self) -> None:
        machine = make(SMALL)
        for now in (1.0, 6.0, 11.0):
            (ack,) = self.ask(machine, Agreed.SILENT, now)
            assert parsed(ack).agreed is Agreed.SILENT
            assert run(machine, now + 4.9) == []
        awaited = [event for event in events(machine) if isinstance(event, AgreedPairAwaited)]
        assert awaited == [AgreedPairAwaited(MOVED, 33.0)]

    def test_it_stops_insisting(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(ack(LARGE, echo=SMALL), MOVED, 0.9)
        assert [send.path for send in sent(machine)] == [MOVED]
        assert [send.path for _, send in run(machine, 1.0)] == [MOVED]
        self.ask(machine, Agreed.SILENT, 1.05)
        assert run(machine, 6.0) == []

    def test_the_pair_itself_can_not_help(self) -> None:
        machine = make(SMALL)
        answer, _ = self.ask(machine, Agreed.OPEN, 1.0, TO_RIGHT)
        assert parsed(answer).agreed is Agreed.HOPELESS

    @pytest.mark.parametrize(("port", "hopeless"), [(50_005, False), (61_000, True)])
    def test_it_says_so_if_its_gateway_changes_ports(self, port: int, *, hopeless: bool) -> None:
        machine = climber(SMALL)
        climb(machine, 3.0)
        sends = self.ask(machine, Agreed.OPEN, 3.0, Path(5, RIGHT), port)
        (answer,) = [send for send in sends if parsed(send).kind is Kind.ACK]
        assert parsed(answer).agreed is (Agreed.HOPELESS if hopeless else Agreed.OPENED)

    def test_who_is_controlling_is_not_told_what_to_do(self) -> None:
        machine = make(LARGE)
        data = hello(SMALL, echo=LARGE, serial=9, agreed=Agreed.SILENT)
        machine.receive_datagram(data, TO_RIGHT, 1.0)
        answers = [parsed(send) for send in sent(machine) if parsed(send).kind is Kind.ACK]
        assert [answer.agreed for answer in answers] == [None]

    def test_nor_who_is_connected(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(hello(LARGE, echo=SMALL, nominate=True), TO_RIGHT, 0.5)
        sent(machine)
        (ack,) = self.ask(machine, Agreed.OPEN, 1.0, TO_RIGHT)
        assert parsed(ack).agreed is None


class TestNominating:
    OTHER = Path(1, Endpoint("2001:db8::7", 40001))

    def test_another_path_has_its_turn_when_one_stays_unconfirmed(self) -> None:
        machine = make(LARGE, TO_RIGHT, self.OTHER)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE), self.OTHER, 0.05)
        paths = [send.path for send in sent(machine) if parsed(send).nominate]
        paths += [send.path for _, send in run(machine, 3.0) if parsed(send).nominate]
        assert paths[:12] == [TO_RIGHT] * 12
        assert paths[12] == self.OTHER
        # The first one is as good as it was.
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), TO_RIGHT, 3.0)
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert found.path == TO_RIGHT

    def test_a_path_that_was_not_nominated_is_not_confirmed(self) -> None:
        machine = make(LARGE, TO_RIGHT, self.OTHER)
        machine.receive_datagram(ack(SMALL, echo=LARGE), TO_RIGHT, 0.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), self.OTHER, 0.1)
        assert not any(isinstance(event, Connected) for event in events(machine))

    def test_a_peer_that_changes_its_mind_is_no_exception(self) -> None:
        """None of the paths that work will do any more, and the nomination goes on."""
        machine = make(LARGE)
        machine.receive_datagram(ack(SMALL, echo=LARGE, mode=Mode.PLAIN), MOVED, 0.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE, mode=Mode.PORTS), MOVED, 0.1)
        nominations = [send for _, send in run(machine, 20.0) if parsed(send).nominate]
        assert {send.path for send in nominations} == {MOVED}

    def test_more_paths_than_anybody_needs_are_not_remembered(self) -> None:
        machine = make(SMALL)
        for port in range(1024, 1224):
            path = Path(0, RIGHT._replace(port=port))
            machine.receive_datagram(ack(LARGE, echo=SMALL), path, 0.1)
        validated = [event for event in events(machine) if isinstance(event, PathValidated)]
        assert len(validated) == 63
        assert len(machine._routes) == 64

    def test_what_is_asked_on_a_path_that_is_not_remembered_is_not_done(self) -> None:
        machine = make(SMALL, mode=Mode.PORTS)
        for port in range(1024, 1224):
            path = Path(0, RIGHT._replace(port=port))
            asks = hello(LARGE, echo=SMALL, mode=Mode.PORTS, agreed=Agreed.OPEN)
            machine.receive_datagram(asks, path, 0.1)
            answers = [parsed(send) for send in sent(machine) if send.path == path]
            assert [answer.agreed for answer in answers] == [
                Agreed.OPENED if port < 1024 + 63 else None
            ]

    def test_a_new_path_after_all_is_over_is_not_needed(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(hello(LARGE, echo=SMALL, nominate=True), TO_RIGHT, 0.1)
        events(machine)
        machine.receive_datagram(ack(LARGE, echo=SMALL), MOVED, 0.2)
        machine.receive_datagram(hello(LARGE, echo=SMALL, nominate=True), MOVED, 0.2)
        assert not any(isinstance(event, PathValidated | Connected) for event in events(machine))
        assert len(machine._routes) == 1


class TestInsisting:
    def test_the_controlled_side_insists_on_what_works(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(ack(LARGE, echo=SMALL), MOVED, 0.2)
        sent(machine)
        times = [at for at, send in run(machine, 5.1) if send.path == MOVED]
        assert [at for at in times if at < 2.05] == [
            pytest.approx(0.2 + 0.1 * number) for number in range(1, 19)
        ]
        # Slowly then, and it does not end.
        assert [at for at in times if at > 2.2] == [pytest.approx(3.1), pytest.approx(4.1)]

    def test_the_ladder_pauses_for_five_seconds(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(ack(LARGE, echo=SMALL), MOVED, 0.2)
        sends = run(machine, 6.0)
        assert min(at for at, send in sends if send.path == TO_RIGHT) == pytest.approx(5.2)

    def test_where_a_probe_arrived_it_insists_for_a_while(self) -> None:
        machine = climber(SMALL)
        climb(machine, 3.0)
        path = Path(5, RIGHT)
        machine.receive_datagram(hello(LARGE), path, 3.0)
        answers = sent(machine)
        assert [(send.path, parsed(send).kind) for send in answers] == [
            (path, Kind.ACK),
            (path, Kind.HELLO),
        ]
        hellos = [
            at
            for at, effect in climb(machine, 10.0, since=3.0)
            if isinstance(effect, Send) and effect.path == path and effect.ttl is None
        ]
        assert len(hellos) == 7
        assert hellos[-1] == pytest.approx(3.7)

    def test_on_eight_paths_at_most(self) -> None:
        machine = climber(SMALL)
        climb(machine, 3.5)
        for number in range(3, 33):
            machine.receive_datagram(hello(LARGE), Path(number, RIGHT), 3.5)
        hellos = [send for send in sent(machine) if parsed(send).kind is Kind.HELLO]
        assert len(hellos) == 8

    def test_a_connected_one_does_not(self) -> None:
        machine = make(SMALL)
        machine.receive_datagram(hello(LARGE, echo=SMALL, nominate=True), TO_RIGHT, 0.1)
        sent(machine)
        machine.receive_datagram(hello(MIDDLE), TO_RIGHT, 0.2)
        assert [parsed(send).kind for send in sent(machine)] == [Kind.ACK]


class TestLadder:
    def test_what_it_does_is_carried_out(self) -> None:
        machine = climber(LARGE)
        done = climb(machine, 130.0)
        # 253 of the spray, and one of the hop rung a minute.
        assert sum(isinstance(effect, OpenSocket) for _, effect in done) == 253 + 2
        searches = [
            effect
            for _, effect in done
            if isinstance(effect, Send) and effect.path not in (TO_RIGHT, Path(0, RIGHT))
        ]
        assert all(parsed(send).astray for send in searches)
        assert {parsed(send).kind for send in searches} == {Kind.HELLO}
        started = [event.rung for event in events(machine) if isinstance(event, RungStarted)]
        assert started[:3] == [Rung.SPRAY, Rung.QUIET, Rung.HOP]
        assert set(machine.evidence.rungs) == {Rung.SPRAY, Rung.QUIET, Rung.HOP}

    def test_all_sockets_but_the_used_one_are_closed_when_it_connects(self) -> None:
        machine = climber(LARGE)
        climb(machine, 3.0)
        path = Path(5, RIGHT)
        machine.receive_datagram(ack(SMALL, echo=LARGE, observed=LEFT), path, 3.0)
        machine.receive_datagram(ack(SMALL, echo=LARGE, nominate=True), path, 3.1)
        closed = [e.number for e in machine.effects(3.1) if isinstance(e, CloseSocket)]
        assert len(closed) > 200
        assert 5 not in closed
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert (found.path, found.rung, found.agreed) == (path, Rung.SPRAY, False)
        assert machine.evidence.openings_sent > 200
        assert machine.get_timer() is None
        # One that was still on its way is not wanted any more.
        machine.socket_opened(999, 1, 3.2)
        assert list(machine.effects(3.2)) == [CloseSocket(999)]

    def test_all_are_closed_at_the_deadline_and_the_search_is_reported(self) -> None:
        machine = climber(LARGE)
        opened = {e.number for _, e in climb(machine, 179.9) if isinstance(e, OpenSocket)}
        machine.handle_timer(180.0)
        closed = {e.number for e in machine.effects(180.0) if isinstance(e, CloseSocket)}
        assert closed == opened
        assert machine.evidence.ports_tried > 2000
        assert machine.evidence.openings_sent > 1000
        machine.socket_opened(5, 1, 181.0)
        machine.socket_failed(6, 181.0)
        assert list(machine.effects(181.0)) == [CloseSocket(5)]

    def test_without_any_path_there_is_only_the_deadline(self) -> None:
        machine = Handshake(HandshakeSettings(LARGE, 5.0), (), 0.0)
        assert machine.get_timer() == 5.0

    def test_a_socket_that_fails_is_done_without(self) -> None:
        machine = climber(LARGE, hard=Hard.AUTO)
        machine.handle_timer(0.5)
        (asked,) = [e for e in machine.effects(0.5) if isinstance(e, OpenSocket)]
        machine.socket_failed(asked.number, 0.5)
        later = climb(machine, 5.0)
        assert not any(isinstance(effect, OpenSocket) for _, effect in later)
        assert len(later) > 300

    def test_refusals_of_probes_are_counted_and_teach_the_ttl(self) -> None:
        machine = climber(LARGE)
        climb(machine, 3.0)
        probe = Path(0, RIGHT._replace(port=5000))
        refused = NetworkError(ErrorKind.PORT_UNREACHABLE, 111, "203.0.113.2")
        machine.receive_error(refused, probe, 3.0)
        exceeded = NetworkError(ErrorKind.TIME_EXCEEDED, 113, "192.168.0.1")
        machine.receive_error(exceeded, Path(5, RIGHT), 3.0)
        assert machine.evidence.refused_probes == 1
        assert not any(isinstance(event, PeerRefused) for event in events(machine))
        later = climb(machine, 40.0, since=3.0)
        ttls = {e.ttl for at, e in later if isinstance(e, Send) and at > 28.0 and e.path.socket}
        assert ttls - {None} <= {3, 4, 7}
        assert 3 in ttls or 4 in ttls

    def test_a_peer_that_sprays_is_found_by_its_probe(self) -> None:
        """A probe arrives from another port on the main socket: that path connects."""
        machine = climber(SMALL)
        climb(machine, 3.0)
        probe = Path(0, RIGHT._replace(port=5000))
        machine.receive_datagram(hello(LARGE, astray=True), probe, 3.0)
        (answer,) = sent(machine)
        assert (answer.path, parsed(answer).kind) == (probe, Kind.ACK)
        data = hello(LARGE, echo=SMALL, nominate=True, observed=LEFT, round_trip=20_000)
        machine.receive_datagram(data, probe, 3.1)
        (found,) = [event for event in events(machine) if isinstance(event, Connected)]
        assert found.path == probe
        assert found.round_trip == pytest.approx(0.02)
        assert not found.agreed
