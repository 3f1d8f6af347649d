"""Sealed datagrams on a link: who uses them, and how they are told from QUIC's packets.

Both kinds come through one socket, and the kernel joins whatever comes from one address and has one
size: a run of it may have both in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nat_traverse.wire.sealed import FIRST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nat_traverse.net.address import SocketAddress
    from nat_traverse.net.offload import Arrived


class SealedUser(Protocol):
    """Who sends and takes sealed datagrams (`wire.sealed`) beside QUIC's packets."""

    @property
    def names(self) -> Sequence[bytes]:
        """By which indices the peer's datagrams are known at present."""

    def sealed_received(self, runs: Sequence[tuple[bytes, int]], now: float) -> int:
        """Take runs of datagrams, each with the size of those in it; the last may be shorter.

        Returns how many of the datagrams proved to be the peer's.
        """

    def frame_received(self, kind: int, value: bytes) -> None:
        """Take a control frame that is not the tunnel's own."""

    def sealed_writable(self) -> None:
        """Send on: what `send_sealed` had no room for may have it now."""

    def path_changed(self) -> None:
        """Learn that the peer, or this host, is somewhere else now."""

    def path_narrowed(self, datagram_size: int) -> None:
        """Learn that the path takes datagrams of so many bytes at most."""


@dataclass(slots=True)
class Batch:
    """Sealed datagrams of one sender: runs, each with the size of those in it; and their sums."""

    sender: SocketAddress
    runs: list[tuple[bytes, int]] = field(default_factory=list)
    datagrams: int = 0
    octets: int = 0

    def add(self, run: bytes, size: int, datagrams: int) -> None:
        """Add one run, of so many datagrams."""
        self.runs.append((run, size))
        self.datagrams += datagrams
        self.octets += len(run)


def sort_out(arrived: Iterable[Arrived]) -> tuple[list[Batch], list[Arrived]]:
    """Return the sealed datagrams among what has arrived, and the rest, both in their order."""
    batches: list[Batch] = []
    others: list[Arrived] = []
    for each in arrived:
        data, size, sender = each
        found = data[::size].count(FIRST)
        if not found:
            others.append(each)
            continue
        if found < -(-len(data) // size):
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            others += [each._replace(data=piece) for piece in pieces if piece[0] != FIRST]
            # A run again: only the last one may be shorter.
            data = b"".join(piece for piece in pieces if piece[0] == FIRST)
        if not batches or batches[-1].sender != sender:
            batches.append(Batch(sender))
        batches[-1].add(data, size, found)
    return batches, others
