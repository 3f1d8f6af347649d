"""What happens to a VPN, as its user is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class VpnUp:
    """Event: packets pass. `mtu` in bytes; `peers` are the other side's addresses."""

    device: str
    mtu: int
    addresses: tuple[str, ...]
    peers: tuple[str, ...]
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VpnResized:
    """Event: the path takes smaller packets than before, or larger ones again."""

    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class VpnDropped:
    """Event: at the end of a link, how many packets did not pass, and why; never empty."""

    counts: dict[str, int]


VpnEvent: TypeAlias = VpnUp | VpnResized | VpnDropped
