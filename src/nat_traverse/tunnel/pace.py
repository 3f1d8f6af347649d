"""Pacing: what congestion control allows within a round trip leaves spread over it.

Without it, a clump of acks, which busy hosts and shared links send, sets free a burst as large as
the clump; the burst overflows a short queue that would have held all of it spread out, and the loss
lowers the window (RFC 9002, section 7.7).
"""

from __future__ import annotations

from typing import Final

# So much faster than a window in a round trip: with less, a round trip that was measured a little
# too long would leave part of the window unused (RFC 9002, section 7.7, has this number, too).
_GAIN: Final = 1.25

# s between two bursts. Event loops wake to the millisecond; shorter bursts cost more calls.
_TICK: Final = 0.001
# So many ticks' worth may leave at once: an event loop that wakes late catches up.
_TICKS: Final = 4
# Bytes that may leave at once at any rate: ten packets, as at the start (RFC 9002, section 7.2).
_BURST: Final = 14_720


class Pacer:
    """How many bytes may leave now. Times and round trips are seconds."""

    def __init__(self) -> None:
        self._credit = self._rate = 0.0
        self._at = float("-inf")  # all that may leave at once may leave at first

    def allowance(self, window: int, round_trip: float, now: float) -> float:
        """Return how many bytes may leave now, with `window` bytes allowed in a round trip.

        The last datagram may go beyond it.
        """
        self._rate = _GAIN * window / round_trip
        earned = max(0.0, now - self._at) * self._rate
        most = max(_BURST, self._rate * _TICK * _TICKS)
        self._credit = min(most, self._credit + earned)
        self._at = now
        return self._credit

    def spend(self, size: float) -> None:
        """Note that so many bytes have left."""
        self._credit -= size

    def next_time(self, datagram_size: int) -> float:
        """Return when the next burst may leave, which is a datagram at least.

        To be asked after `allowance`, which says how fast it goes.
        """
        wanted = max(datagram_size, self._rate * _TICK)
        return self._at + max(0.0, wanted - self._credit) / self._rate
