"""iperf3 between two hosts, in one direction, and what it says of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from bench._streams import UnavailableError

from nat_traverse.lab.namespace import system_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.lab.topology import Host

_PATIENCE = 30.0  # s beyond the measurement itself
_POLL = 0.02  # s between looks

# Bytes of what the smallest useful datagrams carry: a voice sample, a key press, a game's move.
SMALL = 64


class Carried(NamedTuple):
    """What came out at the other end."""

    bytes: int
    seconds: float
    packets: int  # 0 of TCP
    sent: int  # packets, 0 of TCP
    retransmissions: int  # 0 of UDP


def tcp(left: Host, right: Host, address: str, port: int, seconds: float, *options: str) -> Carried:
    """Send TCP from left to right. Raises `UnavailableError` if iperf3 is missing."""
    end = _run(left, right, address, port, seconds, *options)
    received = end["sum_received"]
    return Carried(
        received["bytes"], received["seconds"], 0, 0, end["sum_sent"].get("retransmits", 0)
    )


def udp(left: Host, right: Host, address: str, port: int, seconds: float) -> Carried:
    """Send small datagrams as fast as the kernel takes them."""
    options = ("-u", "-b", "0", "-l", str(SMALL))
    total = _run(left, right, address, port, seconds, *options)["sum"]
    packets = total["packets"] - total["lost_packets"]
    return Carried(packets * SMALL, total["seconds"], packets, total["packets"], 0)


def _run(
    left: Host, right: Host, address: str, port: int, seconds: float, *options: str
) -> dict[str, Any]:
    program = shutil.which("iperf3", path=system_environment()["PATH"])
    if program is None:
        raise UnavailableError("apt-get install iperf3")
    with _server(right, program, port):
        words = [program, "-J", "-c", address, "-p", str(port), "-t", str(seconds), *options]
        client = left.run(words, timeout=seconds + _PATIENCE)
    try:
        report = json.loads(client.stdout)
    except ValueError:
        report = {"error": client.stderr}
    if "error" in report:
        raise RuntimeError(f"iperf3 failed: {report['error']}")
    end: dict[str, Any] = report["end"]
    return end


@contextmanager
def _server(host: Host, program: str, port: int) -> Iterator[None]:
    server = host.popen(
        [program, "-s", "-1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _listens(host, port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("iperf3 does not listen")
            time.sleep(_POLL)
        yield
    finally:
        server.kill()
        server.wait()


def _listens(host: Host, port: int) -> bool:
    tables = host.run(["cat", "/proc/self/net/tcp", "/proc/self/net/tcp6"]).stdout
    return any(
        line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"  # LISTEN
        for line in tables.splitlines()
        if ":" in line
    )
