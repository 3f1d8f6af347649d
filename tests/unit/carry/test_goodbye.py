"""Left before a relay has taken over, a tunnel is over for the peer as well, and it knows."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.goodbye import goodbye
from nat_traverse.errors import PeerGoneError
from nat_traverse.net.udp import UdpSocket
from nat_traverse.wire.hello import Reason, decode
from support.ends import end_and_original, ends, run

if TYPE_CHECKING:
    from nat_traverse.model import Endpoint


class Interrupted(BaseException):
    """What ends the tunnel here: no ordinary error, as a cancellation is none."""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All datagrams that are sent one by one."""
    sent: list[bytes] = []
    send = UdpSocket.send

    def observed(self: UdpSocket, data: bytes, to: Endpoint, ttl: int | None = None) -> object:
        sent.append(data)
        return send(self, data, to, ttl)

    monkeypatch.setattr(UdpSocket, "send", observed)
    return sent


def reasons(said: list[bytes]) -> list[Reason]:
    """Return the reasons of the goodbyes among what was said."""
    messages = [decode(data) for data in said]
    found = [getattr(message, "closing", None) for message in messages]
    return [reason for reason in found if reason is not None]


def test_before_any_relay() -> None:
    async def test() -> None:
        async with ends() as (left, right):
            with pytest.raises(Interrupted), goodbye(left.hole, left.tunnel):
                raise Interrupted
            with pytest.raises(PeerGoneError) as caught:
                await right.relay.run()
            assert caught.value.errno == errno.ECONNRESET

    run(test())


def test_it_is_said_on_the_path_and_is_the_last_word(said: list[bytes]) -> None:
    async def test() -> None:
        async with ends() as (left, _):
            said.clear()
            with pytest.raises(Interrupted), goodbye(left.hole, left.tunnel):
                raise Interrupted
            assert reasons(said) == [Reason.STOPPED] * 2
            with pytest.raises(Interrupted), goodbye(left.hole, left.tunnel):
                raise Interrupted
            assert reasons(said) == [Reason.STOPPED] * 2

    run(test())


def test_a_relay_has_said_it_and_why(said: list[bytes]) -> None:
    async def test() -> None:
        async with ends() as (left, right):
            relaying = right.start()
            left.close_output()
            writing = asyncio.ensure_future(right.write(b"to nobody"))
            with pytest.raises(BrokenPipeError), goodbye(left.hole, left.tunnel):
                await left.relay.run()
            await writing
            assert reasons(said) == [Reason.NOT_READING] * 2
            await asyncio.wait({relaying})
            assert isinstance(relaying.exception(), PeerGoneError)

    run(test())


def test_left_in_the_usual_way(said: list[bytes]) -> None:
    async def test() -> None:
        async with ends() as (left, _):
            said.clear()
            with goodbye(left.hole, left.tunnel):
                pass
            assert said == []

    run(test())


def test_an_original_is_told_nothing(said: list[bytes]) -> None:
    async def test() -> None:
        async with end_and_original() as (left, _):
            said.clear()
            with pytest.raises(Interrupted), goodbye(left.hole, left.tunnel):
                raise Interrupted
            assert said == []

    run(test())
