"""What was seen while looking for a path, as data: the ground for every explanation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nat_traverse.model import ErrorKind, Generation, Path, Rung

# How many different ports, reporters or kinds are remembered a path. More would say no more to a
# reader, and a stranger must not be able to make the list grow.
_MEMORY = 8


@dataclass(slots=True)
class PathEvidence:
    """What happened on one path."""

    hellos_sent: int = 0
    hellos_received: int = 0
    acks_received: int = 0
    generation: Generation | None = None
    validated: bool = False
    round_trip: float | None = None
    errors: dict[tuple[ErrorKind, str | None], int] = field(default_factory=dict)
    other_ports: list[int] = field(default_factory=list)

    def note_error(self, kind: ErrorKind, reporter: str | None) -> bool:
        """Count an error; True if none of this kind from this reporter was seen before."""
        key = (kind, reporter)
        if key not in self.errors and len(self.errors) >= _MEMORY:
            return False
        self.errors[key] = self.errors.get(key, 0) + 1
        return self.errors[key] == 1

    def note_port(self, port: int) -> bool:
        """Remember a port that the peer's packets came from; True if it is news."""
        if port in self.other_ports or len(self.other_ports) >= _MEMORY:
            return False
        self.other_ports.append(port)
        return True


@dataclass(slots=True)
class Evidence:
    """What happened altogether; the counters are of datagrams."""

    paths: dict[Path, PathEvidence]
    strangers: int = 0  # from an address that is not the peer's
    malformed: int = 0  # a magic, and behind it no tail
    not_ours: int = 0  # from the peer's address, and no message at all
    reflected: int = 0  # our own, come back
    stale: int = 0  # answers to an earlier run
    unwanted_legacy: int = 0  # bare magics of a 0.7 peer, which will not do
    refused_probes: int = 0  # by ICMP, on other ports than the agreed ones
    ports_tried: int = 0  # of the peer's, besides the agreed ones
    openings_sent: int = 0  # from other ports of ours, which die behind our own gateway
    rungs: list[Rung] = field(default_factory=list)  # that have begun, besides direct
    # Where messages came from that named our nonce, but not from the peer's address: the peer has
    # another address than its user said, or several.
    elsewhere: list[str] = field(default_factory=list)

    def note_elsewhere(self, host: str) -> None:
        """Remember an address that somebody who has seen our packets writes from."""
        if host not in self.elsewhere and len(self.elsewhere) < _MEMORY:
            self.elsewhere.append(host)
