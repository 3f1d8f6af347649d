from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import create_autospec

import pytest

from nat_traverse.api import Rejected, Unfinished
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.cli.monitor import Monitor, State
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE, Connect
from nat_traverse.cli.up_report import UpJsonReport, UpReport, is_journal, make_up_report
from nat_traverse.link.link import Link
from nat_traverse.model import Endpoint, Generation, Path
from nat_traverse.punch.machine import PathValidated, PeerHeard
from nat_traverse.target import Target
from nat_traverse.tunnel.events import PathChanged
from nat_traverse.tunnel.refusals import WrongSecretError

if TYPE_CHECKING:
    from pathlib import Path as File

Capture = pytest.CaptureFixture[str]
PATH = Path(0, Endpoint("203.0.113.2", 40001))


class Told:
    """A report, and how often it has said that its state has changed."""

    def __init__(self, environment: dict[str, str] | None = None, **wishes: Any) -> None:
        wishes.setdefault("retry", True)
        connect = Connect(Target(40000, "gw", 40001), wishes.pop("deadline", None), **wishes)
        self.changes = 0
        self.report = make_up_report(
            connect,
            environment or {},
            started=time.monotonic() - 1.5,
            monitor=Monitor("home", "home.toml", connect),
            changed=self._note,
        )

    def _note(self) -> None:
        self.changes += 1


def in_journal(monkeypatch: pytest.MonkeyPatch, **wishes: Any) -> Told:
    monkeypatch.setattr("nat_traverse.cli.up_report.is_journal", lambda _: True)
    return Told(**wishes)


def test_each_line_begins_with_the_name(capsys: Capture) -> None:
    report = Told().report
    report.observe(PeerHeard(PATH, Generation.CURRENT))
    report.failed("It is over.\nFor good.", 3)
    report.observe(PathValidated(PATH, 0.1))  # for --verbose
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("home:    1.5")
    assert first.endswith(" s  heard the peer at 203.0.113.2:40001")
    assert second.endswith(" s  It is over.")
    assert third.startswith("home:    1.5")
    assert third.endswith(" s  For good.")


def test_the_journal_gets_priorities_and_no_times(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = in_journal(monkeypatch, verbosity=VERBOSE).report
    report.observe(PeerHeard(PATH, Generation.CURRENT))
    report.observe(PathValidated(PATH, 0.1))
    report.observe(Unfinished("A path was found."))
    report.lost("The other side is gone.")
    report.held_up("No route.")
    report.failed("It is over.\nFor good.", 3)
    assert capsys.readouterr().err.splitlines() == [
        "<6>home: heard the peer at 203.0.113.2:40001",
        "<7>home: the path to 203.0.113.2:40001 is open in both directions",
        "<4>home: A path was found. Trying again.",
        "<4>home: The other side is gone. Looking for a path again.",
        "<4>home: No route. Trying again.",
        "<3>home: It is over.",
        "<3>home: For good.",
    ]


@pytest.mark.parametrize("verbosity", [QUIET, NORMAL, VERBOSE])
def test_how_much_is_told(capsys: Capture, verbosity: int) -> None:
    report = Told(verbosity=verbosity).report
    report.observe(PathValidated(PATH, 0.1))
    report.lost("The other side is gone.")
    report.failed("It is over.", 3)
    assert len(capsys.readouterr().err.splitlines()) == 2 + verbosity


def test_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Told(json=True, verbosity=QUIET).report
    assert isinstance(report, UpJsonReport)
    report.observe(PeerHeard(PATH, Generation.CURRENT))
    line = json.loads(capsys.readouterr().err)
    assert list(line)[:3] == ["event", "elapsed", "name"]
    assert list(line)[-1] == "text"
    assert line["name"] == "home"
    assert line["peer"] == "203.0.113.2:40001"
    report = in_journal(monkeypatch, json=True).report
    report.failed("It is over.", 3)
    text = capsys.readouterr().err
    assert text.startswith("<3>{")
    assert json.loads(text[3:])["exit_code"] == 3


def test_the_state_follows(capsys: Capture) -> None:
    told = Told()
    report, monitor = told.report, told.report.monitor
    assert monitor.state is State.SEARCHING
    report.found(object())
    assert (monitor.state, told.changes) == (State.CONNECTED, 1)
    report.lost("The other side is gone.")
    assert (monitor.state, told.changes) == (State.SEARCHING_AGAIN, 2)
    for _ in range(3):  # as every second
        report.held_up("No route.")
    assert monitor.describe()["problem"] == "No route."
    assert told.changes == 3
    report.attach("vpn", lambda: {"device": "nat0"})
    assert monitor.describe()["vpn"] == {"device": "nat0"}
    report.failed("It is over.", 3)
    assert told.changes == 4
    report.ended(3)
    assert (monitor.state, told.changes) == (State.ENDED, 5)
    assert monitor.describe()["problem"] == "It is over."
    assert "home: " in capsys.readouterr().err


def test_wireguard_says_when_it_is_connected(capsys: Capture) -> None:
    file = Configuration("/etc/wireguard/nat.conf", "nat", Target(40000, "gw", 40001), "key", 0)
    for event in ("found", "handshake"):
        told = Told(wireguard=file, retry=False)
        report, monitor = told.report, told.report.monitor
        report.wireguard("endpoint", "nat uses port 40000", peer="203.0.113.2:40001")
        assert (monitor.state, told.changes) == (State.SEARCHING, 0)
        report.wireguard(event, "nat is there", device="nat", peer="203.0.113.2:40001")
        assert (monitor.state, told.changes) == (State.CONNECTED, 1)
        assert monitor.describe()["peer"] == "203.0.113.2:40001"
        assert "wireguard: nat is there" in capsys.readouterr().err


def test_a_peer_that_has_moved_is_told(capsys: Capture) -> None:
    told = Told()
    link = create_autospec(Link, instance=True)
    link.peer = PATH.remote
    told.report.found(link)
    moved = Path(0, Endpoint("203.0.113.2", 51234))
    link.peer = moved.remote
    told.report.observe(PathChanged(moved))
    told.report.observe(PathChanged(moved))
    assert (told.report.monitor.summary, told.changes) == ("connected to 203.0.113.2:51234", 2)
    assert "following it" in capsys.readouterr().err


def test_why_a_tunnel_is_not_there_yet(capsys: Capture) -> None:
    told = Told()
    told.report.observe(Unfinished("A path was found."))
    assert told.report.monitor.describe()["problem"] == "A path was found."
    told.report.observe(Rejected(WrongSecretError(), 1))
    problem = str(told.report.monitor.describe()["problem"])
    assert problem.startswith("Someone who does not know the secret")
    assert told.changes == 2
    assert "waiting for the next" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_command_that_fails_is_told_of(capsys: Capture, as_json: bool) -> None:
    told = Told(json=as_json, cmd="exit 5")
    told.report.ended(5)
    assert "the command ended with exit status 5." in capsys.readouterr().err
    assert told.report.monitor.describe()["problem"] == "the command ended with exit status 5."
    told = Told(json=as_json, cmd="exit 5")
    told.report.failed("It is over.", 5)
    told.report.ended(5)
    Told(json=as_json, cmd="exit 0").report.ended(0)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_reason_is_told_once_until_there_was_a_tunnel(capsys: Capture) -> None:
    report = Told().report
    for text in ("No route.", "No route.", "Unknown host.", "Unknown host."):
        report.held_up(text)
    assert len(capsys.readouterr().err.splitlines()) == 2
    report.found(object())
    report.held_up("Unknown host.")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("deadline", "patient"), [(None, True), (30.0, False)])
def test_who_waits_for_a_network(deadline: float | None, patient: bool) -> None:
    assert Told(deadline=deadline).report.is_patient == patient


def test_whether_it_is_the_journal(tmp_path: File) -> None:
    with (tmp_path / "file").open("w") as file:
        status = os.fstat(file.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        assert is_journal({"JOURNAL_STREAM": stream}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": f"{stream}1"}, file.fileno())
        assert not is_journal({}, file.fileno())
    assert not is_journal({"JOURNAL_STREAM": stream}, 9999)


def test_a_terminal_gets_no_live_line() -> None:
    assert type(Told().report) is UpReport
