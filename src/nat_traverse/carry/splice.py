"""Two connections put together: what arrives on one goes out on the other, in both directions.

Each side is a protocol that knows the other one's transport. Nothing is stored here: a transport
that can't get rid of its data stops the reading of the other one, and so the sender feels it, end
to end. The end of one direction is carried on its own (half-close), since TCP lets the other
direction go on for as long as it likes. A reset is carried as a reset: a program must be able to
tell a whole answer from the beginning of one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from nat_traverse.carry.streams import hold, reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.carry.streams import Duplex


class Splice:
    """Joins `one` and `other`, which must be paused for reading; `on_closed` is called at the end.

    `from_one` and `from_other` are what was read of them before.
    """

    def __init__(
        self,
        one: Duplex,
        other: Duplex,
        on_closed: Callable[[Splice], None],
        *,
        from_one: bytes = b"",
        from_other: bytes = b"",
    ) -> None:
        self._on_closed = on_closed
        self._sides = (_Side(one, self), _Side(other, self))
        for side, opposite in (self._sides, self._sides[::-1]):
            side.opposite = opposite
            side.transport.set_protocol(side)
        for side, data in zip(self._sides, (from_one, from_other), strict=True):
            if data:
                side.opposite.transport.write(data)
        for side in self._sides:
            side.start()

    def abort(self) -> None:
        """Reset both connections."""
        for side in self._sides:
            side.abort()

    def end_if_both_ended(self) -> None:
        """Close both connections when each has sent all that it had."""
        if all(side.ended for side in self._sides):
            for side in self._sides:
                side.transport.close()

    def note_lost(self) -> None:
        """Tell the owner when both connections are gone."""
        if all(side.lost for side in self._sides):
            self._on_closed(self)


class _Side(asyncio.Protocol):
    """The protocol of one of the two transports."""

    opposite: _Side

    def __init__(self, transport: Duplex, splice: Splice) -> None:
        self.transport = transport
        self._splice = splice
        self.ended = False  # it sends no more
        self.lost = False
        self._full = False  # it takes no more for now

    def start(self) -> None:
        """Begin to read, unless what was read before already fills the other side."""
        if not self.opposite._full:  # noqa: SLF001 (its twin)
            self.transport.resume_reading()

    def abort(self) -> None:
        """Reset this connection, if it is still there."""
        if not self.lost:
            reset(self.transport)

    def data_received(self, data: bytes) -> None:
        """Hand it on at once."""
        self.opposite.transport.write(data)

    def eof_received(self) -> bool:
        """Hand on the end of this direction; the other one stays open."""
        if not self.ended:
            self.ended = True
            with suppress(OSError):  # it is gone, which it will say itself in a moment
                self.opposite.transport.write_eof()
            self._splice.end_if_both_ended()
        return True

    def pause_writing(self) -> None:
        """Stop the sender."""
        self._full = True
        self.opposite.transport.pause_reading()

    def resume_writing(self) -> None:
        """Let the sender go on."""
        self._full = False
        # A transport that has seen the end would see it again.
        if not self.opposite.ended:
            self.opposite.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side when both were through, else reset it: something is missing."""
        self.lost = True
        if exc is not None or not (self.ended and self.opposite.ended):
            self.opposite.abort()
        self._splice.note_lost()


class Waiting(asyncio.Protocol):
    """The protocol of a connection until it is spliced: reads nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stop reading before anything was read."""
        hold(cast("asyncio.Transport", transport))
