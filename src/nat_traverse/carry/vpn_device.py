"""The network device of a VPN with its addresses and routes: set up once, and undone at the end."""

from __future__ import annotations

import errno
import ipaddress
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.addressing import covers, halves
from nat_traverse.errors import DeviceError
from nat_traverse.net.privileges import drop_to
from nat_traverse.net.rtnetlink import Network as Kernel
from nat_traverse.net.tun import AUTOMATIC, Tun

if TYPE_CHECKING:
    from nat_traverse.carry.addressing import Address, Network, Plan
    from nat_traverse.net.rtnetlink import Route

# IPv6 asks every link for this much (RFC 8200, section 5); Linux takes its addresses away below.
SMALLEST_IPV6: Final = 1280


class VpnDevice:
    """The device of `plan`, made at once. It is up, and has routes, after `configure`.

    Raises DeviceError and DeniedError when it can't be had.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._mtu = 0
        self._may_change = True  # until the rights for that are given up
        self._around: tuple[Network, Route] | None = None
        self.tun = Tun(plan.device or AUTOMATIC)
        try:
            self._kernel = Kernel()
        except BaseException:
            self.tun.close()
            raise
        try:
            self._kernel.keep_quiet(self.tun.index)
            for address in plan.addresses:
                self._kernel.add_address(self.tun.index, address)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """How it is called."""
        return self.tun.name

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet that it takes; 0 before `configure`."""
        return self._mtu

    def configure(self, mtu: int, outer: Address) -> None:
        """Bring it up for packets of `mtu` bytes; the peer's outer address keeps its old way.

        Later calls are for another path. Raises DeviceError.
        """
        if self._plan.has_ipv6 and mtu < SMALLEST_IPV6:
            raise DeviceError(
                f"The path takes packets of {mtu} bytes, and IPv6 needs {SMALLEST_IPV6}: leave out"
                " the IPv6 address of --vpn, or use another network."
            )
        if not self._mtu:
            self._bring_up(mtu, outer)
        elif self._may_change:
            self._kernel.set_mtu(self.tun.index, mtu)
            self._mtu = mtu
            self.go_around(outer)

    def go_around(self, outer: Address) -> None:
        """Have what goes to the peer's outer address take the way that it takes without the VPN.

        To be called again from time to time: when the host moves to another network, the kernel
        takes the route away with the old one.
        """
        if not covers(self._plan.routes, outer) or not self._may_change:
            return
        network = ipaddress.ip_network(outer)
        route = self._kernel.route_to(outer, besides=self.tun.index)
        if route is None:
            if self._mtu:
                return  # there is no network at present
            raise DeviceError(
                f"There is no way to {outer} but through the VPN itself. A route of your own to it"
                f" is needed: ip route add {network} via ..."
            )
        if self._around == (network, route):
            return
        self._leave_way()
        try:
            self._kernel.add_route(network, route.device, gateway=route.gateway)
        except DeviceError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EEXIST:
                return  # the user has made that very route
            raise
        # As the kernel tells it from now on.
        self._around = network, self._kernel.route_to(outer, besides=self.tun.index) or route

    def close(self) -> None:
        """Remove it, and the route that does not vanish with it. Twice does nothing."""
        try:
            self._leave_way()
        finally:
            self._kernel.close()
            self.tun.close()

    def _bring_up(self, mtu: int, outer: Address) -> None:
        self._kernel.set_mtu(self.tun.index, mtu)
        self._kernel.set_up(self.tun.index)
        self.go_around(outer)
        for route in self._plan.routes:
            for network in halves(route):
                self._kernel.add_route(network, self.tun.index)
        if self._plan.user is not None:
            # The way around the VPN would outlive this program otherwise.
            keep = frozenset({"net_admin"} if self._around is not None else ())
            drop_to(self._plan.user, keep)
            self._may_change = bool(keep)
        self._mtu = mtu

    def _leave_way(self) -> None:
        if self._around is not None:
            network, route = self._around
            self._around = None
            self._kernel.delete_route(network, route.device, gateway=route.gateway)
