"""The nouns that every layer shares: endpoints, paths and what the network reports about them.

All are immutable values. A *path* is what RFC 8445 calls a candidate pair: one socket of ours and
one transport address of the peer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

# Bytes of IP that every IPv6 path carries (RFC 8200, section 5).
IPV6_MINIMUM_MTU = 1280

_IPV4_HEADERS = 28  # bytes: IPv4 without options (RFC 791), UDP (RFC 768)
_IPV6_HEADERS = 48  # bytes: IPv6 without extensions (RFC 8200), UDP


class Endpoint(NamedTuple):
    """A transport address (RFC 8489, section 3): IP address, UDP port.

    `host` is the canonical text of an IPv4 or IPv6 address, never a name and never an
    IPv4-mapped IPv6 address. `scope` is the interface index of a link-local IPv6 address, else 0.
    """

    host: str
    port: int
    scope: int = 0

    @property
    def is_ipv6(self) -> bool:
        """True for an IPv6 address, False for an IPv4 one."""
        return ":" in self.host

    @property
    def headers(self) -> int:
        """How many bytes of a packet to here are not the datagram's: a path MTU counts them."""
        return _IPV6_HEADERS if self.is_ipv6 else _IPV4_HEADERS

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


class Path(NamedTuple):
    """One way to the peer: our socket, by its number, and the peer's endpoint as we address it.

    Sockets are named by small integers, because opening one is an effect that a machine asks for
    before any file descriptor exists.
    """

    socket: int
    remote: Endpoint

    def __str__(self) -> str:
        return str(self.remote)


class ErrorKind(Enum):
    """What an ICMP message or a failed send means to a traversal (RFC 792, RFC 4443)."""

    PORT_UNREACHABLE = "port unreachable"  # a host or gateway that answers for itself
    HOST_UNREACHABLE = "host unreachable"
    NETWORK_UNREACHABLE = "network unreachable"
    PROHIBITED = "administratively prohibited"
    TIME_EXCEEDED = "time to live exceeded"  # how a low-TTL opening is meant to end
    TOO_BIG = "packet too big"
    NOT_PERMITTED = "not permitted"  # EPERM or EACCES: a firewall on this host
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class NetworkError:
    """A refusal, which for a puncher is an observation and not a failure.

    `reporter` is the address that sent the ICMP message, or None when this host's kernel refused
    by itself. `mtu` is the path MTU in bytes of an IP packet where the error states one, else 0.
    """

    kind: ErrorKind
    errno: int
    reporter: str | None = None
    mtu: int = 0


class Generation(Enum):
    """Which wire format the peer speaks."""

    LEGACY = "0.7"  # bare 20-byte magics
    CURRENT = "current"  # magics with a tail


class Rung(Enum):
    """The strategies of the ladder. The values are what a user reads."""

    DIRECT = "direct"
    QUIET = "quiet"
    HOP = "hop"
    SPRAY = "spray"
    PREDICT = "predict"
