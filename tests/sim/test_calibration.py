"""The simulated gateways do what the kernel's do, packet by packet.

Each script says who sends what where and when. Both worlds play it in step: a packet is sent in
the kernel lab, and in the simulation at the very time that this took place, so that a machine that
is slow changes the script and not the result. What the simulation says has to come of it (from
which port it arrives, who refuses it) must come in the kernel, and at the end nothing else may
have.

All scripts of a gateway are played at the same time, each on ports of its own.
"""

from __future__ import annotations

import random
import select
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nat_traverse.lab import Kind, Lab, SharedLab
from nat_traverse.model import Endpoint, NetworkError
from sim.kinds import LAB, LINUX
from sim.network import Link, Network
from support.lab import need_lab, refusal, udp_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nat_traverse.lab import Node
    from sim.nat import Behaviour
    from sim.network import Socket

# Seconds after which gateways forget, here and there; the kernel counts in whole seconds.
ONE_WAY, TWO_WAY = 2, 4

HOPS = 2

# Each script has ports of its own, from here on.
FIRST_PORT, SPACING = 41_000, 10


class Do(NamedTuple):
    """At a time (s), the socket `by` sends to the port of the other side's socket `to`.

    L is the left side's, A and B are the right side's. HEARD: to where the last packet came from.
    """

    at: float
    by: str
    to: str
    ttl: int | None = None


HEARD = "heard"

SCRIPTS: dict[str, list[Do]] = {
    "a mapping lets in whom it was made for": [
        Do(0, "L", "A"),
        Do(0.1, "A", HEARD),
        Do(0.2, "L", "A"),
        Do(0.3, "A", HEARD),
    ],
    "every destination has a mapping": [
        Do(0, "L", "A"),
        Do(0.1, "L", "B"),
        Do(0.2, "L", "A"),
        Do(0.3, "L", "B"),
        Do(0.4, "A", HEARD),
        Do(0.5, "B", HEARD),
    ],
    "an uninvited packet": [
        Do(0, "A", "L"),
        Do(0.1, "L", "A"),  # from another port, if the gateway took it
        Do(0.2, "A", HEARD),
        Do(0.3, "L", "B"),  # and what about those that were not taken?
        Do(0.4, "A", "L"),
        Do(0.5, "B", HEARD),
    ],
    "an uninvited packet after another mapping": [
        Do(0, "L", "B"),
        Do(0.1, "A", "L"),
        Do(0.2, "L", "A"),
        Do(0.3, "A", HEARD),
        Do(0.4, "B", HEARD),
    ],
    "silence heals": [
        Do(0, "A", "L"),
        Do(0.1, "L", "A"),
        Do(3, "L", "A"),
        Do(3.1, "A", HEARD),
    ],
    "sending keeps the wrong port": [
        Do(0, "A", "L"),
        Do(0.1, "L", "A"),
        Do(1.3, "L", "A"),
        Do(2.5, "L", "A", 2),  # dies behind the gateway, and counts
        Do(3.7, "L", "A"),
        Do(6.5, "L", "A"),
    ],
    "uninvited packets keep the gateway's flow": [
        Do(0, "A", "L"),
        Do(1.2, "A", "L"),
        Do(2.4, "A", "L"),
        Do(3.6, "L", "A"),
    ],
    "the gateway forgets a single one": [
        Do(0, "A", "L"),
        Do(2.8, "L", "A"),
    ],
    "a low TTL opens": [
        Do(0, "L", "A", 2),
        Do(0.1, "A", "L"),
        Do(0.2, "L", "A"),
        Do(0.3, "A", HEARD),
    ],
    "TTL 1 opens a second gateway at most": [
        Do(0, "L", "A", 1),
        Do(0.1, "A", "L"),
        Do(0.2, "L", "A"),
    ],
    "TTL 1 refreshes": [
        Do(0, "L", "A"),
        Do(1.2, "L", "A", 1),
        Do(2.6, "A", HEARD),
    ],
    "a far gateway counts, too": [
        Do(0, "A", "L", HOPS),
        Do(0.1, "L", "A"),
        Do(0.2, "A", HEARD, HOPS),
        Do(0.3, "A", HEARD, HOPS + 1),
        Do(0.4, "A", HEARD, HOPS + 2),
        Do(0.5, "A", HEARD, HOPS + 3),
        Do(0.6, "L", "A", 3),
        Do(0.7, "L", "A", 4),
        Do(0.8, "L", "A", 5),
    ],
    "a packet with its last hop is taken": [
        Do(0, "A", "L", HOPS + 1),
        Do(0.1, "L", "A"),
    ],
    "an unused mapping ends": [
        Do(0, "L", "A"),
        Do(2.8, "A", HEARD),
    ],
    "an answer refreshes": [
        Do(0, "L", "A"),
        Do(1.2, "A", HEARD),
        Do(2.6, "A", HEARD),  # and makes a stream of it, which lives longer
        Do(5.8, "A", HEARD),
        Do(10.6, "A", HEARD),
    ],
    "a quick exchange makes no stream": [
        Do(0, "L", "A"),
        Do(0.1, "A", HEARD),
        Do(0.2, "L", "A"),
        Do(3, "A", HEARD),
    ],
    "a closed port": [
        Do(0, "A", "closed"),
        Do(0.1, "L", "A"),
    ],
}


OFFSETS = {"L": 0, "A": 1, "B": 2, "closed": 5}


class Outcome(NamedTuple):
    """What came of a packet: at which socket it arrived and from where, or who refused it."""

    arrived: str = ""
    source: str = ""
    errno: int = 0
    reporter: str = ""


@dataclass
class Story:
    """What is remembered of one script in one world: where packets came from last."""

    first_port: int
    heard: dict[str, Endpoint] = field(default_factory=dict)
    others: list[int] = field(default_factory=list)

    def name(self, source: Endpoint) -> str:
        """Return an endpoint as both worlds call it: chosen ports go by their order."""
        offset = source.port - self.first_port
        if 0 <= offset < SPACING:
            return f"{source.host} + {offset}"
        if source.port not in self.others:
            self.others.append(source.port)
        return f"{source.host}, other {self.others.index(source.port)}"

    def target(self, step: Do, publics: Sequence[str]) -> Endpoint:
        if step.to == HEARD:
            return self.heard[step.by]
        return Endpoint(publics[0 if step.to in ("L", "closed") else 1], self.port(step.to))

    def port(self, name: str) -> int:
        return self.first_port + OFFSETS[name]


class Simulated:
    """The simulation, and what came of the last packet."""

    def __init__(self, left: Sequence[Behaviour], shared: Sequence[Behaviour] = ()) -> None:
        self.network = Network(random.Random(1), Link(hops=HOPS, latency=0.0005))
        above = self.network.add_shared(shared)
        sides = [self.network.add_side(0, left, above), self.network.add_side(1, (), above)]
        self.hosts = [host for host, _ in sides]
        self.sockets: dict[tuple[int, str], Socket] = {}
        self.outcome = Outcome()

    def open(self, story: Story, name: str) -> None:
        def receive(_: bytes, source: Endpoint) -> None:
            story.heard[name] = source
            self.outcome = Outcome(arrived=name, source=story.name(source))

        def refuse(error: NetworkError, _: Endpoint) -> None:
            self.outcome = Outcome(errno=error.errno, reporter=reporter(error.reporter))

        host = self.hosts[0 if name == "L" else 1]
        opened = host.open(story.port(name), receive, refuse)
        assert opened is not None
        self.sockets[story.first_port, name] = opened

    def send(self, story: Story, step: Do, at: float) -> Outcome:
        self.network.run(at)
        self.outcome = Outcome()
        to = story.target(step, [host.public for host in self.hosts])
        self.network.send(self.sockets[story.first_port, step.by], to, b"x", step.ttl)
        self.network.run(self.network.now + 0.01)  # several times what it takes
        return self.outcome


class Real:
    """The lab, and sockets in it."""

    def __init__(self, lab: Lab | SharedLab, stack: ExitStack) -> None:
        self.lab = lab
        self.stack = stack
        self.sockets: dict[tuple[int, str], socket.socket] = {}
        for node in lab.nodes.values():
            # The kernel tells one host of six refusals, then of one a second.
            node.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit"])

    def open(self, story: Story, name: str) -> None:
        node: Node = self.lab.left if name == "L" else self.lab.right
        opened = self.stack.enter_context(udp_socket(node, story.port(name), errors=True))
        self.sockets[story.first_port, name] = opened

    def send(self, story: Story, step: Do, data: bytes) -> None:
        sender = self.sockets[story.first_port, step.by]
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, step.ttl or 64)
        publics = [host.public.v4 for host in (self.lab.left, self.lab.right)]
        to = story.target(step, [address for address in publics if address])
        sender.sendto(data, to[:2])

    def await_outcome(self, story: Story, step: Do, expected: Outcome, data: bytes) -> Outcome:
        """Wait for what is expected, and return what really came."""
        if expected.arrived:
            received, address = self.sockets[story.first_port, expected.arrived].recvfrom(100)
            source = story.heard[expected.arrived] = Endpoint(*address)
            assert received == data, "that is another packet"
            return Outcome(arrived=expected.arrived, source=story.name(source))
        if expected.errno:
            refused = refusal(self.sockets[story.first_port, step.by])
            return Outcome(errno=refused.errno, reporter=reporter(refused.reporter))
        return Outcome()

    def leftovers(self) -> list[tuple[int, str]]:
        """Return the sockets at which something has come that nobody waited for."""
        poller = select.poll()
        names = {}
        for name, opened in self.sockets.items():
            poller.register(opened, select.POLLIN | select.POLLERR)
            names[opened.fileno()] = name
        return [names[descriptor] for descriptor, _ in poller.poll(300)]


def reporter(address: str | None) -> str:
    """Return who reports, as both worlds call it: they number their routers differently."""
    assert address is not None
    is_router = address.startswith("192.0.2.") or address in {"198.51.100.1", "203.0.113.1"}
    return "a router" if is_router else address


def play(scripts: dict[str, list[Do]], simulated: Simulated, real: Real) -> list[str]:
    """Play all scripts at once in both worlds; return what came of each packet."""
    told = []
    stories: dict[str, tuple[Story, Story]] = {}
    for number, (title, script) in enumerate(scripts.items()):
        first_port = FIRST_PORT + SPACING * number
        stories[title] = here, there = Story(first_port), Story(first_port)
        for name in sorted({step.by for step in script} | {"L", "A"}):
            simulated.open(here, name)
            real.open(there, name)
    timeline = sorted(
        (
            (step.at, title, number)
            for title in scripts
            for number, step in enumerate(scripts[title])
        ),
    )
    start = time.monotonic()
    for at, title, number in timeline:
        step = scripts[title][number]
        here, there = stories[title]
        data = f"{title}: {number}".encode()
        # The pauses are what is tested: how long gateways remember.
        time.sleep(max(0.0, start + at - time.monotonic()))
        now = time.monotonic() - start
        real.send(there, step, data)
        expected = simulated.send(here, step, now)
        outcome = real.await_outcome(there, step, expected, data)
        assert outcome == expected, f"{data.decode()}, after {now:.3f} s"
        told.append(f"{data.decode()}: {outcome}")
    assert real.leftovers() == []
    return told


def forgetful(behaviours: Sequence[Behaviour]) -> list[Behaviour]:
    return [replace(one, one_way=ONE_WAY, two_way=TWO_WAY) for one in behaviours]


@pytest.fixture(scope="module", autouse=True)
def _lab_can_be_built() -> None:
    need_lab()


def play_all(kind: Kind) -> list[str]:
    with (
        Lab(kind, Kind.NONE, hops=HOPS, udp_timeouts=(ONE_WAY, TWO_WAY)) as lab,
        ExitStack() as stack,
    ):
        return play(SCRIPTS, Simulated(forgetful(LAB[kind])), Real(lab, stack))


@pytest.fixture(scope="module")
def plays(_lab_can_be_built: None) -> Iterator[dict[Kind, Future[list[str]]]]:
    # All kinds at the same time: they do little but wait.
    with ThreadPoolExecutor(len(LAB)) as pool:
        yield {kind: pool.submit(play_all, kind) for kind in LAB}


@pytest.mark.parametrize("kind", LAB)
def test_simulated_gateway_does_what_the_kernel_does(
    kind: Kind, plays: dict[Kind, Future[list[str]]]
) -> None:
    print("\n".join(plays[kind].result()))  # noqa: T201 (how the story went)


SHARED = {
    "two hosts behind one gateway": [
        Do(0, "L", "A"),
        Do(0.1, "A", "L"),
        Do(0.2, "L", "A"),
        Do(0.3, "A", "L"),
    ],
}


@pytest.mark.parametrize("hairpin", [False, True])
def test_simulated_hairpin_does_what_the_kernel_does(hairpin: bool) -> None:
    with SharedLab(hairpin=hairpin) as lab, ExitStack() as stack:
        shared = [replace(LINUX, hairpin=hairpin)]
        play(SHARED, Simulated((), shared), Real(lab, stack))
