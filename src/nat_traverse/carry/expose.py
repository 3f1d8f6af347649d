"""What the peer may reach from this side, and where it may listen: the user's --expose and no more.

The peer may be anybody who has the secret, or nobody known at all. So everything is refused that
was not listed, by its name as it is asked for: what a name stands for is looked up only after that.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.specs import LOOPBACK
from nat_traverse.wire.request import ANYWHERE, Address, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nat_traverse.carry.specs import Exposed

# Ports below are the system's own (RFC 6335, section 6): `any` does not give them away.
_FIRST_USER_PORT: Final = 1024

# Addresses of which each stands for all of this host's.
_WILDCARDS: Final = frozenset({ANYWHERE, "0.0.0.0", "::"})  # noqa: S104 (to refuse them)


class Policy:
    """Decides by what the user has listed."""

    def __init__(self, items: Iterable[Exposed]) -> None:
        items = list(items)
        self._any = any(item.address is None for item in items)
        self._listed = {_canonical(item.address) for item in items if item.address is not None}

    def may_connect(self, address: Address) -> bool:
        """Tell whether the peer may connect to `address`."""
        wanted = _canonical(address)
        if wanted.host in _WILDCARDS:
            return False  # it is no host; Linux would take it for this one
        return self._any or wanted in self._listed

    def may_listen(self, address: Address) -> bool:
        """Tell whether the peer may have this side listen at `address`.

        `any` allows what takes nothing away from this host's users and shows nothing to others: a
        high port on loopback. A file, or a port of the system, has to be listed.
        """
        wanted = _canonical(address)
        if wanted.host in _WILDCARDS:
            return wanted in self._listed or wanted._replace(host=ANYWHERE) in self._listed
        return wanted in self._listed or (
            self._any
            and wanted.kind is not Kind.UNIX
            and _is_loopback(wanted.host)
            and (wanted.port == 0 or wanted.port >= _FIRST_USER_PORT)
        )


def _canonical(address: Address) -> Address:
    """Return the address so that two spellings of one are equal."""
    if address.kind is Kind.UNIX:
        return address
    return address._replace(host=_canonical_host(address.host))


def _canonical_host(host: str) -> str:
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return host.lower()
    if isinstance(literal, ipaddress.IPv6Address) and literal.ipv4_mapped:
        literal = literal.ipv4_mapped
    # The one host that has a name and two addresses everywhere (RFC 6761, section 6.3).
    return LOOPBACK if str(literal) in ("127.0.0.1", "::1") else str(literal)


def _is_loopback(host: str) -> bool:
    if host == LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
