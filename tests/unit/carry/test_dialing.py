from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import dialing
from nat_traverse.carry.dialing import dial, refusal
from nat_traverse.model import Endpoint
from nat_traverse.wire.request import Address, Kind, Refused, Word
from support.forwards import run, sockets_open, until, unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def listening(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as server:
        yield server.getsockname()[1]


@contextmanager
def silent() -> Iterator[int]:
    """Yield a port of 127.0.0.3 that answers nobody: its queue of connections is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.3", 0))
        server.listen(0)
        address = server.getsockname()
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        yield address[1]
        for client in clients:
            client.close()


def names(monkeypatch: pytest.MonkeyPatch, *endpoints: Endpoint) -> None:
    """Let every name stand for these."""

    async def resolve(_host: str, _port: int) -> list[Endpoint]:
        return list(endpoints)

    monkeypatch.setattr(dialing, "resolve", resolve)


def connected_to(found: socket.socket | Refused) -> str:
    assert isinstance(found, socket.socket), found
    with found:
        assert found.gettimeout() == 0
        return str(found.getpeername()[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address(host: str) -> None:
    async def test() -> None:
        with listening(host) as port:
            assert connected_to(await dial(Address(Kind.TCP, host, port))) == host

    run(test())


def test_a_name_with_two_addresses_of_which_one_refuses() -> None:
    async def test() -> None:
        for host in ("127.0.0.1", "::1"):
            with listening(host) as port:
                assert connected_to(await dial(Address(Kind.TCP, "localhost", port))) == host

    run(test())


def test_the_next_address_is_tried_beside_one_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        before = sockets_open()
        with silent() as dead, listening("127.0.0.1") as port:
            names(monkeypatch, Endpoint("127.0.0.3", dead), Endpoint("127.0.0.1", port))
            assert connected_to(await dial(Address(Kind.TCP, "x", 1))) == "127.0.0.1"
        await asyncio.sleep(0)
        assert sockets_open() == before

    run(test())


def test_two_that_succeed_leave_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "_HEAD_START", 0.0)

    async def test() -> None:
        before = sockets_open()
        with listening("127.0.0.1") as one, listening("::1") as other:
            names(monkeypatch, Endpoint("127.0.0.1", one), Endpoint("::1", other))
            for _ in range(20):
                connected_to(await dial(Address(Kind.TCP, "x", 1)))
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sockets_open() == before

    run(test())


def test_silence_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "TIME_LIMIT", 0.05)

    async def test() -> None:
        before = sockets_open()
        with silent() as port:
            found = await dial(Address(Kind.TCP, "127.0.0.3", port))
        assert found == Refused(Word.UNREACHABLE, "no answer within 0.05 s")
        await asyncio.sleep(0)
        assert sockets_open() == before

    run(test())


def test_who_gives_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        before = sockets_open()
        with silent() as port:
            names(monkeypatch, Endpoint("127.0.0.3", port), Endpoint("127.0.0.3", port))
            task = asyncio.ensure_future(dial(Address(Kind.TCP, "x", 1)))
            # The service, its clients, two attempts.
            await until(lambda: sockets_open() >= before + 7)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sockets_open() == before

    run(test())


@pytest.mark.parametrize(
    ("host", "word"),
    [
        ("127.0.0.1", Word.REFUSED),
        ("localhost", Word.REFUSED),
        ("x.invalid", Word.UNKNOWN_HOST),
        ("a" * 70, Word.UNKNOWN_HOST),
        ("255.255.255.255", Word.UNREACHABLE),
    ],
)
def test_what_cannot_be_connected(host: str, word: Word) -> None:
    async def test() -> None:
        found = await dial(Address(Kind.TCP, host, unused_port()))
        assert isinstance(found, Refused)
        assert found.word is word
        assert "Errno" not in found.text

    run(test())


def test_udp(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        assert connected_to(await dial(Address(Kind.UDP, "::1", 53))) == "::1"
        names(monkeypatch, Endpoint("fe80::1", 53), Endpoint("127.0.0.1", 53))
        assert connected_to(await dial(Address(Kind.UDP, "x", 53))) == "127.0.0.1"
        names(monkeypatch, Endpoint("fe80::1", 53))
        assert isinstance(await dial(Address(Kind.UDP, "x", 53)), Refused)

    run(test())


def test_unix_sockets(tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def test() -> None:
        found = await dial(Address(Kind.UNIX, str(path)))
        assert isinstance(found, Refused)
        assert found.word is Word.REFUSED
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            found = await dial(Address(Kind.UNIX, str(path)))
            assert isinstance(found, Refused)
            assert found.word is Word.REFUSED
            server.listen()
            found = await dial(Address(Kind.UNIX, str(path)))
            assert isinstance(found, socket.socket)
            found.close()

    run(test())


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ECONNREFUSED, Word.REFUSED),
        (errno.EHOSTUNREACH, Word.UNREACHABLE),
        (errno.EMFILE, Word.BUSY),
        (errno.EACCES, Word.DENIED),
        (None, Word.UNREACHABLE),
    ],
)
def test_the_words_of_errors(number: int | None, word: Word) -> None:
    error = OSError("odd") if number is None else OSError(number, "Text of Python's")
    assert refusal(error).word is word
    assert "Python" not in refusal(error).text
