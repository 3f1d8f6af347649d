"""Which nodes the lab has, how they are joined and addressed. Pure: nothing is made here.

    left host ── [inner gateway] ── gateway ── router … router ── gateway ── right host

Every link is a pair of virtual Ethernet devices with networks of its own, so a packet's TTL falls
by one at every node it passes. The device towards the Internet is called `wan` on a gateway and
`eth0` on a host, the one away from it `lan`; those of a router are called `left` and `right`.

Public addresses come from the ranges for documentation (RFC 5737, RFC 3849), the others from
RFC 1918 and, behind a carrier's gateway, RFC 6598. A side is 1 on the left and 2 on the right:

    access link          198.51.100.0/30 left, 203.0.113.0/30 right   2001:db8:side:0::/64
    carrier's link       100.64.side.0/30                             2001:db8:side:1::/64
    LAN                  192.168.side.0/24                            the next of the side
    routers n and n + 1  192.0.2.(4n)/30                              2001:db8:0:n::/64
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from nat_traverse.lab import ruleset
from nat_traverse.lab.ruleset import Kind

# What Ethernet carries in one packet, in bytes of IP.
ETHERNET_MTU = 1500

# 192.0.2.0/24 holds the networks between this many routers; nobody needs as many.
_MOST_ROUTERS = 60

_SIDE_NAMES = {1: "left", 2: "right"}
_ACCESS_NETWORKS = {1: "198.51.100.0", 2: "203.0.113.0"}

# In every network the end nearer to the Internet has address 1, and the other one 2.
_UPPER, _LOWER = 1, 2


class Addresses(NamedTuple):
    """A node's address in each family, None where it has none."""

    v4: str | None
    v6: str | None


_NO_ADDRESS = Addresses(None, None)


class Families(NamedTuple):
    """Which address families a side of the network has."""

    v4: bool
    v6: bool


class Device(NamedTuple):
    """One end of a link: the node it belongs to and its name there."""

    node: str
    name: str


class Link(NamedTuple):
    """A link; `upper` is its end nearer to the Internet, `mtu` is in bytes of an IP packet."""

    upper: Device
    lower: Device
    mtu: int


class _Segment(NamedTuple):
    """The networks of one link."""

    v4: IPv4Network | None
    v6: IPv6Network | None

    def host(self, number: int) -> Addresses:
        return Addresses(
            str(self.v4[number]) if self.v4 else None, str(self.v6[number]) if self.v6 else None
        )


@dataclass(slots=True)
class Node:
    """One network namespace to be: the lines for `ip -batch`, the rules for nft."""

    name: str
    forwards: bool
    rules: str = ""
    address: Addresses = _NO_ADDRESS
    ip: list[str] = field(default_factory=list)

    def assign(self, device: str, segment: _Segment, number: int) -> None:
        """Give `device` the addresses of this number; the first call's become the node's own."""
        addresses = segment.host(number)
        if self.address == _NO_ADDRESS:
            self.address = addresses
        if segment.v4:
            self.ip.append(f"address add {addresses.v4}/{segment.v4.prefixlen} dev {device}")
        if segment.v6:
            self.ip.append(f"address add {addresses.v6}/{segment.v6.prefixlen} dev {device} nodad")

    def route(self, network: str, via: Addresses) -> None:
        """Send packets for `network` (or both families' `default`) to the neighbour `via`."""
        if via.v4 and ":" not in network:
            self.ip.append(f"route add {network} via {via.v4}")
        if via.v6 and (":" in network or network == "default"):
            self.ip.append(f"route add {network} via {via.v6}")


@dataclass(slots=True)
class Plan:
    """A whole network. The hosts are the nodes called left and right."""

    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    gateways: dict[str, list[str]] = field(default_factory=dict)  # of each host, innermost first
    routers: list[str] = field(default_factory=list)  # from left to right
    public: dict[str, Addresses] = field(default_factory=dict)  # of each host: what a peer must use

    def add(self, name: str, *, forwards: bool = False, rules: str = "") -> Node:
        """Add a node without links, and return it."""
        node = self.nodes[name] = Node(name, forwards, rules)
        return node

    def join(self, upper: Device, lower: Device, segment: _Segment, mtu: int) -> None:
        """Link two nodes and give both ends of the link their addresses."""
        self.links.append(Link(upper, lower, mtu))
        self.nodes[upper.node].assign(upper.name, segment, _UPPER)
        self.nodes[lower.node].assign(lower.name, segment, _LOWER)


def two_networks(
    left: tuple[Kind, Families],
    right: tuple[Kind, Families],
    *,
    hops: int,
    loss: float,
    mtu: int,
) -> Plan:
    """Plan a host behind a gateway on either side of `hops` routers.

    `loss` is in percent of the packets, each way. `mtu` is that of the links between the routers,
    or of the right access link where there is one router only.
    """
    plan = Plan()
    _add_routers(plan, hops, loss, mtu)
    _add_side(plan, 1, *left, ETHERNET_MTU)
    _add_side(plan, 2, *right, ETHERNET_MTU if hops > 1 else mtu)
    return plan


def one_network(families: Families, *, hairpin: bool) -> Plan:
    """Plan two hosts on the LAN of one `drop` gateway, which a router joins to the Internet."""
    plan = Plan()
    _add_routers(plan, 1, 0.0, ETHERNET_MTU)
    access, lan = _segments(1, 2, families)
    public = access.host(_LOWER)
    rules = ruleset.gateway(Kind.DROP)
    if hairpin and public.v4:
        rules += ruleset.hairpin(public.v4)
    gateway = plan.add("gateway", forwards=True, rules=rules)
    _attach(plan, 1, "gateway", access, ETHERNET_MTU)
    # The LAN ports of a home router are one bridge. Snooping would withhold multicast, and with it
    # IPv6's neighbour discovery, until somebody is heard asking for it.
    gateway.ip += ["link add lan type bridge mcast_snooping 0", "link set lan up"]
    gateway.assign("lan", lan, _UPPER)
    for number, name in enumerate(_SIDE_NAMES.values(), start=_LOWER):
        host = plan.add(name)
        port = Device("gateway", f"port{number}")
        plan.links.append(Link(port, Device(name, "eth0"), ETHERNET_MTU))
        gateway.ip.append(f"link set {port.name} master lan")
        host.assign("eth0", lan, number)
        host.route("default", lan.host(_UPPER))
        plan.gateways[name] = ["gateway"]
        plan.public[name] = Addresses(public.v4, host.address.v6)
    return plan


def _add_routers(plan: Plan, count: int, loss: float, mtu: int) -> None:
    """Lay a chain of routers. Each knows the way to the left; all else is to the right."""
    if not 1 <= count <= _MOST_ROUTERS:
        raise ValueError(f"there can be 1 to {_MOST_ROUTERS} routers, not {count}")
    for number in range(1, count + 1):
        # The losses of several routers would add up, so the first one has them all.
        rules = ruleset.router("left", "right", loss if number == 1 else 0.0)
        name = f"router{number}"
        router = plan.add(name, forwards=True, rules=rules)
        plan.routers.append(name)
        if number == 1:
            continue
        before = plan.nodes[f"router{number - 1}"]
        link = _between_routers(number - 1)
        plan.join(Device(before.name, "right"), Device(name, "left"), link, mtu)
        before.route("default", link.host(_LOWER))
        router.route("198.51.100.0/24", link.host(_UPPER))
        router.route("2001:db8:1::/48", link.host(_UPPER))
        for further in range(1, number - 1):
            router.route(str(_between_routers(further).v4), link.host(_UPPER))
            router.route(str(_between_routers(further).v6), link.host(_UPPER))


def _add_side(plan: Plan, side: int, kind: Kind, families: Families, mtu: int) -> None:
    """Hang gateways and a host below the nearest router: node n is below segment n."""
    host = _SIDE_NAMES[side]
    segments = _segments(side, kind.layers + 1, families)
    rules = ruleset.gateway(Kind.DROP if kind is Kind.DOUBLE else kind)
    gateways = [f"{host}-gateway{number}" for number in range(kind.layers, 0, -1)]
    for name in gateways:
        plan.add(name, forwards=True, rules=rules)
    plan.add(host)
    chain = [*gateways, host]
    _attach(plan, side, chain[0], segments[0], mtu)
    for upper, lower, segment in zip(chain, chain[1:], segments[1:], strict=False):
        device = Device(lower, _uplink(lower))
        plan.join(Device(upper, "lan"), device, segment, ETHERNET_MTU)
        plan.nodes[lower].route("default", segment.host(_UPPER))
    for name, below, further in zip(gateways, segments[1:], segments[2:], strict=False):
        # In IPv4 what lies two layers down is behind a translation and needs no route.
        if further.v6:
            plan.nodes[name].route(str(further.v6), below.host(_LOWER))
    plan.gateways[host] = gateways[::-1]
    plan.public[host] = Addresses(segments[0].host(_LOWER).v4, segments[-1].host(_LOWER).v6)


def _attach(plan: Plan, side: int, name: str, access: _Segment, mtu: int) -> None:
    """Join the outermost node of a side to its router, which routes the side's networks to it."""
    router = plan.nodes[plan.routers[0 if side == 1 else -1]]
    plan.join(Device(router.name, _SIDE_NAMES[side]), Device(name, _uplink(name)), access, mtu)
    plan.nodes[name].route("default", access.host(_UPPER))
    router.route(f"2001:db8:{side}::/48", access.host(_LOWER))


def _uplink(name: str) -> str:
    return "eth0" if name in _SIDE_NAMES.values() else "wan"


def _segments(side: int, count: int, families: Families) -> list[_Segment]:
    """Return the networks of a side, from its access link to its LAN."""
    access, carrier, lan = (
        f"{_ACCESS_NETWORKS[side]}/30",
        f"100.64.{side}.0/30",
        f"192.168.{side}.0/24",
    )
    v4 = {1: [access], 2: [access, lan], 3: [access, carrier, lan]}[count]
    return [
        _Segment(
            IPv4Network(network) if families.v4 else None,
            IPv6Network(f"2001:db8:{side}:{number}::/64") if families.v6 else None,
        )
        for number, network in enumerate(v4)
    ]


def _between_routers(number: int) -> _Segment:
    """Return the networks between the routers `number` and `number` + 1."""
    return _Segment(
        IPv4Network(f"192.0.2.{4 * number}/30"), IPv6Network(f"2001:db8:0:{number}::/64")
    )
