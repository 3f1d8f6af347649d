"""Our program on both sides of a lab, and what one does with two such sides."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from support.programs import PATIENCE, Program, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.lab import Host, Lab, SharedLab

LEFT_PORT, RIGHT_PORT = 40000, 40001


def address(host: Host) -> str:
    """Return the address that a peer has to use, IPv4 if there is one."""
    found = host.public.v4 or host.public.v6
    assert found is not None
    return found


def left(lab: Lab | SharedLab, *options: str, peer: str | None = None, **streams: Any) -> Program:
    """Start the left side; `streams` are as for `Program`."""
    spec = f"{LEFT_PORT}:{peer or address(lab.right)}:{RIGHT_PORT}"
    return ours("--json", *options, spec, node=lab.left, **streams)


def right(lab: Lab | SharedLab, *options: str, peer: str | None = None, **streams: Any) -> Program:
    """Start the right side; `streams` are as for `Program`."""
    spec = f"{RIGHT_PORT}:{peer or address(lab.left)}:{LEFT_PORT}"
    return ours("--json", *options, spec, node=lab.right, **streams)


@contextlib.contextmanager
def connected(
    lab: Lab | SharedLab, *options: str, apart: float = 0.0, patience: float = PATIENCE
) -> Iterator[tuple[Program, Program]]:
    """Start the left side, `apart` seconds later the right one, and wait until both connected.

    The time is counted from when the left side's sockets are open.
    """
    with left(lab, *options) as first:
        first.event("opened")
        time.sleep(apart)
        with right(lab, *options) as second:
            first.event("connected", patience=patience)
            second.event("connected", patience=patience)
            yield first, second


def transfer(one: Program, other: Program, size: int = 20_000) -> None:
    """Send bytes both ways, end both directions, and see that all arrived."""
    there, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    one.write(there)
    other.write(back)
    one.close_input()
    other.close_input()
    assert (one.wait(), other.wait()) == (0, 0), one.errors + other.errors
    assert other.output == there
    assert one.output == back


def side_by_side(runs: Sequence[Callable[[], None]]) -> None:
    """Do all runs at the same time, for they mostly wait; tells how many of them failed, and how.

    Each has to make a lab of its own.
    """
    with ThreadPoolExecutor(len(runs)) as pool:
        errors = [future.exception() for future in [pool.submit(run) for run in runs]]
    failures = [error for error in errors if error is not None]
    if failures:
        raise AssertionError(f"{len(failures)} of {len(runs)} failed") from failures[0]
