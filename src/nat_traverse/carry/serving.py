"""Doing what the peer asks for: the accepting side of forwards, within what was exposed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from nat_traverse.carry.binding import bind
from nat_traverse.carry.calling import Connection, StreamForward
from nat_traverse.carry.dialing import dial, refusal
from nat_traverse.carry.splice import Splice, Waiting
from nat_traverse.carry.streams import FirstLine, Forwarded, Listening
from nat_traverse.carry.udp_flow import UdpTarget
from nat_traverse.carry.udp_forward import UdpForward
from nat_traverse.errors import LocalNetworkError, RemoteProtocolError, shown
from nat_traverse.wire.request import (
    Accepted,
    Address,
    Connect,
    Kind,
    Listen,
    Ok,
    Refused,
    Word,
    decode_request,
    encode_reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.binding import Bound
    from nat_traverse.carry.expose import Policy
    from nat_traverse.carry.streams import Stream, Traffic
    from nat_traverse.wire.request import Request

# Streams of the peer's that have not come to anything yet: each may hold a socket and a thread that
# looks up a name. 256 is also the limit of sockets that searching for a path has.
PENDING_LIMIT: Final = 256
# How long the first line of a stream may take (s): it is sent at once.
REQUEST_LIMIT: Final = 20.0

_BUSY: Final = Refused(Word.BUSY, f"{PENDING_LIMIT} connections are being made already")
_NO_PROGRAM: Final = Refused(Word.DENIED, "only forwards are served there")
_NOT_ASKED: Final = Refused(Word.DENIED, "that listening was not asked for, or has ended")


class Server:
    """Makes a protocol for each stream that the peer opens.

    `target_of` returns where the connections lead that the peer has accepted for a stream of ours,
    by its number. That is the user's own choice, so it needs no exposing.
    """

    def __init__(
        self, traffic: Traffic, policy: Policy, target_of: Callable[[int], Address | None]
    ) -> None:
        self.traffic = traffic
        self.policy = policy
        self.target_of = target_of
        self.pending: set[_Serving] = set()

    def accept(self) -> asyncio.Protocol:
        """Return the protocol for one stream."""
        return _Serving(self)


class _Serving(asyncio.Protocol):
    """The protocol of one stream of the peer's, until what it asks for is connected.

    A stream that asks to listen keeps it, and ends the listening with itself.
    """

    stream: Stream

    def __init__(self, server: Server) -> None:
        self._server = server
        self._traffic = server.traffic
        self._line: FirstLine | None = FirstLine()
        self._early = bytearray()
        self._what = "a stream"
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listening: StreamForward | UdpForward | None = None
        self._ended = False  # the peer sends no more
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request."""
        self.stream = cast("Stream", transport)
        self._traffic.keep(self)
        if len(self._server.pending) >= PENDING_LIMIT:
            self._refuse(_BUSY)
            return
        self._server.pending.add(self)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REQUEST_LIMIT, self.abort)

    def data_received(self, data: bytes) -> None:
        """Read the request; keep what comes behind it."""
        if self._line is None:
            self._early += data
            return
        try:
            line = self._line.receive_data(data)
            if line is None:
                return
            request = decode_request(line)
        except RemoteProtocolError as error:
            self._refuse(Refused(Word.MALFORMED, f"the request makes no sense: {error}"))
            return
        self._early += self._line.rest
        self._line = None
        self._what = str(request)
        if self._timer is not None:
            self._timer.cancel()
        self._take(request)

    def eof_received(self) -> bool:
        """End a listening; a connection may have only one direction left."""
        self._ended = True
        if self._listening is not None:
            self._listening.close()
            return False
        return self._line is None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Give up all that was for this stream."""
        self._lost = True
        self._settle()
        if self._task is not None:
            self._task.cancel()
        else:
            self._traffic.forget(self)
        if self._listening is not None:
            self._listening.close()

    def abort(self) -> None:
        """Reset the stream."""
        if self._listening is not None:
            self._listening.close()
        if not self._lost:
            self.stream.abort()

    def _take(self, request: Request) -> None:
        if isinstance(request, Connect):
            if self._server.policy.may_connect(request.address):
                self._run(request.address, None)
            else:
                self._refuse(not_exposed(request.address))
        elif isinstance(request, Accepted):
            target = self._server.target_of(request.listening)
            if target is None:
                self._refuse(_NOT_ASKED)
            else:
                self._run(target, request.client)
        elif isinstance(request, Listen):
            if self._server.policy.may_listen(request.address):
                self._task = asyncio.ensure_future(self._listen(request.address))
                self._task.add_done_callback(self._finish)
            else:
                self._refuse(not_exposed(request.address))
        else:
            self._refuse(_NO_PROGRAM)

    def _run(self, address: Address, client: str | None) -> None:
        self.stream.pause_reading()
        self._task = asyncio.ensure_future(self._connect(address, client))
        self._task.add_done_callback(self._finish)

    async def _connect(self, address: Address, client: str | None) -> None:
        found = await dial(address)
        if isinstance(found, Refused):
            self._refuse(found)
            return
        loop = asyncio.get_running_loop()
        if address.kind is Kind.UDP:
            target = UdpTarget(self._traffic, self.stream)
            await target.open(found)
            self._hand_over(client)
            self.stream.set_protocol(target)
            target.data_received(bytes(self._early))
            self.stream.resume_reading()
            return
        transport, _ = await loop.create_connection(Waiting, sock=found)
        self._hand_over(client)
        early = bytes(self._early)
        splice = Splice(self.stream, transport, self._traffic.forget, from_one=early)
        self._traffic.keep(splice)

    async def _listen(self, address: Address) -> None:
        try:
            bound = await bind(address)
        except LocalNetworkError as error:
            why = refusal(OSError(error.errno, str(error)))
            self._refuse(Refused(why.word, str(error)))
            return
        forward = self._forward(bound)
        try:
            await forward.start()
        except BaseException:
            forward.close()
            raise
        self._settle()
        if self._ended:  # the peer wants it no more
            forward.close()
            self.stream.close()
            return
        self._listening = forward
        port = None if address.kind is Kind.UNIX else bound.address.port
        self.stream.write(encode_reply(Ok(port)))
        self._traffic.observe(Listening(shown(self._what), bound.place))

    def _forward(self, bound: Bound) -> StreamForward | UdpForward:
        number, what = self.stream.number, shown(str(bound.address))

        def request_for(client: str) -> Request:
            return Accepted(number, client)

        if bound.address.kind is Kind.UDP:
            return UdpForward(self._traffic, bound, what, request_for)
        return StreamForward(bound, lambda: Connection(self._traffic, what, request_for))

    def _hand_over(self, client: str | None) -> None:
        """Say that it is connected; the stream gets another protocol now."""
        self._settle()
        self._traffic.forget(self)
        self.stream.write(encode_reply(Ok()))
        self._traffic.observe(Forwarded(shown(self._what), shown(client or "the other side")))

    def _refuse(self, refused: Refused) -> None:
        """Tell both sides, and end the stream."""
        self._line = None
        self._settle()
        self._traffic.refused_here(self._what, refused)
        self.stream.write(encode_reply(refused))
        self.stream.close()

    def _settle(self) -> None:
        self._server.pending.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _finish(self, task: asyncio.Task[None]) -> None:
        """Take note that the task is done, and report what nobody has foreseen."""
        self._task = None
        if self._lost:
            self._traffic.forget(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.abort()
            context = {"message": f"{shown(self._what)} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def not_exposed(address: Address) -> Refused:
    """Return the refusal that says which option would allow it."""
    prefix = "udp/" if address.kind is Kind.UDP else ""
    text = f"not allowed without --expose {prefix}{address.place}"
    return Refused(Word.NOT_EXPOSED, text)
