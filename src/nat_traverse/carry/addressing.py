"""The addresses and networks of a VPN: what the user asks for, and what both sides agree on.

    --vpn       an address of this side, and the network that it shares with the other
    --route     a network behind the other side, which has to announce it
    --announce  a network behind this side

What may pass is decided here, in both directions, by the addresses inside of a packet: it has to
come from the peer, or from a network that is routed to it, and go to this side, or to a network
that was announced. So nobody who is let in as a peer can speak for another host, nor reach what he
was not told of, whatever this host would forward.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from nat_traverse.errors import LocalProtocolError, NotAgreedError, UsageError
from nat_traverse.net.tun import check_name
from nat_traverse.wire.vpn import Terms, encode_terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


Interface: TypeAlias = "ipaddress.IPv4Interface | ipaddress.IPv6Interface"
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"
Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

# Bits of a network that has two hosts and no broadcast address (RFC 3021).
_POINT_TO_POINT: Final = 31

# Pairs of addresses that are remembered: more than two sites have that talk to each other at a
# time, and little to keep for whoever makes up pairs.
_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user wants. `device` is its name, None for the first that is free."""

    addresses: tuple[Interface, ...]
    routes: tuple[Network, ...] = ()
    announced: tuple[Network, ...] = ()
    device: str | None = None
    user: str | None = None

    @property
    def inside(self) -> tuple[Network, ...]:
        """What the kernel sends into the device."""
        return (*(each.network for each in self.addresses), *self.routes)

    @property
    def has_ipv6(self) -> bool:
        """True if IPv6 packets are to pass."""
        return any(each.version == 6 for each in (*self.addresses, *self.routes))  # noqa: PLR2004


def make_plan(
    *,
    addresses: Sequence[str],
    routes: Sequence[str] = (),
    announced: Sequence[str] = (),
    device: str | None = None,
    user: str | None = None,
) -> Plan:
    """Read what was given on a command line; raises UsageError."""
    _check_device(device)
    if user == "":
        raise UsageError("--user wants the name of a user, not an empty word")
    plan = Plan(
        tuple(dict.fromkeys(map(_parse_address, addresses))),
        tuple(dict.fromkeys(_parse_network("--route", each) for each in routes)),
        tuple(dict.fromkeys(_parse_network("--announce", each) for each in announced)),
        device,
        user,
    )
    _check_size(plan)
    versions = {each.version for each in plan.addresses}
    for option, networks in (("--route", plan.routes), ("--announce", plan.announced)):
        for each in networks:
            if each.version not in versions:
                raise UsageError(
                    f"{option} {each} needs an IPv{each.version} address: give one more --vpn"
                )
    return plan


class Agreement:
    """What may pass between the two sides, and what is to be routed."""

    def __init__(self, plan: Plan, theirs: Terms) -> None:
        """Compare what the two sides want. Raises NotAgreedError if it does not fit."""
        self.peers = _peers_addresses(plan, theirs)
        _check_routes(plan, theirs)
        self.sources: tuple[Network, ...] = (*map(_alone, self.peers), *plan.routes)
        self.destinations: tuple[Network, ...] = (
            *(_alone(each.ip) for each in plan.addresses),
            *plan.announced,
            *_to_all(plan.addresses),
        )
        self._peers = frozenset(each.packed for each in self.peers)
        self._ours = frozenset(each.ip.packed for each in plan.addresses)
        self._known: dict[tuple[bytes, bytes], bool] = {}

    def admits(self, source: bytes, destination: bytes) -> bool:
        """Tell whether a packet of the peer's with these addresses inside may enter the device."""
        known = self._known.get((source, destination))
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._may_send(source) and _is_in(destination, self.destinations)
            self._known[source, destination] = known
        return known

    def _may_send(self, source: bytes) -> bool:
        if source in self._peers:
            return True
        return _is_in(source, self.sources) and source not in self._ours and _is_a_host(source)


def halves(network: Network) -> list[Network]:
    """Return what to route in place of `network`: of a default route, two halves.

    They are more specific than the default route that is there, which so can stay.
    """
    return list(network.subnets()) if network.prefixlen == 0 else [network]


def covers(networks: Iterable[Network], address: Address) -> bool:
    """Tell whether an address is in one of these networks."""
    return any(each.version == address.version and address in each for each in networks)


def _check_device(name: str | None) -> None:
    try:
        if name is not None:
            check_name(name)
    except UsageError as error:
        # Whoever reads that has to find the place, in a file as well.
        raise UsageError(f"{error} It was given with --vpn-device.") from None


def _check_size(plan: Plan) -> None:
    """Raise UsageError if it can't be told to the other side in one message."""
    # The addresses alone first: larger networks would not help where these are too many.
    for option, announced, advice in (
        ("--vpn", (), "Give fewer addresses"),
        ("--announce", plan.announced, "Announce larger networks"),
    ):
        try:
            encode_terms(Terms(plan.addresses, announced, 0))
        except LocalProtocolError as error:
            text = f"{option}: too much for one VPN: {error}. {advice}."
            raise UsageError(text) from None


def _peers_addresses(plan: Plan, theirs: Terms) -> tuple[Address, ...]:
    """Return the addresses of the peer's that are behind the device."""
    ours = {each.ip for each in plan.addresses}
    versions = {each.version for each in plan.addresses}
    peers: list[Address] = []
    for each in theirs.addresses:
        address = each.ip
        if address in ours:
            raise NotAgreedError(
                f"Both sides have the address {address}. Give one of them another of the same"
                f" network, {each.network}."
            )
        if address.version not in versions:
            continue  # of a family that this side has no use for
        near = covers((own.network for own in plan.addresses), address)
        # As a default route has all addresses in it, the peer could claim to be this host's router,
        # or to be on its link. IPv4 has no such routers, and a link of its own may be chosen.
        if not _is_a_host(address.packed) and not (near and address.version == 4):  # noqa: PLR2004
            raise NotAgreedError(
                f"The other side has the address {each}, which is of no use beyond a link. Give its"
                " --vpn another one."
            )
        if not near and not covers(plan.routes, address):
            own = ", ".join(str(own) for own in plan.addresses if own.version == address.version)
            raise NotAgreedError(
                f"The other side has the address {each}, which is in no network of this side"
                f" ({own}). Give both --vpn an address of the same network."
            )
        peers.append(address)
    if not peers:
        here = " and ".join(f"IPv{version}" for version in sorted(versions))
        raise NotAgreedError(
            f"This side has addresses of {here} only, and the other side has none of that. Give"
            " both --vpn an address of the same network."
        )
    return tuple(peers)


def _check_routes(plan: Plan, theirs: Terms) -> None:
    """Raise NotAgreedError if a network is to be routed that the peer has not announced."""
    offered: list[Network] = [*theirs.announced, *(_alone(each.ip) for each in theirs.addresses)]
    for network in plan.routes:
        if not any(_is_within(network, each) for each in offered):
            raise NotAgreedError(
                f"--route {network}: the other side has not announced that network. It has to be"
                f" given --announce {network}, or be a part of what it announces."
            )


def _is_within(network: Network, larger: Network) -> bool:
    # The type checker wants to see that both are of one version.
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(larger, ipaddress.IPv4Network) and network.subnet_of(larger)
    return isinstance(larger, ipaddress.IPv6Network) and network.subnet_of(larger)


def _alone(address: Address) -> Network:
    """Return the network of a single address."""
    return ipaddress.ip_network(address)


def _to_all(addresses: Iterable[Interface]) -> list[Network]:
    """Return where packets go that are for all hosts of our networks: broadcast, multicast."""
    found: list[Network] = []
    for each in addresses:
        if isinstance(each, ipaddress.IPv4Interface):
            found.append(ipaddress.IPv4Network("224.0.0.0/4"))
            if each.network.prefixlen < _POINT_TO_POINT:
                found.append(_alone(each.network.broadcast_address))
        else:
            found.append(ipaddress.IPv6Network("ff00::/8"))
    return found


def _is_in(packed: bytes, networks: Iterable[Network]) -> bool:
    return covers(networks, _unpacked(packed))


def _is_a_host(packed: bytes) -> bool:
    """Tell whether a host can have this address, and be known by it beyond its own link.

    With a default route all addresses are the peer's. It must not be this host's router for that
    (RFC 4861 has routers speak from link-local addresses), nor speak from ::1 or 127.0.0.1.
    """
    address = _unpacked(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return False  # that is a way to write an address, and none to send from (RFC 4291, 2.5.5.2)
    return not (
        address.is_link_local
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
    )


def _unpacked(packed: bytes) -> Address:
    return ipaddress.IPv4Address(packed) if len(packed) == 4 else ipaddress.IPv6Address(packed)  # noqa: PLR2004


def _parse_address(text: str) -> Interface:
    wanted = "as in 10.77.0.1/24 or fd77::1/64"
    if "/" not in text:
        raise UsageError(f"--vpn {text}: the length of the network is missing, {wanted}")
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise UsageError(f"--vpn {text!r} is no address with its network, {wanted}") from None
    address, network = interface.ip, interface.network
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise UsageError(f"--vpn {text}: {address} is no address of one host in a network")
    if interface.version == 6 and address.is_link_local:  # noqa: PLR2004
        raise UsageError(
            f"--vpn {text}: every IPv6 device has such an address already. Take one of fd00::/8, as"
            " fd77::1/64."
        )
    # With more than two, the first is nobody's, and the last of an IPv4 network that of all.
    if network.num_addresses > 2 and (  # noqa: PLR2004
        address == network.network_address
        or (interface.version == 4 and address == network.broadcast_address)  # noqa: PLR2004
    ):
        raise UsageError(
            f"--vpn {text}: {address} stands for the network itself, or for all of its hosts. Take"
            " one in between."
        )
    return interface


def _parse_network(option: str, text: str) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is no network, as in 192.168.7.0/24 or fd07::/64"
        ) from None
    if network.is_multicast or (network.is_loopback and network.prefixlen):
        raise UsageError(f"{option} {text}: that network can't be behind a tunnel")
    return network
