"""What goes out, counted: sockets, packets a second and altogether, and when there is silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nat_traverse.model import Path, Rung
from nat_traverse.punch.hop import hop_port
from nat_traverse.punch.machine import RungStarted
from sim import kinds
from sim.run import Link, Run, Side, ladder

if TYPE_CHECKING:
    from sim.run import End

ATTEMPT = 180.0
FULL = 5.0  # s of each minute in which knocking is allowed


def alone(seed: int, *, poison: bool = False, **settings: float) -> tuple[Run, End]:
    """Run one side for a whole attempt; the other one never comes."""
    run = Run(
        seed,
        Side(kinds.GRID["apdf"](), factory=ladder(None, None, **settings)),
        Side(kinds.GRID["apdf"](poison=poison), starts=10_000.0, factory=ladder()),
        Link(latency=0.02),
        record=True,
    )
    run.run(ATTEMPT)
    return run, run.left


def hop_ports(run: Run) -> set[int]:
    minute = int(run.wall // 60)
    return {hop_port(run.right.port, run.left.port, m) for m in range(minute - 1, minute + 6)}


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_one_attempt_keeps_every_limit(seed: int, poison: bool) -> None:
    run, end = alone(seed, poison=poison)
    assert end.most_sockets <= 256
    assert end.busiest() <= 100
    spray = [
        send
        for _, send in end.records
        if send.path != Path(0, run.right.public) and send.path.remote.port not in hop_ports(run)
    ]
    assert 3500 < len(spray) <= 4096
    # Probes are spread over distinct ports; openings all go to the one.
    probes = [send.path.remote for send in spray if send.path.socket == 0]
    assert len(set(probes)) == len(probes)
    assert {send.path.remote for send in spray if send.path.socket} == {run.right.public}


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_quiet_seconds_have_low_ttl_packets_only(seed: int, poison: bool) -> None:
    run, end = alone(seed, poison=poison)
    quiet = next(
        at
        for at, event in end.events
        if isinstance(event, RungStarted) and event.rung is Rung.QUIET
    )
    pairs = [Path(0, run.right.public)]
    pairs += [
        Path(socket, run.right.public._replace(port=port))
        for socket in (1, 2)
        for port in hop_ports(run)
    ]
    kept = [(at, send) for at, send in end.records if send.path in pairs and at > quiet]
    assert len({send.path for _, send in kept}) > 2
    loud = [at for at, send in kept if send.ttl is None]
    assert loud, "nobody knocks at all"
    assert all((run.wall + at) % 60 < FULL for at in loud)
    openings = [send.ttl for _, send in kept if send.ttl is not None]
    assert openings
    assert max(openings) <= 7


def test_a_limit_that_the_user_lowers_is_kept() -> None:
    _, end = alone(1, rate=30.0)
    assert end.busiest() <= 30


@pytest.mark.parametrize("pair", [("apdf", "random"), ("apdf", "apdf"), ("random", "eim")])
@pytest.mark.parametrize("seed", range(10))
def test_a_second_after_connecting_all_is_still(pair: tuple[str, str], seed: int) -> None:
    sides = [Side(kinds.GRID[name](), factory=ladder()) for name in pair]
    run = Run(seed, sides[0], sides[1], Link(latency=0.02, loss=0.1), record=True)
    assert run.run(200.0), f"seed {seed}"
    since = run.network.now
    run.go_on(20.0)
    for end in run.ends:
        assert end.connected is not None
        # Answers to what the other side repeats go the same way, and end with it.
        late = [send.path for at, send in end.records if at > since + 1.0]
        assert set(late) <= {end.connected[1].path}
        assert len(end.sockets) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_gives_up_leaves_nothing_open(seed: int) -> None:
    run = Run(
        seed,
        Side(kinds.GRID["random"](), factory=ladder(20.0)),
        Side(kinds.GRID["random"](), factory=ladder(20.0)),
        Link(latency=0.02),
        record=True,
    )
    run.run(30.0)
    run.go_on(30.0)
    for end in run.ends:
        assert end.failed is not None
        assert end.sockets.keys() == {0}
        assert max(end.sent) <= end.failed[0]
