"""A WireGuard device and the network are stood for; what is asked of them, and in which order."""

from __future__ import annotations

import asyncio
import json
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.carry import wg_device, wg_watch
from nat_traverse.carry.wg_device import NEW, GoneError, State, WireGuardError
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.cli import search
from nat_traverse.cli import wireguard as module
from nat_traverse.cli.monitor import Monitor
from nat_traverse.cli.report import JsonReport
from nat_traverse.cli.settings import Connect
from nat_traverse.cli.up_report import UpJsonReport
from nat_traverse.cli.wireguard import use_wireguard
from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint, Generation, Path, Rung
from nat_traverse.punch.machine import Connected
from nat_traverse.session import Hole
from nat_traverse.target import Target
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path as FilePath

    from nat_traverse.session import PunchSettings

PEER = Endpoint("203.0.113.2", 61_000)
OLD = State(51820, "192.0.2.1:51821", 1_700_000_000, 500, 0)
PARKED = State(39_000, "127.0.0.1:9", 1_700_000_000, 500, 0)


class World:
    """The device and the network: `steps` is all that was asked of them.

    `looks` are what happens to the device, one after the other, whenever it is looked at; after
    the last of them the run is stopped. `broken` are the commands that fail. `during` is called
    in the middle of each command that changes something.
    """

    def __init__(self, state: State | None) -> None:
        self.state = state
        self.steps: list[str] = []
        self.settings: list[PunchSettings] = []
        self.failures: list[Exception] = []
        self.looks: list[Callable[[State], State | None]] = []
        self.port = 51_000
        self.broken: set[str] = set()
        self.during: Callable[[str], object] = lambda _: None
        self.stop: Callable[[], object] = lambda: None
        # From the device's thread: wait until the event loop has had a turn; fails if it stands.
        self.turn: Callable[[], object] = lambda: None
        self.name = "nat"

    # -- the device

    def exists(self) -> bool:
        return self.state is not None

    def look(self) -> State:
        if not self.looks:
            self.stop()
        elif self.state is not None:
            self.state = self.looks.pop(0)(self.state)
        return self.there

    def up(self) -> None:
        self.changed("up")
        self.fail("up")
        self.state = NEW
        self.fail("up, halfway")

    def down(self) -> None:
        self.changed("down")
        self.fail("down")
        if self.state is None:
            raise WireGuardError("nat is not a WireGuard interface")
        self.state = None
        self.fail("down, at last")

    def use(self, local_port: int, remote: Endpoint, keepalive: int) -> None:
        self.changed(f"use {local_port} {remote} {keepalive}")
        assert self.there

    def keep_open(self, keepalive: int) -> None:
        self.changed(f"keep-open {keepalive}")
        self.fail("keep-open")
        self.state = self.there._replace(keepalive=keepalive)

    def park(self) -> State:
        self.changed("park")
        return self.there

    def restore(self, before: State) -> None:
        self.changed(f"restore {before.listen_port} {before.keepalive}")
        self.fail("restore")

    @property
    def there(self) -> State:
        if self.state is None:
            raise GoneError("the device nat is gone")
        return self.state

    def changed(self, step: str) -> None:
        self.steps.append(step)
        self.during(step)

    def fail(self, command: str) -> None:
        if command in self.broken:
            raise WireGuardError(f"{command} has failed")

    # -- the network

    async def punch(self, settings: PunchSettings, _: object) -> Hole:
        self.settings.append(settings)
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append("punch")
        return FakeHole(self)

    async def settle(self) -> None:
        self.changed("settle")

    def close(self) -> None:
        self.steps.append("close")


class FakeHole(Hole):
    """One that the world has punched."""

    def __init__(self, world: World) -> None:
        self.connected = Connected(
            Path(7, PEER), Generation.CURRENT, 0.02, None, 1400, rung=Rung.SPRAY
        )
        self._world = world

    @property
    def socket(self) -> Any:
        return SimpleNamespace(local=Endpoint("192.0.2.7", self._world.port))

    async def settle(self) -> None:
        await self._world.settle()

    def close(self) -> None:
        self._world.close()


@pytest.fixture
def configuration(tmp_path: FilePath) -> Configuration:
    path = tmp_path / "nat.conf"
    path.touch()
    return Configuration(str(path), "nat", Target(51820, "gw.example.org", 51821), "key", 0)


@pytest.fixture(autouse=True)
def _locks(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wg_device, "_LOCKS", str(tmp_path))


def keep(
    world: World,
    configuration: Configuration,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    timeout: float | None = 60.0,
) -> list[dict[str, object]]:
    """Run until the device has been looked at as often as planned; return what was told."""
    with pytest.raises(asyncio.CancelledError):
        run(world, configuration, monkeypatch, timeout)
    return said(capsys)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def plainly(connect: Connect) -> JsonReport:
    return JsonReport(connect, started=0.0)


def run(
    world: World,
    configuration: Configuration,
    monkeypatch: pytest.MonkeyPatch,
    timeout: float | None = 60.0,
    make: Callable[[Connect], JsonReport] = plainly,
) -> None:
    """Run until it is stopped, which raises CancelledError, or fails."""
    monkeypatch.setattr(module, "Device", lambda _: world)
    monkeypatch.setattr(module, "punch", world.punch)
    monkeypatch.setattr(module, "missing_right", lambda: None)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(search, "_LOOK_AGAIN", 0.0)
    connect = Connect(configuration.target, timeout, wireguard=configuration, json=True)

    async def main() -> None:
        task = asyncio.ensure_future(use_wireguard(connect, configuration, make(connect)))
        loop = asyncio.get_running_loop()
        # The device is another thread's.
        world.stop = lambda: loop.call_soon_threadsafe(task.cancel)
        world.turn = lambda: asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(20)
        await task

    asyncio.run(main())


def shaken(state: State) -> State:
    return state._replace(handshake=state.handshake + 120, received=state.received + 92)


def same(state: State) -> State:
    return state


def in_use(keepalive: int) -> State:
    return OLD._replace(handshake=int(time.time()) - 100, keepalive=keepalive)


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
        "wireguard-down",
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
    assert world.steps == ["park", "punch", "close", "restore 51820 0"]


def test_a_device_in_use_is_only_watched(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(in_use(25))
    world.looks = [same, shaken, same]
    told = keep(world, configuration, monkeypatch, capsys)
    assert world.steps == []
    assert [each["event"] for each in told] == ["wireguard-found"]
    assert told[0]["peer"] == OLD.endpoint


@pytest.mark.parametrize("keepalive", [0, 26])
def test_a_device_in_use_is_kept_open_meanwhile(
    keepalive: int, configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(in_use(keepalive))
    world.looks = [same, same]
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps == ["keep-open 15", f"keep-open {keepalive}"]


def test_a_device_in_use_that_loses_its_path_gets_back_its_own_keepalive(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(in_use(0))
    monkeypatch.setattr(wg_watch, "SILENT_AFTER", 0.0)

    async def settle() -> None:
        world.stop()
        await asyncio.sleep(60)

    monkeypatch.setattr(world, "settle", settle)
    world.looks = [same, same]
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps == ["keep-open 15", "park", "punch", "close", "restore 51820 0"]


def test_a_device_in_use_that_vanishes(configuration: Configuration, monkeypatch: Monkey) -> None:
    world = World(in_use(0))
    world.looks = [same, gone]
    with pytest.raises(GoneError):
        run(world, configuration, monkeypatch)
    assert world.steps == ["keep-open 15"]


def test_a_device_that_did_not_get_its_keepalive_back_is_told(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(in_use(0))

    def broken(state: State) -> State:
        world.broken = {"keep-open"}
        return state

    world.looks = [same, broken]
    with pytest.raises(WireGuardError, match=r"has failed\. .* not got back the persistent-keep"):
        run(world, configuration, monkeypatch)


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


def searches(world: World) -> list[str | None]:
    """Return where each search was to look when the name can't be looked up."""
    return [each.last_known for each in world.settings]


@pytest.mark.parametrize(
    ("moved", "known"),
    [
        (None, PEER.host),
        ("[2001:db8::3]:61000", "2001:db8::3"),
        ("[fe80::3%eth0]:61000", "fe80::3%eth0"),
        ("127.0.0.1:9", PEER.host),
    ],
    ids=["stays", "moves", "link-local", "parked"],
)
def test_a_name_server_behind_the_tunnel_is_done_without(
    moved: str | None,
    known: str,
    configuration: Configuration,
    monkeypatch: Monkey,
    capsys: Capture,
) -> None:
    world = World(None)

    def lost(state: State) -> State:
        monkeypatch.setattr(wg_watch, "UNANSWERED_AFTER", 0.0)
        return state._replace(endpoint=moved)

    world.looks = [lost]
    keep(world, configuration, monkeypatch, capsys)
    assert searches(world) == [None, known]


def test_the_path_that_was_found_is_known_before_the_device_is_looked_at(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)
    world.looks = [gone, same]
    keep(world, configuration, monkeypatch, capsys)
    assert searches(world) == [None, PEER.host]


@pytest.mark.parametrize("state", [OLD, in_use(25)], ids=["idle", "in use"])
def test_a_device_that_is_there_knows_where_the_peer_was(
    state: State, configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(state)
    monkeypatch.setattr(wg_watch, "SILENT_AFTER", 0.0)
    world.looks = [same, same]
    keep(world, configuration, monkeypatch, capsys)
    assert searches(world)[0] == "192.0.2.1"


def gone(_: State) -> None:
    return None


def test_a_device_that_vanishes_is_made_again(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    """wireguard-go may crash: when the path is in use, and while another one is looked for."""
    world = World(None)

    def forgotten(state: State) -> State:
        monkeypatch.setattr(wg_watch, "UNANSWERED_AFTER", 0.0)
        return state

    def settled(step: str) -> None:
        if step == "settle" and world.steps.count("settle") == 3:
            monkeypatch.setattr(wg_watch, "UNANSWERED_AFTER", 25.0)
            world.state = None

    world.during = settled
    world.looks = [gone, forgotten, same]
    told = keep(world, configuration, monkeypatch, capsys)
    made = [*FOUND, "up", "use 51000 203.0.113.2:61000 15"]
    assert world.steps == [*made, "park", *made, "park", *made, "down"]
    lost = [str(each["message"]) for each in told if each["event"] == "lost"]
    assert lost[0] == "wireguard: the device nat is gone."
    assert "no answer" in lost[1]
    assert [each.timeout for each in world.settings] == [60.0, None, None]


def test_a_device_of_the_users_that_vanishes_is_an_error(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(OLD)
    world.looks = [same, gone]
    with pytest.raises(GoneError):
        run(world, configuration, monkeypatch)
    assert world.steps == ["park", *FOUND, "use 51000 203.0.113.2:61000 15"]


def test_a_device_that_the_user_brings_up_meanwhile_is_used_and_left(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)

    def brought_up(step: str) -> None:
        if step == "settle":
            world.state = OLD

    world.during = brought_up
    world.looks = [same, same]
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps == [*FOUND, "use 51000 203.0.113.2:61000 15"]


def test_a_device_that_was_left_parked_is_not_in_use(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(PARKED._replace(handshake=int(time.time()) - 1))
    world.looks = [same]
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps[:2] == ["park", "punch"]
    assert searches(world) == [None]


@pytest.mark.parametrize(
    ("broken", "steps"), [("up", ["up"]), ("up, halfway", ["up", "down"])], ids=["all", "half"]
)
def test_what_a_failure_leaves_is_removed(
    broken: str, steps: list[str], configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(None)
    world.broken = {broken}
    with pytest.raises(WireGuardError, match=f"^{broken} has failed$"):
        run(world, configuration, monkeypatch)
    assert world.steps == [*FOUND, *steps]


def test_a_device_that_could_not_be_removed_is_told(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(None)
    world.broken = {"down"}
    with pytest.raises(WireGuardError, match=r"^down has failed\. ") as caught:
        run(world, configuration, monkeypatch)
    first, _, second = str(caught.value).partition(f": wg-quick down {configuration.path}, ")
    assert first.endswith("The device nat may still be there. To remove it")
    assert second == "or if that fails again: ip link delete dev nat"


def test_a_device_that_is_removed_without_all_that_comes_after_is_told(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(None)
    world.broken = {"down, at last"}
    with pytest.raises(WireGuardError, match=r"^down, at last has failed\. .* is gone, but PostDo"):
        run(world, configuration, monkeypatch)


def test_a_device_that_is_gone_at_the_end_is_nothing_to_tell(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)

    def removed(state: State) -> State:
        world.stop()
        monkeypatch.setattr(world, "exists", lambda: False)
        return state

    world.looks = [removed]
    told = keep(world, configuration, monkeypatch, capsys)
    assert "down" not in world.steps
    assert told[-1]["event"] == "wireguard-endpoint"


def test_a_device_that_did_not_get_its_port_back_is_told(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(OLD)
    world.looks = [same]
    world.broken = {"restore"}
    world.failures = [LocalNetworkError("No route.", 101)]
    with pytest.raises(WireGuardError, match=r"^restore has failed\. The device nat has not got"):
        run(world, configuration, monkeypatch)


def test_a_command_that_takes_long_stops_nothing_else(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    """It waits here for what only the event loop does; for ever, if that waits for it."""
    world = World(None)
    world.looks = [same]
    world.during = lambda step: world.turn() if step == "up" else None
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps[-1] == "down"


@pytest.mark.parametrize("moment", ["up", "down"])
def test_signals_during_a_command_are_heeded_after_it(
    moment: str, configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)

    def stopped_twice(step: str) -> None:
        if step == moment:
            for _ in range(2):
                world.stop()
                world.turn()  # not to get two for one

    world.during = stopped_twice
    keep(world, configuration, monkeypatch, capsys)
    assert world.steps[-1] == "down"
    assert world.state is None


def test_a_device_that_vanishes_while_a_signal_comes(
    configuration: Configuration, monkeypatch: Monkey, capsys: Capture
) -> None:
    world = World(None)

    def both(_: State) -> None:
        world.stop()

    world.looks = [both]
    told = keep(world, configuration, monkeypatch, capsys)
    assert "lost" not in [each["event"] for each in told]


def observed(
    world: World, configuration: Configuration, monkeypatch: Monkey
) -> list[dict[str, object]]:
    """Run as a service; return what its status was at each look, and at the end."""
    monitors: list[Monitor] = []
    states: list[dict[str, object]] = []

    def note() -> None:
        states.append(monitors[0].describe())

    def make(connect: Connect) -> UpJsonReport:
        monitors.append(Monitor("work", "/work.toml", connect))
        return UpJsonReport(connect, started=0.0, monitor=monitors[0], changed=lambda: None)

    def noting(look: Callable[[State], State | None]) -> Callable[[State], State | None]:
        def noted(state: State) -> State | None:
            note()
            return look(state)

        return noted

    world.looks = [noting(look) for look in world.looks]
    with pytest.raises(asyncio.CancelledError):
        run(world, configuration, monkeypatch, None, make)
    note()
    return states


def test_a_service_is_connected_when_there_was_a_handshake(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(None)
    now = int(time.time())
    world.looks = [
        same,
        lambda _: State(51_000, str(PEER), now, 92, 15),
        same,
        gone,
    ]
    first, second, third, fourth, last = observed(world, configuration, monkeypatch)
    assert {each["state"] for each in (first, second)} == {"searching"}
    nothing = {"device": "nat", "endpoint": None, "handshake_age": None, "received": None}
    assert first["wireguard"] == nothing
    assert second["wireguard"] == {**nothing, "received": 0}
    for each in (third, fourth):
        assert (each["state"], each["peer"], each["sent"]) == ("connected", str(PEER), None)
        told = each["wireguard"]
        assert isinstance(told, dict)
        age = told.pop("handshake_age")
        assert 0 <= age < 60
        assert told == {"device": "nat", "endpoint": str(PEER), "received": 92}
    # Found again, and not yet used by WireGuard.
    assert last["state"] == "searching-again"
    assert last["wireguard"] == nothing


def test_a_service_whose_device_is_in_use_is_connected(
    configuration: Configuration, monkeypatch: Monkey
) -> None:
    world = World(OLD._replace(handshake=int(time.time()) - 100))
    world.looks = [same, same]
    before, state, *_ = observed(world, configuration, monkeypatch)
    assert before["state"] == "searching"
    assert (state["state"], state["peer"]) == ("connected", OLD.endpoint)


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
