"""Sockets inside the lab's namespaces, for tests that want to see single packets."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nat_traverse.lab import available
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.lab import Node

# Seconds to wait for what must happen. A packet crosses the lab in less than a millisecond; this
# is for a machine under a heavy load, and only a failing test waits that long.
PATIENCE = 20.0

# The module socket has these from Python 3.14 on only, or not at all (linux/in.h, linux/in6.h).
_IP_RECVERR = 11
_IPV6_RECVERR = 25

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
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            arguments = [str(int(family)), str(port), str(theirs.fileno())]
            # -I and -S: the program needs nothing but the standard library, and so starts fast.
            opener = node.popen(
                [_interpreter(), "-I", "-S", "-c", _OPENER, *arguments],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        _, complaint = opener.communicate(timeout=PATIENCE)
        assert opener.returncode == 0, complaint.decode()
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    opened = socket.socket(fileno=descriptor)
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


def _interpreter() -> str:
    # A test that gave up root's rights may be unable to reach its own interpreter.
    if os.access(sys.executable, os.X_OK):
        return sys.executable
    return need("python3", package="python3")
