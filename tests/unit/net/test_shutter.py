"""The filter is run by the kernel, on real sockets."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest

from nat_traverse.net import features, shutter
from nat_traverse.net.address import endpoint_from, sockaddr
from nat_traverse.net.udp import UdpSocket
from nat_traverse.wire.hello import ACK_MAGIC, HELLO_MAGIC, HELLO_SIZE, Kind, Message, encode
from nat_traverse.wire.sealed import PREFIX, SMALLEST

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not features.IS_LINUX, reason="a feature of Linux")

NONCE = bytes(range(16))
NAME = bytes(range(100, 108))
LAST = b"the last one"
INDICES = (b"\x81\x02\x03\x04", b"\xff\xff\xff\xff", bytes(4))

PEERS = (
    encode(Message(Kind.HELLO, NONCE), size=HELLO_SIZE),
    encode(Message(Kind.ACK, NONCE)),
    bytes((0x40,)) + NAME + b"encrypted",
    bytes((0x7F,)) + NAME,
)


def strangers() -> Iterator[bytes]:
    yield b""
    yield HELLO_MAGIC
    yield ACK_MAGIC
    yield b"nat-"
    yield NAME
    for changed in range(8):
        at = bytes(each ^ (number == changed) for number, each in enumerate(NONCE))
        yield encode(Message(Kind.HELLO, at), size=HELLO_SIZE)
        name = bytes(each ^ (number == changed) for number, each in enumerate(NAME))
        yield bytes((0x40,)) + name + b"encrypted"
    yield bytes((0xC0,)) + NAME + b"a long header"
    yield encode(Message(Kind.HELLO, NONCE))[:37][:29]  # cut off within the nonce
    yield (bytes((0x40,)) + NAME)[:-1]
    yield sealed(NAME[:4])
    yield from (sealed(index)[:-each] for index in INDICES for each in range(25, 32))  # cut off
    yield PREFIX
    yield b"\x04\0\0\x01" + sealed(INDICES[0])[4:]  # of another protocol
    for index in INDICES:
        for changed in range(4):
            other = bytes(each ^ (number == changed) for number, each in enumerate(index))
            yield sealed(other)


def sealed(index: bytes, size: int = SMALLEST) -> bytes:
    """Return a sealed datagram with this index."""
    return (PREFIX + index).ljust(size, b"\xee")


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[UdpSocket, socket.socket]]:
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with (
        UdpSocket(request.param, 0, host=host) as receiver,
        socket.socket(request.param, socket.SOCK_DGRAM) as sender,
    ):
        sender.connect((host, receiver.local.port))
        yield receiver, sender


def received(receiver: UdpSocket) -> list[bytes]:
    """Return what has arrived; on loopback that is done when the call that sends returns."""
    found = []
    while (datagram := receiver.receive()) is not None:
        found.append(datagram[0])
    return found


def test_only_what_names_the_nonce_or_the_connection_comes_through(
    pair: tuple[UdpSocket, socket.socket],
) -> None:
    receiver, sender = pair
    assert receiver.close_shutter(shutter.program(NONCE, NAME))
    for data in (*strangers(), *PEERS):
        sender.send(data)
    assert received(receiver) == list(PEERS)


@pytest.mark.parametrize("count", range(len(INDICES) + 1))
def test_sealed_datagrams_with_a_known_index_come_through(
    pair: tuple[UdpSocket, socket.socket], count: int
) -> None:
    receiver, sender = pair
    known, unknown = INDICES[:count], INDICES[count:]
    assert receiver.close_shutter(shutter.program(NONCE, NAME, known))
    expected = []
    for data in (*strangers(), *map(sealed, unknown)):
        sender.send(data)
    for index in reversed(known):
        for size in (SMALLEST, 1400):
            sender.send(sealed(index, size))
            expected.append(sealed(index, size))
    for data in PEERS:  # as before
        sender.send(data)
    assert received(receiver) == [*expected, *PEERS]


def test_a_run_of_sealed_datagrams_comes_through(pair: tuple[UdpSocket, socket.socket]) -> None:
    receiver, sender = pair
    assert receiver.enable_offload()
    assert receiver.close_shutter(shutter.program(NONCE, NAME, INDICES))
    with UdpSocket(receiver.family, 0) as other:
        train = b"".join(sealed(INDICES[1], 1000) for _ in range(20))
        to = sockaddr(endpoint_from(sender.getpeername()), receiver.family)
        assert other.send_segments([train], 1000, to) == len(train)
    assert received(receiver) == [sealed(INDICES[1], 1000)] * 20


def test_noise_does_not_come_through(pair: tuple[UdpSocket, socket.socket]) -> None:
    receiver, sender = pair
    chance = random.Random(11)
    assert receiver.close_shutter(shutter.program(NONCE, NAME, INDICES))
    for _ in range(1000):
        sender.send(chance.randbytes(chance.randrange(60)))
    assert received(receiver) == []


def test_everything_comes_through_when_it_is_open_again(
    pair: tuple[UdpSocket, socket.socket],
) -> None:
    receiver, sender = pair
    receiver.open_shutter()  # which changes nothing: it is
    assert receiver.close_shutter(shutter.program(NONCE, NAME))
    sender.send(LAST)
    receiver.open_shutter()
    sender.send(LAST)
    assert received(receiver) == [LAST]


def test_another_filter_takes_the_place_of_the_first(
    pair: tuple[UdpSocket, socket.socket],
) -> None:
    receiver, sender = pair
    assert receiver.close_shutter(shutter.program(bytes(16), bytes(8)))
    assert receiver.close_shutter(shutter.program(NONCE, NAME))
    sender.send(PEERS[0])
    assert received(receiver) == [PEERS[0]]


def test_a_filter_that_makes_no_sense_is_refused(pair: tuple[UdpSocket, socket.socket]) -> None:
    receiver, sender = pair
    assert not receiver.close_shutter(bytes(8 * 3))
    sender.send(LAST)
    assert received(receiver) == [LAST]


def test_where_there_is_none_all_comes_through(
    pair: tuple[UdpSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, sender = pair
    monkeypatch.setattr(features, "SO_ATTACH_FILTER", None)
    monkeypatch.setattr(features, "SO_DETACH_FILTER", None)
    assert not receiver.close_shutter(shutter.program(NONCE, NAME))
    receiver.open_shutter()
    sender.send(LAST)
    assert received(receiver) == [LAST]


def test_a_closed_socket_can_be_opened_to_all() -> None:
    with UdpSocket(socket.AF_INET, 0, host="127.0.0.1") as sock:
        sock.close()
        sock.open_shutter()
        assert not sock.close_shutter(shutter.program(NONCE, NAME))
