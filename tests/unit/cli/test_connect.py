"""What a command line becomes: settings for the session, and an exit code from its outcome."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.carry.handoff import Handoff
from nat_traverse.cli import connect as module
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.connect import run
from nat_traverse.cli.report import make_report
from nat_traverse.cli.settings import Connect
from nat_traverse.errors import EXIT_OTHER_PORTS
from nat_traverse.model import Endpoint, Generation, Path, Rung
from nat_traverse.punch.machine import Connected
from nat_traverse.punch.settings import Hard
from nat_traverse.session import Opened, PunchSettings
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

PEER = Endpoint("203.0.113.2", 61_000)
AGREED = PEER._replace(port=40001)
OPENED = Opened(40000, (Endpoint("198.51.100.2", 40000),), (AGREED,), (), ())


class Session:
    """Stands for the network: what was asked of it, and the hole that it answers with."""

    def __init__(self, *, agreed: bool, observed: Endpoint | None = None) -> None:
        self.settings: list[PunchSettings] = []
        self.settled = self.closed = False
        self.connected = Connected(
            Path(7, PEER), Generation.CURRENT, 0.02, observed, 1400, rung=Rung.SPRAY, agreed=agreed
        )
        self.socket = SimpleNamespace(local=Endpoint("192.0.2.7", 51_000))

    async def punch(self, settings: PunchSettings, observe: Callable[[object], None]) -> Session:
        self.settings.append(settings)
        observe(OPENED)
        return self

    async def settle(self) -> None:
        self.settled = True

    def close(self) -> None:
        self.closed = True


def requested(*words: str) -> Connect:
    request = parse(words, {})
    assert isinstance(request, Connect)
    return request


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ((), {"mode": Mode.PLAIN, "hard": Hard.AUTO, "ttl": None, "hints": (), "rate": 100.0}),
        (("-q",), {"mode": Mode.PORTS}),
        (("--handoff", "id"), {"mode": Mode.PORTS}),
        (("--cmd", "id"), {"mode": Mode.PLAIN}),
        (("--hard", "always", "--rate", "500"), {"hard": Hard.ALWAYS, "rate": 500.0}),
        (("--ttl", "off", "--hint", "9", "--hint", "8"), {"ttl": 0, "hints": (9, 8)}),
    ],
)
def test_what_the_session_is_asked_for(
    words: tuple[str, ...], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(agreed=True)
    monkeypatch.setattr(module, "punch", session.punch)
    request = requested(*words, "40000:h:40001")
    report = make_report(request, started=0.0)
    asyncio.run(module._punch(request, report))
    (settings,) = session.settings
    assert (settings.local_port, settings.peer, settings.remote_port) == (40000, "h", 40001)
    assert {name: getattr(settings, name) for name in fields} == fields


def test_quitting_with_the_agreed_ports_is_a_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(agreed=True)
    monkeypatch.setattr(module, "punch", session.punch)
    assert run(requested("-q", "--quiet", "40000:h:40001")) == 0
    assert session.settled
    assert session.closed
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("observed", [None, Endpoint("198.51.100.2", 50_123)])
@pytest.mark.parametrize("local_port", [40000, 0])
def test_quitting_with_other_ports_is_a_failure_that_names_them(
    observed: Endpoint | None,
    local_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = Session(agreed=False, observed=observed)
    monkeypatch.setattr(module, "punch", session.punch)
    assert run(requested("-q", "--quiet", f"{local_port}:h:40001")) == EXIT_OTHER_PORTS == 6
    # The peer has been answered all the same: its own attempt is to end as well.
    assert session.settled
    assert session.closed
    text = capsys.readouterr().err
    assert "not between ports 40000 here and 40001 there" in text
    assert "from port 51000" in text
    assert "to 203.0.113.2:61000." in text
    assert ("(the peer sees 198.51.100.2:50123)" in text) == (observed is not None)
    assert "--handoff" in text


def test_a_hand_over_gets_the_ports_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(agreed=False)
    monkeypatch.setattr(module, "punch", session.punch)
    request = requested("--handoff", "openvpn --lport {local_port} --remote {peer}", "1:h:2")
    report = make_report(request, started=0.0)
    handoff = asyncio.run(module._connect(request, report))
    assert isinstance(handoff, Handoff)
    assert handoff.line() == "openvpn --lport 51000 --remote 203.0.113.2:61000"
    assert session.settled
    assert session.closed


def test_the_exit_code_is_no_error_of_a_socket() -> None:
    assert errno.errorcode[EXIT_OTHER_PORTS] == "ENXIO"
