"""The UDP socket on paths that refuse: hops, path MTU, firewalls, no route. In the kernel lab."""

from __future__ import annotations

import errno
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import need_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.lab import Host

# Runs inside a namespace; `remote` is the peer's endpoint, what is left in `out` is the result.
_PRELUDE = """
import json, select, socket, sys
from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint
from nat_traverse.net.address import sockaddr
from nat_traverse.net.route import path_mtu, source_for
from nat_traverse.net.udp import UdpSocket

remote = Endpoint(sys.argv[1], 9)
family = socket.AF_INET6 if remote.is_ipv6 else socket.AF_INET
sock = UdpSocket(family, 0)
out = []

def note(error):
    out.append(error and [error.kind.name, error.errno, error.reporter, error.mtu])

def note_report():
    assert select.select([sock.fileno()], [], [], 20)[0], "no ICMP message came"
    for destination, error, quoted in sock.receive_errors():
        assert destination == remote, destination
        note(error)
"""
_END = "\nprint(json.dumps(out))\n"


def look(host: Host, remote: str | None, script: str) -> list[Any]:
    assert remote is not None
    result = host.run([sys.executable, "-c", _PRELUDE + script + _END, remote], timeout=60)
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts with public addresses of both families; 1,400 bytes in the middle."""
    need_lab()
    with Lab(Kind.NONE, Kind.NONE, hops=2, ipv6=True, mtu=1400) as lab:
        yield lab


def remotes(lab: Lab) -> list[str | None]:
    return [lab.right.public.v4, lab.right.public.v6]


def test_time_exceeded(lab: Lab) -> None:
    for remote in remotes(lab):
        (report,) = look(lab.left, remote, "sock.send(b'x', remote, ttl=1); note_report()")
        kind, number, reporter, mtu = report
        assert (kind, number, mtu) == ("TIME_EXCEEDED", errno.EHOSTUNREACH, 0)
        assert reporter != remote


def test_port_unreachable(lab: Lab) -> None:
    for remote in remotes(lab):
        (report,) = look(lab.left, remote, "sock.send(b'x', remote); note_report()")
        assert report == ["PORT_UNREACHABLE", errno.ECONNREFUSED, remote, 0]


def test_path_mtu(lab: Lab) -> None:
    script = """
out.append(path_mtu(remote))
sock.send(bytes(1440), remote)
note_report()
out.append(path_mtu(remote))
note(sock.send(bytes(1440), remote))
out.append(sock.receive_errors() and "reported twice")
address = sockaddr(remote, family)
out.append(sock.send_segments([bytes(14400)], 1440, address))
((_, error, _),) = sock.receive_errors()
note(error)
out.append(sock.send_segments([bytes(13000)], 1300, address))
out.append(sock._segments.trains)
"""
    for remote in remotes(lab):
        first, report, then, error, again, accepted, burst, fitting, trains = look(
            lab.left, remote, script
        )
        assert first == 1500
        assert (report[0], report[1], report[3]) == ("TOO_BIG", errno.EMSGSIZE, 1400)
        assert then == 1400
        assert error == ["TOO_BIG", errno.EMSGSIZE, None, 1400]
        assert again == []
        assert accepted == 0
        assert burst == ["TOO_BIG", errno.EMSGSIZE, None, 1400]
        assert fitting == 13_000
        assert trains, "a segment that is too large must not switch trains off"


def test_our_own_address(lab: Lab) -> None:
    for remote, own in zip(remotes(lab), lab.left.public, strict=True):
        assert look(lab.left, remote, "out.append(source_for(remote).host)") == [own]


@pytest.mark.parametrize("remote", ["192.0.2.1", "2001:db8:ffff::1"])
def test_no_route(lab: Lab, remote: str) -> None:
    script = """
note(sock.send(b"x", remote))
out.append(sock.send_segments([b"x"], 1, sockaddr(remote, family)))
note(sock.receive_errors()[0].error)
for ask in (source_for, path_mtu):
    try:
        ask(remote)
    except LocalNetworkError as error:
        out.append(error.exit_code)
"""
    # A namespace of its own inside the lab, with nothing in it, not even a loopback that is up.
    alone = ["unshare", "--net", sys.executable, "-c", _PRELUDE + script + _END, remote]
    result = lab.left.run(alone, timeout=60)
    assert result.returncode == 0, result.stderr
    error, accepted, reported, *exit_codes = json.loads(result.stdout)
    assert error == reported
    assert error[0] == "NETWORK_UNREACHABLE"
    assert accepted == 1
    assert exit_codes == [errno.ENETUNREACH, errno.ENETUNREACH]


def test_a_firewall_of_our_own(lab: Lab) -> None:
    rules = """table inet wall {
    chain out {
        type filter hook output priority 0;
        udp dport 9 drop
    }
}
"""
    assert lab.right.run(["nft", "-f", "-"], text=rules).returncode == 0
    for remote in lab.left.public:
        (error,) = look(lab.right, remote, "note(sock.send(b'x', remote))")
        assert error == ["NOT_PERMITTED", errno.EPERM, None, 0]
