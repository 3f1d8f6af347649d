"""A whole tunnel over loopback: its beginning, its ends, and the sockets below."""

from __future__ import annotations

import asyncio
import errno
import pathlib
import socket
from statistics import mode
from typing import TYPE_CHECKING

import pytest

from nat_traverse.errors import LocalNetworkError, NotAgreedError, PeerGoneError
from nat_traverse.link import link as link_module
from nat_traverse.link.establish import Purpose, establish
from nat_traverse.link.link import NoAnswerError, _failure, _next_train
from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.net.address import endpoint_from, sockaddr
from nat_traverse.net.errqueue import QueuedError
from nat_traverse.net.udp import UdpSocket
from nat_traverse.session import punch
from nat_traverse.tunnel import engine as quic
from nat_traverse.tunnel import secure
from nat_traverse.tunnel.events import (
    Closing,
    Ended,
    Event,
    NotEstablished,
    NotProven,
    PeerClosed,
    PeerVanished,
    Proven,
    StreamOpened,
)
from nat_traverse.tunnel.refusals import WrongSecretError
from nat_traverse.wire.hello import HELLO_MAGIC
from support.ends import run
from support.forwards import until
from support.links import (
    FOREIGN,
    SECRET,
    Accepting,
    Noting,
    Sealing,
    crowd,
    links,
    sealed,
    settings,
    tunnel_holes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nat_traverse.link.link import Link
    from nat_traverse.net.address import SocketAddress


def open_descriptors() -> set[str]:
    return {descriptor.name for descriptor in pathlib.Path("/proc/self/fd").iterdir()}


async def over(link: Link) -> BaseException | None:
    """Wait until a link is over, and return what ended it."""
    await asyncio.wait({link.closed})
    return link.closed.exception()


class TestEnds:
    def test_who_opens_a_stream_too_late_learns_what_ended_the_tunnel(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                other.abort()
                assert isinstance(await over(one), PeerGoneError)
                with pytest.raises(PeerGoneError, match="was stopped") as caught:
                    one.open_stream(asyncio.Protocol())
                assert caught.value.errno == errno.ECONNRESET
                with pytest.raises(PeerGoneError, match="is over"):
                    other.open_stream(asyncio.Protocol())

        run(main())

    def test_both_leave(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                await asyncio.gather(one.leave(), other.leave())
                assert one.is_over
                assert other.is_over

        run(main())

    def test_drain_waits_until_all_is_consumed(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                stream = one.open_stream(Noting())
                stream.write(bytes(1_000_000))
                stream.write_eof()
                theirs = await accepting.next()
                theirs.stream.pause_reading()
                draining = asyncio.ensure_future(one.drain())
                await asyncio.sleep(0.1)
                assert not draining.done()
                theirs.stream.resume_reading()
                await draining
                assert len(theirs.received) == 1_000_000
                await one.drain()

        run(main())

    def test_drain_waits_for_what_has_no_end_until_it_is_sent(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                Accepting(other)
                stream = one.open_stream(Noting())
                stream.write(bytes(3_000_000))
                await one.drain()
                assert stream.get_write_buffer_size() == 0

        run(main())

    def test_drain_raises_what_ended_the_tunnel(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                stream = one.open_stream(Noting())
                stream.write(bytes(3_000_000))
                stream.write_eof()
                (await accepting.next()).stream.pause_reading()
                draining = asyncio.ensure_future(one.drain())
                await asyncio.sleep(0.01)
                other.abort(Closing.STOPPED)
                with pytest.raises(PeerGoneError):
                    await draining
                with pytest.raises(PeerGoneError):
                    await one.drain()

        run(main())

    @pytest.mark.parametrize(
        ("code", "number"),
        [
            (Closing.COMPLETE, None),
            (Closing.NOT_READING, errno.ECONNRESET),
            (Closing.STOPPED, errno.ECONNRESET),
            (Closing.PROTOCOL, errno.EPROTO),
            (0x7777, errno.ECONNRESET),
        ],
    )
    def test_the_other_side_ends_it(self, code: int, number: int | None) -> None:
        async def main() -> None:
            async with links() as (one, other):
                one.abort(code)
                one.abort(code)
                assert one.is_over
                assert await over(one) is None
                async with asyncio.timeout(1.0):
                    error = await over(other)
                if number is None:
                    assert error is None
                else:
                    assert isinstance(error, PeerGoneError)
                    assert error.errno == number

        run(main())

    def test_the_other_side_vanishes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nat_traverse.tunnel.secure._LATE", 0.0)

        async def main() -> None:
            async with links() as (one, other):
                other._stop()  # as a program that is killed
                one.open_stream(Noting()).write(b"anybody?")
                async with asyncio.timeout(4.0):
                    error = await over(one)
                assert isinstance(error, PeerGoneError)
                assert error.errno == errno.ECONNREFUSED
                assert "Start both again" in str(error)

        run(main())

    def test_an_error_in_the_event_loop_ends_it_and_tells_everybody(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with links() as (one, other):
                ours = Noting()
                one.open_stream(ours)

                def fail(*_: object) -> None:
                    raise ZeroDivisionError

                monkeypatch.setattr(one.tunnel, "receive_run", fail)
                Accepting(other)
                other.open_stream(Noting()).write(b"x")
                assert isinstance(await over(one), ZeroDivisionError)
                await ours.until_told("lost")
                async with asyncio.timeout(1.0):
                    assert isinstance(await over(other), PeerGoneError)

        run(main())

    def test_nothing_is_left_open(self) -> None:
        async def main() -> None:
            before = open_descriptors()
            for _ in range(3):
                async with links() as (one, other):
                    Accepting(other)
                    one.open_stream(Noting()).write(b"x")
                    await asyncio.sleep(0.01)
                    for link in (one, other):
                        link.abort()
                        assert link._timer is None or link._timer.cancelled()
                assert open_descriptors() == before

        run(main())

    def test_nobody_is_warned_of_an_end_that_nobody_asked_for(self) -> None:
        async def main() -> None:
            complaints: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _, what: complaints.append(what)
            )
            async with links() as (one, other):
                one.abort(Closing.STOPPED)
                await asyncio.wait({other.closed})
            del one, other
            await asyncio.sleep(0)
            assert complaints == []

        run(main())


class TestStatistics:
    def test_they_count_what_passes_and_when(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                received: list[bytes] = []
                other.on_datagram = received.append
                other.on_stream = None
                before, there = one.statistics, other.statistics
                begun = one.loop.time()
                for _ in range(20):
                    one.send_datagram(bytes(1000))
                    await asyncio.sleep(0.001)
                await until(lambda: len(received) == 20)  # over loopback nothing is lost
                after, then = one.statistics, other.statistics
                assert after.sent - before.sent >= 20_000
                assert then.received - there.received >= 20_000
                assert then.heard >= begun > there.heard
                assert then.sent <= after.received + 5000  # of which some is under way
                assert after.round_trip is not None
                assert 0 < after.round_trip < 5

        run(main())

    def test_a_stranger_is_not_counted(self) -> None:
        async def main() -> None:
            async with links() as (one, _):
                to = sockaddr(one._hole.socket.local._replace(host="127.0.0.1"), socket.AF_INET)
                before = one.statistics
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    for _ in range(50):
                        stranger.sendto(bytes(1400), to)
                await asyncio.sleep(0.05)
                # The last packets of the proof may be among it, and come again.
                assert one.statistics.received - before.received < 50_000

        run(main())


class TestFailures:
    def test_say_what_the_user_can_do(self) -> None:
        wrong = WrongSecretError()
        assert _failure(NotProven(wrong)) is wrong
        assert isinstance(_failure(NotEstablished()), NoAnswerError)
        assert _failure(Ended()) is None
        assert _failure(PeerClosed(Closing.COMPLETE, "")) is None
        for number, text in (
            (errno.ECONNREFUSED, "port is closed"),
            (errno.ECONNRESET, "started again"),
            (errno.ETIMEDOUT, "30 seconds"),
            (errno.ENETRESET, "another address now"),
        ):
            error = _failure(PeerVanished(number))
            assert isinstance(error, PeerGoneError)
            assert error.errno == number
            assert text in str(error)
        closed = _failure(PeerClosed(Closing.PROTOCOL, "\x1b[2J"))
        assert "\x1b" not in str(closed), "the text is the peer's"
        disagreed = _failure(PeerClosed(Closing.NOT_AGREED, "No \x1b[2J network."))
        assert isinstance(disagreed, NotAgreedError)
        assert str(disagreed) == "The other side says: No \\x1b[2J network."
        assert disagreed.exit_code == 9
        assert _failure(quic.Alive()) is not None  # type: ignore[arg-type]


class TestOwner:
    def test_the_peers_streams_wait_until_the_owner_is_ready(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                first, second = Noting(), Noting()
                for protocol, text in ((first, b"first"), (second, b"second")):
                    one.open_stream(protocol).write(text)
                    protocol.stream.write_eof()
                await asyncio.sleep(0.05)
                first.stream.send_datagram(b"datagram")
                await asyncio.sleep(0.05)
                assert first.told == second.told == ["made"]
                accepting = Accepting(other)
                for index, text in enumerate((b"first", b"second")):
                    theirs = await accepting.next(index)
                    await theirs.until_told("eof")
                    assert theirs.received == text
                await accepting.protocols[0].until(lambda noting: noting.datagrams)

        run(main())

    def test_or_are_refused(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                ours = Noting()
                one.open_stream(ours).write(b"x")
                await asyncio.sleep(0.02)
                other.on_stream = None
                assert other.on_stream is None
                await ours.until_told("lost")
                assert isinstance(ours.error, ConnectionResetError)

        run(main())

    def test_datagrams_of_no_stream(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                got: asyncio.Queue[bytes] = asyncio.Queue()
                one.send_datagram(b"early")
                await asyncio.sleep(0.02)
                other.on_datagram = got.put_nowait
                other.on_stream = None
                assert await got.get() == b"early"
                one.send_datagram(b"late")
                assert await got.get() == b"late"
                with pytest.raises(ValueError, match="fit"):
                    one.send_datagram(bytes(one.tunnel.datagram_limit + 1))
                other.on_datagram = None
                one.send_datagram(b"nobody wants it")
                await asyncio.sleep(0.02)

        run(main())

    def test_is_told_how_it_goes(self) -> None:
        async def main() -> None:
            told: list[Event] = []
            async with links(observe=told.append) as (one, other):
                await asyncio.gather(one.leave(), other.leave())
            assert [type(event) for event in told] == [Proven, Proven, Ended, Ended]

        run(main())


def record_closing(
    sockets: Sequence[UdpSocket], all_closed: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> dict[UdpSocket, float]:
    """Return when each of these is closed first, once it is."""
    closed: dict[UdpSocket, float] = {}
    real = UdpSocket.close

    def close(sock: UdpSocket) -> None:
        if sock in sockets:
            closed.setdefault(sock, asyncio.get_running_loop().time())
        real(sock)
        if len(closed) == len(sockets):
            all_closed.set()

    monkeypatch.setattr(UdpSocket, "close", close)
    return closed


class TestSockets:
    def test_those_of_other_paths_are_closed_after_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(link_module, "_OTHERS", 0.1)

        async def main() -> None:
            holes = await asyncio.gather(*(punch(each, lambda _: None) for each in settings()))
            for hole in holes:
                hole._sockets[77] = UdpSocket(socket.AF_INET, 0)  # as a search for a path has many
            others = [sock for hole in holes for sock in hole.others.values()]
            all_closed = asyncio.Event()
            closed = record_closing(others, all_closed, monkeypatch)
            began = asyncio.get_running_loop().time()
            made = await asyncio.gather(
                *(establish(hole, SECRET, Purpose.PROGRAM) for hole in holes)
            )
            await all_closed.wait()
            assert min(closed.values()) - began >= 0.1
            assert all(sock.fileno() < 0 for sock in others)
            accepting = Accepting(made[1])
            made[0].open_stream(Noting()).write(b"still there")
            await (await accepting.next()).until(lambda noting: noting.received)
            for link in made:
                link.abort()

        run(main())

    def test_a_peer_that_moves_is_followed(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                ours = Noting()
                one.open_stream(ours).write(b"x")
                theirs = await accepting.next()
                # The client's packets come from another port from now on.
                number = one.tunnel.path.socket
                one.loop.remove_reader(one._sockets[number].fileno())
                moved = UdpSocket(socket.AF_INET, 0)
                one._sockets[number] = moved
                one.loop.add_reader(moved.fileno(), one._guarded, one._read, number)
                ours.stream.write(bytes(200_000))
                await theirs.until(lambda noting: len(noting.received) == 200_001)
                while other.peer.port != moved.local.port:  # noqa: ASYNC110 (nobody is told)
                    await asyncio.sleep(0.01)
                theirs.stream.write(b"found you")
                await ours.until(lambda noting: noting.received == b"found you")
                moved.close()
                one._sockets.clear()

        run(main())

    def test_strangers_do_not_make_it_keep_anything(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                to = sockaddr(other.peer, socket.AF_INET)
                for _ in range(50):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                        stranger.sendto(b"hello?", to)
                await asyncio.sleep(0.05)
                assert len(one._paths) <= 3
                assert not one.is_over

        run(main())

    def test_a_full_send_buffer_only_delays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with links() as (one, other):
                calls = crowd(monkeypatch)
                accepting = Accepting(other)
                stream = one.open_stream(Noting())
                stream.write(bytes(300_000))
                stream.write_eof()
                theirs = await accepting.next()
                await theirs.until_told("eof")
                assert len(theirs.received) == 300_000
            assert len(calls) > 3

        run(main())

    @pytest.mark.parametrize("mtu", [0, 1228])
    def test_what_the_path_is_too_narrow_for_is_dropped(
        self, mtu: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not offered again and again: here the path becomes as wide as before after a moment."""
        send = UdpSocket.send_segments
        refused = 0

        def narrow(self: UdpSocket, buffers: list[bytes], size: int, to: SocketAddress) -> int:
            nonlocal refused
            if size <= 1200 or refused >= 20:
                return send(self, buffers, size, to)
            refused += 1
            error = NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, mtu=mtu)
            self._refusals.append(QueuedError(endpoint_from(to), error, b""))
            return 0

        async def main() -> None:
            async with links() as (one, other):
                monkeypatch.setattr(UdpSocket, "send_segments", narrow)
                accepting = Accepting(other)
                stream = one.open_stream(Noting())
                stream.write(bytes(300_000))
                stream.write_eof()
                theirs = await accepting.next()
                await theirs.until_told("eof")
                assert len(theirs.received) == 300_000
            assert refused == 20

        run(main())

    def test_closing_one_that_is_full_lets_the_others_go_on(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                Accepting(other)
                spare = one._sockets[77] = UdpSocket(socket.AF_INET, 0)
                one._block(spare)
                one._close_others()
                assert spare.fileno() < 0
                stream = one.open_stream(Noting())
                stream.write(b"x")
                stream.write_eof()
                await one.drain()

        run(main())


class TestSuspending:
    def test_on_one_loop_and_going_on_on_another(self) -> None:
        """As a command does that goes to the background."""

        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                ours = Noting()
                one.open_stream(ours).write(b"x")
                theirs = await accepting.next()
                ours.stream.pause_reading()
                one.suspend()
                suspended = one.is_suspended
                assert suspended
                theirs.stream.write(b"meanwhile")
                await asyncio.sleep(0.05)
                one.resume()
                assert not one.is_suspended
                ours.stream.resume_reading()
                await ours.until(lambda noting: noting.received == b"meanwhile")

        run(main())


class TestFloods:
    """A flood is left to the kernel for a while, and the tunnel goes on."""

    @staticmethod
    async def flooded(link: Link) -> None:
        """Send strangers' datagrams at a link, until it has closed its shutter."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            number, sock = next(iter(link._sockets.items()))
            assert number == link.tunnel.path.socket
            while link._shutter is None:
                for _ in range(100):
                    stranger.sendto(HELLO_MAGIC, ("127.0.0.1", sock.local.port))
                await asyncio.sleep(0)

    def test_meanwhile_the_tunnel_goes_on(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                ours = Noting()
                stream = one.open_stream(ours)
                await self.flooded(one)
                await self.flooded(other)
                stream.write(b"there")
                theirs = await accepting.next()
                await theirs.until(lambda noting: noting.received == b"there")
                theirs.stream.write(b"and back")
                await ours.until(lambda noting: noting.received == b"and back")
                assert one._shutter is not None

        run(main())

    def test_it_opens_again_and_closes_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_module, "_SHUT", 0.01)

        async def main() -> None:
            async with links() as (one, _):
                for _ in range(2):
                    await self.flooded(one)
                    while one._shutter is not None:  # noqa: ASYNC110 (nothing announces it)
                        await asyncio.sleep(0.005)

        run(main())

    def test_a_link_that_ends_leaves_no_timer(self) -> None:
        async def main() -> None:
            async with links() as (one, _):
                await self.flooded(one)
                one.abort()
                assert one._shutter is None

        run(main())


def run_of(*numbers: int, size: int = 1200, last: int = 0) -> bytes:
    """Return a run of sealed datagrams of `size` bytes, the last one of `last`, if not 0."""
    whole = b"".join(sealed(number, size) for number in numbers[: -1 if last else None])
    return whole + (sealed(numbers[-1], last) if last else b"")


def socket_of(link: Link) -> UdpSocket:
    """Return the socket of a link's path."""
    return link._sockets[link.tunnel.path.socket]


def send(link: Link, run: bytes, size: int) -> None:
    """Send a train of datagrams to a link's peer, whatever they are."""
    sock = socket_of(link)
    assert sock.send_segments([run], size, sockaddr(link.peer, sock.family)) == len(run)


class Elsewhere:
    """A link whose packets come from another port from now on."""

    def __init__(self, link: Link) -> None:
        number = link.tunnel.path.socket
        link.loop.remove_reader(socket_of(link).fileno())
        self._kept = socket_of(link)
        self.socket = link._sockets[number] = UdpSocket(socket.AF_INET, 0)
        link.loop.add_reader(self.socket.fileno(), link._guarded, link._read, number)
        self._link = link

    @property
    def port(self) -> int:
        return self.socket.local.port

    def close(self) -> None:
        self._link.abort()
        self.socket.close()
        self._kept.close()


class TestSealed:
    """Sealed datagrams beside QUIC's packets."""

    def test_a_run_comes_with_its_shorter_last_one(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                assert other.sealed_user is user
                run = run_of(*range(40), size=1300, last=100)
                assert one.send_sealed(run, 1300) == len(run)
                await user.until(lambda user: len(user.numbers) == 40)
                assert user.numbers == list(range(40))
                assert b"".join(user.came) == run
                assert user.runs == [(run, 1300)]  # in one piece

        run(main())

    def test_single_ones_and_the_smallest(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                for number, size in enumerate((32, 1400, 33, 64)):
                    assert one.send_sealed(sealed(number, size), size) == size
                send(one, sealed(0, 16)[:1], 1)
                await user.until(lambda user: len(user.came) == 5)
                assert user.numbers == [0, 1, 2, 3]
                assert list(map(len, user.came)) == [32, 1400, 33, 64, 1]

        run(main())

    @pytest.mark.parametrize("last", [0, 40])
    @pytest.mark.parametrize("first", ["packet", "sealed"])
    def test_both_kinds_in_one_run(
        self, first: str, last: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the kernel joins what comes from one sender and happens to have one size."""

        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                accepting = Accepting(other)
                packets: list[bytes] = []

                def keep(_: UdpSocket, buffers: list[bytes], size: int, _to: object) -> int:
                    joined = b"".join(buffers)
                    packets.extend(joined[at : at + size] for at in range(0, len(joined), size))
                    return len(joined)

                with monkeypatch.context() as patch:
                    patch.setattr(UdpSocket, "send_segments", keep)
                    one.open_stream(Noting()).write(bytes(8_000))
                    one._guarded(one._settle)
                size = mode(map(len, packets))
                full = [data for data in packets if len(data) == size]
                assert len(full) > 2
                mixed: list[bytes] = []
                for number, data in enumerate(full):
                    pair = [data, sealed(number, size)]
                    mixed += pair if first == "packet" else pair[::-1]
                if last:
                    mixed.append(sealed(len(full), last))
                send(one, b"".join(mixed), size)
                for data in packets:
                    if len(data) != size:
                        send(one, data, len(data))
                numbers = list(range(len(full) + bool(last)))
                await user.until(lambda user: len(user.came) >= len(numbers))
                assert user.numbers == numbers
                assert [len(each) for each in user.came] == [size] * len(full) + [last] * bool(last)
                theirs = await accepting.next()
                await theirs.until(lambda noting: len(noting.received) == 8_000)
                # Each was taken once: nothing had to be sent again, and nobody was a stranger.
                assert other.tunnel._admitted == 0

        run(main())

    def test_runs_of_two_senders_are_kept_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody gets the credit for what another one sends."""
        noted: list[tuple[int, int]] = []
        strangers: list[int] = []

        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                monkeypatch.setattr(
                    other.tunnel,
                    "note_peer",
                    lambda path, size, _now: noted.append((path.remote.port, size)),
                )
                monkeypatch.setattr(
                    other.tunnel,
                    "note_strangers",
                    lambda datagrams, _now: strangers.append(datagrams),
                )
                with UdpSocket(socket.AF_INET, 0) as stranger:
                    to = sockaddr(Endpoint("127.0.0.1", one.peer.port), socket.AF_INET)
                    send(one, run_of(1, 2), 1200)
                    foreign = b"".join(sealed(each, 1000, FOREIGN) for each in range(3))
                    assert stranger.send_segments([foreign], 1000, to) == 3000
                    # One that is ours in the middle takes nothing of the stranger's along.
                    mixed = sealed(7, 1000, FOREIGN) + sealed(8, 1000)
                    assert stranger.send_segments([mixed], 1000, to) == 2000
                    send(one, run_of(3, 4), 1200)
                    await user.until(lambda user: len(user.came) == 9)
                    assert noted == [
                        (other.peer.port, 2400),
                        (stranger.local.port, 5000),
                        (other.peer.port, 2400),
                    ]
                    assert strangers == [4]

        run(main())

    def test_a_peer_that_sends_only_those_is_followed(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                moved = Elsewhere(one)
                one.send_sealed(run_of(1, 2), 1200)
                await user.until(lambda user: user.moved)
                assert other.peer.port == moved.port
                other.send_sealed(run_of(3), 1200)
                back = Sealing(one)
                await back.until(lambda user: user.numbers == [3])
                moved.close()

        run(main())

    def test_who_sends_what_nobody_can_open_is_not(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                there = other.peer
                with UdpSocket(socket.AF_INET, 0) as stranger:
                    to = sockaddr(Endpoint("127.0.0.1", one.peer.port), socket.AF_INET)
                    foreign = b"".join(sealed(each, 1200, FOREIGN) for each in range(40))
                    stranger.send_segments([foreign], 1200, to)
                    await user.until(lambda user: len(user.came) == 40)
                    one.send_sealed(run_of(1), 1200)
                    await user.until(lambda user: user.numbers)
                    assert stranger.receive() is None, "a question"
                assert (other.peer, user.moved) == (there, 0)

        run(main())

    def test_in_a_flood_those_of_the_peer_still_come(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)
                to = ("127.0.0.1", one.peer.port)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    while other._shutter is None:
                        for number in range(100):
                            stranger.sendto(sealed(number, 40, FOREIGN), to)
                        await asyncio.sleep(0)
                    while other._sockets[0].receive() is not None:
                        pass  # what came before it was shut
                    user.came.clear()
                    for number in range(100):
                        stranger.sendto(sealed(number, 40, FOREIGN), to)
                    one.send_sealed(run_of(1, 2, 3), 1200)
                    await user.until(lambda user: len(user.numbers) == 3)
                    assert len(user.came) == 3
                assert not other.is_over

        run(main())

    def test_are_nobodys_without_a_user(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                one.send_sealed(run_of(1, 2), 1200)
                await asyncio.sleep(0.02)
                user = Sealing(other)
                other.sealed_user = None
                one.send_sealed(run_of(3, 4), 1200)
                await asyncio.sleep(0.02)
                assert user.came == []
                accepting = Accepting(other)
                one.open_stream(Noting()).write(b"still there")
                await (await accepting.next()).until(lambda noting: noting.received)

        run(main())

    def test_of_a_link_that_is_over_are_lost(self) -> None:
        async def main() -> None:
            async with links() as (one, _):
                one.abort()
                assert one.send_sealed(run_of(1), 1200) == 1200

        run(main())

    def test_a_user_that_fails_ends_the_link(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with links() as (one, other):
                user = Sealing(other)

                def fail(*_: object) -> int:
                    raise ZeroDivisionError

                monkeypatch.setattr(user, "sealed_received", fail)
                one.send_sealed(run_of(1), 1200)
                assert isinstance(await over(other), ZeroDivisionError)

        run(main())


class TestRoomForSealed:
    def test_what_has_no_room_is_neither_lost_nor_doubled(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with links() as (one, other):
                crowd(monkeypatch)
                sending, user = Sealing(one), Sealing(other)
                for first in range(0, 200, 20):
                    sending.send(run_of(*range(first, first + 20), last=300), 1200)
                await user.until(lambda user: len(user.numbers) >= 200)
                assert user.numbers == list(range(200))
                assert sending.writable > 3
                assert not sending.unsent
                # The tunnel has its share meanwhile and afterwards.
                accepting = Accepting(other)
                one.open_stream(Noting()).write(b"x")
                await (await accepting.next()).until(lambda noting: noting.received)

        run(main())

    def test_nothing_is_offered_to_a_socket_that_is_known_to_be_full(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with links() as (one, other):
                sending, user = Sealing(one), Sealing(other)
                one._block(socket_of(one))
                with monkeypatch.context() as patch:
                    patch.setattr(UdpSocket, "send_segments", None)
                    sending.send(run_of(1), 1200)
                assert len(sending.unsent) == 1
                await user.until(lambda user: user.numbers == [1])
                assert sending.writable == 1

        run(main())

    def test_who_waits_goes_on_if_the_full_socket_is_closed(self) -> None:
        """The path has moved to another one meanwhile."""

        async def main() -> None:
            async with links() as (one, other):
                sending, user = Sealing(one), Sealing(other)
                spare = one._sockets[77] = UdpSocket(socket.AF_INET, 0)
                one._block(spare)
                sending.send(run_of(1), 1200)
                assert sending.unsent
                one._close_others()
                assert spare.fileno() < 0
                async with asyncio.timeout(1.0):
                    await user.until(lambda user: user.numbers == [1])

        run(main())

    def test_nobody_is_told_of_room_that_nobody_waits_for(self) -> None:
        async def main() -> None:
            async with links() as (one, _):
                user = Sealing(one)
                one._block(socket_of(one))
                await asyncio.sleep(0.02)
                assert one._blocked is None
                assert user.writable == 0

        run(main())


class TestNarrowing:
    """A path that takes less than it did."""

    @staticmethod
    def refuse(monkeypatch: pytest.MonkeyPatch, link: Link, mtu: int) -> None:
        """Have the first train of a link refused, as by a device whose MTU has become less."""
        real = UdpSocket.send_segments
        refused = False

        def narrow(self: UdpSocket, buffers: list[bytes], size: int, to: SocketAddress) -> int:
            nonlocal refused
            if refused or self is not socket_of(link):
                return real(self, buffers, size, to)
            refused = True
            error = NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, mtu=mtu)
            self._refusals.append(QueuedError(endpoint_from(to), error, b""))
            return 0

        monkeypatch.setattr(UdpSocket, "send_segments", narrow)

    @pytest.mark.parametrize(("mtu", "told"), [(1100, [1072]), (0, []), (500, [])])
    def test_what_does_not_fit_any_more_is_lost_and_told(
        self, mtu: int, told: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sizes that nobody knows, or that can't be true, are not told."""

        async def main() -> None:
            async with links() as (one, other):
                sending, user = Sealing(one), Sealing(other)
                self.refuse(monkeypatch, one, mtu)
                sending.send(run_of(1, 2), 1200)
                sending.send(run_of(3, size=1000), 1000)
                assert not sending.unsent
                assert sending.sizes == told
                await user.until(lambda user: user.numbers == [3])

        run(main())

    def test_a_word_about_something_larger_loses_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with links() as (one, other):
                sending, user = Sealing(one), Sealing(other)
                self.refuse(monkeypatch, one, 1228)
                sending.send(run_of(1, 2), 1200)
                assert sending.unsent
                await user.until(lambda user: user.numbers == [1, 2])
                assert sending.sizes == [1200]

        run(main())

    @pytest.mark.parametrize(
        ("port", "kind", "mtu", "told"),
        [
            (0, ErrorKind.TOO_BIG, 1300, [1272]),
            (0, ErrorKind.TOO_BIG, 552, [524]),
            (0, ErrorKind.TOO_BIG, 551, []),
            (0, ErrorKind.TOO_BIG, 0, []),
            (1, ErrorKind.TOO_BIG, 1300, []),  # about somebody else
            (0, ErrorKind.HOST_UNREACHABLE, 1300, []),
        ],
    )
    def test_what_a_router_says(
        self, port: int, kind: ErrorKind, mtu: int, told: list[int]
    ) -> None:
        async def main() -> None:
            async with links() as (one, _):
                user = Sealing(one)
                remote = one.peer._replace(port=port or one.peer.port)
                error = NetworkError(kind, errno.EMSGSIZE, "192.0.2.1", mtu=mtu)
                socket_of(one)._refusals.append(QueuedError(remote, error, b""))
                one._guarded(one._read, one.tunnel.path.socket)
                assert user.sizes == told
                assert not one.is_over

        run(main())

    @pytest.mark.parametrize(("mtu", "told"), [(1400, [1352]), (1280, [1232]), (1279, []), (0, [])])
    def test_what_a_router_says_of_ipv6(
        self, mtu: int, told: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There every network has to carry 1,280 bytes, so less is a lie."""

        async def main() -> None:
            async with links() as (one, _):
                user = Sealing(one)
                path = one.tunnel.path._replace(remote=Endpoint("2001:db8::1", one.peer.port))
                error = NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, "2001:db8::9", mtu=mtu)
                with monkeypatch.context() as patch:
                    patch.setattr(one.tunnel, "path", path)
                    one._take_error(error, path, one.loop.time())
                assert user.sizes == told
                assert not one.is_over

        run(main())

    def test_who_ends_the_link_for_it_waits_for_no_room(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with links() as (one, other):
                sending = Sealing(one)
                self.refuse(monkeypatch, one, 1228)
                monkeypatch.setattr(sending, "path_narrowed", lambda _: one.abort())
                sending.send(run_of(1, 2), 1200)
                assert one.is_over
                assert not sending.unsent
                assert isinstance(await over(other), PeerGoneError)

        run(main())


class TestFrames:
    def test_wait_until_there_is_somebody(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                sent = [(0x20 + number % 5, b"%d" % number) for number in range(20)]
                for kind, value in sent[:10]:
                    one.tunnel.send_frame(kind, value)
                one.wake()
                await asyncio.sleep(0.05)
                user = Sealing(other)
                for kind, value in sent[10:]:
                    one.tunnel.send_frame(kind, value)
                one.wake()
                await user.until(lambda user: len(user.frames) == 20)
                assert user.frames == sent

        run(main())

    def test_so_many_and_no_more(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                for number in range(link_module._HELD + 50):
                    one.tunnel.send_frame(0x24, b"%d" % number)
                one.wake()
                one.open_stream(Noting()).write(b"behind them")
                while not any(  # noqa: ASYNC110 (nobody is told)
                    isinstance(each, StreamOpened) for each in other._held
                ):
                    await asyncio.sleep(0.005)
                assert len(other._held) <= link_module._HELD + 3
                user = Sealing(other)
                await user.until(lambda user: len(user.frames) >= link_module._HELD - 3)
                assert user.frames[0] == (0x24, b"0")
                assert not other.is_over

        run(main())

    def test_for_nobody_are_forgotten(self) -> None:
        async def main() -> None:
            async with links() as (one, other):
                accepting = Accepting(other)
                one.tunnel.send_frame(0x20, b"for nobody")
                one.open_stream(Noting()).write(b"x")
                await (await accepting.next()).until(lambda noting: noting.received)
                await asyncio.sleep(0.02)
                user = Sealing(other)
                one.tunnel.send_frame(0x21, b"for somebody")
                one.wake()
                await user.until(lambda user: user.frames)
                assert user.frames == [(0x21, b"for somebody")]

        run(main())


class TestOwnAddress:
    """What happens when this host gets another address."""

    @pytest.fixture
    def addresses(self, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
        """This host's address towards the peer is the last of these; None: there is no network."""
        known: list[str | None] = ["192.0.2.1"]

        def source_for(to: Endpoint) -> Endpoint:
            if known[-1] is None:
                raise LocalNetworkError(f"no route to {to}", errno.ENETUNREACH)
            return Endpoint(known[-1], 1)

        monkeypatch.setattr(link_module, "source_for", source_for)
        monkeypatch.setattr(link_module, "_LOOK", 0.01)
        monkeypatch.setattr(secure, "_DOUBT", 0.2)
        return known

    def test_a_peer_that_answers_is_kept(self, addresses: list[str | None]) -> None:
        async def main() -> None:
            async with links() as (one, _):
                user = Sealing(one)
                addresses.append("198.51.100.1")
                await user.until(lambda user: user.moved)
                await asyncio.sleep(0.4)
                assert not one.is_over
                assert user.moved == 1

        run(main())

    def test_a_peer_that_does_not_is_gone_soon(self, addresses: list[str | None]) -> None:
        async def main() -> None:
            async with links() as (one, other):
                other.suspend()
                addresses.append("198.51.100.1")
                async with asyncio.timeout(3.0):
                    error = await over(one)
                assert isinstance(error, PeerGoneError)
                assert error.errno == errno.ENETRESET
                assert "another address now" in str(error)
                other.resume()

        run(main())

    def test_no_network_for_a_while_is_no_other_address(
        self, addresses: list[str | None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with links() as (one, _):
                moves: list[float] = []
                monkeypatch.setattr(one.tunnel, "note_own_move", moves.append)
                user = Sealing(one)
                for address in (None, "192.0.2.1", None, "198.51.100.1", None, "198.51.100.1"):
                    addresses.append(address)
                    await asyncio.sleep(0.05)
                assert len(moves) == user.moved == 1

        run(main())

    def test_is_looked_at_as_long_as_the_link_runs(self, addresses: list[str | None]) -> None:
        async def main() -> None:
            async with links() as (one, other):
                one.suspend()
                other.abort()
                assert one._looking is not None
                assert one._looking.cancelled()
                one.resume()
                assert not one._looking.cancelled()
                assert addresses

        run(main())


class TestTrains:
    def test_are_of_one_size_and_the_last_may_be_less(self) -> None:
        big, small = bytes(1350), bytes(100)
        assert _next_train([big, big, small, big]) == [big, big, small]
        assert _next_train([small, big]) == [small]
        assert _next_train([big]) == [big]
        assert _next_train([]) == []

    def test_fit_into_one_call(self) -> None:
        train = _next_train([bytes(1350)] * 200)
        assert sum(map(len, train)) <= 65_507
        assert 1 < len(train) <= 64


def test_early_data_of_the_traversal_is_not_lost() -> None:
    """The peer may be quicker: its first packets are in the hole already."""

    async def main() -> None:
        async with tunnel_holes() as (client, server):
            first = asyncio.ensure_future(establish(client, SECRET, Purpose.PROGRAM))
            await asyncio.sleep(0.05)
            second = await establish(server, SECRET, Purpose.PROGRAM)
            async with asyncio.timeout(0.5):
                (await first).abort()
            second.abort()
            assert second.connected.path == Path(0, second.peer)

    run(main())
