from __future__ import annotations

import asyncio
import errno
import socket
from asyncio import selector_events
from typing import Any, cast

import pytest

from nat_traverse.carry.streams import FirstLine, Traffic, explained, hold, reset
from nat_traverse.errors import RemoteProtocolError, shown
from support.forwards import run, until


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a b: \u00fc\U0001f600", "a b: \u00fc\U0001f600"),
        ("\x1b[2J\r\n\x07\x9b", "\\x1b[2J\\r\\n\\x07\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # turns round what follows
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_shown_cannot_control_a_terminal(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert safe.isprintable()


def test_errors_are_explained_in_the_words_of_the_system() -> None:
    assert explained(OSError(errno.ECONNREFUSED, "[Errno 111] Connect")) == "connection refused"
    assert explained(OSError("odd")) == "odd"


def test_a_first_line_in_pieces() -> None:
    line = FirstLine()
    assert line.receive_data(b"tcp ") is None
    assert line.receive_data(b"a:1\nrest\n") == b"tcp a:1"
    assert line.rest == b"rest\n"
    line = FirstLine()
    with pytest.raises(RemoteProtocolError):
        line.receive_data(bytes(600))


class Thing:
    """Something that ends some time after it was aborted."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.aborted = 0
        traffic.keep(self)

    def abort(self) -> None:
        self.aborted += 1
        asyncio.get_running_loop().call_soon(self.traffic.forget, self)


def test_the_end_of_all_that_is_open_can_be_waited_for() -> None:
    async def test() -> None:
        traffic = Traffic(None, lambda _: None)
        await traffic.settle()
        things = [Thing(traffic) for _ in range(3)]
        gone = Thing(traffic)
        traffic.forget(gone)
        traffic.forget(gone)
        waiting = asyncio.ensure_future(traffic.settle())
        await asyncio.sleep(0)
        assert not waiting.done()
        traffic.abort_all()
        await waiting
        assert [each.aborted for each in (*things, gone)] == [1, 1, 1, 0]

    run(test())


def test_only_tcp_has_a_reset() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        other.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
        reset(transport)
        assert await loop.sock_recv(other, 1) == b""
        reset(transport)  # once more does no harm
        other.close()

    run(test())


def begins_all_the_same(transport: Any, descriptor: int, callback: object, *more: object) -> None:
    """What asyncio of Python 3.11.2 does after `connection_made`, whatever that has said."""
    if not transport.is_closing():
        transport._loop._add_reader(descriptor, callback, *more)


class Held(asyncio.Protocol):
    """A connection that is not to be read for now."""

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        hold(self.transport)

    def data_received(self, data: bytes) -> None:
        self.received += data


@pytest.mark.parametrize("old", [False, True])
def test_what_is_held_is_not_read_by_any_version_of_python(
    old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        transports = vars(selector_events)["_SelectorTransport"]
        monkeypatch.setattr(transports, "_add_reader", begins_all_the_same)

    async def test() -> None:
        one, other = socket.socketpair()
        one.sendall(b"early")
        loop = asyncio.get_running_loop()
        transport, held = await loop.create_connection(Held, sock=other)
        for _ in range(10):  # rounds of the loop
            await asyncio.sleep(0)
        assert held.received == b""
        transport.resume_reading()
        one.sendall(b", late")
        one.close()
        await until(transport.is_closing)
        assert held.received == b"early, late"

    run(test())


def test_what_is_held_may_be_read_or_closed_at_once() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        for act in ("resume_reading", "close"):
            one, other = socket.socketpair()
            with one:
                transport, _ = await loop.create_connection(Held, sock=other)
                hold(transport)
                getattr(transport, act)()
                await asyncio.sleep(0)
                assert transport.is_reading() == (act == "resume_reading")
                transport.close()
                await asyncio.sleep(0)

    run(test())
