"""-D with a client made by hand and with curl, between real sockets."""

from __future__ import annotations

import asyncio
import struct

import pytest

from nat_traverse.carry.streams import Forwarded
from nat_traverse.wire.request import Word
from support.forwards import run, service, sides, unused_port
from support.tools import need

GREETING = b"\x05\x01\x00"


def request(host: str, port: int, command: int = 1) -> bytes:
    name = host.encode()
    return bytes([5, command, 0, 3, len(name)]) + name + struct.pack("!H", port)


class Client:
    """A client that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def say(self, data: bytes, expected: bytes) -> None:
        self.writer.write(data)
        assert await self.reader.readexactly(len(expected)) == expected

    async def code(self, data: bytes) -> int:
        """Greet, ask, and return the code of the answer."""
        await self.say(GREETING, b"\x05\x00")
        self.writer.write(data)
        answer = await self.reader.readexactly(10)
        assert answer[0] == 5
        return answer[1]

    async def ended(self) -> bytes:
        rest = await self.reader.read()
        self.writer.close()
        return rest


OK = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def test_a_connection_step_by_step() -> None:
    async def test() -> None:
        async with (
            service() as port,
            sides({"D": ["0"]}, {"expose": [f"localhost:{port}"]}) as (left, right),
        ):
            client = await Client.connect(await left.port())
            await client.say(GREETING, b"\x05\x00")
            await client.say(request("localhost", port), OK)
            await client.say(b"hello", b"hello")
            client.writer.write_eof()
            assert await client.ended() == b""
            assert right.events == [Forwarded(f"tcp localhost:{port}", "the other side")]
            assert isinstance(left.events[1], Forwarded)
            assert left.events[1].what == f"-D 0 to localhost:{port}"

    run(test())


def test_everything_at_once_and_byte_by_byte() -> None:
    async def test() -> None:
        async with service() as port, sides({"D": ["0"]}, {"expose": ["any"]}) as (left, _):
            data = GREETING + request("127.0.0.1", port) + b"hello"
            client = await Client.connect(await left.port())
            await client.say(data, b"\x05\x00" + OK + b"hello")
            client.writer.write_eof()
            assert await client.ended() == b""
            client = await Client.connect(await left.port())
            for at in range(len(data)):
                client.writer.write(data[at : at + 1])
                await asyncio.sleep(0)
            await client.say(b"", b"\x05\x00" + OK + b"hello")
            client.writer.write_eof()
            assert await client.ended() == b""

    run(test())


def test_the_codes_of_refusals() -> None:
    async def test() -> None:
        port = unused_port()
        exposed = [f"localhost:{port}", "x.invalid:80", "a:1"]
        async with sides({"D": ["0"]}, {"expose": exposed}) as (left, right):
            for data, code, word in (
                (request("localhost", port), 5, Word.REFUSED),
                (request("localhost", 1), 2, Word.NOT_EXPOSED),
                (request("x.invalid", 80), 4, Word.UNKNOWN_HOST),
            ):
                client = await Client.connect(await left.port())
                assert await client.code(data) == code
                assert await client.ended() == b""
                assert left.refusals(by_peer=True)[-1].word is word
                assert right.refusals(by_peer=False)[-1].word is word
            left.forwards.rebind(None)
            client = await Client.connect(await left.port())
            assert await client.code(request("a", 1)) == 3
            assert await client.ended() == b""

    run(test())


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x00\x5b\x00\x00\x00\x00\x00\x00"),
        (b"\x05\x01\x02", b"\x05\xff"),
        (GREETING + request("a", 1, command=2), b"\x05\x00\x05\x07" + OK[2:]),
        (GREETING + request("a", 1, command=3), b"\x05\x00\x05\x07" + OK[2:]),
        (GREETING + b"\x05\x01\x00\x02\x00", b"\x05\x00\x05\x08" + OK[2:]),
        (GREETING + b"\x04\x01\x00\x02\x00", b"\x05\x00\x05\x01" + OK[2:]),
        (GREETING + request("a/b", 1), b"\x05\x00\x05\x01" + OK[2:]),
        (GREETING + request("a", 0), b"\x05\x00\x05\x01" + OK[2:]),
    ],
)
def test_what_is_not_served(data: bytes, answer: bytes) -> None:
    async def test() -> None:
        async with sides({"D": ["0"]}, {"expose": ["any"]}) as (left, _):
            client = await Client.connect(await left.port())
            client.writer.write(data)
            assert await client.ended() == answer
            assert [each.word for each in left.refusals(by_peer=False)] == [Word.MALFORMED]

    run(test())


def test_a_web_browser_without_socks_is_told_on_the_terminal() -> None:
    async def test() -> None:
        async with sides({"D": ["0"]}) as (left, _):
            client = await Client.connect(await left.port())
            client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
            client.writer.close()
            (event,) = left.refusals(by_peer=False)
            assert "SOCKS 5" in event.text

    run(test())


def test_a_client_that_leaves_before_it_has_asked() -> None:
    async def test() -> None:
        async with sides({"D": ["0"]}) as (left, _):
            client = await Client.connect(await left.port())
            await client.say(GREETING, b"\x05\x00")
            client.writer.write_eof()
            assert await client.ended() == b""
            assert len(left.events) == 1

    run(test())


@pytest.mark.parametrize("option", ["--socks5", "--socks5-hostname"])
def test_curl(option: str) -> None:
    curl = need("curl", package="curl")

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"x" * 1_000_000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def test() -> None:
        async with service(web) as port, sides({"D": ["0"]}, {"expose": ["any"]}) as (left, _):
            process = await asyncio.create_subprocess_exec(
                curl,
                *("--silent", "--fail", "--noproxy", "", option),
                *(f"127.0.0.1:{await left.port()}", f"http://localhost:{port}/"),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
            assert process.returncode == 0
            assert output == b"x" * 1_000_000

    run(test())
