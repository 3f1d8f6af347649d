"""When a WireGuard device has lost its way: judged by what it says of its peer. Pure.

WireGuard itself never says that a path is dead; it goes on trying on that one for ever. But both
sides keep it alive, so that something arrives every 25 s at least, and renew their keys every two
minutes. Whoever leaves the path falls silent on it, and so the other side leaves it too.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

# s for the first handshake on a path. WireGuard tries every 5 s (its paper, section 6.1, and
# REKEY_TIMEOUT), so these are five attempts; and the gateways still remember the path.
UNANSWERED_AFTER: Final = 25.0
# s without a byte from the peer: three keepalives of the longest kind.
SILENT_AFTER: Final = 75.0
# s. After this time WireGuard takes its keys for expired (REJECT_AFTER_TIME). It renews them after
# 120 s, and has been trying in vain since.
AGED_AFTER: Final = 180.0


class Sign(Enum):
    """What a look has shown. The values of all but the first are what a user reads."""

    SHAKEN = "shaken"
    UNANSWERED = (
        f"WireGuard has had no answer on this path for {UNANSWERED_AFTER:.0f} s. If that goes on,"
        " compare the keys in the files of both sides."
    )
    SILENT = f"Nothing has come from the peer for {SILENT_AFTER:.0f} s."
    AGED = f"The last handshake is more than {AGED_AFTER:.0f} s old."


class Watch:
    """Watches one path from `now` on, when the device's counters were `handshake` and `received`.

    `is_up` tells that the path has been in use already. `handshake` may be of any clock, as only
    its changes count: the one on the wall may be set.
    """

    def __init__(self, handshake: int, received: int, now: float, *, is_up: bool = False) -> None:
        self._handshake, self._received = handshake, received
        self._shaken_at = self._heard_at = now
        self._is_up = is_up

    def look(self, handshake: int, received: int, now: float) -> Sign | None:
        """Return what the counters mean, None if nothing new. SHAKEN comes once at most."""
        if received != self._received:
            self._received, self._heard_at = received, now
        if handshake != self._handshake:
            self._handshake, self._shaken_at = handshake, now
            if not self._is_up:
                self._is_up = True
                return Sign.SHAKEN
        age = now - self._shaken_at
        if not self._is_up:
            return Sign.UNANSWERED if age >= UNANSWERED_AFTER else None
        if now - self._heard_at >= SILENT_AFTER:
            return Sign.SILENT
        return Sign.AGED if age >= AGED_AFTER else None
