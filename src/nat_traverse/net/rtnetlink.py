"""Links, addresses and routes of this host: what a VPN sets up, and what it asks about.

Everything here is refused or done before the call returns, and what is there already is never
replaced. A device takes its addresses and routes along when it goes; only a route through another
device (the peer's own address, past the VPN) has to be deleted by whoever added it. All routes are
marked as this program's, so that the next run finds what one that was killed has left.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

from nat_traverse.errors import DeviceError
from nat_traverse.model import IPV6_MINIMUM_MTU
from nat_traverse.net.netlink import MAKE_NEW, Message, Netlink, attribute, attributes_in, nested
from nat_traverse.net.privileges import lacks_net_admin

if TYPE_CHECKING:
    from collections.abc import Iterator

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network

# linux/rtnetlink.h
_RTM_SETLINK: Final = 19
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26

_NUMBER: Final = struct.Struct("=I")

# struct ifinfomsg: family, padding, type, index, flags, and which of the flags to change.
_LINK: Final = struct.Struct("=BxHiII")
_IFLA_MTU: Final = 4
_IFLA_OPERSTATE: Final = 16
_IFLA_AF_SPEC: Final = 26
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_MODE_NONE: Final = b"\x01"
_IFF_UP: Final = 1
# Operational states (RFC 2863): of a link that is not to be used yet, and of one that is.
_DORMANT, _UP = b"\x05", b"\x06"

# struct ifaddrmsg: family, prefix length, flags, scope, index.
_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
# Usable at once. The other half of the link is one peer, which has told its addresses before.
_IFA_F_NODAD: Final = 0x02

# struct rtmsg: family, lengths of destination and source, type of service, table, protocol (who
# made it), scope, type, flags.
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_MULTIPATH: Final = 9
_RTA_VIA: Final = 18
_TABLE_MAIN: Final = 254
# Made by this program. Numbers above the one for administrators (4) mean nothing to the kernel.
# This is no routing daemon's (/etc/iproute2/rt_protos), and those remove only their own.
_PROTOCOL: Final = 0x4E
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_ANY: Final = 255  # RT_SCOPE_NOWHERE, which a deletion compares with nothing
_TYPE_UNICAST: Final = 1
_TYPE_LOCAL: Final = 2
# The gateway is on this link even if no route says so: some providers give a host the address
# alone, with a gateway outside of it, and the kernel has named gateway and device together.
_ONLINK: Final = 4
# Flags of a route, or of a hop of several: its device is gone, or has no carrier.
_DEAD: Final = 1 | 16

# struct rtnexthop: length, flags, hops, index; attributes follow.
_NEXT_HOP: Final = struct.Struct("=HBBi")
_FAMILY: Final = struct.Struct("=H")  # the start of struct rtvia, in front of the gateway's address

# IPv6's metric where none is given; IPv4's is 0.
_IPV6_METRIC: Final = 1024

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

# What the kernel says when there is no way to a destination, or one that leads nowhere: no route,
# and routes of the types unreachable, prohibit and blackhole.
_NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})


# What it says to an IPv6 address where IPv6 is off; EACCES is not about rights here.
_NO_IPV6: Final = frozenset({errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})


class Route(NamedTuple):
    """The way to a destination: a device's number, the router on it if any, our own address.

    `is_local` when the destination is an address of this host.
    """

    device: int
    gateway: IPAddress | None
    source: IPAddress | None
    is_local: bool = False


class _Entry(NamedTuple):
    network: IPNetwork
    metric: int
    route: Route
    is_ours: bool
    is_link: bool
    is_dead: bool


def link_index(name: str) -> int | None:
    """Return the number of the device called `name`, or None if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


class Network:
    """The network of the namespace that this process is in.

    Its methods raise `DeviceError` with what failed, why and what to try, and as its cause the
    `OSError` with the kernel's errno; `DeniedError` where CAP_NET_ADMIN is missing.
    """

    def __init__(self) -> None:
        self._netlink = Netlink({_RTM_NEWROUTE: _ROUTE.size})

    def set_mtu(self, index: int, mtu: int) -> None:
        """Let the device send packets of at most `mtu` bytes, IP header included.

        Below 1,280 it has no IPv6. When it gets that back, it is as quiet as after `keep_quiet`.
        """
        doing = f"Giving {_name(index)} an MTU of {mtu}"
        change = _number(_IFLA_MTU, mtu)
        if mtu < IPV6_MINIMUM_MTU or self._silence(index, doing):
            self._set_link(index, change, doing)
            return
        # At once with this MTU the kernel makes the device's IPv6 anew, addresses and all. Not on
        # a link that is not ready, which for IPv4 makes no difference; then there is time to say
        # that it should make none.
        self._set_link(index, attribute(_IFLA_OPERSTATE, _DORMANT), doing)
        try:
            self._set_link(index, change, doing)
            self._silence(index, doing)
        finally:
            self._set_link(index, attribute(_IFLA_OPERSTATE, _UP), doing)

    def keep_quiet(self, index: int) -> None:
        """Have the kernel make no link-local IPv6 address of its own on the device.

        It would send for a router from it, to the peer, again and again. To be called while the
        device is down.
        """
        self._silence(index, f"Switching off what {_name(index)} sends")

    def set_up(self, index: int) -> None:
        """Switch the device on."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
        self._change(f"Switching {_name(index)} on", _RTM_SETLINK, body)

    def add_address(self, index: int, interface: IPInterface) -> None:
        """Give the device an address, and with its prefix the network that is behind it.

        No other device may have that very network: of the two the kernel would use the other one.
        """
        doing = f"Giving {_name(index)} the address {interface}"
        self._check_network(index, interface.network, doing)
        packed = interface.ip.packed
        flags = _IFA_F_NODAD if interface.version == 6 else 0  # noqa: PLR2004 (IPv6)
        family = _FAMILIES[interface.version]
        body = _ADDRESS.pack(family, interface.network.prefixlen, flags, _SCOPE_UNIVERSE, index)
        body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        try:
            self._netlink.request(_RTM_NEWADDR, body, MAKE_NEW)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise DeviceError(f"{doing} failed: it has it already.") from error
            if interface.version == 6 and error.errno in _NO_IPV6:  # noqa: PLR2004 (IPv6)
                raise DeviceError(
                    f"{doing} failed ({error.strerror}): most likely IPv6 is switched off there."
                    f" See sysctl net.ipv6.conf.{_name(index)}.disable_ipv6; the MTU has to be"
                    f" {IPV6_MINIMUM_MTU} at least."
                ) from error
            raise _explained(error, doing) from error

    def add_route(
        self,
        network: IPNetwork,
        index: int,
        *,
        gateway: IPAddress | None = None,
        source: IPAddress | None = None,
        metric: int | None = None,
    ) -> None:
        """Send what is for `network` through the device, to `gateway` if there is one.

        From the address `source`, if this host is to choose that one of its own.
        Of two routes to one network the one with the smaller `metric` is used; two of one metric
        can't be: that is refused, and said whose the other is.
        """
        is_link = gateway is None and network.version == 4  # noqa: PLR2004 (IPv6 has no such scope)
        scope = _SCOPE_LINK if is_link else _SCOPE_UNIVERSE
        body = _route(network, index, gateway, metric, scope=scope)
        if source is not None:
            body += attribute(_RTA_PREFSRC, source.packed)
        try:
            self._netlink.request(_RTM_NEWROUTE, body, MAKE_NEW)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise _explained(error, _sending(network, index)) from error
            raise _taken(network, index, self._whose(network, metric)) from error

    def check_route(self, network: IPNetwork, index: int) -> None:
        """Raise `DeviceError` if this very network is on another device, as a LAN is.

        Whatever the metrics, of which `add_route` is refused for the same one only: from a LAN of
        NetworkManager's, with 100 or more, it would take all away, and one with IPv6, with 256,
        would keep all to itself.
        """
        other = self._on_another(network, index)
        if other is not None:
            raise _taken(network, index, f" (through {_name(other)})")

    def delete_route(
        self,
        network: IPNetwork,
        index: int,
        *,
        gateway: IPAddress | None = None,
        metric: int | None = None,
    ) -> bool:
        """Take back what `add_route` did; False when it is gone already, as with its device."""
        body = _route(network, index, gateway, metric, scope=_SCOPE_ANY)
        try:
            self._netlink.request(_RTM_DELROUTE, body)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.ENODEV):
                return False
            raise _explained(error, f"Deleting the route to {network}") from error
        return True

    def own_route(self, network: IPNetwork, *, besides: int | None = None) -> Route | None:
        """Return the route to this very network that an `add_route` made; None if there is none.

        Of whichever run of this program: one that was killed leaves those through other devices.
        `besides` is a device whose routes are not to count.
        """
        for entry in self._table(network.version):
            if entry.is_ours and entry.network == network and entry.route.device != besides:
                return entry.route
        return None

    def route_to(
        self,
        address: IPAddress,
        *,
        besides: int | None = None,
        without: tuple[IPNetwork, Route] | None = None,
    ) -> Route | None:
        """Return the way that packets to `address` take at present; None when there is none.

        `besides` is a device that is not to count, and `without` a network and the route to it
        (its device and its gateway) that is not. What would be used without these is then read off
        the main table alone, as rules for other tables can't be asked about that; routes through
        devices that have no carrier don't count there.
        """
        if besides is not None or without is not None:
            return self._route_in_table(address, besides, without)
        body = _ROUTE.pack(_FAMILIES[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        try:
            answers = self._netlink.request(
                _RTM_GETROUTE, body + attribute(_RTA_DST, address.packed)
            )
        except OSError as error:
            if error.errno in _NO_WAY:
                return None
            raise _explained(error, f"Looking up the route to {address}") from error
        return next((entry.route for each in answers for entry in _entries(each)), None)

    def close(self) -> None:
        """Close the socket to the kernel; what was set up stays. Closing twice does nothing."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _silence(self, index: int, doing: str) -> bool:
        """Do what `keep_quiet` does. False when the device has no IPv6 at present."""
        mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE)
        spec = nested(_IFLA_AF_SPEC, [nested(socket.AF_INET6, [mode])])
        try:
            self._netlink.request(_RTM_SETLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + spec)
        except OSError as error:
            # There is no IPv6 in this kernel or on this device, so nothing to be kept quiet.
            if error.errno not in (errno.EAFNOSUPPORT, errno.EINVAL):
                raise _explained(error, doing) from error
            return False
        return True

    def _set_link(self, index: int, changes: bytes, doing: str) -> None:
        self._change(doing, _RTM_SETLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + changes)

    def _change(self, doing: str, kind: int, body: bytes) -> None:
        try:
            self._netlink.request(kind, body)
        except OSError as error:
            raise _explained(error, doing) from error

    def _check_network(self, index: int, network: IPNetwork, doing: str) -> None:
        """Raise `DeviceError` if this very network is on another device."""
        device = self._on_another(network, index)
        if device is None:
            return
        other = _name(device)
        raise DeviceError(
            f"{doing} failed: {network} is the network of {other} already, where what is for it"
            f" would go. Choose another network for this VPN, or remove that one; see ip addr"
            f" show dev {other} and ip route show {network}."
        )

    def _on_another(self, network: IPNetwork, index: int) -> int | None:
        """Return the device, other than `index`, that this very network is on, if there is one."""
        for entry in self._table(network.version):
            if entry.network == network and entry.is_link and entry.route.device != index:
                return entry.route.device
        return None

    def _route_in_table(
        self, address: IPAddress, besides: int | None, without: tuple[IPNetwork, Route] | None
    ) -> Route | None:
        skipped = (without[0], without[1].device, without[1].gateway) if without else None
        ways = [
            entry
            for entry in self._table(address.version)
            if address in entry.network
            and entry.route.device != besides
            and not entry.is_dead
            and (entry.network, entry.route.device, entry.route.gateway) != skipped
        ]
        best = max(ways, key=lambda entry: (entry.network.prefixlen, -entry.metric), default=None)
        return best.route if best is not None else None

    def _whose(self, network: IPNetwork, metric: int | None) -> str:
        wanted = metric or (_IPV6_METRIC if network.version == 6 else 0)  # noqa: PLR2004 (IPv6)
        try:
            table = self._table(network.version)
        except DeviceError:
            return ""  # it is there, whosever it is
        for entry in table:
            if (entry.network, entry.metric) == (network, wanted):
                via = f", to {entry.route.gateway}" if entry.route.gateway else ""
                return f" (through {_name(entry.route.device)}{via})"
        return ""

    def _table(self, version: int) -> list[_Entry]:
        """Return the unicast routes of the main table that lead anywhere."""
        header = _ROUTE.pack(_FAMILIES[version], 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)
        try:
            messages = self._netlink.dump(_RTM_GETROUTE, header)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []  # no table, as long as there is nothing in it
            raise _explained(error, "Reading the routes of this host") from error
        wanted = header[:1] + header[4:5]
        return [
            entry
            for message in messages
            # An older kernel lists all tables, whatever it is asked for, and one without IPv6 what
            # it has instead.
            if message.fixed[:1] + message.fixed[4:5] == wanted
            for entry in _entries(message)
        ]


def _route(
    network: IPNetwork, index: int, gateway: IPAddress | None, metric: int | None, *, scope: int
) -> bytes:
    flags = _ONLINK if gateway is not None and scope != _SCOPE_ANY else 0
    body = _ROUTE.pack(
        _FAMILIES[network.version],
        network.prefixlen,
        0,
        0,
        _TABLE_MAIN,
        _PROTOCOL,
        scope,
        _TYPE_UNICAST,
        flags,
    )
    body += attribute(_RTA_DST, network.network_address.packed) + _number(_RTA_OIF, index)
    if gateway is not None and gateway.version == network.version:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    elif gateway is not None:  # IPv4 through a router known by its IPv6 address (RFC 5549)
        body += attribute(_RTA_VIA, _FAMILY.pack(_FAMILIES[gateway.version]) + gateway.packed)
    if metric is not None:
        body += _number(_RTA_PRIORITY, metric)
    return body


def _entries(message: Message) -> Iterator[_Entry]:
    """Yield the routes in a message of the kernel's: none if it leads nowhere, or several ways."""
    if message.kind != _RTM_NEWROUTE or len(message.fixed) < _ROUTE.size:
        return
    family, length, _, _, _, protocol, scope, kind, flags = _ROUTE.unpack(message.fixed)
    if kind not in (_TYPE_UNICAST, _TYPE_LOCAL):
        return
    nowhere = bytes(4 if family == socket.AF_INET else 16)  # the default route has no destination
    network = ip_network((message.attributes.get(_RTA_DST, nowhere), length))
    for has, hop_flags in _ways(message.attributes):
        if _RTA_OIF not in has:
            continue
        gateway = has.get(_RTA_GATEWAY) or has.get(_RTA_VIA, b"")[_FAMILY.size :]
        source = has.get(_RTA_PREFSRC)
        yield _Entry(
            network,
            _NUMBER.unpack(has.get(_RTA_PRIORITY, bytes(4)))[0],
            Route(
                _NUMBER.unpack(has[_RTA_OIF])[0],
                ip_address(gateway) if gateway else None,
                ip_address(source) if source else None,
                kind == _TYPE_LOCAL,
            ),
            is_ours=protocol == _PROTOCOL,
            # IPv6 has no such scope.
            is_link=not gateway and (family != socket.AF_INET or scope == _SCOPE_LINK),
            is_dead=bool((flags | hop_flags) & _DEAD),
        )


def _ways(attributes: dict[int, bytes]) -> Iterator[tuple[dict[int, bytes], int]]:
    """Yield a route's attributes and flags, for each of the hops if it has several."""
    hops = attributes.get(_RTA_MULTIPATH)
    if hops is None:
        yield attributes, 0
        return
    while len(hops) >= _NEXT_HOP.size:
        size, flags, _, index = _NEXT_HOP.unpack_from(hops)
        inside = attributes_in(hops[_NEXT_HOP.size : size])
        yield attributes | inside | {_RTA_OIF: _NUMBER.pack(index)}, flags
        hops = hops[max(size, _NEXT_HOP.size) :]


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _NUMBER.pack(value))


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"the device {index}"


def _sending(network: IPNetwork, index: int) -> str:
    return f"Sending {network} through {_name(index)}"


def _taken(network: IPNetwork, index: int, whose: str) -> DeviceError:
    return DeviceError(
        f"{_sending(network, index)} failed: there is a route to it already{whose}. It is not"
        f" replaced; see ip route show {network}. Choose a smaller network, or delete that route."
    )


def _explained(error: OSError, doing: str) -> DeviceError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return lacks_net_admin(doing)
    if error.errno == errno.ENODEV:
        return DeviceError(f"{doing} failed: the device is not there any more.")
    if error.errno in (errno.ENETDOWN, errno.ENETUNREACH):
        return DeviceError(
            f"{doing} failed ({error.strerror}): the device is down, or the gateway is on another."
        )
    return DeviceError(f"{doing} failed: {error.strerror}.")
