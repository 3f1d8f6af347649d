"""What a link can tell of itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counters of one link, and how its path is.

    `sent` and `received` are bytes in datagrams to and from the peer's address, all overhead
    above UDP included. `heard` is when the peer last gave a sign of life that only it can give, on
    the clock of the event loop. `round_trip` is in seconds, smoothed as QUIC does it (RFC 9002,
    section 5.3); None if it is not known.
    """

    sent: int
    received: int
    heard: float
    round_trip: float | None
