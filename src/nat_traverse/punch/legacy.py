"""A peer of generation 0.7, and what it must and must not be sent.

Observed behaviour: it sends bare hellos once a second (its window), then exactly one bare ack
whether or not it heard anything, then waits for one ack and ignores all else. After that ack
everything that arrives is data to it, a second ack included. So it gets one ack, bare, and not a
byte of ours after that.

The ack goes out a moment after its first message has shown that the way is open (and after as many
hellos as the user asked for with `--window`). A bare magic proves nothing, so in that moment our
hellos with a tail go on, which 0.7 ignores while it waits: a peer of today answers them, and then
somebody else has sent the magic. Its own ack may come at once or after its whole window.
"""

from __future__ import annotations

from nat_traverse.wire.hello import Kind

# s between its first message and our ack. Several hellos of ours go out meanwhile; 0.7 itself does
# not look for an ack before its ten seconds of sending are over.
GRACE = 1.0


class LegacyPeer:
    """The state of the exchange with one 0.7 peer, which was first heard at `now`.

    `window` is how many hellos it has to be sent before the ack.
    """

    INTERVAL = 1.0  # s between hellos, as 0.7 sends them

    def __init__(self, window: int, now: float) -> None:
        self._window = window
        self._ack_received = False
        self.believed_at = now + GRACE
        self.probe_at = self.believed_at
        self.ack_sent = False

    def receive(self, kind: Kind) -> None:
        """Take a bare magic."""
        self._ack_received = self._ack_received or kind is Kind.ACK

    def is_believed(self, now: float) -> bool:
        """Tell whether it may be taken for a 0.7 peer: nothing of today has answered meanwhile."""
        return now >= self.believed_at

    def wants_ack(self, hellos_sent: int, now: float) -> bool:
        """Tell whether the one ack is due, after so many hellos."""
        return not self.ack_sent and self.is_believed(now) and hellos_sent >= self._window

    @property
    def complete(self) -> bool:
        """True when both acks are on their way: 0.7 asks for no more, and neither do we."""
        return self.ack_sent and self._ack_received
