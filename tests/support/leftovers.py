"""What a program must not leave behind: processes of its own, and a port that stays taken."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from support.lab import eventually

_NAME = "NAT_TRAVERSE_TEST_MARK"


class Mark:
    """A word in the environment of a program, by which all that it starts is known."""

    def __init__(self) -> None:
        self._word = secrets.token_hex(16)

    @property
    def environment(self) -> dict[str, str]:
        """What to add to the program's environment."""
        return {_NAME: self._word}

    @property
    def processes(self) -> list[int]:
        """The processes that have the mark and live."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes()
            except OSError:
                continue  # it has just ended, or is somebody else's
            # A process that has ended and was not waited for has no environment any more.
            if f"{_NAME}={self._word}".encode() in environment.split(b"\0"):
                found.append(int(path.parent.name))
        return found

    def gone(self) -> None:
        """Wait until nothing that carries the mark is left; fail if something stays."""
        eventually(lambda: not self.processes, f"the end of the processes {self.processes}")


def can_be_bound(port: int) -> bool:
    """Tell whether a UDP port is free in both families, on every address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(("", port))
            except OSError:
                return False
    return True
