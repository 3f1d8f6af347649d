"""The lab: a plan made real in network namespaces, and what can be asked of it.

with Lab(Kind.DROP, Kind.RANDOM, loss=5) as lab:
    lab.left.popen(["my-program", "--listen", "40000"])
    lab.right.run(["my-program", "--connect", f"{lab.left.public.v4}:40000"])
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from nat_traverse.lab import plan as plans
from nat_traverse.lab import ruleset
from nat_traverse.lab.namespace import (
    LabError,
    Namespace,
    close_namespaces,
    missing_tool,
    open_namespaces,
    run_scripts,
    system_environment,
)
from nat_traverse.lab.ruleset import Kind

if TYPE_CHECKING:
    from types import TracebackType

    from nat_traverse.lab.plan import Addresses, Plan

_COUNTER = re.compile(r"counter (\w+) \{\s*packets (\d+) bytes (\d+)")

# A link without offload: what is larger than one packet is cut by software before it is sent, as
# hardware would do it on a wire.
_NO_OFFLOAD = "gso_max_segs 1"


class Node:
    """A host, gateway or router: commands run in it with the methods of its namespace."""

    def __init__(self, name: str, namespace: Namespace, address: Addresses) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.command = namespace.command
        self.popen = namespace.popen
        self.run = namespace.run

    def conntrack(self) -> list[str]:
        """Return the node's connection tracking table, one line per entry.

        Raises `LabError` when it can't be read: without root that needs the conntrack program.
        """
        has_tool = shutil.which("conntrack", path=system_environment()["PATH"]) is not None
        listing = ["conntrack", "-L"] if has_tool else ["cat", "/proc/net/nf_conntrack"]
        result = self.run(listing)
        if result.returncode:
            hint = "" if has_tool else " (without root: apt-get install conntrack)"
            raise LabError(f"no connection tracking table: {result.stderr.strip()}{hint}")
        return result.stdout.splitlines()


class Host(Node):
    """One of the two hosts. A peer must use the addresses in `public` to reach it."""

    def __init__(
        self, name: str, namespace: Namespace, address: Addresses, public: Addresses
    ) -> None:
        super().__init__(name, namespace, address)
        self.public = public


class Traffic(NamedTuple):
    """What a counter saw of UDP; `bytes` are those of whole IP packets."""

    packets: int
    bytes: int


class Counters(NamedTuple):
    """UDP on the access links, counted by the Internet's routers.

    `left_sent` is what came out of the left gateway, packets that die of their TTL in the next
    router included; `right_received` is what was put on the wire to the right gateway. `fragments`
    are IP fragments of any kind, each counted at every router.
    """

    left_sent: Traffic
    left_received: Traffic
    right_sent: Traffic
    right_received: Traffic
    fragments: Traffic


class _Network:
    """A plan in a context manager. Attributes beyond `plan` exist inside the `with` block."""

    left: Host
    right: Host
    left_gateways: list[Node]  # innermost first
    right_gateways: list[Node]
    internet: list[Node]  # the routers, from left to right
    nodes: dict[str, Node]  # all of them, by name

    def __init__(self, plan: Plan, *, offload: bool, udp_timeouts: tuple[int, int] | None) -> None:
        self.plan = plan
        self._offload = offload
        self._udp_timeouts = udp_timeouts
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Self:
        planned = list(self.plan.nodes.values())
        self._namespaces = open_namespaces([node.forwards for node in planned])
        try:
            spaces = dict(zip(self.plan.nodes, self._namespaces, strict=True))
            run_scripts([(spaces["left"], _join_all(self.plan, spaces))])
            run_scripts((spaces[node.name], self._configure(node)) for node in planned)
        except BaseException:
            self.close()
            raise
        self.nodes = {
            node.name: Node(node.name, spaces[node.name], node.address) for node in planned
        }
        self.left, self.right = self._host("left"), self._host("right")
        self.left_gateways = [self.nodes[name] for name in self.plan.gateways["left"]]
        self.right_gateways = [self.nodes[name] for name in self.plan.gateways["right"]]
        self.internet = [self.nodes[name] for name in self.plan.routers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything, and whatever still runs inside. Closing twice does nothing."""
        close_namespaces(self._namespaces)
        self._namespaces = []

    def counters(self) -> Counters:
        """Return what the Internet's routers counted since the lab was built."""
        seen = [_read_counters(router) for router in self.internet]
        nearest, farthest = seen[0], seen[-1]
        fragments = [counters["fragments"] for counters in seen]
        return Counters(
            left_sent=nearest["from_left"],
            left_received=nearest["to_left"],
            right_sent=farthest["from_right"],
            right_received=farthest["to_right"],
            fragments=Traffic(*map(sum, zip(*fragments, strict=True))),
        )

    def _host(self, name: str) -> Host:
        node = self.nodes[name]
        host = Host(name, node.namespace, node.address, self.plan.public[name])
        self.nodes[name] = host
        return host

    def _configure(self, node: plans.Node) -> str:
        """Return the script that a node runs once its devices exist."""
        offload = "" if self._offload else _NO_OFFLOAD
        up = [
            f"link set dev {device.name} mtu {link.mtu} {offload} up"
            for link in self.plan.links
            for device in (link.upper, link.lower)
            if device.node == node.name
        ]
        script = _batch([*up, *node.ip])
        if node.rules:
            script += f"nft -f - <<'end'\n{node.rules}end\n"
        if self._udp_timeouts and node.name in {
            *self.plan.gateways["left"],
            *self.plan.gateways["right"],
        }:
            one_way, two_way = self._udp_timeouts
            script += f"echo {one_way} >/proc/sys/net/netfilter/nf_conntrack_udp_timeout\n"
            script += f"echo {two_way} >/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream\n"
        return script


class Lab(_Network):
    """Two hosts, each behind a gateway of its kind, and an Internet between them.

    `loss` is in percent of the packets, in each direction. `hops` counts the Internet's routers:
    a packet needs a TTL of gateways + `hops` + 1 to reach the other gateway. `ipv6` adds IPv6
    behind a stateful firewall to both sides, to one, or to none; None adds it where either kind
    needs it. `mtu`, in bytes, is that of the path's narrowest link, in the Internet. Without
    `offload` only packets that a wire would carry cross a link; it is slower and its counters
    count what a wire would carry. `udp_timeouts` are the seconds after which a gateway forgets a
    one-way and a two-way UDP mapping; None leaves the kernel's 30 and 120.

    Raises `LabError` from the `with` statement when the machine can't have it; see `available()`.
    """

    def __init__(
        self,
        left: Kind = Kind.DROP,
        right: Kind = Kind.DROP,
        *,
        loss: float = 0.0,
        hops: int = 2,
        ipv6: bool | Literal["left", "right"] | None = None,
        mtu: int = plans.ETHERNET_MTU,
        offload: bool = True,
        udp_timeouts: tuple[int, int] | None = None,
    ) -> None:
        if ipv6 is None:
            ipv6 = Kind.IPV6 in (left, right)
        families = [
            plans.Families(kind.has_ipv4, kind is Kind.IPV6 or ipv6 in (True, side))
            for kind, side in ((left, "left"), (right, "right"))
        ]
        plan = plans.two_networks(
            (left, families[0]), (right, families[1]), hops=hops, loss=loss, mtu=mtu
        )
        super().__init__(plan, offload=offload, udp_timeouts=udp_timeouts)


class SharedLab(_Network):
    """Two hosts on the LAN of one port-preserving gateway, and a router beyond it.

    They reach each other by their own addresses. By the gateway's public address they don't, as
    behind any Linux gateway that only masquerades, unless it hairpins (`ruleset.hairpin`).
    """

    def __init__(self, *, hairpin: bool = False, ipv6: bool = False) -> None:
        plan = plans.one_network(plans.Families(v4=True, v6=ipv6), hairpin=hairpin)
        super().__init__(plan, offload=True, udp_timeouts=None)


def available() -> str | None:
    """Return None when a lab can be built here, else a sentence that says why not."""
    if sys.platform != "linux":
        return f"network namespaces are a feature of Linux, and this is {sys.platform}"
    missing = missing_tool()
    if missing:
        return missing
    probe = _batch(["link add name probe0 type veth peer name probe1"])
    probe += f"nft -f - <<'end'\n{ruleset.gateway(Kind.REJECT)}{ruleset.router('a', 'b', 1.0)}end\n"
    try:
        (namespace,) = open_namespaces([True])
        try:
            run_scripts([(namespace, probe)])
        finally:
            namespace.close()
    except LabError as error:
        return str(error)
    return None


def _join_all(plan: Plan, spaces: dict[str, Namespace]) -> str:
    """Return the script that makes every link, to be run in the left host's namespace.

    `ip` first looks for the upper device's name where it runs, so it must run in a namespace that
    has no device of that name, and a host has none but `eth0`.
    """
    return _batch(
        [
            f"link add name {upper.name} netns {spaces[upper.node].pid} type veth"
            f" peer name {lower.name} netns {spaces[lower.node].pid}"
            for upper, lower, _ in plan.links
        ]
    )


def _batch(lines: list[str]) -> str:
    commands = "".join(f"{line}\n" for line in lines)
    return f"ip -batch - <<'end'\n{commands}end\n"


def _read_counters(router: Node) -> dict[str, Traffic]:
    listing = router.run(["nft", "list", "counters"])
    if listing.returncode:
        raise LabError(f"no counters: {listing.stderr.strip()}")
    return {
        name: Traffic(int(packets), int(size))
        for name, packets, size in _COUNTER.findall(listing.stdout)
    }
