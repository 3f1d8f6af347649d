"""What a command line becomes: settings for the session, and an exit code from its outcome."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.api import Settings
from nat_traverse.carry import stdio
from nat_traverse.carry.handoff import Handoff
from nat_traverse.carry.relay import Relay
from nat_traverse.carry.stream_relay import StreamRelay
from nat_traverse.cli import connect as module
from nat_traverse.cli import secure
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.connect import run
from nat_traverse.cli.report import make_report
from nat_traverse.cli.search import punch_settings
from nat_traverse.cli.settings import Connect
from nat_traverse.errors import EXIT_OTHER_PORTS, PeerGoneError
from nat_traverse.link.establish import Purpose, establish
from nat_traverse.model import Endpoint, Generation, Path, Rung
from nat_traverse.punch.machine import Connected
from nat_traverse.punch.settings import Hard
from nat_traverse.session import Opened, PunchSettings, punch
from nat_traverse.tunnel.proof import Means
from nat_traverse.wire.hello import Mode
from support.ends import End, free_ports, tunnel_through
from support.ends import run as run_bounded
from support.stream_ends import StreamEnd

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
        ((), {"hard": Hard.AUTO, "ttl": None, "hints": (), "rate": 100.0}),
        (("--hard", "always", "--rate", "500"), {"hard": Hard.ALWAYS, "rate": 500.0}),
        (("--ttl", "off", "--hint", "9", "--hint", "8"), {"ttl": 0, "hints": (9, 8)}),
    ],
)
def test_what_the_session_is_asked_for(words: tuple[str, ...], fields: dict[str, Any]) -> None:
    settings = punch_settings(requested(*words, "40000:h:40001"), Mode.TUNNEL)
    assert settings.mode is Mode.TUNNEL
    assert (settings.local_port, settings.peer, settings.remote_port) == (40000, "h", 40001)
    assert {name: getattr(settings, name) for name in fields} == fields


class Asked(Exception):  # noqa: N818 (no error: it stands for all that would follow)
    """The session was asked for a path."""


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ((), Mode.TUNNEL),
        (("--cmd", "id"), Mode.TUNNEL),
        (("--datagrams",), Mode.TUNNEL),
        (("-L", "1:h:2"), Mode.TUNNEL),
        (("--plain",), Mode.PLAIN),
        (("--plain", "--cmd", "id"), Mode.PLAIN),
        (("-q",), Mode.PORTS),
        (("--plain", "-q"), Mode.PORTS),
        (("--handoff", "id"), Mode.PORTS),
    ],
)
def test_what_the_path_is_for(
    words: tuple[str, ...], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mode] = []

    async def note(settings: PunchSettings | Settings, _: object) -> None:
        asked.append((settings.punch if isinstance(settings, Settings) else settings).mode)
        raise Asked

    monkeypatch.setattr(module, "punch", note)
    monkeypatch.setattr(secure, "reach", note)
    request = requested(*words, "40000:h:40001")
    with pytest.raises(Asked):
        asyncio.run(module.use(request, make_report(request, started=0.0)))
    assert asked == [mode]


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
    handoff = asyncio.run(module.use(request, report))
    assert isinstance(handoff, Handoff)
    assert handoff.line() == "openvpn --lport 51000 --remote 203.0.113.2:61000"
    assert session.settled
    assert session.closed


# -- stopped before the relay has taken over: the peer is told, whatever the moment ---------------


async def stopped(
    kind: str, words: tuple[str, ...], stop: Callable[[asyncio.Task[object]], None]
) -> None:
    """Run one end with `words` over a real path; `stop` is given its task to cancel it.

    The other end is to hear of it at once.
    """
    mine, theirs = free_ports()
    plain = ("--plain",) if kind == "plain" else ()
    request = requested(*words, *plain, "--quiet", f"{mine}:127.0.0.1:{theirs}")
    leaving = asyncio.ensure_future(module.use(request, make_report(request, started=0.0)))
    stop(leaving)
    mode = Mode.PLAIN if kind == "plain" else Mode.TUNNEL
    hole = await punch(PunchSettings(theirs, "127.0.0.1", mine, 20.0, mode=mode), lambda _: None)
    end: End | StreamEnd
    if kind == "plain":
        end = End(hole, tunnel_through(hole))
    else:
        end = StreamEnd(await establish(hole, Means(), Purpose.STREAM))
    with end, pytest.raises(PeerGoneError, match="was stopped") as caught:
        await end.relay.run()
    assert caught.value.errno == errno.ECONNRESET
    hole.close()
    with pytest.raises(asyncio.CancelledError):
        await leaving


@pytest.fixture(params=["plain", "encrypted"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which tunnel it runs over."""
    return str(request.param)


def test_stopped_while_the_command_is_started(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(leaving: asyncio.Task[object]) -> None:
        real = asyncio.create_subprocess_exec

        async def start(*words: str, **options: Any) -> asyncio.subprocess.Process:
            leaving.cancel()
            return await real(*words, **options)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)

    run_bounded(stopped(kind, ("--cmd", "cat"), stop))


def runs(task: asyncio.Task[object]) -> bool:
    """Tell whether it is a relay that runs in this task."""
    return getattr(task.get_coro(), "__qualname__", "") in {"Relay.run", "StreamRelay.run"}


def test_stopped_before_the_first_step_of_the_relay(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(leaving: asyncio.Task[object]) -> None:
        real = asyncio.wait
        begun: list[asyncio.Task[object]] = []

        async def wait(tasks: set[asyncio.Future[object]], **options: Any) -> object:
            relays = [each for each in tasks if isinstance(each, asyncio.Task) and runs(each)]
            if not relays or begun:
                return await real(tasks, **options)
            begun.extend(relays)
            for relay in relays:  # it has not had its first step
                relay.cancel()
            leaving.cancel()
            return await asyncio.Event().wait()

        monkeypatch.setattr(asyncio, "wait", wait)

    run_bounded(stopped(kind, ("--cmd", "cat"), stop))


def test_stopped_when_the_command_has_left_and_nobody_relays(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay_class = Relay if kind == "plain" else StreamRelay

    def stop(leaving: asyncio.Task[object]) -> None:
        pause = relay_class.pause

        async def paused(self: Any) -> None:
            await pause(self)
            assert self.paused
            await asyncio.sleep(0.01)  # the relay returns
            leaving.cancel()
            await asyncio.Event().wait()

        monkeypatch.setattr(relay_class, "pause", paused)

    run_bounded(stopped(kind, ("--cmd", "sleep 1000 & exit 0"), stop))


def test_stopped_when_the_relay_of_standard_streams_can_not_begin(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: asyncio.Task[object]) -> None:
        def broken(*_: object) -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(stdio, "Source", broken)

    run_bounded(stopped(kind, (), stop))


def test_the_exit_code_is_no_error_of_a_socket() -> None:
    assert errno.errorcode[EXIT_OTHER_PORTS] == "ENXIO"
