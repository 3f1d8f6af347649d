"""How the demo begins and ends; what it shows is tested in `demo`, and for real in the lab."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nat_traverse.cli import demo as module
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.demo import run_demo
from nat_traverse.cli.options import KINDS
from nat_traverse.cli.settings import Demo
from nat_traverse.cli.signals import Signalled
from nat_traverse.demo.outcome import Outcome
from nat_traverse.errors import LocalNetworkError, OutputError
from nat_traverse.lab import Kind, LabError

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = Demo("drop", "drop")


def failing(error: BaseException) -> Callable[..., Outcome]:
    def fail(*_: object) -> Outcome:
        raise error

    return fail


def test_the_kinds_of_the_command_line_are_those_of_the_lab() -> None:
    assert [choice.word for choice in KINDS] == [kind.value for kind in Kind]
    request = parse(["demo"], {})
    assert isinstance(request, Demo)
    assert Kind(request.left) is Kind(request.right) is Kind.DROP


@pytest.mark.parametrize("code", [0, 4, 5])
def test_the_outcome_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Ended(Outcome):
        @property
        def exit_code(self) -> int:
            return code

    monkeypatch.setattr(module, "_run", lambda *_: Ended(None, None, (0, 0)))
    assert run_demo(REQUEST) == code


def test_an_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_run", failing(LabError("the kernel said no")))
    assert run_demo(REQUEST) == 1
    assert capsys.readouterr() == ("", "nat-traverse: the kernel said no\n")
    monkeypatch.setattr(module, "_run", failing(LocalNetworkError("no sockets", errno.EMFILE)))
    assert run_demo(REQUEST) == errno.EMFILE


@pytest.mark.parametrize(
    ("ended", "number"),
    [
        (Signalled(signal.SIGTERM), signal.SIGTERM),
        (KeyboardInterrupt(), signal.SIGINT),
        (BrokenPipeError(), signal.SIGPIPE),
    ],
)
def test_a_signal_ends_the_process_by_itself(
    monkeypatch: pytest.MonkeyPatch, ended: BaseException, number: signal.Signals
) -> None:
    class Died(BaseException):
        pass

    def die(by: signal.Signals) -> None:
        assert by == number
        raise Died

    monkeypatch.setattr(module, "_run", failing(ended))
    monkeypatch.setattr(module, "die_of", die)
    with pytest.raises(Died):
        run_demo(REQUEST)


def test_without_a_standard_output_there_is_no_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run_demo(REQUEST) == errno.EBADF
    assert capsys.readouterr().err.count("\n") == 1


def test_what_could_not_be_written_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.devnull, "w", encoding="utf-8") as out:  # noqa: PTH123 (a name, not a path)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(module, "_run", failing(OutputError("disk full", errno.ENOSPC)))
        assert run_demo(REQUEST) == errno.ENOSPC
        # Occupied by another open file by now, of the same name.
        assert os.fstat(out.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116
    assert capsys.readouterr().err == "nat-traverse: disk full\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_full_disk_is_told_once() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device)
        result = subprocess.run(
            [sys.executable, "-m", "nat_traverse", "demo"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.returncode == errno.ENOSPC
    assert result.stderr.count(b"\n") == 1


def test_help_is_that_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    from nat_traverse.cli import main  # noqa: PLC0415 (the whole command, for this test only)

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["demo", "--help"]) == 0
    assert "--left KIND" in out.getvalue()
