"""A real TUN device, its addresses and its routes, judged by ip and ping, in namespaces of its own.

The programs inside speak over their standard input and output: a line each, of JSON where it is an
answer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.lab.namespace import Namespace, close_namespaces, open_namespaces, run_scripts
from support.lab import PATIENCE, eventually
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Makes a device with everything on it, takes a look around, and holds it until it is told to end.
HOLDER = """\
import json, sys
from ipaddress import ip_address, ip_interface, ip_network
from nat_traverse.errors import NatTraverseError
from nat_traverse.net.privileges import drop_to
from nat_traverse.net.rtnetlink import Network
from nat_traverse.net.tun import MAX_FRAME, Tun
wanted = json.loads(sys.argv[1])
def say(**what):
    print(json.dumps(what), flush=True)
try:
    device, network = Tun(wanted["name"]), Network()
    network.keep_quiet(device.index)
    network.set_mtu(device.index, wanted["mtu"])
    for each in wanted["addresses"]:
        network.add_address(device.index, ip_interface(each))
    network.set_up(device.index)
    for each in wanted["routes"]:
        network.add_route(ip_network(each), device.index)
    peers = []
    for each in wanted["peers"]:
        peer = ip_address(each)
        way = network.route_to(peer, besides=device.index)
        network.add_route(ip_network(peer), way.device, gateway=way.gateway)
        now = network.route_to(peer)
        peers.append([str(way.gateway), str(now.gateway), str(now.source), now.device])
        wanted["routes"].append(each)
    say(name=device.name, index=device.index, offload=int(device.offload), peers=peers,
        stray=device.read_into(bytearray(MAX_FRAME)))
    if wanted["user"]:
        drop_to(wanted["user"], frozenset(wanted["keep"]))
    sys.stdin.readline()
    for each, (gateway, *_, through) in zip(wanted["peers"], peers, strict=True):
        arguments = ip_network(each), through
        gone = [network.delete_route(*arguments, gateway=ip_address(gateway)) for _ in range(2)]
        assert gone == [True, False], gone
    device.close()
    say(ended=True)
    sys.stdin.readline()
except NatTraverseError as error:
    say(error=type(error).__name__, text=str(error))
    sys.exit(error.exit_code)
"""

# One end of a link without a network in between: frames as they are read go to the other end's
# device, super-packets included. At the end it says how large the largest was.
END = """\
import json, os, select, socket, sys
from ipaddress import ip_interface
from nat_traverse.net.rtnetlink import Network
from nat_traverse.net.tun import MAX_FRAME, Tun
channel = socket.socket(fileno=int(sys.argv[1]))
buffer = memoryview(bytearray(MAX_FRAME))
largest = packets = 0
with Tun() as device, Network() as network:
    network.keep_quiet(device.index)
    network.set_mtu(device.index, 1400)
    for each in sys.argv[2:]:
        network.add_address(device.index, ip_interface(each))
    network.set_up(device.index)
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([device, channel, sys.stdin], [], [])
        if sys.stdin in readable:
            break
        if device in readable:
            while (size := device.read_into(buffer)) is not None:
                channel.send(buffer[:size])
                largest, packets = max(largest, size), packets + 1
        if channel in readable:
            size = channel.recv_into(buffer)
            device.write([buffer[:10], buffer[10:size]])
    print(json.dumps([largest, packets, device.refused, int(device.offload)]), flush=True)
"""

# Half a second of TCP at the most; what arrives is compared.
RECEIVER = """\
import hashlib, socket, sys
server = socket.create_server(("", 5000), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
connection, _ = server.accept()
digest = hashlib.sha256()
while data := connection.recv(1 << 20):
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""
SENDER = """\
import hashlib, random, socket, sys
data = random.Random(5).randbytes(4_000_000)
connection = socket.create_connection((sys.argv[1], 5000), timeout=30)
connection.sendall(data)
connection.close()
print(hashlib.sha256(data).hexdigest(), flush=True)
"""

# Takes the MTU of a device down and up again, and says what came out of it.
RISING = """\
import json, sys
from ipaddress import ip_interface, ip_network
from nat_traverse.net.rtnetlink import Network
from nat_traverse.net.tun import MAX_FRAME, Tun
with Tun() as device, Network() as network:
    network.keep_quiet(device.index)
    network.add_address(device.index, ip_interface("10.7.0.1/24"))
    network.set_mtu(device.index, 1200)
    network.set_up(device.index)
    network.add_route(ip_network("192.168.7.0/24"), device.index)
    for mtu in (1400, 1279, 1280):
        network.set_mtu(device.index, mtu)
    print("ready", flush=True)
    sys.stdin.readline()
    stray = device.read_into(bytearray(MAX_FRAME))
    network.add_address(device.index, ip_interface("fd00:7::1/64"))
    print(json.dumps(stray), flush=True)
    sys.stdin.readline()
"""

# What a run does about routes that it finds: says which are ours, how it would go without these.
FINDER = """\
import json, sys
from ipaddress import ip_address, ip_network
from nat_traverse.net.rtnetlink import Network
with Network() as network:
    for each in sys.argv[1:]:
        found = network.own_route(ip_network(each))
        without = found and (ip_network(each), found)
        way = network.route_to(ip_address(each), besides=99, without=without)
        if found:
            network.delete_route(ip_network(each), found.device, gateway=found.gateway)
        print(json.dumps([str(route and route.gateway) for route in (found, way)]))
"""

# A VPN without links: with each line come the addresses at which the peer is, or is looked for.
# With the first that is alone the device comes up.
VPN = """\
import asyncio, json, sys
from ipaddress import ip_address
from nat_traverse.carry.addressing import make_plan
from nat_traverse.carry.vpn import Vpn
from nat_traverse.errors import NatTraverseError
def say(**what):
    print(json.dumps(what), flush=True)
async def main():
    vpn = Vpn(make_plan(**json.loads(sys.argv[1])), print)
    device = vpn.open()
    try:
        for line in sys.stdin:
            outers = [ip_address(each) for each in json.loads(line)]
            if len(outers) == 1 and not device.mtu:
                device.configure(1400, outers[0])
            vpn.keep_ways(outers)
            say(mtu=device.mtu)
    except NatTraverseError as error:
        say(error=type(error).__name__, text=str(error))
    finally:
        vpn.close()
asyncio.run(main())
"""

ADDRESSES = ["10.7.0.1/24", "fd00:7::1/64"]

WANTED: dict[str, Any] = {
    "name": "nat%d",
    "mtu": 1380,
    "addresses": ADDRESSES,
    "routes": ["192.168.7.0/24", "fd00:8::/64", "0.0.0.0/0", "::/0"],
    "peers": [],
    "user": None,
    "keep": [],
}

# What leads outside, for the peer's own address, which is not to go through the VPN.
UPLINK = """\
ip link add eth0 type veth peer name eth1
ip link set eth1 up
ip link set eth0 up
ip addr add 172.16.0.2/24 dev eth0
ip -6 addr add fd01::2/64 dev eth0 nodad
ip route add default via 172.16.0.1 metric 100
ip -6 route add default via fd01::1 metric 2048
"""


@pytest.fixture
def space() -> Iterator[Namespace]:
    (opened,) = open_namespaces([False])
    yield opened
    close_namespaces([opened])


class Program:
    """A Python program in a namespace that is told what to do a line at a time."""

    def __init__(
        self, space: Namespace, script: str, *arguments: str, pass_fds: Sequence[int] = ()
    ) -> None:
        self.process = space.popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def answer(self) -> Any:
        return json.loads(self.line())

    def go_on(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def ask(self, *what: str) -> Any:
        self.go_on(json.dumps(what))
        return self.answer()

    def end(self) -> int:
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@contextmanager
def held(space: Namespace, **wanted: object) -> Iterator[Program]:
    program = Program(space, HOLDER, json.dumps(WANTED | wanted))
    try:
        yield program
    finally:
        program.process.kill()
        program.end()


@contextmanager
def vpn(
    space: Namespace, *to: str, user: str | None = None, addresses: Sequence[str] = ADDRESSES
) -> Iterator[Program]:
    plan = {"addresses": addresses, "routes": to, "user": user}
    program = Program(space, VPN, json.dumps(plan))
    try:
        yield program
        assert program.end() == 0
    finally:
        program.process.kill()
        program.end()


def ip(space: Namespace, *arguments: str) -> Any:
    ran = space.run(["ip", "-json", *arguments])
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout or "[]")


def devices(space: Namespace) -> set[str]:
    return {each["ifname"] for each in ip(space, "link", "show")}


def routes(space: Namespace) -> set[tuple[str, str, str | None]]:
    """Return destination, device and gateway of all routes that somebody made."""
    listed = ip(space, "-4", "route", "show") + ip(space, "-6", "route", "show")
    return {
        (each["dst"], each["dev"], each.get("gateway"))
        for each in listed
        if each.get("protocol") != "kernel"
    }


def test_a_device_with_all_that_is_on_it(space: Namespace) -> None:
    run_scripts([(space, UPLINK)])
    before = routes(space)
    peers = ["198.51.100.9", "2001:db8::9"]
    with held(space, peers=peers) as program:
        made = program.answer()
        assert made["name"] == "nat0"
        assert made["offload"] & 0x07 == 0x07  # checksums, TCP uncut in both families
        assert made["stray"] is None  # nothing leaves that nobody has sent
        (link,) = ip(space, "addr", "show", "dev", "nat0")
        assert link["ifindex"] == made["index"]
        assert (link["mtu"], "UP" in link["flags"]) == (1380, True)
        (details,) = ip(space, "-details", "link", "show", "dev", "nat0")
        assert details["inet6_addr_gen_mode"] == "none"
        tun = details["linkinfo"]["info_data"]
        assert (tun["type"], tun["persist"], tun["vnet_hdr"], tun["pi"]) == (
            "tun",
            False,
            True,
            False,
        )
        addresses = {(each["local"], each["prefixlen"]): each for each in link["addr_info"]}
        assert addresses.keys() == {("10.7.0.1", 24), ("fd00:7::1", 64)}  # no link-local one
        assert not any(each.get("tentative") for each in addresses.values())
        expected = {(each, "nat0", None) for each in ("192.168.7.0/24", "fd00:8::/64", "default")}
        past = {("198.51.100.9", "eth0", "172.16.0.1"), ("2001:db8::9", "eth0", "fd01::1")}
        assert routes(space) == before | expected | past
        eth0 = ip(space, "link", "show", "dev", "eth0")[0]["ifindex"]
        assert made["peers"] == [
            ["172.16.0.1", "172.16.0.1", "172.16.0.2", eth0],
            ["fd01::1", "fd01::1", "fd01::2", eth0],
        ]
        program.go_on()
        assert program.answer() == {"ended": True}
        assert routes(space) == before
        assert "nat0" not in devices(space)


def test_a_name_that_is_taken(space: Namespace) -> None:
    run_scripts([(space, "ip tuntap add mode tun name lasting")])
    with held(space, name="vpn") as first:
        assert first.answer()["name"] == "vpn"
        with held(space, name="vpn") as second:
            answer = second.answer()
            assert answer["error"] == "DeviceError"
            assert "another nat-traverse" in answer["text"]
            second.process.wait(PATIENCE)
            assert second.process.returncode == 1
        for name in ("lasting", "lo"):  # not ours either
            with held(space, name=name) as another:
                assert another.answer()["error"] == "DeviceError"
        assert {"vpn", "lasting"} <= devices(space)
        first.process.kill()
        first.end()
        # However it ended, nothing of it is left, and the name is free.
        eventually(lambda: "vpn" not in devices(space), "the device is gone")
    with held(space, name="vpn") as again:
        assert again.answer()["name"] == "vpn"


def test_the_lowest_free_number(space: Namespace) -> None:
    with held(space) as first, held(space, addresses=[], routes=[]) as second:
        names = {first.answer()["name"], second.answer()["name"]}
        assert names == {"nat0", "nat1"}


def test_a_route_of_somebody_else_is_not_replaced(space: Namespace) -> None:
    run_scripts([(space, UPLINK + "ip route add 192.168.7.0/24 via 172.16.0.1\n")])
    before = routes(space)
    with held(space) as program:
        answer = program.answer()
        assert answer["error"] == "DeviceError"
        assert "(through eth0, to 172.16.0.1)" in answer["text"]
        program.process.wait(PATIENCE)
    assert routes(space) == before
    assert "nat0" not in devices(space)


def test_a_network_that_another_device_has(space: Namespace) -> None:
    with held(space, routes=[]) as first:
        assert first.answer()["name"] == "nat0"
        before = routes(space)
        for network in ("10.7.0.2/24", "fd00:7::2/64"):
            with held(space, routes=[], addresses=["10.9.0.1/24", network]) as second:
                answer = second.answer()
                assert answer["error"] == "DeviceError"
                assert "is the network of nat0 already" in answer["text"]
                second.process.wait(PATIENCE)
        assert routes(space) == before
        assert devices(space) == {"lo", "nat0"}


# With a metric, as NetworkManager gives, the kernel takes another route to the network; and with
# IPv6, where it gives one itself.
@pytest.mark.parametrize(
    ("network", "metric"),
    [("172.16.0.0/24", ""), ("172.16.0.0/24", " metric 100"), ("fd01::/64", "")],
)
def test_a_route_does_not_take_the_lan_away(space: Namespace, network: str, metric: str) -> None:
    lan = "172.16.0.2/24 dev eth0"
    run_scripts([(space, UPLINK.replace(lan, lan + metric))])
    before = routes(space)
    with vpn(space, "192.168.7.0/24", network) as program:
        answer = program.ask("198.51.100.9")
        assert answer["error"] == "DeviceError"
        text = f"Sending {network} through nat0 failed: there is a route to it already"
        assert f"{text} (through eth0). It is not replaced" in answer["text"]
    assert routes(space) == before


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("172.16.0.0/25", "172.16.0.7", "172.16.0.200"),
        ("172.16.0.0/16", "172.16.1.7", "172.16.0.7"),
        ("0.0.0.0/0", "203.0.113.9", "172.16.0.7"),
        ("fd01::/65", "fd01::7", "fd01::8000:0:0:7"),
        ("fd00::/15", "fd00::7", "fd01::7"),
        ("::/0", "2001:db8:1::7", "fd01::7"),
    ],
)
def test_a_route_to_a_part_of_the_lan_or_to_more(
    space: Namespace, network: str, inside: str, outside: str
) -> None:
    without_router = "ip route add default dev eth0 metric 50\n"
    without_router += "ip -6 route add default dev eth0 metric 50\n"
    run_scripts([(space, UPLINK + without_router)])
    before = routes(space)
    with vpn(space, network) as program:
        for outer in ("198.51.100.9", "2001:db8::9"):
            assert program.ask(outer) == {"mtu": 1400}
        for host, device in ((inside, "nat0"), (outside, "eth0"), ("2001:db8::9", "eth0")):
            assert ip(space, "route", "get", host)[0]["dev"] == device
    assert routes(space) == before


def test_a_planned_route_to_where_the_peer_was_looked_for(space: Namespace) -> None:
    run_scripts([(space, UPLINK)])
    before = routes(space)
    hosts = ("192.168.7.5", "fd07::5")
    inside = {(each, "nat0", None) for each in hosts}
    around = {("192.168.7.5", "eth0", "172.16.0.1"), ("fd07::5", "eth0", "fd01::1")}
    with vpn(space, "192.168.7.5/32", "fd07::5/128") as program:
        for _ in range(2):
            program.ask("198.51.100.9", *hosts)
            program.ask("198.51.100.9")
            assert routes(space) == before | inside
            program.ask("198.51.100.9", *hosts)
            assert routes(space) == before | around
        # Found there, it stays the way around for this one.
        program.ask("fd07::5")
        assert routes(space) == before | {
            ("192.168.7.5", "nat0", None),
            ("fd07::5", "eth0", "fd01::1"),
        }
        program.ask("198.51.100.9")
        assert routes(space) == before | inside
        program.ask("198.51.100.9", *hosts)
    assert routes(space) == before


@pytest.mark.parametrize("route", ["0.0.0.0/0", "198.51.100.0/24"])
def test_a_peer_of_two_versions_is_found_again_by_the_other(space: Namespace, route: str) -> None:
    """The first path needs no way around the VPN; whoever set it up has few rights by then."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    run_scripts([(space, UPLINK)])
    before = routes(space)
    both = ("2001:db8::9", "198.51.100.9")
    with vpn(space, route, user="nobody", addresses=["10.7.0.1/24"]) as program:
        program.ask(*both)
        assert program.ask("2001:db8::9") == {"mtu": 1400}
        assert ip(space, "route", "get", "198.51.100.9")[0]["dev"] == "nat0"
        program.ask(*both)
        assert ip(space, "route", "get", "198.51.100.9")[0]["dev"] == "eth0"
    assert routes(space) == before


def test_a_route_of_a_run_that_was_killed(space: Namespace) -> None:
    run_scripts([(space, UPLINK + "ip route add 198.51.100.8 via 172.16.0.8\n")])
    before = routes(space)
    with held(space, peers=["198.51.100.9", "2001:db8::9"]) as program:
        assert program.answer()["name"] == "nat0"
    left = {("198.51.100.9", "eth0", "172.16.0.1"), ("2001:db8::9", "eth0", "fd01::1")}
    assert routes(space) == before | left
    ran = space.run([sys.executable, "-c", FINDER, "198.51.100.8", "198.51.100.9", "2001:db8::9"])
    assert list(map(json.loads, ran.stdout.splitlines())) == [
        ["None", "172.16.0.8"],  # the user's own
        ["172.16.0.1", "172.16.0.1"],
        ["fd01::1", "fd01::1"],
    ]
    assert routes(space) == before


def test_a_route_without_a_carrier_is_no_way(space: Namespace) -> None:
    second = UPLINK.replace("eth0", "eth2").replace("eth1", "eth3").replace("172.16.0", "172.17.0")
    second = second.replace("fd01:", "fd02:").replace("100", "200").replace("2048", "4096")
    run_scripts([(space, UPLINK + second + "ip link set eth1 down\n")])
    # IPv6 takes a moment until it knows.
    eventually(
        lambda: all(
            "linkdown" in each["flags"] for each in ip(space, "route", "show", "dev", "eth0")
        ),
        "the carrier is gone",
    )
    ran = space.run([sys.executable, "-c", FINDER, "198.51.100.9", "2001:db8::9"])
    assert list(map(json.loads, ran.stdout.splitlines())) == [
        ["None", "172.17.0.1"],
        ["None", "fd02::1"],
    ]


def test_ipv6_that_comes_with_the_mtu_is_quiet(space: Namespace) -> None:
    program = Program(space, RISING)
    try:
        assert program.line() == "ready"
        (details,) = ip(space, "-details", "link", "show", "dev", "nat0")
        assert (details["mtu"], details["inet6_addr_gen_mode"]) == (1280, "none")
        assert details["operstate"] == "UP"
        assert {"UP", "LOWER_UP"} <= set(details["flags"])
        (before,) = ip(space, "addr", "show", "dev", "nat0")
        assert [each["local"] for each in before["addr_info"]] == ["10.7.0.1"]
        assert ("192.168.7.0/24", "nat0", None) in routes(space)
        program.go_on()
        assert program.answer() is None  # no packet
        (after,) = ip(space, "addr", "show", "dev", "nat0")
        assert [each["local"] for each in after["addr_info"]] == ["10.7.0.1", "fd00:7::1"]
    finally:
        program.process.kill()
        program.end()


@pytest.mark.parametrize(("disabled", "mtu"), [(1, 1380), (0, 1279)])
def test_a_device_that_can_have_no_ipv6(space: Namespace, disabled: int, mtu: int) -> None:
    run_scripts([(space, f"echo {disabled} >/proc/sys/net/ipv6/conf/default/disable_ipv6")])
    with held(space, mtu=mtu) as program:
        answer = program.answer()
        assert answer["error"] == "DeviceError"
        assert "disable_ipv6; the MTU has to be 1280" in answer["text"]


@pytest.mark.parametrize("keep", [["net_admin"], []])
def test_after_privileges_are_dropped(space: Namespace, keep: list[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    run_scripts([(space, UPLINK)])
    before = routes(space)
    with held(space, peers=["198.51.100.9"], user="nobody", keep=keep) as program:
        assert program.answer()["name"] == "nat0"
        program.go_on()
        answer = program.answer()
        if keep:
            assert answer == {"ended": True}
            assert routes(space) == before
        else:
            assert answer["error"] == "DeniedError"
            assert "--user nobody" in answer["text"]
            assert program.process.wait(PATIENCE) == 13
            # The device goes without any right; the route through another device can't.
            eventually(lambda: "nat0" not in devices(space), "the device is gone")
            assert routes(space) == before | {("198.51.100.9", "eth0", "172.16.0.1")}


def test_packets_pass_and_super_packets_too() -> None:
    need("ping", package="iputils-ping")
    left, right = open_namespaces([False, False])
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    addresses = [("10.7.0.1/24", "fd00:7::1/64"), ("10.7.0.2/24", "fd00:7::2/64")]
    try:
        programs = [
            Program(space, END, str(end.fileno()), *given, pass_fds=[end.fileno()])
            for space, end, given in zip((left, right), ends, addresses, strict=True)
        ]
        assert [each.line() for each in programs] == ["ready", "ready"]
        for given in addresses[1]:
            host = str(ip_interface(given).ip)
            # One at a time: behind the last of several ping waits for twice the round trip only.
            for size in ("56", "1300", "5000"):  # the last in fragments
                pinged = left.run(["ping", "-c", "1", "-s", size, "-W", str(PATIENCE), host])
                assert " 1 received" in pinged.stdout, pinged.stdout + pinged.stderr
            receiver = Program(right, RECEIVER)
            assert receiver.line() == "ready"
            sent = left.run([sys.executable, "-c", SENDER, host])
            assert receiver.line() == sent.stdout.strip()
            assert receiver.end() == 0
        for each in programs:
            each.go_on()
        said = [each.answer() for each in programs]
        assert [each.end() for each in programs] == [0, 0]
        (largest, packets, *_), _ = said
        assert largest > 20_000
        assert packets < 2 * 4_000_000 / 1400  # far fewer than segments
        assert [refused for _, _, refused, _ in said] == [0, 0]
    finally:
        for end in ends:
            end.close()
        close_namespaces([left, right])
