"""Sockets inside the lab's namespaces, for tests that want to see single packets."""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest

from nat_traverse.lab import available
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.lab import Host, Node

# Seconds to wait for what must happen. A packet crosses the lab in less than a millisecond; this
# is for a machine under a heavy load, and only a failing test waits that long.
PATIENCE = 20.0

# The module socket has these from Python 3.14 on only, or not at all (linux/in.h, linux/in6.h).
_IP_RECVERR = 11
_IPV6_RECVERR = 25

# Seconds after which a tap looks whether it is over.
_TAP_LOOKS = 0.1

# struct sock_extended_err: errno, origin, type, code, padding, info, data (linux/errqueue.h).
_EXTENDED_ERROR = struct.Struct("=IBBBxII")

# Runs inside a namespace: opens a socket there and hands it to the test over a Unix socket.
_OPENER = """\
import socket, sys
family, port, channel = sys.argv[1:]
family = socket.AddressFamily(int(family))
opened = socket.socket(family, socket.SOCK_DGRAM)
if family == socket.AF_INET6:
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
opened.bind(("", int(port)))
socket.send_fds(socket.socket(fileno=int(channel)), [b"x"], [opened.fileno()])
"""

# The same for all packets on one device: only a socket for every protocol sees what goes out.
_TAPPER = """\
import socket, sys
device, channel = sys.argv[1:]
every_protocol = 3
opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(every_protocol))
opened.bind((device, every_protocol))
socket.send_fds(socket.socket(fileno=int(channel)), [b"x"], [opened.fileno()])
"""

# The same for one whose packets bring their own IP header, so that they may name any sender.
_FORGER = """\
import socket, sys
(channel,) = sys.argv[1:]
opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
socket.send_fds(socket.socket(fileno=int(channel)), [b"x"], [opened.fileno()])
"""

# The same for a TCP server.
_LISTENER = """\
import socket, sys
port, channel = sys.argv[1:]
opened = socket.create_server(("", int(port)))
socket.send_fds(socket.socket(fileno=int(channel)), [b"x"], [opened.fileno()])
"""

# The same for a TCP client that has connected to a port of its own host.
_CALLER = """\
import socket, sys
port, channel = sys.argv[1:]
opened = socket.create_connection(("127.0.0.1", int(port)))
socket.send_fds(socket.socket(fileno=int(channel)), [b"x"], [opened.fileno()])
"""

# The kernel's own time of each packet (asm-generic/socket.h), as struct timespec.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("=qq")

# (linux/if_packet.h), as struct tpacket_stats: packets, and those for which there was no room.
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_STATISTICS = struct.Struct("=II")

_IPV4 = 0x0800
_UDP = 17

# An IPv4 header without options, with Don't Fragment; the kernel fills in length and checksum
# where they are 0 (raw(7)). And a UDP header without a checksum, which IPv4 allows (RFC 768).
_IP_HEAD = struct.Struct("!BBHHHBBH4s4s")
_IP_VERSION_AND_SIZE = 0x45
_DONT_FRAGMENT = 0x4000
_UDP_HEAD = struct.Struct("!HHHH")


class Packet(NamedTuple):
    """A UDP datagram in IPv4, as it left or entered a device; `at` is in s since the epoch."""

    at: float
    leaves: bool
    ttl: int
    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes


class Tap:
    """Collects all UDP packets of IPv4 on a node's device, without touching them."""

    def __init__(self, node: Node, device: str = "eth0") -> None:
        self._socket = _opened_in(node, _TAPPER, device)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.settimeout(_TAP_LOOKS)
        self._packets: list[Packet] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with self._socket:
            size = _STATISTICS.size
            counted = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, size)
            assert _STATISTICS.unpack(counted)[1] == 0, "the tap was too slow for some packets"

    @property
    def packets(self) -> list[Packet]:
        """What was seen so far, oldest first."""
        return list(self._packets)

    @property
    def sent(self) -> list[Packet]:
        """What has left the node so far."""
        return [packet for packet in self.packets if packet.leaves]

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                data, ancillary, _, address = self._socket.recvmsg(65_535, 64)
            except TimeoutError:
                continue
            if address[1] == _IPV4 and data[9] == _UDP:
                seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
                leaves = address[2] == socket.PACKET_OUTGOING
                self._packets.append(_parsed(data, seconds + nanoseconds / 1e9, leaves=leaves))


class Sniffer:
    """Takes a sample of what passes a node's device, as somebody on the way could."""

    def __init__(self, node: Node, device: str, *, limit: int) -> None:
        self._socket = _opened_in(node, _TAPPER, device)
        self._socket.settimeout(_TAP_LOOKS)
        self._limit = limit
        self._parts: list[bytes] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    @property
    def sample(self) -> bytes:
        """All packets of the sample, one behind the other."""
        return b"".join(self._parts)

    def _read(self) -> None:
        size = 0
        while size < self._limit and not self._over.is_set():
            try:
                data = self._socket.recv(65_535)
            except TimeoutError:
                continue
            self._parts.append(data)
            size += len(data)


def packet_socket(node: Node, device: str) -> socket.socket:
    """Return a socket that sees all packets on a device, coming and going, from the IP header."""
    return _opened_in(node, _TAPPER, device)


def forging_socket(node: Node) -> socket.socket:
    """Return a socket that sends from `node` what `forged` makes."""
    return _opened_in(node, _FORGER)


def forged(
    source: tuple[str, int], destination: tuple[str, int], data: bytes, ttl: int = 64
) -> bytes:
    """Return a UDP datagram with its headers, from whomever it is to seem to come."""
    ends = socket.inet_aton(source[0]), socket.inet_aton(destination[0])
    ip = _IP_HEAD.pack(_IP_VERSION_AND_SIZE, 0, 0, 0, _DONT_FRAGMENT, ttl, _UDP, 0, *ends)
    return ip + _UDP_HEAD.pack(source[1], destination[1], _UDP_HEAD.size + len(data), 0) + data


def tcp_listener(node: Node, port: int) -> socket.socket:
    """Return a TCP server of a node's, which nobody accepts connections for but the test."""
    return _opened_in(node, _LISTENER, str(port))


def tcp_connection(node: Node, port: int) -> socket.socket:
    """Return a connection, made in a node, to a TCP port of that same node."""
    return _opened_in(node, _CALLER, str(port))


def parsed(data: bytes, at: float = 0.0, *, leaves: bool = False) -> Packet | None:
    """Return what a packet socket has read, if it is UDP in IPv4."""
    return _parsed(data, at, leaves=leaves) if data[0] >> 4 == 4 and data[9] == _UDP else None


def _parsed(data: bytes, at: float, *, leaves: bool) -> Packet:
    start = (data[0] & 15) * 4  # the length of the IP header, in words
    source, destination, size = struct.unpack_from("!HHH", data, start)
    return Packet(
        at,
        leaves,
        data[8],
        (socket.inet_ntoa(data[12:16]), source),
        (socket.inet_ntoa(data[16:20]), destination),
        data[start + 8 : start + size],
    )


class Refusal(NamedTuple):
    """An ICMP message, as the error queue tells it."""

    errno: int
    type: int
    code: int
    reporter: str


def need_lab() -> None:
    """Go on only where the lab can be built; else fail (in CI and as root) or skip, with why."""
    reason = available()
    if reason is None:
        return
    if os.environ.get("CI") or os.geteuid() == 0:
        pytest.fail(f"no lab: {reason}")
    pytest.skip(f"no lab: {reason}")


def udp_socket(
    node: Node, port: int = 0, *, ipv6: bool = False, errors: bool = False
) -> socket.socket:
    """Return a UDP socket that lives in `node`'s namespace, bound to every address there.

    With `errors` it collects ICMP messages for `refusal()`; they then also fail its next call.
    """
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    opened = _opened_in(node, _OPENER, str(int(family)), str(port))
    if errors and ipv6:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    elif errors:
        opened.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    opened.settimeout(PATIENCE)
    return opened


def refusal(asked: socket.socket) -> Refusal:
    """Wait for an ICMP message to a socket opened with `errors`, and return it."""
    poller = select.poll()
    poller.register(asked, select.POLLERR)
    assert poller.poll(PATIENCE * 1000), "no ICMP message came"
    _, ancillary, _, _ = asked.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
    (_, _, data) = ancillary[0]
    error, _, kind, code, _, _ = _EXTENDED_ERROR.unpack_from(data)
    address = data[_EXTENDED_ERROR.size :]
    if asked.family == socket.AF_INET6:
        reporter = socket.inet_ntop(socket.AF_INET6, address[8:24])
    else:
        reporter = socket.inet_ntop(socket.AF_INET, address[4:8])
    return Refusal(error, kind, code, reporter)


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` when it does not come about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.01)  # between looks at a condition that nothing announces


def forget(gateway: Node, *, port: int | None = None) -> None:
    """Have a gateway forget all mappings; it gives the next ones another port if `port` is set."""
    need("conntrack", package="conntrack")
    if port is not None:
        rules = f"""
flush chain inet gateway postrouting
add rule inet gateway postrouting meta nfproto ipv4 oifname "wan" \
 meta l4proto udp masquerade to :{port}
"""
        assert gateway.run(["nft", rules]).returncode == 0
    flushed = gateway.run(["conntrack", "-F"])
    assert flushed.returncode == 0, flushed.stderr


def has_lost_its_port(gateway: Node, port: int) -> bool:
    """Tell whether a gateway that keeps ports has given its host another one for `port`.

    Linux does so where it took a packet from the same remote port for its own, and from then on for
    whatever the host sends to new ports. A search that tries the one port of the peer's from which
    an uninvited hello came, before it meets one of the 253 that wait, goes on from a port that the
    peer does not wait for.
    """
    flows = (re.findall(r"\b[sd]port=(\d+)", line) for line in gateway.conntrack())
    # Where a flow comes from and goes to, then the same of what answers it.
    return any(flow[0] == str(port) != flow[3] for flow in flows if len(flow) == 4)


def take_its_port(gateway: Node, host: Host, port: int, remote: str) -> None:
    """Have a gateway do that, as if it had taken a packet from port 5000 of `remote`."""
    assert host.address.v4 is not None
    flow = ["-p", "udp", "-s", host.address.v4, "--sport", str(port), "-d", remote, "--dport=5000"]
    lent = ["--src-nat", f"{host.public.v4}:22019", "-t", "30"]
    made = gateway.run([need("conntrack", package="conntrack"), "-I", *flow, *lent])
    assert made.returncode == 0, made.stderr


def _opened_in(node: Node, script: str, *arguments: str) -> socket.socket:
    """Run a script in `node`'s namespace that opens a socket there and hands it over."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            # -I and -S: the program needs nothing but the standard library, and so starts fast.
            opener = node.popen(
                [_interpreter(), "-I", "-S", "-c", script, *arguments, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        _, complaint = opener.communicate(timeout=PATIENCE)
        assert opener.returncode == 0, complaint.decode()
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptor)


def _interpreter() -> str:
    # A test that gave up root's rights may be unable to reach its own interpreter.
    if os.access(sys.executable, os.X_OK):
        return sys.executable
    return need("python3", package="python3")
