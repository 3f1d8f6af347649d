from __future__ import annotations

import asyncio
import errno
import pathlib
import secrets
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nat_traverse import session
from nat_traverse.errors import EXIT_NO_PATH, LocalNetworkError, PeerGoneError
from nat_traverse.model import Endpoint, Generation, Path, Rung
from nat_traverse.net.udp import UdpSocket
from nat_traverse.punch.handshake import Handshake
from nat_traverse.punch.machine import (
    Connected,
    DeadlinePassed,
    OpenSocket,
    PathValidated,
    PeerHeard,
    Settled,
)
from nat_traverse.punch.settings import (
    DATAGRAM_SIZE,
    DEFAULT_RATE,
    LARGE_DATAGRAM_SIZE,
    HandshakeSettings,
    Hard,
    LadderSettings,
)
from nat_traverse.session import (
    MAX_PATHS,
    Hole,
    NotFoundError,
    Opened,
    PortChosen,
    PunchSettings,
    SessionEvent,
    _largest_datagram,
    _open_sockets,
    _Routes,
    punch,
)
from nat_traverse.wire.hello import Bare, Message, Mode, decode
from support.ends import End, tunnel_through

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from nat_traverse.punch.machine import Effect, Event

IPV4, IPV6 = Endpoint("127.0.0.1", 40001), Endpoint("::1", 40001)


def open_descriptors() -> set[str]:
    return {descriptor.name for descriptor in pathlib.Path("/proc/self/fd").iterdir()}


def many(count: int, port: int = 40001) -> list[Endpoint]:
    return [Endpoint(f"203.0.113.{number}", port) for number in range(1, count + 1)]


class TestRoutes:
    def test_both_families_of_this_host(self) -> None:
        routes = _Routes([IPV6, IPV4])
        assert routes.remotes == [IPV6, IPV4]
        assert routes.families() == [True, False]
        opened = routes.opened(40000)
        assert opened.sources == (Endpoint("::1", 40000), Endpoint("127.0.0.1", 40000))
        assert (opened.local_port, opened.unreachable, opened.left_out) == (40000, (), ())

    def test_one_source_is_told_once(self) -> None:
        routes = _Routes([IPV4, IPV4._replace(host="127.0.0.2"), IPV4._replace(port=7)])
        assert len(routes.remotes) == 3
        assert routes.families() == [False]
        hosts = [source.host for source in routes.opened(1).sources]
        assert sorted(set(hosts)) == sorted(hosts)

    def test_what_has_no_route_is_told_and_not_tried(self, unroutable: set[str]) -> None:
        unroutable.add("203.0.113.2")
        routes = _Routes(many(3))
        assert [remote.host for remote in routes.remotes] == ["203.0.113.1", "203.0.113.3"]
        assert routes.opened(1).unreachable == ((many(3)[1], "no route to 203.0.113.2"),)

    def test_nothing_but_what_has_no_route(self, unroutable: set[str]) -> None:
        unroutable.update(remote.host for remote in many(2))
        with pytest.raises(LocalNetworkError, match=r"203\.0\.113\.1") as caught:
            _Routes(many(2))
        assert caught.value.exit_code == errno.ENETUNREACH

    def test_more_than_eight_are_left_out(self, unroutable: set[str]) -> None:
        unroutable.add("203.0.113.3")
        routes = _Routes(many(MAX_PATHS + 3))
        assert len(routes.remotes) == MAX_PATHS
        left_out = [remote.host for remote in routes.opened(1).left_out]
        assert left_out == ["203.0.113.10", "203.0.113.11"]


@pytest.fixture
def unroutable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Hosts to which there is no route; the real routing table is not asked."""
    hosts: set[str] = set()

    def source_for(to: Endpoint) -> Endpoint:
        if to.host in hosts:
            raise LocalNetworkError(f"no route to {to.host}", errno.ENETUNREACH)
        return Endpoint("198.51.100.2", 1)

    monkeypatch.setattr(session, "source_for", source_for)
    return hosts


class TestOpenSockets:
    @pytest.mark.parametrize("families", [[False], [True], [False, True], [True, False]])
    def test_any_port_is_the_same_in_all_families(self, families: list[bool]) -> None:
        sockets = _open_sockets(0, families)
        try:
            assert [sockets[number].local.is_ipv6 for number in sorted(sockets)] == families
            (port,) = {sock.local.port for sock in sockets.values()}
            assert port > 0
        finally:
            session._close(sockets)

    def test_the_port_that_was_asked_for(self) -> None:
        first = _open_sockets(0, [False, True])
        port = first[0].local.port
        session._close(first)
        again = _open_sockets(port, [True, False])
        assert {sock.local.port for sock in again.values()} == {port}
        session._close(again)

    def test_a_port_in_use_is_an_error_and_leaves_nothing_open(self) -> None:
        with UdpSocket(socket.AF_INET6, 0) as taken:
            before = open_descriptors()
            with pytest.raises(LocalNetworkError) as caught:
                _open_sockets(taken.local.port, [False, True])
            assert caught.value.exit_code == errno.EADDRINUSE
            assert open_descriptors() == before

    def test_any_port_goes_on_until_both_families_have_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = refuse_ipv6(monkeypatch, times=3)
        before = open_descriptors()
        sockets = _open_sockets(0, [False, True])
        assert len(refused) == 3
        assert len({sock.local.port for sock in sockets.values()}) == 1
        session._close(sockets)
        assert open_descriptors() == before

    def test_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refused = refuse_ipv6(monkeypatch, times=1000)
        before = open_descriptors()
        with pytest.raises(LocalNetworkError):
            _open_sockets(0, [False, True])
        assert len(refused) == session._ANY_PORT_TRIES
        assert open_descriptors() == before

    def test_a_family_that_is_missing_altogether_is_not_tried_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = refuse_ipv6(monkeypatch, times=1000)
        with pytest.raises(LocalNetworkError):
            _open_sockets(0, [True, False])
        assert len(refused) == 1


def refuse_ipv6(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[int]:
    """Let the port be taken in IPv6 so many times; returns the ports that were asked for."""
    refused: list[int] = []

    def opened(family: socket.AddressFamily, port: int) -> UdpSocket:
        if family == socket.AF_INET6 and len(refused) < times:
            refused.append(port)
            raise LocalNetworkError("in use", errno.EADDRINUSE)
        return UdpSocket(family, port)

    monkeypatch.setattr(session, "UdpSocket", opened)
    return refused


class TestLargestDatagram:
    @pytest.mark.parametrize(
        ("mtu", "wanted", "ipv4", "ipv6"),
        [
            (None, DATAGRAM_SIZE, DATAGRAM_SIZE, DATAGRAM_SIZE),
            (65_536, DATAGRAM_SIZE, DATAGRAM_SIZE, DATAGRAM_SIZE),
            (1500, LARGE_DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE),
            (1492, LARGE_DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE, 1444),
            (1400, LARGE_DATAGRAM_SIZE, 1372, 1352),
            (1400, DATAGRAM_SIZE, 1372, 1352),
            (1280, DATAGRAM_SIZE, 1252, 1232),
            (68, DATAGRAM_SIZE, 40, 20),
            (20, DATAGRAM_SIZE, 1, 1),
        ],
    )
    def test_what_the_kernel_knows(
        self, monkeypatch: pytest.MonkeyPatch, mtu: int | None, wanted: int, ipv4: int, ipv6: int
    ) -> None:
        monkeypatch.setattr(session, "path_mtu", lambda _: mtu)
        assert (_largest_datagram(IPV4, wanted), _largest_datagram(IPV6, wanted)) == (ipv4, ipv6)

    @pytest.mark.parametrize("wanted", [DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE])
    def test_loopback(self, wanted: int) -> None:
        assert _largest_datagram(IPV4, wanted) == wanted


# -- the whole, over loopback ---------------------------------------------------------------------

PATIENCE = 30.0  # s, and only a failing test waits that long


class Side:
    """One end of a tunnel: what it was told, and its hole."""

    def __init__(self, local_port: int, remote_port: int, peer: str = "127.0.0.1") -> None:
        self.settings = PunchSettings(local_port, peer, remote_port, timeout=PATIENCE)
        self.events: list[SessionEvent] = []
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()

    async def punch(self) -> Hole:
        return await punch(self.settings, self.observe)

    def observe(self, event: SessionEvent) -> None:
        self.events.append(event)
        if isinstance(event, Opened):
            self.opened.set_result(event)

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


def free_ports() -> tuple[int, int]:
    """Return two ports that nobody has in either family at the moment."""
    pairs = [_open_sockets(0, [False, True]) for _ in range(2)]
    left, right = (pair[0].local.port for pair in pairs)
    for pair in pairs:
        session._close(pair)
    return left, right


def both(peer: str = "127.0.0.1") -> tuple[Side, Side]:
    left, right = free_ports()
    return Side(left, right, peer), Side(right, left, peer)


def run(main: Coroutine[Any, Any, None]) -> None:
    before = open_descriptors()
    asyncio.run(asyncio.wait_for(main, PATIENCE))
    assert open_descriptors() == before


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_two_sides_find_each_other(peer: str) -> None:
    async def main() -> None:
        left, right = both(peer)
        holes = await asyncio.gather(left.punch(), right.punch())
        for side, hole in zip((left, right), holes, strict=True):
            assert side.kinds()[0] is Opened
            assert {PeerHeard, PathValidated, Connected} <= set(side.kinds())
            remote = Endpoint(peer, side.settings.remote_port)
            assert hole.connected.path == Path(0, remote)
            assert hole.connected.generation is Generation.CURRENT
            assert hole.connected.datagram_size == DATAGRAM_SIZE
            assert hole.socket.local.port == side.settings.local_port
            assert hole.others == {}
        assert holes[0].handshake.peer_nonce == holes[1].handshake.nonce
        await asyncio.gather(*(hole.settle() for hole in holes))
        assert Settled in left.kinds()
        assert Settled in right.kinds()
        for hole in holes:
            hole.close()

    run(main())


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_a_peer_that_is_out_of_reach_on_the_agreed_ports(peer: str) -> None:
    """It is found on the spare pair, and told of as on any other path."""

    async def main() -> None:
        left, right = both(peer)
        spares = free_ports()
        with ExitStack() as stack:
            # Whatever each sends to the other's agreed port goes to somebody else.
            for side, spare in ((left, spares), (right, spares[::-1])):
                family = socket.AF_INET6 if ":" in peer else socket.AF_INET
                deaf = stack.enter_context(UdpSocket(family, 0))
                side.settings = replace(
                    side.settings, remote_port=deaf.local.port, spare=spare, legacy=False
                )
            holes = await asyncio.gather(left.punch(), right.punch())
        for side, hole, (ours, theirs) in zip(
            (left, right), holes, (spares, spares[::-1]), strict=True
        ):
            assert hole.connected.path.remote == Endpoint(peer, theirs)
            assert hole.socket.local.port == ours
            assert PortChosen(ours) in side.events
            assert side.opened.result().local_port == side.settings.local_port
            (agreed,) = hole.others.values()
            assert agreed.local.port == side.settings.local_port
            hole.close()

    run(main())


@pytest.mark.parametrize("size", [DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE])
def test_datagrams_are_as_large_as_there_is_use_for(size: int) -> None:
    async def main() -> None:
        sides = both()
        for side in sides:
            side.settings = replace(side.settings, datagram_size=size, mode=Mode.TUNNEL)
        holes = await asyncio.gather(*(side.punch() for side in sides))
        for hole in holes:
            hole.close()
        assert [hole.connected.datagram_size for hole in holes] == [size, size]

    run(main())


def test_a_spare_pair_changes_nothing_where_the_agreed_one_works() -> None:
    async def main() -> None:
        left, right = both()
        spares = free_ports()
        left.settings = replace(left.settings, spare=spares, legacy=False)
        # The other side knows of none: it has just been started.
        for side, hole in zip(
            (left, right), await asyncio.gather(left.punch(), right.punch()), strict=True
        ):
            assert hole.connected.path == Path(0, Endpoint("127.0.0.1", side.settings.remote_port))
            assert not any(isinstance(event, PortChosen) for event in side.events)
            hole.close()

    run(main())


@pytest.mark.parametrize("which", ["another program's", "the agreed one"])
def test_a_spare_port_that_is_in_use_does_no_harm(which: str) -> None:
    async def main() -> None:
        left, right = both()
        with UdpSocket(socket.AF_INET, 0) as taken:
            mine = left.settings.local_port if which == "the agreed one" else taken.local.port
            left.settings = replace(left.settings, spare=(mine, 7), legacy=False)
            right.settings = replace(right.settings, spare=(7, mine), legacy=False)
            holes = await asyncio.gather(left.punch(), right.punch())
            assert [len(holes[0].others), holes[0].connected.path.socket] == [0, 0]
            for hole in holes:
                hole.close()

    run(main())


def test_a_spare_pair_in_the_families_that_the_peer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(_: str, port: int) -> list[Endpoint]:
        return [IPV6._replace(port=port), IPV4._replace(port=port)]

    monkeypatch.setattr(session, "resolve", resolve)
    paths: list[Path] = []

    def handshake(settings: HandshakeSettings, agreed: list[Path], now: float) -> Handshake:
        paths.extend(agreed)
        return Handshake(settings, agreed, now)

    monkeypatch.setattr(session, "Handshake", handshake)

    async def main() -> None:
        left, _ = both("two.example")
        mine, theirs = free_ports()
        with UdpSocket(socket.AF_INET, mine):  # of one family it can't be had
            left.settings = replace(left.settings, spare=(mine, theirs))
            punching = asyncio.ensure_future(left.punch())
            await left.opened
            await asyncio.sleep(0.01)
            punching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await punching
        agreed = left.settings.remote_port
        assert [(path.remote.host, path.remote.port) for path in paths] == [
            ("::1", agreed),
            ("127.0.0.1", agreed),
            ("::1", theirs),
        ]
        assert len({path.socket for path in paths}) == 3

    run(main())


class TestLastKnown:
    """An address for when the name can't be looked up: the name server may be inside the VPN."""

    @pytest.fixture
    def names(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Let nothing but addresses and here.example be known; returns what was looked up."""
        looked_up: list[str] = []

        async def resolve(name: str, port: int) -> list[Endpoint]:
            looked_up.append(name)
            if name == "gone.example":
                raise LocalNetworkError(f"{name} can't be looked up", errno.EHOSTUNREACH)
            return [IPV4._replace(port=port)]

        monkeypatch.setattr(session, "resolve", resolve)
        return looked_up

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("gone.example", ["gone.example", "127.0.0.1"]), ("here.example", ["here.example"])],
    )
    def test_is_tried_if_the_name_is_of_no_use(
        self, name: str, expected: list[str], names: list[str]
    ) -> None:
        async def main() -> None:
            left, right = both()
            left.settings = replace(left.settings, peer=name, last_known="127.0.0.1")
            for hole in await asyncio.gather(left.punch(), right.punch()):
                hole.close()
            opened = left.opened.result()
            assert opened.remotes == (IPV4._replace(port=left.settings.remote_port),)

        run(main())
        names.remove("127.0.0.1")  # the other side's
        assert names == expected

    def test_there_is_none_at_first(self, names: list[str]) -> None:
        async def main() -> None:
            left, _ = both("gone.example")
            with pytest.raises(LocalNetworkError, match="can't be looked up"):
                await left.punch()

        run(main())
        assert names == ["gone.example"]

    def test_of_no_use_either(self, names: list[str]) -> None:
        async def main() -> None:
            left, _ = both("gone.example")
            left.settings = replace(left.settings, last_known="gone.example")
            with pytest.raises(LocalNetworkError):
                await left.punch()

        run(main())
        assert names == ["gone.example"] * 2


def test_nothing_is_sent_before_it_is_told_where_to() -> None:
    """Whoever is told may still have to make a way there."""

    async def main() -> None:
        left, _ = both()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", left.settings.remote_port))
            peer.setblocking(False)
            seen: list[bool] = []

            def observe(event: SessionEvent) -> None:
                if isinstance(event, Opened):
                    with pytest.raises(BlockingIOError):
                        peer.recv(1)
                    seen.append(True)

            punching = asyncio.ensure_future(punch(left.settings, observe))
            assert await asyncio.get_running_loop().sock_recv(peer, 100)
            assert seen == [True]
            punching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await punching

    run(main())


def test_any_local_port() -> None:
    async def main() -> None:
        (port, _) = free_ports()
        early = Side(0, port)
        waiting = asyncio.ensure_future(early.punch())
        opened = await early.opened
        assert opened.remotes == (Endpoint("127.0.0.1", port),)
        assert [source.port for source in opened.sources] == [opened.local_port]
        late = Side(port, opened.local_port)
        for hole in await asyncio.gather(waiting, late.punch()):
            hole.close()

    run(main())


def test_a_name_with_addresses_of_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(_: str, port: int) -> list[Endpoint]:
        return [IPV6._replace(port=port), IPV4._replace(port=port)]

    monkeypatch.setattr(session, "resolve", resolve)

    async def main() -> None:
        left, right = both("two.example")
        holes = await asyncio.gather(left.punch(), right.punch())
        chosen = {hole.connected.path.socket for hole in holes}
        assert len(chosen) == 1  # both use the same path
        for hole in holes:
            (other,) = hole.others.values()
            assert other.local.port == hole.socket.local.port
            assert other.local.is_ipv6 != hole.socket.local.is_ipv6
            hole.close()

    run(main())


def test_no_peer() -> None:
    async def main() -> None:
        events: list[SessionEvent] = []
        # A peer that says nothing, and does not refuse either: else there is little to send.
        with UdpSocket(socket.AF_INET, 0) as silent:
            settings = PunchSettings(0, "127.0.0.1", silent.local.port, timeout=0.3)
            with pytest.raises(NotFoundError) as caught:
                await punch(settings, events.append)
        assert caught.value.exit_code == EXIT_NO_PATH
        (seen,) = caught.value.evidence.paths.values()
        assert seen.hellos_sent >= 2
        assert isinstance(events[-1], DeadlinePassed)

    run(main())


def test_cancelled() -> None:
    async def main() -> None:
        side, _ = both()
        task = asyncio.ensure_future(side.punch())
        await side.opened
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


# -- cancelled when the peer is connected: it is told, in each moment that there is ----------------


class Leaving(Side):
    """An end that is cancelled; `stop` does it, from wherever it is called."""

    def __init__(self, side: Side, mode: Mode = Mode.PLAIN) -> None:
        super().__init__(side.settings.local_port, side.settings.remote_port)
        self.settings = replace(self.settings, mode=mode)
        self.when_connected: Callable[[], object] = lambda: None
        self.task = asyncio.ensure_future(self.punch())

    def observe(self, event: SessionEvent) -> None:
        super().observe(event)
        if isinstance(event, Connected):
            self.when_connected()

    def stop(self) -> None:
        self.task.cancel()

    def stop_soon(self) -> None:
        """As a signal does: the event loop comes to it when it has done what it is at.

        The outcome is known then, and the task has been told to go on, but has not yet.
        """
        asyncio.get_running_loop().call_soon(self.stop)


@pytest.fixture(params=["controlling", "controlled"])
def leaver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which part the end plays that leaves, and starts first."""
    order = (1, 2) if request.param == "controlled" else (2, 1)
    numbers = iter([each for each in order for _ in range(2)])  # two random words a side
    monkeypatch.setattr(secrets, "token_bytes", lambda size: bytes([next(numbers)]) * size)
    return str(request.param)


async def told_that_it_is_over(side: Side) -> None:
    """Connect, begin to relay, and see that the peer has said goodbye."""
    hole = await side.punch()
    try:
        with (
            End(hole, tunnel_through(hole)) as end,
            pytest.raises(PeerGoneError, match="was stopped") as caught,
        ):
            await end.relay.run()
        assert caught.value.errno == errno.ECONNRESET
    finally:
        hole.close()


@pytest.mark.parametrize("way", ["stop", "stop_soon"])
def test_cancelled_when_it_has_just_connected(leaver: str, way: str) -> None:
    async def main() -> None:
        left, right = both()
        leaving = Leaving(left)
        leaving.when_connected = getattr(leaving, way)
        await leaving.opened
        await told_that_it_is_over(right)
        with pytest.raises(asyncio.CancelledError):
            await leaving.task
        assert Connected in leaving.kinds()

    del leaver
    run(main())


@pytest.mark.parametrize("leaver", ["controlling"], indirect=True)
def test_cancelled_when_only_the_peer_has_connected(leaver: str) -> None:
    async def main() -> None:
        left, right = both()
        leaving = Leaving(left)

        def observe(event: SessionEvent) -> None:
            if isinstance(event, Connected):
                leaving.stop()  # the confirmation is under way, and is not going to be read

        right.observe = observe  # type: ignore[method-assign]
        await leaving.opened
        await told_that_it_is_over(right)
        with pytest.raises(asyncio.CancelledError):
            await leaving.task
        assert Connected not in leaving.kinds()

    del leaver
    run(main())


def test_who_leaves_the_path_to_another_program_says_nothing(
    leaver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Message | Bare] = []
    send = UdpSocket.send

    def observed(self: UdpSocket, data: bytes, to: Endpoint, ttl: int | None = None) -> object:
        said.append(decode(data))
        return send(self, data, to, ttl)

    monkeypatch.setattr(UdpSocket, "send", observed)

    async def main() -> None:
        left, right = both()
        leaving = Leaving(left, Mode.PORTS)
        leaving.when_connected = leaving.stop_soon
        await leaving.opened
        hole = await right.punch()
        with pytest.raises(asyncio.CancelledError):
            await leaving.task
        hole.close()

    del leaver
    run(main())
    assert said
    assert [message for message in said if getattr(message, "closing", None)] == []


def test_an_observer_that_fails_leaves_nothing_open() -> None:
    def observe(event: SessionEvent) -> None:
        raise ZeroDivisionError(event)

    async def main() -> None:
        left, right = free_ports()
        with pytest.raises(ZeroDivisionError):
            await punch(PunchSettings(left, "127.0.0.1", right, timeout=5), observe)

    run(main())


def test_a_port_in_use() -> None:
    async def main() -> None:
        with UdpSocket(socket.AF_INET, 0) as taken:
            settings = PunchSettings(taken.local.port, "127.0.0.1", 1, timeout=5)
            with pytest.raises(LocalNetworkError) as caught:
                await punch(settings, lambda _: None)
            assert caught.value.exit_code == errno.EADDRINUSE

    run(main())


def test_closing_twice_does_nothing() -> None:
    async def main() -> None:
        left, right = both()
        for hole in await asyncio.gather(left.punch(), right.punch()):
            hole.close()
            hole.close()

    run(main())


# -- what the machine is told, and the sockets that it asks for -----------------------------------


class SprayedMachine:
    """Stands for a handshake that opens sockets of its own and finds its path over one of them."""

    made: SprayedMachine
    peer_nonce = None

    def __init__(self, settings: HandshakeSettings, paths: list[Path], now: float) -> None:
        self.settings, self.paths = settings, paths
        self.ports: dict[int, int] = {}
        self._effects: list[Effect] = [OpenSocket(number) for number in range(10, 20)]
        self._events: list[Event] = []
        self._connects_at = now
        SprayedMachine.made = self

    def socket_opened(self, number: int, port: int, now: float) -> None:
        del now
        self.ports[number] = port
        if len(self.ports) == 10:
            path = Path(13, self.paths[0].remote)
            self._events = [
                PathValidated(path, 0.01),
                Connected(path, Generation.CURRENT, 0.01, None, 1400, (), Rung.SPRAY, agreed=False),
            ]

    def effects(self, now: float) -> Iterator[Effect]:
        del now
        effects, self._effects = self._effects, []
        yield from effects

    def next_event(self) -> Event | None:
        return self._events.pop(0) if self._events else None

    def handle_timer(self, now: float) -> None:
        pass

    def get_timer(self) -> float | None:
        return None


@pytest.fixture
def sprayed(monkeypatch: pytest.MonkeyPatch) -> type[SprayedMachine]:
    monkeypatch.setattr(session, "Handshake", SprayedMachine)
    return SprayedMachine


def test_a_path_over_a_socket_of_the_search(
    sprayed: type[SprayedMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy: list[UdpSocket] = []

    def enlarge_buffers(self: UdpSocket) -> None:
        roomy.append(self)

    monkeypatch.setattr(UdpSocket, "enlarge_buffers", enlarge_buffers)

    async def main() -> None:
        side, _ = both()
        hole = await side.punch()
        port = sprayed.made.ports[13]
        assert hole.socket.local.port == port != side.settings.local_port
        assert sorted(hole.others) == [0, 10, 11, 12, *range(14, 20)]
        assert side.kinds() == [Opened, PathValidated, PortChosen, Connected]
        assert side.events[2] == PortChosen(port)
        # Data comes over the socket of the path; the other ones of the search never need room.
        assert roomy == [hole.others[0], hole.socket]
        hole.close()

    run(main())  # and all of the sockets are closed


def test_sockets_of_the_search_are_closed_when_it_is_cancelled(
    sprayed: type[SprayedMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(self: SprayedMachine, number: int, port: int, now: float) -> None:
        del now
        self.ports[number] = port

    monkeypatch.setattr(SprayedMachine, "socket_opened", opened)

    async def main() -> None:
        side, _ = both()
        task = asyncio.ensure_future(side.punch())
        await side.opened
        await asyncio.sleep(0)
        assert len(sprayed.made.ports) == 10
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_what_the_machine_is_told(
    sprayed: type[SprayedMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)

    async def main() -> list[HandshakeSettings]:
        told = []
        (port, _) = free_ports()
        usual = PunchSettings(0, "127.0.0.1", port, timeout=9.0, window=3)
        special = replace(usual, mode=Mode.PORTS, hard=Hard.NEVER, rate=7.0, ttl=0, hints=(9, 8))
        for settings in (special, usual):
            hole = await punch(settings, lambda _: None)
            hole.close()
            told.append(sprayed.made.settings)
        return told

    first, second = asyncio.run(main())
    assert (first.timeout, first.window, first.mode) == (9.0, 3, Mode.PORTS)
    assert second.mode is Mode.PLAIN
    for settings, hard, rate, ttl, hints in (
        (first, Hard.NEVER, 7.0, 0, (9, 8)),
        (second, Hard.AUTO, DEFAULT_RATE, None, ()),
    ):
        ladder = settings.ladder
        assert ladder is not None
        assert ladder.local_port > 0  # the one that "any free one" turned out to be
        assert len(ladder.chance) == 16
        assert ladder == LadderSettings(
            ladder.local_port, 1_700_000_000.5, ladder.chance, hard, rate, ttl, hints
        )
    assert first.ladder is not None
    assert second.ladder is not None
    assert first.ladder.chance != second.ladder.chance
    assert first.nonce != second.nonce
