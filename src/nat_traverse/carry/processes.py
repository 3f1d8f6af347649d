"""Ending a command together with the processes that it started."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable


class Process(NamedTuple):
    """One process. Its number may be given to another one later, its start time can't."""

    number: int
    started: int | None  # in ticks since the boot; None where that can't be told

    @property
    def is_alive(self) -> bool:
        """True while it runs; one that has ended and was not yet waited for does not."""
        now = _look(Path(f"/proc/{self.number}/stat"))
        return now is not None and now.started == self.started and not now.ended


class _Entry(NamedTuple):
    """What /proc says of a process."""

    parent: int
    started: int
    ended: bool


def descendants(*roots: int) -> list[Process]:
    """Return `roots` and the processes below them, children after their parents.

    Where there is no /proc these are `roots` alone.
    """
    entries = _all()
    found = list(roots)
    for process in found:  # grows while it is walked
        children = (child for child, entry in entries.items() if entry.parent == process)
        found.extend(child for child in children if child not in found)
    return [
        Process(number, entries[number].started if number in entries else None) for number in found
    ]


def send_signal(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal all of `processes` that still exist and are ours to signal."""
    for process in processes:
        if process.started is not None and not process.is_alive:
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.number, number)


def _all() -> dict[int, _Entry]:
    """Return what runs on this machine; what vanishes while we look is left out."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        entry = _look(path)
        if entry is not None:
            found[int(path.parent.name)] = entry
    return found


def _look(path: Path) -> _Entry | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may itself hold blanks and parentheses: count from its end. The
    # fields are those of proc(5) from the third on.
    fields = text.rpartition(")")[2].split()
    try:
        return _Entry(int(fields[1]), int(fields[19]), fields[0] in "ZX")
    except (IndexError, ValueError):
        return None
