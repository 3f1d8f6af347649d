from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import processes
from nat_traverse.carry.processes import Process, descendants, send_signal
from support.lab import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a pipeline of two below it, and one more below that."""
    command = "sleep 1000 | sh -c 'sleep 1000; true'; true"
    with subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True) as process:
        eventually(lambda: len(descendants(process.pid)) == 4, "four processes")
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def test_descendants_are_a_process_and_all_below_it(shell: subprocess.Popen[bytes]) -> None:
    found = descendants(shell.pid)
    assert found[0].number == shell.pid
    assert len({process.number for process in found}) == 4
    assert all(process.is_alive for process in found)
    assert all(process.started is not None for process in found)
    mine = {process.number for process in descendants(os.getpid())}
    assert {process.number for process in found} < mine


def test_several_roots_make_one_list_without_repetitions(shell: subprocess.Popen[bytes]) -> None:
    found = descendants(shell.pid)
    numbers = [process.number for process in found]
    assert sorted(descendants(*numbers)) == sorted(found)
    assert descendants() == []


def test_all_of_them_are_signalled(shell: subprocess.Popen[bytes]) -> None:
    found = descendants(shell.pid)
    send_signal(found, signal.SIGTERM)
    assert shell.wait() == -signal.SIGTERM
    eventually(lambda: not any(process.is_alive for process in found), "the end of all")
    send_signal(found, signal.SIGTERM)  # nobody is left, and nobody else is hit


def test_one_that_nobody_has_waited_for_is_not_alive() -> None:
    with subprocess.Popen(["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE) as child:
        (process,) = descendants(child.pid)
        assert process.is_alive
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert [process.is_alive, descendants(child.pid) == [process]] == [False, True]


def test_another_process_of_the_same_number_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        (process,) = descendants(child.pid)
        assert process.started is not None
        earlier = process._replace(started=process.started - 1)
        assert not earlier.is_alive
        send_signal([earlier], signal.SIGKILL)
        assert process.is_alive
        send_signal([process], signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def test_a_name_with_blanks_and_parentheses_confuses_nobody(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(sys.executable)
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [program, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in {process.number for process in descendants(os.getpid())}
        child.communicate()


def test_one_that_may_not_be_signalled_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    send_signal(descendants(os.getpid()), signal.SIGTERM)


def test_without_proc_there_is_the_process_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        processes, "Path", lambda path: Path(str(path).replace("/proc", str(tmp_path)))
    )
    assert descendants(4711) == [Process(4711, None)]
    assert not Process(4711, None).is_alive
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: signalled.append(arguments))
    send_signal([Process(4711, None)], signal.SIGTERM)
    assert signalled == [(4711, signal.SIGTERM)]
    # What vanishes half-way, or makes no sense, is left out.
    for name, text in (("7", "7 (x) S"), ("8", "8 (y) S one"), ("9", "9 (z) S 4711 " + "0 " * 18)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stat").write_text(text)
    (tmp_path / "10").mkdir()
    (tmp_path / "10" / "stat").symlink_to("gone")
    assert descendants(4711) == [Process(4711, None), Process(9, 0)]
