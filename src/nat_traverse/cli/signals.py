"""Ending by a signal: everything is undone first, and then the signal has its usual effect."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

# A closed terminal (SIGHUP), ^C and a service manager: the same orderly end.
_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


class Signalled(Exception):  # noqa: N818 (no error: somebody wants this to end)
    """A signal ended the run."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def run_until_signalled(main: Coroutine[object, object, T]) -> T:
    """Run `main`; a signal cancels it, so that everything is undone, and raises Signalled."""
    received: list[signal.Signals] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main)

        def end(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                loop.add_signal_handler(number, end, number)
        return await task

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        raise Signalled(received[0] if received else signal.SIGTERM) from None


def die_of(number: signal.Signals) -> NoReturn:
    """End by the signal itself: a shell then sees 128 + its number, and stops its own loop too."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError("unreachable: the signal ends the process")
