"""The search for a path, as the command line asks for it and shows it."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, TypeVar

from nat_traverse.cli.report import TerminalReport
from nat_traverse.errors import LocalNetworkError
from nat_traverse.punch.settings import Hard
from nat_traverse.session import PunchSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nat_traverse.cli.report import Report
    from nat_traverse.cli.settings import Connect
    from nat_traverse.wire.hello import Mode

_T = TypeVar("_T")

_STATUS_EVERY = 1.0  # s between two states of the live line

# What a host says that has no network for the moment: a cable is out, an address was taken away and
# the next one has not come, a name server can't be reached (22, as 0.7 had it). And that the port
# is taken: the system gives one like 40000 to any program that needs some port, maybe for seconds.
_PASSING = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EINVAL,
        errno.EADDRINUSE,
    }
)
# s between two looks: an address comes within seconds, and a look costs a lookup of the name.
_LOOK_AGAIN = 1.0


async def watched(report: Report, find: Callable[..., Awaitable[_T]], settings: object) -> _T:
    """Find the path with `find`, with a live line on a terminal meanwhile.

    A host that has no network, or whose port is in use, is waited for, where the report is patient.
    """
    report.searching()
    showing = asyncio.ensure_future(_show_status(report))
    try:
        while True:
            try:
                found = await find(settings, report.observe)
            except LocalNetworkError as error:
                if not report.is_patient or error.errno not in _PASSING:
                    raise
                report.held_up(str(error))
                await asyncio.sleep(_LOOK_AGAIN)
            else:
                report.found(found)
                return found
    finally:
        showing.cancel()
        if isinstance(report, TerminalReport):
            report.clear()


def punch_settings(connect: Connect, mode: Mode) -> PunchSettings:
    """Return what the session has to know of the user's wishes."""
    target = connect.target
    return PunchSettings(
        local_port=target.local_port,
        peer=target.peer,
        remote_port=target.remote_port,
        timeout=connect.deadline,
        window=connect.window or 0,
        mode=mode,
        hard=Hard(connect.hard),
        rate=connect.rate,
        ttl=connect.ttl,
        hints=connect.hints,
    )


async def _show_status(report: Report) -> None:
    while True:
        await asyncio.sleep(_STATUS_EVERY)
        report.waiting()
