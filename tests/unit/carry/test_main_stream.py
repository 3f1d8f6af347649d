"""The main stream: who opens it, how it begins, and what its users get."""

from __future__ import annotations

import asyncio
import errno
from typing import TypeGuard

import pytest

from nat_traverse.carry.main_stream import MainStream
from nat_traverse.errors import PeerGoneError
from nat_traverse.tunnel.events import Closing, PeerClosed
from nat_traverse.wire.request import Address, Connect, Kind, Plain, encode_request
from support.ends import run
from support.links import Noting, links


class User:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def datagram_received(self, data: bytes) -> None:
        self.told.append(("datagram", data))

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def datagrams_writable(self) -> None:
        self.told.append("datagrams")

    async def until(self, *told: object) -> None:
        while self.told[-len(told) :] != list(told):  # noqa: ASYNC110 (`run` bounds the whole)
            await asyncio.sleep(0.005)

    async def until_all(self, data: bytes) -> None:
        while b"".join(filter(is_bytes, self.told)) != data:  # noqa: ASYNC110 (the same)
            await asyncio.sleep(0.005)


def is_bytes(told: object) -> TypeGuard[bytes]:
    return isinstance(told, bytes)


def test_the_client_opens_it_and_both_have_one_stream() -> None:
    async def test() -> None:
        async with links() as (client, server):
            theirs, mine = MainStream(server), MainStream(client)
            with pytest.raises(AssertionError, match="not open"):
                _ = theirs.stream
            await asyncio.gather(mine.wait(), theirs.wait())
            assert mine.stream.number == theirs.stream.number == 0
            users = User(), User()
            mine.attach(users[0])
            theirs.attach(users[1])
            for one, other, user in ((mine, theirs, users[1]), (theirs, mine, users[0])):
                one.stream.write(b"12345")
                assert one.written == 5  # the line that it begins with is nobody's data
                await user.until(b"12345")
                one.stream.send_datagram(b"small")
                await user.until(("datagram", b"small"))
                one.stream.write_eof()
                await user.until("eof")
                assert other.has_ended

    run(test())


def test_what_comes_before_there_is_a_user_waits() -> None:
    async def test() -> None:
        async with links() as (client, server):
            mine, theirs = MainStream(client), MainStream(server)
            mine.stream.write(b"early")
            for number in range(70):
                mine.stream.send_datagram(b"%d" % number)
            await theirs.wait()
            await asyncio.sleep(0.05)
            user, other = User(), User()
            theirs.attach(user)
            while b"early" not in user.told:  # noqa: ASYNC110 (`run` bounds the whole)
                await asyncio.sleep(0.005)
            datagrams = [each for each in user.told if each != b"early"]
            # At most the last 64 are kept; what the way lost is lost.
            assert set(datagrams) <= {("datagram", b"%d" % number) for number in range(70)}
            assert 0 < len(datagrams) <= 64
            user.told = [each for each in user.told if each == b"early"]
            theirs.detach()
            mine.stream.write(b"between")
            mine.stream.write_eof()
            await asyncio.sleep(0.05)
            theirs.attach(other)
            await other.until(b"between", "eof")
            assert user.told == [b"early"]
            # Who comes after the end learns of it.
            theirs.detach()
            last = User()
            theirs.attach(last)
            assert last.told == ["eof"]

    run(test())


def writable(main: MainStream) -> bool:
    return main.is_writable


def test_a_user_hears_of_room() -> None:
    async def test() -> None:
        async with links() as (client, server):
            mine, theirs = MainStream(client), MainStream(server)
            user = User()
            mine.stream.write(bytes(2_000_000))  # before anybody looks
            assert writable(mine) is False
            mine.attach(user)
            await theirs.wait()
            theirs.attach(User())
            await user.until("resume")
            assert writable(mine)
            mine.stream.write(bytes(2_000_000))
            await user.until("pause", "resume")
            mine.datagrams_writable()
            assert user.told[-1] == "datagrams"
            mine.detach()
            for tell in (mine.pause_writing, mine.resume_writing, mine.datagrams_writable):
                tell()
            mine.datagram_received(b"lost")
            assert user.told[-1] == "datagrams"

    run(test())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x1b[2J\n", "control characters"),
        (b"hello\n", "request"),
        (b"x" * 5000, "line"),
        (encode_request(Connect(Address(Kind.TCP, "h", 1))), "in place of the main stream"),
    ],
)
def test_what_is_no_main_stream_ends_the_tunnel(data: bytes, text: str) -> None:
    async def test() -> None:
        async with links() as (client, server):
            theirs = MainStream(server)
            client.open_stream(Noting()).write(data)
            with pytest.raises(PeerGoneError) as caught:
                await asyncio.shield(client.closed)
            assert caught.value.errno == errno.EPROTO
            assert isinstance(client.ending, PeerClosed)
            assert client.ending.code == Closing.PROTOCOL
            assert text in client.ending.text
            assert str(caught.value).isprintable()
            with pytest.raises(PeerGoneError):
                await theirs.wait()

    run(test())


def test_a_line_may_come_in_pieces_and_with_the_first_bytes() -> None:
    async def test() -> None:
        async with links() as (client, server):
            theirs = MainStream(server)
            stream = client.open_stream(Noting())
            line = encode_request(Plain()) + b"and more"
            for at in range(len(line)):
                stream.write(line[at : at + 1])
                await asyncio.sleep(0.002)
            await theirs.wait()
            user = User()
            theirs.attach(user)
            await user.until_all(b"and more")

    run(test())


def test_there_is_only_one() -> None:
    async def test() -> None:
        async with links() as (client, server):
            mine, theirs = MainStream(client), MainStream(server)
            await asyncio.gather(mine.wait(), theirs.wait())
            second = Noting()
            client.open_stream(second).write(b"x")
            await second.until_told("lost")
            assert isinstance(second.error, ConnectionResetError)
            assert not client.is_over

    run(test())


@pytest.mark.parametrize("code", [Closing.COMPLETE, Closing.STOPPED])
def test_waiting_for_a_peer_that_ends(code: Closing) -> None:
    async def test() -> None:
        async with links() as (client, server):
            theirs = MainStream(server)
            client.abort(code)
            with pytest.raises(PeerGoneError) as caught:
                await theirs.wait()
            assert caught.value.errno == errno.ECONNRESET

    run(test())


def test_it_outlives_the_event_loop() -> None:
    """As after a fork: who waits for it on another loop has it at once."""
    kept: list[MainStream] = []

    async def first() -> None:
        async with links() as (client, _):
            kept.append(MainStream(client))
            await kept[0].wait()

    asyncio.run(first())

    async def second() -> None:
        kept[0].link.closed = asyncio.get_running_loop().create_future()
        await asyncio.wait_for(kept[0].wait(), 1.0)

    asyncio.run(second())
