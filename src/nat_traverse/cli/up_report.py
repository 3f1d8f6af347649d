"""What a service says of its tunnels: each line begins with the name of the one it is about.

Where standard error leads to the journal, the priorities are those of syslog(3), in the form that
sd-daemon(3) defines, and there are no times, which the journal has. So `journalctl -p warning`, or
`-g ^home:`, show what their reader wants.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from nat_traverse.cli.report import JsonReport, Report
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nat_traverse.cli.monitor import Monitor
    from nat_traverse.cli.settings import Connect

# syslog(3): LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG.
_ERROR, _WARNING, _NORMAL, _DETAIL = 3, 4, 6, 7

# What somebody has to see to, or may wonder about; the rest goes by how much the user wants.
_WARNINGS: Final = frozenset(
    {
        "explanation",
        "forward-refused",
        "held-up",
        "lost",
        "overflowed",
        "plain",
        "rejected",
        "restarted",
        "too-large",
        "unfinished",
    }
)

# What Report.wireguard is told when the device has a peer: it was found in use, or shakes hands.
_PROVEN: Final = frozenset({"found", "handshake"})


def is_journal(environment: Mapping[str, str], descriptor: int = 2) -> bool:
    """Tell whether a descriptor, by default standard error, leads to systemd's journal."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class UpReport(Report):
    """Tells what happens to one tunnel of several, and keeps its `monitor` up to date.

    `changed` is called whenever its state has changed. `journal` is whether standard error leads
    there.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        started: float,
        monitor: Monitor,
        changed: Callable[[], None],
        journal: bool = False,
    ) -> None:
        super().__init__(connect, started=started)
        self.is_patient = connect.deadline is None
        self.monitor = monitor
        self._changed = changed
        self._journal = journal
        self._priority = _NORMAL
        self._summary = monitor.summary
        self._has_failed = False

    def searching(self) -> None:
        """Take note that the search begins, with listeners held, and the device of a VPN."""
        self.monitor.searching()
        self._changed()

    def observe(self, event: object) -> None:
        """Tell of one event of the run's."""
        self.monitor.observe(event)
        summary = self.monitor.summary
        if summary != self._summary:  # the peer may have moved, too
            self._summary = summary
            self._changed()
        super().observe(event)  # type: ignore[arg-type]  # the monitor takes any

    def found(self, what: object) -> None:
        """Take note of a link or a hole that was found."""
        super().found(what)
        self.monitor.found(what)
        self._changed()

    def lost(self, text: str) -> None:
        """Tell that the tunnel is over and another one is wanted."""
        self.monitor.lost(text)
        super().lost(text)
        self._changed()

    def held_up(self, text: str) -> None:
        """Tell that this host has no way to the peer at present."""
        self._trouble(text)
        super().held_up(text)

    def failed(self, message: str, exit_code: int) -> None:
        """Tell why the tunnel ends without success."""
        self._has_failed = True
        self._trouble(message)
        super().failed(message, exit_code)

    def _trouble(self, text: str) -> None:
        """Take note of a problem; it may be the same every second."""
        if self.monitor.trouble(text):
            self._changed()

    def wireguard(self, event: str, text: str, **fields: object) -> None:
        """Tell of the device of `--wireguard`, which alone knows whether it is connected."""
        if event in _PROVEN:
            peer = fields.get("peer")
            self.monitor.shaken(None if peer is None else str(peer))
            self._changed()
        super().wireguard(event, text, **fields)

    def attach(self, part: str, tell: Callable[[], Mapping[str, object]]) -> None:
        """Have `tell` say what the status shows under the name `part`."""
        self.monitor.attach(part, tell)

    def ended(self, exit_code: int) -> None:
        """Take note of the end, and tell why, if nobody has: whoever runs it does not see it."""
        if exit_code and not self._has_failed:
            self.failed(f"the command ended with exit status {exit_code}.", exit_code)
        self.monitor.ended(exit_code)
        self._changed()

    def _tell(self, event: str, text: str, *, level: int = NORMAL, **fields: object) -> None:
        del fields
        if level > self._connect.verbosity:
            return
        self._set_priority(event, level)
        time = "" if self._journal else f"{self.elapsed:7.2f} s  "
        name = self.monitor.name
        for line in text.split("\n"):
            self._write(f"{name}: {time}{line.strip()}\n")

    def _set_priority(self, event: str, level: int) -> None:
        if event == "error":
            self._priority = _ERROR
        elif event in _WARNINGS:
            self._priority = _WARNING
        else:
            self._priority = {QUIET: _WARNING, VERBOSE: _DETAIL}.get(level, _NORMAL)

    def _write(self, text: str) -> None:
        super()._write(f"<{self._priority}>{text}" if self._journal else text)


class UpJsonReport(UpReport, JsonReport):
    """Tells the same as one JSON object a line."""

    def _tell(self, event: str, text: str, *, level: int = NORMAL, **fields: object) -> None:
        self._set_priority(event, level)
        JsonReport._tell(self, event, text, level=level, name=self.monitor.name, **fields)  # noqa: SLF001 (a base's)


def make_up_report(
    connect: Connect,
    environment: Mapping[str, str],
    *,
    started: float,
    monitor: Monitor,
    changed: Callable[[], None],
) -> UpReport:
    """Return the report that the user asked for, or that suits where standard error leads."""
    kind = UpJsonReport if connect.json else UpReport
    journal = sys.stderr is not None and is_journal(environment)
    return kind(connect, started=started, monitor=monitor, changed=changed, journal=journal)
