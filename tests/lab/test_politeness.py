"""How much is sent, and how far: what single packets on the wire say about a long search."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from nat_traverse.punch.hop import hop_port
from nat_traverse.punch.minute import FULL, MINUTE, minute_of
from support.lab import Tap
from support.sides import LEFT_PORT, RIGHT_PORT, address, connected, left

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nat_traverse.lab import Node
    from support.lab import Packet

# s. Every such stretch holds the knocks of one whole minute, the quiet rung's start included.
ALONE = 75.0

# The program's limits: sockets, packets a second, and packets of a search in 180 s.
SOCKETS = 256
RATE = 100
BUDGET = 4096

FARTHEST_OPENING = 7  # the largest TTL of an opening
SLACK = 0.25  # s between a decision and its packet, on a busy machine


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Undo what a shell does to commands in its background, which children would inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)


def hop_ports(packets: Iterable[Packet]) -> set[int]:
    """Return the local ports of the hop rung for the time of these packets."""
    times = [packet.at for packet in packets]
    minutes = range(minute_of(min(times)), minute_of(max(times)) + 2)
    return {hop_port(LEFT_PORT, RIGHT_PORT, minute) for minute in minutes}


def most_at_once(packets: list[Packet], seconds: float) -> int:
    """Return the largest number of packets within `seconds`."""
    times = sorted(packet.at for packet in packets)
    most = begin = 0
    for end, at in enumerate(times):
        while times[begin] <= at - seconds:
            begin += 1
        most = max(most, end - begin + 1)
    return most


def udp_sockets(node: Node) -> int:
    """Return how many UDP sockets of IPv4 are open on a node."""
    return len(node.run(["cat", "/proc/net/udp"]).stdout.splitlines()) - 1


def test_a_side_alone_stays_within_its_limits_and_ends_at_once() -> None:
    with Lab(Kind.DROP, Kind.DROP) as lab, Tap(lab.left) as tap, left(lab) as program:
        program.event("opened")
        program.event("trying", strategy="quiet")
        quiet = time.time()
        time.sleep(ALONE - 10)
        assert udp_sockets(lab.left) <= SOCKETS
        program.signal(signal.SIGINT)
        interrupted = time.time()
        assert program.wait() == -signal.SIGINT
        time.sleep(3)  # nothing announces that nothing comes
        sent = tap.sent
    assert max(packet.at for packet in sent) <= interrupted + 1

    hops = hop_ports(sent)
    ports = {packet.source[1] for packet in sent}
    assert len(ports - hops) <= SOCKETS - 2
    assert LEFT_PORT in ports
    assert ports & hops

    assert most_at_once(sent, 1.0) <= RATE

    agreed = (LEFT_PORT, (address(lab.right), RIGHT_PORT))
    on_agreed = [packet for packet in sent if (packet.source[1], packet.destination) == agreed]
    search = [
        packet
        for packet in sent
        if (packet.source[1], packet.destination) != agreed and packet.source[1] not in hops
    ]
    assert 1000 < len(search) <= BUDGET
    # Other ports than the agreed one never reach the peer's agreed port.
    assert all(packet.ttl <= FARTHEST_OPENING for packet in search if packet.source[1] != LEFT_PORT)

    later = [packet for packet in on_agreed if packet.at > quiet + SLACK]
    far = [packet for packet in later if packet.ttl > FARTHEST_OPENING]
    assert len(later) > len(far) > 0
    assert all(packet.at % MINUTE < FULL + SLACK for packet in far), [
        (packet.at % MINUTE, packet.ttl) for packet in far
    ]


def test_nothing_but_the_path_is_used_once_a_search_has_ended() -> None:
    with (
        Lab(Kind.DROP, Kind.RANDOM) as lab,
        Tap(lab.left) as here,
        Tap(lab.right) as there,
        connected(lab, patience=190) as (first, second),
    ):
        since = time.time()
        assert first.event("connected")["strategy"] == "spray"
        time.sleep(2)
        first.write(b"there")
        second.write(b"back")
        second.prints(5)
        first.prints(4)
        time.sleep(2)  # nothing announces that nothing comes
        for tap, program, node in ((here, first, lab.left), (there, second, lab.right)):
            path = program.event("connected")
            late = [packet for packet in tap.sent if packet.at > since + 1]
            used = {(packet.source[1], "{}:{}".format(*packet.destination)) for packet in late}
            assert used == {(path["local_port"], path["peer"])}
            assert len(late) < 30  # few words, and their acks
            assert udp_sockets(node) <= 2  # the agreed one is kept
