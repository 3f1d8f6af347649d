"""The rungs of the agreed pair of ports: direct, and after it quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nat_traverse.model import Rung
from nat_traverse.punch import direct, quiet
from nat_traverse.punch.minute import next_full
from nat_traverse.punch.rung import QUIET_STARTS, Action, Began, Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nat_traverse.model import Path


class _Line:
    """What is due next on one path."""

    __slots__ = ("at", "elapsed", "opening", "path", "quiet", "turn")

    def __init__(self, path: Path, start: float, first: direct.Step) -> None:
        self.path = path
        self.at = start + first.at
        self.opening = first.opening
        self.elapsed = first.at  # the same as `at`, since the start, without a rounding error
        self.quiet = False
        self.turn = 0


class AgreedRung:
    """Hellos on the agreed pairs, all paths side by side; a `Strategy`.

    `wall` is what has to be added to the owner's clock to get the wall clock's time, in seconds
    since the epoch; None keeps to the direct rung for ever.
    """

    def __init__(self, paths: Sequence[Path], start: float, wall: float | None) -> None:
        self._start = start
        self._wall = wall
        first = direct.next_step(-1.0)
        self._lines = {path: _Line(path, start, first) for path in paths}
        self._told = False
        self.next_time = self._earliest()

    def due(self, now: float) -> Iterator[Action]:
        """Yield the hellos that are due, and the beginning of the quiet rung."""
        for line in self._lines.values():
            if line.at > now:
                continue
            if not line.quiet and now - self._start >= QUIET_STARTS:
                self._quieten(line, now)
            if line.quiet and line.at < now - quiet.BELATED:
                self._advance(line, now)
            if line.at > now:
                continue
            rung = Rung.QUIET if line.quiet else Rung.DIRECT
            yield Probe(line.path, rung, line.opening, line.turn)
            self._advance(line, now)
        self.next_time = self._earliest()
        yield from self._tell(now)

    def refused(self, path: Path, now: float) -> None:
        """Learn that the peer's gateway answers for itself: what we send may spoil something."""
        line = self._lines.get(path)
        if line is not None and not line.quiet:
            self._quieten(line, now)
            self.next_time = self._earliest()

    def is_quiet(self, path: Path) -> bool:
        """Tell whether the quiet rung has begun on this path."""
        line = self._lines.get(path)
        return line is not None and line.quiet

    def turn(self, path: Path) -> int:
        """Return which turn of openings the path is at."""
        line = self._lines.get(path)
        return 0 if line is None else line.turn

    def socket_opened(self, number: int, port: int, now: float) -> None:
        """Nothing: this rung opens no sockets."""

    def socket_failed(self, number: int, now: float) -> None:
        """Nothing: this rung opens no sockets."""

    def stop(self) -> list[int]:
        """End."""
        self._lines.clear()
        self.next_time = None
        return []

    def _earliest(self) -> float | None:
        """Return when the next hello is due."""
        return min((line.at for line in self._lines.values()), default=None)

    def _quieten(self, line: _Line, now: float) -> None:
        if self._wall is None:
            return
        line.quiet = True
        # The openings of the direct rung may be over, so the next one must not wait for the table.
        step = quiet.next_step(now + self._wall)
        line.at, line.opening = step.at - self._wall, step.opening
        if line.at > now + quiet.LEAD_EVERY:
            line.at, line.opening = now + quiet.LEAD_EVERY, True

    def _advance(self, line: _Line, now: float) -> None:
        if not line.quiet or self._wall is None:
            # What is late is not made up for.
            step = direct.next_step(max(now - self._start, line.elapsed))
            line.at, line.opening, line.elapsed = self._start + step.at, step.opening, step.at
            return
        line.turn += line.opening
        step = quiet.next_step(max(now, line.at) + self._wall)
        line.at, line.opening = step.at - self._wall, step.opening

    def _tell(self, now: float) -> Iterator[Began]:
        if self._told or self._wall is None:
            return
        if any(line.quiet for line in self._lines.values()):
            self._told = True
            yield Began(Rung.QUIET, next_full(now + self._wall) - self._wall)
