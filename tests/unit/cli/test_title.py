"""What other users see of a process; read where `ps` reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nat_traverse.cli import title
from nat_traverse.cli.title import hide_argument

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

# Hides the first argument, says so, and waits for the end of its input.
PROGRAM = """
import sys
from nat_traverse.cli.title import hide_argument
hide_argument(sys.argv[1])
print(ascii(sys.argv[1]), flush=True)
sys.stdin.read()
"""


def seen(*arguments: str) -> list[str]:
    """Return the arguments that are to be seen of a process, behind the program itself."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline().decode().strip()
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.stdin.close()
    assert process.returncode == 0
    assert said == ascii(arguments[0])  # the process itself still knows it
    return [part.decode() for part in line.split(b"\0")[3:-1]]


def test_a_secret_is_overwritten_and_nothing_else() -> None:
    secret = "correct horse (battery)"  # noqa: S105 (an example)
    hidden = "x" * len(secret)
    arguments = ["--secret", secret, f"--secret={secret}", f"-s={secret}", f"{secret}!", "1:h:2"]
    assert seen(secret, *arguments) == [
        hidden,
        "--secret",
        hidden,
        f"--secret={hidden}",
        f"-s={hidden}",
        f"{secret}!",
        "1:h:2",
    ]


def test_letters_of_more_than_one_byte() -> None:
    assert seen("stäple") == ["x" * 7]


@pytest.mark.parametrize("value", ["", "\udcff", chr(0xD800), "a\0b", "not there"])
def test_it_never_raises(value: str) -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    hide_argument(value)
    assert Path("/proc/self/cmdline").read_bytes() == before


@pytest.mark.parametrize("area", [(0, 0), (0, 4096), (1 << 63, 1 << 64), (8, 4)])
def test_not_even_where_nothing_can_be_read(
    monkeypatch: pytest.MonkeyPatch, area: tuple[int, int]
) -> None:
    monkeypatch.setattr(title, "_argument_area", lambda: area)
    hide_argument("words")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), PermissionError(), ValueError(), IndexError()]
)
def test_not_even_without_proc(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def absent() -> tuple[int, int]:
        raise error

    monkeypatch.setattr(title, "_argument_area", absent)
    hide_argument("words")
