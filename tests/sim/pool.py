"""Work for all processors: simulated runs share nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Simulated time does not care how long it takes; tests with real programs that run beside it do.
_NICE = 5

# Objects that are new before the collector looks for cycles. A run makes tens of thousands that all
# live until its end: looked at after each 700 of them, they take a tenth of the time.
_NEW_OBJECTS = 100_000

# Objects made and not freed, between two looks for cycles; the largest runs have some ten thousand.
_RARELY = 100_000

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], *, piece: int = 20
) -> list[Result]:
    """Return what `function` makes of each argument, in order; `piece` are handed out at once."""
    # A new interpreter each: a fork would take over the threads of whoever calls this.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_begin) as pool:
        return list(pool.map(function, arguments, chunksize=piece))


def _begin() -> None:
    os.nice(_NICE)
    gc.set_threshold(_NEW_OBJECTS)
    # A run is a web of objects that dies as a whole, and few others come and go in cycles: looking
    # for them a thousand times a run finds nothing.
    gc.set_threshold(_RARELY)
