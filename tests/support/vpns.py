"""Two ends of a VPN in a lab, hosts behind them, and what a user does with them."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from support.lab import eventually
from support.programs import Program
from support.sides import left, right
from support.tools import need

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.lab import Host, Lab

SECRET = {"NAT_TRAVERSE_SECRET": "wool and flax"}
DEVICE = "work0"

# The addresses inside, left and right.
V4 = ("10.77.0.1", "10.77.0.2")
V6 = ("fd77::1", "fd77::2")
LEFT = (f"--vpn={V4[0]}/24", f"--vpn={V6[0]}/64", "--vpn-device", DEVICE)
RIGHT = (f"--vpn={V4[1]}/24", f"--vpn={V6[1]}/64", "--vpn-device", DEVICE)


@contextmanager
def vpn(
    lab: Lab, *both: str, one: Sequence[str] = LEFT, other: Sequence[str] = RIGHT
) -> Iterator[tuple[Program, Program]]:
    """Run both ends and wait until packets pass. `both` are options for both."""
    with (
        left(lab, *both, *one, env=SECRET) as first,
        right(lab, *both, *other, env=SECRET) as second,
    ):
        first.event("vpn-up")
        second.event("vpn-up")
        yield first, second


def pings(host: Any, to: str, *options: str, count: int = 3, patience: int = 5) -> bool:
    """Tell whether all of `count` pings are answered, the last within `patience` seconds."""
    ping = need("ping", package="iputils-ping")
    argv = [ping, "-q", "-n", f"-W{patience}", "-i0.05", f"-c{count}"]
    result = host.run([*argv, *options, to])
    return f" {count} received" in result.stdout


def is_reached(host: Any, to: str) -> None:
    """Wait until `to` answers a ping from `host`."""
    eventually(lambda: pings(host, to, count=1, patience=1), f"an answer from {to}")


class Behind:
    """A host of its own on a LAN behind one of the lab's hosts."""

    def __init__(self, host: Host, sleeper: int) -> None:
        self.host = host
        self._enter = ["nsenter", f"--net=/proc/{sleeper}/ns/net", "--"]

    def command(self, argv: Sequence[str]) -> list[str]:
        return self.host.command([*self._enter, *argv])

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return self.host.run([*self._enter, *argv])

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return self.host.popen([*self._enter, *argv], **options)


@contextmanager
def behind(host: Host, gateway: str, address: str) -> Iterator[Behind]:
    """Put a host with `address` behind `host`, which gets `gateway` on that LAN and forwards."""
    with Program(["unshare", "--net", "sleep", "600"], host) as sleeper:
        pid = sleeper.process.pid
        # The namespace is another one as soon as unshare has done its work.
        outside = os.stat(f"/proc/{os.getpid()}/ns/net").st_ino  # noqa: PTH116 (no file to speak of)
        host_net = host.run(["stat", "-L", "-c%i", "/proc/self/ns/net"]).stdout.strip()

        def is_apart() -> bool:
            number = os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 (the same)
            comm = (sleeper.process.poll() is None) and _comm(pid)
            return number not in (outside, int(host_net)) and comm == "sleep"

        eventually(is_apart, "a host behind the host")
        there = Behind(host, pid)
        script = f"""
set -e
ip link add lan0 type veth peer name eth0 netns {pid}
ip address add {gateway} dev lan0
ip link set lan0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
nsenter --net=/proc/{pid}/ns/net sh -ec '
  ip link set lo up
  ip address add {address} dev eth0
  ip link set eth0 up
  ip route add default via {gateway.partition("/")[0]}'
"""
        made = host.run(["sh", "-c", script])
        assert made.returncode == 0, made.stderr
        try:
            yield there
        finally:
            host.run(["ip", "link", "delete", "lan0"])


def _comm(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="ascii") as comm:  # noqa: PTH123 (no file to speak of)
        return comm.read().strip()


def state(host: Any) -> str:
    """Return all devices, addresses, routes and rules of a host, to be compared."""
    commands = ("ip -o link", "ip -o address", "ip route show table all", "ip rule")
    more = ("ip -6 route show table all", "ip -6 rule")
    found = [host.run([*each.split()]).stdout for each in (*commands, *more)]
    # IPv6 says how long it will remember; neighbours and statistics change by themselves.
    lines = (line for text in found for line in text.splitlines())
    return "\n".join(line.partition(" expires")[0] for line in lines)


def iperf(server: Any, client: Any, to: str, *options: str) -> dict[str, Any]:
    """Run iperf3 from `client` to `server` and return its figures."""
    program = need("iperf3", package="iperf3")
    with Program([program, "-s", "-1", "-B", to], server) as listening:
        eventually(lambda: server.run(["ss", "-Hltn", "sport = :5201"]).stdout, "iperf3")
        result = client.run([program, "-J", "-c", to, *options])
        assert result.returncode == 0, result.stdout + result.stderr
        listening.wait()
    figures: dict[str, Any] = json.loads(result.stdout)["end"]
    return figures


def mtu_of(host: Any, device: str = DEVICE) -> int:
    """Return the MTU of a device."""
    shown = json.loads(host.run(["ip", "-json", "link", "show", device]).stdout)
    return int(shown[0]["mtu"])


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    eventually(condition, what)
