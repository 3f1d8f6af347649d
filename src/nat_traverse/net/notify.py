"""What a service manager is told: sd_notify(3), without its library.

One datagram on a Unix socket whose name is in `NOTIFY_SOCKET`, with lines like `READY=1`. Where
nobody listens nothing is sent, and nothing that goes wrong here is worth ending a tunnel for.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What is meant for this process alone, and not for those that it starts."""

_ABSTRACT: Final = "@"  # stands for the zero byte that an abstract name begins with
_MICROSECONDS: Final = 1_000_000
_LONGEST: Final = 19  # digits: a number of 64 bits, and none that takes long to read


class Notifier:
    """Tells the service manager that `environment` names, if any.

    `watchdog` is within how many seconds it wants to hear from us, again and again; None: not.
    """

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        name = environment.get(VARIABLES[0], "")
        self._address = f"\0{name[1:]}" if name.startswith(_ABSTRACT) else name
        self.watchdog = _watchdog(environment, pid) if name else None

    def tell(self, **states: str) -> None:
        """Send states, as in `tell(READY="1")`. Line feeds would end a value, and become spaces."""
        if not self._address:
            return
        lines = [f"{name}={' '.join(value.splitlines())}" for name, value in states.items()]
        # A path may be too long, and so no address at all: ValueError of some versions, OSError.
        with (
            suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(errors="replace"), self._address)


def _watchdog(environment: Mapping[str, str], pid: int) -> float | None:
    """Return the interval in seconds, if it is meant for the process `pid`."""
    for_whom = environment.get("WATCHDOG_PID", str(pid))
    interval = environment.get("WATCHDOG_USEC", "")
    if for_whom != str(pid) or not interval.isascii() or not interval.isdigit():
        return None
    if len(interval) > _LONGEST or int(interval) == 0:
        return None
    return int(interval) / _MICROSECONDS
