"""Hellos on paths that the peer was heard on, until one of them is agreed.

A path that works and waits for its nomination gets one every tenth of a second, and slowly after so
many. So does one that the peer was only heard on, for a probe of the peer's comes only once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.model import Path

EVERY = 0.1  # s
SLOWLY = 1.0  # s
_QUICK_TIMES = 20
# At 10 % loss each way eight hellos miss one in half a million such paths.
UNPROVEN_TIMES = 8


class Insistence:
    """Which paths, how often so far, and when the next hellos are due."""

    def __init__(self) -> None:
        self._times: dict[Path, int] = {}
        self.next_time: float | None = None

    def __len__(self) -> int:
        return len(self._times)

    def __contains__(self, path: Path) -> bool:
        return path in self._times

    def add(self, path: Path, now: float, works: Callable[[Path], bool]) -> list[Path]:
        """Begin with a path; return it if it is new, for its first hello is due at once."""
        if path in self._times:
            return []
        self._times[path] = 0
        return self._take([path], now, works)

    def due(self, now: float, works: Callable[[Path], bool]) -> list[Path]:
        """Return the paths that get a hello now; those that do not work get only a few."""
        self.next_time = None
        return self._take(list(self._times), now, works)

    def clear(self) -> None:
        """Stop."""
        self._times.clear()
        self.next_time = None

    def _take(self, paths: list[Path], now: float, works: Callable[[Path], bool]) -> list[Path]:
        for path in paths:
            self._times[path] += 1
            if self._times[path] >= UNPROVEN_TIMES and not works(path):
                del self._times[path]
        if self._times:
            slow = min(self._times.values()) >= _QUICK_TIMES
            at = now + (SLOWLY if slow else EVERY)
            self.next_time = at if self.next_time is None else min(at, self.next_time)
        return paths
