from __future__ import annotations

import asyncio
import errno
import pathlib
import resource
import socket
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.model import Endpoint, ErrorKind, Generation, NetworkError, Path
from nat_traverse.net.driver import Driver
from nat_traverse.net.udp import UdpSocket
from nat_traverse.punch.machine import (
    CloseSocket,
    Effect,
    Event,
    OpenSocket,
    PeerHeard,
    Send,
    Settled,
)
from support.sockets import closed_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PATIENCE = 20.0  # s; for a machine under load. Only a failing test waits that long.
HOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
ANYWHERE = Path(0, Endpoint("127.0.0.1", 9))
HEARD = PeerHeard(ANYWHERE, Generation.CURRENT)


class Scripted:
    """A machine that writes down what it is told, and does what the test says."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.pending: deque[Effect] = deque()
        self.events: deque[Event] = deque()
        self.timer: float | None = None
        self.on_datagram: Callable[[bytes, Path], None] = lambda _data, _path: None
        self.on_opened: Callable[[int], None] = lambda _number: None

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        self.log.append(("datagram", data, path, now))
        self.on_datagram(data, path)

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        self.log.append(("error", error, path, now))

    def socket_opened(self, number: int, port: int, now: float) -> None:
        self.log.append(("opened", number, port, now))
        self.on_opened(number)

    def socket_failed(self, number: int, now: float) -> None:
        self.log.append(("failed", number, now))

    def handle_timer(self, now: float) -> None:
        self.log.append(("timer", now))
        if self.timer is not None and self.timer <= now:
            self.timer = None

    def get_timer(self) -> float | None:
        return self.timer

    def effects(self, now: float) -> Iterator[Effect]:  # noqa: ARG002 (the interface's argument)
        while self.pending:
            yield self.pending.popleft()

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.log if entry[0] == kind]

    @property
    def received(self) -> list[bytes]:
        return [data for _, data, _, _ in self.all("datagram")]


class Bench:
    """A driver on real sockets, and a socket that plays the network."""

    def __init__(self, *families: socket.AddressFamily) -> None:
        self.loop = asyncio.get_running_loop()
        self.machine = Scripted()
        self.told: list[Event] = []
        self.stops_at: type | None = None
        self.sockets = {
            number: UdpSocket(family, 0, host=HOST[family])
            for number, family in enumerate(families or (socket.AF_INET,))
        }
        self.driver = Driver(self.machine, self.sockets, self.loop, self.observe)
        self.outside = UdpSocket(socket.AF_INET, 0, host="127.0.0.1")

    def observe(self, event: Event) -> None:
        self.told.append(event)
        if self.stops_at is not None and isinstance(event, self.stops_at):
            self.driver.stop()

    def arrive(self, *datagrams: bytes) -> None:
        for data in datagrams:
            assert self.outside.send(data, self.sockets[0].local) is None

    def close(self) -> None:
        self.driver.stop()
        for sock in (*self.sockets.values(), self.outside):
            sock.close()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = self.loop.time() + PATIENCE
        while not condition():
            assert self.loop.time() < deadline, f"not within {PATIENCE:g} s: {what}"
            await asyncio.sleep(0.001)  # between looks, so that the driver gets its turn


def on_bench(test: Callable[[Bench], Awaitable[None]], *families: socket.AddressFamily) -> None:
    async def run() -> None:
        bench = Bench(*families)
        try:
            await test(bench)
        finally:
            bench.close()

    asyncio.run(run())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_what_arrives_is_fed_in_with_its_path(family: socket.AddressFamily) -> None:
    async def test(bench: Bench) -> None:
        bench.driver.start()
        with UdpSocket(family, 0, host=HOST[family]) as sender:
            before = bench.loop.time()
            sender.send(b"one", bench.sockets[1].local)
            sender.send(b"", bench.sockets[1].local)
            await bench.until(lambda: len(bench.machine.received) == 2, "both datagrams")
            for entry, data in zip(bench.machine.all("datagram"), (b"one", b""), strict=True):
                assert entry[1:3] == (data, Path(1, sender.local))
                assert before <= entry[3] <= bench.loop.time()

    on_bench(test, socket.AF_INET, family)


def test_effects_are_sent_in_order_with_their_ttl() -> None:
    async def test(bench: Bench) -> None:
        to = Path(0, bench.outside.local)
        # On loopback even a TTL of 1 arrives.
        bench.machine.pending += [Send(b"a", to, ttl=1), Send(b"b", to), Send(b"c", to, ttl=7)]
        bench.driver.start()
        assert [bench.outside.receive() for _ in range(3)] == [
            (data, bench.sockets[0].local) for data in (b"a", b"b", b"c")
        ]

    on_bench(test)


def test_answers_leave_by_the_socket_of_their_path() -> None:
    async def test(bench: Bench) -> None:
        def answer(data: bytes, path: Path) -> None:
            bench.machine.pending.append(Send(b"re: " + data, path._replace(socket=1)))

        bench.machine.on_datagram = answer
        bench.driver.start()
        bench.arrive(b"x")
        await bench.until(lambda: bench.machine.received, "the datagram")
        assert bench.outside.receive() == (b"re: x", bench.sockets[1].local)

    on_bench(test, socket.AF_INET, socket.AF_INET)


def test_a_refusal_by_the_network_is_fed_back() -> None:
    async def test(bench: Bench) -> None:
        with closed_port() as nobody:
            bench.machine.pending.append(Send(b"x", Path(0, nobody)))
            bench.driver.start()
            await bench.until(lambda: bench.machine.all("error"), "the refusal")
            _, error, path, _ = bench.machine.all("error")[0]
            assert error == NetworkError(
                ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, "127.0.0.1"
            )
            assert path == Path(0, nobody)

    on_bench(test)


def test_a_refusal_by_this_host_is_fed_back_at_once() -> None:
    async def test(bench: Bench) -> None:
        broadcast = Path(0, Endpoint("255.255.255.255", 9))  # needs SO_BROADCAST
        fine = Path(0, bench.outside.local)
        bench.machine.pending += [Send(b"x", broadcast), Send(b"after", fine)]
        bench.driver.start()
        ((_, error, path, _),) = bench.machine.all("error")
        assert (error.kind, error.errno) == (ErrorKind.NOT_PERMITTED, errno.EACCES)
        assert error.reporter is None
        assert path == broadcast
        assert bench.outside.receive() == (b"after", bench.sockets[0].local)

    on_bench(test)


def test_the_timer_comes_not_too_early_and_comes_again() -> None:
    async def test(bench: Bench) -> None:
        wanted = [bench.loop.time() + 0.02, bench.loop.time() + 0.04]
        bench.machine.timer = wanted[0]
        bench.driver.start()
        await bench.until(lambda: len(bench.machine.all("timer")) == 2, "the first timer")
        bench.machine.timer = wanted[1]
        bench.arrive(b"whatever makes the driver look again")
        await bench.until(lambda: len(bench.machine.all("timer")) == 3, "the second timer")
        times = [now for _, now in bench.machine.all("timer")]
        assert times[1] >= wanted[0]
        assert times[2] >= wanted[1]

    on_bench(test)


def test_events_are_told_in_order() -> None:
    async def test(bench: Bench) -> None:
        bench.machine.events += [HEARD, Settled(), HEARD]
        bench.driver.start()
        assert bench.told == [HEARD, Settled(), HEARD]

    on_bench(test)


def test_a_stop_in_the_middle_leaves_the_rest_unread() -> None:
    async def test(bench: Bench) -> None:
        def connect(data: bytes, _: Path) -> None:
            if data == b"third":
                bench.machine.events.append(Settled())

        bench.machine.on_datagram = connect
        bench.stops_at = Settled
        bench.arrive(b"first", b"second", b"third", b"fourth", b"fifth")
        bench.driver.start()
        await bench.until(lambda: bench.told, "the event")
        for _ in range(3):  # turns in which a driver that goes on would read on
            await asyncio.sleep(0)
        assert bench.machine.received == [b"first", b"second", b"third"]
        rest = [bench.sockets[0].receive() for _ in range(3)]
        assert rest == [(b"fourth", bench.outside.local), (b"fifth", bench.outside.local), None]

    on_bench(test)


def test_what_a_stop_leaves_in_a_run_is_there_for_the_relay() -> None:
    """A burst of the peer's data whose first datagram ends the handshake: none may be lost."""

    async def test(bench: Bench) -> None:
        bench.sockets[0].enlarge_buffers()
        bench.machine.on_datagram = lambda _data, _path: bench.machine.events.append(Settled())
        bench.stops_at = Settled
        burst = b"".join(bytes([number]) * 1400 for number in range(10))
        address = ("127.0.0.1", bench.sockets[0].local.port)
        assert bench.outside.send_segments([burst], 1400, address) == len(burst)
        bench.driver.start()
        await bench.until(lambda: bench.told, "the event")
        bench.sockets[0].enable_offload()
        buffer, rest = bytearray(65_535), b""
        while (run := bench.sockets[0].receive_into(buffer)) is not None:
            rest += buffer[: run.length]
        assert b"".join(bench.machine.received) + rest == burst

    on_bench(test)


def test_after_a_stop_nothing_happens_until_the_next_start() -> None:
    async def test(bench: Bench) -> None:
        bench.driver.start()
        bench.machine.timer = bench.loop.time() + 0.005
        bench.driver.stop()
        bench.driver.stop()
        before = list(bench.machine.log)
        bench.arrive(b"meanwhile")
        passed = bench.loop.time() + 0.05
        await bench.until(lambda: bench.loop.time() > passed, "the clock runs")
        assert bench.machine.log == before
        bench.driver.start()
        await bench.until(lambda: bench.machine.received == [b"meanwhile"], "the datagram")
        await bench.until(lambda: bench.machine.timer is None, "the timer")

    on_bench(test)


def test_a_stop_at_the_start_stays_a_stop() -> None:
    async def test(bench: Bench) -> None:
        bench.machine.events.append(Settled())
        bench.machine.timer = bench.loop.time()
        bench.stops_at = Settled
        bench.driver.start()
        bench.arrive(b"x")
        passed = bench.loop.time() + 0.05
        await bench.until(lambda: bench.loop.time() > passed, "the clock runs")
        assert [kind for kind, *_ in bench.machine.log] == ["timer"]

    on_bench(test)


def test_a_flood_does_not_starve_the_other_socket() -> None:
    async def test(bench: Bench) -> None:
        bench.sockets[0].enlarge_buffers()
        flood = 150  # a few batches, and little enough for any receive buffer
        bench.arrive(*[b"flood"] * flood)
        bench.outside.send(b"other", bench.sockets[1].local)
        bench.driver.start()
        await bench.until(lambda: len(bench.machine.received) == flood + 1, "all of the flood")
        assert b"flood" in bench.machine.received[bench.machine.received.index(b"other") :]

    on_bench(test, socket.AF_INET, socket.AF_INET)


def test_a_flood_does_not_stop_the_clock() -> None:
    """Or a stranger could keep an attempt from ever sending, and from ever ending."""

    async def test(bench: Bench) -> None:
        def refill(_data: bytes, _path: Path) -> None:
            bench.arrive(b"flood")  # so that there is always something to read

        bench.machine.on_datagram = refill
        bench.machine.timer = bench.loop.time() + 0.01
        bench.driver.start()
        bench.arrive(b"flood")
        await bench.until(lambda: len(bench.machine.all("timer")) > 1, "the timer")

    on_bench(test)


# -- sockets that the machine asks for ------------------------------------------------------------


def descriptors() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_is_opened_sent_from_and_read(family: socket.AddressFamily) -> None:
    async def test(bench: Bench) -> None:
        with UdpSocket(family, 0, host=HOST[family]) as outside:
            path = Path(9, outside.local)
            bench.machine.pending.append(OpenSocket(9, ipv6=family == socket.AF_INET6))
            # What a machine does once it knows that the socket is there.
            bench.machine.on_opened = lambda _: bench.machine.pending.append(Send(b"out", path))
            bench.driver.start()
            ((_, number, port, _),) = bench.machine.all("opened")
            assert (number, port) == (9, bench.sockets[9].local.port)
            assert outside.receive() == (b"out", Endpoint(HOST[family], port))
            outside.send(b"in", Endpoint(HOST[family], port))
            await bench.until(lambda: bench.machine.received, "the datagram")
            assert bench.machine.all("datagram")[0][1:3] == (b"in", path)

    on_bench(test)


def test_a_socket_gets_the_port_that_was_asked_for() -> None:
    async def test(bench: Bench) -> None:
        with UdpSocket(socket.AF_INET, 0) as free:
            port = free.local.port
        bench.machine.pending.append(OpenSocket(9, port=port))
        bench.driver.start()
        assert bench.sockets[9].local.port == port

    on_bench(test)


def test_a_socket_that_cannot_be_had_is_told_and_the_rest_goes_on() -> None:
    async def test(bench: Bench) -> None:
        with UdpSocket(socket.AF_INET, 0) as taken:
            fine = Path(0, bench.outside.local)
            bench.machine.pending += [
                OpenSocket(9, port=taken.local.port),
                Send(b"lost", fine._replace(socket=9)),
                CloseSocket(9),
                Send(b"after", fine),
            ]
            bench.driver.start()
        assert [entry[1] for entry in bench.machine.all("failed")] == [9]
        assert bench.machine.all("opened") == []
        assert list(bench.sockets) == [0]
        assert bench.outside.receive() == (b"after", bench.sockets[0].local)
        assert bench.outside.receive() is None

    on_bench(test)


def test_no_more_descriptors_is_one_more_socket_that_cannot_be_had() -> None:
    async def test(bench: Bench) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        bench.machine.pending += [OpenSocket(number) for number in range(1, 6)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (third_free_descriptor(), hard))
        try:
            bench.driver.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [entry[1] for entry in bench.machine.all("opened")] == [1, 2]
        assert [entry[1] for entry in bench.machine.all("failed")] == [3, 4, 5]

    on_bench(test)


def third_free_descriptor() -> int:
    """Return it: below that there are two, wherever other tests have left gaps."""
    with ExitStack() as stack:
        probes = [stack.enter_context(UdpSocket(socket.AF_INET, 0)) for _ in range(3)]
        return probes[-1].fileno()


def test_a_closed_socket_is_gone_and_what_is_sent_from_it_is_ignored() -> None:
    async def test(bench: Bench) -> None:
        before = descriptors()
        bench.machine.pending += [OpenSocket(number) for number in range(1, 254)]
        bench.driver.start()
        assert len(bench.sockets) == 254
        path = Path(7, bench.outside.local)
        bench.machine.pending += [CloseSocket(number) for number in range(1, 254)]
        bench.machine.pending += [Send(b"late", path), Send(b"x", path._replace(socket=0))]
        bench.arrive(b"whatever makes the driver look again")
        await bench.until(lambda: len(bench.sockets) == 1, "the end of the sockets")
        assert bench.outside.receive() == (b"x", bench.sockets[0].local)
        assert bench.outside.receive() is None
        assert bench.machine.all("error") == []
        assert descriptors() == before

    on_bench(test)


def test_a_socket_that_is_closed_by_what_it_brought_is_read_no_further() -> None:
    async def test(bench: Bench) -> None:
        bench.machine.pending.append(OpenSocket(9))
        bench.machine.on_datagram = lambda _data, _path: bench.machine.pending.append(
            CloseSocket(9)
        )
        bench.driver.start()
        for data in (b"first", b"second"):
            bench.outside.send(data, Endpoint("127.0.0.1", bench.sockets[9].local.port))
        await bench.until(lambda: 9 not in bench.sockets, "the end of the socket")
        bench.arrive(b"third")
        await bench.until(lambda: b"third" in bench.machine.received, "another datagram")
        assert bench.machine.received == [b"first", b"third"]

    on_bench(test)


def test_a_number_may_be_used_again() -> None:
    async def test(bench: Bench) -> None:
        before = descriptors()
        bench.machine.pending += [OpenSocket(9), CloseSocket(9), OpenSocket(9), OpenSocket(9)]
        bench.driver.start()
        assert descriptors() == before + 1  # the second takes the place of the first
        bench.outside.send(b"x", Endpoint("127.0.0.1", bench.sockets[9].local.port))
        await bench.until(lambda: bench.machine.received, "the datagram")

    on_bench(test)


def test_extra_sockets_stop_and_start_with_the_others() -> None:
    async def test(bench: Bench) -> None:
        bench.machine.pending.append(OpenSocket(9))
        # A stop between the question and the answer: the socket is there, but not read.
        bench.machine.on_opened = lambda _: bench.driver.stop()
        bench.driver.start()
        bench.outside.send(b"x", Endpoint("127.0.0.1", bench.sockets[9].local.port))
        passed = bench.loop.time() + 0.05
        await bench.until(lambda: bench.loop.time() > passed, "the clock runs")
        assert bench.machine.received == []
        bench.driver.start()
        await bench.until(lambda: bench.machine.received == [b"x"], "the datagram")

    on_bench(test)
