"""Two hosts and the path between them: a cable, a wire as bad as one asks for, or real NATs.

    left ── cable, or relay.c, or NAT ── router ── NAT ── right

The first two have no NAT in between: a NAT has its say while a path is being found, and these paths
are for what runs over one that was found; ssh and OpenVPN have no way to find one. The third has
two kernel NATs that keep ports, which can be told to whatever can't find them out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from nat_traverse.lab.namespace import (
    LabError,
    Namespace,
    close_namespaces,
    open_namespaces,
    run_scripts,
    system_environment,
)
from nat_traverse.lab.plan import Addresses
from nat_traverse.lab.ruleset import Kind
from nat_traverse.lab.topology import Host, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

# From the range for documentation (RFC 5737).
_LEFT, _RIGHT = "192.0.2.1", "192.0.2.2"

_SOURCE = Path(__file__).with_name("relay.c")

# Bytes of the largest buffer of a TCP connection. The kernel's default may be less than a long fat
# path holds, and it is the congestion control that is looked at, not a window.
_TCP_BUFFER = 64 * 1024 * 1024
_TCP_SETTINGS = f"""\
echo "4096 131072 {_TCP_BUFFER}" >/proc/sys/net/ipv4/tcp_rmem
echo "4096 131072 {_TCP_BUFFER}" >/proc/sys/net/ipv4/tcp_wmem
echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save
"""

# Packets between a host and the relay: 0.1 s of them at 1 Gbit/s. Nothing may be lost there: the
# relay alone decides what is.
_DEVICE_QUEUE = 10_000

_PATIENCE = 10.0  # s for the relay's end


@dataclass(frozen=True, slots=True)
class Pair:
    """The two hosts of a path. Each has its address in `public.v4`."""

    left: Host
    right: Host


@dataclass(frozen=True, slots=True)
class Weather:
    """What a path does to packets, in each direction alike."""

    round_trip: float  # s, without any queue
    rate: float  # bit/s of IP packets; 0: no limit
    loss: float = 0.0  # 0 to 1
    reordering: float = 0.0  # 0 to 1: so many are overtaken by three others
    queue: float = 0.0  # s until a packet that comes now would be sent; beyond that it is dropped
    seed: int = 0  # of what is lost and reordered: with the same one, the same packets

    def line(self) -> str:
        """Return the line that the relay reads."""
        delay = self.round_trip / 2 * 1e6
        return f"{delay} {self.rate} {self.queue * 1e6} {self.loss} {self.reordering} {self.seed}\n"


@dataclass(frozen=True, slots=True)
class Sums:
    """Packets that the relay has seen in both directions."""

    delivered: int
    lost: int
    overflowed: int
    reordered: int
    late: int  # by more than 1 ms; many of them mean that the machine was too slow for the row

    def words(self) -> str:
        """Return them in words."""
        return (
            f"packets: {self.delivered} delivered, {self.lost} lost, {self.overflowed} too many,"
            f" {self.reordered} reordered, {self.late} late"
        )


class Wire:
    """The relay between the two hosts of a path, while it runs."""

    def __init__(self, pair: Pair, relay: subprocess.Popen[bytes]) -> None:
        self.left = pair.left
        self.right = pair.right
        self._relay = relay

    def set(self, weather: Weather) -> Sums:
        """Change the weather at once, and return the sums of the time before."""
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write(weather.line().encode())
        self._relay.stdin.flush()
        answer = self._relay.stdout.readline()
        if not answer:
            raise LabError("the relay is gone")
        return Sums(*map(int, answer.split()))

    def dropped_by_hosts(self) -> int:
        """Return the packets that never reached the relay; 0, or the row is worth nothing."""
        total = 0
        for host in (self.left, self.right):
            result = host.run(["ip", "-json", "-statistics", "link", "show", "tun0"])
            if result.returncode:
                raise LabError(f"the device's losses are unknown: {result.stderr.strip()}")
            total += int(json.loads(result.stdout)[0]["stats64"]["tx"]["dropped"])
        return total


@contextmanager
def cable(*, join: bool = False) -> Iterator[tuple[Pair, str]]:
    """Join two hosts by virtual Ethernet with an MTU of 1,500 bytes.

    The text says whether the cable cuts the trains of UDP_SEGMENT into datagrams, as hardware
    does on its way to the wire. Without ethtool it cannot be told to. With `join`, they are put
    together again where they arrive (GRO), as the drivers of network cards do.
    """
    with _two_hosts() as pair:
        spaces = (pair.left.namespace, pair.right.namespace)
        create = f"ip link add eth0 type veth peer name eth0 netns {spaces[1].pid}"
        run_scripts([(spaces[0], create)])
        tool = shutil.which("ethtool", path=system_environment()["PATH"])
        # Without the second feature virtual Ethernet hands datagrams past GRO.
        joining = "gro on rx-udp-gro-forwarding on" if join else ""
        cut = f"{tool} -K eth0 tx-udp-segmentation off {joining}\n" if tool else ""
        run_scripts(_configure(pair, "eth0", f"{_TCP_SETTINGS}{cut}"))
        yield pair, "UDP is cut as on a wire" if tool else "ethtool is missing: UDP stays uncut"


class Cut(Enum):
    """What becomes of a train of UDP datagrams on its way between two hosts behind NATs."""

    NEVER = "trains stay whole"
    JOINED = "cut by the sender's card, joined again by the receiver's"
    SINGLY = "cut by the sender's card, arriving one by one"


class Natted:
    """Two hosts behind kernel NATs that keep ports, an Internet with an MTU of 1,500 between."""

    def __init__(self, lab: Lab) -> None:
        self.left = lab.left
        self.right = lab.right
        self._gateways = (lab.left_gateways[-1], lab.right_gateways[-1])

    def set(self, cut: Cut) -> None:
        """Have the hosts' devices treat trains so, in both directions. Raises `LabError`.

        The hosts cut, as their cards would, and so the gateways forward datagrams. These do not
        join anything: UDP that is not for themselves is not joined unless Linux is told to.
        """
        sending = "on" if cut is Cut.NEVER else "off"
        # On virtual Ethernet, GRO is for what a neighbour without TSO has sent. Nothing but UDP is
        # on this path, so the neighbour loses nothing by it.
        joining = cut is Cut.JOINED
        receiving, neighbour = ("on", "off") if joining else ("off", "on")
        host = f"tx-udp-segmentation {sending} gro {receiving}"
        hosts = [(node.namespace, f"eth0 {host}") for node in (self.left, self.right)]
        gateways = [(node.namespace, f"lan tso {neighbour}") for node in self._gateways]
        run_scripts((space, f"ethtool -K {words}") for space, words in hosts + gateways)


@contextmanager
def natted() -> Iterator[Natted]:
    """Join two hosts over real NATs. Raises `LabError` if the machine can't have them."""
    if shutil.which("ethtool", path=system_environment()["PATH"]) is None:
        raise LabError("a wire that cuts can't be had: apt-get install ethtool")
    with Lab(Kind.DROP, Kind.DROP, hops=1) as lab:
        yield Natted(lab)


@contextmanager
def wire(weather: Weather) -> Iterator[Wire]:
    """Join two hosts by the relay. Raises `LabError` if it can't be compiled or started."""
    with tempfile.TemporaryDirectory() as directory, _two_hosts() as pair:
        program = _compile(Path(directory))
        relay = pair.left.popen(
            [str(program), str(pair.right.namespace.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # ^C is for us: the wire is taken down after the programs that use it.
            start_new_session=True,
        )
        with relay:
            try:
                assert relay.stdout is not None
                if relay.stdout.readline() != b"ready\n":
                    raise LabError("the relay did not start: it needs /dev/net/tun")
                _prefer(relay.pid)
                queue = f"ip link set tun0 txqueuelen {_DEVICE_QUEUE}\n"
                run_scripts(_configure(pair, "tun0", f"{_TCP_SETTINGS}{queue}"))
                joined = Wire(pair, relay)
                joined.set(weather)
                yield joined
            finally:
                assert relay.stdin is not None
                relay.stdin.close()
                try:
                    relay.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    relay.kill()


def _prefer(pid: int) -> None:
    """Let a program that leads a session go before all others, where that is allowed."""
    # Where processors are shared among sessions first (CONFIG_SCHED_AUTOGROUP), the nice value that
    # the relay gives itself counts in its own session only: sched(7).
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-15")


@contextmanager
def _two_hosts() -> Iterator[Pair]:
    namespaces = open_namespaces([False, False])
    try:
        left, right = (
            _host(name, namespace, address)
            for name, namespace, address in zip(
                ("left", "right"), namespaces, (_LEFT, _RIGHT), strict=True
            )
        )
        yield Pair(left, right)
    finally:
        close_namespaces(namespaces)


def _host(name: str, namespace: Namespace, address: str) -> Host:
    addresses = Addresses(address, None)
    return Host(name, namespace, addresses, addresses)


def _configure(pair: Pair, device: str, extra: str) -> list[tuple[Namespace, str]]:
    # What the kernel says in IPv6 by itself would be counted with what is measured.
    extra += (
        f"[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6\n"
    )
    script = f"{extra}ip link set {device} mtu 1500 up\nip address add"
    return [
        (pair.left.namespace, f"{script} {_LEFT} peer {_RIGHT} dev {device}\n"),
        (pair.right.namespace, f"{script} {_RIGHT} peer {_LEFT} dev {device}\n"),
    ]


def _compile(directory: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise LabError("the relay is written in C and there is no compiler: apt-get install gcc")
    program = directory / "relay"
    subprocess.run(
        [compiler, "-O2", "-std=c11", "-Wall", "-Wextra", "-o", program, _SOURCE], check=True
    )
    return program
