"""The demo for a program: one JSON object a line, those of the two programs among them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TextIO

from nat_traverse.demo.screen import DEMO, write_line
from nat_traverse.demo.stage import LEFT, RIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nat_traverse.demo.end import Happening
    from nat_traverse.demo.outcome import Moment, Outcome
    from nat_traverse.demo.stage import Place, Stage

RECORD_FIELDS: Final = (
    ("event", "What happened; the first field of every object."),
    ("side", "Whose line it is: `left`, `right`, or `demo` for those below."),
    ("at", "Seconds since the first start, on one clock for all."),
    ("fallback", "There is no lab, and both ends run over loopback. `reason`."),
    ("place", ("Where a program will run. `place` (`left` or `right`), `kind` (of gateway),"
     " `public` (what the peer has to use), `command` (what a user types).")),
    ("started", "A program was started. `place`, `argv`."),
    ("sending", "The file goes in. `bytes`."),
    ("ended", "A program has ended. `place`, `status` (-n for signal n)."),
    ("output", "A program has said something that is no JSON. `text`."),
    ("result", ("The last line. `connected_after` (seconds from the later start, or null), `sent`,"
     " `received` (bytes), `sha256_sent`, `sha256_received`, `answered` (the right side's digest"
     " came back), `seconds` (of the transfer), `statuses` (of both programs), `exit_code`."
     " Without a tunnel those of the transfer are null.")),
)  # fmt: skip
"""The documentation of `demo --json`: names, and what they mean. Names are never changed."""


class JsonScreen:
    """One JSON object a line. `side` is left, right or demo, `at` the demo's clock in seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def fell_back(self, reason: str) -> None:
        """See Screen."""
        self._tell("fallback", 0.0, reason=reason)

    def set_up(self, stage: Stage) -> None:
        """See Screen."""
        for place in (stage.left, stage.right):
            self._tell(
                "place",
                0.0,
                place=place.side,
                kind=place.kind,
                public=str(place.public),
                command=f"nat-traverse {stage.specification(place)}",
            )

    def started(self, at: float, place: Place, specification: str, argv: list[str]) -> None:
        """See Screen."""
        del specification
        self._tell("started", at, place=place.side, argv=argv)

    def happened(self, happening: Happening) -> None:
        """See Screen."""
        self._put({**happening.event, "side": happening.side, "at": round(happening.at, 3)})

    def sending(self, at: float, size: int) -> None:
        """See Screen."""
        self._tell("sending", at, bytes=size)

    def ended(self, at: float, side: str, status: int) -> None:
        """See Screen."""
        self._tell("ended", at, place=side, status=status)

    def concluded(self, at: float, outcome: Outcome, moments: list[Moment], zero: float) -> None:
        """See Screen."""
        del moments, zero
        after, transfer = outcome.connected_after, outcome.transfer
        self._tell(
            "result",
            at,
            connected_after=None if after is None else round(after, 3),
            sent=None if transfer is None else transfer.sent,
            received=None if transfer is None else transfer.received,
            sha256_sent=None if transfer is None else transfer.sent_digest,
            sha256_received=None if transfer is None else transfer.received_digest,
            answered=None if transfer is None else transfer.answered,
            seconds=None if transfer is None else round(transfer.seconds, 3),
            statuses=dict(zip((LEFT, RIGHT), outcome.statuses, strict=True)),
            exit_code=outcome.exit_code,
        )

    def _tell(self, event: str, at: float, **fields: object) -> None:
        self._put({"event": event, "side": DEMO, "at": round(at, 3), **fields})

    def _put(self, line: Mapping[str, object]) -> None:
        write_line(self._out, json.dumps(line))
