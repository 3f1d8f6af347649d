"""How far an opening travels: past our own gateways, and not to the peer's.

The TTL (hop limit) is learned from the ICMP time-exceeded messages that openings cause. A router
with an address that is not public (RFC 1918, RFC 6598, link-local) is between our own gateways: the
opening has to go further. The first public one is beyond them all. As long as nothing was reported,
2, 4 and 7 are used in turn: 2 dies behind one home gateway, 4 behind two with a hop between them,
and 7 is the largest that others found harmless.
"""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

FIRST = 2  # passes one gateway and dies at the next router; Dolphin and LiteNetLib use it, too
_IN_TURN: Final = (FIRST, 4, 7)
# An own network of more hops is not plausible, and who forges reports must not push openings to
# the peer's gateway.
_MOST = 8

_NETWORKS: Final = (
    "10.0.0.0/8",  # RFC 1918
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # behind a carrier's NAT (RFC 6598)
    "fc00::/7",  # RFC 4193
)


class OpeningTtl:
    """What is known about the way out, for one address family.

    `fixed` is what the user wants: a TTL, 0 for the usual one, or None to learn it.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._inside: set[str] = set()
        self._learned: int | None = None

    def value(self, turn: int = 0) -> int | None:
        """Return the TTL of the openings of this `turn` (0, 1, ...); None: the system's."""
        if self._fixed is not None:
            return self._fixed or None
        if self._learned is not None:
            return self._learned
        return max(_IN_TURN[turn % len(_IN_TURN)], self._least)

    def learn(self, reporter: str, peer: str, turn: int = 0) -> None:
        """Take a time-exceeded message from `reporter` about an opening to `peer`."""
        if self._learned is not None:
            return
        if reporter == peer:
            # It died at the very gateway that it must not reach.
            self._learned = max(self.value(turn) or FIRST, FIRST + 1) - 1
        elif not _is_inside(reporter):
            self._learned = self.value(turn)
        elif len(self._inside) < _MOST - FIRST:
            self._inside.add(reporter)

    @property
    def _least(self) -> int:
        """Each router of our own that reported stands further out than the one before."""
        return FIRST + len(self._inside)


def _is_inside(reporter: str) -> bool:
    """Tell whether an address belongs to a network behind a gateway."""
    try:
        address = ip_address(reporter.partition("%")[0])
    except ValueError:
        return False
    return address.is_link_local or any(
        address.version == network.version and address in network for network in _networks()
    )


@cache
def _networks() -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks whose addresses are not public; put together when first needed.

    ipaddress's own is_private counts the ranges for documentation, too, which play the public ones
    in a laboratory.
    """
    return tuple(map(ip_network, _NETWORKS))
