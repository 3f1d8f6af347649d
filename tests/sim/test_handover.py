"""The agreed pair of ports, when somebody else is to use it and another path was found first."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from nat_traverse.model import Path, Rung
from nat_traverse.punch.machine import AgreedPairAwaited
from nat_traverse.wire.hello import Mode
from sim import kinds
from sim.run import Link, Run, Side, ladder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.nat import Behaviour

SEEDS = range(30)
BOTH = (Mode.PORTS, Mode.PORTS)


def play(
    seed: int,
    gateways: Sequence[Sequence[Behaviour]],
    modes: Sequence[Mode],
    *,
    difference: float = 4.0,
    loss: float = 0.0,
) -> Run:
    chance = random.Random(seed)
    late = chance.randrange(2)
    sides = [
        Side(
            gateways[side],
            starts=difference if side == late else 0.0,
            clock=chance.uniform(-5, 5),
            factory=ladder(handshake={"mode": modes[side]}),
        )
        for side in (0, 1)
    ]
    run = Run(seed, sides[0], sides[1], Link(loss=loss, latency=0.03), record=True)
    run.run(200.0)
    assert run.connected, f"seed {seed}"
    return run


@pytest.mark.parametrize("modes", [BOTH, (Mode.PLAIN, Mode.PORTS)], ids=("both", "one"))
@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_poisoned_pair_is_healed(seed: int, loss: float, modes: Sequence[Mode]) -> None:
    spoiled = kinds.GRID["apdf"](poison=True)
    run = play(seed, (spoiled, spoiled), modes, loss=loss)
    assert (run.left.agreed, run.right.agreed) == (True, True)
    assert run.left.path == Path(0, run.right.public)
    assert run.right.path == Path(0, run.left.public)
    assert run.waited is not None
    assert run.waited < 150.0
    # Whoever waits is told, and why.
    told = run.left.event(AgreedPairAwaited) or run.right.event(AgreedPairAwaited)
    assert told is not None or run.left.rung in (Rung.DIRECT, Rung.QUIET)


def test_during_the_silence_nothing_goes_out_on_the_pair() -> None:
    spoiled = kinds.GRID["apdf"](poison=True)
    run = play(3, (spoiled, spoiled), BOTH)
    for end in run.ends:
        began = max(
            at for at, event in end.events if isinstance(event, AgreedPairAwaited) and event.silence
        )
        pair = [
            at - began
            for at, send in end.records
            if send.path == Path(0, end.remotes[0]) and at > began + 0.5
        ]
        assert min(pair) >= 32.0
        assert end.sockets.keys() == {0}


@pytest.mark.parametrize("seed", SEEDS)
def test_where_ports_change_the_real_ones_are_told_at_once(seed: int) -> None:
    run = play(seed, (kinds.GRID["apdf"](), kinds.GRID["random"]()), BOTH, difference=0.5)
    assert (run.left.agreed, run.right.agreed) == (False, False)
    assert run.waited is not None
    assert run.waited < 45.0
    for end in run.ends:
        awaited = [event for _, event in end.events if isinstance(event, AgreedPairAwaited)]
        assert not any(event.silence for event in awaited)


@pytest.mark.parametrize("seed", SEEDS)
def test_where_the_pair_works_it_is_simply_used(seed: int) -> None:
    run = play(seed, (kinds.GRID["apdf"](), kinds.GRID["adf"]()), BOTH)
    assert (run.left.agreed, run.right.agreed) == (True, True)
    assert run.waited is not None
    assert run.waited < 1.0
