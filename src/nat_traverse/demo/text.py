"""The demo as text for a reader."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Final, TextIO

from nat_traverse.demo.outcome import timeline
from nat_traverse.demo.screen import DEMO, write_line
from nat_traverse.demo.stage import LEFT, RIGHT
from nat_traverse.demo.words import words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nat_traverse.demo.end import Happening
    from nat_traverse.demo.outcome import Moment, Outcome, Transfer
    from nat_traverse.demo.stage import Place, Stage

# Select Graphic Rendition of ECMA-48, in the eight colours that every terminal has.
_COLOURS: Final = {LEFT: "36", RIGHT: "35", DEMO: "2"}  # cyan, magenta, faint
_BOLD, _GREEN, _RED = "1", "1;32", "1;31"

_NARROWEST: Final = 40  # columns of text, however narrow the terminal is


class TextScreen:
    """Text in lines, each of which says whose it is."""

    def __init__(self, out: TextIO, *, verbose: bool, environment: Mapping[str, str]) -> None:
        self._out = out
        self._verbose = verbose
        terminal = out.isatty()
        # https://no-color.org: set, and not to nothing
        self._coloured = terminal and not environment.get("NO_COLOR")
        self._columns = shutil.get_terminal_size().columns if terminal else None
        self._bar = "│" if _can_write(out, "│") else "|"

    def fell_back(self, reason: str) -> None:
        """See Screen."""
        self._write(
            f"No gateways on this machine: {reason}. Both ends run over loopback instead, and"
            " --left and --right are ignored."
        )

    def set_up(self, stage: Stage) -> None:
        """See Screen."""
        self._write(self._paint(_BOLD, "The network, in this machine only:"))
        self._sketch(stage)
        for note in stage.notes:
            for line in self._folded(note, 0):
                self._write(line)
        self._write(f"\n{self._paint(_BOLD, 'What the two users type:')}")
        for place in (stage.left, stage.right):
            command = f"nat-traverse {stage.specification(place)}"
            self._write(f"  {self._paint(_COLOURS[place.side], f'{place.side:5}')} $ {command}")
        self._write(f"\n{self._paint(_BOLD, 'What happens, in seconds from the first start:')}")

    def started(self, at: float, place: Place, specification: str, argv: list[str]) -> None:
        """See Screen."""
        self._line(at, place.side, f"$ nat-traverse {specification}")
        if self._verbose:
            self._line(at, DEMO, f"runs {' '.join(argv)}")

    def happened(self, happening: Happening) -> None:
        """See Screen."""
        said = words(happening.event)
        if self._verbose or not said.detail:
            self._line(happening.at, happening.side, said.text)

    def sending(self, at: float, size: int) -> None:
        """See Screen."""
        self._line(
            at,
            DEMO,
            f"{size:,} random bytes go into left, as fast as right takes them",
        )

    def ended(self, at: float, side: str, status: int) -> None:
        """See Screen."""
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        self._line(at, side, f"has exited {how}")

    def concluded(self, at: float, outcome: Outcome, moments: list[Moment], zero: float) -> None:
        """See Screen."""
        del at
        heading = "The same as a timeline, in ms from the later start (Python's own included):"
        self._write(f"\n{self._paint(_BOLD, heading)}")
        for line in timeline(moments, zero):
            self._write(line)
        self._write("")
        if outcome.transfer is not None:
            self._write(_summary(outcome.transfer))
        colour = _RED if outcome.exit_code else _GREEN
        self._write(self._paint(colour, outcome.verdict))

    def _sketch(self, stage: Stage) -> None:
        what = max(len(row.what) for row in stage.rows)
        address = max(len(row.address) for row in stage.rows)
        for row in stage.rows:
            bar = self._bar if row.between else " "
            begin = f"  {bar} {row.what:{what}}  {row.address:{address}}  "
            for line in self._folded(row.remark, len(begin)):
                self._write(f"{begin}{line}".rstrip())
                begin = f"  {bar}".ljust(len(begin))

    def _line(self, at: float, side: str, text: str) -> None:
        """Write one thing that was said; all that does not fit the line continues below it."""
        bar = self._paint(_COLOURS[side], f"{side:5} {self._bar}")
        begin = f"{max(at, 0.0):7.2f} s  "
        width = len(f"{begin}{side:5} | ")
        for line in [line for part in text.split("\n") for line in self._folded(part, width)]:
            self._write(f"{begin}{bar} {line}".rstrip())
            begin = " " * len(begin)

    def _folded(self, text: str, margin: int) -> list[str]:
        """Cut `text` to the width of the terminal; elsewhere nobody wants that."""
        if self._columns is None or not text:
            return [text]
        return textwrap.wrap(text, max(self._columns - margin, _NARROWEST))

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text

    def _write(self, text: str) -> None:
        write_line(self._out, text)


def _summary(transfer: Transfer) -> str:
    megabytes = transfer.sent / 1e6
    return (
        f"{transfer.received:,} of {transfer.sent:,} bytes came out on the right, in"
        f" {transfer.seconds:.2f} s ({megabytes / transfer.seconds:.0f} MB/s).\n"
        f"SHA-256 in on the left   {transfer.sent_digest}\n"
        f"       out on the right  {transfer.received_digest}\n"
        "The right side sent its digest back,"
        f" and it {'came' if transfer.answered else 'did NOT come'} out on the left."
    )


def _can_write(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
