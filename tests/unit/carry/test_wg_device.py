from __future__ import annotations

import os
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
    from collections.abc import Sequence
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


# -- real commands ---------------------------------------------------------------------------------


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


def test_what_a_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAT_TRAVERSE_SECRET", "hunter2")
    script = "import os; print(os.environ['LOG_LEVEL'], 'NAT_TRAVERSE_SECRET' in os.environ)"
    assert run_command(python(script)) == "silent False\n"
    monkeypatch.setenv("LOG_LEVEL", "verbose")
    assert run_command(python(script)) == "verbose False\n"


def test_a_daemon_that_keeps_the_output_open_is_not_waited_for() -> None:
    daemon = "import os, time; os.fork() or time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {daemon!r}])"
    run_command(python(f"{child}; print(1)"))


def test_ctrl_c_is_not_for_the_command() -> None:
    assert run_command(python("import os; print(os.getsid(0) == os.getpid())")) == "True\n"


def test_a_failure_is_told_without_keys_and_echoes() -> None:
    errors = f"[#] ip\nError\n[!] Falling back\n│ box │\n[#] wg {SECRET}\nKey: {SECRET}\nbad file\n"
    with pytest.raises(WireGuardError) as caught:
        run_command(python(f"import sys; sys.stderr.write({errors!r}); sys.exit(3)"))
    assert str(caught.value).endswith("failed (3): Key: (a key); bad file")
    with pytest.raises(WireGuardError, match=r"failed \(1\): it does not say why"):
        run_command(python("import sys; sys.exit(1)"))


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
