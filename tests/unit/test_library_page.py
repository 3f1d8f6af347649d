"""The examples of the library's page are whole programs that do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from nat_traverse.cli.keygen import run_keygen
from support.ends import PATIENCE, free_ports

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
BLOCK = re.compile(r"^```python (\w+)(?: (one|other))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {(name, role): program for name, role, program in BLOCK.findall(PAGE)}

# What each pair of programs prints; "{port}" is the port of the other side.
SAID = {
    "echo": ("echo: anybody there?\n", ""),
    "datagrams": ("WHAT TIME IS IT?\n", "the other side has left\n"),
    "punch": ("pong from port {port}\n", "the other side has left\n"),
    "observe": ("Opened\nPeerHeard\nConnected\nProven\n", ""),
}


def run(*commands: tuple[str, ...]) -> list[str]:
    """Run programs with their arguments side by side, and return what they print.

    They have to succeed, and to say nothing else.
    """
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", *command],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for command in commands
        ]
        for process in processes:
            stack.callback(process.kill)  # before the end is waited for; nothing, if it has ended
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [errors for _, errors in said] == [""] * len(processes)
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [output for output, _ in said]


def run_pair(name: str, one: tuple[str, ...] = (), other: tuple[str, ...] = ()) -> list[str]:
    """Run both sides of an example with their further arguments."""
    left, right = free_ports()
    said = run(
        (EXAMPLES[name, "one"], f"{left}:127.0.0.1:{right}", *one),
        (EXAMPLES[name, "other"], f"{right}:127.0.0.1:{left}", *other),
    )
    return [text.replace(f"port {right}\n", "port {port}\n") for text in said]


def test_every_example_is_tried() -> None:
    assert PAGE.count("```python") == len(EXAMPLES)
    names = {name for name, _ in EXAMPLES}
    assert names == {*SAID, "keys", "errors", "many"}


@pytest.mark.parametrize("name", SAID)
def test_two_sides(name: str) -> None:
    assert run_pair(name) == list(SAID[name])


def test_keys(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "other")]
    keys = []
    for path in paths:
        with redirect_stdout(StringIO()) as printed:
            assert run_keygen(path) == 0
        keys.append(printed.getvalue().strip())
    said = run_pair("keys", (paths[0], keys[1]), (paths[1], keys[0]))
    assert said == [f"connected with {keys[1]}\nit is me\n", "welcome\n"]


def test_errors() -> None:
    (said,) = run((EXAMPLES["errors", ""],))
    first, second = said.splitlines()
    assert first.startswith("4 no path")
    assert second.startswith("2 ")


def test_many_tunnels() -> None:
    # The page says 200. What a test has to see is that there may be several at a time.
    (said,) = run((EXAMPLES["many", ""], "12"))
    assert said == "12 tunnels\n"
