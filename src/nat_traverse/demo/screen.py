"""What the demo puts out, whatever the form: everything that can be shown."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from nat_traverse.errors import OutputError

if TYPE_CHECKING:
    from nat_traverse.demo.end import Happening
    from nat_traverse.demo.outcome import Moment, Outcome
    from nat_traverse.demo.stage import Place, Stage

DEMO: Final = "demo"  # the side of what the demo itself does


class Screen(Protocol):
    """What can be shown. Times are in seconds on the demo's clock.

    Raises BrokenPipeError when nobody reads, and OutputError when it can't be written.
    """

    def fell_back(self, reason: str) -> None:
        """Tell why there is no lab."""

    def set_up(self, stage: Stage) -> None:
        """Show where all this takes place, and what a user types."""

    def started(self, at: float, place: Place, specification: str, argv: list[str]) -> None:
        """Tell that the program was started at `place`."""

    def happened(self, happening: Happening) -> None:
        """Pass on what one side said."""

    def sending(self, at: float, size: int) -> None:
        """Tell that the file, of `size` bytes, is on its way."""

    def ended(self, at: float, side: str, status: int) -> None:
        """Tell that the program has ended."""

    def concluded(self, at: float, outcome: Outcome, moments: list[Moment], zero: float) -> None:
        """Tell what came of it; `zero` is the time of the later start."""


def write_line(out: TextIO, text: str) -> None:
    """Write a line at once, so that a reader sees it live and none is lost by a signal."""
    try:
        out.write(f"{text}\n")
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        number = error.errno or errno.EIO
        message = f"Cannot write to standard output: {os.strerror(number)}."
        raise OutputError(message, number) from error
