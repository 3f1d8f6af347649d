"""Credit: how a reader that does not read stops the sender, stream by stream.

QUIC has flow control of its own, but an engine grants new room as soon as bytes have reached its
queue, whether or not anybody takes them from there: 50 MB went into the memory of a program that
never read. So there is a second one above it, end to end between the two programs: the receiver
says up to which byte of a stream it has room, counted from the stream's start, and the sender hands
the engine no byte beyond that. What is received and not consumed is therefore bounded by the
window, and what is written and not sent by the writer's own buffer.

The window of a stream begins small, so that a thousand streams cost little, and doubles whenever
the reader has consumed half of it and nothing is left: it may be the window that holds the sender
up, as on a long path, and it is not the reader. All windows together keep within a budget; a stream
that is not read keeps what it has.
"""

from __future__ import annotations

# Bytes each stream may send before it hears of any credit; part of the protocol.
FIRST_WINDOW = 256 * 1024
# 16 MiB are 1 Gbit/s at 130 ms of round trip.
LARGEST_WINDOW = 16 * 1024 * 1024
# All streams of a tunnel: what a peer that opens many, and is read on none, can make us hold
# beyond FIRST_WINDOW for each of the 100 streams that the engine lets it have.
BUDGET = 64 * 1024 * 1024


class Budget:
    """What the windows of all streams of one tunnel have grown by, and may."""

    def __init__(self, limit: int = BUDGET) -> None:
        self._limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Take `size` bytes; False if there are not so many left."""
        if self.used + size > self._limit:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size


class ReceiveCredit:
    """The receiver's side of one stream; all counts are of bytes since the stream began."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._window = FIRST_WINDOW
        self.received = 0
        self.consumed = 0
        self.limit = FIRST_WINDOW
        self._grown_at = 0  # bytes consumed when the window last grew

    def receive(self, size: int) -> bool:
        """Count what arrived; False if the sender has gone beyond what it was granted."""
        self.received += size
        return self.received <= self.limit

    def consume(self, size: int) -> int | None:
        """Count what was consumed; returns the new limit when the sender should hear of one."""
        self.consumed += size
        if not self._grow() and self.limit - self.consumed > self._window // 2:
            return None
        self.limit = self.consumed + self._window
        return self.limit

    def _grow(self) -> bool:
        """Double the window if the reader waits for the sender, and not the other way round."""
        if self.received != self.consumed or self._window >= LARGEST_WINDOW:
            return False
        # Looked at whenever all is consumed, and not only when the sender is to hear of a new limit
        # anyway: at that moment the other half of the window has mostly arrived as well.
        if self.consumed - self._grown_at < self._window // 2:
            return False
        growth = min(self._window, LARGEST_WINDOW - self._window)
        if not self._budget.take(growth):
            return False
        self._window += growth
        self._grown_at = self.consumed
        return True

    def release(self) -> None:
        """Give the window back; the stream is over."""
        self._budget.give_back(self._window - FIRST_WINDOW)
        self._window = FIRST_WINDOW


class SendCredit:
    """The sender's side of one stream."""

    def __init__(self) -> None:
        self.sent = 0
        self._limit = FIRST_WINDOW

    @property
    def room(self) -> int:
        """How many more bytes the receiver has room for."""
        return self._limit - self.sent

    def extend(self, limit: int) -> bool:
        """Take the receiver's word; True if there is more room than before."""
        grown = limit > self._limit
        self._limit = max(self._limit, limit)
        return grown
