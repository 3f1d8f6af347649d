"""New with new through real kernel NATs: which pairs connect, under which circumstances."""

from __future__ import annotations

import hashlib
import random
import time
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab, SharedLab
from support.programs import OURS, Program, with_names
from support.sides import (
    LEFT_PORT,
    RIGHT_PORT,
    address,
    connected,
    left,
    right,
    transfer,
)

if TYPE_CHECKING:
    from pathlib import Path


# The pairs that hellos on the agreed ports cross. A gateway that accepts uninvited packets takes
# the flow for its own when the other side's arrive first, so there the accepting side starts first.
CROSSABLE = [
    (Kind.NONE, Kind.NONE),
    (Kind.NONE, Kind.DROP),
    (Kind.DROP, Kind.DROP),
    (Kind.DROP, Kind.REJECT),
    (Kind.REJECT, Kind.REJECT),
    (Kind.ACCEPT, Kind.DROP),
    (Kind.DOUBLE, Kind.DROP),
    (Kind.DOUBLE, Kind.DOUBLE),
    (Kind.IPV6, Kind.IPV6),
]


@pytest.mark.parametrize("pair", CROSSABLE, ids=lambda pair: "-".join(k.value for k in pair))
def test_pairs_that_connect_and_carry_data(pair: tuple[Kind, Kind]) -> None:
    with Lab(*pair) as lab, connected(lab) as (one, other):
        seen = one.event("connected")
        assert seen["observed"] == f"{bracketed(address(lab.left))}:{LEFT_PORT}"
        assert seen["peer"] == f"{bracketed(address(lab.right))}:{RIGHT_PORT}"
        assert other.event("connected")["round_trip"] is not None
        transfer(one, other)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def test_a_refusal_by_the_gateway_is_told_and_survived() -> None:
    with Lab(Kind.REJECT, Kind.REJECT) as lab, left(lab) as first:
        refused = first.event("refused")
        while refused["error"] == "time to live exceeded":
            first.wait_until(lambda: len(refusals(first)) > 0, "a refusal by the gateway")
            refused = refusals(first)[0]
        assert refused["reporter"] == lab.right.public.v4
        with right(lab) as second:
            first.event("connected")
            second.event("connected")
            transfer(first, second)


def refusals(program: Program) -> list[dict[str, object]]:
    return [event for event in program.events if event.get("error") == "port unreachable"]


def test_a_changed_port_is_seen_and_answered() -> None:
    # The far side has no gateway, so that packets from a changed port arrive there. It starts
    # first: refused by a host that does not listen yet, the other one would keep still.
    with Lab(Kind.RANDOM, Kind.NONE) as lab, right(lab) as second:
        second.event("opened")
        with left(lab) as first:
            changed = second.event("port-changed")
            assert changed["actual"] != f"{lab.left.public.v4}:{LEFT_PORT}"
            assert second.event("connected")["peer"] == changed["actual"]
            assert first.event("connected")["observed"] == changed["actual"]
            transfer(first, second)


def test_two_hosts_behind_one_gateway_by_their_own_addresses() -> None:
    with SharedLab() as lab:
        mine, yours = lab.left.address.v4, lab.right.address.v4
        with left(lab, peer=yours) as first, right(lab, peer=mine) as second:
            first.event("connected")
            second.event("connected")
            transfer(first, second)


def test_two_hosts_behind_one_gateway_that_hairpins() -> None:
    with SharedLab(hairpin=True) as lab, connected(lab) as (one, other):
        transfer(one, other)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_name_with_both_families_where_one_side_has_only_ipv4(side: str, tmp_path: Path) -> None:
    """All addresses of a name are tried side by side, and one that leads nowhere costs no time."""
    with Lab(Kind.DROP, Kind.DROP, ipv6="left") as lab:
        # Both names have an IPv6 address, though only the left host's works.
        names = tmp_path / "hosts"
        names.write_text(
            f"{lab.left.public.v4} left\n{lab.left.public.v6} left\n"
            f"{lab.right.public.v4} right\n2001:db8:2:1::2 right\n"
        )
        names.chmod(0o644)
        with named(lab, "left", names) as first, named(lab, "right", names) as second:
            program = first if side == "left" else second
            assert program.event("connected")["peer"].startswith(("198.51.100.", "203.0.113."))
            transfer(first, second)


def named(lab: Lab, side: str, names: Path) -> Program:
    """Run our program where /etc/hosts is `names`, with the other side's name as its peer."""
    host, peer = (lab.left, "right") if side == "left" else (lab.right, "left")
    ports = (LEFT_PORT, RIGHT_PORT) if side == "left" else (RIGHT_PORT, LEFT_PORT)
    command = [OURS, "--json", f"{ports[0]}:{peer}:{ports[1]}"]
    return Program(with_names(names, command), host)


def test_twenty_of_twenty_connect_at_thirty_percent_loss() -> None:
    with Lab(Kind.DROP, Kind.DROP, loss=30) as lab:
        for attempt in range(20):
            with (
                left(lab, "--quit-after-connect") as one,
                right(lab, "--quit-after-connect") as other,
            ):
                assert (one.wait(), other.wait()) == (0, 0), f"attempt {attempt}"


def test_twenty_of_twenty_connect_without_loss() -> None:
    with Lab(Kind.DROP, Kind.REJECT) as lab:
        for attempt in range(20):
            with (
                left(lab, "--quit-after-connect") as one,
                right(lab, "--quit-after-connect") as other,
            ):
                assert (one.wait(), other.wait()) == (0, 0), f"attempt {attempt}"


def test_the_later_side_may_start_a_minute_after_the_first() -> None:
    with Lab(Kind.DROP, Kind.DROP) as lab, left(lab) as first:
        first.event("opened")
        # The minute is what this is about: mappings age, and hellos have become rare.
        time.sleep(60)
        with right(lab) as second:
            transfer(first, second)


def test_no_fragments_and_no_full_packets_at_first() -> None:
    """Data leaves in datagrams that a 1,500-byte path carries whole; nothing is fragmented."""
    with Lab(Kind.DROP, Kind.DROP, offload=False) as lab, connected(lab) as (one, other):
        transfer(one, other, 200_000)
        counters = lab.counters()
        assert counters.fragments.packets == 0
        sent = counters.left_sent
        assert sent.packets >= 200_000 / 1400
        assert sent.bytes / sent.packets <= 1428


def test_a_narrow_path_is_found_out_before_data_flows() -> None:
    with Lab(Kind.DROP, Kind.DROP, mtu=1300) as lab, connected(lab) as (one, other):
        sizes = {one.event("connected")["datagram_size"], other.event("connected")["datagram_size"]}
        assert max(sizes) <= 1272
        data = random.Random(3).randbytes(50_000)
        one.write(data)
        one.close_input()
        other.close_input()
        assert (one.wait(), other.wait()) == (0, 0)
        assert hashlib.sha256(other.output).digest() == hashlib.sha256(data).digest()
        assert lab.counters().fragments.packets == 0
