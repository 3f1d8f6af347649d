"""What the owner of a traversal decides, as values."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from nat_traverse.wire.hello import Mode

# Data datagrams: 1,400 bytes leave room on a 1,500-byte path for IPv6 and one layer of tunnelling.
DATAGRAM_SIZE = 1400
# For a VPN, whose packets are all the smaller for what is around them: what fits a path of 1,500
# bytes under IPv6 (40) and UDP (8). Where it does not fit, DATAGRAM_SIZE is tried next.
LARGE_DATAGRAM_SIZE = 1452

# Unsolicited packets a second, which home gateways take for harmless: an unpaced burst to 150
# destinations trips the port-scan heuristics of some for 30 s.
DEFAULT_RATE = 100.0


class Hard(Enum):
    """Whether to look for the ports of a gateway that changes them."""

    AUTO = "auto"  # at most 4,096 packets an attempt, which is enough for one such gateway
    ALWAYS = "always"  # without that limit: the search that two such gateways need
    NEVER = "never"  # the agreed ports only


class LadderSettings(NamedTuple):
    """How far to go beyond the agreed pair of ports.

    local_port  the agreed port on this side, as the sockets of the paths are bound to it
    wall        the wall clock (s since the epoch) at the moment at which the ladder is made
    chance      16 random bytes, fresh for each run: in which order ports are tried
    hard        whether to look for the ports of a gateway that changes them
    rate        unsolicited packets a second, at most
    ttl         TTL of the packets that open the own gateway; None: learn it; 0: the usual one
    hints       ports that the peer's gateway was seen to use lately, the most likely first
    secret      what both users know and nobody can guess, if there is such: hop ports are derived
                from it. Never a phrase: who sees the ports could test guesses at it at leisure
    """

    local_port: int
    wall: float
    chance: bytes
    hard: Hard = Hard.AUTO
    rate: float = DEFAULT_RATE
    ttl: int | None = None
    hints: tuple[int, ...] = ()
    secret: bytes = b""


class HandshakeSettings(NamedTuple):
    """What the owner decides.

    nonce          16 random bytes, fresh for each run
    timeout        seconds until the attempt is given up; None: never
    window         how many hellos a 0.7 peer gets before the ack; 0: none
    datagram_size  the largest datagram in bytes that the user's data should travel in
    mode           what the path is for; Mode.PORTS needs the agreed pair of ports
    ladder         how to find a path besides the direct rung; None: not at all
    legacy         whether a peer of generation 0.7 will do, which can't prove anything
    roaming        whether a peer at another address will do, if it names our nonce: somebody is
                   going to have it prove who it is
    """

    nonce: bytes
    timeout: float | None = None
    window: int = 0
    datagram_size: int = DATAGRAM_SIZE
    mode: Mode = Mode.PLAIN
    ladder: LadderSettings | None = None
    legacy: bool = True
    roaming: bool = False
