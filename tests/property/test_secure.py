"""Two encrypted tunnels, and whatever their users, the network and strangers do, in any order.

Whatever it is, what arrives is a beginning of what was sent, nothing raises, and what is kept is
bounded. Hypothesis prints the steps of a failure, and they alone decide about loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from nat_traverse.tunnel.credit import BUDGET, FIRST_WINDOW
from nat_traverse.tunnel.engine import StreamReset, StreamStopped
from nat_traverse.tunnel.events import (
    Closing,
    Ended,
    NotEstablished,
    NotProven,
    PeerClosed,
    PeerVanished,
    Proven,
)
from nat_traverse.tunnel.secure import State
from nat_traverse.wire.hello import HELLO_SIZE, Kind, Message, Reason, encode
from support.secure_pair import LARGE, SMALL, Network, SecurePair, Side

if TYPE_CHECKING:
    from collections.abc import Sequence

NOBODY = Endpoint("192.0.2.9", 9)
ENDS = (NotProven, NotEstablished, PeerClosed, PeerVanished, Ended)
STREAMS = 100  # that QUIC lets a side have open

sides = st.sampled_from([0, 1])
picks = st.integers(0, 1 << 16)
sizes = st.sampled_from([0, 1, 1000, 70_000, 600_000])
garbage = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=200).map(lambda data: b"\xc0\0\0\0\1\x08" + data),
    st.binary(min_size=20, max_size=200).map(lambda data: b"\x42" + data),
    st.builds(
        lambda kind, nonce, echo, closing, size: encode(
            Message(kind, nonce, echo=echo, closing=closing, serial=1), size=size
        ),
        st.sampled_from(Kind),
        st.sampled_from([LARGE, SMALL, b"\x77" * 16]),
        st.sampled_from([None, LARGE, SMALL]),
        st.sampled_from([None, *Reason]),
        st.sampled_from([0, HELLO_SIZE]),
    ),
)


class TunnelUnderFire(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1000), loss=st.sampled_from([0.0, 0.05, 0.3]))
    def begin(self, seed: int, loss: float) -> None:
        network = Network(loss=loss, jitter=0.01, duplication=loss / 2)
        self.pair = SecurePair(seed=seed, network=network)
        self.sent: dict[tuple[str, int], bytearray] = {}

    def side(self, which: int) -> Side:
        return self.pair.sides[which]

    def streams(self, side: Side) -> Sequence[int]:
        return sorted(side.tunnel._streams)

    # -- what the users do --------------------------------------------------------------------

    @rule(which=sides)
    def open(self, which: int) -> None:
        self.side(which).tunnel.open_stream()

    @rule(which=sides, pick=picks, size=sizes, fin=st.booleans())
    def send(self, which: int, pick: int, size: int, *, fin: bool) -> None:
        side = self.side(which)
        numbers = [each for each in self.streams(side) if side.tunnel.is_sending(each)]
        if not numbers:
            return
        stream = numbers[pick % len(numbers)]
        room = side.tunnel.room(stream)
        assert room >= 0
        data = self.pair.random.randbytes(min(size, room))
        side.tunnel.send(stream, data, fin=fin)
        self.sent.setdefault((side.name, stream), bytearray()).extend(data)

    @rule(which=sides, reads=st.booleans())
    def read_or_not(self, which: int, *, reads: bool) -> None:
        self.side(which).consuming = reads

    @rule(which=sides, pick=picks)
    def reset(self, which: int, pick: int) -> None:
        side = self.side(which)
        if numbers := self.streams(side):
            side.tunnel.reset(numbers[pick % len(numbers)])

    @rule(which=sides, pick=picks)
    def stop(self, which: int, pick: int) -> None:
        side = self.side(which)
        if numbers := self.streams(side):
            side.tunnel.stop(numbers[pick % len(numbers)])

    @rule(which=sides, size=st.integers(0, 1000))
    def send_datagram(self, which: int, size: int) -> None:
        self.side(which).tunnel.send_datagram(0, bytes(size))

    @rule(which=sides, really=st.integers(0, 4).map(lambda number: number == 0))
    def leave(self, which: int, *, really: bool) -> None:
        if really:
            self.side(which).tunnel.leave(self.pair.now)

    @rule(
        which=sides,
        code=st.sampled_from(Closing),
        really=st.integers(0, 9).map(lambda number: number == 0),
    )
    def close(self, which: int, code: int, *, really: bool) -> None:
        if really:
            self.side(which).tunnel.close(code, "because")

    # -- what the network and others do -------------------------------------------------------

    @rule(which=sides, data=garbage, elsewhere=st.booleans())
    def receive_garbage(self, which: int, data: bytes, *, elsewhere: bool) -> None:
        self.pair.inject(self.side(which), data, NOBODY if elsewhere else None)

    @rule(which=sides, data=garbage, size=st.integers(1, 200))
    def receive_garbage_in_a_run(self, which: int, data: bytes, size: int) -> None:
        side = self.side(which)
        side.tunnel.receive_run(data, size, side.tunnel.path, self.pair.now)

    @rule(which=sides, kind=st.sampled_from(ErrorKind))
    def refuse(self, which: int, kind: ErrorKind) -> None:
        side = self.side(which)
        side.tunnel.receive_error(NetworkError(kind, 1), side.tunnel.path, self.pair.now)

    @rule(which=sides, port=st.integers(50_000, 50_003))
    def move(self, which: int, port: int) -> None:
        side = self.side(which)
        side.address = side.address._replace(port=port)

    @rule(lost=st.booleans())
    def cut_or_mend(self, *, lost: bool) -> None:
        self.pair.network.loss = 1.0 if lost else 0.0

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.05, 1.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.pair.drive(seconds=seconds)

    @rule()
    def let_it_connect(self) -> None:
        if self.pair.sides[0].tunnel.state is State.CONNECTING:
            self.pair.drive(seconds=0.3)

    # -- what holds all the time --------------------------------------------------------------

    @invariant()
    def what_arrives_is_a_beginning_of_what_was_sent(self) -> None:
        for side in self.pair.sides:
            other = self.pair.other(side)
            for stream, data in side.received.items():
                whole = self.sent.get((other.name, stream), bytearray())
                assert data == whole[: len(data)]
                if stream in side.ended:
                    assert data == whole

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        for side in self.pair.sides:
            tunnel = side.tunnel
            assert len(tunnel._streams) <= 2 * STREAMS
            assert len(tunnel._skipped) <= STREAMS
            assert len(tunnel._early) <= 256
            assert tunnel._budget.used <= BUDGET
            assert len(tunnel._messages) <= 64
            assert sum(side.unread.values()) <= BUDGET + FIRST_WINDOW * 2 * STREAMS

    @invariant()
    def nothing_comes_before_the_proof_or_after_the_end(self) -> None:
        for side in self.pair.sides:
            kinds = [type(event) for event in side.events]
            ends = [index for index, kind in enumerate(kinds) if kind in ENDS]
            assert len(ends) <= 1
            assert not ends or ends[0] == len(kinds) - 1
            assert kinds.count(Proven) <= 1
            if kinds and kinds[0] not in ENDS:
                assert kinds[0] is Proven
            if ends:
                assert side.tunnel.state is State.OVER
                assert side.tunnel.get_timer() is None

    @invariant()
    def a_stream_ends_once(self) -> None:
        for side in self.pair.sides:
            resets = [event.stream for event in side.all(StreamReset)]
            stops = [event.stream for event in side.all(StreamStopped)]
            for numbers in (resets, stops):
                assert len(numbers) == len(set(numbers))

    @invariant()
    def time_goes_on(self) -> None:
        for side in self.pair.sides:
            at = side.tunnel.get_timer()
            if at is not None and at <= self.pair.now:
                for _ in range(8):
                    side.tunnel.handle_timer(self.pair.now)
                list(side.tunnel.datagrams_to_send(self.pair.now))
                following = side.tunnel.get_timer()
                assert following is None or following > self.pair.now, "it would spin"


TestTunnelUnderFire = TunnelUnderFire.TestCase
# The first failure is shown as it is. QUIC draws keys and numbers of its own, so that the same
# steps need not fail again: what shrinks and explains would take that for a mistake of the test.
TestTunnelUnderFire.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, phases=[Phase.generate]
)
