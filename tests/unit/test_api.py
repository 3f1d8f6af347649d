"""The library, as a program uses it: both ends in one event loop, over loopback."""

from __future__ import annotations

import asyncio
import errno
import pathlib
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

import nat_traverse
import nat_traverse.punch.handshake
from nat_traverse import api, session
from nat_traverse.errors import PeerGoneError, UsageError
from nat_traverse.link.establish import ModesDifferError, Purpose
from nat_traverse.session import NotFoundError, Opened, PunchSettings
from nat_traverse.tunnel.events import Proven
from nat_traverse.tunnel.keys import encode_public, public_of
from nat_traverse.tunnel.proof import Means
from nat_traverse.tunnel.refusals import (
    GivenUpError,
    MeansDifferError,
    ProofError,
    Refusal,
)
from nat_traverse.wire.hello import Mode
from support.ends import free_ports, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ONE_KEY, OTHER_KEY = b"\x01" * 32, b"\x02" * 32
SECRET, GUESS = "correct horse", "wrong horse"
ONE_TEXT, OTHER_TEXT = (encode_public(public_of(key)) for key in (ONE_KEY, OTHER_KEY))


def open_descriptors() -> set[str]:
    return {descriptor.name for descriptor in pathlib.Path("/proc/self/fd").iterdir()}


def targets() -> tuple[str, str]:
    """Return what two ends of this host name each other."""
    one, other = free_ports()
    return f"{one}:127.0.0.1:{other}", f"{other}:127.0.0.1:{one}"


async def both(
    one: Callable[[nat_traverse.Tunnel], Coroutine[Any, Any, Any]],
    other: Callable[[nat_traverse.Tunnel], Coroutine[Any, Any, Any]],
    **arguments: Any,
) -> list[Any]:
    """Connect two ends, have each do its part, and return what came of them."""
    arguments = {"secret": SECRET, "timeout": 20.0, **arguments}

    async def end(target: str, part: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        async with nat_traverse.connect(target, **arguments) as tunnel:
            return await part(tunnel)

    there, back = targets()
    found = await asyncio.gather(end(there, one), end(back, other), return_exceptions=True)
    return list(found)


async def nothing(_: nat_traverse.Tunnel) -> None:
    pass


async def until_closed(tunnel: nat_traverse.Tunnel) -> None:
    await tunnel.wait_closed()


class TestConnecting:
    def test_with_a_secret(self) -> None:
        async def look(tunnel: nat_traverse.Tunnel) -> tuple[object, ...]:
            assert tunnel.peer.host == "127.0.0.1"
            assert tunnel.round_trip is not None
            assert tunnel.datagram_limit > 1000
            return tunnel.code, tunnel.peer_key, tunnel.strategy

        async def main() -> None:
            for code, key, strategy in await both(look, look):
                assert (code, key) == (None, None)
                assert isinstance(strategy, str)

        run(main())

    def test_a_secret_is_the_same_in_each_notation(self) -> None:
        """One user's keyboard composes accents, the other's does not; spaces around don't count."""

        async def main() -> None:
            there, back = targets()

            async def end(target: str, secret: str) -> None:
                async with nat_traverse.connect(target, secret=secret, timeout=20.0):
                    pass

            await asyncio.gather(end(there, "caf\u00e9 "), end(back, " cafe\u0301"))

        run(main())

    def test_with_keys(self) -> None:
        async def main() -> None:
            there, back = targets()

            async def end(target: str, identity: bytes, peer: str) -> str | None:
                async with nat_traverse.connect(
                    target, identity=identity, peer_keys=[peer], timeout=20.0
                ) as tunnel:
                    return tunnel.peer_key

            found = await asyncio.gather(
                end(there, ONE_KEY, OTHER_TEXT), end(back, OTHER_KEY, ONE_TEXT)
            )
            assert list(found) == [OTHER_TEXT, ONE_TEXT]

        run(main())

    def test_with_neither_both_see_the_same_code(self) -> None:
        async def code(tunnel: nat_traverse.Tunnel) -> str | None:
            return tunnel.code

        async def main() -> None:
            codes = [await both(code, code, secret=None) for _ in range(2)]
            assert all(one == other for one, other in codes)
            assert codes[0] != codes[1]
            digits = codes[0][0].replace(" ", "")
            assert len(digits) == 6
            assert digits.isdecimal()

        run(main())

    def test_whoever_starts_first(self) -> None:
        async def main() -> None:
            there, back = targets()

            async def end(target: str, after: float) -> None:
                await asyncio.sleep(after)
                async with nat_traverse.connect(target, secret=SECRET, timeout=20.0) as tunnel:
                    await tunnel.aclose()

            await asyncio.gather(end(there, 0.0), end(back, 0.6))

        run(main())

    def test_the_observer_is_told(self) -> None:
        async def main() -> None:
            told: list[object] = []
            await both(nothing, until_closed, observe=told.append)
            kinds = [type(event) for event in told]
            assert kinds.count(Opened) == 2
            assert kinds.count(Proven) == 2

        run(main())


class TestFailing:
    def test_nobody_there(self) -> None:
        async def main() -> None:
            before = open_descriptors()
            with pytest.raises(NotFoundError):
                async with nat_traverse.connect(targets()[0], secret=SECRET, timeout=0.3):
                    pytest.fail("it connected to nobody")
            assert open_descriptors() == before

        run(main())

    @pytest.mark.parametrize(
        "arguments",
        [
            {"identity": ONE_KEY},
            {"peer_keys": [ONE_TEXT]},
            {"identity": b"short", "peer_keys": [ONE_TEXT]},
            {"identity": ONE_KEY, "peer_keys": ["no key"]},
            {"secret": ""},
            {"secret": "   "},
        ],
    )
    def test_arguments_that_make_no_sense(self, arguments: dict[str, Any]) -> None:
        async def main() -> None:
            with pytest.raises(UsageError):
                async with nat_traverse.connect(targets()[0], **arguments):
                    pytest.fail("it connected")

        run(main())

    @pytest.mark.parametrize("target", ["", "1:2", "x:127.0.0.1:1", "1:127.0.0.1:70000"])
    def test_targets_that_make_no_sense(self, target: str) -> None:
        async def main() -> None:
            with pytest.raises(UsageError):
                async with nat_traverse.connect(target, secret=SECRET):
                    pytest.fail("it connected")
            with pytest.raises(UsageError):
                async with nat_traverse.punch(target):
                    pytest.fail("it connected")

        run(main())

    def test_a_wrong_secret_has_five_attempts(self) -> None:
        async def main() -> None:
            there, back = targets()
            told: dict[str, list[api.Rejected]] = {there: [], back: []}

            async def end(target: str, secret: str) -> None:
                def note(event: object) -> None:
                    if isinstance(event, api.Rejected):
                        told[target].append(event)

                async with nat_traverse.connect(target, secret=secret, timeout=60.0, observe=note):
                    pytest.fail("a wrong secret was accepted")

            before = open_descriptors()
            begun = time.monotonic()
            found = await asyncio.gather(
                end(there, "right"), end(back, "wrong"), return_exceptions=True
            )
            assert any(isinstance(error, GivenUpError) for error in found)
            for error in found:
                assert isinstance(error, ProofError)
                assert error.refusal is Refusal.WRONG_SECRET
            assert max(len(events) for events in told.values()) == api.MOST_FAILURES - 1
            assert time.monotonic() - begun >= 4 * 0.2, "guessing is slow"
            assert open_descriptors() == before

        run(main())

    def test_a_stranger_in_between_stops_nobody(self) -> None:
        """Somebody else answers first, and does not know the secret; then the right one comes."""

        async def main() -> None:
            there, back = targets()
            rejected = asyncio.Event()

            def note(event: object) -> None:
                if isinstance(event, api.Rejected):
                    rejected.set()

            async def end() -> str:
                async with nat_traverse.connect(
                    there, secret=SECRET, timeout=20.0, observe=note
                ) as tunnel:
                    reader, writer = await tunnel.open_stream()
                    writer.write(b"are you it?")
                    writer.write_eof()
                    return (await reader.read()).decode()

            async def stranger() -> None:
                async with nat_traverse.connect(back, secret=GUESS, timeout=20.0):
                    pytest.fail("a guess was accepted")

            ours = asyncio.ensure_future(end())
            guessing = asyncio.ensure_future(stranger())
            await rejected.wait()
            guessing.cancel()
            await asyncio.wait({guessing})
            async with nat_traverse.connect(back, secret=SECRET, timeout=20.0) as tunnel:
                reader, writer = await tunnel.accept_stream()
                assert await reader.read() == b"are you it?"
                writer.write(b"yes")
                writer.write_eof()
                assert await ours == "yes"

        run(main())

    def test_a_secret_here_and_none_there(self) -> None:
        async def main() -> None:
            there, back = targets()

            async def end(target: str, secret: str | None) -> None:
                async with nat_traverse.connect(target, secret=secret, timeout=5.0):
                    pytest.fail("it connected")

            with_secret = asyncio.ensure_future(end(there, "x"))
            with pytest.raises(ProofError) as caught:
                await end(back, None)  # whoever demands nothing has nothing to wait for
            assert caught.value.refusal is Refusal.MEANS_DIFFER
            if isinstance(caught.value, MeansDifferError):
                assert caught.value.ours == 0
            with_secret.cancel()
            await asyncio.wait({with_secret})

        run(main())

    def test_a_peer_with_another_purpose(self) -> None:
        async def main() -> None:
            there, back = targets()
            left, _, right = there.split(":")
            del back
            settings = api.Settings(
                PunchSettings(
                    int(right),
                    "127.0.0.1",
                    int(left),
                    timeout=20.0,
                    mode=Mode.TUNNEL,
                    legacy=False,
                ),
                Means(SECRET.encode()),
                Purpose.STREAM,
            )

            async def library() -> None:
                async with nat_traverse.connect(there, secret=SECRET, timeout=20.0):
                    pytest.fail("it connected")

            found = await asyncio.gather(
                library(), api.reach(settings, lambda _: None), return_exceptions=True
            )
            for error in found:
                assert isinstance(error, ProofError)
                assert error.refusal is Refusal.PURPOSES_DIFFER

        run(main())

    @pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.PORTS])
    def test_a_peer_that_wants_no_tunnel(self, mode: Mode) -> None:
        async def main() -> None:
            there, _ = targets()
            left, _, right = there.split(":")
            settings = PunchSettings(int(right), "127.0.0.1", int(left), timeout=20.0, mode=mode)
            punching = asyncio.ensure_future(session.punch(settings, lambda _: None))
            with pytest.raises(ModesDifferError):
                async with nat_traverse.connect(there, secret=SECRET, timeout=20.0):
                    pytest.fail("it connected")
            (await punching).close()

        run(main())


class TestLeaving:
    def test_what_was_ended_arrives_before_the_block_is_left(self) -> None:
        data = bytes(3_000_000)

        async def send(tunnel: nat_traverse.Tunnel) -> None:
            _, writer = await tunnel.open_stream()
            writer.write(data)
            writer.close()

        async def receive(tunnel: nat_traverse.Tunnel) -> bytes:
            reader, _ = await tunnel.accept_stream()
            await asyncio.sleep(0.05)
            return await reader.read()

        async def main() -> None:
            assert await both(send, receive) == [None, data]

        run(main())

    def test_by_an_exception_ends_it_at_once_on_both_sides(self) -> None:
        async def fail(tunnel: nat_traverse.Tunnel) -> None:
            _, writer = await tunnel.open_stream()
            writer.write(bytes(10_000_000))
            writer.write_eof()
            raise ZeroDivisionError

        async def main() -> None:
            async with asyncio.timeout(5.0):
                found = await both(fail, until_closed)
            assert isinstance(found[0], ZeroDivisionError)
            assert isinstance(found[1], PeerGoneError)
            assert found[1].errno == errno.ECONNRESET

        run(main())

    def test_by_being_cancelled(self) -> None:
        async def main() -> None:
            there, back = targets()
            ready = asyncio.Event()

            async def stay() -> None:
                async with nat_traverse.connect(there, secret=SECRET, timeout=20.0) as tunnel:
                    ready.set()
                    await tunnel.wait_closed()

            task = asyncio.ensure_future(stay())
            async with nat_traverse.connect(back, secret=SECRET, timeout=20.0) as tunnel:
                await ready.wait()
                task.cancel()
                with pytest.raises(PeerGoneError):
                    await tunnel.wait_closed()
                for call in (tunnel.open_stream, tunnel.accept_stream, tunnel.receive_datagram):
                    with pytest.raises(PeerGoneError):
                        await call()
                with pytest.raises(PeerGoneError):
                    tunnel.send_datagram(b"x")
                await tunnel.aclose()
                tunnel.abort()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(main())

    @pytest.mark.parametrize("after", [0.0, 0.003, 0.01, 0.03, 0.1])
    def test_cancelled_while_it_looks_or_proves(self, after: float) -> None:
        async def main() -> None:
            before = open_descriptors()
            there, back = targets()

            async def end(target: str) -> None:
                async with nat_traverse.connect(target, secret=SECRET, timeout=20.0) as tunnel:
                    await tunnel.wait_closed()

            tasks = [asyncio.ensure_future(end(target)) for target in (there, back)]
            await asyncio.sleep(after)
            for task in tasks:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(error, asyncio.CancelledError | PeerGoneError) for error in found)
            assert open_descriptors() == before
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run(main())

    def test_everything_is_gone_afterwards(self) -> None:
        async def main() -> None:
            before = open_descriptors()
            await both(nothing, until_closed)
            await asyncio.sleep(0)
            assert open_descriptors() == before
            assert len(asyncio.all_tasks()) <= 2  # this one, and the one that bounds its time

        run(main())


class TestStreams:
    def test_many_at_once_in_order(self) -> None:
        async def ask(tunnel: nat_traverse.Tunnel) -> list[bytes]:
            async def one(number: int) -> bytes:
                reader, writer = await tunnel.open_stream()
                writer.write(b"%d" % number)
                writer.write_eof()
                answer = await reader.read()
                writer.close()
                await writer.wait_closed()
                return answer

            return list(await asyncio.gather(*(one(number) for number in range(150))))

        async def answer(tunnel: nat_traverse.Tunnel) -> None:
            async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"you said " + await reader.read())
                writer.close()
                await writer.wait_closed()

            async with asyncio.TaskGroup() as group:
                for _ in range(150):
                    group.create_task(one(*await tunnel.accept_stream()))
            await tunnel.wait_closed()

        async def main() -> None:
            found = await both(ask, answer)
            assert found[0] == [b"you said %d" % number for number in range(150)]

        run(main())

    def test_one_that_nobody_accepts_in_time_is_not_lost_with_who_gave_up(self) -> None:
        async def send(tunnel: nat_traverse.Tunnel) -> None:
            await asyncio.sleep(0.1)
            _, writer = await tunnel.open_stream()
            writer.write(b"x")
            writer.close()

        async def receive(tunnel: nat_traverse.Tunnel) -> bytes:
            for _ in range(50):
                try:
                    async with asyncio.timeout(0.005):
                        reader, _ = await tunnel.accept_stream()
                        return await reader.read()
                except TimeoutError:
                    pass
            raise AssertionError("it never came")

        async def main() -> None:
            assert await both(send, receive) == [None, b"x"]

        run(main())

    def test_what_begins_with_another_line_is_refused(self) -> None:
        async def send(tunnel: nat_traverse.Tunnel) -> None:
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            for line in (b"tcp 127.0.0.1:22\n", b"nonsense\n", b"x" * 70_000, b"", b"stream"):
                stream = tunnel._link.open_stream(protocol)
                stream.write(line)
                stream.write_eof()
                if line:
                    with pytest.raises(ConnectionError):
                        await reader.read()
                reader = asyncio.StreamReader()
                protocol = asyncio.StreamReaderProtocol(reader)
            _, writer = await tunnel.open_stream()
            writer.write(b"the real one")
            writer.close()

        async def receive(tunnel: nat_traverse.Tunnel) -> bytes:
            reader, _ = await tunnel.accept_stream()
            return await reader.read()

        async def main() -> None:
            assert (await both(send, receive))[1] == b"the real one"

        run(main())

    def test_more_than_are_accepted_are_refused(self) -> None:
        async def send(tunnel: nat_traverse.Tunnel) -> int:
            opened = [await tunnel.open_stream() for _ in range(api._BACKLOG + 5)]
            for _, writer in opened:
                writer.write_eof()
            await asyncio.sleep(0.2)
            refused = sum(reader.exception() is not None for reader, _ in opened)
            for _, writer in opened:
                writer.transport.abort()
            return refused

        async def main() -> None:
            found = await both(send, until_closed)
            assert found[0] == 0, "the hundred that wait take up all that QUIC allows"

        run(main())


class TestDatagrams:
    def test_there_and_back(self) -> None:
        async def one(tunnel: nat_traverse.Tunnel) -> bytes:
            tunnel.send_datagram(b"ping")
            with pytest.raises(ValueError, match="fit"):
                tunnel.send_datagram(bytes(tunnel.datagram_limit + 1))
            return await tunnel.receive_datagram()

        async def other(tunnel: nat_traverse.Tunnel) -> bytes:
            got = await tunnel.receive_datagram()
            tunnel.send_datagram(bytes(tunnel.datagram_limit))
            await tunnel.wait_closed()
            return got

        async def main() -> None:
            found = await both(one, other)
            assert found[1] == b"ping"
            assert len(found[0]) > 1000

        run(main())

    def test_the_oldest_are_lost_when_nobody_takes_them(self) -> None:
        async def send(tunnel: nat_traverse.Tunnel) -> None:
            for number in range(2000):
                tunnel.send_datagram(b"%d" % number)
                if number % 20 == 0:
                    await asyncio.sleep(0.001)
            _, writer = await tunnel.open_stream()
            writer.close()

        async def receive(tunnel: nat_traverse.Tunnel) -> list[bytes]:
            reader, _ = await tunnel.accept_stream()
            await reader.read()
            return list(tunnel._datagrams)

        async def main() -> None:
            (_, kept) = await both(send, receive)
            assert len(kept) <= 1024
            numbers = [int(data) for data in kept]
            assert numbers == sorted(numbers)
            assert numbers[-1] > 1900

        run(main())


class TestPunching:
    def test_gives_a_connected_socket(self) -> None:
        async def main() -> None:
            before = open_descriptors()
            there, back = targets()

            async def end(target: str, data: bytes) -> bytes:
                async with nat_traverse.punch(target, timeout=20.0) as hole:
                    assert isinstance(hole, nat_traverse.PunchedHole)
                    assert hole.socket.getpeername() == (hole.peer.host, hole.peer.port)
                    assert hole.socket.type == socket.SOCK_DGRAM
                    assert hole.socket.gettimeout() == 0.0
                    hole.socket.send(data)
                    loop = asyncio.get_running_loop()
                    while (got := await loop.sock_recv(hole.socket, 2000)).startswith(
                        b"nat-traverse-"
                    ):
                        pass
                    await asyncio.sleep(0.05)
                    return got

            found = await asyncio.gather(end(there, b"one"), end(back, b"other"))
            assert list(found) == [b"other", b"one"]
            assert open_descriptors() == before

        run(main())

    def test_a_peer_that_wants_a_tunnel_is_told(self) -> None:
        async def main() -> None:
            there, back = targets()

            async def tunnel() -> None:
                async with nat_traverse.connect(there, secret=SECRET, timeout=20.0):
                    pytest.fail("it connected")

            connecting = asyncio.ensure_future(tunnel())
            async with nat_traverse.punch(back, timeout=20.0):
                pass
            with pytest.raises(ModesDifferError):
                await connecting

        run(main())


def test_two_hundred_tunnels_in_one_event_loop() -> None:
    all_there = asyncio.Barrier(200)

    async def ask(tunnel: nat_traverse.Tunnel) -> bytes:
        await all_there.wait()
        reader, writer = await tunnel.open_stream()
        writer.write(bytes(50_000))
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    async def answer(tunnel: nat_traverse.Tunnel) -> None:
        await all_there.wait()
        reader, writer = await tunnel.accept_stream()
        writer.write(b"%d" % len(await reader.read()))
        writer.close()
        await tunnel.wait_closed()

    async def main() -> None:
        before = open_descriptors()
        ports = free_ports(200)
        pairs = list(zip(ports[::2], ports[1::2], strict=True))
        beginning = asyncio.Semaphore(20)

        async def end(
            ours: int, theirs: int, part: Callable[[nat_traverse.Tunnel], Coroutine[Any, Any, Any]]
        ) -> Any:
            target = f"{ours}:127.0.0.1:{theirs}"
            # A few begin at a time: a proof takes some 20 ms of computing, and 10 s at most.
            async with AsyncExitStack() as stack:
                async with beginning:
                    tunnel = await stack.enter_async_context(
                        nat_traverse.connect(target, secret=SECRET, timeout=100.0)
                    )
                return await part(tunnel)

        # Both ends of a pair begin next to each other, or they would wait for each other's turn.
        ends = [
            each for one, other in pairs for each in (end(one, other, ask), end(other, one, answer))
        ]
        found = await asyncio.gather(*ends)
        assert found == [b"50000", None] * 100
        assert open_descriptors() == before
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def bounded() -> None:
        async with asyncio.timeout(150.0):
            await main()

    asyncio.run(bounded())


class TestPackage:
    def test_all_that_is_promised_is_there(self) -> None:
        for name in nat_traverse.__all__:
            assert getattr(nat_traverse, name) is not None
        assert nat_traverse.connect is api.connect
        assert nat_traverse.Tunnel is api.Tunnel
        with pytest.raises(AttributeError, match="nothing_such"):
            getattr(nat_traverse, "nothing_such")  # noqa: B009 (it has no such attribute)

    def test_punch_is_the_function_although_a_package_has_the_name(self) -> None:
        assert sys.modules["nat_traverse.punch.handshake"] is not None
        assert nat_traverse.punch is api.punch

    @pytest.mark.parametrize(
        "first",
        ["import nat_traverse.punch.handshake", "from nat_traverse.punch import ladder", ""],
    )
    def test_in_whatever_order_they_are_imported(self, first: str) -> None:
        program = (
            f"{first}\n"
            "import nat_traverse, nat_traverse.api\n"
            "assert nat_traverse.punch is nat_traverse.api.punch\n"
            "from nat_traverse.punch.evidence import Evidence\n"
            "assert nat_traverse.punch is nat_traverse.api.punch"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    def test_importing_it_imports_nothing_heavy(self) -> None:
        program = (
            "import sys, nat_traverse\n"
            "heavy = {'asyncio', 'qh3', 'cryptography', 'spake2', 'typing'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
            "assert nat_traverse.__version__"
        )
        subprocess.run([sys.executable, "-S", "-c", program], check=True, timeout=60, env=PATHS)


PATHS = {"PYTHONPATH": str(pathlib.Path(nat_traverse.__file__).parents[1])}
