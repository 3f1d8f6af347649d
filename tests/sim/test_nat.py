"""Each axis of a simulated NAT, by itself."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nat_traverse.model import Endpoint
from sim import kinds
from sim.nat import Allocation, Behaviour, Clash, Dependence, Nat, PortRange, Unsolicited

HOST = Endpoint("192.168.1.2", 40_000)
OTHER_HOST = Endpoint("192.168.1.3", 40_000)
PUBLIC = "198.51.100.2"
PEER = Endpoint("203.0.113.2", 40_001)
PEER_ELSEWHERE = Endpoint("203.0.113.2", 40_002)
STRANGER = Endpoint("192.0.2.99", 40_001)

INDEPENDENT, ADDRESS, ADDRESS_AND_PORT = Dependence

TAKING = Behaviour(unsolicited=Unsolicited.TAKE)


def nat(behaviour: Behaviour | None = None, seed: int = 1) -> Nat:
    return Nat(behaviour or Behaviour(), PUBLIC, random.Random(seed))


def port(gateway: Nat, remote: Endpoint, now: float = 0.0, source: Endpoint = HOST) -> int:
    external = gateway.outbound(source, remote, now)
    assert external is not None
    assert external.host == PUBLIC
    return external.port


@pytest.mark.parametrize(
    ("mapping", "ports"),
    [(INDEPENDENT, [7, 7, 7]), (ADDRESS, [7, 7, 8]), (ADDRESS_AND_PORT, [7, 8, 9])],
)
def test_mapping_depends_on_that_much_of_the_remote(mapping: Dependence, ports: list[int]) -> None:
    # Sequential allocation shows which packets got a mapping of their own.
    behaviour = Behaviour(
        mapping=mapping, allocation=Allocation.SEQUENTIAL, ports=PortRange(1, 99), start=7
    )
    gateway = nat(behaviour)
    for _ in range(2):
        assert [port(gateway, remote) for remote in (PEER, PEER_ELSEWHERE, STRANGER)] == ports
    assert gateway.flows(0.0) == len(set(ports))


@pytest.mark.parametrize("mapping", Dependence)
@pytest.mark.parametrize(
    ("filtering", "let_in"),
    [
        (INDEPENDENT, [PEER, PEER_ELSEWHERE, STRANGER]),
        (ADDRESS, [PEER, PEER_ELSEWHERE]),
        (ADDRESS_AND_PORT, [PEER]),
    ],
)
@pytest.mark.parametrize("allocation", Allocation)
def test_filter_is_independent_of_mapping_and_allocation(
    mapping: Dependence, filtering: Dependence, allocation: Allocation, let_in: list[Endpoint]
) -> None:
    gateway = nat(Behaviour(mapping=mapping, filtering=filtering, allocation=allocation))
    mapped = port(gateway, PEER)
    for remote in (PEER, PEER_ELSEWHERE, STRANGER):
        expected = HOST if remote in let_in else None
        assert gateway.inbound(remote, mapped, 1.0) == expected
    assert gateway.inbound(PEER, mapped + 1, 1.0) is None


def test_permission_of_a_strict_filter_ends_by_itself() -> None:
    gateway = nat(Behaviour(mapping=INDEPENDENT, filtering=ADDRESS))
    mapped = port(gateway, PEER, 0.0)
    assert port(gateway, STRANGER, 20.0) == mapped
    assert gateway.inbound(PEER, mapped, 31.0) is None
    assert gateway.inbound(STRANGER, mapped, 31.0) == HOST


def test_kept_ports_are_shared_by_mappings_to_different_remotes() -> None:
    gateway = nat()
    assert port(gateway, PEER) == port(gateway, STRANGER) == 40_000
    assert port(gateway, PEER, source=OTHER_HOST) != 40_000
    assert gateway.inbound(PEER, 40_000, 0.0) == HOST


@pytest.mark.parametrize("mapping", Dependence)
def test_port_that_is_taken_is_followed_by_the_next(mapping: Dependence) -> None:
    gateway = nat(Behaviour(mapping=mapping, clash=Clash.NEXT))
    assert port(gateway, PEER) == 40_000
    assert port(gateway, PEER, source=OTHER_HOST) == 40_001
    assert gateway.inbound(PEER, 40_001, 0.0) == OTHER_HOST


def test_sequential_ports_step_wrap_and_skip_what_is_taken() -> None:
    behaviour = Behaviour(
        allocation=Allocation.SEQUENTIAL, step=2, start=1030, ports=PortRange(1024, 1033)
    )
    gateway = nat(behaviour)
    remotes = [PEER._replace(port=number) for number in range(1, 6)]
    assert [port(gateway, remote) for remote in remotes] == [1030, 1032, 1024, 1026, 1028]
    strict = nat(replace(behaviour, mapping=INDEPENDENT))
    sources = [HOST._replace(port=number) for number in range(1, 7)]
    ports = [strict.outbound(source, PEER, 0.0) for source in sources]
    # Five steps of two in ten ports: the sixth finds none, as its step leads to no odd one.
    assert [one and one.port for one in ports] == [1030, 1032, 1024, 1026, 1028, None]


def test_random_ports_fill_their_range_and_no_port_twice() -> None:
    behaviour = Behaviour(
        mapping=INDEPENDENT, allocation=Allocation.RANDOM, ports=PortRange(2000, 2099)
    )
    gateway = nat(behaviour)
    sources = [HOST._replace(port=number) for number in range(1, 101)]
    ports = [port(gateway, PEER, source=source) for source in sources]
    assert sorted(ports) == list(range(2000, 2100))
    assert ports != sorted(ports)
    assert gateway.outbound(HOST, PEER, 0.0) is None


def test_random_ports_are_spread_evenly() -> None:
    gateway = nat(Behaviour(allocation=Allocation.RANDOM))
    ports = [port(gateway, PEER._replace(port=number)) for number in range(1, 20_001)]
    # 20,000 of 64,512, in 8 equal parts: 2,500 each, with a standard deviation of 47.
    parts = [0] * 8
    for one in ports:
        parts[(one - 1024) * 8 // 64_512] += 1
    assert all(2500 - 6 * 47 < part < 2500 + 6 * 47 for part in parts)
    assert min(ports) >= 1024


def test_block_is_one_of_the_range_and_chosen_by_the_seed() -> None:
    blocks = set()
    for seed in range(20):
        gateway = nat(Behaviour(allocation=Allocation.BLOCK, block=64), seed)
        ports = [port(gateway, PEER._replace(port=number)) for number in range(1, 65)]
        (block,) = {(one - 1024) // 64 for one in ports}
        blocks.add(block)
    assert len(blocks) > 10


def test_seed_decides() -> None:
    def first(seed: int) -> list[int]:
        gateway = nat(Behaviour(allocation=Allocation.SEQUENTIAL), seed)
        return [port(gateway, PEER), port(gateway, STRANGER)]

    assert first(1) == first(1) != first(2)
    assert first(3)[1] == first(3)[0] + 1


def test_mapping_without_answer_ends_after_its_silence() -> None:
    gateway = nat()
    port(gateway, PEER, 0.0)
    port(gateway, PEER, 29.0)
    assert gateway.find(PEER, 40_000, 58.9) is not None
    assert gateway.find(PEER, 40_000, 59.0) is None
    assert gateway.flows(59.0) == 0


def test_answered_mapping_becomes_a_stream_after_a_while() -> None:
    gateway = nat()
    port(gateway, PEER, 0.0)
    assert gateway.inbound(PEER, 40_000, 0.1) == HOST
    port(gateway, PEER, 0.2)
    assert gateway.find(PEER, 40_000, 30.3) is None  # an exchange is no stream yet
    port(gateway, PEER, 100.0)
    assert gateway.inbound(PEER, 40_000, 101.0) == HOST
    port(gateway, PEER, 102.1)
    assert gateway.find(PEER, 40_000, 222.0) is not None
    assert gateway.find(PEER, 40_000, 222.1) is None


@pytest.mark.parametrize("refreshes", [True, False])
def test_inbound_packets_keep_a_mapping_only_where_they_do(refreshes: bool) -> None:
    gateway = nat(Behaviour(inbound_refreshes=refreshes))
    port(gateway, PEER, 0.0)
    assert gateway.inbound(PEER, 40_000, 20.0) == HOST
    assert (gateway.inbound(PEER, 40_000, 40.0) == HOST) is refreshes


def test_packet_that_dies_in_the_gateway_refreshes_but_opens_nothing() -> None:
    gateway = nat()
    gateway.touch(HOST, PEER, 0.0)
    assert gateway.flows(0.0) == 0
    port(gateway, PEER, 0.0)
    gateway.touch(HOST, PEER, 20.0)
    assert gateway.find(PEER, 40_000, 49.0) is not None


def test_flow_limit_counts_what_lives() -> None:
    gateway = nat(Behaviour(flow_limit=2))
    assert gateway.outbound(HOST, PEER, 0.0) is not None
    assert gateway.outbound(HOST, PEER_ELSEWHERE, 10.0) is not None
    assert gateway.outbound(HOST, STRANGER, 20.0) is None
    assert gateway.outbound(HOST, PEER, 20.0) is not None  # one that there is goes on
    assert gateway.outbound(HOST, STRANGER, 45.0) is not None  # in place of the second
    assert gateway.outbound(HOST, PEER_ELSEWHERE, 45.0) is None


@pytest.mark.parametrize(
    ("behaviour", "refuses"),
    [
        (Behaviour(), False),
        (Behaviour(unsolicited=Unsolicited.REFUSE), True),
        (TAKING, True),
        (replace(TAKING, answers=False), False),
    ],
)
def test_unsolicited_packets_are_answered_or_not(behaviour: Behaviour, refuses: bool) -> None:
    assert nat(behaviour).refuses is refuses


@pytest.mark.parametrize("unsolicited", [Unsolicited.DROP, Unsolicited.REFUSE])
def test_unsolicited_packet_that_is_not_taken_changes_nothing(unsolicited: Unsolicited) -> None:
    gateway = nat(Behaviour(unsolicited=unsolicited))
    assert gateway.inbound(PEER, 40_000, 0.0) is None
    assert port(gateway, PEER, 0.1) == 40_000


@pytest.mark.parametrize("mapping", Dependence)
def test_taken_packet_costs_its_sender_the_port(mapping: Dependence) -> None:
    gateway = nat(replace(TAKING, mapping=mapping))
    assert gateway.inbound(PEER, 40_000, 0.0) is None
    assert gateway.takes(PEER, 40_000, 29.9)
    changed = port(gateway, PEER, 29.9)
    assert changed != 40_000
    assert gateway.inbound(PEER, 40_000, 29.95) is None
    assert gateway.inbound(PEER, changed, 29.95) == HOST


@pytest.mark.parametrize("remote", [PEER_ELSEWHERE, STRANGER])
def test_taken_packet_costs_nobody_else_a_port(remote: Endpoint) -> None:
    gateway = nat(TAKING)
    gateway.inbound(PEER, 40_000, 0.0)
    assert port(gateway, remote, 1.0) == 40_000


def test_each_further_packet_keeps_the_gateways_flow() -> None:
    gateway = nat(TAKING)
    for now in (0.0, 25.0, 50.0):
        assert gateway.inbound(PEER, 40_000, now) is None
    assert port(gateway, PEER, 79.0) != 40_000
    assert port(gateway, PEER_ELSEWHERE, 120.0) == 40_000


def test_changed_port_stays_while_it_is_used_and_silence_heals() -> None:
    gateway = nat(TAKING)
    gateway.inbound(PEER, 40_000, 0.0)
    changed = port(gateway, PEER, 1.0)
    for now in (20.0, 40.0, 60.0):
        assert port(gateway, PEER, now) == changed
    assert not gateway.takes(PEER, 40_000, 60.0)
    assert port(gateway, PEER, 90.0) == 40_000


def test_mapping_that_was_first_is_not_taken() -> None:
    gateway = nat(TAKING)
    assert port(gateway, PEER, 0.0) == 40_000
    assert gateway.inbound(PEER, 40_000, 1.0) == HOST
    assert not gateway.takes(PEER, 40_000, 1.0)


@pytest.mark.parametrize("follows", [True, False])
def test_next_mapping_of_a_source_follows_the_newest(follows: bool) -> None:
    gateway = nat(replace(TAKING, follows_source=follows))
    gateway.inbound(PEER, 40_000, 0.0)
    changed = port(gateway, PEER, 1.0)
    assert port(gateway, STRANGER, 2.0) == (changed if follows else 40_000)
    # All of them have to end before the source has its port back.
    port(gateway, STRANGER, 31.0)
    assert port(gateway, PEER_ELSEWHERE, 60.0) == (changed if follows else 40_000)
    assert port(gateway, PEER, 200.0) == 40_000


@pytest.mark.parametrize("name", kinds.GRID)
def test_kinds_are_what_their_names_say(name: str) -> None:
    plain, taking = kinds.GRID[name](), kinds.GRID[name](poison=True)
    assert len(plain) == len(taking) == (0 if name == "none" else 1)
    for one, other in zip(plain, taking, strict=True):
        assert replace(one, unsolicited=Unsolicited.TAKE) == other
        gateway = nat(one)
        first, second = port(gateway, PEER), port(gateway, STRANGER)
        assert (first == 40_000) is (name in {"eim", "adf", "apdf"})
        assert (second - first == 1) is (name == "sequential")
        gateway.inbound(STRANGER, first, 1.0)
        elsewhere = gateway.inbound(PEER_ELSEWHERE, first, 1.0)
        assert (elsewhere == HOST) is (name in {"eim", "adf"})
        unheard = gateway.inbound(Endpoint("192.0.2.1", 1), first, 1.0)
        assert (unheard == HOST) is (name == "eim")
