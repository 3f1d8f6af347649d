"""Two encrypted tunnels in virtual time. Each failure names its seed, which is a parameter."""

from __future__ import annotations

import errno
import logging
import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.punch.handshake import Handshake, HandshakeSettings
from nat_traverse.tunnel.credit import FIRST_WINDOW
from nat_traverse.tunnel.engine import StreamData, StreamReset, StreamStopped, Terminated
from nat_traverse.tunnel.events import (
    Closing,
    CreditGrown,
    Ended,
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
from nat_traverse.tunnel.keys import public_of
from nat_traverse.tunnel.proof import Means
from nat_traverse.tunnel.quic import QuicEngine, connection_name
from nat_traverse.tunnel.refusals import (
    SECRET as SECRET_BIT,
)
from nat_traverse.tunnel.refusals import (
    MeansDifferError,
    ProofError,
    ProofWithheldError,
    PurposesDifferError,
    Refusal,
    WrongSecretError,
)
from nat_traverse.tunnel.secure import CONSENT, ENGINE_ROOM, ESTABLISH, SecureTunnel, State
from nat_traverse.wire import control
from nat_traverse.wire.control import Credit, Frame
from nat_traverse.wire.hello import HELLO_SIZE, Kind, Message, Reason, decode, encode
from support.pair import LEFT, RIGHT
from support.secure_pair import LARGE, SECRET, SMALL, Network, SecurePair, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEGABYTE = 1_000_000
NOBODY = Endpoint("192.0.2.9", 9)


def proven(**settings: object) -> SecurePair:
    pair = SecurePair(**settings)  # type: ignore[arg-type]
    pair.prove()
    return pair


def blackout(_source: Endpoint, _to: Endpoint, _data: bytes) -> bool:
    return True


def reached(side: Side, state: State) -> bool:
    return side.tunnel.state is state


def has_ended(side: Side, stream: int) -> bool:
    return stream in side.ended


def is_over(pair: SecurePair) -> bool:
    return all(side.tunnel.state is State.OVER for side in pair.sides)


# -- establishing ---------------------------------------------------------------------------------


class TestEstablishing:
    def test_in_three_round_trips(self) -> None:
        pair = SecurePair(network=Network(latency=0.05))
        begun = pair.now
        pair.prove()
        assert pair.now - begun <= 3 * 0.1 + 0.01

    @pytest.mark.parametrize("seed", range(30))
    def test_with_a_third_lost_and_the_rest_shuffled(self, seed: int) -> None:
        pair = SecurePair(
            seed=seed, network=Network(loss=0.3, latency=0.02, jitter=0.02, duplication=0.1)
        )
        pair.prove()
        stream = pair.left.open()
        pair.left.write(stream, b"hello", fin=True)
        pair.drive(lambda: stream in pair.right.ended)
        assert pair.right.received[stream] == b"hello"

    @pytest.mark.parametrize("means", ["secret", "keys", "both", "neither"])
    def test_by_each_means(self, means: str) -> None:
        one, other = b"\x01" * 32, b"\x02" * 32
        phrase = b"phrase" if means in {"secret", "both"} else None
        keys = means in {"keys", "both"}
        ours = Means(phrase, one if keys else None, (public_of(other),) if keys else ())
        theirs = Means(phrase, other if keys else None, (public_of(one),) if keys else ())
        pair = proven(means=(ours, theirs))
        outcomes = [side.event(Proven) for side in pair.sides]
        assert outcomes[0] is not None
        assert outcomes[1] is not None
        codes = [each.outcome.code for each in outcomes if each is not None]
        assert codes[0] == codes[1]
        assert (codes[0] is None) == (means != "neither")
        assert outcomes[0].outcome.peer_key == (public_of(other) if keys else None)

    def test_a_server_whose_key_will_not_do_learns_why_though_it_was_content(self) -> None:
        one, other, old = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
        client = Means(None, one, (public_of(old),))
        server = Means(None, other, (public_of(one),))
        pair = SecurePair(means=(client, server))
        pair.drive(lambda: is_over(pair), seconds=10.0)
        assert pair.left.event(Proven) is None
        refused = pair.right.event(NotProven)
        assert refused is not None
        assert refused.error.refusal is Refusal.WRONG_KEY
        assert "does not accept the key of this side" in str(refused.error)

    def test_nobody_answers(self) -> None:
        pair = SecurePair()
        pair.tap = blackout
        begun = pair.now
        pair.drive(lambda: is_over(pair), seconds=30.0)
        assert pair.now - begun == pytest.approx(ESTABLISH)
        for side in pair.sides:
            assert side.events == [NotEstablished()]
            assert side.tunnel.get_timer() is None

    @pytest.mark.parametrize("late", [0.3, 1.0, 1.8])
    def test_a_peer_that_is_late_costs_little_time_and_no_packet_size(self, late: float) -> None:
        pair = SecurePair()
        pair.tap = blackout
        pair.drive(seconds=late)
        pair.tap = lambda _source, _to, _data: False
        begun = pair.now
        pair.prove()
        assert pair.now - begun < 0.1 + late / 2
        pair.left.keep_sent = True
        stream = pair.left.open()
        pair.left.write(stream, bytes(100_000), fin=True)
        pair.drive(lambda: stream in pair.right.ended)
        assert max(map(len, pair.left.sent)) > 1300

    def test_what_is_sent_at_an_answerless_peer_is_little(self) -> None:
        pair = SecurePair()
        sent: list[int] = []

        def count(_source: Endpoint, _to: Endpoint, data: bytes) -> bool:
            sent.append(len(data))
            return True

        pair.tap = count
        pair.drive(lambda: is_over(pair), seconds=30.0)
        assert sum(sent) < 100_000

    @pytest.mark.parametrize("after", [0.0, 0.011, 0.021, 0.031, 0.041])
    def test_who_stops_meanwhile_tells_the_peer(self, after: float) -> None:
        """Whatever has been said so far: the peer is not left to wait."""
        for leaver in (0, 1):
            pair = SecurePair()
            pair.drive(seconds=after)
            side, other = pair.sides[leaver], pair.sides[1 - leaver]
            side.tunnel.close(Closing.STOPPED)
            begun = pair.now
            pair.settle()
            pair.drive(partial(reached, other, State.OVER))
            assert pair.now - begun < 0.1
            (event,) = [each for each in other.events if not isinstance(each, Proven)]
            if isinstance(event, NotProven):
                # It has shown its proof and seen none: that may have been a guess.
                assert isinstance(event.error, ProofWithheldError)
            else:
                assert event == PeerClosed(Closing.STOPPED, "")

    def test_a_0_7_peer_has_none(self) -> None:
        handshake = Handshake(HandshakeSettings(LARGE), (), 0.0)
        pair = SecurePair()
        with pytest.raises(ValueError, match=r"0\.7"):
            SecureTunnel(
                handshake,
                pair.left.connected,
                pair.left.engine,
                lambda _: pytest.fail("no proof"),
                0.0,
            )


class TestProof:
    def refused(self, pair: SecurePair) -> list[ProofError]:
        pair.drive(lambda: is_over(pair), seconds=15.0)
        found = []
        for side in pair.sides:
            (event,) = side.events
            assert isinstance(event, NotProven)
            found.append(event.error)
        return found

    @pytest.mark.parametrize("seed", range(10))
    def test_another_secret(self, seed: int) -> None:
        network = Network(loss=0.1 * (seed > 0))
        errors = self.refused(
            SecurePair(seed=seed, network=network, means=(SECRET, Means(b"wrong")))
        )
        assert {error.refusal for error in errors} == {Refusal.WRONG_SECRET}
        assert any(isinstance(error, WrongSecretError) for error in errors)

    def test_a_secret_and_none(self) -> None:
        errors = self.refused(SecurePair(means=(SECRET, Means())))
        assert {error.refusal for error in errors} == {Refusal.MEANS_DIFFER}
        differ = next(error for error in errors if isinstance(error, MeansDifferError))
        assert {differ.ours, differ.theirs} == {0, SECRET_BIT}

    def test_another_purpose(self) -> None:
        errors = self.refused(SecurePair(purposes=(1, 4)))
        assert {error.refusal for error in errors} == {Refusal.PURPOSES_DIFFER}
        assert any(isinstance(error, PurposesDifferError) for error in errors)

    def test_streams_before_it_are_not_delivered_until_it_succeeds(self) -> None:
        """The server is through first; what it sends then may overtake its last word."""
        pair = SecurePair()
        held: list[bytes] = []

        def hold(source: Endpoint, _to: Endpoint, data: bytes) -> bool:
            if pair.right.tunnel.state is State.OPEN and source == RIGHT and not held:
                held.append(data)
                return True
            return False

        pair.tap = hold
        pair.drive(lambda: held)
        stream = pair.right.open()
        pair.right.write(stream, b"early", fin=True)
        pair.settle()
        pair.drive(seconds=0.011)
        assert pair.left.tunnel.state is State.PROVING
        assert pair.left.tunnel._early
        assert pair.left.events == []
        pair.inject(pair.left, held[0])
        kinds = [type(event) for event in pair.left.events]
        assert kinds[:2] == [Proven, StreamOpened]
        assert pair.left.received[stream] == b"early"
        assert pair.left.tunnel._early == []

    def test_streams_before_it_are_never_delivered_if_it_fails(self) -> None:
        pair = SecurePair(means=(SECRET, Means(b"wrong")))

        def burst(side: Side) -> bool:
            if side.tunnel.state is not State.PROVING:
                return False
            stream = side.engine.open_stream()
            assert stream is not None
            side.engine.send(stream, b"let me in", fin=True)
            side.engine.send_datagram(b"\0\0\0\0let me in")
            return True

        for side in pair.sides:
            pair.drive(partial(burst, side))
        self.refused(pair)
        assert all(not side.received for side in pair.sides)

    def test_an_unproven_peer_makes_us_keep_no_more_than_a_bound(self) -> None:
        pair = self.impostor()
        stream = pair.right.engine.open_stream()
        assert stream is not None
        pair.right.engine.send(stream, bytes(20 * MEGABYTE))
        most = 0

        def full() -> bool:
            nonlocal most
            kept = sum(len(event.data) for event in self.early(pair.left))
            most = max(most, kept)
            return pair.left.tunnel.state is State.OVER

        pair.drive(full, seconds=30.0)
        assert 0 < most <= MEGABYTE * 1.1
        closed = pair.left.event(PeerClosed)
        assert closed is not None
        assert closed.code == Closing.PROTOCOL
        assert pair.left.tunnel._early == []

    def test_an_unproven_peers_datagrams_are_bounded_and_break_nothing(self) -> None:
        pair = self.impostor()
        for _ in range(100):
            for _ in range(20):
                pair.right.engine.send_datagram(bytes(1200))
            pair.settle()
            pair.drive(seconds=0.05)
        assert pair.left.tunnel.state is State.PROVING
        assert len(pair.left.tunnel._early) <= 256

    def impostor(self) -> SecurePair:
        """A pair of which the right one holds its last word back."""
        pair = SecurePair()
        silent = pair.right.tunnel
        silent._send_proof = lambda: None  # type: ignore[method-assign]
        pair.drive(lambda: all(side.tunnel.state is State.PROVING for side in pair.sides))
        pair.drive(seconds=0.1)
        assert silent.state is not State.OPEN
        return pair

    def early(self, side: Side) -> list[StreamData]:
        return [event for event in side.tunnel._early if isinstance(event, StreamData)]

    def test_what_follows_another_frame_than_the_next_ends_it(self) -> None:
        pair = SecurePair()
        pair.drive(lambda: pair.right.tunnel.state is State.PROVING)
        pair.right.tunnel._say(control.encode_frame(Frame.BYE))
        pair.settle()
        errors = self.refused(pair)
        assert {error.refusal for error in errors} == {Refusal.MALFORMED}

    def test_a_man_in_the_middle_fails_on_both_sides(self) -> None:
        pair = SecurePair()
        middle = ManInTheMiddle(pair)
        pair.drive(lambda: is_over(pair), seconds=15.0)
        assert middle.carried, "he had both connections, and passed on what was said"
        refusals = []
        for side in pair.sides:
            (event,) = side.events
            assert isinstance(event, NotProven)
            refusals.append(event.error.refusal)
            assert side.received == {}
        assert set(refusals) == {Refusal.WRONG_SECRET}


class ManInTheMiddle:
    """Somebody who reads and changes all packets, with a certificate of his own.

    To the client he is the server, and the other way round; streams are passed on as they are.
    """

    def __init__(self, pair: SecurePair) -> None:
        name = connection_name(LARGE, SMALL)
        self.pair = pair
        self.server = QuicEngine(is_client=False, datagram_size=1350, name=name)
        self.client = QuicEngine(is_client=True, datagram_size=1350, name=name)
        self.client.start(pair.now)
        self.carried: list[StreamData] = []
        self.opened: set[QuicEngine] = set()
        # What was sent before he came is his, too: nothing has arrived yet.
        before = [flight[2:] for flight in pair._flying]
        pair._flying.clear()
        pair.tap = self.take
        for source, to, data in before:
            self.take(source, to, data)
        self.pass_on()

    def take(self, source: Endpoint, _to: Endpoint, data: bytes) -> bool:
        (self.server if source == LEFT else self.client).receive([data], self.pair.now)
        self.pass_on()
        return True

    def pass_on(self) -> None:
        for one, other in ((self.server, self.client), (self.client, self.server)):
            while (event := one.next_event()) is not None:
                if isinstance(event, StreamData):
                    self.carried.append(event)
                    if other not in self.opened:
                        self.opened.add(other)
                        other.open_stream(both_ways=False)
                    other.send(event.stream, event.data, fin=event.fin)
                elif isinstance(event, Terminated):
                    other.close(event.code or 0, event.reason)
        at = self.pair.now + 0.01
        for engine, to, source in ((self.server, LEFT, RIGHT), (self.client, RIGHT, LEFT)):
            for data in engine.datagrams_to_send(self.pair.now):
                self.pair.fly(at, source, to, data)


# -- streams --------------------------------------------------------------------------------------


class TestStreams:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_five_megabytes_each_way_over_a_bad_path(self, seed: int) -> None:
        pair = proven(
            seed=seed, network=Network(loss=0.03, latency=0.01, jitter=0.005, duplication=0.02)
        )
        there, back = pair.random.randbytes(5 * MEGABYTE), pair.random.randbytes(5 * MEGABYTE)
        one, other = pair.left.open(), pair.right.open()
        pair.left.write(one, there, fin=True)
        pair.right.write(other, back, fin=True)
        pair.drive(lambda: one in pair.right.ended and other in pair.left.ended, seconds=900.0)
        assert pair.right.received[one] == there
        assert pair.left.received[other] == back
        pair.drive(lambda: not pair.left.tunnel.undone and not pair.right.tunnel.undone)
        assert pair.left.all(StreamDone) == [StreamDone(one)]

    def test_a_reader_that_does_not_read_stops_the_sender_of_that_stream_alone(self) -> None:
        pair = proven()
        pair.right.consuming = False
        stuck, other = pair.left.open(), pair.left.open()
        pair.left.write(stuck, bytes(5 * MEGABYTE))
        pair.drive(seconds=5.0)
        assert len(pair.right.received[stuck]) == FIRST_WINDOW
        assert pair.left.tunnel.room(stuck) == 0
        data = pair.random.randbytes(2 * MEGABYTE)
        pair.left.write(other, data, fin=True)

        def read_other() -> bool:
            pair.right.tunnel.consume(other, pair.right.unread.pop(other, 0))
            return other in pair.right.ended

        pair.drive(read_other)
        assert pair.right.received[other] == data
        assert len(pair.right.received[stuck]) == FIRST_WINDOW
        pair.right.consuming = True
        pair.settle()
        pair.drive(lambda: len(pair.right.received[stuck]) == 5 * MEGABYTE)

    def test_a_writer_is_told_when_there_is_credit_again(self) -> None:
        pair = proven()
        stream = pair.left.open()
        pair.left.write(stream, bytes(FIRST_WINDOW))
        pair.drive(lambda: pair.left.event(CreditGrown))
        assert pair.left.tunnel.room(stream) > 0

    def test_the_engine_gets_no_more_than_it_can_send_soon(self) -> None:
        pair = proven()
        stream = pair.left.open()
        pair.left.write(stream, bytes(20 * MEGABYTE))
        pair.drive(seconds=0.5)
        pair.tap = blackout
        for _ in range(20):
            pair.drive(seconds=0.05)
            assert pair.left.engine.unsent(stream) <= ENGINE_ROOM

    def test_who_sends_beyond_the_credit_ends_the_tunnel(self) -> None:
        pair = proven()
        pair.right.consuming = False
        stream = pair.left.open()
        pair.left.engine.send(stream, bytes(FIRST_WINDOW + 1))  # past the tunnel's own check
        pair.settle()
        pair.drive(lambda: is_over(pair))
        for side in pair.sides:
            closed = side.event(PeerClosed)
            assert closed is not None
            assert closed.code == Closing.PROTOCOL
        assert len(pair.right.received.get(stream, b"")) <= FIRST_WINDOW

    def test_what_is_more_than_there_is_room_for_is_refused(self) -> None:
        pair = proven()
        stream = pair.left.open()
        with pytest.raises(ValueError, match="has room"):
            pair.left.tunnel.send(stream, bytes(FIRST_WINDOW + 1))
        assert pair.left.tunnel.room(stream) == FIRST_WINDOW

    def test_a_half_that_ends_leaves_the_other_open(self) -> None:
        pair = proven()
        stream = pair.left.open()
        pair.left.write(stream, b"question", fin=True)
        pair.drive(lambda: stream in pair.right.ended)
        assert not pair.left.tunnel.is_sending(stream)
        with pytest.raises(NoSuchStreamError):
            pair.left.tunnel.send(stream, b"more")
        assert pair.right.tunnel.is_sending(stream)
        pair.right.write(stream, b"answer")
        pair.drive(lambda: stream in pair.left.received)
        pair.right.write(stream, b"", fin=True)
        pair.drive(lambda: stream in pair.left.ended)
        assert pair.left.received[stream] == b"answer"
        assert not any(side.tunnel._streams for side in pair.sides)

    def test_a_reset_reaches_the_reader_and_spares_the_other_half(self) -> None:
        pair = proven()
        stream = pair.left.open()
        pair.left.write(stream, b"some")
        pair.drive(lambda: stream in pair.right.received)
        pair.left.tunnel.reset(stream, 7)
        pair.left.tunnel.reset(stream, 8)
        pair.settle()
        pair.drive(lambda: pair.right.event(StreamReset))
        assert pair.right.event(StreamReset) == StreamReset(stream, 7)
        pair.right.write(stream, b"answer", fin=True)
        pair.drive(lambda: stream in pair.left.ended)
        assert pair.left.received[stream] == b"answer"
        assert not any(side.tunnel._streams for side in pair.sides)

    def test_a_stop_reaches_the_writer_and_spares_the_other_half(self) -> None:
        pair = proven()
        stream = pair.left.open()
        pair.left.write(stream, b"some")
        pair.drive(lambda: stream in pair.right.received)
        pair.right.tunnel.stop(stream, 9)
        pair.right.tunnel.stop(stream, 10)
        pair.settle()
        pair.drive(lambda: pair.left.event(StreamStopped))
        assert pair.left.event(StreamStopped) == StreamStopped(stream, 9)
        assert pair.left.tunnel.room(stream) == 0
        with pytest.raises(NoSuchStreamError):
            pair.left.tunnel.send(stream, b"more")
        pair.right.write(stream, b"answer", fin=True)
        pair.drive(lambda: stream in pair.left.ended)
        assert not any(side.tunnel._streams for side in pair.sides)

    def test_what_is_stopped_counts_as_consumed(self) -> None:
        pair = proven()
        pair.right.consuming = False
        stream = pair.left.open()
        pair.left.write(stream, bytes(FIRST_WINDOW))
        pair.drive(seconds=1.0)
        pair.left.tunnel.send(stream, b"", fin=True)
        assert pair.left.tunnel.undone == 1
        pair.right.tunnel.stop(stream)
        pair.settle()
        pair.drive(lambda: not pair.left.tunnel.undone)

    def test_ended_and_stopped_at_once_is_heard_of_as_one_stream(self) -> None:
        """A program that opens a stream, writes, and closes it does just that."""
        for seed in range(10):
            pair = proven(seed=seed, network=Network(jitter=0.02, duplication=0.2))
            stream = pair.left.open()
            pair.left.tunnel.send(stream, b"short", fin=True)
            pair.left.tunnel.stop(stream)
            pair.settle()
            pair.drive(seconds=2.0)
            kinds = [type(event) for event in pair.right.events]
            assert kinds.count(StreamOpened) == 1
            assert kinds.index(StreamOpened) < min(
                kinds.index(StreamData), kinds.index(StreamStopped)
            )
            assert pair.right.received[stream] == b"short"
            assert not pair.right.tunnel._streams

    def test_stream_numbers_that_are_over_mean_nothing(self) -> None:
        pair = proven()
        tunnel = pair.left.tunnel
        for number in (-1, 400, 401):
            assert tunnel.room(number) == 0
            assert not tunnel.is_sending(number)
            tunnel.consume(number, 10)
            tunnel.reset(number)
            tunnel.stop(number)
        with pytest.raises(NoSuchStreamError):
            tunnel.send(400, b"x")
        pair.settle()
        pair.drive(seconds=1.0)
        assert tunnel.state is State.OPEN

    def test_frames_about_unknown_streams_and_of_unknown_types_are_skipped(self) -> None:
        pair = proven()
        for frame in (
            control.encode_credit(Credit(4000, 1 << 60)),
            control.encode_done(4000),
            control.encode_frame(0x1F, b"of another version"),
            control.encode_frame(0x00, b""),
            control.encode_frame(0x04, b"of the proof, which is over"),
        ):
            pair.left.tunnel._say(frame)
        pair.settle()
        pair.drive(seconds=1.0)
        assert pair.right.tunnel.state is State.OPEN
        assert pair.right.all(FrameReceived) == []

    @pytest.mark.parametrize("frame", [b"\x10\x00\x01a", b"\x11\x00\x00", b"\x01\xff\xff"])
    def test_malformed_frames_end_the_tunnel(self, frame: bytes) -> None:
        pair = proven()
        pair.left.tunnel._say(frame)
        pair.settle()
        pair.drive(lambda: is_over(pair))
        closed = pair.left.event(PeerClosed)
        assert closed is not None
        assert closed.code == Closing.PROTOCOL

    def test_the_control_stream_does_not_end(self) -> None:
        pair = proven()
        assert pair.left.tunnel._control is not None
        pair.left.engine.reset(pair.left.tunnel._control, 1)
        pair.settle()
        pair.drive(lambda: is_over(pair))
        assert pair.right.event(PeerClosed) is not None

    def test_ten_thousand_streams_leave_nothing_behind(self) -> None:
        pair = proven()
        sizes = []
        finished = 0
        while finished < 10_000:
            finished += self.a_hundred_streams(pair)
            for side in pair.sides:
                side.events.clear()
                side.received.clear()
                side.ended.clear()
            sizes.append(self.held(pair))
        pair.drive(seconds=1.0)
        for side in pair.sides:
            assert side.tunnel._streams == {}
            assert side.tunnel._skipped == set()
            assert side.tunnel._undone == set()
            assert side.tunnel._budget.used == 0
        assert max(sizes[-5:]) <= max(sizes[:5]) + 10, f"it grows: {sizes}"

    def a_hundred_streams(self, pair: SecurePair) -> int:
        """Open fifty on each side; most are used, some are reset. Returns how many they were."""
        finished = 0
        for opener, other in ((pair.left, pair.right), (pair.right, pair.left)):
            numbers = [
                number for _ in range(50) if (number := opener.tunnel.open_stream()) is not None
            ]
            for index, number in enumerate(numbers):
                if index % 10 == 7:
                    opener.tunnel.reset(number)
                    opener.tunnel.stop(number)
                else:
                    opener.tunnel.send(number, b"ping", fin=True)
            pair.settle()
            pair.drive(seconds=0.03)
            for number in numbers:
                if number in other.ended:
                    other.tunnel.send(number, b"pong", fin=True)
                else:
                    other.tunnel.reset(number)
            pair.settle()
            pair.drive(seconds=0.03)
            finished += len(numbers)
        return finished

    def held(self, pair: SecurePair) -> int:
        """How many things the engines and tunnels keep in Python."""
        count = 0
        for side in pair.sides:
            for each in (side.tunnel, side.engine, side.engine._connection):
                for value in vars(each).values():
                    if isinstance(value, dict | set | list):
                        count += len(value)
        return count

    def test_a_hundred_at_a_time(self) -> None:
        pair = proven()
        numbers = [pair.left.open() for _ in range(100)]
        assert pair.left.tunnel.open_stream() is None
        for number in numbers:
            pair.left.write(number, b"x", fin=True)
        pair.drive(lambda: len(pair.right.ended) == 100)
        for number in numbers:
            pair.right.tunnel.send(number, b"", fin=True)
        pair.settle()
        pair.drive(lambda: pair.left.tunnel.open_stream() is not None)

    def test_none_before_the_proof_and_none_after_the_end(self) -> None:
        pair = SecurePair()
        assert pair.left.tunnel.open_stream() is None
        pair.prove()
        stream = pair.left.open()
        pair.left.tunnel.close(Closing.STOPPED)
        assert pair.left.tunnel.open_stream() is None
        assert pair.left.tunnel.room(stream) == 0
        assert not pair.left.tunnel.is_sending(stream)
        pair.left.tunnel.consume(stream, 1)
        pair.left.tunnel.finish_receiving(stream)
        pair.left.tunnel.send_datagram(stream, b"x")
        with pytest.raises(NoSuchStreamError):
            pair.left.tunnel.send(stream, b"x")


class TestDatagrams:
    def test_go_with_their_stream(self) -> None:
        pair = proven()
        for data in (b"", b"x", bytes(pair.left.tunnel.datagram_limit)):
            pair.left.tunnel.send_datagram(8, data)
            pair.settle()
            pair.drive(seconds=0.02)
            assert pair.right.all(FlowDatagram)[-1] == FlowDatagram(8, data)

    def test_too_large_is_a_value_error_and_nothing_else(self) -> None:
        pair = proven()
        with pytest.raises(ValueError, match="fit"):
            pair.left.tunnel.send_datagram(0, bytes(pair.left.tunnel.datagram_limit + 1))
        pair.drive(seconds=1.0)
        assert pair.left.tunnel.state is State.OPEN

    def test_that_are_too_short_are_dropped(self) -> None:
        pair = proven()
        pair.left.engine.send_datagram(b"abc")
        pair.settle()
        pair.drive(seconds=0.1)
        assert pair.right.all(FlowDatagram) == []

    def test_more_than_the_path_takes_are_lost_and_not_kept(self) -> None:
        pair = proven()
        before = pair.left.tunnel.has_datagram_room
        assert before
        for _ in range(10_000):
            pair.left.tunnel.send_datagram(0, bytes(1200))
        assert not pair.left.tunnel.has_datagram_room
        pair.settle()
        pair.drive(seconds=2.0)
        assert 0 < len(pair.right.all(FlowDatagram)) < 1000
        assert pair.left.tunnel.has_datagram_room


# -- leaving --------------------------------------------------------------------------------------


class TestLeaving:
    @pytest.mark.parametrize("apart", [0.0, 0.005, 0.01, 0.02, 0.5, 2.0])
    @pytest.mark.parametrize("first", [0, 1])
    def test_both_say_bye(self, first: int, apart: float) -> None:
        pair = proven()
        pair.sides[first].tunnel.leave(pair.now)
        pair.settle()
        pair.drive(seconds=apart)
        pair.sides[1 - first].tunnel.leave(pair.now)
        pair.sides[1 - first].tunnel.leave(pair.now)
        pair.settle()
        begun = pair.now
        pair.drive(lambda: is_over(pair))
        assert pair.now - begun < 0.1
        for side in pair.sides:
            assert side.events[-1] == Ended()
            assert side.tunnel.get_timer() is None

    @pytest.mark.parametrize("seed", range(20))
    def test_with_half_of_it_lost(self, seed: int) -> None:
        pair = proven()
        pair.random = random.Random(seed)
        pair.network = Network(loss=0.5, latency=0.01)
        for side in pair.sides:
            side.tunnel.leave(pair.now)
        pair.settle()
        pair.drive(lambda: is_over(pair), seconds=5.0)
        assert [side.events[-1] for side in pair.sides] == [Ended(), Ended()]

    def test_with_all_of_it_lost(self) -> None:
        pair = proven()
        pair.tap = blackout
        for side in pair.sides:
            side.tunnel.leave(pair.now)
        pair.settle()
        begun = pair.now
        pair.drive(lambda: is_over(pair), seconds=5.0)
        assert pair.now - begun == pytest.approx(3.0)
        assert [side.events[-1] for side in pair.sides] == [Ended(), Ended()]

    def test_whose_peer_stays_leaves_after_a_while_and_says_so(self) -> None:
        pair = proven()
        pair.left.tunnel.leave(pair.now)
        pair.settle()
        pair.drive(lambda: is_over(pair), seconds=4.0)
        assert pair.left.events[-1] == Ended()
        assert pair.right.events[-1] == PeerClosed(Closing.COMPLETE, "")

    def test_a_refusal_after_bye_is_the_end(self) -> None:
        pair = proven()
        pair.left.tunnel.leave(pair.now)
        refused = NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, "203.0.113.2")
        pair.left.tunnel.receive_error(refused, pair.left.tunnel.path, pair.now)
        pair.settle()
        assert pair.left.events[-1] == Ended()

    def test_a_peer_that_breaks_off_after_our_bye_is_an_end_like_any(self) -> None:
        pair = proven()
        pair.left.tunnel.leave(pair.now)
        pair.right.tunnel.close(Closing.STOPPED)
        pair.settle()
        pair.drive(lambda: is_over(pair))
        assert pair.left.events[-1] == Ended()

    @pytest.mark.parametrize("code", [*Closing, 0x77])
    def test_the_code_and_the_text_reach_the_peer(self, code: int) -> None:
        pair = proven()
        pair.left.tunnel.close(code, "why not")
        pair.left.tunnel.close(99, "too late")
        pair.settle()
        pair.drive(lambda: is_over(pair))
        assert pair.right.events[-1] == PeerClosed(code, "why not")
        assert Ended not in [type(event) for event in pair.left.events]

    def test_one_lost_goodbye_costs_nothing(self) -> None:
        pair = proven()
        pair.left.tunnel.close(Closing.COMPLETE)
        lost: list[bytes] = []

        def lose_first(_source: Endpoint, _to: Endpoint, data: bytes) -> bool:
            lost.append(data)
            return len(lost) == 1

        pair.tap = lose_first
        pair.settle()
        pair.drive(lambda: is_over(pair), seconds=0.1)
        assert pair.right.events[-1] == PeerClosed(Closing.COMPLETE, "")

    def test_before_the_proof_there_is_nothing_to_leave(self) -> None:
        pair = SecurePair()
        pair.left.tunnel.leave(pair.now)
        pair.prove()


# -- is the peer alive? ---------------------------------------------------------------------------


class TestSilence:
    def test_is_broken_by_keepalives(self) -> None:
        pair = proven()
        for side in pair.sides:
            side.keep_sent = True
        pair.drive(seconds=600.0)
        assert not is_over(pair)
        for side in pair.sides:
            assert 35 <= len(side.sent) <= 200

    def test_of_thirty_seconds_ends_it(self) -> None:
        pair = proven()
        pair.tap = blackout
        begun = pair.now
        pair.drive(lambda: is_over(pair), seconds=60.0)
        assert CONSENT - 0.5 <= pair.now - begun <= CONSENT + 1.0
        for side in pair.sides:
            assert side.events[-1] == PeerVanished(errno.ETIMEDOUT)

    def test_of_less_does_not(self) -> None:
        pair = proven()
        pair.tap = blackout
        pair.drive(seconds=25.0)
        pair.tap = lambda _source, _to, _data: False
        pair.drive(seconds=60.0)
        assert not is_over(pair)

    @pytest.mark.parametrize("keepalive", [1.0, 5.0, 25.0])
    def test_keepalives_come_as_often_as_wanted(self, keepalive: float) -> None:
        pair = proven(keepalive=keepalive)
        for side in pair.sides:
            side.keep_sent = True
        pair.drive(seconds=300.0)
        assert not is_over(pair)
        assert len(pair.left.sent) >= 300.0 / keepalive

    def test_a_sender_of_data_that_is_only_acknowledged_goes_on(self) -> None:
        """Acks say nothing to the tunnel, but credit does, and pings do."""
        pair = proven()
        stream = pair.left.open()
        for _ in range(120):
            pair.left.write(stream, bytes(1000))
            pair.drive(seconds=1.0)
        assert not is_over(pair)

    @pytest.mark.parametrize("consent", [3.0, 6.0])
    def test_may_end_it_earlier(self, consent: float) -> None:
        pair = proven(consent=consent, keepalive=1.0)
        pair.drive(seconds=60.0)
        assert not is_over(pair)
        pair.tap = blackout
        begun = pair.now
        pair.drive(lambda: is_over(pair), seconds=60.0)
        assert consent - 1.5 <= pair.now - begun <= consent + 1.0
        for side in pair.sides:
            assert side.events[-1] == PeerVanished(errno.ETIMEDOUT)

    def test_is_none_if_something_beside_quic_is_heard(self) -> None:
        pair = proven()
        pair.drive(seconds=3.0)
        pair.tap = blackout
        tunnel = pair.left.tunnel
        before = tunnel.heard
        for _ in range(4):
            pair.drive(seconds=10.0)
            tunnel.note_peer(tunnel.path, 1000, pair.now)
            assert tunnel.heard == pair.now > before
        assert tunnel.state is State.OPEN
        assert pair.right.tunnel.state is State.OVER


class TestDoubt:
    def refuse(self, pair: SecurePair) -> None:
        refused = NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, "203.0.113.2")
        pair.left.tunnel.receive_error(refused, pair.left.tunnel.path, pair.now)

    def restart(self, pair: SecurePair) -> None:
        hello = encode(Message(Kind.HELLO, b"\x77" * 16), size=HELLO_SIZE)
        pair.left.tunnel.receive(hello, pair.left.tunnel.path, pair.now)

    def close(self, pair: SecurePair) -> None:
        closing = Message(Kind.HELLO, SMALL, echo=LARGE, closing=Reason.STOPPED)
        pair.left.tunnel.receive(encode(closing), pair.left.tunnel.path, pair.now)

    def move(self, pair: SecurePair) -> None:
        pair.left.tunnel.note_own_move(pair.now)

    DOUBTS = ("refuse", "restart", "close", "move")
    NUMBERS: dict[str, int] = {  # noqa: RUF012 (nobody changes it)
        "refuse": errno.ECONNREFUSED,
        "restart": errno.ECONNRESET,
        "close": errno.ECONNRESET,
        "move": errno.ENETRESET,
    }

    @pytest.mark.parametrize("doubt", DOUBTS)
    def test_a_peer_that_is_alive_dispels_it(self, doubt: str) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        for _ in range(20):
            getattr(self, doubt)(pair)
            pair.settle()
            pair.drive(seconds=3.0)
        assert not is_over(pair)
        assert "doubt" not in pair.left.tunnel._timers

    @pytest.mark.parametrize("doubt", DOUBTS)
    def test_over_a_bad_path_too(self, doubt: str) -> None:
        for seed in range(10):
            pair = proven(seed=seed)
            pair.network = Network(loss=0.2, latency=0.1)
            pair.drive(seconds=5.0)
            getattr(self, doubt)(pair)
            pair.settle()
            pair.drive(seconds=10.0)
            assert not is_over(pair), f"seed {seed}"

    @pytest.mark.parametrize("doubt", DOUBTS)
    def test_a_peer_that_is_gone_is_known_soon(self, doubt: str) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        pair.tap = blackout
        begun = pair.now
        getattr(self, doubt)(pair)
        pair.settle()
        pair.drive(lambda: pair.left.tunnel.state is State.OVER, seconds=10.0)
        assert pair.now - begun <= 1.5 + 0.02 + 1e-6
        assert pair.left.events[-1] == PeerVanished(self.NUMBERS[doubt])

    @pytest.mark.parametrize("doubt", DOUBTS)
    def test_what_is_heard_beside_quic_dispels_it_too(self, doubt: str) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        pair.tap = blackout
        getattr(self, doubt)(pair)
        assert "doubt" in pair.left.tunnel._timers
        pair.drive(seconds=1.0)
        pair.left.tunnel.note_peer(pair.left.tunnel.path, 32, pair.now)
        assert "doubt" not in pair.left.tunnel._timers
        pair.drive(seconds=5.0)
        assert pair.left.tunnel.state is State.OPEN

    def test_an_address_that_changes_before_the_proof_is_none(self) -> None:
        pair = SecurePair()
        pair.left.tunnel.note_own_move(pair.now)
        pair.prove()
        pair.drive(seconds=10.0)
        assert not is_over(pair)

    def test_many_doubts_are_one(self) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        pair.left.keep_sent = True
        for _ in range(1000):
            self.refuse(pair)
            self.restart(pair)
        pair.settle()
        pair.drive(seconds=1.0)
        assert len(pair.left.sent) <= 5

    def test_a_refusal_of_what_was_sent_before_means_nothing(self) -> None:
        pair = proven()
        pair.tap = blackout
        self.refuse(pair)
        assert "doubt" not in pair.left.tunnel._timers

    @pytest.mark.parametrize(
        ("kind", "path"),
        [
            (ErrorKind.HOST_UNREACHABLE, Path(0, RIGHT)),
            (ErrorKind.TIME_EXCEEDED, Path(0, RIGHT)),
            (ErrorKind.PORT_UNREACHABLE, Path(0, NOBODY)),
            (ErrorKind.PORT_UNREACHABLE, Path(1, RIGHT)),
        ],
    )
    def test_other_errors_mean_nothing(self, kind: ErrorKind, path: Path) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        pair.left.tunnel.receive_error(NetworkError(kind, 1), path, pair.now)
        assert "doubt" not in pair.left.tunnel._timers

    def test_a_hello_from_another_host_or_of_our_own_means_nothing(self) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        foreign = encode(Message(Kind.HELLO, b"\x77" * 16), size=HELLO_SIZE)
        own = encode(Message(Kind.HELLO, LARGE), size=HELLO_SIZE)
        pair.inject(pair.left, foreign, NOBODY)
        pair.inject(pair.left, own)
        pair.inject(pair.left, encode(Message(Kind.ACK, b"\x77" * 16)))
        assert "doubt" not in pair.left.tunnel._timers

    def test_the_real_end_of_a_program_is_refused_and_known(self) -> None:
        pair = proven()
        pair.drive(seconds=5.0)
        pair.refusing = True
        pair.right.address = NOBODY  # nothing listens any more where it was
        pair.right.tunnel.state = State.OVER
        begun = pair.now
        stream = pair.left.open()
        pair.left.write(stream, b"are you there?")
        pair.drive(lambda: pair.left.tunnel.state is State.OVER, seconds=10.0)
        assert pair.left.events[-1] == PeerVanished(errno.ECONNREFUSED)
        assert pair.now - begun < 2.0


# -- beside QUIC ----------------------------------------------------------------------------------


class TestFrames:
    """Control frames for what the tunnel carries."""

    def test_come_in_order_with_all_that_is_in_them(self) -> None:
        pair = proven()
        sent = [(0x20, b""), (0x23, bytes(4)), (0x24, b"\xff" * control.LONGEST), (0xFF, b"x")]
        for kind, value in sent:
            pair.left.tunnel.send_frame(kind, value)
        pair.right.tunnel.send_frame(0x24, b"back")
        pair.drive(lambda: len(pair.right.all(FrameReceived)) == 4, seconds=2.0)
        assert [(each.kind, each.value) for each in pair.right.all(FrameReceived)] == sent
        assert pair.left.all(FrameReceived) == [FrameReceived(0x24, b"back")]

    @pytest.mark.parametrize("seed", range(3))
    def test_over_a_bad_path_too(self, seed: int) -> None:
        pair = proven(seed=seed)
        pair.network = Network(loss=0.2, latency=0.05, jitter=0.05, duplication=0.1)
        sent = [(0x20 + number, bytes([number]) * 100) for number in range(40)]
        for kind, value in sent:
            pair.left.tunnel.send_frame(kind, value)
        pair.settle()
        pair.drive(lambda: len(pair.right.all(FrameReceived)) == 40, seconds=30.0)
        assert [(each.kind, each.value) for each in pair.right.all(FrameReceived)] == sent

    def test_go_nowhere_before_the_proof_and_after_the_end(self) -> None:
        pair = SecurePair()
        assert pair.left.tunnel.state is not State.OPEN
        pair.left.tunnel.send_frame(0x20, b"too early")
        pair.prove()
        pair.drive(seconds=1.0)
        pair.left.tunnel.close(Closing.STOPPED)
        pair.left.tunnel.send_frame(0x20, b"too late")
        pair.settle()
        pair.drive(lambda: is_over(pair))
        assert pair.right.all(FrameReceived) == []

    def test_of_a_peer_that_has_proven_nothing_end_it(self) -> None:
        pair = SecurePair()
        pair.drive(lambda: reached(pair.left, State.PROVING))
        pair.left.tunnel._say(control.encode_frame(Frame.NETWORK, b"before the proof"))
        pair.settle()
        pair.drive(lambda: is_over(pair))
        assert pair.right.all(FrameReceived) == []


class TestSession:
    def test_is_the_same_on_both_sides_and_another_each_time(self) -> None:
        sessions = set()
        for number in range(3):
            nonces = bytes([200 + number]) * 16, bytes([number]) * 16
            pair = proven(nonces=nonces)
            assert pair.left.tunnel.session == pair.right.tunnel.session
            assert pair.left.tunnel.session.startswith(nonces[0] + nonces[1])
            sessions.add(pair.left.tunnel.session)
        assert len(sessions) == 3

    def test_is_another_with_the_same_nonces_too(self) -> None:
        """Each run of the server has a certificate of its own."""
        assert proven().left.tunnel.session != proven().left.tunnel.session


class TestNoted:
    """What has proven to be the peer's, or nobody's, beside QUIC."""

    def test_from_elsewhere_makes_us_ask_there(self) -> None:
        pair = proven()
        pair.left.address = LEFT._replace(port=50_000)
        path = Path(0, pair.left.address)
        pair.right.tunnel.note_peer(path, 1000, pair.now)
        pair.settle()
        pair.drive(lambda: pair.right.event(PathChanged), seconds=1.0)
        assert pair.right.tunnel.path == path

    def test_from_elsewhere_gets_no_more_than_it_sends(self) -> None:
        pair = proven()
        path = Path(0, NOBODY)
        pair.right.tunnel.note_peer(path, 20, pair.now)
        pair.settle()
        pair.drive(seconds=1.0)
        assert pair.elsewhere == []
        pair.right.tunnel.note_peer(path, 1000, pair.now)
        pair.settle()
        pair.drive(seconds=1.0)
        assert [to for to, _ in pair.elsewhere] == [NOBODY]
        assert pair.right.event(PathChanged) is None

    def test_strangers_are_counted_and_may_be_a_flood(self) -> None:
        pair = proven()
        pair.drive(seconds=1.0)
        tunnel = pair.left.tunnel
        tunnel.note_strangers(64, pair.now)
        assert not tunnel.is_flooded(pair.now)
        tunnel.note_strangers(1, pair.now)
        assert tunnel.is_flooded(pair.now)
        assert not tunnel.is_flooded(pair.now + 0.1)
        pair.drive(seconds=1.0)
        assert tunnel.state is State.OPEN


# -- following the peer ---------------------------------------------------------------------------


class TestFollowing:
    def move(self, side: Side, port: int = 50123) -> Endpoint:
        side.address = side.address._replace(port=port)
        return side.address

    @pytest.mark.parametrize("mover", [0, 1])
    def test_while_data_flows_both_ways(self, mover: int) -> None:
        pair = proven()
        side, other = pair.sides[mover], pair.sides[1 - mover]
        there, back = pair.random.randbytes(3 * MEGABYTE), pair.random.randbytes(3 * MEGABYTE)
        out, back_stream = side.open(), other.open()
        side.write(out, there, fin=True)
        other.write(back_stream, back, fin=True)
        pair.drive(lambda: len(other.received.get(out, b"")) > MEGABYTE)
        to = self.move(side)
        pair.drive(lambda: other.event(PathChanged), seconds=5.0)
        assert other.all(PathChanged) == [PathChanged(Path(0, to))]
        assert other.tunnel.path.remote == to
        pair.drive(lambda: out in other.ended and back_stream in side.ended)
        assert other.received[out] == there
        assert side.received[back_stream] == back
        assert side.all(PathChanged) == []

    @pytest.mark.parametrize("mover", [0, 1])
    def test_when_only_acks_come_back(self, mover: int) -> None:
        """Who only receives is noticed by its acks, as long as data still reaches it."""
        pair = proven()
        side, other = pair.sides[mover], pair.sides[1 - mover]
        stream = other.open()
        data = pair.random.randbytes(3 * MEGABYTE)
        other.write(stream, data, fin=True)
        pair.drive(lambda: len(side.received.get(stream, b"")) > MEGABYTE)
        old, new = side.address, self.move(side)

        def forward_old(source: Endpoint, to: Endpoint, packet: bytes) -> bool:
            if to == old:  # its gateway still knows the old mapping
                pair.fly(pair.now + 0.01, source, new, packet)
                return True
            return False

        pair.tap = forward_old
        pair.drive(lambda: other.event(PathChanged), seconds=5.0)
        pair.drive(lambda: stream in side.ended)
        assert side.received[stream] == data

    @pytest.mark.parametrize("mover", [0, 1])
    def test_on_an_idle_tunnel_by_the_next_keepalive(self, mover: int) -> None:
        pair = proven()
        side, other = pair.sides[mover], pair.sides[1 - mover]
        pair.drive(seconds=40.0)
        self.move(side)
        pair.drive(lambda: other.event(PathChanged), seconds=20.0)
        pair.drive(seconds=60.0)
        assert not is_over(pair)

    def test_again_and_again_and_back(self) -> None:
        pair = proven(keepalive=1.0)
        for port in (50_001, 50_002, 50_001, LEFT.port):
            self.move(pair.left, port)
            pair.drive(seconds=5.0)
            assert pair.right.tunnel.path.remote.port == port
        assert len(pair.right.all(PathChanged)) == 4

    def test_both_at_once(self) -> None:
        """Each only reaches where the other was. Whoever is behind a gateway that still forwards
        is found; here, both gateways keep the old mapping inwards for a moment."""
        pair = proven(keepalive=1.0)
        pair.drive(seconds=5.0)
        moved = {LEFT: self.move(pair.left), RIGHT: self.move(pair.right)}

        def forward_old(source: Endpoint, to: Endpoint, packet: bytes) -> bool:
            if to in moved:
                pair.fly(pair.now + 0.01, source, moved[to], packet)
                return True
            return False

        pair.tap = forward_old
        pair.drive(seconds=5.0)
        assert pair.left.tunnel.path.remote == moved[RIGHT]
        assert pair.right.tunnel.path.remote == moved[LEFT]

    def test_a_stranger_gets_no_more_than_he_sends(self) -> None:
        pair = proven()
        sent = {Endpoint("192.0.2.9", port): 0 for port in range(1000, 1050)}
        packets = [b"x", bytes(20), bytes(100), encode(Message(Kind.HELLO, b"\x77" * 16))]
        packets += [encode(Message(Kind.HELLO, SMALL, echo=LARGE, serial=1))]
        for _ in range(50):
            for source in sent:
                data = pair.random.choice(packets)
                sent[source] += len(data)
                pair.inject(pair.left, data, source)
            pair.drive(seconds=0.1)
        got = dict.fromkeys(sent, 0)
        for to, data in pair.elsewhere:
            if to in got:
                got[to] += len(data)
        assert all(got[source] <= sent[source] for source in sent)
        assert pair.left.tunnel.path.remote == RIGHT

    def test_who_copies_packets_is_not_followed_without_an_answer(self) -> None:
        pair = proven()
        stream = pair.right.open()

        def copy(source: Endpoint, to: Endpoint, data: bytes) -> bool:
            if source == RIGHT:
                pair.fly(pair.now + 0.001, NOBODY, to, data)
            return False

        pair.tap = copy
        pair.right.write(stream, bytes(MEGABYTE), fin=True)
        pair.drive(lambda: stream in pair.left.ended)
        pair.drive(seconds=2.0)
        assert pair.left.all(PathChanged) == []
        asked = [decode(data) for to, data in pair.elsewhere if to == NOBODY]
        assert 0 < len(asked) <= 20

    def test_an_answer_with_a_wrong_serial_or_from_elsewhere_changes_nothing(self) -> None:
        pair = proven()
        pair.inject(pair.left, bytes(500), NOBODY)
        pair.drive(seconds=0.1)
        (question,) = [decode(data) for to, data in pair.elsewhere if to == NOBODY]
        assert isinstance(question, Message)
        assert question.serial is not None
        for serial, source in ((question.serial + 1, NOBODY), (question.serial, RIGHT)):
            answer = Message(Kind.ACK, SMALL, serial=serial, echo=LARGE)
            pair.inject(pair.left, encode(answer), source)
        assert pair.left.tunnel.path.remote == RIGHT
        pair.inject(
            pair.left, encode(Message(Kind.ACK, SMALL, serial=question.serial, echo=LARGE)), NOBODY
        )
        assert pair.left.tunnel.path.remote == NOBODY

    def test_nobody_is_followed_before_the_proof(self) -> None:
        pair = SecurePair()
        pair.inject(pair.left, bytes(500), NOBODY)
        pair.drive(seconds=0.005)
        assert pair.elsewhere == []


# -- what others send -----------------------------------------------------------------------------


class TestStrangers:
    def test_a_flood_costs_little_and_changes_nothing(self) -> None:
        pair = proven()
        received: list[int] = []
        receive = pair.left.engine.receive

        def counted(datagrams: Sequence[bytes], now: float) -> None:
            received.append(len(datagrams))
            receive(datagrams, now)

        pair.left.engine.receive = counted  # type: ignore[method-assign]
        for number in range(20_000):
            source = NOBODY._replace(port=1 + number % 60_000)
            pair.left.tunnel.receive(bytes(50), Path(0, source), pair.now)
        assert sum(received) <= 64
        pair.drive(seconds=1.0)
        assert not is_over(pair)

    def test_a_flood_in_the_peers_name_costs_little_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = proven()
        received: list[int] = []
        for name in ("receive", "receive_run"):
            monkeypatch.setattr(pair.left.engine, name, lambda *_: received.append(1))
        tunnel = pair.left.tunnel
        for number in range(20_000):
            assert tunnel.is_flooded(pair.now) == (number > 64)
            tunnel.receive(b"\x40" + number.to_bytes(8, "big"), tunnel.path, pair.now)
        tunnel.receive_run(bytes(2000), 1000, tunnel.path, pair.now)
        assert sum(received) <= 64
        assert not tunnel.is_flooded(pair.now + 0.1)

    def test_what_the_peer_sends_is_no_flood(self) -> None:
        pair = proven()
        nonce, name = pair.right.tunnel.names
        assert nonce == LARGE
        pair.left.keep_sent = True
        stream = pair.left.open()
        pair.left.write(stream, bytes(2_000_000), fin=True)
        while stream not in pair.right.ended:
            pair.step()
            assert not any(side.tunnel.is_flooded(pair.now) for side in pair.sides)
        assert all(data[1:9] == name for data in pair.left.sent)

    def test_a_tunnel_that_is_not_open_has_no_shutter_to_close(self) -> None:
        pair = SecurePair()
        for _ in range(1000):
            pair.left.tunnel.receive(bytes(50), Path(0, NOBODY), pair.now)
        assert not pair.left.tunnel.is_flooded(pair.now)

    def test_garbage_at_any_time(self) -> None:
        chance = random.Random(3)
        for round_ in range(40):
            pair = SecurePair(seed=round_)
            stages: list[Callable[[], bool]] = [
                partial(reached, pair.left, State.PROVING),
                partial(reached, pair.left, State.OPEN),
                partial(reached, pair.right, State.OPEN),
            ]
            for stage in stages:
                for side in pair.sides:
                    for _ in range(5):
                        first = chance.choice([b"", b"\xc0\0\0\0\1", b"\x40", b"nat-traverse-"])
                        garbage = first + chance.randbytes(chance.randrange(1300))
                        pair.inject(side, garbage)
                        side.tunnel.receive_run(
                            garbage, max(1, len(garbage) // 3), side.tunnel.path, pair.now
                        )
                pair.drive(stage)
            stream = pair.left.open()
            pair.left.write(stream, b"still here", fin=True)
            pair.drive(partial(has_ended, pair.right, stream))

    def test_packets_that_were_changed_on_the_way(self) -> None:
        pair = proven()
        chance = random.Random(4)

        def change(source: Endpoint, to: Endpoint, data: bytes) -> bool:
            if chance.random() < 0.2:
                broken = bytearray(data)
                broken[chance.randrange(len(broken))] ^= 1 + chance.randrange(255)
                pair.fly(pair.now + 0.01, source, to, bytes(broken))
                return True
            return False

        pair.tap = change
        stream = pair.left.open()
        data = pair.random.randbytes(200_000)
        pair.left.write(stream, data, fin=True)
        pair.drive(lambda: stream in pair.right.ended, seconds=300.0)
        assert pair.right.received[stream] == data

    def test_an_earlier_run_played_again_has_no_effect(self) -> None:
        former = SecurePair()
        former.keep_carried = True
        former.prove()
        stream = former.left.open()
        former.left.write(stream, b"transfer 100", fin=True)
        former.drive(lambda: stream in former.right.ended)
        former.left.tunnel.close(Closing.COMPLETE)
        former.settle()
        former.drive(seconds=1.0)
        assert len(former.carried) > 8
        for moment in ("connecting", "open"):
            pair = SecurePair(seed=2, nonces=(b"\xfe" * 16, b"\x01" * 16))
            if moment == "open":
                pair.prove()
            before = [len(side.events) for side in pair.sides]
            for name, data in former.carried:
                side = pair.left if name == "left" else pair.right
                side.tunnel.receive(data, side.tunnel.path, pair.now)
            pair.settle()
            assert [len(side.events) for side in pair.sides] == before
            if moment == "connecting":
                pair.prove()
            pair.drive(seconds=1.0)
            fresh = pair.left.open()
            pair.left.write(fresh, b"new", fin=True)
            pair.drive(partial(has_ended, pair.right, fresh))
            assert bytes(pair.right.received[fresh]) == b"new"
            assert not is_over(pair)

    def test_its_own_packets_played_again_have_no_effect(self) -> None:
        pair = proven(network=Network(duplication=1.0, jitter=0.01))
        stream = pair.left.open()
        data = pair.random.randbytes(300_000)
        pair.left.write(stream, data, fin=True)
        pair.drive(lambda: stream in pair.right.ended)
        assert pair.right.received[stream] == data

    def test_the_traversals_late_messages_are_answered(self) -> None:
        pair = proven()
        nomination = Message(Kind.HELLO, LARGE, nominate=True, echo=SMALL, serial=9)
        answers: list[bytes] = []

        def note(source: Endpoint, _to: Endpoint, data: bytes) -> bool:
            if source == RIGHT:
                answers.append(data)
            return False

        pair.tap = note
        pair.inject(pair.right, encode(nomination, size=1350))
        (answer,) = [decode(data) for data in answers]
        assert isinstance(answer, Message)
        assert (answer.kind, answer.nominate, answer.serial) == (Kind.ACK, True, 9)

    def test_a_question_of_the_peers_is_answered_to_where_it_came_from(self) -> None:
        pair = proven()
        question = Message(Kind.HELLO, SMALL, echo=LARGE, serial=5)
        pair.inject(pair.left, encode(question), NOBODY)
        pair.drive(seconds=0.1)
        answers = [decode(data) for to, data in pair.elsewhere if to == NOBODY]
        assert [getattr(answer, "serial", None) for answer in answers] == [5]

    def test_after_the_end_nothing_has_an_effect(self) -> None:
        pair = proven()
        pair.left.tunnel.close(Closing.STOPPED)
        pair.settle()
        events = list(pair.left.events)
        for data in (b"x", encode(Message(Kind.HELLO, SMALL, echo=LARGE, closing=Reason.STOPPED))):
            pair.inject(pair.left, data)
        pair.left.tunnel.handle_timer(pair.now + 100)
        assert pair.left.events == events
        assert list(pair.left.tunnel.datagrams_to_send(pair.now)) == []


def test_runs_and_single_datagrams_come_to_the_same() -> None:
    pair = proven()
    packets: list[bytes] = []

    def keep(source: Endpoint, _to: Endpoint, data: bytes) -> bool:
        if source == LEFT:
            packets.append(data)
            return True
        return False

    pair.tap = keep
    stream = pair.left.open()
    data = pair.random.randbytes(9_000)
    pair.left.write(stream, data, fin=True)
    pair.settle()
    size = max(map(len, packets))
    at = 0
    while at < len(packets):
        end = at
        while end < len(packets) and len(packets[end]) == size:
            end += 1
        run = b"".join(packets[at : end + 1])
        pair.right.tunnel.receive_run(run, len(packets[at]), pair.right.tunnel.path, pair.now)
        at = end + 1
    pair.settle()
    assert pair.right.received[stream] == data


def test_a_run_from_elsewhere_makes_the_peer_followed() -> None:
    pair = proven()
    stream = pair.left.open()
    packets: list[bytes] = []

    def keep(_source: Endpoint, _to: Endpoint, data: bytes) -> bool:
        packets.append(data)
        return True

    pair.tap = keep
    pair.left.write(stream, bytes(9_000))
    pair.settle()
    pair.tap = lambda _source, _to, _data: False
    full = [data for data in packets if len(data) == max(map(len, packets))]
    pair.left.address = LEFT._replace(port=50_000)
    path = Path(0, pair.left.address)
    pair.right.tunnel.receive_run(b"".join(full), len(full[0]), path, pair.now)
    pair.right.tunnel.receive_run(b"".join(full) * 20, len(full[0]), path, pair.now)  # too many
    pair.settle()
    pair.drive(lambda: pair.right.event(PathChanged), seconds=1.0)


def test_the_log_of_the_library_is_not_our_users(capfd: pytest.CaptureFixture[str]) -> None:
    pair = proven()
    pair.left.tunnel.close(Closing.STOPPED)
    pair.settle()
    pair.drive(lambda: is_over(pair))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("quic").handlers


def test_other_versions_of_the_protocol_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = SecurePair()
    other = QuicEngine(is_client=True, datagram_size=1350, name=connection_name(LARGE, SMALL))
    monkeypatch.setattr(other._configuration, "alpn_protocols", ["nat-traverse/99"])
    pair._flying.clear()
    other.start(pair.now)
    pair.left.engine = other
    pair.left.tunnel._engine = other
    pair.settle()
    pair.drive(lambda: is_over(pair), seconds=12.0)
    for side in pair.sides:
        closed = side.event(PeerClosed)
        assert closed is not None
        assert closed.code == Closing.PROTOCOL
        assert closed.text
