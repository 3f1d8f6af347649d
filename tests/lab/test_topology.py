"""The lab does what its kinds promise, seen with plain UDP sockets and no protocol of ours."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab, LabError, SharedLab, available, namespace
from support.lab import eventually, refusal, udp_socket
from support.leftovers import Mark
from support.tools import need

if TYPE_CHECKING:
    from nat_traverse.lab import Host

PORT_PRESERVING = [Kind.DROP, Kind.REJECT, Kind.ACCEPT, Kind.DOUBLE]

# RFC 792 and RFC 4443.
ICMP_TIME_EXCEEDED = 11
ICMPV6_TIME_EXCEEDED = 3

NOBODY = 65534

# What a run without root does: the whole path, both ways, with the rights of nobody. It starts as
# the user of the test, because an interpreter in that user's home is out of nobody's reach, and
# drops its rights once all that it needs has been imported.
ROOTLESS = """\
import json, os, sys
from nat_traverse.lab import Kind, Lab
from support.lab import udp_socket
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({nobody}, {nobody}, {nobody})
    os.setresuid({nobody}, {nobody}, {nobody})
with Lab(Kind.DROP, Kind.DOUBLE, ipv6=True) as lab:
    seen = {{"uid": os.getuid(), "inside": lab.left.run(["id", "-u"]).stdout.strip()}}
    with udp_socket(lab.left, 40000) as left, udp_socket(lab.right, 40001) as right:
        right.sendto(b"opening", (lab.left.public.v4, 40000))
        left.sendto(b"to the right", (lab.right.public.v4, 40001))
        seen["right"] = right.recvfrom(100)[1]
        right.sendto(b"to the left", (lab.left.public.v4, 40000))
        seen["left"] = left.recvfrom(100)[1]
print(json.dumps(seen))
"""

# Builds a lab, starts something in it, says which namespaces there are, and waits to be killed.
OWNER = """\
import json, os, signal, subprocess
from nat_traverse.lab import Lab
with Lab() as lab:
    inside = lab.left.popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
    nodes = [os.stat(f"/proc/{node.namespace.pid}/ns/net").st_ino for node in lab.nodes.values()]
    print(json.dumps(nodes), flush=True)
    signal.pause()
"""


def namespaces_in_use() -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(entry.stat().st_ino)
        except OSError:  # the process has ended, or is somebody else's
            continue
    return found


def namespaces_of(lab: Lab) -> set[int]:
    return {Path(f"/proc/{node.namespace.pid}/ns/net").stat().st_ino for node in lab.nodes.values()}


def public(host: Host) -> str:
    address = host.public.v4 or host.public.v6
    assert address is not None
    return address


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("kind", PORT_PRESERVING)
def test_mapping_keeps_the_port_for_every_destination(kind: Kind) -> None:
    with Lab(kind, Kind.NONE) as lab, udp_socket(lab.left, 40000) as left:
        for port in (40001, 40002):
            with udp_socket(lab.right, port) as right:
                left.sendto(b"x", (public(lab.right), port))
                assert right.recvfrom(10) == (b"x", (public(lab.left), 40000))


def test_random_mapping_changes_the_port_with_the_destination() -> None:
    seen = set()
    with Lab(Kind.RANDOM, Kind.NONE) as lab, udp_socket(lab.left, 40000) as left:
        for port in (40001, 40002, 40003, 40004):
            with udp_socket(lab.right, port) as right:
                left.sendto(b"x", (public(lab.right), port))
                seen.add(right.recvfrom(10)[1])
    assert {host for host, _ in seen} == {"198.51.100.2"}
    # Four equal random ports: once in 64,512 cubed runs.
    assert len(seen) > 1


@pytest.mark.parametrize("kind", [*PORT_PRESERVING, Kind.RANDOM])
def test_mapping_is_filtered_by_address_and_port(kind: Kind) -> None:
    with (
        Lab(kind, Kind.NONE) as lab,
        udp_socket(lab.left, 40000) as left,
        udp_socket(lab.right, 40001) as right,
        udp_socket(lab.right, 40002) as stranger,
    ):
        left.sendto(b"hello", (public(lab.right), 40001))
        mapped = right.recvfrom(10)[1]
        before = lab.counters().left_received.packets
        stranger.sendto(b"stranger", mapped)
        eventually(lambda: lab.counters().left_received.packets > before, "the stranger's packet")
        right.sendto(b"answer", mapped)
        assert left.recvfrom(10) == (b"answer", (public(lab.right), 40001))


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        (Kind.DROP, False),
        (Kind.REJECT, True),
        (Kind.ACCEPT, True),  # by the gateway itself: nothing listens there
        (Kind.RANDOM, False),
        (Kind.DOUBLE, False),
    ],
)
def test_unsolicited_packet_vanishes_or_is_refused(kind: Kind, refused: bool) -> None:
    with Lab(kind, Kind.NONE) as lab, udp_socket(lab.right, 40001, errors=True) as right:
        right.sendto(b"unsolicited", (public(lab.left), 40000))
        if refused:
            answer = refusal(right)
            assert (answer.errno, answer.reporter) == (errno.ECONNREFUSED, public(lab.left))
        else:
            eventually(lambda: lab.counters().left_received.packets == 1, "the packet's arrival")
            with udp_socket(lab.left, 40002) as left:
                # An answer by ICMP would have arrived before this.
                left.sendto(b"later", (public(lab.right), 40001))
                assert right.recv(10) == b"later"
            assert right.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("kind", [*PORT_PRESERVING, Kind.IPV6])
def test_early_packet_poisons_only_a_gateway_that_accepts(kind: Kind) -> None:
    """NAT behaviour that RFC 4787 does not foresee: the early packet takes the late one's port."""
    ipv6 = kind is Kind.IPV6
    with (
        Lab(kind, Kind.NONE) as lab,
        udp_socket(lab.left, 40000, ipv6=ipv6) as left,
        udp_socket(lab.right, 40001, ipv6=ipv6) as right,
    ):
        target = lab.right.public.v6 if ipv6 else lab.right.public.v4
        right.sendto(b"early", (public(lab.left), 40000))
        eventually(lambda: lab.counters().left_received.packets == 1, "the early packet's arrival")
        left.sendto(b"late", (target, 40001))
        data, source = right.recvfrom(10)
        assert data == b"late"
        assert source[0] == public(lab.left)
        assert (source[1] == 40000) is (kind is not Kind.ACCEPT)


@pytest.mark.parametrize(
    ("ttl", "reporter"), [(1, "192.168.1.1"), (2, "198.51.100.1"), (3, "192.0.2.6")]
)
def test_low_ttl_dies_before_the_far_gateway(ttl: int, reporter: str) -> None:
    with Lab(Kind.DROP, Kind.ACCEPT) as lab, udp_socket(lab.left, 40000, errors=True) as left:
        left.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        left.sendto(b"opening", (public(lab.right), 40001))
        answer = refusal(left)
        assert (answer.type, answer.reporter) == (ICMP_TIME_EXCEEDED, reporter)
        counters = lab.counters()
        assert counters.left_sent.packets == (0 if ttl == 1 else 1)
        assert counters.right_received.packets == 0
        # The next TTL up to the gateway's arrives, so the counter does count.
        left.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 4)
        left.sendto(b"arrives", (public(lab.right), 40001))
        eventually(lambda: lab.counters().right_received.packets == 1, "the packet's arrival")


def test_low_hop_limit_dies_before_the_far_gateway() -> None:
    with (
        Lab(Kind.IPV6, Kind.IPV6) as lab,
        udp_socket(lab.left, 40000, ipv6=True, errors=True) as left,
    ):
        left.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 2)
        left.sendto(b"opening", (public(lab.right), 40001))
        answer = refusal(left)
        assert (answer.type, answer.reporter) == (ICMPV6_TIME_EXCEEDED, "2001:db8:1::1")
        assert lab.counters().left_sent.packets == 1
        assert lab.counters().right_received.packets == 0


@pytest.mark.parametrize(
    ("ttl", "reporter"), [(1, "192.168.1.1"), (2, "100.64.1.1"), (3, "198.51.100.1")]
)
def test_double_nat_is_two_hops_with_private_addresses(ttl: int, reporter: str) -> None:
    with Lab(Kind.DOUBLE, Kind.DROP) as lab, udp_socket(lab.left, 40000, errors=True) as left:
        left.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        left.sendto(b"opening", (public(lab.right), 40001))
        assert refusal(left).reporter == reporter


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_hops_are_the_routers_between_the_gateways(hops: int) -> None:
    with Lab(hops=hops) as lab, udp_socket(lab.left, 40000, errors=True) as left:
        assert len(lab.internet) == hops
        left.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops + 1)
        left.sendto(b"x", (public(lab.right), 40001))
        assert refusal(left).type == ICMP_TIME_EXCEEDED
        assert lab.counters().right_received.packets == 0
        left.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops + 2)
        left.sendto(b"x", (public(lab.right), 40001))
        eventually(lambda: lab.counters().right_received.packets == 1, "the packet's arrival")


@pytest.mark.parametrize(
    ("left_kind", "right_kind"),
    [
        (Kind.NONE, Kind.NONE),
        (Kind.DROP, Kind.DROP),
        (Kind.DROP, Kind.REJECT),
        (Kind.DROP, Kind.NONE),
        (Kind.DOUBLE, Kind.DOUBLE),
        (Kind.IPV6, Kind.IPV6),
        (Kind.IPV6, Kind.DROP),  # the other side gets IPv6 without being asked
    ],
)
def test_two_openings_make_a_path(left_kind: Kind, right_kind: Kind) -> None:
    ipv6 = Kind.IPV6 in (left_kind, right_kind)
    with (
        Lab(left_kind, right_kind) as lab,
        udp_socket(lab.left, 40000, ipv6=ipv6) as left,
        udp_socket(lab.right, 40001, ipv6=ipv6) as right,
    ):
        to_left = ((lab.left.public.v6 if ipv6 else lab.left.public.v4), 40000)
        to_right = ((lab.right.public.v6 if ipv6 else lab.right.public.v4), 40001)
        left.sendto(b"opening", to_right)
        eventually(lambda: lab.counters().right_received.packets == 1, "the opening's arrival")
        if right_kind is Kind.NONE:
            assert right.recv(10) == b"opening"
        right.sendto(b"from the right", to_left)
        # The opening did not get through the other gateway: what is read is the second packet.
        data, source = left.recvfrom(20)
        assert (data, source[:2]) == (b"from the right", to_right)
        left.sendto(b"from the left", to_right)
        data, source = right.recvfrom(20)
        assert (data, source[:2]) == (b"from the left", to_left)


def test_ipv6_firewall_side_has_no_ipv4() -> None:
    with Lab(Kind.IPV6, Kind.DROP) as lab:
        assert lab.left.address.v4 is lab.left.public.v4 is None
        with (
            udp_socket(lab.left) as left,
            pytest.raises(OSError, match="unreachable") as refused,
        ):
            left.sendto(b"x", (public(lab.right), 40001))
        assert refused.value.errno == errno.ENETUNREACH


def test_ipv6_can_be_on_one_side_only() -> None:
    with Lab(Kind.DROP, Kind.DROP, ipv6="left") as lab:
        assert lab.left.public.v6 == "2001:db8:1:1::2"
        assert lab.right.public.v6 is None
        with (
            udp_socket(lab.right, ipv6=True) as right,
            pytest.raises(OSError, match="unreachable") as refused,
        ):
            right.sendto(b"x", (lab.left.public.v6, 40000))
        assert refused.value.errno == errno.ENETUNREACH
        with udp_socket(lab.right, 40001) as right, udp_socket(lab.left, 40000) as left:
            right.sendto(b"x", (lab.left.public.v4, 40000))
            left.sendto(b"IPv4", (lab.right.public.v4, 40001))
            assert right.recv(10) == b"IPv4"


@pytest.mark.parametrize(("kind", "refused"), [(Kind.DROP, False), (Kind.REJECT, True)])
def test_dual_stack_gateway_filters_ipv6(kind: Kind, refused: bool) -> None:
    with (
        Lab(kind, Kind.NONE, ipv6=True) as lab,
        udp_socket(lab.left, 40000, ipv6=True) as left,
        udp_socket(lab.right, 40001, ipv6=True, errors=True) as right,
    ):
        right.sendto(b"unsolicited", (lab.left.public.v6, 40000))
        if refused:
            assert refusal(right).errno == errno.ECONNREFUSED
        left.sendto(b"hello", (lab.right.public.v6, 40001))
        data, source = right.recvfrom(20)
        assert (data, source[:2]) == (b"hello", (lab.left.public.v6, 40000))
        right.sendto(b"answer", source)
        assert left.recv(20) == b"answer"


def test_ipv6_prefix_behind_two_gateways() -> None:
    with (
        Lab(Kind.DOUBLE, Kind.NONE, ipv6=True) as lab,
        udp_socket(lab.left, 40000, ipv6=True) as left,
        udp_socket(lab.right, 40001, ipv6=True) as right,
    ):
        left.sendto(b"hello", (lab.right.public.v6, 40001))
        _, source = right.recvfrom(20)
        assert source[:2] == (lab.left.public.v6, 40000)
        right.sendto(b"answer", source)
        assert left.recv(20) == b"answer"


def binomial_range(trials: int, probability: float, error: float) -> tuple[int, int]:
    """Return the counts between which all but `error` of the binomial distribution lies."""

    def mass(count: int) -> float:
        return math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(count + 1)
            - math.lgamma(trials - count + 1)
            + count * math.log(probability)
            + (trials - count) * math.log1p(-probability)
        )

    low, tail = 0, mass(0)
    while tail < error / 2:
        low += 1
        tail += mass(low)
    high, tail = trials, mass(trials)
    while tail < error / 2:
        high -= 1
        tail += mass(high)
    return low, high


@pytest.mark.parametrize("percent", [5.0, 30.0])
def test_loss_is_what_was_asked_for_each_way(percent: float) -> None:
    packets = 2000
    with (
        Lab(Kind.NONE, Kind.NONE, loss=percent) as lab,
        udp_socket(lab.left, 40000) as left,
        udp_socket(lab.right, 40001) as right,
    ):
        for _ in range(packets):
            left.sendto(b"x", (public(lab.right), 40001))
            right.sendto(b"x", (public(lab.left), 40000))
        eventually(
            lambda: (
                min(lab.counters().left_sent.packets, lab.counters().right_sent.packets) == packets
            ),
            "all packets at the routers",
        )
        counters = lab.counters()
    low, high = binomial_range(packets, percent / 100, 1e-9)
    assert low <= packets - counters.right_received.packets <= high
    assert low <= packets - counters.left_received.packets <= high


@pytest.mark.parametrize(("percent", "arrive"), [(0, 50), (100, 0)])
def test_loss_of_nothing_and_of_everything(percent: float, arrive: int) -> None:
    with Lab(Kind.NONE, Kind.NONE, loss=percent) as lab, udp_socket(lab.left) as left:
        for _ in range(50):
            left.sendto(b"x", (public(lab.right), 40001))
        eventually(lambda: lab.counters().left_sent.packets == 50, "all packets at the router")
        eventually(lambda: lab.counters().right_received.packets == arrive, "what is not lost")


def test_counters_see_fragments() -> None:
    with Lab() as lab, udp_socket(lab.left, 40000) as left:
        left.sendto(bytes(1400), (public(lab.right), 40001))
        eventually(lambda: lab.counters().right_received.packets == 1, "the small datagram")
        assert lab.counters().fragments.packets == 0
        assert lab.counters().left_sent == (1, 1428)
        left.sendto(bytes(3000), (public(lab.right), 40001))
        # Three fragments, seen by each of the two routers.
        eventually(lambda: lab.counters().fragments.packets == 6, "the fragments")


def test_counters_see_ipv6_fragments() -> None:
    with Lab(Kind.IPV6, Kind.IPV6) as lab, udp_socket(lab.left, ipv6=True) as left:
        left.sendto(bytes(3000), (public(lab.right), 40001))
        eventually(lambda: lab.counters().fragments.packets == 6, "the fragments")


@pytest.mark.parametrize(("offload", "packets"), [(True, 1), (False, 10)])
def test_without_offload_links_carry_single_packets(offload: bool, packets: int) -> None:
    sol_udp, udp_segment = 17, 103  # linux/udp.h; not in the module socket
    with (
        Lab(Kind.DROP, Kind.NONE, offload=offload) as lab,
        udp_socket(lab.left, 40000) as left,
        udp_socket(lab.right, 40001) as right,
    ):
        left.setsockopt(sol_udp, udp_segment, 1000)
        left.sendto(bytes(10_000), (public(lab.right), 40001))
        assert [len(right.recv(20_000)) for _ in range(10)] == [1000] * 10
        assert lab.counters().left_sent.packets == packets
        assert lab.counters().fragments.packets == 0


@pytest.mark.parametrize("hops", [1, 2])
def test_narrow_link_is_reported_to_the_host(hops: int) -> None:
    ip_mtu = 14  # linux/in.h; not in the module socket
    with Lab(mtu=1300, hops=hops) as lab, udp_socket(lab.left, 40000, errors=True) as left:
        left.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        left.connect((public(lab.right), 40001))
        left.send(bytes(1400))
        assert refusal(left).errno == errno.EMSGSIZE
        assert left.getsockopt(socket.IPPROTO_IP, ip_mtu) == 1300


def test_mapping_lifetimes_can_be_set() -> None:
    with Lab(Kind.DOUBLE, Kind.DROP, udp_timeouts=(7, 11)) as lab:
        for gateway in (*lab.left_gateways, *lab.right_gateways):
            settings = Path("/proc/sys/net/netfilter")
            names = ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"]
            listed = gateway.run(["cat", *(str(settings / name) for name in names)])
            assert listed.stdout.split() == ["7", "11"]


def test_conntrack_lists_a_mapping() -> None:
    if os.geteuid() != 0:  # root can read the table without it
        need("conntrack", package="conntrack")
    with Lab(Kind.DROP, Kind.NONE) as lab, udp_socket(lab.left, 40000) as left:
        assert lab.left_gateways[0].conntrack() == []
        left.sendto(b"x", (public(lab.right), 40001))
        eventually(lambda: lab.counters().left_sent.packets == 1, "the packet beyond the gateway")
        (entry,) = lab.left_gateways[0].conntrack()
        assert "src=192.168.1.2 dst=203.0.113.2 sport=40000 dport=40001" in entry


@pytest.mark.parametrize("ipv6", [False, True])
def test_shared_lan_joins_its_hosts_directly(ipv6: bool) -> None:
    with (
        SharedLab(ipv6=True) as lab,
        udp_socket(lab.left, 40000, ipv6=ipv6) as left,
        udp_socket(lab.right, 40001, ipv6=ipv6) as right,
    ):
        to_left = (lab.left.address.v6 if ipv6 else lab.left.address.v4, 40000)
        to_right = (lab.right.address.v6 if ipv6 else lab.right.address.v4, 40001)
        left.sendto(b"hello", to_right)
        data, source = right.recvfrom(20)
        assert (data, source[:2]) == (b"hello", to_left)
        right.sendto(b"answer", source)
        assert left.recv(20) == b"answer"
        assert lab.counters().left_sent.packets == 0


def test_plain_masquerading_does_not_hairpin() -> None:
    with (
        SharedLab() as lab,
        udp_socket(lab.left, 40000, errors=True) as left,
        udp_socket(lab.right, 40001),
    ):
        assert lab.left.public.v4 == lab.right.public.v4 == "198.51.100.2"
        left.sendto(b"x", (public(lab.right), 40001))
        # The gateway takes the packet for its own, and nothing listens there.
        assert refusal(left).errno == errno.ECONNREFUSED


def test_hairpinning_gateway_joins_hosts_by_its_public_address() -> None:
    with (
        SharedLab(hairpin=True) as lab,
        udp_socket(lab.left, 40000) as left,
        udp_socket(lab.right, 40001) as right,
    ):
        # The first packet finds no mapping of the other host's yet.
        left.sendto(b"opening", ("198.51.100.2", 40001))
        right.sendto(b"to the left", ("198.51.100.2", 40000))
        assert left.recvfrom(20) == (b"to the left", ("198.51.100.2", 40001))
        left.sendto(b"to the right", ("198.51.100.2", 40001))
        assert right.recvfrom(20) == (b"to the right", ("198.51.100.2", 40000))


def test_shared_gateway_leads_to_the_internet() -> None:
    with (
        SharedLab() as lab,
        udp_socket(lab.left, 40000) as left,
        udp_socket(lab.internet[0], 40001) as router,
    ):
        left.sendto(b"x", ("198.51.100.1", 40001))
        assert router.recvfrom(10) == (b"x", ("198.51.100.2", 40000))


def test_close_leaves_nothing() -> None:
    with Lab(Kind.DOUBLE, Kind.RANDOM) as lab:
        inside = lab.left.popen(["sleep", "1000"])
        made = namespaces_of(lab)
        holders = [node.namespace.pid for node in lab.nodes.values()]
        assert made <= namespaces_in_use()
        assert len(made) == 7
    assert inside.wait(10) == -signal.SIGKILL
    assert not made & namespaces_in_use()
    assert not [pid for pid in holders if Path(f"/proc/{pid}").exists()]
    lab.close()


def test_failure_inside_leaves_nothing() -> None:
    made: set[int] = set()

    def fail() -> None:
        with Lab() as lab:
            made.update(namespaces_of(lab))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert len(made) == 6
    assert not made & namespaces_in_use()


def test_killed_owner_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env=environment()
    ) as owner:
        assert owner.stdout is not None
        made = set(json.loads(owner.stdout.readline()))
        assert len(made) == 6
        assert made <= namespaces_in_use()
        owner.kill()
    eventually(lambda: not made & namespaces_in_use(), "all namespaces gone")


def test_interrupt_at_the_terminal_is_left_to_the_owner() -> None:
    with Lab() as lab:
        group = os.getpgid(0)
        assert all(os.getpgid(node.namespace.pid) != group for node in lab.nodes.values())


def test_works_without_root() -> None:
    result = subprocess.run(
        [sys.executable, "-c", ROOTLESS.format(nobody=NOBODY)],
        capture_output=True,
        text=True,
        env={**environment(), "HOME": "/"},
        cwd="/",
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "uid": os.getuid() or NOBODY,
        "inside": "0",  # root, but only in the lab's own user namespace
        "right": ["198.51.100.2", 40000],
        "left": ["203.0.113.2", 40001],
    }


@pytest.fixture
def _no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(namespace, "_SYSTEM_PATH", str(tmp_path))


@pytest.mark.usefixtures("_no_programs")
def test_missing_program_is_named_with_its_package() -> None:
    assert available() == "unshare is missing: apt-get install util-linux"
    with pytest.raises(LabError, match="apt-get install util-linux"), Lab():
        pass


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert available() == "network namespaces are a feature of Linux, and this is darwin"


def test_part_that_is_refused_is_told_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever is in a namespace of this lab has the mark; others build labs at the same time.
    mark = Mark()
    for name, word in mark.environment.items():
        monkeypatch.setenv(name, word)
    with Lab():
        assert mark.processes
    with pytest.raises(LabError, match=r"refused by this machine \(.+\)"), Lab(mtu=1):
        pass
    assert not mark.processes


@pytest.mark.parametrize("hops", [0, 61])
def test_number_of_routers_is_bounded(hops: int) -> None:
    with pytest.raises(ValueError, match="1 to 60 routers"):
        Lab(hops=hops)
