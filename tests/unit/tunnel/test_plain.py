from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import pytest

from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.punch.handshake import Handshake, HandshakeSettings
from nat_traverse.punch.legacy import GRACE
from nat_traverse.punch.machine import Connected, Send
from nat_traverse.tunnel.plain import (
    CONSENT,
    LEGACY_QUIET,
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
    Counts,
    Kind,
    Message,
    Reason,
    decode,
    encode,
)
from support.pair import TO_LEFT, TO_RIGHT, Link, Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nat_traverse.punch.machine import Event as PunchEvent

OURS = b"\xff" * 16
PEERS = bytes(16)
FOREIGN = b"\x80" * 16
OTHER_PATH = Path(1, Endpoint("2001:db8::7", 40001))
STRANGER = Path(1, Endpoint("2001:db8::66", 40001))

LINGER = 3.0  # s that an end waits for the other one's last word

Kinds = TypeVar("Kinds", bound=Event)


# -- one tunnel ---------------------------------------------------------------------------------


def hello(nonce: bytes = PEERS, *, echo: bytes | None = OURS, **fields: object) -> bytes:
    return encode(Message(Kind.HELLO, nonce, echo=echo, **fields), size=HELLO_SIZE)  # type: ignore[arg-type]


def ack(nonce: bytes = PEERS, *, echo: bytes | None = OURS, **fields: object) -> bytes:
    return encode(Message(Kind.ACK, nonce, echo=echo, **fields))  # type: ignore[arg-type]


def handshake(now: float = 0.0) -> Handshake:
    """A handshake of the controlling side, connected to a peer of today."""
    machine = Handshake(HandshakeSettings(OURS), (TO_RIGHT, OTHER_PATH), now)
    machine.receive_datagram(ack(), TO_RIGHT, now)
    machine.receive_datagram(ack(nominate=True), TO_RIGHT, now)
    return machine


def tunnel_over(machine: Handshake, now: float, room: int = 0) -> PlainTunnel:
    connected = next(event for event in iter(machine.next_event, None) if type(event) is Connected)
    list(machine.effects(now))
    return PlainTunnel(machine, connected, now, room=room)


def today(now: float = 0.0, *, room: int = 0) -> PlainTunnel:
    return tunnel_over(handshake(now), now, room)


def legacy(now: float = 0.0) -> PlainTunnel:
    earlier = now - 2 * GRACE  # it is believed after a moment only
    machine = Handshake(HandshakeSettings(OURS), (TO_RIGHT,), earlier)
    machine.receive_datagram(HELLO_MAGIC, TO_RIGHT, earlier)
    machine.receive_datagram(ACK_MAGIC, TO_RIGHT, earlier)
    machine.handle_timer(now)
    return tunnel_over(machine, now)


def events(tunnel: PlainTunnel) -> list[Event]:
    return list(iter(tunnel.next_event, None))


def sends(machine: PlainTunnel | Handshake, now: float) -> list[Send]:
    """What is to be sent; of sockets to be opened or closed there is nothing without a ladder."""
    found = list(machine.effects(now))
    assert all(isinstance(effect, Send) for effect in found)
    return [effect for effect in found if isinstance(effect, Send)]


def sent(tunnel: PlainTunnel) -> list[Message]:
    """What it sent since the last look; every datagram of its own is a message."""
    found: list[Message] = []
    for send in sends(tunnel, 0.0):
        message = decode(send.data)
        assert isinstance(message, Message)
        assert send.ttl is None
        assert len(send.data) >= HELLO_SIZE or message.kind is Kind.ACK
        found.append(message)
    return found


def run(tunnel: PlainTunnel, until: float) -> list[tuple[float, Message]]:
    """Call it whenever it asks to be called; returns what it sent, and when."""
    found: list[tuple[float, Message]] = []
    for _ in range(10_000):
        at = tunnel.get_timer()
        if at is None or at > until:
            return found
        tunnel.handle_timer(at)
        found += [(at, message) for message in sent(tunnel)]
    raise AssertionError("it does not come to rest")


def refusal(kind: ErrorKind = ErrorKind.PORT_UNREACHABLE) -> NetworkError:
    return NetworkError(kind, errno.ECONNREFUSED, "203.0.113.2")


def times(found: list[tuple[float, Message]]) -> list[float]:
    return [at for at, _ in found]


class TestOurEndOfData:
    def test_is_said_with_the_count_and_repeated_ever_more_slowly(self) -> None:
        tunnel = today()
        tunnel.note_sent(3, 4000, 0.5)
        tunnel.finish(1.0)
        tunnel.finish(1.0)
        (first,) = sent(tunnel)
        assert (first.kind, first.finished) == (Kind.HELLO, Counts(3, 4000))
        assert (first.nonce, first.echo) == (OURS, PEERS)
        found = run(tunnel, 9.0)
        assert {message.finished for _, message in found} == {Counts(3, 4000)}
        gaps = [later - earlier for earlier, later in pairwise([1.0, *times(found)])]
        assert gaps[:3] == pytest.approx([0.1, 0.15, 0.225])
        assert gaps == sorted(gaps)
        assert gaps[-1] == pytest.approx(1.0)
        assert len({message.serial for _, message in found}) == len(found)

    def test_is_known_by_the_peers_answer(self) -> None:
        tunnel = today()
        tunnel.note_sent(3, 4000, 0.5)
        tunnel.finish(1.0)
        (asked,) = sent(tunnel)
        answer = ack(serial=asked.serial, received=Counts(2, 2600))
        for _ in range(2):
            assert tunnel.take_message(answer, TO_RIGHT, 1.02)
        assert events(tunnel) == [DeliveryKnown(Counts(3, 4000), Counts(2, 2600))]
        assert tunnel.delivered
        assert run(tunnel, 9.0) == []

    def test_answers_that_nobody_asked_for_mean_nothing(self) -> None:
        tunnel = today()
        assert tunnel.take_message(ack(received=Counts(0, 0)), TO_RIGHT, 1.0)
        tunnel.finish(2.0)
        stale = ack(echo=FOREIGN, received=Counts(9, 9))
        assert tunnel.take_message(stale, TO_RIGHT, 2.1)
        assert events(tunnel) == []
        assert not tunnel.delivered

    def test_a_lost_answer_is_made_good_by_the_peers_last_word(self) -> None:
        tunnel = today()
        tunnel.note_sent(1, 5, 0.5)
        tunnel.finish(1.0)
        complete = hello(closing=Reason.COMPLETE, received=Counts(1, 5))
        tunnel.take_message(hello(finished=Counts(0, 0)), TO_RIGHT, 1.1)
        tunnel.take_message(complete, TO_RIGHT, 1.2)
        assert events(tunnel) == [
            PeerFinished(Counts(0, 0), Counts(0, 0)),
            DeliveryKnown(Counts(1, 5), Counts(1, 5)),
            Ended(),
        ]


class TestThePeersEndOfData:
    def test_is_acknowledged_at_once_when_all_is_here(self) -> None:
        tunnel = today()
        tunnel.note_received(3, 4000, 0.5)
        tunnel.take_message(hello(finished=Counts(3, 4000), serial=7), TO_RIGHT, 1.0)
        (answer,) = sent(tunnel)
        assert (answer.kind, answer.serial, answer.received) == (Kind.ACK, 7, Counts(3, 4000))
        assert events(tunnel) == [PeerFinished(Counts(3, 4000), Counts(3, 4000))]
        assert tunnel.peer_finished

    def test_is_acknowledged_again_when_it_is_repeated(self) -> None:
        tunnel = today()
        for serial in (7, 8, 9):
            tunnel.take_message(hello(finished=Counts(0, 0), serial=serial), TO_RIGHT, 1.0)
        assert [message.serial for message in sent(tunnel)] == [7, 8, 9]
        assert len(events(tunnel)) == 1

    def test_waits_for_stragglers(self) -> None:
        tunnel = today()
        tunnel.note_received(1, 1400, 1.0)
        tunnel.take_message(hello(finished=Counts(3, 4200), serial=1), TO_RIGHT, 1.01)
        tunnel.note_received(1, 1400, 1.4)
        tunnel.take_message(hello(finished=Counts(3, 4200), serial=2), TO_RIGHT, 1.45)
        assert (sent(tunnel), events(tunnel)) == ([], [])
        ((at, answer),) = run(tunnel, 5.0)
        assert at == pytest.approx(1.9)
        assert (answer.serial, answer.received) == (2, Counts(2, 2800))
        assert events(tunnel) == [PeerFinished(Counts(3, 4200), Counts(2, 2800))]

    def test_the_last_straggler_ends_the_waiting(self) -> None:
        tunnel = today()
        tunnel.take_message(hello(finished=Counts(1, 5), serial=1), TO_RIGHT, 1.0)
        tunnel.note_received(1, 5, 1.05)
        tunnel.take_message(hello(finished=Counts(1, 5), serial=2), TO_RIGHT, 1.1)
        assert events(tunnel) == [PeerFinished(Counts(1, 5), Counts(1, 5))]

    def test_that_overtakes_the_data_after_a_long_silence_waits_too(self) -> None:
        tunnel = today()
        tunnel.note_received(1, 1, 1.0)
        tunnel.take_message(hello(finished=Counts(2, 6)), TO_RIGHT, 9.0)
        assert events(tunnel) == []
        tunnel.note_received(1, 5, 9.01)
        run(tunnel, 9.9)
        assert events(tunnel) == [PeerFinished(Counts(2, 6), Counts(2, 6))]

    def test_what_comes_behind_it_is_not_counted_any_more(self) -> None:
        tunnel = today()
        tunnel.take_message(hello(finished=Counts(1, 5), serial=1), TO_RIGHT, 1.0)
        run(tunnel, 2.0)
        tunnel.note_received(1, 5, 3.0)
        tunnel.take_message(hello(finished=Counts(1, 5), serial=2), TO_RIGHT, 3.1)
        (again,) = sent(tunnel)
        assert again.received == tunnel.received == Counts(0, 0)

    def test_more_than_was_sent_is_told_as_it_is(self) -> None:
        tunnel = today()
        tunnel.note_received(4, 20, 0.5)
        tunnel.take_message(hello(finished=Counts(3, 15)), TO_RIGHT, 1.0)
        assert events(tunnel) == [PeerFinished(Counts(3, 15), Counts(4, 20))]

    def test_a_timer_for_stragglers_without_an_end_does_nothing(self) -> None:
        tunnel = today()
        tunnel._check_stragglers(1.0)
        assert (sent(tunnel), events(tunnel)) == ([], [])


class TestBothEnds:
    def finish_both(self, tunnel: PlainTunnel, now: float) -> None:
        tunnel.finish(now)
        (asked,) = sent(tunnel)
        tunnel.take_message(hello(finished=Counts(0, 0)), TO_RIGHT, now)
        tunnel.take_message(ack(serial=asked.serial, received=Counts(0, 0)), TO_RIGHT, now)
        events(tunnel)

    def test_say_so_twice_and_linger(self) -> None:
        tunnel = today()
        self.finish_both(tunnel, 1.0)
        said = [message.closing for message in sent(tunnel) if message.kind is Kind.HELLO]
        assert said == [Reason.COMPLETE] * 2
        assert events(tunnel) == []
        assert run(tunnel, 1.0 + LINGER - 0.01) == []
        assert events(tunnel) == []
        run(tunnel, 1.0 + LINGER)
        assert events(tunnel) == [Ended()]
        assert tunnel.get_timer() is None

    def test_answer_while_they_linger(self) -> None:
        tunnel = today()
        self.finish_both(tunnel, 1.0)
        sent(tunnel)
        tunnel.take_message(hello(finished=Counts(0, 0), serial=9), TO_RIGHT, 2.0)
        assert [(each.serial, each.received) for each in sent(tunnel)] == [(9, Counts(0, 0))]

    def test_end_at_once_when_the_other_says_so_too_and_repeat_their_word(self) -> None:
        tunnel = today()
        self.finish_both(tunnel, 1.0)
        sent(tunnel)
        complete = hello(closing=Reason.COMPLETE, received=Counts(0, 0))
        tunnel.take_message(complete, TO_RIGHT, 1.01)
        assert events(tunnel) == [Ended()]
        assert {message.closing for message in sent(tunnel)} == {Reason.COMPLETE}
        # From here on it is silent, whatever comes.
        for data in (complete, hello(), hello(finished=Counts(0, 0)), ack(received=Counts(0, 0))):
            assert tunnel.take_message(data, TO_RIGHT, 1.02)
        tunnel.handle_timer(100.0)
        tunnel.receive_error(refusal(), 100.0)
        tunnel.finish(100.0)
        tunnel.close(Reason.STOPPED)
        assert (sent(tunnel), events(tunnel), tunnel.get_timer()) == ([], [], None)

    @pytest.mark.parametrize("how", ["refusals", "silence"])
    def test_a_peer_that_did_not_wait_for_our_last_word_is_no_failure(self, how: str) -> None:
        tunnel = today()
        self.finish_both(tunnel, 40.0)
        if how == "refusals":
            tunnel.receive_error(refusal(), 40.1)
            tunnel.receive_error(refusal(), 40.7)
            assert events(tunnel) == [Ended()]
        else:
            run(tunnel, 100.0)
            assert events(tunnel) == [Ended()]

    @pytest.mark.parametrize("received", [None, Counts(0, 0)])
    def test_nothing_is_complete_before_we_finished(self, received: Counts | None) -> None:
        tunnel = today()
        tunnel.note_sent(1, 5, 0.5)
        if received is None:
            tunnel.finish(1.0)
        data = hello(closing=Reason.COMPLETE, received=received)
        tunnel.take_message(data, TO_RIGHT, 1.0)
        assert events(tunnel) == [PeerClosed(Reason.STOPPED, received), Ended()]


class TestClosing:
    @pytest.mark.parametrize("reason", [Reason.NOT_READING, Reason.STOPPED])
    def test_of_the_peer_ends_it_and_tells_what_it_had(self, reason: Reason) -> None:
        tunnel = today()
        for _ in range(2):
            data = hello(closing=reason, received=Counts(1, 7))
            assert tunnel.take_message(data, TO_RIGHT, 1.0)
        assert events(tunnel) == [PeerClosed(reason, Counts(1, 7)), Ended()]
        assert sent(tunnel) == []

    @pytest.mark.parametrize("reason", [Reason.NOT_READING, Reason.STOPPED])
    def test_of_ours_is_said_twice(self, reason: Reason) -> None:
        tunnel = today()
        tunnel.note_received(2, 9, 0.5)
        tunnel.close(reason)
        tunnel.close(reason)
        said = [(message.closing, message.received) for message in sent(tunnel)]
        assert said == [(reason, Counts(2, 9))] * 2
        assert events(tunnel) == [Ended()]
        assert tunnel.get_timer() is None


class TestStayingAlive:
    def answer(self, tunnel: PlainTunnel, until: float) -> list[float]:
        """Answer every keepalive at once; returns when they came."""
        found = []
        while (at := tunnel.get_timer()) is not None and at <= until:
            tunnel.handle_timer(at)
            for message in sent(tunnel):
                found.append(at)
                tunnel.take_message(ack(serial=message.serial), TO_RIGHT, at)
        return found

    def test_the_first_after_ten_seconds_then_every_fifteen(self) -> None:
        tunnel = today()
        assert self.answer(tunnel, 60.0) == pytest.approx([10.0, 25.0, 40.0, 55.0])
        assert events(tunnel) == []

    def test_unanswered_it_is_repeated_every_second_until_the_consent_ends(self) -> None:
        tunnel = today()
        assert times(run(tunnel, 29.9)) == pytest.approx([float(at) for at in range(10, 30)])
        assert events(tunnel) == []
        run(tunnel, CONSENT)
        assert events(tunnel) == [PeerVanished(errno.ETIMEDOUT), Ended()]

    def test_data_is_an_answer_too(self) -> None:
        tunnel = today()
        assert times(run(tunnel, 10.5)) == [10.0]
        tunnel.note_received(1, 1, 10.7)
        assert run(tunnel, 24.9) == []
        assert times(run(tunnel, 25.0)) == [25.0]

    def test_consent_counts_from_the_last_sign(self) -> None:
        tunnel = today(100.0)
        tunnel.note_received(1, 1, 111.5)
        tunnel.take_message(hello(), TO_RIGHT, 117.25)
        run(tunnel, 147.2)
        assert events(tunnel) == []
        run(tunnel, 147.25)
        assert events(tunnel) == [PeerVanished(errno.ETIMEDOUT), Ended()]

    @pytest.mark.parametrize("seed", range(50))
    def test_no_sum_of_floats_keeps_a_timer_from_ending(self, seed: int) -> None:
        chance = random.Random(seed)
        start = chance.uniform(0, 1e6)
        tunnel, old = today(start), legacy(start)
        at = start + chance.uniform(0, 3)
        tunnel.note_received(1, 1, at)
        tunnel.take_message(hello(finished=Counts(2, 2)), TO_RIGHT, at)
        old.finish(start)
        old.note_received(1, 1, at)
        run(tunnel, at + CONSENT + 0.001)
        run(old, at + LEGACY_QUIET + 0.001)
        assert events(tunnel)[1:] == [PeerVanished(errno.ETIMEDOUT), Ended()]
        assert events(old) == [Ended()]

    def test_the_peers_is_answered_and_the_answer_is_smaller(self) -> None:
        tunnel = today()
        question = hello(serial=77)
        assert tunnel.take_message(question, TO_RIGHT, 1.0)
        (send,) = sends(tunnel, 1.0)
        answer = decode(send.data)
        assert isinstance(answer, Message)
        assert (answer.kind, answer.serial, answer.echo) == (Kind.ACK, 77, PEERS)
        assert len(send.data) < len(question)
        assert send.path == TO_RIGHT

    def test_everything_due_at_once_is_done_once(self) -> None:
        tunnel = today()
        tunnel.finish(0.0)
        sent(tunnel)
        tunnel.handle_timer(1000.0)
        assert events(tunnel) == [PeerVanished(errno.ETIMEDOUT), Ended()]
        assert tunnel.get_timer() is None


class TestRefusals:
    def test_late_ones_of_the_time_before_are_no_sign(self) -> None:
        tunnel = today(5.0)
        for now in (5.1, 5.7, 6.3, 6.9):
            tunnel.receive_error(refusal(), now)
        assert events(tunnel) == []

    def test_two_half_a_second_apart_end_it(self) -> None:
        tunnel = today()
        for now in (20.0, 20.1, 20.4):
            tunnel.receive_error(refusal(), now)
        assert events(tunnel) == []
        tunnel.receive_error(refusal(), 20.5)
        assert events(tunnel) == [PeerVanished(errno.ECONNREFUSED), Ended()]

    def test_the_first_makes_it_ask_again_soon(self) -> None:
        tunnel = today()
        assert times(run(tunnel, 10.0)) == [10.0]
        tunnel.receive_error(refusal(), 10.02)
        assert times(run(tunnel, 10.6)) == pytest.approx([10.52])
        tunnel.receive_error(refusal(), 10.54)
        assert events(tunnel) == [PeerVanished(errno.ECONNREFUSED), Ended()]

    @pytest.mark.parametrize("sign", ["data", "message"])
    def test_a_sign_of_life_between_them_makes_them_two_firsts(self, sign: str) -> None:
        tunnel = today()
        tunnel.receive_error(refusal(), 20.0)
        if sign == "data":
            tunnel.note_received(1, 1, 20.2)
        else:
            tunnel.take_message(ack(), TO_RIGHT, 20.2)
        tunnel.receive_error(refusal(), 20.6)
        assert events(tunnel) == []
        tunnel.receive_error(refusal(), 21.2)
        assert events(tunnel)[0] == PeerVanished(errno.ECONNREFUSED)

    @pytest.mark.parametrize("kind", [kind for kind in ErrorKind if "PORT" not in kind.name])
    def test_other_errors_say_nothing_about_the_peer(self, kind: ErrorKind) -> None:
        tunnel = today()
        for now in (20.0, 20.6, 21.2):
            tunnel.receive_error(refusal(kind), now)
        assert events(tunnel) == []

    def test_end_a_tunnel_to_an_old_peer_too(self) -> None:
        tunnel = legacy()
        tunnel.receive_error(refusal(), 20.0)
        tunnel.receive_error(refusal(), 500.0)
        assert events(tunnel) == [PeerVanished(errno.ECONNREFUSED), Ended()]
        assert sent(tunnel) == []


class TestLegacyPeer:
    def test_never_gets_a_byte_of_ours(self) -> None:
        tunnel = legacy()
        assert tunnel.is_legacy
        tunnel.note_sent(1000, 1_400_000, 0.1)
        tunnel.take_message(hello(PEERS, echo=None), TO_RIGHT, 0.2)
        tunnel.take_message(HELLO_MAGIC, TO_RIGHT, 0.3)
        tunnel.receive_error(refusal(), 3.0)
        assert run(tunnel, 10_000.0) == []
        assert events(tunnel) == []
        tunnel.finish(10_000.0)
        tunnel.close(Reason.STOPPED)
        assert (sent(tunnel), events(tunnel)) == ([], [Ended()])

    def test_can_always_be_sent_more(self) -> None:
        tunnel = legacy()
        tunnel.note_sent(10**6, 10**9, 0.1)
        assert tunnel.has_room

    def test_is_listened_to_after_our_end_until_it_is_quiet(self) -> None:
        tunnel = legacy()
        tunnel.finish(10.0)
        for now in (10.9, 11.8, 12.7):
            run(tunnel, now)
            tunnel.note_received(1, 10, now)
        run(tunnel, 13.69)
        assert events(tunnel) == []
        run(tunnel, 13.7)
        assert events(tunnel) == [Ended()]

    def test_late_magics_are_dropped_for_five_seconds_only(self) -> None:
        tunnel = legacy(100.0)
        for magic in (HELLO_MAGIC, ACK_MAGIC):
            assert tunnel.take_message(magic, TO_RIGHT, 104.9)
            assert not tunnel.take_message(magic, TO_RIGHT, 105.1)

    def test_everything_else_is_data_even_our_own_messages(self) -> None:
        tunnel = legacy()
        for data in (hello(PEERS), ack(PEERS), hello(OURS), HELLO_MAGIC + b"\n"):
            assert not tunnel.take_message(data, TO_RIGHT, 1.0)
        assert events(tunnel) == []


class TestDataThatLooksLikeAMessage:
    @pytest.mark.parametrize(
        "data",
        [
            MAGIC_PREFIX,
            HELLO_MAGIC,
            ACK_MAGIC,
            HELLO_MAGIC + b"\n",
            ACK_MAGIC + bytes(300),
            hello(FOREIGN, echo=b"\x81" * 16, finished=Counts(0, 0)),
            hello(FOREIGN, echo=PEERS, closing=Reason.STOPPED),
            ack(FOREIGN, echo=b"\x81" * 16),
            ack(FOREIGN, echo=None),
            hello(FOREIGN, echo=None)[:37],
        ],
    )
    def test_is_data_when_it_names_nobody_here(self, data: bytes) -> None:
        tunnel = today()
        assert not tunnel.take_message(data, TO_RIGHT, 1.0)
        assert (sent(tunnel), events(tunnel)) == ([], [])

    def test_our_own_come_back_and_are_not_data(self) -> None:
        tunnel = today()
        tunnel.finish(1.0)
        ours = [send.data for send in sends(tunnel, 1.0)]
        tunnel.take_message(hello(serial=1), TO_RIGHT, 1.0)
        ours += [send.data for send in sends(tunnel, 1.0)]
        for data in [*ours, hello(OURS, echo=None)]:
            assert tunnel.take_message(data, TO_RIGHT, 1.1)
        assert (sent(tunnel), events(tunnel)) == ([], [])
        # Nor are they a sign of the peer.
        run(tunnel, CONSENT + 1.0)
        assert PeerVanished(errno.ETIMEDOUT) in events(tunnel)

    def test_a_restarted_peer_is_told_once_and_not_answered(self) -> None:
        tunnel = today()
        for now in (1.0, 1.1, 1.2):
            assert tunnel.take_message(hello(FOREIGN, echo=None), TO_RIGHT, now)
        assert events(tunnel) == [PeerRestarted()]
        assert sent(tunnel) == []

    def test_answers_of_a_restarted_peer_are_neither_data_nor_a_sign_of_life(self) -> None:
        tunnel = today()
        while (at := tunnel.get_timer()) is not None:
            tunnel.handle_timer(at)
            for question in sent(tunnel):
                answer = ack(FOREIGN, echo=OURS, serial=question.serial)
                assert tunnel.take_message(answer, TO_RIGHT, at)
        assert at is None
        assert events(tunnel) == [PeerVanished(errno.ETIMEDOUT), Ended()]

    def test_a_stranger_at_another_socket_is_no_restarted_peer(self) -> None:
        tunnel = today()
        assert tunnel.take_message(hello(FOREIGN, echo=None), STRANGER, 1.0)
        assert events(tunnel) == []

    def test_a_message_of_another_version_is_data(self) -> None:
        tunnel = today()
        data = bytearray(hello(FOREIGN, echo=None))
        data[20] = 9
        assert not tunnel.take_message(bytes(data), TO_RIGHT, 1.0)

    def test_random_changes_are_taken_or_not_and_never_more(self) -> None:
        chance = random.Random(4)
        bases = [hello(), hello(finished=Counts(1, 1)), ack(serial=1), hello(mark=True, serial=2)]
        for _ in range(5000):
            tunnel = today()
            data = bytearray(chance.choice(bases))
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(20, len(data))] = chance.randrange(256)
            tunnel.take_message(bytes(data[: chance.randrange(21, len(data))]), TO_RIGHT, 1.0)
            list(sends(tunnel, 1.0))
            tunnel.take_message(bytes(data), TO_RIGHT, 1.0)
            assert all(len(send.data) <= len(data) for send in sends(tunnel, 1.0))


class TestTheHandshakesRest:
    def test_a_repeated_confirmation_is_told_done_again(self) -> None:
        tunnel = today()
        tunnel.take_message(ack(nominate=True), TO_RIGHT, 0.2)
        assert [(each.kind, each.done) for each in sent(tunnel)] == [(Kind.ACK, True)] * 2

    def test_a_repeated_nomination_is_confirmed_again(self) -> None:
        machine = Handshake(HandshakeSettings(PEERS), (TO_RIGHT,), 0.0)
        nomination = hello(OURS, echo=PEERS, nominate=True, serial=1)
        machine.receive_datagram(nomination, TO_RIGHT, 0.1)
        tunnel = tunnel_over(machine, 0.1)
        assert tunnel.take_message(nomination, TO_RIGHT, 0.2)
        assert [(each.kind, each.nominate) for each in sent(tunnel)] == [(Kind.ACK, True)]

    def test_a_late_hello_on_another_path_is_answered_there(self) -> None:
        tunnel = today()
        assert tunnel.take_message(hello(echo=None, serial=3), OTHER_PATH, 0.2)
        answers = [send for send in sends(tunnel, 0.2) if send.data.startswith(ACK_MAGIC)]
        assert [send.path for send in answers] == [OTHER_PATH]
        assert tunnel.take_message(hello(echo=None), STRANGER, 0.3)
        assert list(sends(tunnel, 0.3)) == []

    def test_the_peers_messages_on_another_path_do_not_concern_the_tunnel(self) -> None:
        tunnel = today(room=1000)
        for message in (
            hello(finished=Counts(0, 0)),
            hello(mark=True),
            hello(closing=Reason.STOPPED, received=Counts(0, 0)),
        ):
            assert tunnel.take_message(message, OTHER_PATH, 0.2)
            answers = sends(tunnel, 0.2)
            assert [send.path for send in answers] == [OTHER_PATH]
            answer = decode(answers[0].data)
            assert isinstance(answer, Message)
            assert (answer.received, answer.room) == (None, None)
        assert events(tunnel) == []
        # Neither do they prove that the tunnel's own path is alive.
        for second in range(1, 40):
            tunnel.take_message(hello(serial=second), OTHER_PATH, float(second))
            tunnel.handle_timer(float(second))
        assert PeerVanished(errno.ETIMEDOUT) in events(tunnel)


class TestMarks:
    WINDOW = 64 * 1024

    def test_ask_whether_the_peer_can_take_more(self) -> None:
        tunnel = today()
        rooms = [tunnel.has_room]
        tunnel.note_sent(46, self.WINDOW, 1.0)
        rooms.append(tunnel.has_room)
        (mark,) = sent(tunnel)
        assert (mark.kind, mark.mark) == (Kind.HELLO, True)
        tunnel.take_message(ack(serial=mark.serial, room=1 << 20), TO_RIGHT, 1.02)
        assert [*rooms, tunnel.has_room] == [True, False, True]
        assert run(tunnel, 9.0) == []

    def test_are_repeated_while_unanswered(self) -> None:
        tunnel = today()
        tunnel.note_sent(46, self.WINDOW, 1.0)
        assert [message.mark for message in sent(tunnel)] == [True]
        found = [at for at, message in run(tunnel, 1.55) if message.mark]
        assert found == pytest.approx([1.1, 1.2, 1.3, 1.4, 1.5])
        tunnel.finish(1.6)
        assert not any(message.mark for _, message in run(tunnel, 9.0))

    def test_of_which_one_is_answered_leave_the_others_open(self) -> None:
        tunnel = today()
        tunnel.note_sent(46, self.WINDOW // 2, 1.0)
        (mark,) = sent(tunnel)
        tunnel.note_sent(10, 1000, 1.0)
        tunnel.take_message(ack(serial=mark.serial, room=1 << 20), TO_RIGHT, 1.02)
        assert [message.mark for _, message in run(tunnel, 1.15)] == [True]

    def test_of_the_peer_are_answered_with_the_room_there_is(self) -> None:
        tunnel = today(room=123_456)
        tunnel.take_message(hello(mark=True, serial=5), TO_RIGHT, 1.0)
        tunnel.take_message(hello(serial=6), TO_RIGHT, 1.0)
        assert [(each.serial, each.room) for each in sent(tunnel)] == [(5, 123_456), (6, None)]

    def test_of_the_peer_wait_while_our_output_is_read_slowly(self) -> None:
        tunnel = today(room=99)
        tunnel.set_congested(congested=True)
        for serial in (5, 6):
            tunnel.take_message(hello(mark=True, serial=serial), TO_RIGHT, 1.0)
        assert sent(tunnel) == []
        tunnel.take_message(hello(serial=7), TO_RIGHT, 1.1)  # a keepalive is answered all the same
        assert [each.serial for each in sent(tunnel)] == [7]
        for _ in range(2):
            tunnel.set_congested(congested=False)
        assert [(each.serial, each.room) for each in sent(tunnel)] == [(6, 99)]


# -- two tunnels and a network ------------------------------------------------------------------


@dataclass
class Plan:
    """What one end does, in seconds after connecting: sends so many datagrams, then finishes."""

    datagrams: int = 0
    from_: float = 0.0
    every: float = 0.05
    finish: float | None = 0.0


@dataclass
class User:
    """A handshake, then the tunnel, and what a relay would do with it; a `Machine`."""

    machine: Handshake
    name: bytes
    plan: Plan
    path: Path
    tunnel: PlainTunnel | None = None
    got: list[bytes] = field(default_factory=list)
    found: list[tuple[float, Event]] = field(default_factory=list)
    _script: list[tuple[float, int | None]] = field(default_factory=list)
    _data: list[Send] = field(default_factory=list)

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        tunnel = self.tunnel
        if tunnel is None:
            self.machine.receive_datagram(data, path, now)
            self._look(now)
        elif not self.ended and not (
            data.startswith(MAGIC_PREFIX) and tunnel.take_message(data, path, now)
        ):
            self._take(data, now)

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        raise NotImplementedError

    def socket_opened(self, number: int, port: int, now: float) -> None:
        self.machine.socket_opened(number, port, now)

    def socket_failed(self, number: int, now: float) -> None:
        self.machine.socket_failed(number, now)

    def handle_timer(self, now: float) -> None:
        if self.tunnel is None:
            self.machine.handle_timer(now)
            self._look(now)
            return
        self.tunnel.handle_timer(now)
        while self._script and self._script[0][0] <= now and not self.ended:
            _, number = self._script.pop(0)
            if number is None:
                self.tunnel.finish(now)
            else:
                data = b"%s %d" % (self.name, number)
                self._data.append(Send(data, self.path))
                self.tunnel.note_sent(1, len(data), now)

    def get_timer(self) -> float | None:
        if self.tunnel is None:
            return self.machine.get_timer()
        if self.ended:
            return None
        due = [at for at, _ in self._script[:1]]
        timer = self.tunnel.get_timer()
        return min(due if timer is None else [*due, timer], default=None)

    def effects(self, now: float) -> Iterator[Send]:
        while self._data:
            yield self._data.pop(0)
        yield from sends(self.tunnel or self.machine, now)
        while self.tunnel is not None and (event := self.tunnel.next_event()) is not None:
            self.found.append((now, event))

    def next_event(self) -> PunchEvent | None:
        return None

    @property
    def ended(self) -> bool:
        return any(isinstance(event, Ended) for _, event in self.found)

    def event(self, kind: type[Kinds]) -> Kinds:
        (event,) = (event for _, event in self.found if isinstance(event, kind))
        return event

    def _look(self, now: float) -> None:
        """Begin with the tunnel once the handshake has connected."""
        while (event := self.machine.next_event()) is not None:
            if isinstance(event, Connected):
                self.tunnel = PlainTunnel(self.machine, event, now)
                plan = self.plan
                times = [now + plan.from_ + n * plan.every for n in range(plan.datagrams)]
                self._script = [(at, number) for number, at in enumerate(times)]
                if plan.finish is not None:
                    self._script.append((max([now + plan.finish, *times]), None))
                for data in event.early_data:
                    self._take(data, now)

    def _take(self, data: bytes, now: float) -> None:
        assert self.tunnel is not None
        if not self.tunnel.peer_finished:
            self.got.append(data)
        self.tunnel.note_received(1, len(data), now)


def users(
    left: Plan, right: Plan, *, link: Link | None = None, seed: int = 1, until: float = 100.0
) -> tuple[User, User]:
    """Run two users against each other, and return them."""
    chance = random.Random(seed)
    nonces = chance.randbytes(16), chance.randbytes(16)

    def factory(name: bytes, nonce: bytes, path: Path, plan: Plan) -> Callable[[float], User]:
        return lambda now: User(Handshake(HandshakeSettings(nonce), (path,), now), name, plan, path)

    pair = Pair(
        factory(b"left", nonces[0], TO_RIGHT, left),
        factory(b"right", nonces[1], TO_LEFT, right),
        seed=seed,
        link=link,
    )
    pair.run(until)
    ends = pair.left.machine, pair.right.machine
    assert isinstance(ends[0], User)
    assert isinstance(ends[1], User)
    return ends[0], ends[1]


def agree(one: User, other: User) -> None:
    """Both ends came to the same result: nobody vanished, and the counts are the same."""
    for sender, receiver in ((one, other), (other, one)):
        assert receiver.tunnel is not None
        known, told = sender.event(DeliveryKnown), receiver.event(PeerFinished)
        assert known.sent == told.sent
        assert known.received == told.received == receiver.tunnel.received
        assert told.received.datagrams == len(receiver.got)
        assert told.received.octets == len(b"".join(receiver.got))
        assert sender.found[-1][1] == Ended()
        assert len(sender.found) == 3


class TestPairs:
    def test_nothing_to_say_ends_in_two_round_trips(self) -> None:
        one, other = users(Plan(), Plan())
        agree(one, other)
        assert all(user.found[-1][0] < 0.4 for user in (one, other))

    @pytest.mark.parametrize("first", ["left", "right"])
    def test_one_direction_may_end_long_before_the_other(self, first: str) -> None:
        short, long = Plan(3), Plan(200, every=0.5)
        one, other = users(*((short, long) if first == "left" else (long, short)), until=200.0)
        agree(one, other)
        early, late = (one, other) if first == "left" else (other, one)
        ended = next(at for at, event in early.found if isinstance(event, DeliveryKnown))
        assert ended < 1.0
        assert late.found[-1][0] > 99.0
        assert len(early.got) == 200
        assert len(late.got) == 3

    def test_idle_ends_stay_together_for_an_hour_in_spite_of_losses(self) -> None:
        hour = Plan(finish=3600.0)
        one, other = users(hour, hour, link=Link(loss=0.3), until=3700.0)
        agree(one, other)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_one_that_is_gone_ends_the_other(self, side: str) -> None:
        staying, leaving = Plan(finish=None), Plan(finish=1.0)
        plans = (leaving, staying) if side == "left" else (staying, leaving)
        one, other = users(*plans, until=3.0)
        gone, left = (one, other) if side == "left" else (other, one)
        assert gone.tunnel is not None
        assert left.tunnel is not None
        gone.tunnel.close(Reason.STOPPED)
        run(left.tunnel, 40.0)
        assert events(left.tunnel) == [PeerVanished(errno.ETIMEDOUT), Ended()]

    @pytest.mark.parametrize("seed", range(200))
    def test_both_agree_and_end_over_a_bad_link(self, seed: int) -> None:
        chance = random.Random(seed)
        plans = [
            Plan(
                chance.randint(0, 40),
                chance.uniform(0, 2),
                chance.uniform(0.001, 0.1),
                chance.uniform(0, 5),
            )
            for _ in range(2)
        ]
        link = Link(loss=0.3, latency=0.03, jitter=0.08, duplication=0.1)
        one, other = users(plans[0], plans[1], link=link, seed=seed)
        agree(one, other)

    @pytest.mark.parametrize("seed", range(20))
    def test_reordering_alone_loses_nothing(self, seed: int) -> None:
        link = Link(jitter=0.3)
        one, other = users(Plan(50, every=0.01), Plan(50, every=0.01), link=link, seed=seed)
        agree(one, other)
        assert sorted(one.got) == sorted(b"right %d" % number for number in range(50))
        assert sorted(other.got) == sorted(b"left %d" % number for number in range(50))
