from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

from nat_traverse.carry.streams import Traffic
from nat_traverse.carry.udp_flow import DatagramStream, UdpEndpoint, UdpTarget
from support.forwards import run, until
from support.streams import HIGH_WATER, FakeStream, links

DATA = random.Random(24).randbytes(5000)


class Far(asyncio.Protocol):
    """The other end of a stream."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.datagrams: list[bytes] = []
        self.stream: FakeStream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, FakeStream)
        self.stream = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.append(data)


def connect(protocol: DatagramStream) -> Far:
    one, other = links()
    far = Far()
    other.on_stream = lambda: far
    protocol.stream = one.open_stream(protocol)
    return far


def test_what_is_too_large_goes_over_the_stream_and_what_has_to_wait_is_dropped() -> None:
    async def test() -> None:
        near = DatagramStream(lambda _: None)
        far = connect(near)
        far.stream.pause_reading()
        near.send(b"small")
        near.send(b"in order", in_order=True)
        for _ in range(100):
            near.send(DATA)
        await until(lambda: far.datagrams == [b"small"])
        far.stream.resume_reading()
        await until(lambda: not far.stream.received)
        written = len(far.data)
        assert HIGH_WATER < written < HIGH_WATER + 2 * len(DATA)
        assert far.data[:10] == b"\x00\x08in order"
        near.send(DATA)  # it flows again
        await until(lambda: len(far.data) == written + 2 + len(DATA))

    run(test())


def test_datagrams_come_in_both_ways() -> None:
    async def test() -> None:
        received: list[bytes] = []
        near = DatagramStream(received.append)
        far = connect(near)
        for each in b"\x00\x03one\x00\x00\x00":
            far.stream.write(bytes([each]))
        far.stream.send_datagram(b"two")
        await until(lambda: len(received) == 3)
        assert sorted(received) == [b"", b"one", b"two"]

    run(test())


def test_a_socket_that_is_full_drops() -> None:
    class Transport:
        sent = 0
        closing = False

        def sendto(self, _data: bytes, _client: object) -> None:
            self.sent += 1

        def is_closing(self) -> bool:
            return self.closing

    transport: Any = Transport()
    endpoint = UdpEndpoint(lambda *_: None)
    endpoint.connection_made(transport)
    endpoint.send(b"x")
    endpoint.pause_writing()
    endpoint.send(b"x")
    endpoint.resume_writing()
    endpoint.send(b"x")
    transport.closing = True
    endpoint.send(b"x")
    assert transport.sent == 2


def test_a_target_and_its_stream_end_together() -> None:
    async def test() -> None:
        for ends_here in (True, False):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
                service.bind(("127.0.0.1", 0))
                service.setblocking(False)
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                client.connect(service.getsockname())
                far = connect(placeholder := DatagramStream(lambda _: None))
                target = UdpTarget(Traffic(None, lambda _: None), placeholder.stream)
                await target.open(client)
                placeholder.stream.set_protocol(target)
                far.stream.send_datagram(b"hello")
                loop = asyncio.get_running_loop()
                data, address = await loop.sock_recvfrom(service, 100)
                assert data == b"hello"
                service.sendto(DATA[:1000], address)
                await until(lambda: far.datagrams == [DATA[:1000]])  # noqa: B023
                if ends_here:
                    target.abort()
                else:
                    far.stream.abort()
                await until(lambda: client.fileno() < 0)  # noqa: B023
                assert far.stream.lost

    run(test())
