from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.cli import main, status
from support.programs import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Capture = pytest.CaptureFixture[str]

TOLD: dict[str, Any] = {
    "name": "home",
    "state": "connected",
    "since": 0.0,
    "description": "/etc/nat-traverse/home.toml",
    "target": "40000:gw:40001",
    "peer": "203.0.113.2:40001",
    "local_port": 40000,
    "observed": "198.51.100.2:40000",
    "strategy": "direct",
    "round_trip": 0.0204,
    "last_contact": 3.2,
    "sent": 2048,
    "received": 5_000_000_000,
    "paths": 2,
    "encrypted": True,
    "proof": "secret",
    "code": None,
    "peer_key": None,
    "forwards": [
        {"what": "-L 8080:localhost:80", "address": "localhost:8080"},
        {"what": "--expose any", "address": None},
    ],
    "command": None,
    "problem": None,
    "exit_code": None,
    "pid": 1234,
    "version": "0.8.0",
}


# What else can stand in an answer, which breaks who believes it.
NONSENSE = (
    b'"last_contact": Infinity}',
    b'"last_contact": 1e999}',
    b'"round_trip": NaN}',
    b'"round_trip": ' + b"9" * 400 + b"}",
    b'"forwards": 5}',
    b'"forwards": {"what": 1}}',
    b'"forwards": [1]}',
    b'"since": -1e999}',
    b'"vpn": {"mtu": Infinity}}',
)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(status, "_PATIENCE", 0.2)
    return tmp_path


@contextmanager
def answering(directory: Path, **answers: object) -> Iterator[None]:
    """Tunnels by their names, and what each answers: once, and None for never."""
    listeners = []
    threads = []
    for name, answer in answers.items():
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(directory / f"{name}.sock"))
        listener.listen()
        listeners.append(listener)
        if answer is not None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            threads.append(threading.Thread(target=_answer, args=(listener, data), daemon=True))
            threads[-1].start()
    try:
        yield
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)  # who waits for a connection waits no more
            listener.close()
        for thread in threads:
            thread.join()


def _answer(listener: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # nobody has asked
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(data)


def test_what_a_person_reads(directory: Path, capsys: Capture) -> None:
    told = {**TOLD, "since": time.time() - 7385}
    with answering(directory, home=told):
        assert main(["status"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (
        "tunnel: home\n"
        "  state: connected, for 2 hours, 3 minutes\n"
        "  from: /etc/nat-traverse/home.toml\n"
        "  peer: 203.0.113.2:40001\n"
        "  local port: 40000 (the peer sees 198.51.100.2:40000)\n"
        "  strategy: direct\n"
        "  proven by: secret\n"
        "  round trip: 20.4 ms\n"
        "  last contact: 3 seconds ago\n"
        "  transfer: 4.66 GiB received, 2.00 KiB sent\n"
        "  forward: -L 8080:localhost:80, listening on localhost:8080\n"
        "  forward: --expose any\n"
        "  process: 1234, version 0.8.0\n"
    )


def test_what_there_may_be_besides(directory: Path, capsys: Capture) -> None:
    told = {
        **TOLD,
        "state": "ended",
        "exit_code": 3,
        "problem": "It is\x1b[2J the wrong one.",
        "code": "123456",
        "command": "pppd",
        "vpn": {
            "device": "nat0",
            "addresses": ["10.0.0.1/24", "fd00::1/64"],
            "dropped": {},
            "mtu": None,
        },
    }
    with answering(directory, home=told):
        assert main(["status", "home"]) == 1
    out = capsys.readouterr().out
    assert "  state: ended, for " in out
    assert ", with status 3\n" in out
    assert "  problem: It is\\x1b[2J the wrong one.\n" in out
    assert "  code to compare: 123456\n" in out
    assert "  command: pppd\n" in out
    assert "  vpn: device nat0, addresses 10.0.0.1/24 fd00::1/64, dropped none, mtu none\n" in out


def test_several_stand_apart(directory: Path, capsys: Capture) -> None:
    with answering(directory, one=TOLD, two={**TOLD, "state": "searching-again"}):
        assert main(["status"]) == 1
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("tunnel: one\n")
    assert second.startswith("tunnel: two\n  state: searching again, for ")


def test_json_is_a_list(directory: Path, capsys: Capture) -> None:
    with answering(directory, home=TOLD, other=TOLD):
        assert main(["status", "--json", "home"]) == 0
    assert json.loads(capsys.readouterr().out) == [TOLD]


@pytest.mark.parametrize(
    "answer",
    [
        *(None, b"", b"{", b"[]", b"1", b"{}", b'{"state": 1}', b"\xff", b"[" * 20_000),
        *(b'{"state": "connected", ' + rest for rest in NONSENSE),
    ],
)
def test_one_that_hangs_or_talks_nonsense(
    directory: Path, capsys: Capture, answer: bytes | None
) -> None:
    with answering(directory, home=answer):
        assert main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [{"name": "home", "state": "not-answering"}]


@pytest.mark.parametrize("answer", NONSENSE)
def test_nonsense_is_no_answer_for_people_either(
    directory: Path, capsys: Capture, answer: bytes
) -> None:
    with answering(directory, home=b'{"state": "connected", ' + answer):
        assert main(["status"]) == 1
    assert capsys.readouterr().out == "tunnel: home\n  state: not answering\n"


def test_no_answer_writes_to_a_terminal(directory: Path, capsys: Capture) -> None:
    told = {**TOLD, "\x1b[2J": {"\x1b[3J": "\x1b[4J"}, "strategy": ["\x1b"], "state": "\x1b[m"}
    with answering(directory, home=told):
        assert main(["status"]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_what_wireguard_carries_is_not_counted(directory: Path, capsys: Capture) -> None:
    device = {"device": "nat", "endpoint": "203.0.113.2:1", "handshake_age": 3.5, "received": 7}
    with answering(directory, home={**TOLD, "sent": None, "received": None, "wireguard": device}):
        assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "transfer" not in out
    line = "device nat, endpoint 203.0.113.2:1, handshake_age 3.5, received 7"
    assert f"  wireguard: {line}\n" in out


def test_one_that_hangs_is_told_to_people_too(directory: Path, capsys: Capture) -> None:
    with answering(directory, home=None):
        assert main(["status"]) == 1
    assert capsys.readouterr().out == "tunnel: home\n  state: not answering\n"


def test_what_does_not_run(directory: Path, capsys: Capture) -> None:
    (directory / "killed.sock").write_text("")
    assert main(["status"]) == 3
    assert capsys.readouterr().err == "nat-traverse: No tunnel is running.\n"
    assert main(["status", "--json"]) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("[]\n", "")
    with answering(directory, home=TOLD):
        assert main(["status", "killed", "home", "none"]) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("tunnel: home\n")
    assert captured.err == (
        "nat-traverse: There is no tunnel 'killed' running.\n"
        "nat-traverse: There is no tunnel 'none' running.\n"
    )


def run(
    directory: Path, *words: str, full: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the program, with these of its streams on a full disk."""
    with open("/dev/full", "wb") as device:  # noqa: PTH123 (a device, by its descriptor)
        return subprocess.run(
            [OURS, "status", *words],
            stdout=device if "stdout" in full else subprocess.PIPE,
            stderr=device if "stderr" in full else subprocess.PIPE,
            env={**os.environ, "RUNTIME_DIRECTORY": str(directory), **environment},
            check=False,
        )


def test_a_full_disk(directory: Path) -> None:
    found = run(directory, "--json", full=("stdout",))
    assert found.returncode == errno.ENOSPC
    assert found.stderr == b"nat-traverse: Cannot print the status: No space left on device.\n"
    assert run(directory, "--json", full=("stdout", "stderr")).returncode == errno.ENOSPC


@pytest.mark.parametrize("names", [(), ("none",), ("none", "neither")])
def test_the_exit_status_tells_if_standard_error_does_not(
    directory: Path, names: tuple[str, ...]
) -> None:
    found = run(directory, *names, full=("stderr",))
    assert (found.returncode, found.stdout) == (status.NOT_RUNNING, b"")


def test_letters_that_the_locale_does_not_have(directory: Path) -> None:
    with answering(directory, home={**TOLD, "command": "./wählen '→'"}):
        found = run(directory, PYTHONIOENCODING="latin-1")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"  command: ./w\xe4hlen '\\u2192'\n" in found.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1.9, "1 second"),
        (60, "1 minute"),
        (61, "1 minute, 1 second"),
        (3600, "1 hour"),
        (86_400 + 7200 + 5, "1 day, 2 hours"),
        (400 * 86_400, "400 days"),
    ],
)
def test_periods(seconds: float, text: str) -> None:
    assert status._period(seconds) == text


@pytest.mark.parametrize(
    ("octets", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (5 << 40, "5.00 TiB")],
)
def test_amounts(octets: int, text: str) -> None:
    assert status._amount(octets) == text
