"""Which pairs of gateways connect, how soon, and what a failure says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from nat_traverse.cli.explain import explain
from sim.grid import CELLS, Cell, end_of, play_all, summary

if TYPE_CHECKING:
    from sim.grid import Outcome

RUNS = 200  # a cell

HINTED = [
    cell._replace(hinted=True) for cell in CELLS if (cell.one, cell.other) == ("sequential",) * 2
]
# Two gateways that draw lots, or one of them and one that counts: 4,096 packets a side can't find
# one of four thousand million pairs of ports. Two that count can't be found blindly either.
CROSSABLE = [cell for cell in CELLS if not cell.is_hard] + HINTED
HOPELESS = [cell for cell in CELLS if cell.is_hard]

pytestmark = pytest.mark.timeout(1200)  # all cells are played by whichever test comes first


@pytest.fixture(scope="module")
def outcomes() -> dict[Cell, list[Outcome]]:
    return play_all(CROSSABLE, RUNS)


@pytest.mark.parametrize("cell", CROSSABLE, ids=str)
def test_at_least_99_of_100_connect_in_time(
    cell: Cell, outcomes: dict[Cell, list[Outcome]]
) -> None:
    found = outcomes[cell]
    line = summary(cell, found)
    sys.stdout.write(line + "\n")
    assert len(found) == RUNS
    assert sum(each.waited is not None for each in found) >= 0.99 * RUNS, line


@pytest.mark.parametrize("cell", [cell for cell in CROSSABLE if cell.is_direct], ids=str)
def test_where_ports_are_kept_it_takes_seconds(
    cell: Cell, outcomes: dict[Cell, list[Outcome]]
) -> None:
    found = outcomes[cell]
    soon = sum(each.waited is not None and each.waited <= 3.0 for each in found)
    assert soon >= 0.99 * RUNS, summary(cell, found)


@pytest.mark.parametrize("cell", CROSSABLE, ids=str)
def test_never_impolite(cell: Cell, outcomes: dict[Cell, list[Outcome]]) -> None:
    for each in outcomes[cell]:
        assert each.most_sockets <= 256, each
        assert each.busiest <= 100, each


@pytest.mark.parametrize("cell", HOPELESS, ids=str)
def test_where_both_change_ports_it_is_said(cell: Cell) -> None:
    for seed in range(3):
        said = end_of(cell, seed, timeout=180.0)
        assert len(said) == 2, f"seed {seed} connected or never ended"
        for end in said:
            codes = [each.code for each in explain(end.evidence, "nat-traverse ...")]
            assert "both-change-ports" in codes, (seed, codes)
            assert end.evidence.ports_tried > 1000
