"""What a peer may ask for, and what it gets to hear, with a peer that is made by hand."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nat_traverse.carry import calling, dialing, serving
from nat_traverse.carry.streams import ForwardRefused
from nat_traverse.wire.request import Refused, Word, decode_reply
from support.forwards import Side, run, service, side, sockets_open, until
from support.streams import FakeLink, FakeStream, links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Peer(asyncio.Protocol):
    """The protocol of a stream that a test opens."""

    stream: FakeStream

    def __init__(self) -> None:
        self.data = bytearray()
        self.datagrams: list[bytes] = []
        self.ended = False
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, FakeStream)
        self.stream = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.append(data)

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    async def answer(self, size: int) -> bytes:
        await until(lambda: len(self.data) >= size)
        return bytes(self.data)


@asynccontextmanager
async def server(*expose: str, **options: list[str]) -> AsyncIterator[tuple[Side, FakeLink]]:
    one, other = links()
    before = sockets_open(), asyncio.all_tasks()
    serving_side = side(one, expose=expose, **options)
    other.on_stream = Peer
    await serving_side.forwards.start()
    try:
        yield serving_side, other
    finally:
        await serving_side.forwards.stop()
        for stream in list(other.streams):
            stream.abort()
        await until(lambda: (sockets_open(), asyncio.all_tasks()) == before)
        assert not one.streams


def ask(link: FakeLink, request: bytes) -> Peer:
    peer = Peer()
    link.open_stream(peer).write(request)
    return peer


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (b"tcp localhost:1\n", b"not-exposed"),
        (b"unix /run/x\n", b"not-exposed"),
        (b"listen tcp *:8080\n", b"not-exposed"),
        (b"accepted 0 somebody\n", b"denied"),
        (b"stream\n", b"denied"),
        (b"GET / HTTP/1.1\r\n", b"malformed"),
        (b"\n", b"malformed"),
        (b"x" * 512, b"malformed"),
        (b"x" * 100_000, b"malformed"),
    ],
)
def test_refusals(request_: bytes, word: bytes) -> None:
    async def test() -> None:
        async with server("a:1") as (here, link):
            peer = ask(link, request_)
            await until(lambda: peer.ended)
            assert peer.data.startswith(b"refused " + word)
            assert peer.data.endswith(b"\n")
            reply = decode_reply(bytes(peer.data[:-1]))
            assert isinstance(reply, Refused)
            (event,) = here.events
            assert isinstance(event, ForwardRefused)
            assert (event.word, event.text) == (reply.word, reply.text)
            assert event.what.isprintable()

    run(test())


def test_a_request_may_come_byte_by_byte_with_data_behind_it() -> None:
    async def test() -> None:
        async with service() as port, server("any") as (_, link):
            peer = Peer()
            stream = link.open_stream(peer)
            for each in b"tcp localhost:%d\nhello" % port:
                stream.write(bytes([each]))
            stream.write_eof()
            assert await peer.answer(8) == b"ok\nhello"
            await until(lambda: peer.ended)

    run(test())


def test_udp_datagrams_behind_the_request() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()

        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                self.transport.sendto(data, addr)  # type: ignore[attr-defined]

        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        async with server("any") as (_, link):
            peer = ask(link, b"udp 127.0.0.1:%d\n\x00\x03one\x00\x03two" % port)
            await until(lambda: len(peer.datagrams) == 2)
            assert peer.datagrams == [b"one", b"two"]
            peer.stream.send_datagram(b"three")
            await until(lambda: len(peer.datagrams) == 3)
            assert peer.data == b"ok\n"
            peer.stream.write_eof()
            await until(lambda: peer.ended)
            peer.stream.close()
        transport.close()
        await asyncio.sleep(0)

    run(test())


def test_a_request_that_never_ends_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_LIMIT", 0.01)

    async def test() -> None:
        async with server("any") as (_, link):
            peer = ask(link, b"tcp ")
            await until(lambda: peer.lost)
            assert isinstance(peer.lost[0], ConnectionResetError)

    run(test())


def test_a_stream_that_ends_without_a_request() -> None:
    async def test() -> None:
        async with server("any") as (here, link):
            for request in (b"", b"tcp "):
                peer = ask(link, request)
                peer.stream.write_eof()
                await until(lambda: peer.ended)  # noqa: B023
                peer.stream.close()
            assert not here.events
            assert not here.forwards._server.pending

    run(test())


def test_there_is_a_limit_of_connections_that_are_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "PENDING_LIMIT", 3)

    async def test() -> None:
        async with service() as port, server("any") as (here, link):
            waiting = [ask(link, b"") for _ in range(3)]
            peer = ask(link, b"tcp localhost:1\n")
            await until(lambda: peer.ended)
            assert peer.data.startswith(b"refused busy")
            for each in waiting:
                each.stream.write(b"tcp localhost:%d\n" % port)
                assert await each.answer(3) == b"ok\n"
            assert not here.forwards._server.pending
            peer = ask(link, b"tcp localhost:%d\n" % port)
            assert await peer.answer(3) == b"ok\n"

    run(test())


def test_a_peer_that_gives_up_while_it_is_being_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def resolve(_host: str, _port: int) -> list[object]:
        nonlocal asked
        asked += 1
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(dialing, "resolve", resolve)
    monkeypatch.setattr(dialing, "TIME_LIMIT", 1000.0)  # longer than the test may take

    async def test() -> None:
        async with server("any") as (here, link):
            for kind in (b"tcp", b"udp"):
                before = asked
                peer = ask(link, kind + b" a.example:1\n")
                await until(lambda: asked > before)  # noqa: B023
                peer.stream.abort()
            await until(lambda: not here.forwards._server.pending)
            assert not here.events

    run(test())


def test_a_stop_while_it_is_being_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(_host: str, _port: int) -> list[object]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(dialing, "resolve", resolve)
    monkeypatch.setattr(dialing, "TIME_LIMIT", 1000.0)  # longer than the test may take

    async def test() -> None:
        async with server("any") as (_, link):
            peer = ask(link, b"tcp a.example:1\n")
            await asyncio.sleep(0.01)
        assert isinstance(peer.lost[0], ConnectionResetError)

    run(test())


def test_a_listening_lasts_as_long_as_its_stream() -> None:
    async def test() -> None:
        async with server("any") as (here, link):
            for end in (FakeStream.write_eof, FakeStream.abort, FakeStream.close):
                peer = ask(link, b"listen tcp localhost:0\n")
                port = int((await peer.answer(4)).split()[1])
                end(peer.stream)
                await until(lambda: not here.forwards._traffic._open)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("127.0.0.1", port)

    run(test())


def test_a_listening_that_is_not_wanted_any_more_when_it_begins() -> None:
    async def test() -> None:
        for end in (FakeStream.write_eof, FakeStream.abort, FakeStream.close):
            for rounds in range(8):
                for kind in (b"tcp", b"udp"):
                    async with server("any") as (here, link):
                        peer = ask(link, b"listen %s localhost:0\n" % kind)
                        for _ in range(rounds):
                            await asyncio.sleep(0)
                        end(peer.stream)
                        await until(lambda: not here.forwards._traffic._open)

    run(test())


def test_what_cannot_be_listened_at() -> None:
    async def test() -> None:
        async with service() as port, server("any") as (here, link):
            peer = ask(link, b"listen tcp localhost:%d\n" % port)
            await until(lambda: peer.ended)
            assert peer.data.startswith(b"refused busy Cannot listen at localhost:%d" % port)
            assert len(here.events) == 1

    run(test())


def test_an_unforeseen_failure_resets_the_stream_and_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(_: object) -> None:
        raise LookupError("unforeseen")

    monkeypatch.setattr(serving, "dial", broken)

    async def test() -> None:
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context)
        )
        async with server("any") as (_, link):
            peer = ask(link, b"tcp localhost:1\n")
            await until(lambda: peer.lost)
        assert isinstance(reported[0]["exception"], LookupError)

    run(test())


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"", Word.UNREACHABLE),  # nothing, within the limit
        (b"ok", Word.UNREACHABLE),
        (b"what?\n", Word.MALFORMED),
        (b"x" * 600, Word.MALFORMED),
        (b"eof", Word.MALFORMED),
        (b"reset", Word.UNREACHABLE),
    ],
)
def test_answers_that_are_none(answer: bytes, word: Word, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "ANSWER_LIMIT", 0.05)

    class Liar(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, FakeStream)
            if answer == b"eof":
                transport.write_eof()
            elif answer == b"reset":
                asyncio.get_running_loop().call_soon(transport.abort)
            else:
                transport.write(answer)

    async def test() -> None:
        async with server(L=["0:localhost:1"]) as (here, link):
            link.on_stream = Liar
            reader, writer = await asyncio.open_connection("127.0.0.1", await here.port())
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            (refusal,) = (each for each in here.events if isinstance(each, ForwardRefused))
            assert refusal.word is word

    run(test())


REQUEST = st.sampled_from(
    [
        b"tcp localhost:1\n",
        b"udp localhost:1\n",
        b"listen tcp localhost:0\n",
        b"unix /x\n",
        b"stream\n",
    ]
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(REQUEST | st.binary(max_size=40), st.integers(0, 4)), max_size=8))
def test_whatever_a_peer_does_nothing_is_left(acts: list[tuple[bytes, int]]) -> None:
    async def test() -> None:
        async with server("any") as (_, link):
            for request, end in acts:
                peer = ask(link, request)
                for _ in range(end * 3):
                    await asyncio.sleep(0)
                with contextlib.suppress(AssertionError):
                    (peer.stream.write_eof, peer.stream.abort, peer.stream.close)[end % 3]()

    run(test())
