"""The simulated network: hops, links, refusals, and who is behind whom."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind
from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from sim import kinds
from sim.nat import Behaviour
from sim.network import EPHEMERAL, Link, Network

if TYPE_CHECKING:
    from sim.network import Host, Socket

LEFT, RIGHT = Endpoint("198.51.100.2", 40_000), Endpoint("203.0.113.2", 40_001)
HOPS = 4


@dataclass
class Program:
    """A socket and all that comes to it."""

    network: Network
    host: Host
    port: int
    heard: list[tuple[float, bytes, Endpoint]] = field(default_factory=list)
    refused: list[tuple[float, NetworkError, Endpoint]] = field(default_factory=list)

    def __post_init__(self) -> None:
        opened = self.host.open(
            self.port,
            lambda data, remote: self.heard.append((self.network.now, data, remote)),
            lambda error, remote: self.refused.append((self.network.now, error, remote)),
        )
        assert opened is not None
        self.socket: Socket = opened

    def send(self, to: Endpoint, data: bytes = b"x", ttl: int | None = None) -> None:
        self.network.send(self.socket, to, data, ttl)

    @property
    def reporters(self) -> list[tuple[ErrorKind, str | None]]:
        return [(error.kind, error.reporter) for _, error, _ in self.refused]


class World:
    """A program on each side."""

    def __init__(
        self,
        left: kinds.Gateways = (),
        right: kinds.Gateways = (),
        link: Link | None = None,
        shared: kinds.Gateways = (),
    ) -> None:
        self.network = Network(random.Random(1), link or Link(hops=HOPS))
        above = self.network.add_shared(shared)
        self.left_host, self.left_gateways = self.network.add_side(0, left, above)
        self.right_host, self.right_gateways = self.network.add_side(1, right, above)
        self.left = Program(self.network, self.left_host, LEFT.port)
        self.right = Program(self.network, self.right_host, RIGHT.port)

    def run(self, seconds: float = 1.0) -> None:
        self.network.run(self.network.now + seconds)


def test_packet_takes_its_time() -> None:
    world = World(link=Link(latency=0.25))
    world.left.send(RIGHT, b"hello")
    world.run()
    assert world.right.heard == [(0.25, b"hello", LEFT)]
    assert world.network.now == 1.0
    assert world.network.delivered == 1


@pytest.mark.parametrize("left", [(), kinds.apdf(), kinds.LAB[Kind.DOUBLE]])
@pytest.mark.parametrize("right", [(), kinds.eim(), (*kinds.eim(), *kinds.eim())])
def test_every_gateway_and_router_takes_one_hop(
    left: kinds.Gateways, right: kinds.Gateways
) -> None:
    world = World(left, right)
    world.right.send(LEFT)  # makes the mapping
    world.run()
    needed = len(left) + HOPS + len(right) + 1
    for ttl in range(1, needed + 2):
        world.left.send(RIGHT, bytes([ttl]), ttl)
        world.run()
    assert [data[0] for _, data, _ in world.right.heard] == [needed, needed + 1]
    inside = ["192.168.1.1"] if len(left) < 2 else ["192.168.1.1", "100.64.1.1"]
    expected = [
        *inside[: len(left)],
        *(f"192.0.2.{hop}" for hop in range(1, HOPS + 1)),
        *(RIGHT.host for _ in right),
    ]
    assert world.left.reporters == [(ErrorKind.TIME_EXCEEDED, reporter) for reporter in expected]
    assert {error.errno for _, error, _ in world.left.refused} == {errno.EHOSTUNREACH}


def test_near_routers_answer_sooner() -> None:
    world = World(kinds.apdf(), link=Link(hops=4, latency=0.04))
    for ttl in range(1, 6):
        world.left.send(RIGHT, ttl=ttl)
    world.run()
    times = [at for at, _, _ in world.left.refused]
    assert times == sorted(times)
    assert len(set(times)) == 5
    assert times[-1] < 0.1


def test_silent_network_reports_nothing() -> None:
    world = World(kinds.apdf(), link=Link(icmp=False))
    world.left.send(RIGHT, ttl=1)
    world.left.send(RIGHT, ttl=3)
    world.left.send(RIGHT._replace(port=1))
    world.run()
    assert world.left.refused == []


@pytest.mark.parametrize(
    ("gateway", "refused"), [(kinds.apdf(), False), (kinds.apdf(poison=True), True)]
)
def test_refusal_comes_from_the_public_address(gateway: kinds.Gateways, refused: bool) -> None:
    world = World(gateway, gateway)
    world.left.send(RIGHT)
    world.run()
    expected = NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, RIGHT.host)
    assert [(error, to) for _, error, to in world.left.refused] == [(expected, RIGHT)] * refused


def test_host_refuses_for_a_closed_port() -> None:
    world = World(right=kinds.eim())
    world.right.send(LEFT)
    world.run()
    world.right.socket.close()
    world.left.send(RIGHT)
    world.run()
    assert world.left.reporters == [(ErrorKind.PORT_UNREACHABLE, RIGHT.host)]


def test_refusal_for_a_socket_that_is_gone_is_lost() -> None:
    world = World()
    world.left.send(RIGHT._replace(port=9))
    world.left.socket.close()
    successor = Program(world.network, world.left_host, LEFT.port)
    world.run()
    assert world.left.refused == successor.refused == []


def test_low_ttl_opens_the_own_gateways_only() -> None:
    world = World(kinds.LAB[Kind.DOUBLE], kinds.apdf(poison=True))
    world.left.send(RIGHT, ttl=3)
    world.run()
    assert world.left.reporters[0][0] is ErrorKind.TIME_EXCEEDED
    assert not world.right_gateways[0].nat.takes(LEFT, RIGHT.port, world.network.now)
    world.right.send(LEFT)
    world.run()
    assert [remote for _, _, remote in world.left.heard] == [RIGHT]


def test_packet_without_a_mapping_is_counted_and_gone() -> None:
    world = World((replace(kinds.LINUX, flow_limit=1),))
    world.left.send(RIGHT, b"first")
    world.left.send(RIGHT._replace(port=7), b"second")
    world.run()
    assert [data for _, data, _ in world.right.heard] == [b"first"]
    assert world.left_gateways[0].refused == 1
    assert world.left.refused == []


@pytest.mark.parametrize(
    ("link", "least", "most"),
    [
        (Link(loss=0.3), 1300, 1500),  # 1,400 of 2,000, with a standard deviation of 20.5
        (Link(duplication=0.3), 2500, 2700),
        (Link(loss=1.0), 0, 0),
        (Link(largest=0), 0, 0),
        (Link(), 2000, 2000),
    ],
)
def test_loss_and_duplication_are_what_was_asked_for(link: Link, least: int, most: int) -> None:
    world = World(link=link)
    for _ in range(2000):
        world.left.send(RIGHT)
    world.run()
    assert least <= len(world.right.heard) <= most


def test_what_dies_of_its_ttl_is_not_lost() -> None:
    world = World(link=Link(loss=0.5))
    for _ in range(50):
        world.left.send(RIGHT, ttl=1)
    world.run()
    assert len(world.left.refused) == 50


def test_jitter_keeps_the_order_and_reordering_does_not() -> None:
    def arrivals(link: Link) -> list[tuple[float, int]]:
        world = World(link=link)
        for number in range(200):
            world.network.at(number / 1000, world.left.send, RIGHT, bytes([number]))
        world.run()
        return [(at - data[0] / 1000, data[0]) for at, data, _ in world.right.heard]

    jittered = arrivals(Link(latency=0.02, jitter=0.03))
    assert [number for _, number in jittered] == list(range(200))
    assert max(delay for delay, _ in jittered) > 0.04
    assert min(delay for delay, _ in jittered) >= 0.02 - 1e-9
    overtaken = arrivals(Link(latency=0.02, reordering=0.2))
    assert sorted(number for _, number in overtaken) == list(range(200))
    late = [number for delay, number in overtaken if delay > 0.021]
    assert 15 < len(late) < 65
    assert [number for _, number in overtaken] != list(range(200))


def test_neighbours_reach_each_other_without_a_hop() -> None:
    world = World(shared=kinds.apdf())
    there = Endpoint(world.right_host.address, RIGHT.port)
    world.left.send(there, ttl=1)
    world.run()
    assert [remote.host for _, _, remote in world.right.heard] == [world.left_host.address]
    assert world.left_gateways[0].nat.flows(world.network.now) == 0


@pytest.mark.parametrize("hairpin", [True, False])
def test_hairpin_joins_hosts_by_the_public_address(hairpin: bool) -> None:
    world = World(shared=(replace(kinds.eim()[0], hairpin=hairpin),))
    public = world.left_host.public
    assert public == world.right_host.public
    world.right.send(Endpoint("192.0.2.200", 9), ttl=2)  # opens
    world.left.send(Endpoint(public, RIGHT.port), b"hairpin")
    world.run()
    expected = [(b"hairpin", Endpoint(public, LEFT.port))] if hairpin else []
    assert [(data, remote) for _, data, remote in world.right.heard] == expected
    assert ((ErrorKind.PORT_UNREACHABLE, public) in world.left.reporters) is not hairpin


def test_carrier_that_hairpins_joins_its_customers() -> None:
    world = World(kinds.apdf(), kinds.apdf(), shared=(replace(kinds.LINUX, hairpin=True),))
    assert len(world.left_gateways) == 2
    public = world.left_host.public
    to_right, to_left = Endpoint(public, RIGHT.port), Endpoint(public, LEFT.port)
    world.left.send(to_right)
    world.run()
    world.right.send(to_left)
    world.run()
    assert [remote for _, _, remote in world.left.heard] == [to_right]


def test_free_ports_are_those_of_linux_and_differ() -> None:
    world = World()
    ports = {
        opened.port
        for _ in range(500)
        if (opened := world.left_host.open(0, lambda *_: None)) is not None
    }
    assert len(ports) == 500
    assert all(port in EPHEMERAL for port in ports)
    assert world.left_host.open(LEFT.port, lambda *_: None) is None


def test_attacker_may_claim_any_source() -> None:
    world = World(kinds.apdf(), kinds.apdf())
    world.right.send(LEFT)
    world.left.send(RIGHT)
    world.run()
    world.network.inject(LEFT, RIGHT, b"forged")
    world.network.inject(LEFT._replace(port=1), RIGHT, b"dropped")
    world.run()
    assert [data for _, data, _ in world.right.heard].count(b"forged") == 1
    assert b"dropped" not in [data for _, data, _ in world.right.heard]


def test_forged_refusal_has_to_quote_a_mapping() -> None:
    world = World(kinds.apdf())
    world.left.send(RIGHT)
    world.run()
    kind = ErrorKind.HOST_UNREACHABLE
    world.network.forge(kind, "192.0.2.66", LEFT, RIGHT._replace(port=1))
    world.network.forge(kind, "192.0.2.66", LEFT, RIGHT)
    world.run()
    assert world.left.reporters == [(kind, "192.0.2.66")]


def test_machines_without_rest_are_a_failure() -> None:
    network = Network(random.Random(1))

    def again() -> None:
        network.at(network.now, again)

    network.at(0.0, again)
    with pytest.raises(AssertionError, match="do not come to rest"):
        network.run(1.0)


def test_address_belongs_to_one() -> None:
    network = Network(random.Random(1))
    network.add_gateway(Behaviour(), "198.51.100.2", "192.168.1.1")
    with pytest.raises(AssertionError, match="twice"):
        network.add_host("198.51.100.2")
