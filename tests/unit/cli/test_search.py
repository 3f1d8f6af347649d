from __future__ import annotations

import asyncio
import errno
import sys
import time
from typing import TYPE_CHECKING

import pytest

from nat_traverse.cli import search
from nat_traverse.cli.monitor import Monitor, State
from nat_traverse.cli.report import Report, TerminalReport
from nat_traverse.cli.settings import Connect
from nat_traverse.cli.up_report import UpReport
from nat_traverse.errors import LocalNetworkError
from nat_traverse.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = Connect(Target(40000, "gw.example.org", 40001), 180.0)


def watch(report: Report, outcome: Exception | int) -> int:
    """Watch a search that takes a while."""

    async def find(settings: object, observe: Callable[..., None]) -> int:
        assert settings == "settings"
        assert observe == report.observe
        await asyncio.sleep(0.1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return asyncio.run(search.watched(report, find, "settings"))


def test_a_terminal_shows_that_it_is_trying_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "_STATUS_EVERY", 0.01)
    report = TerminalReport(SETTINGS, started=time.monotonic())
    assert watch(report, 7) == 7
    written = capsys.readouterr().err
    assert "trying, giving up in " in written
    assert written.endswith("\r\x1b[K")
    with pytest.raises(ZeroDivisionError):
        watch(report, ZeroDivisionError())
    assert capsys.readouterr().err.endswith("\r\x1b[K")


def test_nothing_is_written_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "_STATUS_EVERY", 0.01)
    assert watch(Report(SETTINGS, started=time.monotonic()), 7) == 7
    assert capsys.readouterr().err == ""
    assert sys.stderr is not None


class Finder:
    """Finds something after some failures."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def find(self, settings: object, observe: Callable[..., None]) -> str:
        del settings, observe
        if self.failures:
            raise self.failures.pop(0)
        return "found"


def watch_patiently(report: Report, *failures: Exception) -> str:
    return asyncio.run(search.watched(report, Finder(*failures).find, "settings"))


def passing(number: int) -> LocalNetworkError:
    return LocalNetworkError("No network.", number)


def test_a_network_that_is_missing_is_waited_for_once_there_was_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "_LOOK_AGAIN", 0.001)
    report = Report(SETTINGS, started=time.monotonic())
    with pytest.raises(LocalNetworkError):
        watch_patiently(report, passing(errno.ENETUNREACH))
    report.lost("It is gone.")
    capsys.readouterr()
    numbers = (errno.ENETUNREACH, errno.EINVAL, errno.EADDRNOTAVAIL, errno.EADDRINUSE)
    assert watch_patiently(report, *map(passing, numbers)) == "found"
    assert capsys.readouterr().err.count("No network. Trying again.") == 1
    # A port that this user may not have stays so.
    with pytest.raises(LocalNetworkError):
        watch_patiently(report, passing(errno.EACCES))


def test_a_service_takes_note_of_the_begin(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor("home", "/home.toml", SETTINGS)
    changes: list[State] = []
    report = UpReport(
        SETTINGS,
        started=time.monotonic(),
        monitor=monitor,
        changed=lambda: changes.append(monitor.state),
    )
    begun = [monitor.has_begun]
    assert watch(report, 7) == 7
    assert [*begun, monitor.has_begun] == [False, True]
    assert changes == [State.SEARCHING, State.CONNECTED]
    assert capsys.readouterr().err == ""
