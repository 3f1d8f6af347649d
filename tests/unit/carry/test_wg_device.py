from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import wg_device as module
from nat_traverse.carry.wg_device import (
    Device,
    GoneError,
    State,
    WireGuardError,
    end_session,
    held,
    missing_right,
    parse_dump,
    run_command,
    spelled,
)
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.model import Endpoint
from nat_traverse.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

KEY = "ukdP63b53ab25bJwW0jTz9QMAmtpww4ndbjSU3RWSww="
OTHER = KEY[::-1]
SECRET = "cMYUKCJS0O1vACpxKJPmGA7tehTxpRQ31ZlUkfVmtFA="  # noqa: S105 (nobody's)
CONFIGURATION = Configuration("/w/nat.conf", "nat", Target(51820, "2001:db8::7", 51821), KEY, 25)

HEAD = f"{SECRET}\tpublic\t51820\toff\n"
ROW = f"{KEY}\t(none)\t192.0.2.1:51820\t10.77.0.2/32\t1700000000\t92\t180\t25\n"
FRESH = f"{KEY}\t{SECRET}\t(none)\t10.77.0.2/32,10.0.0.0/8\t0\t0\t0\toff\n"
STATE = State(51820, "192.0.2.1:51820", 1_700_000_000, 92, 25)


class Shell:
    """Stands for the commands: notes what is run, and prints what it was told to."""

    def __init__(self, dump: str = HEAD + ROW, interfaces: str = "nat\n") -> None:
        self.dump, self.interfaces = dump, interfaces
        self.changed: list[str] = []

    def __call__(self, words: Sequence[str]) -> str:
        if list(words[:2]) == ["wg", "show"]:
            return self.interfaces if words[2] == "interfaces" else self.dump
        self.changed.append(" ".join(words))
        return ""


def device(shell: Shell) -> Device:
    return Device(CONFIGURATION, shell)


def test_a_dump() -> None:
    assert parse_dump(HEAD + ROW.replace(KEY, OTHER) + ROW, KEY) == STATE
    assert parse_dump(HEAD + FRESH, KEY) == State(51820, None, 0, 0, 0)
    assert parse_dump(HEAD + ROW.replace(KEY, OTHER), KEY) is None
    assert parse_dump(HEAD, KEY) is None


@pytest.mark.parametrize(
    "text", ["", SECRET, HEAD + "x", HEAD + ROW.replace("92", "many"), HEAD + ROW + "\n", ROW]
)
def test_what_is_no_dump(text: str) -> None:
    with pytest.raises(WireGuardError) as caught:
        parse_dump(text, KEY)
    assert SECRET not in str(caught.value)
    # int() shows what it was given.
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_whether_it_is_there() -> None:
    assert device(Shell(interfaces="other nat\n")).exists()
    assert not device(Shell(interfaces="nat0 other\n")).exists()
    assert not device(Shell(interfaces="\n")).exists()


def test_a_device_without_the_peer() -> None:
    with pytest.raises(WireGuardError, match=r"no peer with the PublicKey of /w/nat\.conf"):
        device(Shell(HEAD)).look()


class Deaf(Shell):
    """One where the device does not answer."""

    def __call__(self, words: Sequence[str]) -> str:
        if words[-1] == "dump":
            raise WireGuardError("no answer")
        return super().__call__(words)


def test_a_device_that_is_gone() -> None:
    with pytest.raises(GoneError, match="the device nat is gone"):
        device(Deaf(interfaces="\n")).look()
    with pytest.raises(WireGuardError, match="no answer") as caught:
        device(Deaf()).look()
    assert not isinstance(caught.value, GoneError)


def test_up_and_down() -> None:
    shell = Shell()
    device(shell).up()
    device(shell).down()
    assert shell.changed == ["wg-quick up /w/nat.conf", "wg-quick down /w/nat.conf"]


@pytest.mark.parametrize(
    ("port", "words"), [(51820, "peer"), (40123, "listen-port 40123 peer")], ids=["same", "other"]
)
def test_a_path_is_used(port: int, words: str) -> None:
    shell = Shell()
    device(shell).use(port, Endpoint("2001:db8::9", 1234), 15)
    assert shell.changed == [
        f"wg set nat {words} {KEY} endpoint [2001:db8::9]:1234 persistent-keepalive 15"
    ]


def test_how_often_a_path_is_kept_open() -> None:
    shell = Shell()
    device(shell).keep_open(15)
    assert shell.changed == [f"wg set nat peer {KEY} persistent-keepalive 15"]


def test_no_peer_is_made_to_keep_a_path_open() -> None:
    """As wg(8) does with one that it does not know."""
    shell = Shell(HEAD)
    with pytest.raises(WireGuardError, match="no peer"):
        device(shell).keep_open(15)
    assert shell.changed == []


def test_parking_is_undone() -> None:
    shell = Shell()
    ours = device(shell)
    assert ours.park() == STATE
    shell.dump = HEAD.replace("51820", "39000") + ROW
    ours.restore(STATE)
    assert shell.changed == [
        f"wg set nat listen-port 0 peer {KEY} endpoint 127.0.0.1:9 persistent-keepalive 0",
        f"wg set nat listen-port 51820 peer {KEY} endpoint 192.0.2.1:51820 persistent-keepalive 25",
    ]


def test_parking_is_undone_where_there_was_no_endpoint() -> None:
    shell = Shell(HEAD + FRESH)
    ours = device(shell)
    ours.restore(ours.park())
    assert shell.changed[-1] == (
        f"wg set nat peer {KEY} endpoint [2001:db8::7]:51821 persistent-keepalive 0"
    )


def test_a_device_that_was_left_parked_gets_what_the_file_says() -> None:
    """A process that is killed restores nothing, and nowhere is not where the device was."""
    row = ROW.replace("192.0.2.1:51820", "127.0.0.1:9")
    shell = Shell(HEAD.replace("51820", "39000") + row)
    ours = device(shell)
    assert ours.look().is_parked
    ours.restore(ours.park())
    assert shell.changed[-1] == (
        f"wg set nat listen-port 51820 peer {KEY} endpoint [2001:db8::7]:51821"
        " persistent-keepalive 25"
    )
    assert not STATE.is_parked


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        (Endpoint("192.0.2.1", 5), "192.0.2.1:5"),
        (Endpoint("2001:db8::1", 5), "[2001:db8::1]:5"),
        (Endpoint("fe80::1", 5, 3), "[fe80::1%3]:5"),
    ],
)
def test_endpoints_as_wg_takes_them(remote: Endpoint, text: str) -> None:
    assert spelled(remote) == text


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("192.0.2.1:5", "192.0.2.1"),
        ("[2001:db8::1]:5", "2001:db8::1"),
        ("[fe80::1%eth0]:5", "fe80::1%eth0"),
        ("127.0.0.1:9", None),
        (None, None),
    ],
)
def test_where_the_peer_was(endpoint: str | None, address: str | None) -> None:
    assert STATE._replace(endpoint=endpoint).peer_address == address


# -- real commands ---------------------------------------------------------------------------------


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


@pytest.mark.parametrize("level", [None, "debug"])
def test_what_a_command_prints(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the user wants of wireguard-go, it is not to fill the memory with it."""
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("LOG_LEVEL", level)
    monkeypatch.setenv("NAT_TRAVERSE_SECRET", "hunter2")
    script = "import os; print(os.environ['LOG_LEVEL'], 'NAT_TRAVERSE_SECRET' in os.environ)"
    assert run_command(python(script)) == "silent False\n"


def test_a_daemon_that_keeps_the_output_open_is_not_waited_for() -> None:
    daemon = "import os, time; os.fork() or time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {daemon!r}])"
    run_command(python(f"{child}; print(1)"))


def test_ctrl_c_is_not_for_the_command() -> None:
    assert run_command(python("import os; print(os.getsid(0) == os.getpid())")) == "True\n"


@pytest.fixture
def failure(tmp_path: Path) -> Callable[..., str]:
    """What is told of a command that prints something and fails."""

    def run(errors: str, action: str = "up") -> str:
        script = tmp_path / "command"
        script.write_text(f'#!/bin/sh\nprintf "%s" {shlex.quote(errors)} >&2\nexit 3\n')
        script.chmod(0o700)
        with pytest.raises(WireGuardError) as caught:
            run_command([str(script), action])
        told, _, reason = str(caught.value).partition(" failed (3): ")
        assert told == f"{script} {action}"
        return reason

    return run


def test_a_failure_is_told_without_keys_and_echoes(failure: Callable[..., str]) -> None:
    errors = f"[#] ip\nError\n[!] Falling back\n│ box │\n[#] wg {SECRET}\nKey: {SECRET}\nbad file\n"
    assert failure(errors) == "Key: (a key); bad file"
    for part in (SECRET.removesuffix("="), SECRET[:40], f"{SECRET[::2]}{SECRET}"):
        assert failure(f"Key: {part}.\nbad file") == "Key: (a key).; bad file"
    assert failure("") == "it does not say why"


def test_what_the_shell_says_of_a_failure(failure: Callable[..., str]) -> None:
    """As wg-quick 1.0.20210914 printed it, with bash 5.2, where resolvconf is not installed."""
    reason = "/usr/bin/wg-quick: line 32: resolvconf: command not found"
    errors = f"[#] ip link set mtu 1420 up dev nat\n[#] resolvconf -a nat -m 0 -x\n{reason}\n"
    assert failure(f"{errors}[#] ip link delete dev nat\n") == reason


HOOK = f"[#] wg set nat private-key {SECRET}\n"
WARNING = "Warning: `/w/nat.conf' is world accessible"
NOT_MADE = (
    "Unable to access interface: Protocol not supported\n"
    '[#] ip link delete dev nat\nCannot find device "nat"\n'
)
TURN = "[#] ip link add nat\nError: Unknown device type.\n[!] Missing\n│ box │\n"


@pytest.mark.parametrize(
    ("action", "errors", "reason"),
    [
        ("up", HOOK, "it does not say why; "),
        (
            "up",
            f"{HOOK}[#] resolvconf -d nat -f\n[#] ip link delete dev nat",
            "it does not say why; ",
        ),
        ("up", f"{HOOK}{NOT_MADE}", "it does not say why; "),
        ("up", f"{WARNING}\n{HOOK}[#] ip link delete dev nat", f"{WARNING}; "),
        ("up", f"{TURN}{HOOK}[#] ip link delete dev nat", "it does not say why; "),
        ("down", f"[#] ip link delete dev nat\n{HOOK}", "it does not say why; "),
    ],
    ids=["alone", "undone", "nothing-to-undo", "warned", "wireguard-go", "down"],
)
def test_which_command_failed_without_a_word(
    action: str, errors: str, reason: str, failure: Callable[..., str]
) -> None:
    assert failure(errors, action) == f"{reason}the last command: wg set nat private-key (a key)"


def test_what_fails_where_nothing_is_undone(failure: Callable[..., str]) -> None:
    errors = "[#] echo\nBusy\n[#] ip link delete dev nat\nError: not permitted"
    assert failure(errors, "down") == "Error: not permitted"
    errors = "Unable to access interface: No such device\n"
    assert failure(errors, "show") == errors.strip()


def test_a_missing_program() -> None:
    with pytest.raises(WireGuardError, match="wg-nowhere is missing: install wireguard-tools"):
        run_command(["wg-nowhere", "show"])


def test_a_command_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMIT", 0.1)
    with pytest.raises(WireGuardError, match="did not end within"):
        run_command(python("import time; time.sleep(60)"))


def session(script: str) -> subprocess.Popen[bytes]:
    """Start a shell, and wait until it says that it is so far."""
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_what_hangs_can_undo_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wg-quick does; and a shell waits for its command before it runs a trap."""
    monkeypatch.setattr(module, "_GRACE", 30.0)
    command = "sh -c 'echo ready; exec sleep 60'"
    with session(f"trap 'echo undone; exit 7' TERM; {command}; :") as process:
        end_session(process)
        assert process.returncode == 7
        assert process.stdout is not None
        assert process.stdout.read() == b"undone\n"


def test_what_does_not_want_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.05)
    with session("trap '' TERM; echo ready; while :; do sleep 60; done") as process:
        end_session(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        assert process.returncode == -9


def test_no_room_for_what_a_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", full, raising=False)
    with pytest.raises(WireGuardError, match="wg show can't be run: No space left on device"):
        run_command(["wg", "show"])


def test_keys_that_are_printed_get_to_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    script = "import os; print(os.readlink('/proc/self/fd/1'))"
    assert run_command(python(script)).startswith("/memfd:")


def test_what_is_missing_to_make_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert missing_right() == "wg-quick is missing: install wireguard-tools"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing_right() == "wg-quick needs root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert missing_right() is None


@pytest.fixture(params=["run", "nowhere"])
def locks(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the locks are: in a place that all processes share, if there is one to write to."""
    monkeypatch.setattr(module, "_LOCKS", str(tmp_path / request.param))
    (tmp_path / "run").mkdir()
    return str(request.param)


def test_one_at_a_time(locks: str, tmp_path: Path) -> None:
    path = tmp_path / "nat.conf"
    path.touch()
    ours = CONFIGURATION._replace(path=str(path))
    for _ in range(2):
        with held(ours), pytest.raises(WireGuardError, match="another nat-traverse"), held(ours):
            pass
    assert len(list((tmp_path / "run").iterdir())) == (locks == "run")
    path.unlink()
    if locks == "nowhere":
        with pytest.raises(WireGuardError, match="can't be opened: No such file"), held(ours):
            pass


@pytest.mark.parametrize("locks", ["run"], indirect=True)
@pytest.mark.usefixtures("locks")
def test_one_device_that_two_files_describe(tmp_path: Path) -> None:
    one, same, other = (
        CONFIGURATION._replace(path=str(tmp_path / directory / f"{name}.conf"), device=name)
        for directory, name in (("a", "nat"), ("b", "nat"), ("a", "other"))
    )
    refused = pytest.raises(WireGuardError, match="keeps the device nat already")
    with held(one), held(other), refused, held(same):
        pass
