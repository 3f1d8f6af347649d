"""How much user data may be under way: a window that the receiver opens by answering marks.

Datagrams are not acknowledged one by one, so the sender puts *marks* between them: hellos which the
peer answers when it has taken all that came before. What was sent behind the last mark that was
answered is under way, and as much as fits into the peer's receive buffer may be. A sender that is
faster than its peer waits then, where it would otherwise make the kernel drop what does not fit.

This is flow control and nothing more. What the path loses is lost; a mark is answered whether or
not the data before it arrived, so a loss never closes the window for good. Nor is it congestion
control: the plain tunnel has none, as 0.7 had none.
"""

from __future__ import annotations

# Bytes that may be under way before the peer has said how much it takes. A buffer of Linux's usual
# 208 KiB holds about 90 datagrams of 1,400 bytes, since the kernel counts its own overhead too.
_FIRST_WINDOW = 64 * 1024
# The largest window in bytes: at 100 ms of round trip it allows 1.3 Gbit/s.
_LARGEST_WINDOW = 16 * 1024 * 1024
# A window is what fits into a buffer when the wire holds nothing. A round trip of more than this
# (s) says that the wire does hold some, and the window grows in proportion.
_EMPTY_WIRE = 0.001
# Marks divide the window into so many parts: few enough to cost nothing, and enough for the sender
# never to run dry while one is on its way back.
_MARKS_A_WINDOW = 4
# Marks remembered, far above the number that can be unanswered at a time.
_REMEMBERED = 64


class SendWindow:
    """The sender's side; all counts are of bytes since the tunnel began.

    `round_trip` is that of the path in seconds, None if it was not measured.
    """

    def __init__(self, round_trip: float | None) -> None:
        self._stretch = max(1.0, (round_trip or 0.0) / _EMPTY_WIRE)
        self._size = _FIRST_WINDOW
        self._sent = 0
        self._marked = 0
        self._answered = 0
        self._marks: dict[int, int] = {}  # serial: bytes sent before it

    @property
    def has_room(self) -> bool:
        """True if more may be sent."""
        return self._sent - self._answered < self._size

    @property
    def is_open(self) -> bool:
        """True if nothing is under way behind the last answered mark."""
        return self._sent == self._answered

    def note_sent(self, octets: int) -> bool:
        """Count what was sent; True if a mark should follow."""
        self._sent += octets
        return self._sent - self._marked >= self._size // _MARKS_A_WINDOW

    def mark(self, serial: int) -> None:
        """Remember that a mark with this serial was sent."""
        self._marked = self._sent
        self._marks[serial] = self._sent
        if len(self._marks) > _REMEMBERED:
            del self._marks[next(iter(self._marks))]

    def take_answer(self, serial: int, room: int) -> bool:
        """Take the answer to a mark, and what the peer's buffer holds; False if it is none."""
        position = self._marks.pop(serial, None)
        if position is None:
            return False
        self._answered = max(self._answered, position)
        stretched = int(room * self._stretch)
        self._size = max(_FIRST_WINDOW, min(stretched, _LARGEST_WINDOW))
        return True
