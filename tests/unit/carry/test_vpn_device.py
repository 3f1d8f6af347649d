"""What is asked of the kernel, and in which order. With a real one: tests/lab/test_vpn_device."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.carry import vpn_device
from nat_traverse.carry.addressing import Plan, make_plan
from nat_traverse.carry.vpn_device import VpnDevice
from nat_traverse.errors import DeniedError, DeviceError
from nat_traverse.net.rtnetlink import Route
from nat_traverse.net.tun import AUTOMATIC

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from nat_traverse.carry.addressing import Address, Network

OUTER = ip_address("203.0.113.2")
OTHER = ip_address("203.0.113.9")
SIXTH = ip_address("2001:db8::2")  # the peer's, of the other version
GATEWAY, NEXT = ip_address("192.0.2.1"), ip_address("192.0.2.9")
WAY = Route(3, GATEWAY, ip_address("192.0.2.7"))  # through another device

# The networks of the two alone, as they are routed.
ALONE, OTHER_ALONE = ip_network(OUTER), ip_network(OTHER)


class FakeTun:
    """A device that says what was done to it."""

    index = 7

    def __init__(self, name: str) -> None:
        self.name = "nat0" if name == AUTOMATIC else name
        done.append(("tun", name))

    def close(self) -> None:
        done.append(("tun closed",))


class FakeKernel:
    """A kernel that does as it is told, except for what is in `failing`.

    Of routes to single hosts it has a table, which knows those of this program from the user's, and
    has room for one to each. It knows of no networks but those of `lans`.
    """

    def __getattr__(self, name: str) -> Any:
        def act(*arguments: object, **named: object) -> bool:
            done.append((name, *arguments, *named.values()))
            error = failing.get(name)
            if error is not None:
                raise error
            return True

        return act

    def add_route(self, network: Network, index: int, **way: Address | None) -> None:
        gateway = {"gateway": way["gateway"]} if "gateway" in way else {}
        self.__getattr__("add_route")(network, index, **gateway)
        if network.prefixlen == network.max_prefixlen:
            if any(network in table for table in (ours, theirs, planned)):
                raise in_use(errno.EEXIST)
            table = planned if index == FakeTun.index else ours
            table[network] = Route(index, way.get("gateway"), way.get("source"))

    def delete_route(self, network: Network, index: int, *, gateway: Address | None = None) -> bool:
        if index == FakeTun.index:
            return planned.pop(network, None) is not None
        self.__getattr__("delete_route")(network, index, gateway=gateway)
        assert ours.pop(network)[:2] == (index, gateway)
        return True

    def check_route(self, network: Network, index: int) -> None:
        assert index == FakeTun.index
        if network in lans:
            raise DeviceError(f"a route to {network} already")

    def own_route(self, network: Network, *, besides: int | None = None) -> Route | None:
        found = [table[network] for table in (planned, ours) if network in table]
        return next((each for each in found if each.device != besides), None)

    def route_to(
        self, address: Address, *, besides: int, without: tuple[Network, Route] | None = None
    ) -> Route | None:
        assert besides == FakeTun.index
        done.append(("route_to", address))
        network = ip_network(address)
        if network in ours and (
            without is None or without[0] != network or without[1] != ours[network]
        ):
            return ours[network]
        return theirs.get(network, ways[-1])


done: list[tuple[object, ...]] = []
failing: dict[str, Exception] = {}
ways: list[Route | None] = []
ours: dict[Network, Route] = {}  # past the device
planned: dict[Network, Route] = {}  # through it
theirs: dict[Network, Route] = {}  # the user's
lans: set[Network] = set()
dropped: list[tuple[str, frozenset[str]]] = []


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (done, failing, dropped, ours, planned, theirs, lans):
        each.clear()
    ways[:] = [WAY]

    def drop_to(user: str, keep: AbstractSet[str]) -> None:
        done.append(("drop_to", user))
        dropped.append((user, frozenset(keep)))
        if "drop_to" in failing:
            raise failing["drop_to"]

    monkeypatch.setattr(vpn_device, "Tun", FakeTun)
    monkeypatch.setattr(vpn_device, "Kernel", FakeKernel)
    monkeypatch.setattr(vpn_device, "drop_to", drop_to)


def plan(*routes: str, device: str | None = None, user: str | None = None) -> Plan:
    addresses = ["10.77.0.1/24"]
    if any(":" in each for each in routes):
        addresses.append("fd77::1/64")
    return make_plan(addresses=addresses, routes=routes, device=device, user=user)


def in_use(cause: int) -> DeviceError:
    error = DeviceError("no")
    error.__cause__ = OSError(cause, "no")
    return error


def take() -> list[tuple[object, ...]]:
    """Return what was done since the last time."""
    found = done[:]
    done.clear()
    return found


def names() -> list[object]:
    return [each[0] for each in take()]


class TestMaking:
    def test_has_its_addresses_and_is_not_up(self) -> None:
        device = VpnDevice(make_plan(addresses=["10.77.0.1/24", "fd77::1/64"]))
        assert take() == [
            ("tun", AUTOMATIC),
            ("keep_quiet", 7),
            ("add_address", 7, ip_interface("10.77.0.1/24")),
            ("add_address", 7, ip_interface("fd77::1/64")),
        ]
        assert (device.name, device.mtu) == ("nat0", 0)

    def test_is_called_as_wanted(self) -> None:
        assert VpnDevice(plan(device="work0")).name == "work0"

    @pytest.mark.parametrize("what", ["keep_quiet", "add_address"])
    def test_leaves_nothing_behind_if_it_fails(self, what: str) -> None:
        failing[what] = DeniedError("no")
        with pytest.raises(DeniedError):
            VpnDevice(plan())
        assert names()[-2:] == ["close", "tun closed"]

    def test_leaves_nothing_behind_without_netlink(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise DeviceError("no netlink")

        monkeypatch.setattr(vpn_device, "Kernel", refuse)
        with pytest.raises(DeviceError):
            VpnDevice(plan())
        assert names() == ["tun", "tun closed"]


class TestConfiguring:
    def test_brings_it_up_once(self) -> None:
        device = VpnDevice(plan("192.168.7.0/24", "fd07::/64"))
        take()
        device.configure(1350, OUTER)
        assert take() == [
            ("set_mtu", 7, 1350),
            ("set_up", 7),
            ("add_route", ip_network("192.168.7.0/24"), 7),
            ("add_route", ip_network("fd07::/64"), 7),
        ]
        assert device.mtu == 1350
        device.configure(1300, OUTER)
        device.configure(1400, OTHER)
        assert take() == [("set_mtu", 7, 1300), ("set_mtu", 7, 1400)]
        assert device.mtu == 1400

    def test_routes_everything_in_two_halves_behind_the_way_around(self) -> None:
        device = VpnDevice(plan("0.0.0.0/0"))
        take()
        device.configure(1350, OUTER)
        assert take() == [
            ("set_mtu", 7, 1350),
            ("set_up", 7),
            ("route_to", OUTER),
            ("add_route", ALONE, 3, GATEWAY),
            ("add_route", ip_network("0.0.0.0/1"), 7),
            ("add_route", ip_network("128.0.0.0/1"), 7),
        ]

    @pytest.mark.parametrize("version", [4, 6])
    def test_ipv6_keeps_its_room_on_a_path_that_has_less(self, version: int) -> None:
        """Without, the kernel would take the IPv6 addresses away."""
        address = "10.77.0.1/24" if version == 4 else "fd77::1/64"
        device = VpnDevice(make_plan(addresses=[address]))
        take()
        for mtu in (1280 - 1, 1280 + 1, 600):
            device.configure(mtu, OUTER)
            expected = mtu if version == 4 else max(mtu, 1280)
            assert device.mtu == expected
            assert take()[0] == ("set_mtu", 7, expected)

    def test_a_route_that_is_refused_is_told(self) -> None:
        failing["add_route"] = in_use(errno.EEXIST)
        device = VpnDevice(plan("192.168.7.0/24"))
        with pytest.raises(DeviceError):
            device.configure(1350, OUTER)
        assert device.mtu == 0

    @pytest.mark.parametrize("lan", ["192.168.7.0/24", "fd07::/64"])
    def test_a_route_that_would_take_a_lan_away_is_refused_before_all_else(self, lan: str) -> None:
        lans.add(ip_network(lan))
        device = VpnDevice(plan("192.168.7.0/24", "fd07::/64"))
        take()
        with pytest.raises(DeviceError, match=lan):
            device.configure(1350, OUTER)
        assert take() == []
        assert device.mtu == 0

    def test_a_default_route_of_a_device_without_a_router_is_no_lan(self) -> None:
        """As that of a modem: the two halves come before it."""
        lans.update(map(ip_network, ("0.0.0.0/0", "::/0")))
        device = VpnDevice(plan("0.0.0.0/0", "::/0"))
        device.configure(1350, OUTER)
        assert device.mtu == 1350


class TestGoingAround:
    def up(self, *routes: str, user: str | None = None) -> VpnDevice:
        device = VpnDevice(plan(*routes, user=user))
        device.configure(1350, OUTER)
        take()
        return device

    def test_is_for_a_peer_that_the_routes_cover(self) -> None:
        device = self.up("192.168.7.0/24", "fd07::/64")
        device.go_around([OUTER, ip_address("2001:db8::1")])
        assert take() == []

    @pytest.mark.parametrize(
        ("address", "outer"),
        [("203.0.113.77/24", OUTER), ("2001:db8::77/64", ip_address("2001:db8::2"))],
    )
    def test_is_for_a_peer_inside_of_the_network_of_the_vpn_itself(
        self, address: str, outer: Address
    ) -> None:
        """The kernel routes that to the device as soon as it is up."""
        device = VpnDevice(make_plan(addresses=[address]))
        assert device.leads_inside(outer)
        device.configure(1350, outer)
        assert ours == {ip_network(outer): WAY}
        device.close()
        assert ours == {}

    def test_changes_nothing_as_long_as_nothing_changes(self) -> None:
        device = self.up("0.0.0.0/0")
        for _ in range(3):
            device.go_around([OUTER])
        assert names() == ["route_to"] * 3

    def test_follows_the_peer(self) -> None:
        device = self.up("0.0.0.0/0")
        device.go_around([OTHER])
        assert take() == [
            ("delete_route", ALONE, 3, GATEWAY),
            ("route_to", OTHER),
            ("add_route", OTHER_ALONE, 3, GATEWAY),
        ]
        device.close()
        assert take()[0] == ("delete_route", OTHER_ALONE, 3, GATEWAY)

    def test_is_for_several_and_leaves_those_that_are_not_wanted_any_more(self) -> None:
        device = self.up("0.0.0.0/0")
        device.go_around([OUTER, OTHER, ip_address("2001:db8::1")])
        assert set(ours) == {ALONE, OTHER_ALONE}
        third = ip_address("198.51.100.1")
        device.go_around([OTHER, third])
        assert set(ours) == {OTHER_ALONE, ip_network(third)}
        assert names().count("add_route") == 2  # nothing of what is there already is touched
        device.go_around([])
        assert ours == {}
        device.go_around([OUTER, OTHER])
        device.close()
        assert ours == {}

    def test_follows_this_host_to_another_network(self) -> None:
        device = self.up("0.0.0.0/0")
        ways.append(Route(4, None, None))
        device.go_around([OUTER])
        assert take()[1:] == [
            ("delete_route", ALONE, 3, GATEWAY),
            ("add_route", ALONE, 4, None),
        ]

    def test_follows_this_host_to_another_router_of_the_same_device(self) -> None:
        """Nothing takes the old way away: it would lead to where there is nobody any more."""
        device = self.up("0.0.0.0/0")
        ways.append(Route(3, NEXT, None))
        for _ in range(2):
            device.go_around([OUTER])
        assert take() == [
            ("route_to", OUTER),
            ("delete_route", ALONE, 3, GATEWAY),
            ("add_route", ALONE, 3, NEXT),
            ("route_to", OUTER),
        ]

    def test_makes_again_what_has_vanished(self) -> None:
        """As when a device was down for a moment."""
        device = self.up("0.0.0.0/0")
        ours.clear()
        device.go_around([OUTER])
        assert ours == {ALONE: WAY}
        device.close()
        assert ours == {}

    @pytest.mark.parametrize("way", [WAY, Route(3, GATEWAY, None)])
    @pytest.mark.parametrize("gateway", [GATEWAY, NEXT])
    def test_takes_over_what_an_earlier_run_has_left(self, gateway: Address, way: Route) -> None:
        """At once, since its gateway may be gone; and it is removed at the end."""
        ways.append(way)
        ours[ALONE] = Route(3, gateway, None)
        device = self.up("0.0.0.0/0")
        assert ours == {ALONE: way}
        device.go_around([OUTER])
        assert names() == ["route_to"]
        device.close()
        assert ours == {}

    def test_waits_while_there_is_no_network(self) -> None:
        device = self.up("0.0.0.0/0")
        ways.append(None)
        device.go_around([OUTER])
        assert names() == ["route_to"]

    def test_needs_a_way_to_begin_with(self) -> None:
        ways.append(None)
        device = VpnDevice(plan("0.0.0.0/0"))
        with pytest.raises(DeviceError, match=r"ip route add 203\.0\.113\.2/32 via"):
            device.configure(1350, OUTER)

    def test_leaves_a_route_of_the_users_alone(self) -> None:
        theirs[OTHER_ALONE] = Route(3, NEXT, None)
        device = self.up("203.0.113.0/24")
        for _ in range(2):
            device.go_around([OTHER])
        assert names().count("delete_route") == 1  # of the way to the other one
        device.close()
        assert "delete_route" not in names()
        assert ours == {}

    def test_takes_the_place_of_a_planned_route_for_as_long_as_it_is_wanted(self) -> None:
        device = self.up("203.0.113.9/32")
        inside = {OTHER_ALONE: Route(7, None, None)}
        assert planned == inside
        for _ in range(2):
            for _ in range(2):
                device.go_around([OUTER, OTHER])
                assert (planned, ours) == ({}, {OTHER_ALONE: WAY})
            device.go_around([OUTER])
            assert (planned, ours) == (inside, {})
        take()
        device.go_around([OUTER])
        assert take() == []
        device.go_around([OTHER])
        device.close()
        assert ours == {}

    def test_leaves_a_planned_route_where_it_is_without_another_way(self) -> None:
        device = self.up("203.0.113.9/32")
        ways.append(None)
        device.go_around([OUTER, OTHER])
        assert planned.keys() == {OTHER_ALONE}

    def test_puts_a_planned_route_back_although_the_way_failed(self) -> None:
        device = self.up("203.0.113.9/32")
        failing["add_route"] = DeviceError("the network is down")
        with pytest.raises(DeviceError):
            device.go_around([OTHER])
        with pytest.raises(DeviceError):
            device.go_around([OUTER])
        del failing["add_route"]
        device.go_around([OUTER])
        assert planned.keys() == {OTHER_ALONE}

    def test_does_not_put_a_planned_route_back_over_one_of_the_users(self) -> None:
        device = self.up("203.0.113.9/32")
        device.go_around([OTHER])
        ours.clear()
        theirs[OTHER_ALONE] = Route(3, NEXT, None)
        for _ in range(2):
            device.go_around([OUTER])
        assert planned == {}
        assert names().count("add_route") == 2

    def test_does_not_take_the_place_of_a_planned_route_to_begin_with(self) -> None:
        """What can't be had is told, as long as somebody is there to read it."""
        device = VpnDevice(plan("203.0.113.2/32"))
        with pytest.raises(DeviceError):
            device.configure(1350, OUTER)
        device.close()
        assert ours == {}

    @pytest.mark.parametrize("error", [in_use(errno.EPERM), DeviceError("for no reason")])
    def test_tells_what_is_refused(self, error: DeviceError) -> None:
        device = self.up("0.0.0.0/0")
        failing["add_route"] = error
        with pytest.raises(DeviceError):
            device.go_around([OTHER])
        device.close()


class TestUser:
    def test_becomes_one_at_the_end_and_changes_nothing_from_then_on(self) -> None:
        device = VpnDevice(plan("192.168.7.0/24", user="nobody"))
        assert dropped == []  # it would not get its routes any more
        device.configure(1350, OUTER)
        assert names()[-1] == "drop_to"
        assert dropped == [("nobody", frozenset())]
        device.configure(1300, OUTER)
        device.go_around([OTHER])
        assert take() == []
        assert device.mtu == 1350
        assert len(dropped) == 1

    @pytest.mark.parametrize("route", ["192.168.7.0/24", "0.0.0.0/0"])
    def test_keeps_what_else_is_needed(self, route: str) -> None:
        """That is no right to change the device."""
        device = VpnDevice(plan(route, user="nobody"), frozenset({"net_bind_service"}))
        device.configure(1350, OUTER)
        ((_, kept),) = dropped
        is_around = route == "0.0.0.0/0"
        assert kept == {"net_bind_service"} | ({"net_admin"} if is_around else set())
        device.configure(1300, OUTER)
        assert device.mtu == (1300 if is_around else 1350)

    def test_keeps_the_right_to_undo_the_way_around(self) -> None:
        device = VpnDevice(plan("0.0.0.0/0", user="nobody"))
        device.configure(1350, OUTER)
        assert dropped == [("nobody", frozenset({"net_admin"}))]
        device.configure(1300, OTHER)
        device.go_around([OTHER])
        assert device.mtu == 1300
        take()
        device.close()
        assert take()[0] == ("delete_route", OTHER_ALONE, 3, GATEWAY)

    @pytest.mark.parametrize(
        ("route", "expected"),
        [("0.0.0.0/0", []), ("203.0.113.9/32", [OTHER]), ("203.0.113.0/24", [SIXTH, OTHER])],
    )
    def test_keeps_the_right_to_go_around_on_a_later_path(
        self, route: str, expected: list[Address]
    ) -> None:
        """The first one is of another version, and needs no way around."""
        device = VpnDevice(plan(route, user="nobody"))
        device.expect(iter(expected))
        device.configure(1350, SIXTH)
        assert ours == {}
        assert dropped == [("nobody", frozenset({"net_admin"}))]
        device.go_around([SIXTH, OTHER])
        assert ours == {OTHER_ALONE: WAY}
        device.close()
        assert ours == {}

    def test_keeps_no_right_for_paths_that_lead_past_the_device(self) -> None:
        device = VpnDevice(plan("192.168.7.0/24", user="nobody"))
        device.expect([SIXTH, OUTER, OTHER])
        device.configure(1350, SIXTH)
        assert dropped == [("nobody", frozenset())]

    def test_that_nobody_may_become_is_told(self) -> None:
        failing["drop_to"] = DeniedError("not root")
        device = VpnDevice(plan(user="nobody"))
        with pytest.raises(DeniedError):
            device.configure(1350, OUTER)


class TestClosing:
    def test_removes_what_would_stay(self) -> None:
        device = VpnDevice(plan("0.0.0.0/0"))
        device.configure(1350, OUTER)
        take()
        device.close()
        assert take() == [
            ("delete_route", ALONE, 3, GATEWAY),
            ("close",),
            ("tun closed",),
        ]
        device.close()
        assert "delete_route" not in names()

    def test_goes_on_if_that_fails(self) -> None:
        device = VpnDevice(plan("0.0.0.0/0"))
        device.configure(1350, OUTER)
        failing["delete_route"] = DeniedError("no right any more")
        take()
        device.close()
        assert names()[-2:] == ["close", "tun closed"]
