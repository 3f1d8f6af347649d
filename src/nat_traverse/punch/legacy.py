"""A peer of generation 0.7, and what it must and must not be sent.

Observed behaviour: it sends bare hellos once a second (its window), then exactly one bare ack
whether or not it heard anything, then waits for one ack and ignores all else. After that ack
everything that arrives is data to it, a second ack included. So it gets one ack, bare, and not a
byte of ours after that.

The ack goes out when its first message shows that the way is open (and after as many hellos as the
user asked for with `--window`). Its own ack may come at once or after its whole window.
"""

from __future__ import annotations

from nat_traverse.wire.hello import Kind


class LegacyPeer:
    """The state of the exchange with one 0.7 peer.

    `window` is how many hellos it has to be sent before the ack.
    """

    INTERVAL = 1.0  # s between hellos, as 0.7 sends them

    def __init__(self, window: int) -> None:
        self._window = window
        self._ack_received = False
        self.ack_sent = False

    def receive(self, kind: Kind) -> None:
        """Take a bare magic."""
        self._ack_received = self._ack_received or kind is Kind.ACK

    def wants_ack(self, hellos_sent: int) -> bool:
        """Tell whether the one ack is due, after so many hellos."""
        return not self.ack_sent and hellos_sent >= self._window

    @property
    def complete(self) -> bool:
        """True when both acks are on their way: 0.7 asks for no more, and neither do we."""
        return self.ack_sent and self._ack_received
