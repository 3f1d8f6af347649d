from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import wg_device as module
from nat_traverse.carry.wg_device import (
    Device,
    State,
    WireGuardError,
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
    with pytest.raises(WireGuardError, match="the device nat is gone"):
        device(Deaf(interfaces="\n")).look()
    with pytest.raises(WireGuardError, match="no answer"):
        device(Deaf()).look()


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


def test_what_is_missing_to_make_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert missing_right() == "wg-quick is missing: install wireguard-tools"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing_right() == "wg-quick needs root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert missing_right() is None


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "nat.conf"
    path.touch()
    ours = CONFIGURATION._replace(path=str(path))
    for _ in range(2):
        with held(ours), pytest.raises(WireGuardError, match="another nat-traverse"), held(ours):
            pass
    path.unlink()
    with pytest.raises(WireGuardError, match="can't be read: No such file"), held(ours):
        pass
