"""A simulated network on a virtual clock: hosts, gateways above them, and an Internet between.

    host ── [gateway ...] ── router 1 … router n ── [gateway ...] ── host

A packet passes its own gateways at once, crosses the Internet in `Link.latency` seconds, and meets
the far gateways as they are when it arrives. Every gateway and router takes one from the TTL. Loss
and the other troubles of `Link` happen in the Internet only: what dies of its TTL sees none.

All that is random comes from the generator given at the start: a failure is a seed number.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from sim.nat import Behaviour, Nat

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

# The networks of the kernel lab, so that both tell the same story (RFC 5737).
_PUBLIC = ("198.51.100", "203.0.113")

# What Linux sends with.
DEFAULT_TTL = 64

# Where Linux takes a free port from (net.ipv4.ip_local_port_range).
EPHEMERAL = range(32_768, 61_000)

# Seconds from a host to its gateway and back, or to its neighbour on the LAN.
LAN_TRIP = 0.001

# More events at one instant than any run needs: machines that answer each other without end are a
# failure, not a hang.
_MOST_AT_ONCE = 20_000

_ERRNO = {
    ErrorKind.PORT_UNREACHABLE: errno.ECONNREFUSED,
    ErrorKind.TIME_EXCEEDED: errno.EHOSTUNREACH,
    ErrorKind.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    ErrorKind.NETWORK_UNREACHABLE: errno.ENETUNREACH,
    ErrorKind.PROHIBITED: errno.EACCES,
}


@dataclass(frozen=True, slots=True)
class Link:
    """The Internet, in each direction.

    hops         routers
    latency      seconds one way
    jitter       seconds, at most, on top of that; packets stay in order
    loss         chance that a packet is lost
    duplication  chance that it arrives twice
    reordering   chance that it is overtaken: it takes up to another `latency` and 20 ms
    largest      bytes of a datagram; larger ones vanish
    icmp         whether anybody reports anything
    """

    hops: int = 8
    latency: float = 0.02
    jitter: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    largest: int = 65_507
    icmp: bool = True


# What a packet may be held back at least when it is overtaken (s): several times the distance of
# packets in a burst.
_OVERTAKEN = 0.02


class Socket:
    """A UDP socket of a host. `receive` and `refuse` are called with what comes, and from where."""

    __slots__ = ("endpoint", "host", "port", "receive", "refuse")

    def __init__(
        self,
        host: Host,
        port: int,
        receive: Callable[[bytes, Endpoint], None],
        refuse: Callable[[NetworkError, Endpoint], None],
    ) -> None:
        self.host = host
        self.port = port
        self.endpoint = Endpoint(host.address, port)
        self.receive = receive
        self.refuse = refuse

    def close(self) -> None:
        """Close it; what comes later is refused by the host."""
        self.host.sockets.pop(self.port, None)


# What stays the same of a packet on its way: the data, who is told what became of it, and where
# that one sent it. The rest is in the arguments of whoever has it.
_Packet = tuple[bytes, Socket | None, Endpoint]


@dataclass(eq=False, slots=True)
class _Node:
    """A host or gateway; `up` is the gateway above it, None for one on the Internet."""

    address: str
    up: Gateway | None
    index: int
    latest: float = 0.0  # when the last packet in order arrives here from the Internet

    @property
    def top(self) -> _Node:
        node: _Node = self
        while node.up is not None:
            node = node.up
        return node

    @property
    def public(self) -> str:
        """The address by which others reach it."""
        return self.top.address


@dataclass(eq=False, slots=True)
class Host(_Node):
    """A host and its sockets, by port."""

    network: Network = field(kw_only=True)
    sockets: dict[int, Socket] = field(default_factory=dict)

    def open(
        self,
        port: int,
        receive: Callable[[bytes, Endpoint], None],
        refuse: Callable[[NetworkError, Endpoint], None] | None = None,
    ) -> Socket | None:
        """Open a socket on `port` (0: any free one); None if it is taken."""
        rng = self.network.random
        while port == 0:
            drawn = EPHEMERAL[int(rng.random() * len(EPHEMERAL))]
            port = 0 if drawn in self.sockets else drawn
        if port in self.sockets:
            return None
        opened = Socket(self, port, receive, refuse or _ignore)
        self.sockets[port] = opened
        return opened


@dataclass(eq=False, slots=True)
class Gateway(_Node):
    """A gateway: `inside` is its address towards the hosts below it."""

    inside: str = field(kw_only=True)
    nat: Nat = field(kw_only=True)
    below: dict[str, Host | Gateway] = field(default_factory=dict)
    refused: int = 0  # packets from below that got no mapping


class Network:
    """Everything, and the clock."""

    def __init__(self, rng: random.Random, link: Link | None = None, now: float = 0.0) -> None:
        self.random = rng
        self.link = link or Link()
        self.now = now
        self.stopped = False
        self.delivered = 0  # datagrams that reached a socket
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._nodes = 0
        self._tops: dict[str, Host | Gateway] = {}
        # The same few values again and again; by identity, as enumerations hash slowly.
        self._errors: dict[tuple[int, str], NetworkError] = {}

    # -- building -----------------------------------------------------------------------------

    def add_host(self, address: str, up: Gateway | None = None) -> Host:
        """Add a host, below a gateway or on the Internet."""
        host = Host(address, up, self._nodes, network=self)
        self._join(host)
        return host

    def add_gateway(
        self, behaviour: Behaviour, address: str, inside: str, up: Gateway | None = None
    ) -> Gateway:
        """Add a gateway, whose address towards the hosts below it is `inside`."""
        nat = Nat(behaviour, address, self.random)
        gateway = Gateway(address, up, self._nodes, inside=inside, nat=nat)
        self._join(gateway)
        return gateway

    def add_side(
        self, number: int, behaviours: Sequence[Behaviour], above: Gateway | None = None
    ) -> tuple[Host, list[Gateway]]:
        """Add a host and its gateways; both are given and returned innermost first.

        Side 0 is the left, 1 the right. `above` is the innermost of the gateways that they share;
        it and those above it are returned as well.
        """
        up = above
        if above is None:
            address = f"{_PUBLIC[number]}.2"
        else:
            address = f"{above.inside.rpartition('.')[0]}.{number + 2}"
        for level, behaviour in enumerate(reversed(behaviours), start=1):
            last = level == len(behaviours)
            inner = f"192.168.{number + 1}" if last else f"100.{63 + level}.{number + 1}"
            up = self.add_gateway(behaviour, address, f"{inner}.1", up)
            address = f"{inner}.2"
        host = self.add_host(address, up)
        gateways: list[Gateway] = []
        while up is not None:
            gateways.append(up)
            up = up.up
        return host, gateways

    def add_shared(self, behaviours: Sequence[Behaviour]) -> Gateway | None:
        """Add gateways that both sides are going to be behind, and return the innermost.

        One of them alone has both hosts or their gateways on its LAN.
        """
        up: Gateway | None = None
        address = f"{_PUBLIC[0]}.2"
        for level, behaviour in enumerate(reversed(behaviours), start=1):
            network = "192.168.0" if level == len(behaviours) else f"100.{63 + level}.0"
            up = self.add_gateway(behaviour, address, f"{network}.1", up)
            address = f"{network}.2"
        return up

    # -- time ---------------------------------------------------------------------------------

    def at(self, time: float, function: Callable[..., None], *arguments: object) -> None:
        """Have something done at a time."""
        self._order += 1
        heappush(self._heap, (time, self._order, function, arguments))

    def stop(self) -> None:
        """End `run` after what is being done."""
        self.stopped = True

    def run(self, until: float) -> None:
        """Let time pass, until then or until somebody calls `stop`."""
        self.stopped = False
        heap = self._heap
        at_once = 0
        while heap and heap[0][0] <= until:
            time, _, function, arguments = heappop(heap)
            if time > self.now:
                self.now = time
                at_once = 0
            at_once += 1
            assert at_once < _MOST_AT_ONCE, "the machines do not come to rest"
            function(*arguments)
            if self.stopped:
                return
        self.now = max(self.now, until)

    # -- packets ------------------------------------------------------------------------------

    def send(self, socket: Socket, remote: Endpoint, data: bytes, ttl: int | None = None) -> None:
        """Send a datagram."""
        left = DEFAULT_TTL if ttl is None else ttl
        source = socket.endpoint
        address = remote.host
        packet = (data, socket, remote)
        top: _Node = socket.host
        while (gateway := top.up) is not None:
            neighbour = gateway.below.get(address)
            if neighbour is not None:
                self.at(
                    self.now + LAN_TRIP,
                    *(self._arrive, neighbour, source, remote.port, left, packet),
                )
                return
            if address == gateway.address:
                self._meet_itself(gateway, source, left, packet)
                return
            left -= 1
            if left <= 0:
                gateway.nat.touch(source, remote, self.now)
                self._report(ErrorKind.TIME_EXCEEDED, gateway.inside, packet, LAN_TRIP)
                return
            mapped = gateway.nat.outbound(source, remote, self.now)
            if mapped is None:
                gateway.refused += 1
                return
            source = mapped
            top = gateway
        self._cross(top.index, source, left, packet)

    def inject(
        self, source: Endpoint, remote: Endpoint, data: bytes, ttl: int = DEFAULT_TTL
    ) -> None:
        """Put a datagram into the Internet by hand, from whatever source it claims."""
        self._cross(self._nodes, source, ttl, (data, None, remote))

    def forge(self, kind: ErrorKind, reporter: str, source: Endpoint, remote: Endpoint) -> None:
        """Put an ICMP message into the Internet that quotes a packet from `source` to `remote`."""
        self.at(self.now + self.link.latency, self._arrive_forged, kind, reporter, source, remote)

    # -- below --------------------------------------------------------------------------------

    def _join(self, node: Host | Gateway) -> None:
        self._nodes += 1
        there = self._tops if node.up is None else node.up.below
        assert node.address not in there, f"{node.address} twice"
        there[node.address] = node

    def _cross(self, index: int, source: Endpoint, left: int, packet: _Packet) -> None:
        """Take a packet across the Internet from the node of this index."""
        link = self.link
        if left <= link.hops:
            delay = LAN_TRIP + 2 * link.latency * left / link.hops
            self._report(ErrorKind.TIME_EXCEEDED, _router(index, left), packet, delay)
            return
        data, _, remote = packet
        top = self._tops.get(remote.host)
        if top is None or len(data) > link.largest:
            return
        chance = self.random.random
        copies = 2 if link.duplication and chance() < link.duplication else 1
        for _ in range(copies):
            if link.loss and chance() < link.loss:
                continue
            time = self.now + link.latency
            if link.reordering and chance() < link.reordering:
                time += _OVERTAKEN + link.latency * chance()
            elif link.jitter:
                time = top.latest = max(top.latest, time + link.jitter * chance())
            self._order += 1
            arguments = (top, source, remote.port, left - link.hops, packet)
            heappush(self._heap, (time, self._order, self._arrive, arguments))

    def _arrive(
        self, node: Host | Gateway, source: Endpoint, port: int, left: int, packet: _Packet
    ) -> None:
        """Take a packet to a node from above, and down from there."""
        while isinstance(node, Gateway):
            inner = node.nat.inbound(source, port, self.now)
            if inner is None:
                if node.nat.refuses:
                    self._report_across(ErrorKind.PORT_UNREACHABLE, packet)
                return
            left -= 1
            if left <= 0:
                self._report_across(ErrorKind.TIME_EXCEEDED, packet)
                return
            node, port = node.below[inner.host], inner.port
        found = node.sockets.get(port)
        if found is None:
            self._report_across(ErrorKind.PORT_UNREACHABLE, packet)
            return
        self.delivered += 1
        found.receive(packet[0], source)

    def _meet_itself(self, gateway: Gateway, source: Endpoint, left: int, packet: _Packet) -> None:
        """Take a packet from below to the gateway's own address."""
        if not gateway.nat.behaviour.hairpin:
            self._report(ErrorKind.PORT_UNREACHABLE, gateway.address, packet, LAN_TRIP)
            return
        remote = packet[2]
        mapped = gateway.nat.outbound(source, remote, self.now)
        if mapped is None:
            gateway.refused += 1
            return
        arguments = (gateway, mapped, remote.port, left, packet)
        self.at(self.now + LAN_TRIP, self._arrive, *arguments)

    def _report_across(self, kind: ErrorKind, packet: _Packet) -> None:
        """Report to a sender on the other side.

        Whoever reports, gateways translate its address: what is read is what was sent to.
        """
        link = self.link
        if link.loss and self.random.random() < link.loss:
            return
        self._report(kind, packet[2].host, packet, LAN_TRIP + link.latency)

    def _report(self, kind: ErrorKind, reporter: str, packet: _Packet, delay: float) -> None:
        """Take an ICMP message to the sender. Its mapping is there: the packet has just used it."""
        _, sender, remote = packet
        if self.link.icmp and sender is not None:
            arguments = (kind, reporter, sender, remote)
            self._order += 1
            heappush(self._heap, (self.now + delay, self._order, self._refuse, arguments))

    def _refuse(self, kind: ErrorKind, reporter: str, socket: Socket, remote: Endpoint) -> None:
        if socket.host.sockets.get(socket.port) is not socket:
            return
        error = self._errors.get((id(kind), reporter))
        if error is None:
            error = NetworkError(kind, _ERRNO.get(kind, errno.EHOSTUNREACH), reporter)
            self._errors[id(kind), reporter] = error
        socket.refuse(error, remote)

    def _arrive_forged(
        self, kind: ErrorKind, reporter: str, source: Endpoint, remote: Endpoint
    ) -> None:
        node = self._tops.get(source.host)
        port = source.port
        while isinstance(node, Gateway):
            mapping = node.nat.find(remote, port, self.now)
            if mapping is None:
                return
            node, port = node.below[mapping.source.host], mapping.source.port
        if node is not None and port in node.sockets:
            self._refuse(kind, reporter, node.sockets[port], remote)


@cache
def _router(index: int, number: int) -> str:
    """Return the address of the router that many hops away from a node on the Internet.

    The range is the one for documentation (RFC 5737), as in the kernel lab: no ladder may take it
    for a private one.
    """
    return f"192.0.2.{(index % 8) * 32 + number % 32}"


def _ignore(error: NetworkError, remote: Endpoint) -> None:
    del error, remote
