"""The search for one port-changing gateway, against the theory, and by the clock."""

from __future__ import annotations

import random
import sys
from itertools import accumulate
from math import comb, inf
from statistics import median, quantiles

import pytest

from nat_traverse.model import Endpoint
from sim import kinds
from sim.pool import in_parallel
from sim.run import Link, Run, Side, ladder

RUNS = 1000
SEARCHES = 1010  # so many seeds, of which a few say nothing: see `probes_needed`
OPENINGS = 256
PORTS = 64_512  # 1024 to 65535
CONFIDENCE = 0.99

# s that the hard side is ahead: all its openings are made, and none is due again soon.
_AHEAD = 8.0

pytestmark = pytest.mark.timeout(900)


def chance_of_success(probes: int) -> float:
    """Return the chance that one of so many distinct probes meets an opening."""
    return 1 - comb(PORTS - OPENINGS, probes) / comb(PORTS, probes)


def band(chance: float, runs: int) -> tuple[int, int]:
    """Return the least and the most successes that are within the binomial confidence band."""
    tail = (1 - CONFIDENCE) / 2
    shares = [comb(runs, k) * chance**k * (1 - chance) ** (runs - k) for k in range(runs + 1)]
    below = list(accumulate(shares))
    least = next(k for k, share in enumerate(below) if share > tail)
    most = next(k for k, share in enumerate(below) if share >= 1 - tail)
    return least, most


def probes_needed(seed: int) -> float | None:
    """Return how many ports the easy side tried until it met an opening; infinity: it never did.

    None where the two met the other way round before that, and nobody knows how many it would have
    taken: a probe of the hard side's happened to leave from the agreed port, for which the easy
    side's openings wait.
    """
    run = Run(
        seed,
        Side(kinds.GRID["apdf"](), starts=_AHEAD, factory=ladder(None)),
        Side(kinds.GRID["random"](), factory=ladder(None)),
        Link(latency=0.02),
        record=True,
    )
    if not run.run(_AHEAD + 170.0):
        return inf
    path = run.left.path
    assert path is not None
    assert run.left.rung is not None
    if path.socket != 0:
        return None
    # The agreed port is one of those tried: now and then the gateway draws just that.
    tried = [send.path.remote for _, send in run.left.records if send.path.socket == 0]
    distinct = list(dict.fromkeys(tried))
    return distinct.index(path.remote) + 1


def seconds_needed(seed: int) -> float | None:
    """Return the time from the later start, when both start within three seconds."""
    chance = random.Random(seed)
    starts = chance.sample((0.0, 3.0 * chance.random()), 2)
    hard = chance.randrange(2)
    sides = [
        Side(
            kinds.GRID["random" if side == hard else "apdf"](),
            starts=starts[side],
            factory=ladder(),
        )
        for side in (0, 1)
    ]
    run = Run(seed, sides[0], sides[1], Link(latency=chance.uniform(0.005, 0.1)))
    run.run(200.0)
    return run.waited


def test_success_agrees_with_the_closed_formula() -> None:
    searches = in_parallel(probes_needed, range(SEARCHES))
    needed = [probes for probes in searches if probes is not None]
    assert len(needed) >= RUNS
    for probes in (100, 300, 1000, 2000):
        found = sum(each <= probes for each in needed)
        chance = chance_of_success(probes)
        least, most = band(chance, len(needed))
        line = f"{probes} probes: {found} of {len(needed)}, expected {chance:.2%}"
        line += f": {least} to {most}"
        sys.stdout.write(line + "\n")
        assert least <= found <= most, line


def test_half_are_found_in_six_seconds_and_nearly_all_in_25() -> None:
    waited = in_parallel(seconds_needed, range(RUNS))
    times = [float("inf") if each is None else each for each in waited]
    slow = quantiles(times, n=100)[98]
    sys.stdout.write(f"median {median(times):.2f} s, 99 % within {slow:.2f} s\n")
    assert median(times) < 6.0
    assert slow < 25.0


@pytest.mark.parametrize("seed", range(3))
def test_a_search_whose_own_gateway_has_spoiled_its_port_is_cured_by_the_next_attempt(
    seed: int,
) -> None:
    easy = Side(kinds.GRID["apdf"](poison=True), factory=ladder(None))
    run = Run(seed, easy, Side(kinds.GRID["random"](), factory=ladder(None)), Link(latency=0.02))
    nat, source = run.left.gateways[0].nat, Endpoint(run.left.host.address, run.left.port)
    probed = Endpoint(run.right.host.public, 5000)

    def spoil() -> None:
        nat.inbound(probed, run.left.port, run.network.now)
        external = nat.outbound(source, probed, run.network.now)
        assert external is not None
        assert external.port != run.left.port

    run.network.at(1.0, spoil)
    assert not run.run(290.0)
    assert run.run(350.0)


def test_the_band_is_the_binomial_one() -> None:
    # By hand: of 100 tosses of a fair coin 99 % give 37 to 63 heads.
    assert band(0.5, 100) == (37, 63)
    assert chance_of_success(1) == pytest.approx(OPENINGS / PORTS)
