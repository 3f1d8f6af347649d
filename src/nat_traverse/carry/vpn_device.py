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
        self._expected: tuple[Address, ...] = ()
        self._around: dict[Network, Route] = {}
        self._displaced: set[Network] = set()  # of the plan, while there is a way around instead
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

    def expect(self, outers: Iterable[Address]) -> None:
        """Keep in mind, before `configure`, at which outer addresses the peer may be later, too."""
        self._expected = tuple(outers)

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
        takes the route away with the old one, or it leads nowhere. Other ways are left again, and
        where the plan has a route to that host alone, it is put back.
        """
        if not self._may_change:
            return
        wanted = {ipaddress.ip_network(each): each for each in outers if self.leads_inside(each)}
        for network in self._around.keys() - wanted.keys():
            self._leave_way(network)
        for network in self._displaced - wanted.keys():
            self._put_back(network)
        for network, outer in wanted.items():
            self._go_around(network, outer)

    def leads_inside(self, outer: Address) -> bool:
        """Tell whether the kernel would send what is for `outer` into the device."""
        return covers(self._plan.inside, outer)

    def _go_around(self, network: Network, outer: Address) -> None:
        # Of an earlier run that was killed, too, whose gateway may be gone.
        old = self._way_around(network)
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
        # The plan may have a route to that host alone. The kernel has room for one of the two.
        if network in self._plan.routes and self._kernel.delete_route(network, self.tun.index):
            self._displaced.add(network)
        try:
            self._kernel.add_route(
                network, route.device, gateway=route.gateway, source=route.source
            )
        except DeviceError as error:
            if _is_there(error):
                return  # the user has made that very route
            raise
        self._around[network] = route

    def _put_back(self, network: Network) -> None:
        try:
            self._kernel.add_route(network, self.tun.index)
        except DeviceError as error:
            if not _is_there(error):  # else the user has made one meanwhile
                raise
        self._displaced.remove(network)

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
        networks = [each for route in self._plan.routes for each in halves(route)]
        for network in networks:
            self._kernel.check_route(network, self.tun.index)
        self._kernel.set_mtu(self.tun.index, mtu)
        self._kernel.set_up(self.tun.index)
        self.go_around([outer])
        for network in networks:
            self._kernel.add_route(network, self.tun.index)
        if self._plan.user is not None:
            may_change = self._needs_ways([outer, *self._expected])
            drop_to(self._plan.user, self._keep | {"net_admin"} if may_change else self._keep)
            self._may_change = may_change
        self._mtu = mtu

    def _needs_ways(self, outers: Iterable[Address]) -> bool:
        """Tell whether there is a way around the VPN to be made or undone, now or later.

        The first path may need none and the next one may, as with a peer that has IPv6 too. Of all
        that a default route covers, nobody knows where the peer will be.
        """
        takes_all = any(each.prefixlen == 0 for each in self._plan.routes)
        return takes_all or any(map(self.leads_inside, outers))

    def _way_around(self, network: Network) -> Route | None:
        # The routes of the plan are this program's as well.
        return self._kernel.own_route(network, besides=self.tun.index)

    def _leave_way(self, network: Network) -> None:
        self._around.pop(network, None)
        route = self._way_around(network)
        if route is not None:
            self._kernel.delete_route(network, route.device, gateway=route.gateway)


def _is_there(error: DeviceError) -> bool:
    """Tell whether a route was refused because there is one already."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EEXIST
