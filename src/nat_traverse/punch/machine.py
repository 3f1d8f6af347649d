"""The interface of every machine in this package: inputs, effects, events.

A machine never acts by itself. Its owner feeds it datagrams, errors and the time, then carries
out `effects()` and reads `next_event()` until both are empty, and calls `handle_timer` not
earlier than `get_timer()` says. All times are seconds on one monotonic clock of the owner's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nat_traverse.model import Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.model import Endpoint, Generation, NetworkError, Path
    from nat_traverse.punch.evidence import Evidence


class Send(NamedTuple):
    """Effect: put one datagram on `path`, with this TTL or hop limit (None: the system's)."""

    data: bytes
    path: Path
    ttl: int | None = None


class OpenSocket(NamedTuple):
    """Effect: open a UDP socket under this number; `port` 0 means any free one.

    The owner answers with `socket_opened` or `socket_failed`.
    """

    number: int
    ipv6: bool = False
    port: int = 0


class CloseSocket(NamedTuple):
    """Effect: close the socket of this number, which was opened by an effect."""

    number: int


Effect = Send | OpenSocket | CloseSocket


class RungStarted(NamedTuple):
    """Event: a rung of the ladder has begun.

    `until` is the time at which it is going to knock again, on the owner's clock, for those that
    keep to the wall clock (quiet, hop); None for the others.
    """

    rung: Rung
    until: float | None = None


class AgreedPairAwaited(NamedTuple):
    """Event: `path` works but is not the agreed pair of ports, which somebody else is to use.

    The agreed pair is brought up over `path`. `silence` is how long (s) both ends keep still for
    it, because a gateway has to forget what it took for its own; 0 if none is needed yet.
    """

    path: Path
    silence: float


class PeerHeard(NamedTuple):
    """Event: the first message of the peer's arrived on this path; the way in is open."""

    path: Path
    generation: Generation


class PeerRefused(NamedTuple):
    """Event: an ICMP error or a local refusal of a kind not seen before on this path."""

    path: Path
    error: NetworkError


class PortChanged(NamedTuple):
    """Event: a message of the peer's came from `actual` and not from the agreed port."""

    path: Path
    actual: Endpoint


class PathValidated(NamedTuple):
    """Event: an answer to a hello of ours arrived: the path is open in both directions.

    `round_trip` is in seconds, None if the proof was no answer to a hello that is remembered.
    """

    path: Path
    round_trip: float | None


class Connected(NamedTuple):
    """Event: both sides use this path from now on.

    `observed` is our own mapped address as the peer sees it, if it said so; `datagram_size` the
    largest datagram in bytes known to cross the path unfragmented; `early_data` is user data
    that arrived before this was known. `rung` found the path; `agreed` is True if it is a pair of
    the ports that the users agreed on.
    """

    path: Path
    generation: Generation
    round_trip: float | None
    observed: Endpoint | None
    datagram_size: int
    early_data: tuple[bytes, ...] = ()
    rung: Rung = Rung.DIRECT
    agreed: bool = True


@dataclass(frozen=True, slots=True)
class Settled:
    """Event: the peer needs nothing more from the handshake; the socket may be closed."""


class DeadlinePassed(NamedTuple):
    """Event: no path was validated in time; `evidence` is all that was seen."""

    evidence: Evidence


Event = (
    RungStarted
    | AgreedPairAwaited
    | PeerHeard
    | PeerRefused
    | PortChanged
    | PathValidated
    | Connected
    | Settled
    | DeadlinePassed
)


class Machine(Protocol):
    """What the driver runs, in a real network as in a simulated one."""

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Take a datagram that arrived on `path.socket` from `path.remote`, whoever that is."""

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        """Take a refusal of something that was sent on `path`."""

    def socket_opened(self, number: int, port: int, now: float) -> None:
        """Learn that the socket asked for by `OpenSocket` is open, on this local port."""

    def socket_failed(self, number: int, now: float) -> None:
        """Learn that it could not be opened: the port is taken, or there are no more sockets."""

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`."""

    def get_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called, or None for never."""

    def effects(self, now: float) -> Iterator[Effect]:
        """Yield, once, what is to be done at `now`, in order."""

    def next_event(self) -> Event | None:
        """Return the oldest event not yet returned, or None."""
