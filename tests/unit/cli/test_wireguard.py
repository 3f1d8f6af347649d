"""A WireGuard device and the network are stood for; what is asked of them, and in which order."""

from __future__ import annotations

import asyncio
import json
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import wg_watch
from nat_traverse.carry.wg_device import NEW, State, WireGuardError
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.cli import search
from nat_traverse.cli import wireguard as module
from nat_traverse.cli.report import JsonReport
from nat_traverse.cli.settings import Connect
from nat_traverse.cli.wireguard import use_wireguard
from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint, Generation, Path, Rung
from nat_traverse.punch.machine import Connected
from nat_traverse.target import Target
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path as FilePath

    from nat_traverse.session import PunchSettings

PEER = Endpoint("203.0.113.2", 61_000)
OLD = State(51820, "192.0.2.1:51821", 1_700_000_000, 500, 0)


class World:
    """The device and the network: `steps` is all that was asked of them."""

    def __init__(self, state: State | None) -> None:
        self.state = state
        self.steps: list[str] = []
        self.settings: list[PunchSettings] = []
        self.failures: list[Exception] = []
        self.looks: list[Callable[[State], State]] = []
        self.port = 51_000
        self.stop: Callable[[], object] = lambda: None
        self.name = "nat"

    # -- the device

    def exists(self) -> bool:
        return self.state is not None

    def look(self) -> State:
        assert self.state is not None
        if not self.looks:
            self.stop()
        else:
            self.state = self.looks.pop(0)(self.state)
        return self.state

    def up(self) -> None:
        self.steps.append("up")
        self.state = NEW

    def down(self) -> None:
        self.steps.append("down")
        raise WireGuardError("it is gone already")  # at the end nothing may stop the rest

    def use(self, local_port: int, remote: Endpoint, keepalive: int) -> None:
        self.steps.append(f"use {local_port} {remote} {keepalive}")
        assert self.state is not None

    def park(self) -> State:
        self.steps.append("park")
        assert self.state is not None
        return self.state

    def restore(self, before: State) -> None:
        self.steps.append(f"restore {before.listen_port}")

    # -- the network

    async def punch(self, settings: PunchSettings, _: object) -> World:
        self.settings.append(settings)
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append("punch")
        return self

    @property
    def socket(self) -> object:
        return SimpleNamespace(local=Endpoint("192.0.2.7", self.port))

    @property
    def connected(self) -> Connected:
        return Connected(Path(7, PEER), Generation.CURRENT, 0.02, None, 1400, rung=Rung.SPRAY)

    async def settle(self) -> None:
        self.steps.append("settle")

    def close(self) -> None:
        self.steps.append("close")


@pytest.fixture
def configuration(tmp_path: FilePath) -> Configuration:
    path = tmp_path / "nat.conf"
    path.touch()
    return Configuration(str(path), "nat", Target(51820, "gw.example.org", 51821), "key", 0)


def keep(
    world: World,
    configuration: Configuration,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    timeout: float | None = 60.0,
) -> list[dict[str, object]]:
    """Run until the device has been looked at as often as planned; return what was told."""
    monkeypatch.setattr(module, "Device", lambda _: world)
    monkeypatch.setattr(module, "punch", world.punch)
    monkeypatch.setattr(module, "missing_right", lambda: None)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(search, "_LOOK_AGAIN", 0.0)
    connect = Connect(configuration.target, timeout, wireguard=configuration, json=True)

    async def main() -> None:
        task = asyncio.ensure_future(
            use_wireguard(connect, configuration, JsonReport(connect, started=0.0))
        )
        world.stop = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def shaken(state: State) -> State:
    return state._replace(handshake=state.handshake + 120, received=state.received + 92)


def same(state: State) -> State:
    return state


FOUND = ["punch", "settle", "close"]
Monkey = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def test_a_device_is_made_for_the_first_path_and_removed_at_the_end(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)
    world.looks = [shaken, same]
    told = keep(world, configuration, monkeypatch, capsys)
    assert world.steps == [*FOUND, "up", "use 51000 203.0.113.2:61000 15", "down"]
    assert [each["event"] for each in told] == [
        "wireguard-up",
        "wireguard-endpoint",
        "wireguard-handshake",
    ]
    (settings,) = world.settings
    assert settings.mode is Mode.PORTS
    assert (settings.local_port, settings.peer, settings.remote_port, settings.timeout) == (
        *(51820, "gw.example.org", 51821),
        60.0,
    )


def test_the_file_says_how_often_it_is_kept_alive(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)
    keep(world, configuration._replace(keepalive=20), monkeypatch, capsys)
    assert "use 51000 203.0.113.2:61000 20" in world.steps


def test_a_device_that_is_there_is_taken_off_its_port_and_left(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(OLD)
    world.looks = [same, same]
    told = keep(world, configuration, monkeypatch, capsys)
    assert world.steps == ["park", *FOUND, "use 51000 203.0.113.2:61000 15"]
    # The old handshake is none on this path.
    assert [each["event"] for each in told] == ["wireguard-endpoint"]


def test_stopped_while_it_looks_for_a_path(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(OLD)

    async def settle() -> None:
        world.stop()
        await asyncio.sleep(60)

    monkeypatch.setattr(world, "settle", settle)
    world.looks = [same]
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps == ["park", "punch", "close", "restore 51820"]


def test_a_device_in_use_is_only_watched(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(OLD._replace(handshake=int(time.time()) - 100))
    world.looks = [same, shaken, same]
    told = keep(world, configuration, monkeypatch, capsys)
    assert world.steps == []
    assert [each["event"] for each in told] == ["wireguard-found"]
    assert told[0]["peer"] == OLD.endpoint


def test_a_path_is_looked_for_again_without_limit(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)
    no_route, no_name = LocalNetworkError("No route.", 101), LocalNetworkError("No name.", 22)

    def next_time(state: State) -> State:
        world.failures = [no_route, no_route, no_name]
        world.port = 52_000
        monkeypatch.setattr(wg_watch, "UNANSWERED_AFTER", 0.0)
        return state

    def patient(state: State) -> State:
        monkeypatch.setattr(wg_watch, "UNANSWERED_AFTER", 25.0)
        return state

    # Parking looks for itself.
    world.looks = [next_time, patient, same]
    told = keep(world, configuration, monkeypatch, capsys)
    use = "use {} 203.0.113.2:61000 15"
    assert world.steps == [
        *(*FOUND, "up", use.format(51_000)),
        *("park", *FOUND, use.format(52_000)),
        "down",
    ]
    assert [each.timeout for each in world.settings] == [60.0, None, None, None, None]
    (lost,) = [str(each["message"]) for each in told if each["event"] == "lost"]
    assert lost.startswith("wireguard: WireGuard has had no answer")
    held_up = [each["message"] for each in told if each["event"] == "held-up"]
    assert held_up == ["No route.", "No name."]


def test_no_network_at_first_is_an_error(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)
    world.failures = [LocalNetworkError("No route.", 101)]
    with pytest.raises(LocalNetworkError):
        keep(world, configuration, monkeypatch, capsys, timeout=None)
    assert world.steps == []


def test_without_the_right_to_make_a_device(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(None)
    monkeypatch.setattr(module, "Device", lambda _: world)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    connect = Connect(configuration.target, 60.0, wireguard=configuration)
    report = JsonReport(connect, started=0.0)
    with pytest.raises(WireGuardError, match=r"wg-quick needs root\. Or run before: wg-quick up /"):
        asyncio.run(use_wireguard(connect, configuration, report))
    assert world.settings == []
