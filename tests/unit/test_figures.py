"""The figures: drawn twice they are the same, and what they show is what was measured."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from figures import exchange, matrix, search, times
from figures.runs import Outcome, Pairing, Search, _run_pair, _run_search, share
from figures.story import find_story
from figures.style import save

from nat_traverse.model import Rung
from nat_traverse.punch.ports import PORTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

DRAWN = Path(__file__).parents[2] / "docs" / "figures"
NAMES = ("exchange", "matrix", "search", "times")

OUTCOMES = {
    pairing: [Outcome(index / 10 + 0.1, Rung.DIRECT, Rung.QUIET) for index in range(12)]
    for pairing in matrix.PAIRINGS
}
SEARCHES = [Search(index * 7 + 1, index / 5 + 4) for index in range(100)]

DRAWINGS: dict[str, Callable[[], Figure]] = {
    "exchange": lambda: exchange.draw(find_story()),
    "matrix": lambda: matrix.draw(OUTCOMES),
    "search": lambda: search.draw(SEARCHES),
    "times": lambda: times.draw(OUTCOMES, OUTCOMES[matrix.PAIRINGS[0]], SEARCHES),
}


@pytest.mark.parametrize("name", NAMES)
def test_drawing_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    for number in range(2):
        save(DRAWINGS[name](), tmp_path / str(number))
    first, second = ((tmp_path / str(number)).read_bytes() for number in range(2))
    assert first == second
    assert b"<text" in first  # and no outlines
    assert b"<dc:date" not in first


@pytest.mark.parametrize("name", NAMES)
def test_figure_of_the_documents_is_small(name: str) -> None:
    assert 0 < (DRAWN / f"{name}.svg").stat().st_size < 100_000


def test_documents_have_these_figures_and_no_others() -> None:
    assert sorted(path.stem for path in DRAWN.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("probes", [1, 100, 753])
def test_formula_is_the_closed_one(probes: int) -> None:
    openings = search.OPENINGS
    missed = Fraction(comb(PORTS - openings, probes), comb(PORTS, probes))
    assert search.formula(probes)[probes] == pytest.approx(float(1 - missed))


def test_measurement_counts_what_was_found_so_far() -> None:
    searches = [Search(100, 1.0), Search(101, 1.0), Search(None, None), Search(7, 1.0)]
    assert search.measured(searches, 100) == 0.5


def test_share_is_that_of_the_connected() -> None:
    lost = Outcome(None, None, None)
    assert share([Outcome(1.0, Rung.SPRAY, Rung.SPRAY), lost, lost, lost]) == 0.25


def test_runs_are_functions_of_their_numbers() -> None:
    wanted = (Pairing("apdf", "apdf", poison=False), 0, 16)
    outcome = _run_pair(wanted)
    assert outcome == _run_pair(wanted)
    assert outcome.rung is Rung.DIRECT
    found = _run_search(3)
    assert found == _run_search(3)
    assert found.probes is not None
    assert found.probes > 0


def test_story_is_told_in_order() -> None:
    story = find_story()
    moments = [step.at for step in story.steps]
    assert moments == sorted(moments)
    assert sum(step.taken for step in story.steps) == 2
    # Poisoned is the pair of the agreed ports; what gets through is another one.
    assert "port unreachable" in story.steps[2].text
    assert [step.text for step in story.steps[-2:]] == ["connected"] * 2
