"""The VPN through real kernel NATs, with the programs that people use over it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nat_traverse.errors import EXIT_NOT_AGREED
from nat_traverse.lab import Kind, Lab
from support.lab import Tap, forget
from support.programs import OURS, Program
from support.sides import left, right
from support.sshd import ssh_server
from support.vpns import (
    DEVICE,
    LEFT,
    RIGHT,
    SECRET,
    V4,
    V6,
    behind,
    iperf,
    is_reached,
    mtu_of,
    pings,
    state,
    vpn,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# s, what is promised.
LIMIT = 10.0

# A third host of the network inside.
V4_SECOND = "10.77.0.3"

# Two addresses inside of the network of the right gateway's public one.
AROUND = ("203.0.113.77", "203.0.113.78")

# Behind the left gateway of the lab.
V4_LATER, V4_GATEWAY = "192.168.1.77", "192.168.1.1"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Kind.DROP, Kind.DROP) as lab:
        yield lab


class TestTraffic:
    def test_ping_both_ways(self) -> None:
        with (
            Lab(Kind.DROP, Kind.DROP, offload=False) as lab,
            vpn(lab) as (one, _),
            Tap(lab.left_gateways[0], "wan") as wan,
        ):
            up = one.event("vpn-up")
            assert up["device"] == DEVICE
            assert up["addresses"] == [f"{V4[0]}/24", f"{V6[0]}/64"]
            assert up["peers"] == [V4[1], V6[1]]
            assert mtu_of(lab.left) == mtu_of(lab.right) == up["mtu"] >= 1280
            for here, there in ((V4[1], V4[0]), (V6[1], V6[0])):
                assert pings(lab.left, here)
                assert pings(lab.right, there)
                # The largest packet passes whole: nothing on the way is a fragment.
                headers = 28 if "." in here else 48
                whole = ("-M", "do", "-s", str(up["mtu"] - headers))
                assert pings(lab.left, here, *whole)
        assert 1440 < max(len(packet.data) for packet in wan.packets) <= 1452

    def test_a_path_that_takes_less(self) -> None:
        """The routers in between take 1,440 bytes, which no host knows beforehand."""
        with Lab(Kind.DROP, Kind.DROP, mtu=1440) as lab, vpn(lab) as (one, _):
            mtu = one.event("vpn-up")["mtu"]
            assert 1280 <= mtu < 1400
            assert pings(lab.left, V4[1], "-M", "do", "-s", str(mtu - 28))
            assert pings(lab.right, V6[0], "-M", "do", "-s", str(mtu - 48))

    def test_iperf_both_ways(self, lab: Lab) -> None:
        with vpn(lab):
            for to, client, server in ((V4[1], lab.left, lab.right), (V6[0], lab.right, lab.left)):
                # What the server has not read at the end does not count with iperf3.
                tcp = iperf(server, client, to, "-n", "20M", "-P", "2")
                assert tcp["sum_received"]["bytes"] > 10e6
                udp = iperf(server, client, to, "-u", "-b", "20M", "-k", "500", "-l", "1000")
                assert udp["sum"]["packets"] > 100
                assert udp["sum"]["lost_percent"] < 50

    def test_ssh(self, lab: Lab, tmp_path: Path) -> None:
        with vpn(lab), ssh_server(lab.right, tmp_path) as log_in:
            said = log_in(lab.left, "-o", f"HostName={V4[1]}")
            assert said.startswith(b"hello\nas root on ")
            assert V4[0].encode() in said

    def test_a_gigabyte_under_loss_arrives_as_it_was(self, tmp_path: Path) -> None:
        """1 % of the packets are lost, and TCP inside of the VPN repeats what is missing."""
        with Lab(Kind.DROP, Kind.DROP, loss=1) as lab, vpn(lab):
            got = copy(lab, 1_000_000_000, tmp_path)
        assert got == expected(1_000_000_000)


# One megabyte again and again: its digest is known without a gigabyte in memory.
BLOCK = random.Random(7).randbytes(1_000_000)

# BBR, where there is it, does not take each loss for a jam: that is three times as fast here.
SENDER = """\
import contextlib, socket, sys
block = open(sys.argv[1], "rb").read()
with socket.create_connection((sys.argv[2], 7777)) as sock:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    for _ in range(int(sys.argv[3])):
        sock.sendall(block)
"""

RECEIVER = """\
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 7777)) as server:
    print("ready", flush=True)
    sock, _ = server.accept()
    digest, size = hashlib.sha256(), 0
    while data := sock.recv(1 << 20):
        digest.update(data)
        size += len(data)
    print(size, digest.hexdigest(), flush=True)
"""


def copy(lab: Lab, size: int, directory: Path) -> str:
    """Send `size` bytes over TCP from left to right; returns what arrived, as size and digest."""
    (directory / "block").write_bytes(BLOCK)
    receiving = [sys.executable, "-c", RECEIVER, V4[1]]
    sending = [sys.executable, "-c", SENDER, str(directory / "block"), V4[1]]
    with Program(receiving, lab.right) as receiver:
        receiver.prints(6)
        with Program([*sending, str(size // len(BLOCK))], lab.left) as sender:
            assert sender.wait(120) == 0, sender.errors
        assert receiver.wait() == 0
        return receiver.output.decode().splitlines()[1]


def expected(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        digest.update(BLOCK)
    return f"{size} {digest.hexdigest()}"


def test_through_a_gateway_that_picks_random_ports() -> None:
    with Lab(Kind.DROP, Kind.RANDOM) as lab, vpn(lab) as (one, _):
        assert one.event("connected")["strategy"] != "direct"
        assert pings(lab.left, V4[1])
        assert pings(lab.right, V6[0])


class TestSites:
    """Hosts behind both ends, that know nothing of the VPN but their default route."""

    ONE = ("--route=192.168.7.0/24", "--announce=192.168.5.0/24")
    OTHER = ("--route=192.168.5.0/24", "--announce=192.168.0.0/16")

    def test_hosts_behind_both_ends_reach_each_other(self, lab: Lab) -> None:
        with (
            behind(lab.left, "192.168.5.1/24", "192.168.5.10/24") as near,
            behind(lab.right, "192.168.7.1/24", "192.168.7.10/24") as far,
            vpn(lab, one=(*LEFT, *self.ONE), other=(*RIGHT, *self.OTHER)) as (one, _),
        ):
            assert one.event("vpn-up")["routes"] == ["192.168.7.0/24"]
            assert pings(near, "192.168.7.10")
            assert pings(far, "192.168.5.10")
            figures = iperf(far, near, "192.168.7.10", "-n", "10M")
            assert figures["sum_received"]["bytes"] > 5e6
            # What was not announced to the left side is not reached through it.
            lab.right.run(["ip", "route", "add", "192.168.9.0/24", "dev", DEVICE])
            lab.left.run(["ip", "address", "add", "192.168.9.1/32", "dev", "lo"])
            assert not pings(lab.right, "192.168.9.1", count=1, patience=1)
            one.signal(signal.SIGTERM)
            one.wait()
            assert one.event("vpn-dropped")["counts"]["foreign"] >= 1

    def test_a_network_that_nobody_announced_is_refused_on_both_sides(self, lab: Lab) -> None:
        with (
            left(lab, *LEFT, "--route=192.168.7.0/24", env=SECRET) as one,
            right(lab, *RIGHT, env=SECRET) as other,
        ):
            assert one.wait() == other.wait() == EXIT_NOT_AGREED
            assert "has not announced" in one.event("error")["message"]
            assert "--announce 192.168.7.0/24" in other.event("error")["message"]

    def test_all_of_ipv4_goes_through_and_the_way_to_the_peer_stays(self, lab: Lab) -> None:
        before = state(lab.left)
        with vpn(
            lab,
            one=(f"--vpn={V4[0]}/24", "--route=0.0.0.0/0"),
            other=(f"--vpn={V4[1]}/24", "--announce=0.0.0.0/0"),
        ) as (one, _):
            lab.right.run(["ip", "address", "add", "198.18.0.1/32", "dev", "lo"])
            assert pings(lab.left, "198.18.0.1")
            assert one.event("vpn-up")["device"] == "nat0"
            one.signal(signal.SIGINT)
            one.wait()
            assert state(lab.left) == before


class TestRefusals:
    def test_the_same_address_on_both_sides(self, lab: Lab) -> None:
        with left(lab, *LEFT, env=SECRET) as one, right(lab, *LEFT, env=SECRET) as other:
            assert one.wait() == other.wait() == EXIT_NOT_AGREED
            assert "Both sides have the address" in one.event("error")["message"]

    def test_a_second_start_with_the_same_name(self, lab: Lab) -> None:
        with vpn(lab), left(lab, *LEFT, env=SECRET) as again:
            assert again.wait() == 1
            assert f"There is a network device {DEVICE} already" in again.event("error")["message"]
            assert pings(lab.left, V4[1])

    def test_a_second_vpn_with_the_same_network(self, lab: Lab) -> None:
        """The kernel would take both, and send all to one of them."""
        with vpn(lab):
            before = state(lab.left)
            with left(lab, f"--vpn={V4_SECOND}/24", env=SECRET) as again:
                assert again.wait() == 1
                message = again.event("error")["message"]
                assert f"10.77.0.0/24 is the network of {DEVICE} already" in message
                assert not any(each["event"] == "opened" for each in again.events)
            assert state(lab.left) == before
            assert pings(lab.left, V4[1])

    def test_a_user_that_there_is_not(self, lab: Lab) -> None:
        with left(lab, *LEFT, "--user=no-such-user-here", env=SECRET) as one:
            assert one.wait() == 2
            assert "There is no user" in one.event("error")["message"]
            assert not any(each["event"] == "opened" for each in one.events)

    def test_without_the_right(self, lab: Lab) -> None:
        argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        spec = f"40000:{lab.right.public.v4}:40001"
        with Program([*argv, OURS, "--json", *LEFT, spec], lab.left, env=SECRET) as one:
            assert one.wait() == 13
            assert "CAP_NET_ADMIN" in one.event("error")["message"]
            assert not any(each["event"] == "opened" for each in one.events)

    def test_the_other_side_wants_a_pipe(self, lab: Lab) -> None:
        with left(lab, *LEFT, env=SECRET) as one, right(lab, env=SECRET) as other:
            assert one.wait() == other.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_behind(lab: Lab, number: signal.Signals) -> None:
    before = state(lab.left), state(lab.right)
    options = ("--route=192.168.7.0/24",)
    announced = ("--announce=192.168.7.0/24",)
    with vpn(lab, one=(*LEFT, *options), other=(*RIGHT, *announced)) as (one, other):
        assert state(lab.left) != before[0]
        one.signal(number)
        assert one.wait() == -number
        other.signal(signal.SIGTERM)
        other.wait()
    assert (state(lab.left), state(lab.right)) == before


def test_as_another_user(lab: Lab) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user: run the tests as root to see --user")
    before = state(lab.left)
    with vpn(lab, "--user", "nobody", "--retry") as (one, other):
        for program in (one, other):
            with open(f"/proc/{program.process.pid}/status", encoding="ascii") as status:  # noqa: PTH123
                fields = dict(line.split(":\t", 1) for line in status.read().splitlines())
            assert set(fields["Uid"].split()) == {"65534"}
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            assert fields["NoNewPrivs"].strip() == "1"
        assert pings(lab.left, V4[1])
        one.signal(signal.SIGTERM)
        one.wait()
        assert state(lab.left) == before


class TestStayingUp:
    """Each time the VPN is back within ten seconds, with the same device."""

    @contextmanager
    def staying(self, lab: Lab) -> Iterator[tuple[Program, Program]]:
        with vpn(lab, "--retry", "--keepalive=1") as (one, other):
            index = self.index(lab)
            yield one, other
            assert self.index(lab) == index

    @staticmethod
    def index(lab: Lab) -> int:
        shown = json.loads(lab.left.run(["ip", "-json", "link", "show", DEVICE]).stdout)
        return int(shown[0]["ifindex"])

    @staticmethod
    def back(lab: Lab, to: str = V4[1]) -> float:
        """Return after how many seconds packets pass again."""
        begun = time.monotonic()
        is_reached(lab.left, to)
        return time.monotonic() - begun

    def test_a_peer_that_is_killed_and_started_again(self, lab: Lab) -> None:
        with self.staying(lab) as (one, other):
            other.signal(signal.SIGKILL)
            other.wait()
            with right(lab, "--retry", "--keepalive=1", *RIGHT, env=SECRET) as again:
                assert self.back(lab) < LIMIT
                one.event("lost")
                again.event("vpn-up")

    @pytest.mark.parametrize("port", [None, 51234], ids=["same port", "other port"])
    def test_a_gateway_that_forgets(self, port: int | None) -> None:
        far = Kind.DROP if port is None else Kind.NONE
        with Lab(Kind.DROP, far) as lab, self.staying(lab) as (one, other):
            forget(lab.left_gateways[0], port=port)
            assert self.back(lab) < LIMIT
            assert not any(each["event"] == "lost" for each in one.events + other.events)
            if port is not None:
                # No keepalive is needed for that: the VPN's own packets show the new address.
                assert other.event("moved")["peer"].endswith(f":{port}")

    @pytest.mark.parametrize("far", [Kind.NONE, Kind.DROP])
    def test_a_host_that_gets_another_address(self, far: Kind) -> None:
        """As from Wi-Fi to Ethernet: the gateway gives the new address another port."""
        with Lab(Kind.DROP, far) as lab, self.staying(lab) as (one, other):
            old = lab.left.address.v4
            script = f"""
                ip address delete {old}/24 dev eth0
                ip address add {V4_LATER}/24 dev eth0
                ip route add default via {V4_GATEWAY}"""
            assert lab.left.run(["sh", "-ec", script]).returncode == 0
            assert self.back(lab) < LIMIT
            if far is Kind.NONE:
                assert not any(each["event"] == "lost" for each in one.events + other.events)

    def test_all_of_ipv4_over_a_device_that_is_down_for_a_moment(self, lab: Lab) -> None:
        """Its routes are gone then, the way around the VPN included; a DHCP client makes its own.

        Until then the only way to the peer leads into the VPN itself.
        """
        with vpn(
            lab,
            *("--retry", "--keepalive=1", "--vpn-device", DEVICE),
            one=(f"--vpn={V4[0]}/24", "--route=0.0.0.0/0"),
            other=(f"--vpn={V4[1]}/24", "--announce=0.0.0.0/0"),
        ) as (one, _):
            lab.right.run(["ip", "address", "add", "198.18.0.1/32", "dev", "lo"])
            mtu = mtu_of(lab.left)
            script = f"""
                ip link set eth0 down
                sleep 1
                ip link set eth0 up
                ip route replace default via {V4_GATEWAY}"""
            assert lab.left.run(["sh", "-ec", script]).returncode == 0
            assert self.back(lab) < LIMIT
            assert pings(lab.left, "198.18.0.1")
            assert mtu_of(lab.left) == mtu == one.event("vpn-up")["mtu"]
            assert not any(each["event"] == "vpn-resized" for each in one.events)

    def test_a_peer_inside_of_the_network_of_the_vpn(self, lab: Lab) -> None:
        """The device would get what is for the peer's own public address, too."""
        before = state(lab.left)
        options = ("--retry", "--keepalive=1", "--vpn-device", DEVICE)
        with vpn(
            lab, *options, one=(f"--vpn={AROUND[0]}/24",), other=(f"--vpn={AROUND[1]}/24",)
        ) as (one, other):
            assert pings(lab.left, AROUND[1])
            assert pings(lab.right, AROUND[0])
            other.signal(signal.SIGKILL)
            other.wait()
            with right(lab, *options, f"--vpn={AROUND[1]}/24", env=SECRET) as again:
                assert self.back(lab, AROUND[1]) < LIMIT
                one.event("lost")
                again.event("vpn-up")
                one.signal(signal.SIGTERM)
                one.wait()
        assert state(lab.left) == before
