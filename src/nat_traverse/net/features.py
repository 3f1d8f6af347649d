"""The numbers of socket options that Python 3.11's `socket` module does not name.

Each is `None` where the platform is not known to have it, and whoever uses one asks for `None`
first. The numbers are part of Linux's user-space ABI (`linux/in.h`, `linux/in6.h`, `linux/udp.h`,
`linux/socket.h`), the same on every architecture we run on. On any other system only a constant
that `socket` itself exports is believed: the same number means something else there.
"""

from __future__ import annotations

import socket
import sys

# Assigned and not used inline, so that a type checker reads the code of both kinds of platform.
IS_LINUX: bool = sys.platform.startswith("linux")


def _constant(name: str, linux: int) -> int | None:
    value = getattr(socket, name, linux if IS_LINUX else None)
    return value if isinstance(value, int) else None


IP_RECVERR = _constant("IP_RECVERR", 11)
IPV6_RECVERR = _constant("IPV6_RECVERR", 25)
MSG_ERRQUEUE = _constant("MSG_ERRQUEUE", 0x2000)

IP_MTU_DISCOVER = _constant("IP_MTU_DISCOVER", 10)
IP_PMTUDISC_DO = _constant("IP_PMTUDISC_DO", 2)
IP_MTU = _constant("IP_MTU", 14)
IPV6_MTU_DISCOVER = _constant("IPV6_MTU_DISCOVER", 23)
IPV6_PMTUDISC_DO = _constant("IPV6_PMTUDISC_DO", 2)
IPV6_MTU = _constant("IPV6_MTU", 24)

SOL_UDP = _constant("SOL_UDP", 17)
UDP_SEGMENT = _constant("UDP_SEGMENT", 103)
UDP_GRO = _constant("UDP_GRO", 104)

# Linux only, and for CAP_NET_ADMIN: a buffer above net.core.rmem_max and wmem_max.
SO_SNDBUFFORCE = 32 if IS_LINUX else None
SO_RCVBUFFORCE = 33 if IS_LINUX else None

# Linux only: a program by which the kernel drops packets before they wait for this one.
SO_ATTACH_FILTER = 26 if IS_LINUX else None
SO_DETACH_FILTER = 27 if IS_LINUX else None
