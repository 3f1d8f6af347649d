"""UDP through a link: each client's datagrams are a flow, and each flow is a stream.

Datagrams stay datagrams: they may be lost and overtake each other, and a slow reader costs
datagrams, never memory. Only those that are larger than the link's own go over the stream.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from nat_traverse.wire.request import encode_datagram, take_datagrams

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from nat_traverse.carry.streams import Stream, Traffic


class DatagramStream(asyncio.Protocol):
    """The protocol of a stream that carries datagrams; what arrives goes to `deliver`."""

    stream: Stream

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self.deliver = deliver
        self._buffer = bytearray()
        self._full = False

    def send(self, datagram: bytes, *, in_order: bool = False) -> None:
        """Send a datagram, over the stream itself if it is too large or to be `in_order`."""
        if not in_order and len(datagram) <= self.stream.datagram_limit:
            self.stream.send_datagram(datagram)
        elif not self._full:
            self.stream.write(encode_datagram(datagram))

    def data_received(self, data: bytes) -> None:
        """Take datagrams that came over the stream itself."""
        self._buffer += data
        for datagram in take_datagrams(self._buffer):
            self.deliver(datagram)

    def datagram_received(self, data: bytes) -> None:
        """Take a datagram."""
        self.deliver(data)

    def pause_writing(self) -> None:
        """Drop what would have to wait."""
        self._full = True

    def resume_writing(self) -> None:
        """Drop no more."""
        self._full = False


class UdpEndpoint(asyncio.DatagramProtocol):
    """The protocol of a UDP socket; a datagram that the socket does not take now is dropped."""

    transport: asyncio.DatagramTransport

    def __init__(self, receive: Callable[[UdpEndpoint, bytes, tuple[Any, ...]], None]) -> None:
        self._receive = receive
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Hand on a datagram."""
        self._receive(self, data, addr)

    def send(self, datagram: bytes, client: tuple[Any, ...] | None = None) -> None:
        """Send to `client`, or to where the socket is connected to."""
        if not self._full and not self.transport.is_closing():
            self.transport.sendto(datagram, client)

    def pause_writing(self) -> None:
        """Drop what would have to wait."""
        self._full = True

    def resume_writing(self) -> None:
        """Drop no more."""
        self._full = False


class UdpTarget(DatagramStream):
    """The datagrams of one flow, on the side that they go to.

    A refusal by ICMP is a lost datagram and no more: the service may be starting again.
    """

    _endpoint: UdpEndpoint

    def __init__(self, traffic: Traffic, stream: Stream) -> None:
        super().__init__(self._to_socket)
        self._traffic = traffic
        self.stream = stream

    async def open(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        loop = asyncio.get_running_loop()
        _, self._endpoint = await loop.create_datagram_endpoint(
            lambda: UdpEndpoint(self._from_socket), sock=sock
        )
        self._traffic.keep(self)

    def abort(self) -> None:
        """End it on both sides."""
        self.stream.abort()

    def eof_received(self) -> None:
        """Let the stream close: a flow ends in both directions at once."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Close the socket."""
        self._endpoint.transport.abort()
        self._traffic.forget(self)

    def _to_socket(self, datagram: bytes) -> None:
        self._endpoint.send(datagram)

    def _from_socket(self, _: UdpEndpoint, datagram: bytes, __: tuple[Any, ...]) -> None:
        if not self.stream.is_closing():
            self.send(datagram)
