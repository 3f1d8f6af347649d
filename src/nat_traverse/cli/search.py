"""The search for a path, as the command line asks for it and shows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nat_traverse.cli.report import TerminalReport
from nat_traverse.punch.settings import Hard
from nat_traverse.session import PunchSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nat_traverse.cli.report import Report
    from nat_traverse.cli.settings import Connect
    from nat_traverse.wire.hello import Mode

_T = TypeVar("_T")

_STATUS_EVERY = 1.0  # s between two states of the live line


async def watched(report: Report, find: Callable[..., Awaitable[_T]], settings: object) -> _T:
    """Find the path with `find`, with a live line on a terminal meanwhile."""
    showing = asyncio.ensure_future(_show_status(report))
    try:
        return await find(settings, report.observe)
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
