"""What is said of routes and refusals; that the kernel obeys is seen in the lab's tests."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from nat_traverse.errors import DeniedError, DeviceError
from nat_traverse.net import rtnetlink
from nat_traverse.net.netlink import MAKE_NEW, Message, attribute, attributes_in
from nat_traverse.net.rtnetlink import Network, Route, link_index

if TYPE_CHECKING:
    from collections.abc import Callable

MAIN, LOCAL = 254, 255
LO = 1


def route(  # as the kernel tells one
    network: str,
    *attributes: bytes,
    kind: int = 1,
    table: int = MAIN,
    protocol: int = 3,
    scope: int = 0,
    flags: int = 0,
) -> Message:
    target = ip_network(network)
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    fixed = struct.pack(
        "=BBBBBBBBI", *(family, target.prefixlen, 0, 0, table), protocol, scope, kind, flags
    )
    own = attribute(1, target.network_address.packed) if target.prefixlen else b""
    return Message(24, fixed, attributes_in(own + b"".join(attributes)))


def through(device: int) -> bytes:
    return attribute(4, struct.pack("=I", device))


def to(gateway: str) -> bytes:
    return attribute(5, ip_address(gateway).packed)


def metric(value: int) -> bytes:
    return attribute(6, struct.pack("=I", value))


class Kernel:
    """In the place of `Netlink`: keeps what it is asked, and answers from a table."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes, int]] = []
        self.fails = self.dump_fails = 0
        self.table: list[Message] = []

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        self.asked.append((kind, body, flags))
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails) + " (so it is)")
        return self.table

    def dump(self, kind: int, body: bytes) -> list[Message]:
        assert (kind, len(body)) == (26, 12)
        if self.dump_fails:
            raise OSError(self.dump_fails, os.strerror(self.dump_fails))
        return self.table

    def close(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(rtnetlink, "Netlink", lambda _: made)
    return made


def test_links_by_name() -> None:
    assert link_index("lo") == LO
    assert link_index("no-such-device") is None
    assert link_index("x" * 100) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_real_route_to_ourselves(host: str) -> None:
    with Network() as network:
        way = network.route_to(ip_address(host))
        assert way is not None
        assert (way.device, way.is_local, way.gateway) == (LO, True, None)


def test_the_real_table_without_what_is_asked_for() -> None:
    with Network() as network:
        for host in ("127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"):
            way = network.route_to(ip_address(host), besides=LO)
            assert way is None or way.device != LO


def test_a_route_with_a_gateway(kernel: Kernel) -> None:
    source = attribute(7, ip_address("10.0.0.2").packed)
    kernel.table = [route("192.0.2.1/32", through(3), to("10.0.0.1"), source)]
    assert Network().route_to(ip_address("192.0.2.1")) == Route(
        3, ip_address("10.0.0.1"), ip_address("10.0.0.2")
    )


def test_a_gateway_of_the_other_family(kernel: Kernel) -> None:
    via = attribute(18, struct.pack("=H", socket.AF_INET6) + ip_address("fe80::1").packed)
    kernel.table = [route("192.0.2.1/32", through(3), via)]
    way = Network().route_to(ip_address("192.0.2.1"))
    assert way == Route(3, ip_address("fe80::1"), None)
    assert way is not None
    Network().add_route(ip_network("192.0.2.1/32"), way.device, gateway=way.gateway)
    assert attributes_in(kernel.asked[-1][1][12:])[18] == attributes_in(via)[18]


def test_several_ways_at_once(kernel: Kernel) -> None:
    def hop(device: int, gateway: str, flags: int = 0) -> bytes:
        return struct.pack("=HBBi", 16, flags, 0, device) + to(gateway)

    hops = hop(5, "10.0.0.1"), hop(6, "10.0.0.2"), hop(7, "10.0.0.3")
    host = ip_address("192.0.2.1")
    kernel.table = [route("0.0.0.0/0", attribute(9, b"".join(hops)))]
    assert Network().route_to(host, besides=9) == Route(5, ip_address("10.0.0.1"), None)
    assert Network().route_to(host, besides=5) == Route(6, ip_address("10.0.0.2"), None)
    dead = attribute(9, hop(5, "10.0.0.1", 16) + hop(6, "10.0.0.2", 1) + hops[2] + b"cut off")
    kernel.table = [route("0.0.0.0/0", dead)]
    assert Network().route_to(host, besides=9) == Route(7, ip_address("10.0.0.3"), None)


@pytest.mark.parametrize(
    "message",
    [
        route("192.0.2.1/32", through(1), kind=7),  # unreachable
        route("192.0.2.1/32"),  # through no device
        Message(99, b"", {}),
        Message(24, b"short", {}),
    ],
)
def test_a_route_that_leads_nowhere(kernel: Kernel, message: Message) -> None:
    kernel.table = [message]
    assert Network().route_to(ip_address("192.0.2.1")) is None


@pytest.mark.parametrize(
    "number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL]
)
def test_no_route(kernel: Kernel, number: int) -> None:
    kernel.fails = number
    assert Network().route_to(ip_address("192.0.2.1")) is None


def test_a_question_that_fails(kernel: Kernel) -> None:
    kernel.fails = errno.ENOBUFS
    with pytest.raises(DeviceError, match=r"route to 192.0.2.1 failed: No buffer"):
        Network().route_to(ip_address("192.0.2.1"))


def test_the_best_route_without_one_device(kernel: Kernel) -> None:
    kernel.table = [
        route("0.0.0.0/0", through(7)),
        route("0.0.0.0/0", through(3), to("10.0.0.9"), metric(600)),
        route("0.0.0.0/0", through(2), to("10.0.0.1"), metric(100)),
        route("192.0.2.0/24", through(7)),
        route("192.0.2.0/24", through(4), table=LOCAL),
        route("198.51.100.0/24", through(5), metric(900)),
        route("::/0", through(6), to("fe80::1")),
    ]
    asked = Network()
    for host, device in (
        ("192.0.2.1", 2),
        ("198.51.100.1", 5),
        ("2001:db8::1", 6),
    ):
        way = asked.route_to(ip_address(host), besides=7)
        assert way is not None
        assert way.device == device
    assert asked.route_to(ip_address("2001:db8::1"), besides=6) is None


# linux/rtnetlink.h: RTNH_F_DEAD, RTNH_F_LINKDOWN; 4 is RTNH_F_ONLINK.
@pytest.mark.parametrize(("flags", "device"), [(0, 2), (4, 2), (1, 3), (16, 3), (17, 3)])
def test_a_route_without_a_carrier_is_no_way(kernel: Kernel, flags: int, device: int) -> None:
    kernel.table = [
        route("0.0.0.0/0", through(3), to("10.0.0.9"), metric(600)),
        route("0.0.0.0/0", through(2), to("10.0.0.1"), metric(100), flags=flags),
    ]
    way = Network().route_to(ip_address("192.0.2.1"), besides=7)
    assert way is not None
    assert way.device == device


@pytest.mark.parametrize("besides", [7, None])
def test_the_best_route_without_one_of_our_own(kernel: Kernel, besides: int | None) -> None:
    host, own = ip_address("192.0.2.1"), ip_network("192.0.2.1/32")
    source = attribute(7, ip_address("10.0.0.2").packed)
    kernel.table = [
        route("192.0.2.1/32", through(2), to("10.0.0.1"), source),
        route("0.0.0.0/0", through(3), to("10.0.0.9")),
    ]
    way = Route(2, ip_address("10.0.0.1"), None)  # who asks need not know the source
    asked = Network()
    default = Route(3, ip_address("10.0.0.9"), None)
    assert asked.route_to(host, besides=besides, without=(own, way)) == default
    for other in (
        (ip_network("192.0.2.0/31"), way),
        (own, way._replace(device=3)),
        (own, way._replace(gateway=None)),
    ):
        found = asked.route_to(host, besides=besides, without=other)
        assert found is not None
        assert found.device == 2


def test_a_table_that_cannot_be_read(kernel: Kernel) -> None:
    kernel.dump_fails = errno.ENOBUFS
    asked, why = Network(), "Reading the routes of this host failed: No buffer"
    with pytest.raises(DeviceError, match=why):
        asked.route_to(ip_address("192.0.2.1"), besides=7)
    with pytest.raises(DeviceError, match=why):
        asked.own_route(ip_network("192.0.2.1/32"))
    with pytest.raises(DeviceError, match=why):
        asked.add_address(LO, ip_interface("10.1.0.1/16"))
    # What was to be said first is said all the same, without whose it is.
    kernel.fails = errno.EEXIST
    with pytest.raises(DeviceError, match=r"a route to it already\. It") as caught:
        asked.add_route(ip_network("10.1.0.0/16"), LO)
    assert isinstance(caught.value.__cause__, FileExistsError)


def test_a_table_that_is_not_there_yet(kernel: Kernel) -> None:
    kernel.dump_fails = errno.ENOENT
    assert Network().route_to(ip_address("192.0.2.1"), besides=7) is None
    Network().add_address(LO, ip_interface("10.1.0.1/16"))
    assert len(kernel.asked) == 1


OURS = 0x4E


def test_routes_that_are_ours(kernel: Kernel) -> None:
    kernel.table = [
        route("192.0.2.1/32", through(2), to("10.0.0.1"), protocol=4),
        route("192.0.2.0/24", through(3), to("10.0.0.1"), protocol=OURS),
        route("2001:db8::1/128", through(4), to("fe80::1"), protocol=OURS, flags=16),
    ]
    asked = Network()
    assert asked.own_route(ip_network("192.0.2.1/32")) is None
    assert asked.own_route(ip_network("192.0.2.0/25")) is None
    assert asked.own_route(ip_network("192.0.2.0/24")) == Route(3, ip_address("10.0.0.1"), None)
    assert asked.own_route(ip_network("2001:db8::1/128")) == Route(4, ip_address("fe80::1"), None)


def test_a_route_that_is_ours_besides_those_of_a_device(kernel: Kernel) -> None:
    network = ip_network("192.0.2.1/32")
    kernel.table = [route("192.0.2.1/32", through(7), protocol=OURS)]
    assert Network().own_route(network) == Route(7, None, None)
    assert Network().own_route(network, besides=7) is None
    kernel.table.append(route("192.0.2.1/32", through(3), to("10.0.0.1"), protocol=OURS))
    assert Network().own_route(network, besides=7) == Route(3, ip_address("10.0.0.1"), None)


@pytest.mark.parametrize(
    ("network", "metrics", "table", "text"),
    [
        ("10.1.0.0/16", None, [route("10.1.0.0/16", through(LO))], "already (through lo)."),
        ("10.1.0.0/16", 5, [route("10.1.0.0/16", through(LO), metric(5))], "already (through lo)."),
        ("10.1.0.0/16", 5, [route("10.1.0.0/16", through(LO))], "already. It"),
        ("10.1.0.0/16", None, [route("10.1.0.0/17", through(LO))], "already. It"),
        (
            "fd00::/8",
            None,
            [route("fd00::/8", through(LO), to("fe80::1"), metric(1024))],
            "already (through lo, to fe80::1).",
        ),
    ],
)
def test_a_route_that_is_there_is_not_replaced(
    kernel: Kernel, network: str, metrics: int | None, table: list[Message], text: str
) -> None:
    kernel.fails, kernel.table = errno.EEXIST, table
    with pytest.raises(DeviceError) as caught:
        Network().add_route(ip_network(network), LO, metric=metrics)
    assert f"Sending {network} through lo failed: there is a route to it {text}" in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert kernel.asked[0][2] == MAKE_NEW


# linux/rtnetlink.h: table main, made by us, scope, unicast, flags.
@pytest.mark.parametrize(
    ("network", "gateway", "scope", "flags"),
    [
        ("10.1.0.0/16", None, 253, 0),
        ("10.1.0.1/32", "10.9.0.1", 0, 4),
        ("fd00::/8", None, 0, 0),
        ("fd00::1/128", "fe80::1", 0, 4),
    ],
)
def test_a_route_as_it_is_asked_for(
    kernel: Kernel, network: str, gateway: str | None, scope: int, flags: int
) -> None:
    target = ip_network(network)
    router = ip_address(gateway) if gateway else None
    Network().add_route(target, 3, gateway=router, metric=9)
    assert Network().delete_route(target, 3, gateway=router, metric=9)
    (_, added, _), (_, deleted, _) = kernel.asked
    assert added[1] == deleted[1] == target.prefixlen
    assert struct.unpack_from("=BBBBI", added, 4) == (254, OURS, scope, 1, flags)
    assert struct.unpack_from("=BBBBI", deleted, 4) == (254, OURS, 255, 1, 0)
    expected = {1: target.network_address.packed, 4: struct.pack("=I", 3), 6: struct.pack("=I", 9)}
    if router is not None:
        expected[5] = router.packed
    assert attributes_in(added[12:]) == attributes_in(deleted[12:]) == expected


@pytest.mark.parametrize("number", [errno.ESRCH, errno.ENODEV])
def test_deleting_what_is_gone(kernel: Kernel, number: int) -> None:
    kernel.fails = number
    assert not Network().delete_route(ip_network("10.1.0.0/16"), 3)


CHANGES: list[tuple[Callable[[Network], object], str]] = [
    (lambda network: network.set_mtu(LO, 1400), "Giving lo an MTU of 1400"),
    (lambda network: network.set_up(LO), "Switching lo on"),
    (lambda network: network.keep_quiet(LO), "Switching off what lo sends"),
    (lambda network: network.add_address(LO, ip_interface("10.1.0.1/16")), "address 10.1.0.1/16"),
    (lambda network: network.add_address(LO, ip_interface("fd00::1/64")), "address fd00::1/64"),
    (lambda network: network.add_route(ip_network("10.1.0.0/16"), LO), "Sending 10.1.0.0/16"),
    (lambda network: network.delete_route(ip_network("fd00::/8"), LO), "the route to fd00::/8"),
]


@pytest.mark.parametrize(("change", "doing"), CHANGES)
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.ENOMEM, "Cannot allocate memory (so it is)"),
        (errno.ENETDOWN, "the device is down"),
    ],
)
def test_what_the_user_reads(
    kernel: Kernel, change: Callable[[Network], object], doing: str, number: int, text: str
) -> None:
    kernel.fails = number
    with pytest.raises(DeviceError) as caught:
        change(Network())
    assert type(caught.value) is (DeniedError if number == errno.EPERM else DeviceError)
    assert doing in str(caught.value)
    assert text in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number


def test_a_device_that_is_gone(kernel: Kernel) -> None:
    kernel.fails = errno.ENODEV
    for host in ("10.1.0.1/16", "fd00::1/64"):
        with pytest.raises(DeviceError, match=r"the device 999999 .* is not there any more"):
            Network().add_address(999_999, ip_interface(host))


def test_an_address_that_is_there(kernel: Kernel) -> None:
    kernel.fails = errno.EEXIST
    with pytest.raises(DeviceError, match="it has it already"):
        Network().add_address(LO, ip_interface("10.1.0.1/16"))


@pytest.mark.parametrize(
    ("interface", "other", "is_taken"),
    [
        ("10.1.0.1/16", route("10.1.0.0/16", through(LO), scope=253), True),
        ("10.1.0.1/31", route("10.1.0.0/31", through(LO), scope=253), True),
        ("10.1.0.1/32", route("10.1.0.1/32", through(LO), scope=253), True),
        ("fd00::1/64", route("fd00::/64", through(LO)), True),
        ("fd00::1/127", route("fd00::/127", through(LO)), True),
        ("fd00::1/128", route("fd00::1/128", through(LO)), True),
        ("10.1.0.1/16", route("10.1.0.0/16", through(99), scope=253), False),  # our own device
        ("10.1.0.1/16", route("10.1.0.0/17", through(LO), scope=253), False),
        ("10.1.0.1/16", route("10.0.0.0/8", through(LO), scope=253), False),
        ("10.1.0.1/16", route("10.1.0.0/16", through(LO), to("10.9.0.1")), False),
        ("10.1.0.1/16", route("10.1.0.0/16", through(LO), scope=253, table=LOCAL), False),
        ("10.1.0.1/32", route("10.1.0.0/31", through(LO), scope=253), False),
        ("fd00::1/64", route("fd00::/64", through(LO), to("fe80::1")), False),
    ],
)
def test_a_network_that_another_device_has(
    kernel: Kernel, interface: str, other: Message, is_taken: bool
) -> None:
    kernel.table = [other]
    address = ip_interface(interface)
    if not is_taken:
        Network().add_address(99, address)
        assert len(kernel.asked) == 1
        return
    with pytest.raises(DeviceError) as caught:
        Network().add_address(99, address)
    assert f"failed: {address.network} is the network of lo already" in str(caught.value)
    assert "Choose another network" in str(caught.value)
    assert not kernel.asked


# What the kernel would take beside the LAN's route, as it has another metric.
@pytest.mark.parametrize(
    ("network", "other", "is_taken"),
    [
        ("10.1.0.0/16", route("10.1.0.0/16", through(LO), metric(100), scope=253), True),
        ("10.1.0.0/16", route("10.1.0.0/16", through(LO), scope=253), True),
        ("fd00::/64", route("fd00::/64", through(LO), metric(256)), True),
        ("10.1.0.0/16", route("10.1.0.0/16", through(99), scope=253), False),  # our own device
        ("10.1.0.0/17", route("10.1.0.0/16", through(LO), metric(100), scope=253), False),
        ("10.0.0.0/8", route("10.1.0.0/16", through(LO), metric(100), scope=253), False),
        ("10.1.0.0/16", route("10.1.0.0/16", through(LO), to("10.9.0.1"), metric(100)), False),
        ("0.0.0.0/1", route("0.0.0.0/0", through(LO), scope=253), False),
        ("fd00::/63", route("fd00::/64", through(LO), metric(256)), False),
    ],
)
def test_a_route_to_a_network_that_another_device_has(
    kernel: Kernel, network: str, other: Message, is_taken: bool
) -> None:
    kernel.table = [other]
    if not is_taken:
        Network().check_route(ip_network(network), 99)
        return
    with pytest.raises(DeviceError) as caught:
        Network().check_route(ip_network(network), 99)
    text = f"Sending {network} through the device 99 failed: there is a route to it already"
    assert f"{text} (through lo). It is not replaced" in str(caught.value)
    assert "Choose a smaller network" in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT])
def test_a_device_without_ipv6(kernel: Kernel, number: int) -> None:
    kernel.fails = number
    with pytest.raises(DeviceError, match=r"sysctl net.ipv6.conf.lo.disable_ipv6") as caught:
        Network().add_address(LO, ip_interface("fd00::1/64"))
    assert not isinstance(caught.value, DeniedError)


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EINVAL])
def test_without_ipv6_all_is_quiet(kernel: Kernel, number: int) -> None:
    kernel.fails = number
    Network().keep_quiet(LO)
    assert len(kernel.asked) == 1


class Changing(Kernel):
    """The kernel of a device whose IPv6 ends and begins with its MTU."""

    def __init__(self, *, has_ipv6: bool, takes: int = 1500) -> None:
        super().__init__()
        self.has_ipv6 = has_ipv6
        self.takes = takes
        self.changes: list[tuple[int, int]] = []

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        assert (kind, flags) == (19, 0)
        ((attribute_kind, value),) = attributes_in(body[16:]).items()
        number = int.from_bytes(value, sys.byteorder) if attribute_kind != 26 else 0
        self.changes.append((attribute_kind, number))
        if attribute_kind == 26 and not self.has_ipv6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported")
        if attribute_kind == 4:
            if number > self.takes:
                raise OSError(errno.EINVAL, "Invalid argument (mtu greater than device maximum)")
            self.has_ipv6 = number >= 1280
        return []


# linux/if_link.h: the MTU, the operational state, what is of a family.
MTU, STATE, FAMILY = 4, 16, 26
DORMANT, UP = 5, 6


@pytest.mark.parametrize(
    ("has_ipv6", "mtu", "changes"),
    [
        (True, 1280, [(FAMILY, 0), (MTU, 1280)]),
        (True, 1279, [(MTU, 1279)]),
        (False, 1279, [(MTU, 1279)]),
        (
            False,
            1280,
            [(FAMILY, 0), (STATE, DORMANT), (MTU, 1280), (FAMILY, 0), (STATE, UP)],
        ),
    ],
)
def test_ipv6_that_comes_with_the_mtu_is_quiet(
    monkeypatch: pytest.MonkeyPatch, has_ipv6: bool, mtu: int, changes: list[tuple[int, int]]
) -> None:
    kernel = Changing(has_ipv6=has_ipv6)
    monkeypatch.setattr(rtnetlink, "Netlink", lambda _: kernel)
    Network().set_mtu(LO, mtu)
    assert kernel.changes == changes
    assert kernel.has_ipv6 == (mtu >= 1280)


def test_an_mtu_that_is_refused_leaves_the_device_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Changing(has_ipv6=False)
    monkeypatch.setattr(rtnetlink, "Netlink", lambda _: kernel)
    with pytest.raises(DeviceError, match=r"lo an MTU of 1501 failed: Invalid argument \(mtu"):
        Network().set_mtu(LO, 1501)
    assert kernel.changes[-1] == (STATE, UP)
