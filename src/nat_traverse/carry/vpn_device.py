"""The network device of a VPN with its addresses and routes: set up once, and undone at the end."""

from __future__ import annotations

import errno
import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING

from nat_traverse.carry.addressing import covers, halves
from nat_traverse.errors import DeviceError
from nat_traverse.model import IPV6_MINIMUM_MTU
from nat_traverse.net.privileges import drop_to
from nat_traverse.net.rtnetlink import Network as Kernel
from nat_traverse.net.tun import AUTOMATIC, Tun

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from nat_traverse.carry.addressing import Address, Network, Plan
    from nat_traverse.net.rtnetlink import Route


class VpnDevice:
    """The device of `plan`, made at once. It is up, and has routes, after `configure`.

    `keep` are rights that `--user` does not give up.

    Raises DeviceError and DeniedError when it can't be had.
    """

    def __init__(self, plan: Plan, keep: AbstractSet[str] = frozenset()) -> None:
        self._plan = plan
        self._keep = keep
        self._mtu = 0
        self._may_change = True  # until the rights for that are given up
        self._around: dict[Network, Route] = {}
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

        Later calls are for another size; for other ways there is `go_around`. With IPv6 it is never
        less than 1,280. Raises DeviceError.
        """
        if self._plan.has_ipv6:
            # Without, the kernel would take the IPv6 addresses away. TCP is cut to what fits all
            # the same. What else is larger than the path is lost, and counted: who sends IPv6 would
            # not believe that a path takes less.
            mtu = max(mtu, IPV6_MINIMUM_MTU)
        if not self._mtu:
            self._bring_up(mtu, outer)
        elif self._may_change:
            self._kernel.set_mtu(self.tun.index, mtu)
            self._mtu = mtu

    def go_around(self, outers: Iterable[Address]) -> None:
        """Have what goes to these outer addresses take the way that it would take without the VPN.

        To be called again from time to time: when the host moves to another network, the kernel
        takes the route away with the old one, or it leads nowhere. Other ways are left again.
        """
        if not self._may_change:
            return
        wanted = {ipaddress.ip_network(each): each for each in outers if self.leads_inside(each)}
        for network in self._around.keys() - wanted.keys():
            self._leave_way(network)
        for network, outer in wanted.items():
            self._go_around(network, outer)

    def leads_inside(self, outer: Address) -> bool:
        """Tell whether the kernel would send what is for `outer` into the device."""
        return covers(self._plan.inside, outer)

    def _go_around(self, network: Network, outer: Address) -> None:
        # Of an earlier run that was killed, too, whose gateway may be gone.
        old = self._kernel.own_route(network)
        without = None if old is None else (network, old)
        route = self._kernel.route_to(outer, besides=self.tun.index, without=without)
        if route is None:
            if self._mtu:
                return  # there is no network at present
            raise DeviceError(
                f"There is no way to {outer} but through the VPN itself. A route of your own to it"
                f" is needed: ip route add {network} via ..."
            )
        if old == route:
            self._around[network] = route
            return
        self._leave_way(network)
        try:
            self._kernel.add_route(
                network, route.device, gateway=route.gateway, source=route.source
            )
        except DeviceError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EEXIST:
                return  # the user has made that very route
            raise
        self._around[network] = route

    def close(self) -> None:
        """Remove it, and the routes that do not vanish with it. Twice does nothing."""
        try:
            for network in [*self._around]:
                with suppress(DeviceError):  # the others are to go all the same
                    self._leave_way(network)
        finally:
            self._kernel.close()
            self.tun.close()

    def _bring_up(self, mtu: int, outer: Address) -> None:
        self._kernel.set_mtu(self.tun.index, mtu)
        self._kernel.set_up(self.tun.index)
        self.go_around([outer])
        for route in self._plan.routes:
            for network in halves(route):
                self._kernel.add_route(network, self.tun.index)
        if self._plan.user is not None:
            # The way around the VPN would outlive this program otherwise.
            keep = self._keep | {"net_admin"} if self._around else self._keep
            drop_to(self._plan.user, keep)
            self._may_change = bool(self._around)
        self._mtu = mtu

    def _leave_way(self, network: Network) -> None:
        self._around.pop(network, None)
        route = self._kernel.own_route(network)
        if route is not None:
            self._kernel.delete_route(network, route.device, gateway=route.gateway)
