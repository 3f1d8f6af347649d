"""The interface of a QUIC engine (RFC 9000): small, so that one library can replace another.

An engine is one connection, without sockets or clocks: datagrams and the time go in, datagrams and
events come out. It never sees the peer's address, which the tunnel above looks after, so a gateway
that changes it is none of the engine's business.

What an engine does *not* do is hold the peer back when nobody reads: `credit` does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Established:
    """Event: the channel is encrypted. `fingerprint` is the SHA-256 of the server's certificate.

    Nothing is known yet about who is at the other end of it.
    """

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class StreamData:
    """Event: bytes of a stream, in order; `fin` if they are its last."""

    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """Event: the peer gave up sending on a stream."""

    stream: int
    code: int


@dataclass(frozen=True, slots=True)
class StreamStopped:
    """Event: the peer does not want to hear more of a stream."""

    stream: int
    code: int


@dataclass(frozen=True, slots=True)
class Datagram:
    """Event: an unreliable datagram (RFC 9221)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Alive:
    """Event: the peer has acknowledged a ping."""


@dataclass(frozen=True, slots=True)
class Terminated:
    """Event: the connection is over. `code` is the peer's, None if it was not the peer's doing."""

    code: int | None
    reason: str


EngineEvent = Established | StreamData | StreamReset | StreamStopped | Datagram | Alive | Terminated


class Engine(Protocol):
    """One connection. Times are seconds on one monotonic clock."""

    datagram_limit: int  # bytes of the largest unreliable datagram

    @property
    def name(self) -> bytes:
        """The connection ID that the peer's packets bear, once the channel is encrypted."""
        ...

    def start(self, now: float) -> None:
        """Begin the handshake; the server has nothing to do."""
        ...

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams of the peer's, or of anybody who pretends to be it."""
        ...

    def receive_run(self, run: bytes, size: int, now: float) -> None:
        """Take datagrams of `size` bytes each, the last perhaps shorter, in one piece."""
        ...

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """Return what is to be sent now, which counts as sent."""
        ...

    def get_timer(self) -> float | None:
        """Return when `handle_timer` is next wanted."""
        ...

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        ...

    def next_event(self) -> EngineEvent | None:
        """Return the oldest unread event."""
        ...

    def open_stream(self, *, both_ways: bool = True) -> int | None:
        """Open a stream and return its number; None while the peer allows no more of them."""
        ...

    def send(self, stream: int, data: bytes | memoryview, *, fin: bool = False) -> None:
        """Queue bytes of a stream; the engine keeps a copy."""
        ...

    def unsent(self, stream: int) -> int:
        """Return how many bytes of a stream have not been sent for the first time yet."""
        ...

    def reset(self, stream: int, code: int) -> None:
        """Give up sending on a stream."""
        ...

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to give up sending on a stream."""
        ...

    def send_datagram(self, data: bytes) -> None:
        """Send an unreliable datagram of at most `datagram_limit` bytes."""
        ...

    @property
    def has_room(self) -> bool:
        """True if the path takes more at the moment, as far as congestion control knows."""
        ...

    @property
    def round_trip(self) -> float | None:
        """The smoothed round-trip time in seconds; None if it is not known."""
        ...

    def ping(self) -> None:
        """Ask the peer for a sign of life: the event Alive, if it comes."""
        ...

    def close(self, code: int, reason: str) -> None:
        """End the connection; what is to be sent then says so to the peer."""
        ...
