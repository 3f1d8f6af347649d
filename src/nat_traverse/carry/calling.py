"""Asking the peer for a connection, and what is connected to it: the opening side of forwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from nat_traverse.carry.splice import Splice
from nat_traverse.carry.streams import (
    LINK_DOWN,
    NO_ANSWER,
    FirstLine,
    Forwarded,
    client_name,
    hold,
    reset,
)
from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire.request import Ok, Refused, Word, decode_reply, encode_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.binding import Bound
    from nat_traverse.carry.streams import Stream, Traffic
    from nat_traverse.wire.request import Reply, Request

# How long the peer may take to answer (s): the 10 s that it has for connecting, and as much again
# for a path that is slow or loses packets.
ANSWER_LIMIT: Final = 20.0


class Call(asyncio.Protocol):
    """The protocol of a stream from its request to the answer.

    `on_answer` is called once, with the answer and whether it is the peer's. If that is Ok, the
    stream is paused, and its next protocol is the business of `on_answer`; `rest` is what came
    behind the answer. Otherwise the stream is gone.
    """

    stream: Stream

    def __init__(self, traffic: Traffic, on_answer: Callable[[Reply, bool], None]) -> None:
        self._traffic = traffic
        self._on_answer = on_answer
        self._line = FirstLine()
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False

    @property
    def rest(self) -> bytes:
        """What came behind the answer."""
        return self._line.rest

    def start(self, request: Request) -> Stream | None:
        """Open the stream and ask; None if that was not possible, and was answered already."""
        try:
            line = encode_request(request)
        except LocalProtocolError as error:
            self._answer(Refused(Word.MALFORMED, str(error)), by_peer=False)
            return None
        stream = self._traffic.open_stream(self)
        if stream is None:
            self._answer(LINK_DOWN, by_peer=False)
            return None
        self.stream = stream
        self._traffic.keep(self)
        self._timer = asyncio.get_running_loop().call_later(ANSWER_LIMIT, self._give_up)
        stream.write(line)
        return stream

    def abort(self) -> None:
        """Give up; nobody is told."""
        self._answered = True
        self._stop_timer()
        self.stream.abort()

    def data_received(self, data: bytes) -> None:
        """Read the answer."""
        if self._answered:
            return
        try:
            line = self._line.receive_data(data)
            if line is None:
                return
            reply = decode_reply(line)
        except RemoteProtocolError as error:
            reply = Refused(Word.MALFORMED, f"the answer makes no sense: {error}")
        if isinstance(reply, Ok):
            self.stream.pause_reading()
            self._traffic.forget(self)
        else:
            self.stream.abort()
        self._answer(reply, by_peer=True)

    def eof_received(self) -> None:
        """Without an answer, that is none."""
        if not self._answered:
            self.stream.abort()
            self._answer(Refused(Word.MALFORMED, "the answer is missing"), by_peer=True)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Take note that no answer is going to come."""
        self._traffic.forget(self)
        if not self._answered:
            self._answer(NO_ANSWER, by_peer=False)

    def _give_up(self) -> None:
        self.stream.abort()
        text = f"no answer from the other side within {ANSWER_LIMIT:g} s"
        self._answer(Refused(Word.UNREACHABLE, text), by_peer=False)

    def _answer(self, reply: Reply, *, by_peer: bool) -> None:
        self._answered = True
        self._stop_timer()
        self._on_answer(reply, by_peer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Connection(asyncio.Protocol):
    """A connection that was accepted here, until it is spliced with a stream.

    `request_for` returns what to ask for, given the client's name. A refused connection is reset:
    its program sees a failure, as it would have seen on the other side.
    """

    transport: asyncio.Transport

    def __init__(
        self, traffic: Traffic, what: str, request_for: Callable[[str], Request] | None
    ) -> None:
        self._traffic = traffic
        self._what = what
        self._request_for = request_for
        self._call: Call | None = None
        self.early = b""  # what the client has sent already, and is meant for the other side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for it at once, and read nothing before the answer is here."""
        self.transport = cast("asyncio.Transport", transport)
        self._traffic.keep(self)
        self.begin()

    def begin(self) -> None:
        """Find out where it is to go: for most, that is known."""
        if self._request_for is not None:
            self.call(self._request_for(client_name(self.transport)))

    def call(self, request: Request) -> None:
        """Ask the peer."""
        hold(self.transport)
        self._call = Call(self._traffic, self._take_answer)
        self._call.start(request)

    def abort(self) -> None:
        """Reset the connection, and give up asking."""
        reset(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Without the client, nothing is to be asked."""
        self._traffic.forget(self)
        if self._call is not None:
            self._call.abort()

    def accepted(self) -> None:
        """Tell the client, if its protocol has words for that."""

    def refused(self, refused: Refused) -> None:  # noqa: ARG002 (for those who have words)
        """Tell the client."""
        reset(self.transport)

    def _take_answer(self, reply: Reply, by_peer: bool) -> None:
        call, self._call = self._call, None
        if isinstance(reply, Refused):
            tell = self._traffic.refused_there if by_peer else self._traffic.refused_here
            tell(self._what, reply)
            self.refused(reply)
        elif call is not None:
            self.accepted()
            self._traffic.forget(self)
            splice = Splice(
                self.transport,
                call.stream,
                self._traffic.forget,
                from_one=self.early,
                from_other=call.rest,
            )
            self._traffic.keep(splice)
            self._traffic.observe(Forwarded(self._what, client_name(self.transport)))


class StreamForward:
    """Accepts connections at `bound` and hands each to a protocol that `factory` returns."""

    def __init__(self, bound: Bound, factory: Callable[[], asyncio.Protocol]) -> None:
        self._bound = bound
        self._factory = factory
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        for sock in self._bound.sockets:
            # In two steps: whoever gives up in the middle can still close the first one's result.
            server = await loop.create_server(self._factory, sock=sock, start_serving=False)
            self._servers.append(server)
            await server.start_serving()

    def close(self) -> None:
        """Accept no more; connections that are there go on."""
        for server in self._servers:
            server.close()
        self._bound.close()
