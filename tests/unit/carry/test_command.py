"""Real commands at one end of a real tunnel."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import command as command_module
from nat_traverse.carry.command import Detached, Pipes, continue_detached, run_command
from nat_traverse.carry.main_stream import MainStream
from nat_traverse.carry.processes import Process, descendants
from nat_traverse.carry.relay import Relay
from nat_traverse.carry.stream_relay import StreamRelay
from nat_traverse.errors import PeerGoneError
from support.ends import End, hole_to_original, holes, run, tunnel_through
from support.links import links
from support.stream_ends import StreamEnd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from nat_traverse.carry.command import MakeRelay, Relaying
    from nat_traverse.carry.descriptors import Sink, Source
    from nat_traverse.session import Hole

DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(DESCRIPTORS.iterdir())
    # Whoever runs the tests may have children: multiprocessing keeps one once it was used.
    others = descendants(os.getpid())
    yield
    assert set(DESCRIPTORS.iterdir()) == before
    assert descendants(os.getpid()) == others


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (nothing announces it; `run` bounds the whole)
        await asyncio.sleep(0.005)


@pytest.fixture(params=["plain", "encrypted"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which tunnel it runs over."""
    return str(request.param)


class Runner:
    """The end that runs commands; `make_relay` as `run_command` wants it."""

    def __init__(self, make_relay: MakeRelay, count_received: Callable[[], int]) -> None:
        self._make_relay = make_relay
        self.count_received = count_received
        self._relays = 0
        self._others = descendants(os.getpid())

    def make_relay(self, source: Source, sink: Sink, *, grace: float) -> Relaying:
        self._relays += 1
        return self._make_relay(source, sink, grace=grace)

    def start(self, command: str, *, packets: bool = False) -> asyncio.Task[int | Detached]:
        return asyncio.ensure_future(run_command(command, self.make_relay, packets=packets))

    def family(self) -> list[Process]:
        """Return the processes of the command, its shell included."""
        return [each for each in descendants(os.getpid()) if each not in self._others]

    async def family_of(self, count: int) -> list[Process]:
        """Wait until there are `count` of them, and the relay runs."""
        await until(lambda: self._relays and len(self.family()) >= count)
        await asyncio.sleep(0)  # its first step
        return self.family()

    async def go_on(self, detached: Detached) -> None:
        await continue_detached(detached, self.make_relay)


def plain_runner(hole: Hole) -> Runner:
    tunnel = tunnel_through(hole)
    make_relay = partial(Relay, hole, tunnel, observe=lambda _: None)
    return Runner(make_relay, lambda: tunnel.received.octets)


@asynccontextmanager
async def runner_and_user(
    kind: str,
) -> AsyncIterator[tuple[Runner, End | StreamEnd, asyncio.Task[None]]]:
    """The end that runs commands, the other end, and that one's running relay."""
    async with AsyncExitStack() as stack:
        user: End | StreamEnd
        if kind == "plain":
            one, other = await stack.enter_async_context(holes())
            user = stack.enter_context(End(other, tunnel_through(other)))
            runner = plain_runner(one)
        else:
            mine, theirs = await stack.enter_async_context(links())
            user = stack.enter_context(StreamEnd(theirs))
            main = MainStream(mine)
            runner = Runner(partial(StreamRelay, main), lambda: main.taken)
        relaying = user.start()
        yield runner, user, relaying
        if not relaying.done():
            relaying.cancel()
        await asyncio.wait({relaying})


def ends_with(relaying: asyncio.Task[None], number: int) -> None:
    error = relaying.exception()
    assert isinstance(error, PeerGoneError)
    assert error.errno == number


class TestStatus:
    @pytest.mark.parametrize(
        ("command", "status"),
        [
            ("true", 0),
            ("false", 1),
            ("exit 7", 7),
            ("sh -c 'exit 9'", 9),
            ("kill -9 $$; true", 128 + 9),
            ("kill -TERM $$; true", 128 + 15),
            ("/no/such/command 2>/dev/null", 127),
            ("/etc/passwd 2>/dev/null", 126),
            ("", 0),
            ("yes | head -n 1 >/dev/null", 0),
        ],
    )
    def test_is_what_a_shell_says(self, kind: str, command: str, status: int) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                assert await runner.start(command) == status
                assert await user.read_all() == b""
                await relaying

        run(test())

    def test_of_a_command_that_leaves_while_the_peer_goes_on_sending(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start("head -c 5; exit 3")
                writing = asyncio.ensure_future(user.write(bytes(20_000_000)))
                assert await running == 3
                assert await user.read_all() == bytes(5)
                await asyncio.wait({relaying})
                # Whether something was under way at that moment is chance.
                if relaying.exception() is not None:
                    ends_with(relaying, errno.ECONNRESET)
                user.hang_up()
                with pytest.raises(BrokenPipeError):
                    await writing

        run(test())

    def test_of_a_command_that_never_reads(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start("head -c 3000000 /dev/zero; exit 5")
                await user.write(bytes(300_000))
                assert await user.read_all() == bytes(3_000_000)
                assert await running == 5
                await relaying

        run(test())


class TestStreams:
    def test_are_the_tunnel(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start('read line; echo "got $line"; exit 7')
                await user.write(b"this\n")
                assert await user.read_all() == b"got this\n"
                assert await running == 7
                await relaying

        run(test())

    def test_carry_every_byte_and_both_ends(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                data = random.Random(1).randbytes(5_000_000)
                running = runner.start("cat")
                writing = asyncio.ensure_future(user.write(data, end=True))
                assert await user.read_all() == data
                await writing
                assert await running == 0
                await relaying

        run(test())

    def test_the_peers_end_is_no_end_of_the_command(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start("wc -c; sleep 0.2; echo more; exit 4")
                await user.write(b"12345", end=True)
                assert (await user.read_all()).split() == [b"5", b"more"]
                assert await running == 4
                await relaying

        run(test())

    def test_a_command_may_close_its_output_and_live_on(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start("exec >&-; wc -c >&2; exit 6")
                assert await user.read_all() == b""
                await user.write(b"12345", end=True)
                assert await running == 6
                await relaying

        run(test())

    def test_a_command_may_close_its_input_and_talk_on(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start("exec <&-; echo ready; sleep 0.3; echo done; exit 2")
                assert await user.read(6) == b"ready\n"
                await user.write(bytes(500_000))
                assert await user.read_all() == b"done\n"
                assert await running == 2
                await relaying

        run(test())

    def test_with_an_old_peer(self) -> None:
        async def test() -> None:
            async with hole_to_original() as (hole, peer):
                runner = plain_runner(hole)
                running = runner.start('read line; echo "got $line"; exit 7')
                peer.send(b"this\n")
                loop = asyncio.get_running_loop()
                assert await loop.sock_recv(peer, 100) == b"got this\n"
                assert await running == 7

        run(test())


STUBBORN = "trap '' TERM; sleep 1000 | sleep 1000"


class TestTheTunnelsEnd:
    @pytest.fixture(autouse=True)
    def hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command_module, "_GRACE", 0.2)

    @pytest.mark.parametrize(
        "command",
        [
            "sleep 1000; true",
            "sleep 1000 | sleep 1000",
            STUBBORN,
            # The shell dies of the signal, and leaves behind what does not.
            "(trap '' TERM; sleep 1000; true) | cat",
            "sleep 1000 & sleep 1000",
        ],
    )
    @pytest.mark.parametrize("how", ["cancelled", "closed"])
    def test_leaves_no_process(self, kind: str, command: str, how: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, _, relaying):
                running = runner.start(command)
                family = await runner.family_of(2)
                if how == "cancelled":
                    running.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await running
                    await asyncio.wait({relaying})
                    ends_with(relaying, errno.ECONNRESET)
                else:
                    relaying.cancel()
                    with pytest.raises(PeerGoneError):
                        await running
                assert not any(process.is_alive for process in family)

        run(test())

    @pytest.mark.parametrize("rounds", range(8))
    def test_leaves_no_process_when_cancelled_while_it_starts(self, kind: str, rounds: int) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, _, _):
                running = runner.start("sleep 1000 & sleep 1000 & wait")
                for _ in range(rounds):
                    await asyncio.sleep(0)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                assert runner.family() == []

        run(test())

    def test_lets_a_command_finish_that_heeds_the_end_of_its_input(
        self, kind: str, tmp_path: Path
    ) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start(f"echo up; cat >{tmp_path}/got; echo bye >{tmp_path}/said")
                assert await user.read(3) == b"up\n"
                await user.write(b"kept")
                await until(lambda: runner.count_received() == 4)
                relaying.cancel()
                with pytest.raises(PeerGoneError):
                    await running
                assert (tmp_path / "got").read_text() == "kept"
                assert (tmp_path / "said").read_text() == "bye\n"

        run(test())

    def test_ends_a_command_that_nobody_hears_any_more(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, _):
                running = runner.start("while echo x; do sleep 0.01; done; exit 1")
                assert await user.read(2) == b"x\n"
                user.close_output()
                # Whether something was under way at that moment is chance.
                try:
                    status = await running
                except PeerGoneError as error:
                    assert error.errno == errno.ECONNRESET  # noqa: PT017 (the point is: either)
                else:
                    assert status in (1, 128 + signal.SIGPIPE, 128 + signal.SIGTERM)

        run(test())

    def test_comes_sooner_with_a_second_signal(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command_module, "_GRACE", 1000.0)

        async def test() -> None:
            async with runner_and_user(kind) as (runner, _, relaying):
                running = runner.start(STUBBORN)
                family = await runner.family_of(3)
                # End of input, SIGTERM, SIGKILL: each time somebody loses patience.
                for _ in range(3):
                    running.cancel()
                    await asyncio.sleep(0.1)
                with pytest.raises(asyncio.CancelledError):
                    await running
                assert not any(process.is_alive for process in family)
                await asyncio.wait({relaying})

        run(test())


class TestDetached:
    def test_a_process_left_behind_keeps_the_tunnel(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                # In the background of a shell, standard input is /dev/null unless it is named.
                child = "{ sleep 0.2; echo later; read word; echo got $word; } <&3 3<&- &"
                result = await runner.start(f"exec 3<&0; {child} echo now; exit 5")
                assert isinstance(result, Detached)
                assert result.status == 5
                going_on = asyncio.ensure_future(runner.go_on(result))
                assert await user.read(10) == b"now\nlater\n"
                await user.write(b"word\n")
                assert await user.read_all() == b"got word\n"
                await going_on
                await relaying

        run(test())

    def test_may_have_no_input_while_the_peer_sends(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                result = await runner.start("{ sleep 0.5; echo later; } & exit 5")
                assert isinstance(result, Detached)
                going_on = asyncio.ensure_future(runner.go_on(result))
                await user.write(bytes(300_000))
                assert await user.read_all() == b"later\n"
                await going_on
                await relaying

        run(test())

    def test_may_begin_after_the_peers_end(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                running = runner.start("{ sleep 0.5; echo later; } & cat; exit 5")
                await user.write(b"first\n", end=True)
                result = await running
                assert isinstance(result, Detached)
                going_on = asyncio.ensure_future(runner.go_on(result))
                assert await user.read_all() == b"first\nlater\n"
                await going_on
                await relaying

        run(test())

    def test_sees_the_end_when_the_peer_is_gone(self, kind: str) -> None:
        async def test() -> None:
            async with runner_and_user(kind) as (runner, user, relaying):
                result = await runner.start("exec 3<&0; { cat; } <&3 & echo up; exit 0")
                assert isinstance(result, Detached)
                going_on = asyncio.ensure_future(runner.go_on(result))
                assert await user.read(3) == b"up\n"
                relaying.cancel()
                with pytest.raises(PeerGoneError):
                    await going_on
                assert not result.pipes.is_held()

        run(test())


class TestPipes:
    def test_are_of_no_use_once_closed(self) -> None:
        async def test() -> None:
            async with holes() as (one, _):
                reading, writing = os.pipe()
                others = os.pipe()
                pipes = Pipes(reading, others[1])
                tunnel = tunnel_through(one)
                assert pipes.is_held()
                os.close(writing)
                assert not pipes.is_held()
                make_relay = partial(Relay, one, tunnel, observe=lambda _: None)
                relay, sink = pipes.relay(make_relay)
                assert isinstance(relay, Relay)
                relay._source.close()
                sink.close()
                pipes.close(sink)
                pipes.close(sink)
                assert not pipes.is_held()
                with pytest.raises(ValueError, match="closed"):
                    pipes.relay(make_relay)
                os.close(others[0])

        run(test())

    def test_are_closed_when_the_command_cannot_start(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command_module, "SHELL", "/no/such/shell")

        async def test() -> None:
            async with runner_and_user(kind) as (runner, _, _relaying):
                with pytest.raises(FileNotFoundError):
                    await runner.start("true")

        run(test())


def test_a_quick_command_is_quick(kind: str) -> None:
    async def test() -> None:
        async with runner_and_user(kind) as (runner, _, relaying):
            began = time.monotonic()
            assert await runner.start("true") == 0
            # Less than any wait that it might run into: a grace, a retry, a linger.
            assert time.monotonic() - began < 1.0
            await relaying

    run(test())
