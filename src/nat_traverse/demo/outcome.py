"""What came of it: measured, judged, and put in order of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from nat_traverse.demo.stage import LEFT
from nat_traverse.errors import EXIT_NO_PATH

_MILLISECONDS: Final = 1000
_COLUMN: Final = 24  # characters; the longest label has 15
_FAILED: Final = 1


class Moment(NamedTuple):
    """A line of the timeline; `at` is in seconds on the demo's clock."""

    at: float
    side: str
    label: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """What was moved: `sent` and `received` in bytes, `seconds` from first to last.

    The digests are SHA-256 of what went in on the left and came out on the right. The right side
    sent its own back; `answered` says that it came out on the left.
    """

    sent: int
    received: int
    sent_digest: str
    received_digest: str
    answered: bool
    seconds: float

    @property
    def intact(self) -> bool:
        """Whether everything arrived unchanged, in both directions."""
        return self.sent_digest == self.received_digest and self.answered


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `connected_after` is in seconds from the later start until both were connected.

    `statuses` are the exit statuses of left and right, -n for one that signal n ended.
    """

    connected_after: float | None
    transfer: Transfer | None
    statuses: tuple[int, int]

    @property
    def exit_code(self) -> int:
        """The demo's own: 0, 4 if there was no path, else the first failure's or 1."""
        if self.transfer is not None and self.transfer.intact and self.statuses == (0, 0):
            return 0
        if self.transfer is None and EXIT_NO_PATH in self.statuses:
            return EXIT_NO_PATH
        return next((status for status in self.statuses if status > 0), _FAILED)

    @property
    def verdict(self) -> str:
        """The last line."""
        left, right = map(_described, self.statuses)
        exits = f"left exited with {left}, right with {right}"
        if self.transfer is None or self.connected_after is None:
            return f"No tunnel between these two: {exits}. What each side has seen stands above."
        time = f"connected {self.connected_after * _MILLISECONDS:.0f} ms after the later start"
        if self.exit_code == 0:
            return f"OK: {time}, the file arrived unchanged, both sides exited with 0."
        arrived = "arrived unchanged" if self.transfer.intact else "or the answer did NOT arrive"
        return f"FAILED: {time}, the file {arrived}, {exits}."


def timeline(moments: list[Moment], zero: float) -> list[str]:
    """Return the lines of a table, one column a side, in milliseconds since `zero`."""
    lines = [f"{'ms':>8}  {'left':{_COLUMN}}right"]
    for at, side, label in sorted(moments, key=lambda moment: moment.at):
        cell = label if side == LEFT else " " * _COLUMN + label
        lines.append(f"{(at - zero) * _MILLISECONDS:8.0f}  {cell}")
    return lines


def _described(status: int) -> str:
    return f"signal {-status}" if status < 0 else str(status)
