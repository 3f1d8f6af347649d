"""Port forwards between real sockets, with a link in memory between the two sides."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.streams import (
    Forwarded,
    ForwardRefused,
    Listening,
    ListeningEnded,
)
from nat_traverse.errors import LocalNetworkError
from nat_traverse.wire.request import Word
from support.forwards import (
    echo,
    reset,
    run,
    service,
    side,
    sides,
    sockets_open,
    until,
    unused_port,
)
from support.streams import links

if TYPE_CHECKING:
    from pathlib import Path

SEED = 20
DATA = random.Random(SEED).randbytes(10_000_000)


async def ask(port: int, data: bytes = b"hello", host: str = "127.0.0.1") -> bytes:
    """Send `data` and its end; return what comes back."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def is_reset(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


def test_ten_megabytes_each_way() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"L": [f"0:127.0.0.1:{port}"]}, {"expose": [f"127.0.0.1:{port}"]}) as (left, _),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            received = asyncio.ensure_future(reader.readexactly(len(DATA)))
            writer.write(DATA)
            await writer.drain()
            digest = hashlib.sha256(await received).digest()
            assert digest == hashlib.sha256(DATA).digest(), f"seed {SEED}"
            writer.close()

    run(test())


def test_the_client_may_end_first() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = len(await reader.read())
        await asyncio.sleep(0)
        writer.write(f"{total} bytes".encode())
        writer.close()

    async def test() -> None:
        async with (
            service(count) as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": [f"localhost:{port}"]}) as (left, _),
        ):
            assert await ask(await left.port(), DATA[:300_000]) == b"300000 bytes"

    run(test())


def test_the_server_may_end_first() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DATA[:300_000])
        writer.write_eof()
        await heard.put(await reader.read())
        writer.close()

    async def test() -> None:
        async with (
            service(end_first) as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": [f"localhost:{port}"]}) as (left, _),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            assert await reader.read() == DATA[:300_000]
            writer.write(b"and I go on")
            writer.close()
            assert await heard.get() == b"and I go on"

    run(test())


def test_a_reset_of_the_server_is_one_for_the_client() -> None:
    async def reset_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        reset(writer)

    async def test() -> None:
        async with (
            service(reset_it) as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            assert not left.refusals(by_peer=True)
            assert not right.refusals(by_peer=False)

    run(test())


def test_a_reset_of_the_client_is_one_for_the_server() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await seen.put("connected")
        try:
            await reader.read()
        except ConnectionResetError:
            await seen.put("reset")
        else:
            await seen.put("ended")
        writer.close()

    async def test() -> None:
        async with (
            service(wait) as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": ["any"]}) as (left, _),
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", await left.port())
            assert await seen.get() == "connected"
            reset(writer)
            assert await seen.get() == "reset"

    run(test())


def test_who_does_not_read_stalls_only_himself() -> None:
    sent = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

    async def test() -> None:
        async with (
            service(pour) as pouring,
            service() as echoing,
            sides(
                {"L": [f"0:localhost:{pouring}", f"0:localhost:{echoing}"]}, {"expose": ["any"]}
            ) as (left, _),
        ):
            sock = socket.create_connection(("127.0.0.1", await left.port()))
            before = -1
            while before != sent:  # until the pouring has come to rest
                before = sent
                assert await ask(await left.port(1), DATA[:1_000_000]) == DATA[:1_000_000]
            assert sent > 0
            waiting = [
                stream.get_write_buffer_size()
                for stream in (*left.link.streams, *left.link.other.streams)
            ]
            assert max(waiting) < 1_000_000
            sock.close()

    run(test())


def test_what_is_not_exposed_is_refused_and_both_are_told() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": ["localhost:1"]}) as (left, right),
        ):
            await is_reset(await left.port())
            what = f"-L 0:localhost:{port}"
            text = f"not allowed without --expose localhost:{port}"
            word = Word.NOT_EXPOSED
            assert left.refusals(by_peer=True) == [ForwardRefused(what, True, word, text)]
            what = f"tcp localhost:{port}"
            assert right.refusals(by_peer=False) == [ForwardRefused(what, False, word, text)]
            assert len(left.events) == 2
            assert len(right.events) == 1

    run(test())


@pytest.mark.parametrize(
    ("host", "word"),
    [("127.0.0.1", Word.REFUSED), ("localhost", Word.REFUSED), ("x.invalid", Word.UNKNOWN_HOST)],
)
def test_what_cannot_be_reached_is_refused(host: str, word: Word) -> None:
    async def test() -> None:
        port = unused_port()
        async with sides({"L": [f"0:{host}:{port}"]}, {"expose": ["any"]}) as (left, right):
            await is_reset(await left.port())
            assert [each.word for each in left.refusals(by_peer=True)] == [word]
            assert [each.word for each in right.refusals(by_peer=False)] == [word]

    run(test())


def test_both_loopback_addresses_are_listened_at_and_no_others() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": ["any"]}) as (left, _),
        ):
            assert await ask(await left.port(), host="127.0.0.1") == b"hello"
            assert await ask(await left.port(), host="::1") == b"hello"
            with pytest.raises(ConnectionRefusedError):
                await ask(await left.port(), host="127.0.0.2")

    run(test())


def test_a_remote_forward() -> None:
    async def test() -> None:
        async with (
            service() as port,
            # What -R leads to is the user's own choice, and needs no exposing.
            sides({"R": [f"0:127.0.0.1:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            there = await left.port()
            assert await right.listening() == f"localhost:{there}"
            assert await ask(there, DATA[:500_000]) == DATA[:500_000]
            assert await ask(there, host="::1") == b"hello"
            await until(lambda: sum(isinstance(each, Forwarded) for each in left.events) == 2)

    run(test())


def test_a_remote_forward_needs_exposing() -> None:
    async def test() -> None:
        port = unused_port()
        async with sides({"R": [f"{port}:localhost:1"]}) as (left, right):
            await until(lambda: left.events)
            (event,) = left.refusals(by_peer=True)
            assert event.word is Word.NOT_EXPOSED
            assert event.what == f"-R {port}:localhost:1"
            (event,) = right.refusals(by_peer=False)
            assert event.what == f"listen tcp localhost:{port}"
            with pytest.raises(ConnectionRefusedError):
                await ask(port)

    run(test())


def test_a_remote_forward_to_a_port_that_is_taken() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"R": [f"{port}:localhost:1"]}, {"expose": ["any"]}) as (left, right),
        ):
            await until(lambda: left.events)
            (event,) = left.refusals(by_peer=True)
            assert event.word is Word.BUSY
            assert f"localhost:{port}" in event.text
            assert len(right.refusals(by_peer=False)) == 1

    run(test())


def test_a_remote_forward_to_nowhere_is_told_on_both_sides() -> None:
    async def test() -> None:
        async with sides({"R": [f"0:localhost:{unused_port()}"]}, {"expose": ["any"]}) as (
            left,
            right,
        ):
            await is_reset(await left.port())
            assert [each.word for each in left.refusals(by_peer=False)] == [Word.REFUSED]
            assert [each.word for each in right.refusals(by_peer=True)] == [Word.REFUSED]

    run(test())


def test_the_end_of_a_peers_listening_is_told() -> None:
    async def test() -> None:
        async with sides({"R": ["0:localhost:1"]}, {"expose": ["any"]}) as (left, right):
            port = await left.port()
            await right.forwards.stop()
            await until(lambda: ListeningEnded("-R 0:localhost:1") in left.events)
            with pytest.raises(ConnectionRefusedError):
                await ask(port)

    run(test())


def test_unix_sockets_at_both_ends(tmp_path: Path) -> None:
    async def test() -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        async with (
            service(path=str(there)),
            sides({"L": [f"{here}:{there}"]}, {"expose": [str(there)]}) as (left, _),
        ):
            assert await left.listening() == str(here)
            assert stat.S_IMODE(here.stat().st_mode) == 0o600
            reader, writer = await asyncio.open_unix_connection(str(here))
            writer.write(DATA[:500_000])
            writer.write_eof()
            assert await reader.read() == DATA[:500_000]
            writer.close()
            assert Forwarded(f"-L {here}:{there}", "local") in left.events
        assert not here.exists()

    run(test())


def test_a_remote_unix_socket(tmp_path: Path) -> None:
    async def test() -> None:
        there = tmp_path / "there"
        async with (
            service() as port,
            sides({"R": [f"{there}:localhost:{port}"]}, {"expose": [str(there)]}) as (left, _),
        ):
            assert await left.listening() == str(there)
            reader, writer = await asyncio.open_unix_connection(str(there))
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
        assert not there.exists()

    run(test())


def test_any_gives_no_files_away(tmp_path: Path) -> None:
    async def test() -> None:
        async with sides({"R": [f"{tmp_path}/x:localhost:1"]}, {"expose": ["any"]}) as (left, _):
            await until(lambda: left.events)
            assert [each.word for each in left.refusals(by_peer=True)] == [Word.NOT_EXPOSED]
            assert not list(tmp_path.iterdir())  # noqa: ASYNC240

    run(test())


def test_what_cannot_be_bound_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with service() as port:
            before = sockets_open()
            one, _ = links()
            specs = ["0:localhost:1", f"{tmp_path}/x:localhost:1", f"{port}:localhost:1"]
            failing = side(one, L=specs)
            with pytest.raises(LocalNetworkError, match=f"-L {port}:localhost:1") as caught:
                await failing.forwards.start()
            assert caught.value.exit_code == errno.EADDRINUSE
            await until(lambda: sockets_open() == before)
            assert not list(tmp_path.iterdir())  # noqa: ASYNC240
            await failing.forwards.stop()

    run(test())


def test_connections_end_with_the_link_and_listeners_stay() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides(
                {"L": [f"0:localhost:{port}"], "R": [f"0:localhost:{port}"]}, {"expose": ["any"]}
            ) as (left, right),
        ):
            there, here = await left.port(1), await left.port(0)
            assert await ask(there) == b"hello"
            reader, writer = await asyncio.open_connection("127.0.0.1", here)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            left.link.fail()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

            for each in (left, right):
                each.forwards.rebind(None)
            await is_reset(here)
            (event,) = left.refusals(by_peer=False)
            assert event.word is Word.UNREACHABLE
            with pytest.raises(ConnectionRefusedError):
                await ask(there)

            left.link, right.link = links()
            right.forwards.rebind(right.link)
            left.forwards.rebind(left.link)
            assert await ask(here) == b"hello"
            assert await ask(await left.port(2)) == b"hello"
            assert ListeningEnded(f"-R 0:localhost:{port}") in left.events

    run(test())


def test_a_link_that_fails_just_now_refuses() -> None:
    async def test() -> None:
        async with sides({"L": ["0:localhost:1"]}) as (left, _):
            left.link.down = True
            await is_reset(await left.port())
            assert [each.word for each in left.refusals(by_peer=False)] == [Word.UNREACHABLE]

    run(test())


def test_it_may_start_before_there_is_a_link() -> None:
    async def test() -> None:
        async with service() as port:
            one, other = links()
            left, right = side(one, L=[f"0:localhost:{port}"]), side(other, expose=["any"])
            one.on_stream, other.on_stream = None, right.forwards.accept
            left.forwards._traffic.link = None
            await left.forwards.start()
            await is_reset(await left.port())
            left.forwards.rebind(one)
            assert await ask(await left.port()) == b"hello"
            await left.forwards.stop()
            await right.forwards.stop()

    run(test())


def test_many_at_once_and_a_stop_in_the_middle() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"L": [f"0:localhost:{port}"]}, {"expose": ["any"]}) as (left, _),
        ):
            here = await left.port()
            answers = await asyncio.gather(*(ask(here, DATA[:n]) for n in range(1, 100)))
            assert [len(each) for each in answers] == list(range(1, 100))
            streams = [await asyncio.open_connection("127.0.0.1", here) for _ in range(20)]
            await left.forwards.stop()
            for reader, writer in streams:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()

    run(test())


def test_what_a_peer_sends_cannot_speak_to_the_terminal() -> None:
    async def test() -> None:
        one, other = links()
        left = side(one, L=["0:localhost:1"])

        class Liar(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                transport.write(b"refused busy \x1b[2J\xff\x07\n")

        other.on_stream = Liar
        await left.forwards.start()
        await is_reset(await left.port())
        (event,) = left.refusals(by_peer=True)
        assert event.text == "\\x1b[2J\ufffd\\x07"
        await left.forwards.stop()

    run(test())


def test_listening_is_told_with_the_users_words() -> None:
    async def test() -> None:
        async with sides({"L": ["127.0.0.1:0:[::1]:80"], "D": ["[::1]:0"]}) as (left, _):
            first, second = left.events
            assert isinstance(first, Listening)
            assert first.what == "-L 127.0.0.1:0:[::1]:80"
            assert first.address.startswith("127.0.0.1:")
            assert isinstance(second, Listening)
            assert second.address.startswith("[::1]:")

    run(test())


def test_a_wildcard_is_bound_only_when_written() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"L": [f"*:0:localhost:{port}"]}, {"expose": ["any"]}) as (left, _),
        ):
            assert await ask(await left.port(), host="127.0.0.2") == b"hello"
            assert await ask(await left.port(), host="::1") == b"hello"

    run(test())


def test_nothing_of_the_environment_is_changed(tmp_path: Path) -> None:
    async def test() -> None:
        former = os.umask(0o022)
        try:
            async with sides({"L": [f"{tmp_path}/x:localhost:1"]}):
                assert os.umask(0o022) == 0o022
        finally:
            os.umask(former)

    run(test())


def test_an_accepted_connection_belongs_to_a_listening() -> None:
    async def test() -> None:
        async with (
            service(echo) as port,
            sides({"R": [f"0:localhost:{port}"]}, {"expose": ["any"]}) as (left, right),
        ):
            await left.port()
            answers: asyncio.Queue[bytes] = asyncio.Queue()

            class Claim(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    answers.put_nowait(data)

            # Stream 0 is the one that listens; nothing belongs to 4.
            for number, answer in ((4, b"refused denied"), (0, b"ok\n")):
                stream = right.link.open_stream(Claim())
                stream.write(b"accepted %d somebody\n" % number)
                assert (await answers.get()).startswith(answer)

    run(test())
