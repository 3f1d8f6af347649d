"""Many datagrams in one call, compared with what was sent; over loopback."""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.net import batch, errqueue, features, offload
from nat_traverse.net.batch import FEW, MOST, Batch, _decoded
from nat_traverse.net.offload import MAX_DATAGRAM, Arrived

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.net.address import SocketAddress

EVERYTHING = 1 << 30

pytestmark = pytest.mark.skipif(not batch.available(), reason="only Linux has recvmmsg")


def bound(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.bind((host, 0))
    opened.setblocking(False)
    return opened


class Loop:
    """A receiver with all that the real one has set, and two senders."""

    def __init__(self, host: str) -> None:
        self.receiver, self.one, self.other = bound(host), bound(host), bound(host)
        offload.enlarge_buffers(self.receiver)
        offload.enable_receiving(self.receiver)
        errqueue.enable(self.receiver)
        self.batch = Batch(self.receiver)
        self.sent: list[tuple[bytes, SocketAddress]] = []

    def send(self, data: bytes, sender: socket.socket | None = None) -> None:
        sender = sender or self.one
        sender.sendto(data, self.receiver.getsockname())
        self.sent.append((data, sender.getsockname()))

    def send_run(self, data: bytes, size: int) -> None:
        """Send a train, which loopback brings as the run that it is."""
        assert features.SOL_UDP is not None
        assert features.UDP_SEGMENT is not None
        control = [(features.SOL_UDP, features.UDP_SEGMENT, size.to_bytes(2, sys.byteorder))]
        self.one.sendmsg([data], control, 0, self.receiver.getsockname())
        self.sent += [
            (data[at : at + size], self.one.getsockname()) for at in range(0, len(data), size)
        ]

    def received(self, octets: int = EVERYTHING) -> list[Arrived]:
        """Return what is there; all of it, unless `octets` end it."""
        into: list[Arrived] = []
        try:
            self.batch.receive(octets, into)
        except BlockingIOError:
            pass
        else:
            assert octets < EVERYTHING
        return into

    def introduce(self) -> None:
        """Let the sender be known, and those be taken that are taken one by one."""
        for _ in range(FEW + 1):
            self.send(b"one by one")
        assert datagrams(self.received()) == self.sent
        self.sent.clear()

    def received_behind_few(self) -> list[Arrived]:
        """Return what is there but for the first FEW, which are taken one by one."""
        arrived = self.received()
        assert datagrams(arrived[:FEW]) == self.sent[:FEW]
        del self.sent[:FEW]
        return arrived[FEW:]


def datagrams(arrived: list[Arrived]) -> list[tuple[bytes, SocketAddress]]:
    """Cut all runs up."""
    return [
        (data[at : at + size], address)
        for data, size, address in arrived
        for at in range(0, len(data) or 1, size)
    ]


@pytest.fixture(params=["127.0.0.1", "::1"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    made = Loop(request.param)
    yield made
    for each in (made.receiver, made.one, made.other):
        each.close()


def test_nothing(loop: Loop) -> None:
    with pytest.raises(BlockingIOError):
        loop.batch.receive(EVERYTHING, [])


def test_single_datagrams_become_runs(loop: Loop) -> None:
    loop.introduce()
    for size in (*[8] * FEW, 1400, 1400, 900, 1400, 1400, 1400, 1500, 1500, 7, 7):
        loop.send(random.Random(size).randbytes(size))
    arrived = loop.received_behind_few()
    assert [(len(data), size) for data, size, _ in arrived] == [
        (1400 + 1400 + 900, 1400),  # a shorter one ends a run
        (3 * 1400, 1400),  # a longer one begins the next
        (2 * 1500 + 7, 1500),
        (7, 7),
    ]
    assert datagrams(arrived) == loop.sent


def test_more_than_fit_in_one_call(loop: Loop) -> None:
    for number in range(FEW + 2 * MOST + 3):
        loop.send(b"%4d" % number)
    arrived = loop.received_behind_few()
    assert datagrams(arrived) == loop.sent
    assert len(arrived) == MOST + 2  # the first batch as it came, for its sender was not known
    with pytest.raises(BlockingIOError):
        loop.batch.receive(EVERYTHING, [])


def test_empty_datagrams(loop: Loop) -> None:
    for _ in range(2):  # with the sender known, and not
        for data in (*[b""] * FEW, b"", b"1", b"", b"", b"22", b""):
            loop.send(data)
        arrived = loop.received()
        assert datagrams(arrived) == loop.sent
        assert all(size >= 1 for _, size, _ in arrived)
        loop.sent.clear()


def test_no_run_is_longer_than_the_kernels(loop: Loop) -> None:
    loop.introduce()
    for _ in range(FEW + 9):
        loop.send(bytes(9000))
    sizes = [len(data) for data, _, _ in loop.received_behind_few()]
    assert sizes == [7 * 9000, 2 * 9000]
    assert sizes[0] + 9000 > MAX_DATAGRAM


def test_runs_and_single_ones(loop: Loop) -> None:
    for count in (1, FEW - 1, FEW, 3 * FEW, 2):
        for _ in range(count):
            loop.send(b"single")
        loop.send_run(random.Random(1).randbytes(20 * 1200 + 5), 1200)
        loop.send(b"single")
        loop.send(b"another single")
        loop.send_run(random.Random(2).randbytes(40 * 1500), 1500)
    arrived = loop.received()
    assert datagrams(arrived) == loop.sent
    assert (20 * 1200 + 5, 1200) in {(len(data), size) for data, size, _ in arrived}


def test_several_senders(loop: Loop) -> None:
    loop.introduce()
    for number in range(20):
        loop.send(b"%2d" % number, loop.one if number % 5 else loop.other)
    for _ in range(3):
        loop.send(b"xx", loop.other)
    assert datagrams(loop.received()) == loop.sent


def test_it_ends_when_that_much_is_there(loop: Loop) -> None:
    for _ in range(100):
        loop.send(bytes(1000))
    begun = loop.received(octets=10 * (1000 + offload.CALL))
    assert 10 <= len(datagrams(begun)) < 20
    assert datagrams(begun + loop.received()) == loop.sent


def test_the_same_as_one_by_one(loop: Loop) -> None:
    chance = random.Random(5)
    for _ in range(30):
        loop.sent.clear()
        for _ in range(chance.randrange(1, 90)):
            size = chance.choice((0, 1, 100, 1199, 1200, 1200, 1200))
            match chance.randrange(12):
                case 0:
                    loop.send_run(chance.randbytes(chance.randrange(1201, 12_000)), 1200)
                case 1:
                    loop.send(chance.randbytes(size), loop.other)
                case _:
                    loop.send(chance.randbytes(size))
        assert datagrams(loop.received()) == loop.sent


def test_an_error_that_was_pending(loop: Loop) -> None:
    closed = bound(loop.receiver.getsockname()[0])
    gone = closed.getsockname()
    closed.close()
    loop.receiver.sendto(b"refused", gone)
    loop.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        loop.batch.receive(EVERYTHING, [])
    loop.receiver.sendto(b"refused", gone)
    with pytest.raises(ConnectionRefusedError):
        loop.batch._receive(MOST)
    errqueue.drain(loop.receiver)
    assert datagrams(loop.received()) == loop.sent


def test_a_socket_that_is_closed(loop: Loop) -> None:
    loop.receiver.close()
    for receive in (lambda: loop.batch.receive(EVERYTHING, []), lambda: loop.batch._receive(MOST)):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            receive()
        assert caught.value.errno == errno.EBADF


def test_a_control_message_of_another_kind(loop: Loop) -> None:
    loop.receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    if loop.receiver.family == socket.AF_INET6:
        loop.receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    for _ in range(FEW + 3):
        loop.send(b"data")
    assert datagrams(loop.received()) == loop.sent


def test_memory_is_used_where_something_arrives() -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    with bound("127.0.0.1") as receiver:
        Batch(receiver)  # so that what all of them need is there
        before = resident()
        held = [Batch(receiver) for _ in range(4)]
        grown = resident() - before
    assert len(held) * MOST * MAX_DATAGRAM > 16_000_000
    assert grown < 1_000_000


def test_addresses_as_sockets_give_them() -> None:
    name = b"\x0a\x00\x9c\x40\x00\x00\x00\x07" + bytes.fromhex("fe80" + 13 * "00" + "01")
    scope = (3).to_bytes(4, sys.byteorder)
    assert _decoded(name + scope, is_ipv6=True) == ("fe80::1", 40000, 7, 3)
    assert _decoded(b"\x02\x00\x9c\x40\xc0\x00\x02\x01" + bytes(20), is_ipv6=False) == (
        "192.0.2.1",
        40000,
    )
