"""The real library: two engines that are joined in memory."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from qh3 import tls

from nat_traverse.tunnel.engine import (
    Alive,
    Datagram,
    Established,
    StreamData,
    StreamReset,
    StreamStopped,
    Terminated,
)
from nat_traverse.tunnel.quic import (
    PROTOCOL,
    SMALLEST_DATAGRAM,
    QuicEngine,
    connection_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.tunnel.engine import Engine, EngineEvent

CLIENT_NONCE, SERVER_NONCE = b"\x02" * 16, b"\x01" * 16
NAME = connection_name(CLIENT_NONCE, SERVER_NONCE)
SIZE = 1350


class Wire:
    """A client and a server; what one sends arrives at the other after 10 ms."""

    def __init__(self, *, name: bytes = NAME, size: int = SIZE) -> None:
        self.now = 100.0
        self.client = QuicEngine(is_client=True, datagram_size=size, name=NAME)
        self.server = QuicEngine(is_client=False, datagram_size=size, name=name)
        self.events: dict[QuicEngine, list[EngineEvent]] = {self.client: [], self.server: []}
        self.sizes: list[int] = []
        self.cut = False
        for engine in self.engines:
            engine.start(self.now)

    @property
    def engines(self) -> tuple[QuicEngine, QuicEngine]:
        return self.client, self.server

    def turn(self, seconds: float = 0.01) -> None:
        flying = [
            (to, engine.datagrams_to_send(self.now))
            for engine, to in zip(self.engines, reversed(self.engines), strict=True)
        ]
        self.now += seconds
        for to, datagrams in flying:
            self.sizes += map(len, datagrams)
            if datagrams and not self.cut:
                to.receive(datagrams, self.now)
        for engine in self.engines:
            at = engine.get_timer()
            if at is not None and at <= self.now:
                engine.handle_timer(self.now)
            self.read(engine)

    def read(self, engine: QuicEngine) -> None:
        while (event := engine.next_event()) is not None:
            self.events[engine].append(event)

    def run(self, until: Callable[[], object], turns: int = 500) -> None:
        for _ in range(turns):
            if until():
                return
            self.turn()
        raise AssertionError("it did not come to be")

    def establish(self) -> None:
        self.run(lambda: all(self.event(engine, Established) for engine in self.engines))
        for _ in range(3):
            self.turn()

    def event(self, engine: QuicEngine, kind: type) -> EngineEvent | None:
        return next((each for each in self.events[engine] if isinstance(each, kind)), None)

    def has_received(self, engine: QuicEngine, stream: int, size: int) -> bool:
        return len(self.data(engine, stream)) == size

    def data(self, engine: QuicEngine, stream: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events[engine]
            if isinstance(event, StreamData) and event.stream == stream
        )


def established(**settings: int) -> Wire:
    wire = Wire(**settings)  # type: ignore[arg-type]
    wire.establish()
    return wire


def opened(engine: QuicEngine) -> int:
    number = engine.open_stream()
    assert number is not None
    return number


class TestEstablishing:
    def test_both_know_the_servers_certificate(self) -> None:
        wire = established()
        events = [wire.event(engine, Established) for engine in wire.engines]
        assert events[0] == events[1]
        assert isinstance(events[0], Established)
        assert len(events[0].fingerprint) == 32

    def test_each_run_has_another(self) -> None:
        one, other = established(), established()
        assert one.event(one.client, Established) != other.event(other.client, Established)

    def test_the_key_exchange_withstands_quantum_computers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is what the server's hello says, as the client reads it."""
        groups = []
        pull = tls.pull_server_hello

        def seen(buffer: Any) -> Any:
            hello = pull(buffer)
            assert hello.key_share is not None
            groups.append(hello.key_share[0])
            return hello

        monkeypatch.setattr(tls, "pull_server_hello", seen)
        established()
        assert groups == [tls.Group.X25519ML768]
        assert groups == [0x11EC], "X25519MLKEM768, as IANA numbers it"

    def test_they_speak_this_protocol_and_no_other(self) -> None:
        assert PROTOCOL == "nat-traverse/1"
        wire = Wire()
        wire.client._configuration.alpn_protocols = ["h3"]
        wire.client._connection = wire.client._new_connection()
        wire.client.start(wire.now)
        wire.run(lambda: all(wire.event(engine, Terminated) for engine in wire.engines))
        for engine in wire.engines:
            (end,) = wire.events[engine]
            assert isinstance(end, Terminated)
            assert end.code is None
            assert "ALPN" in end.reason

    def test_no_datagram_is_larger_than_the_path_takes(self) -> None:
        for size in (SMALLEST_DATAGRAM, SIZE):
            wire = established(size=size)
            stream = opened(wire.client)
            wire.client.send(stream, bytes(200_000), fin=True)
            wire.run(partial(wire.has_received, wire.server, stream, 200_000))
            assert max(wire.sizes) <= size
            assert max(wire.sizes) > size - 50

    def test_the_name_is_the_nonces(self) -> None:
        assert len(NAME) == 8
        assert connection_name(SERVER_NONCE, CLIENT_NONCE) != NAME
        assert connection_name(CLIENT_NONCE, SERVER_NONCE) == NAME

    def test_a_first_packet_of_another_connection_is_ignored(self) -> None:
        wire, other = Wire(), Wire(name=b"\x99" * 8)
        strange = QuicEngine(is_client=True, datagram_size=SIZE, name=b"\x99" * 8)
        strange.start(wire.now)
        wire.server.receive(strange.datagrams_to_send(wire.now), wire.now)
        assert wire.server.datagrams_to_send(wire.now) == []
        wire.establish()
        with pytest.raises(AssertionError):
            other.establish()

    def test_a_client_all_of_whose_first_packets_were_lost(self) -> None:
        """What comes first then is a mere sign of life, in which there is nothing to begin with."""
        wire = Wire()
        assert wire.client.datagrams_to_send(wire.now)
        wire.establish()

    def test_first_packets_that_are_repeated_as_they_are_keep_the_size(self) -> None:
        """Where the engine repeats them, it takes the path for a narrow one, for good."""
        wire = Wire()
        first = wire.client.datagrams_to_send(wire.now)
        at = wire.client.get_timer()
        assert at is not None
        assert at - wire.now > 1.5, "there is time for several repetitions"
        wire.now += 1.5
        wire.server.receive(first, wire.now)
        wire.establish()
        stream = opened(wire.client)
        wire.client.send(stream, bytes(100_000), fin=True)
        wire.run(lambda: wire.has_received(wire.server, stream, 100_000))
        assert max(wire.sizes) > SIZE - 50

    def test_a_run_that_comes_before_is_cut_up(self) -> None:
        wire = Wire()
        first = wire.client.datagrams_to_send(wire.now)
        assert {len(data) for data in first} == {len(first[0])}
        wire.server.receive_run(b"".join(first), len(first[0]), wire.now)
        wire.establish()


class TestGarbage:
    @pytest.mark.parametrize("seed", range(5))
    def test_in_every_state_is_ignored(self, seed: int) -> None:
        chance = random.Random(seed)
        wire = Wire()

        def shoot() -> None:
            for engine in wire.engines:
                for first in (b"", b"\xc0\0\0\0\1\x08" + NAME, b"\x40" + NAME, b"\xff", NAME):
                    data = first + chance.randbytes(chance.randrange(1400))
                    engine.receive([data, b""], wire.now)
                    engine.receive_run(data, chance.randrange(1, 1400), wire.now)
                wire.read(engine)

        for _ in range(12):
            shoot()
            wire.turn()
        wire.establish()
        shoot()
        stream = opened(wire.client)
        wire.client.send(stream, b"alive", fin=True)
        wire.run(lambda: wire.data(wire.server, stream) == b"alive")
        wire.client.close(0, "")
        shoot()
        wire.turn()
        shoot()

    def test_packets_of_another_connection_are_ignored(self) -> None:
        wire, other = established(), established()
        stream = opened(other.client)
        other.client.send(stream, b"not yours", fin=True)
        wire.server.receive(other.client.datagrams_to_send(other.now), wire.now)
        wire.read(wire.server)
        assert wire.data(wire.server, stream) == b""

    def test_the_same_packet_twice_counts_once(self) -> None:
        wire = established()
        stream = opened(wire.client)
        wire.client.send(stream, b"once", fin=True)
        packets = wire.client.datagrams_to_send(wire.now)
        wire.server.receive(packets * 3, wire.now)
        wire.read(wire.server)
        assert wire.data(wire.server, stream) == b"once"


class TestStreams:
    def test_numbers(self) -> None:
        wire = established()
        client, server = wire.engines
        assert [opened(client), opened(client)] == [0, 4]
        assert [opened(server), opened(server)] == [1, 5]
        assert client.open_stream(both_ways=False) == 2
        assert server.open_stream(both_ways=False) == 3

    def test_carry_data_both_ways_and_end_in_halves(self) -> None:
        wire = established()
        stream = opened(wire.client)
        wire.client.send(stream, b"question", fin=True)
        wire.run(lambda: wire.data(wire.server, stream) == b"question")
        assert wire.events[wire.server][-1] == StreamData(stream, b"question", fin=True)
        wire.server.send(stream, memoryview(b"answer"), fin=True)
        wire.run(lambda: wire.data(wire.client, stream) == b"answer")

    def test_a_hundred_at_most_then_none_until_one_ends(self) -> None:
        wire = established()
        numbers = [opened(wire.client) for _ in range(100)]
        assert wire.client.open_stream() is None
        for number in numbers:
            wire.client.send(number, b"x", fin=True)
        wire.run(lambda: all(wire.data(wire.server, number) for number in numbers))
        assert wire.client.open_stream() is None
        for number in numbers[:50]:
            wire.server.send(number, b"", fin=True)
        wire.run(lambda: wire.client.open_stream() is not None)

    def test_what_was_not_sent_is_counted(self) -> None:
        wire = established()
        stream = opened(wire.client)
        wire.client.send(stream, bytes(500_000))
        assert wire.client.unsent(stream) == 500_000
        wire.turn()
        assert 0 < wire.client.unsent(stream) < 500_000
        assert wire.client.unsent(400) == 0

    def test_resets_and_stops(self) -> None:
        wire = established()
        stream = opened(wire.client)
        wire.client.send(stream, b"x")
        wire.turn()
        wire.client.reset(stream, 7)
        wire.server.stop(stream, 9)
        wire.run(lambda: wire.event(wire.server, StreamReset))
        assert wire.event(wire.server, StreamReset) == StreamReset(stream, 7)
        other = opened(wire.client)
        wire.client.send(other, b"x")
        wire.run(lambda: wire.data(wire.server, other))
        wire.server.stop(other, 9)
        wire.run(lambda: wire.event(wire.client, StreamStopped))
        assert wire.event(wire.client, StreamStopped) in (
            StreamStopped(stream, 9),
            StreamStopped(other, 9),
        )

    def test_what_is_over_may_be_reset_and_stopped_again(self) -> None:
        wire = established()
        for number in (opened(wire.client), 400, 401):
            for _ in range(2):
                wire.client.reset(number, 1)
                wire.client.stop(number, 1)
        wire.turn()
        assert wire.event(wire.client, Terminated) is None


class TestPacing:
    def grown(self) -> tuple[Wire, int]:
        """Return a connection that has sent much, with nothing under way, and a stream of it."""
        wire = established()
        stream = opened(wire.client)
        wire.client.send(stream, bytes(600_000))
        wire.run(lambda: wire.has_received(wire.server, stream, 600_000))
        for _ in range(5):
            wire.turn()
        return wire, stream

    def test_a_window_does_not_leave_at_once(self) -> None:
        wire, stream = self.grown()
        core = wire.client._connection._core
        assert core is not None
        window = core.congestion_window
        assert window > 200_000
        wire.client.send(stream, bytes(2 * window))
        first = sum(map(len, wire.client.datagrams_to_send(wire.now)))
        # 4 ms of 1.25 windows in a round trip of 20 ms, and up to a datagram more.
        assert 0 < first <= 0.3 * window
        assert not wire.client.has_room

    def test_it_leaves_within_a_round_trip_when_the_timer_says(self) -> None:
        wire, stream = self.grown()
        core = wire.client._connection._core
        assert core is not None
        window = core.congestion_window
        wire.client.send(stream, bytes(2 * window))
        begun, now = wire.now, wire.now
        sent = 0
        while True:
            sent += sum(map(len, wire.client.datagrams_to_send(now)))
            if sent > window - SIZE:
                break
            at = wire.client.get_timer()
            assert at is not None
            assert now < at <= now + 0.005
            now = at
        assert 0.010 < now - begun < 0.020

    def test_a_goodbye_does_not_wait(self) -> None:
        wire, stream = self.grown()
        wire.client.send(stream, bytes(1_000_000))
        wire.client.datagrams_to_send(wire.now)
        assert wire.client.datagrams_to_send(wire.now) == []
        wire.client.close(4, "enough")
        assert wire.client.datagrams_to_send(wire.now)


class TestDatagrams:
    def test_arrive_whole(self) -> None:
        wire = established()
        data = bytes(range(256)) * 5
        largest = data + bytes(wire.client.datagram_limit - len(data))
        wire.client.send_datagram(b"")
        wire.client.send_datagram(largest)
        wire.run(lambda: wire.events[wire.server][-1] == Datagram(largest))
        assert Datagram(b"") in wire.events[wire.server]

    @pytest.mark.parametrize("size", [SMALLEST_DATAGRAM, SIZE, 1400])
    def test_the_largest_fits_on_both_sides(self, size: int) -> None:
        wire = established(size=size)
        for engine, other in (wire.engines, wire.engines[::-1]):
            engine.send_datagram(bytes(engine.datagram_limit))
            wire.run(partial(wire.event, other, Datagram))
        assert max(wire.sizes) <= size

    def test_one_byte_more_is_a_value_error_and_no_end(self) -> None:
        wire = established()
        with pytest.raises(ValueError, match="fit"):
            wire.client.send_datagram(bytes(wire.client.datagram_limit + 1))
        wire.turn()
        wire.client.send_datagram(b"x")
        wire.run(lambda: wire.event(wire.server, Datagram))

    def test_room_goes_and_comes(self) -> None:
        wire = established()
        before = wire.client.has_room
        assert before
        for _ in range(1000):
            wire.client.send_datagram(bytes(1000))
        wire.client.datagrams_to_send(wire.now)
        assert not wire.client.has_room
        wire.run(lambda: wire.client.has_room)


class TestEnds:
    @pytest.mark.parametrize("code", [0, 4, 0x10, 0x1234])
    def test_the_peer_hears_the_code_at_once(self, code: int) -> None:
        wire = established()
        wire.client.close(code, "why")
        wire.turn()
        assert wire.events[wire.server][-1] == Terminated(code, "why")
        for _ in range(100):
            wire.turn(0.1)
        both = [*wire.events[wire.client], *wire.events[wire.server]]
        ends = [event for event in both if isinstance(event, Terminated)]
        assert len(ends) == 1, "the peer is told once, and who ended it not at all"

    def test_silence_is_an_end_without_a_code_at_last(self) -> None:
        wire = established()
        wire.cut = True
        for _ in range(70):
            wire.turn(1.0)
        for engine in wire.engines:
            end = wire.events[engine][-1]
            assert isinstance(end, Terminated)
            assert end.code is None

    def test_after_the_end_everything_may_be_called(self) -> None:
        wire = established()
        stream = opened(wire.client)
        wire.client.close(0, "")
        wire.client.close(1, "again")
        wire.client.reset(stream, 1)
        wire.client.stop(stream, 1)
        wire.client.ping()
        assert wire.client.unsent(stream) == 0
        wire.turn()
        wire.client.handle_timer(wire.now + 100)
        wire.server.receive([b"x"], wire.now)

    def test_behind_an_unread_goodbye_everything_may_be_called(self) -> None:
        """The frame that one answers and the goodbye may have come together."""
        wire = established()
        stream = opened(wire.client)
        wire.server.close(5, "")
        wire.client.receive(wire.server.datagrams_to_send(wire.now), wire.now)
        wire.client.send(stream, b"into the void")
        wire.client.send_datagram(b"into the void")
        assert wire.client.open_stream() is None
        assert wire.client.open_stream(both_ways=False) is None
        wire.read(wire.client)
        assert wire.events[wire.client][-1] == Terminated(5, "")

    def test_before_the_beginning_everything_may_be_called(self) -> None:
        server = QuicEngine(is_client=False, datagram_size=SIZE, name=NAME)
        assert server.get_timer() is None
        assert server.datagrams_to_send(0.0) == []
        assert server.next_event() is None
        assert not server.has_room
        server.handle_timer(0.0)
        server.ping()
        server.close(0, "")


def test_a_ping_is_answered() -> None:
    wire = established()
    wire.client.ping()
    wire.run(lambda: wire.event(wire.client, Alive))


def test_it_is_an_engine() -> None:
    engine: Engine = QuicEngine(is_client=True, datagram_size=SIZE, name=NAME)
    assert engine.datagram_limit < SIZE
