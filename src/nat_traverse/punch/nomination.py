"""The nominations of the controlling side: on which path, how large, and when the next one.

A nomination is padded to the size that data datagrams are going to have, and so is its
confirmation: the exchange proves on the way that such datagrams cross the path (the idea of
RFC 8899). When large ones stay unanswered, smaller ones follow; and when many do, another path that
works has its turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nat_traverse.model import IPV6_MINIMUM_MTU
from nat_traverse.punch.settings import DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE
from nat_traverse.wire.hello import HELLO_SIZE, Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nat_traverse.punch.route import Route

# What every IPv6 path carries, less the IPv6 and UDP headers (40 and 8 bytes).
_IPV6_MINIMUM = IPV6_MINIMUM_MTU - 48
# (number of nominations, size): several of each, since one may be lost for any other reason.
_SIZES = ((4, DATAGRAM_SIZE), (4, _IPV6_MINIMUM))
# For an encrypted tunnel, which can't do with less: so many that on a path that loses 30 % each way
# only one search in 50,000 goes below.
_TUNNEL_SIZES = ((4, DATAGRAM_SIZE), (16, _IPV6_MINIMUM))

# Before these, on a path that may be large enough. Few: to do without costs a VPN 4 % at most.
_LARGE_SIZES = ((2, LARGE_DATAGRAM_SIZE),)

# Nominations are repeated this often (s): the pace of the hellos before them.
EVERY = 0.1
SLOWLY = 1.0  # s, after two seconds without a confirmation, as the hellos do
_HURRY = 20  # that many at the quick pace
# So many nominations without a confirmation, and another validated path has its turn.
TURN = 12


class Nominations:
    """Those that went out, and the route that gets the next one; None before the first.

    `mode` is what the path is for.
    """

    def __init__(self, mode: Mode = Mode.PLAIN) -> None:
        self._sizes = _TUNNEL_SIZES if mode is Mode.TUNNEL else _SIZES
        self.route: Route | None = None
        self._count = 0

    def choose(self, candidates: Sequence[Route]) -> Route:
        """Return the route whose turn it is, of those that will do; or the one that had it last.

        The first time there has to be one. All that were nominated stay good for a confirmation.
        """
        if self.route is None:
            self.route = candidates[0]
        elif self._count % TURN == 0 and candidates:
            self.route = min(candidates, key=lambda each: each.nominations)
        return self.route

    def note_sent(self, route: Route, now: float) -> float:
        """Count one on `route`; return when the next one is due."""
        route.nominations += 1
        self._count += 1
        return now + (EVERY if self._count < _HURRY else SLOWLY)

    def size(self, route: Route) -> int:
        """Return how long the next one is to be, in bytes."""
        count = self._count
        sizes: tuple[tuple[int, int], ...] = self._sizes
        if route.size_limit > DATAGRAM_SIZE:
            sizes = (*_LARGE_SIZES, *sizes)
        for times, size in sizes:
            if count < times:
                return min(size, route.size_limit)
            count -= times
        return min(HELLO_SIZE, route.size_limit)
