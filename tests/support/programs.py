"""The programs under test, ours and the original, as processes that a test can talk to."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from nat_traverse.lab import Node

# Seconds to wait for what must happen; only a failing test waits that long. The original alone
# takes 20 s for its default window and timeout.
PATIENCE = 60.0

OURS = str(Path(sys.prefix) / "bin" / "nat-traverse")
if b"nat_traverse" not in Path(OURS).read_bytes():
    raise RuntimeError(f"{OURS} is another program: run the tests in the virtual environment")

# Under nohup programs would be started with SIGHUP ignored, and in the background of a shell script
# with SIGINT; ours keeps to that. A handler of ours is not handed down.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def original() -> str:
    """Return the path of nat-traverse 0.7, the Perl program."""
    found = need("nat-traverse", package="nat-traverse")
    if found == OURS:  # our own comes first in an activated environment
        found = "/usr/bin/nat-traverse"
    assert Path(found).exists(), "apt-get install nat-traverse"
    return found


class Program:
    """A process with its standard streams in the test's hands.

    `node` is the lab's node to run it in, or None for this host. `stdin` and `stdout` are "pipe",
    or descriptors; `terminal` gives it a raw pseudo-terminal as standard output, read like a pipe.
    What comes out is collected by threads, so that nothing ever blocks the program.
    """

    def __init__(
        self,
        argv: Sequence[str],
        node: Node | None = None,
        *,
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
        terminal: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        master, slave = pty.openpty() if terminal else (-1, -1)
        if terminal:
            tty.setraw(slave)
            stdout = slave
        environment = {**os.environ, **(env or {})}
        popen: Callable[..., subprocess.Popen[bytes]] = (
            subprocess.Popen if node is None else node.popen
        )
        self.started = time.monotonic()
        self.process = popen(
            self.argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment
        )
        if terminal:
            os.close(slave)
        self.output = b""
        self._errors = b""
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._master = master
        if terminal:
            self._collect(master, is_output=True)
        elif self.process.stdout is not None:
            self._collect(self.process.stdout.fileno(), is_output=True)
        assert self.process.stderr is not None
        self._collect(self.process.stderr.fileno(), is_output=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.close_input()
        if kind is not None:
            # What it said is most of what there is to know about a failure.
            sys.stderr.write(f"--- {' '.join(self.argv)} ({self.process.returncode})\n")
            sys.stderr.write(self.errors)
        for thread in self._threads:
            thread.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if self._master >= 0:
            os.close(self._master)

    @property
    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return self._errors.decode(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The complete lines of `--json` so far."""
        lines = self.errors.split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def event(self, name: str, *, patience: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """Wait for the first event of this name, and with these fields, and return it."""

        def matching() -> Iterator[dict[str, Any]]:
            return (each for each in self.events if wanted.items() <= each.items())

        wanted = {"event": name, **fields}
        self.wait_until(lambda: any(matching()), f"event {wanted}", patience)
        return next(matching())

    def says(self, text: str) -> None:
        """Wait until standard error has `text`."""
        self.wait_until(lambda: text in self.errors, f"{text!r} on standard error")

    def prints(self, size: int) -> bytes:
        """Wait until standard output has at least `size` bytes, and return all."""
        self.wait_until(lambda: len(self.output) >= size, f"{size} bytes of output")
        return self.output

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_input(self) -> None:
        """End its standard input."""
        if self.process.stdin is not None:
            with suppress(OSError):  # it has ended already
                self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for its end and for all of its output; returns the exit status, -n for signal n."""
        status = self.process.wait(patience)
        for thread in self._threads:
            thread.join(PATIENCE)
        return status

    def wait_until(
        self, condition: Callable[[], bool], what: str, patience: float = PATIENCE
    ) -> None:
        """Wait until `condition` holds, looking whenever the program has written something."""
        with self._changed:
            if not self._changed.wait_for(condition, patience):
                raise AssertionError(
                    f"not within {patience:g} s: {what}; got {len(self.output)} bytes of output,"
                    f" status {self.process.poll()}, and:\n{self.errors}"
                )

    def _collect(self, descriptor: int, *, is_output: bool) -> None:
        thread = threading.Thread(target=self._read, args=(descriptor, is_output), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read(self, descriptor: int, is_output: bool) -> None:
        while True:
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # a terminal whose other end is closed
                data = b""
            with self._changed:
                if is_output:
                    self.output += data
                else:
                    self._errors += data
                self._changed.notify_all()
            if not data:
                return


def with_names(names: Path, argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` where /etc/hosts is `names`; needs a lab's node.

    The lab has no name server, so this is how a test gives something a name.
    """
    script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(names), *argv]


def ours(*arguments: str, node: Node | None = None, **options: Any) -> Program:
    """Start our program."""
    return Program([OURS, *arguments], node, **options)


def theirs(*arguments: str, node: Node | None = None, **options: Any) -> Program:
    """Start the original."""
    return Program(["/usr/bin/perl", original(), *arguments], node, **options)
