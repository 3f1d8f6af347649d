"""Handing the punched port over to another program, which replaces this one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from nat_traverse.carry.command import SHELL
from nat_traverse.carry.environment import without_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nat_traverse.model import Endpoint

# Python ignores these two, and what a process ignores the program it becomes ignores as well.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Handoff(NamedTuple):
    """A command, and the path that it is to use."""

    command: str
    local_port: int
    peer: Endpoint

    @property
    def values(self) -> dict[str, str]:
        """What the placeholders stand for."""
        # A link-local address means nothing without the interface (RFC 4007, section 11).
        host = f"{self.peer.host}%{self.peer.scope}" if self.peer.scope else self.peer.host
        return {
            "local_port": str(self.local_port),
            "peer_host": host,
            "peer_port": str(self.peer.port),
            "peer": str(self.peer._replace(host=host)),
        }

    def line(self) -> str:
        """Return the command with its placeholders filled in.

        Only the four known words in braces are replaced: `${HOME}` and awk's blocks are the
        user's own. Nothing is quoted, so that a placeholder may stand inside quotes: an address
        that the kernel spelled has nothing in it that a shell would act on there, and outside
        quotes only the brackets of IPv6, a pattern that no file name of a sane directory matches.
        """
        line = self.command
        for name, value in self.values.items():
            line = line.replace(f"{{{name}}}", value)
        return line

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the command."""
        ours = {f"NAT_TRAVERSE_{name.upper()}": value for name, value in self.values.items()}
        return {**inherited, **ours}

    def execute(self) -> NoReturn:
        """Become the command. Raises OSError if there is no shell."""
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        os.execve(SHELL, [SHELL, "-c", self.line()], self.environment(without_secret(os.environ)))  # noqa: S606 (the user's own command)
