"""Taking datagrams for the other side: the listening end of UDP forwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from nat_traverse.carry.streams import LINK_DOWN, NO_ANSWER, FirstLine, Forwarded, endpoint_name
from nat_traverse.carry.udp_flow import DatagramStream, UdpEndpoint
from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire.request import (
    Ok,
    Refused,
    Word,
    decode_reply,
    encode_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.binding import Bound
    from nat_traverse.carry.streams import Traffic
    from nat_traverse.wire.request import Request

# How long a flow lives without a datagram in either direction (s): what a NAT has to grant a UDP
# mapping at least (RFC 4787, REQ-5), so no program relies on more, and many rely on that.
IDLE_LIMIT: Final = 120.0
# How long the datagrams of a client that was refused are dropped before the peer is asked again
# (s): a program that repeats its question is not to make a line of the report each time.
REFUSED_FOR: Final = 5.0
# How often is looked for flows that have ended (s).
SWEEP: Final = 5.0
# Flows of one forward at a time. The source of a datagram is a claim: whoever makes up claims gets
# no more than this out of it.
FLOW_LIMIT: Final = 256


class Flow(DatagramStream):
    """The datagrams of one client, on the side that it sends them to.

    Until the peer has answered, everything goes over the stream itself: a datagram could arrive
    before the request. When `ended` is true it sends nothing any more and waits for its removal.
    """

    def __init__(
        self,
        traffic: Traffic,
        deliver: Callable[[bytes], None],
        on_answer: Callable[[Refused | None, bool], None],
    ) -> None:
        super().__init__(deliver)
        self._traffic = traffic
        self._on_answer = on_answer
        self._line: FirstLine | None = FirstLine()
        self._loop = asyncio.get_running_loop()
        self.expires = self._loop.time() + IDLE_LIMIT
        self.ended = False

    def start(self, request: Request) -> None:
        """Open the stream and ask."""
        stream = self._traffic.open_stream(self)
        if stream is None:
            self._refuse(LINK_DOWN, by_peer=False)
            return
        self.stream = stream
        self._traffic.keep(self)
        stream.write(encode_request(request))

    def client_sent(self, datagram: bytes) -> None:
        """Send what the client has sent."""
        if not self.ended:
            self.expires = self._loop.time() + IDLE_LIMIT
            self.send(datagram, in_order=self._line is not None)

    def abort(self) -> None:
        """End it, and its stream."""
        if not self.ended:
            self.ended = True
            self.expires = self._loop.time()
            self.stream.abort()

    def data_received(self, data: bytes) -> None:
        """Read the answer, then datagrams."""
        if self.ended:
            return
        if self._line is None:
            self.expires = self._loop.time() + IDLE_LIMIT
            super().data_received(data)
            return
        try:
            line = self._line.receive_data(data)
            if line is None:
                return
            reply = decode_reply(line)
        except RemoteProtocolError as error:
            reply = Refused(Word.MALFORMED, f"the answer makes no sense: {error}")
        if isinstance(reply, Ok):
            rest, self._line = self._line.rest, None
            self._on_answer(None, True)
            super().data_received(rest)
        else:
            self.stream.abort()
            self._refuse(reply, by_peer=True)

    def datagram_received(self, data: bytes) -> None:
        """Take a datagram, which may be here before the answer."""
        if not self.ended:
            self.expires = self._loop.time() + IDLE_LIMIT
            super().datagram_received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """End it; the client's next datagram begins a new one, some time after silence."""
        self._traffic.forget(self)
        if self.ended:
            return
        if self._line is not None:
            self._refuse(NO_ANSWER, by_peer=False)
            return
        self.ended = True
        self.expires = self._loop.time()

    def _refuse(self, refused: Refused, *, by_peer: bool) -> None:
        self.ended = True
        self.expires = self._loop.time() + REFUSED_FOR
        self._on_answer(refused, by_peer)


class UdpForward:
    """Takes datagrams at `bound`; `request_for` says what to ask the peer for, for each client."""

    def __init__(
        self, traffic: Traffic, bound: Bound, what: str, request_for: Callable[[str], Request]
    ) -> None:
        self._traffic = traffic
        self._bound = bound
        self.what = what
        self._request_for = request_for
        self._flows: dict[tuple[UdpEndpoint, tuple[Any, ...]], Flow] = {}
        self._transports: list[asyncio.DatagramTransport] = []
        self._timer: asyncio.TimerHandle | None = None
        self._told = False  # that there are too many flows; once for each sweep

    async def start(self) -> None:
        """Begin to take datagrams."""
        loop = asyncio.get_running_loop()
        for sock in self._bound.sockets:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: UdpEndpoint(self._receive), sock=sock
            )
            self._transports.append(transport)
        self._timer = loop.call_later(SWEEP, self._sweep)

    def close(self) -> None:
        """Take no more, and end all flows."""
        if self._timer is not None:
            self._timer.cancel()
        for flow in self._flows.values():
            flow.abort()
        self._flows.clear()
        for transport in self._transports:
            transport.abort()
        self._bound.close()

    def _receive(self, door: UdpEndpoint, datagram: bytes, client: tuple[Any, ...]) -> None:
        """Take what a client has sent."""
        flow = self._flows.get((door, client))
        if flow is not None and flow.ended and flow.expires <= asyncio.get_running_loop().time():
            flow = None
        if flow is None:
            flow = self._open(door, client)
        if flow is not None:
            flow.client_sent(datagram)

    def _open(self, door: UdpEndpoint, client: tuple[Any, ...]) -> Flow | None:
        if (door, client) not in self._flows and len(self._flows) >= FLOW_LIMIT:
            if not self._told:
                self._told = True
                text = f"more than {FLOW_LIMIT} clients at a time"
                self._traffic.refused_here(self.what, Refused(Word.BUSY, text))
            return None
        name = endpoint_name(client)

        def note_answer(refused: Refused | None, by_peer: bool) -> None:
            if refused is None:
                self._traffic.observe(Forwarded(self.what, name))
            elif by_peer:
                self._traffic.refused_there(self.what, refused)
            else:
                self._traffic.refused_here(self.what, refused)

        flow = Flow(self._traffic, lambda data: door.send(data, client), note_answer)
        self._flows[door, client] = flow
        flow.start(self._request_for(name))
        return flow

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._told = False
        for key, flow in list(self._flows.items()):
            if flow.expires <= now:
                flow.abort()
                del self._flows[key]
        self._timer = loop.call_later(SWEEP, self._sweep)
