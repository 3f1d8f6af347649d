from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from nat_traverse.cli.signals import Signalled, run_until_signalled

DYING = """\
import signal, sys
from nat_traverse.cli.signals import die_of
sys.stderr.write("last words")
die_of(signal.Signals(int(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_undoes_everything_first(number: signal.Signals) -> None:
    undone = []

    async def main() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            undone.append(number)

    before = signal.signal(number, signal.SIG_DFL)  # whatever started the tests ignores
    try:
        with pytest.raises(Signalled) as caught:
            run_until_signalled(main())
    finally:
        signal.signal(number, before)
    assert caught.value.number == number
    assert undone == [number]


def test_without_a_signal_the_result_comes_back() -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    assert run_until_signalled(main()) == 7


def test_an_ignored_signal_stays_ignored() -> None:
    async def main() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)  # more than a turn of the loop, where it would be noticed
        return 7

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_until_signalled(main()) == 7
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGPIPE])
def test_the_shell_sees_the_signal(number: signal.Signals) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DYING, str(int(number))], capture_output=True, check=False
    )
    assert result.returncode == -number
    assert result.stderr == b"last words"
