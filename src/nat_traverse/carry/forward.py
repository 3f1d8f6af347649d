"""The port forwards of one run: -L, -R and -D of this side, and what --expose lets the peer do.

The listeners of this side are open from `start` to `stop`, whatever happens to the link. With each
new link (`rebind`) the peer is asked again for what -R says, and connections of the old link are
reset, since half a connection is of no use. While there is no link, new ones are refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nat_traverse.carry.binding import bind
from nat_traverse.carry.calling import Call, Connection, StreamForward
from nat_traverse.carry.expose import Policy
from nat_traverse.carry.serving import Server
from nat_traverse.carry.socks import SocksConnection
from nat_traverse.carry.streams import Listening, ListeningEnded, Traffic
from nat_traverse.carry.udp_forward import UdpForward
from nat_traverse.errors import LocalNetworkError
from nat_traverse.wire.request import Connect, Kind, Listen, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nat_traverse.carry.specs import Dynamic, Exposed, Forward
    from nat_traverse.carry.streams import ForwardEvent, Link, Stream
    from nat_traverse.wire.request import Address, Reply, Request


class Forwards:
    """All forwards of this side. `observe` is given an event for each thing that happens."""

    def __init__(
        self,
        link: Link | None,
        observe: Callable[[ForwardEvent], None],
        *,
        locals_: Iterable[Forward] = (),
        remotes: Iterable[Forward] = (),
        dynamics: Iterable[Dynamic] = (),
        exposed: Iterable[Exposed] = (),
    ) -> None:
        self._locals = list(locals_)
        self._remotes = list(remotes)
        self._dynamics = list(dynamics)
        self._traffic = Traffic(link, observe)
        self._server = Server(self._traffic, Policy(exposed), self._target_of)
        self._listeners: list[StreamForward | UdpForward] = []
        self._asked: list[_Remote] = []  # of the peer, on this link

    async def start(self) -> None:
        """Listen, and begin to serve the link if there is one.

        Raises `LocalNetworkError`, with nothing left open, if a socket can't be bound.
        """
        try:
            for local in self._locals:
                await self._open(local.text, local.listen, local.target)
            for dynamic in self._dynamics:
                await self._open(dynamic.text, dynamic.listen, None)
        except BaseException:
            self._close_listeners()
            raise
        if self._traffic.link is not None:
            self._attach(self._traffic.link)

    def rebind(self, link: Link | None) -> None:
        """Go on with another link; with None, go on without one until there is one again."""
        former = self._traffic.link
        if former is not None and former is not link:
            former.on_stream = None
        self._asked.clear()
        self._traffic.abort_all()
        self._traffic.link = link
        if link is not None:
            self._attach(link)

    def accept(self) -> asyncio.Protocol:
        """Return the protocol for a stream that the peer opens."""
        return self._server.accept()

    async def stop(self) -> None:
        """Close everything, and wait until it is closed."""
        self._close_listeners()
        self.rebind(None)
        await self._traffic.settle()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next round

    def _attach(self, link: Link) -> None:
        link.on_stream = self.accept
        for remote in self._remotes:
            _Remote(self._traffic, remote, self._asked).start()

    async def _open(self, what: str, listen: Address, target: Address | None) -> None:
        try:
            bound = await bind(listen)
        except LocalNetworkError as error:
            raise LocalNetworkError(f"{what}: {error}", error.errno) from error
        forward: StreamForward | UdpForward
        traffic = self._traffic
        if target is None:
            forward = StreamForward(bound, lambda: SocksConnection(traffic, what))
        else:
            request: Request = Connect(target)
            if listen.kind is Kind.UDP:
                forward = UdpForward(traffic, bound, what, lambda _: request)
            else:
                forward = StreamForward(bound, lambda: Connection(traffic, what, lambda _: request))
        self._listeners.append(forward)
        await forward.start()
        traffic.observe(Listening(what, bound.place))

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _target_of(self, number: int) -> Address | None:
        # A stream may get its number late, so that there is no table by numbers.
        return next((each.forward.target for each in self._asked if each.number == number), None)


class _Remote(asyncio.Protocol):
    """One -R on one link: asks the peer to listen, and is then the protocol of that stream."""

    def __init__(self, traffic: Traffic, forward: Forward, asked: list[_Remote]) -> None:
        self._traffic = traffic
        self.forward = forward
        self._asked = asked
        self._stream: Stream | None = None

    @property
    def number(self) -> int | None:
        """The stream's number, once it is known."""
        return None if self._stream is None else self._stream.number

    def start(self) -> None:
        """Ask. The first connection may be here before the answer is."""
        call = Call(self._traffic, self._take_answer)
        self._stream = call.start(Listen(self.forward.listen))
        if self._stream is not None:
            self._asked.append(self)

    def abort(self) -> None:
        """End the listening."""
        if self._stream is not None:
            self._stream.abort()

    def eof_received(self) -> None:
        """Let the stream close."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Tell that the peer listens no more, unless it was this side that ended it."""
        self._traffic.forget(self)
        if self._strike_off():
            self._traffic.observe(ListeningEnded(self.forward.text))

    def _strike_off(self) -> bool:
        """Forget about it; False if that was done before, since another link has come."""
        if self not in self._asked:
            return False
        self._asked.remove(self)
        return True

    def _take_answer(self, reply: Reply, by_peer: bool) -> None:
        what = self.forward.text
        if isinstance(reply, Refused):
            tell = self._traffic.refused_there if by_peer else self._traffic.refused_here
            tell(what, reply)
            self._strike_off()
        elif self._stream is not None:
            self._traffic.keep(self)
            self._stream.set_protocol(self)
            self._stream.resume_reading()
            listen = self.forward.listen
            place = (listen if reply.port is None else listen._replace(port=reply.port)).place
            self._traffic.observe(Listening(what, place))
