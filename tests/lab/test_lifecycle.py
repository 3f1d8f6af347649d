"""How a run ends: by signals, hang-ups, full disks, lost peers; and that nothing is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import random
import signal
import socket
import subprocess
import time
import tty
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.lab import Kind, Lab
from nat_traverse.lab.namespace import Namespace, close_namespaces, open_namespaces
from support.ends import free_ports
from support.lab import eventually
from support.leftovers import Mark, can_be_bound
from support.programs import OURS, Program
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nat_traverse.lab import Node

V4 = "127.0.0.1"
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Undo what a shell does to commands in its background, which children would inherit."""
    before = [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


class Stage:
    """Starts programs on two free ports, and sees to it that they leave nothing behind."""

    def __init__(self) -> None:
        self.ports = free_ports()
        self.mark = Mark()
        self._programs = contextlib.ExitStack()

    def start(self, side: int, *options: str, before: tuple[str, ...] = (), **more: Any) -> Program:
        mine, theirs = self.ports[side], self.ports[1 - side]
        argv = [*before, OURS, *options, f"{mine}:{V4}:{theirs}"]
        program = Program(argv, env=self.mark.environment, **more)
        return self._programs.enter_context(program)

    def left(self, *options: str, **more: Any) -> Program:
        return self.start(0, *options, **more)

    def right(self, *options: str, **more: Any) -> Program:
        return self.start(1, *options, **more)

    def connected(self, *options: str, **more: Any) -> tuple[Program, Program]:
        """Start both ends and wait until they have connected; the arguments are the left one's."""
        left, right = self.left("--json", *options, **more), self.right("--json")
        left.event("connected")
        right.event("connected")
        return left, right

    def close(self, *, clean: bool) -> None:
        self._programs.close()
        if clean:
            self.mark.gone()
            assert all(map(can_be_bound, self.ports))


@pytest.fixture
def stage() -> Iterator[Stage]:
    built = Stage()
    try:
        yield built
    except BaseException:
        built.close(clean=False)
        raise
    built.close(clean=True)


def ended(program: Program, status: int) -> str:
    """Wait for the end; returns the message of the error that was told, or nothing."""
    assert program.wait() == status, program.errors
    errors = [event for event in program.events if event["event"] == "error"]
    if not errors:
        return ""
    (error,) = errors
    assert error["exit_code"] == status
    return str(error["message"])


STOPPED = "The other side was stopped, by a signal or an error of its own; see what it says."


class TestSignals:
    @pytest.mark.parametrize("number", ENDING)
    def test_while_waiting(self, stage: Stage, number: signal.Signals) -> None:
        left = stage.left("--json")
        left.event("opened")
        left.signal(number)
        assert ended(left, -number) == ""
        assert left.output == b""

    @pytest.mark.parametrize("number", ENDING)
    def test_while_relaying(self, stage: Stage, number: signal.Signals) -> None:
        left, right = stage.connected()
        left.write(b"before")
        right.prints(6)
        left.signal(number)
        assert ended(left, -number) == ""
        # The other end is told at once, and does not have to find out.
        assert ended(right, errno.ECONNRESET) == STOPPED
        assert right.output == b"before"

    @pytest.mark.parametrize("number", ENDING)
    def test_while_a_command_runs(self, stage: Stage, number: signal.Signals) -> None:
        left, right = stage.connected("--cmd", "cat; true")
        right.write(b"echo")
        right.prints(4)
        left.signal(number)
        assert ended(left, -number) == ""
        assert ended(right, errno.ECONNRESET) == STOPPED

    def test_every_process_of_a_command_ends_with_it(self, stage: Stage) -> None:
        # None heeds the end of its input, some ignore SIGTERM, and one outlives the shell.
        command = "sleep 1000 | (trap '' TERM; sleep 1000; true) | sleep 1000"
        left, right = stage.connected("--cmd", command)
        eventually(lambda: len(stage.mark.processes) >= 2 + 5, "the pipeline")
        left.signal(signal.SIGTERM)
        assert ended(left, -signal.SIGTERM) == ""
        assert ended(right, errno.ECONNRESET) == STOPPED

    def test_a_second_one_is_not_kept_waiting(self, stage: Stage) -> None:
        left, right = stage.connected("--cmd", "trap '' TERM INT; sleep 1000 | sleep 1000")
        eventually(lambda: len(stage.mark.processes) >= 2 + 3, "the pipeline")
        left.signal(signal.SIGINT)
        right.wait()
        while left.process.poll() is None:
            left.signal(signal.SIGINT)
            time.sleep(0.05)  # as fast as a finger
        assert ended(left, -signal.SIGINT) == ""

    @pytest.mark.parametrize("number", ENDING)
    def test_a_shell_sees_128_and_the_number(self, stage: Stage, number: signal.Signals) -> None:
        shell = stage.left("--json", before=("sh", "-c", '"$@"; echo $?', "sh"))
        shell.event("opened")
        (pid,) = set(stage.mark.processes) - {shell.process.pid}
        os.kill(pid, number)
        assert shell.wait() == 0
        assert shell.output == b"%d\n" % (128 + number)

    def test_nohup_keeps_it(self, stage: Stage) -> None:
        left, right = stage.connected(before=("sh", "-c", "trap '' HUP; exec \"$@\"", "sh"))
        left.signal(signal.SIGHUP)
        left.write(b"still here")
        assert right.prints(10) == b"still here"
        left.signal(signal.SIGTERM)
        assert ended(left, -signal.SIGTERM) == ""


class Terminal:
    """A pseudo-terminal; `close` is what closing its window does."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)

    def close(self) -> None:
        for descriptor in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += os.read(self.master, size - len(found))
        return found


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made = [Terminal(), Terminal()]
    yield made
    for terminal in made:
        terminal.close()


class TestTerminals:
    @pytest.mark.parametrize("state", ["waiting", "relaying", "command"])
    def test_one_that_is_closed_ends_it(
        self, stage: Stage, terminals: list[Terminal], state: str
    ) -> None:
        terminal = terminals[0]
        # A session of its own, whose terminal this is: the kernel then tells it of the hang-up.
        session = (need("setsid", package="util-linux"), "--ctty")
        options = ["--cmd", "cat; true"] if state == "command" else []
        streams = {"stdin": terminal.slave, "stdout": terminal.slave}
        if state == "waiting":
            left = stage.left("--json", before=session, **streams)
            left.event("opened")
        else:
            left, right = stage.connected(*options, before=session, **streams)
        terminal.close()
        assert ended(left, -signal.SIGHUP) == ""
        if state != "waiting":
            assert ended(right, errno.ECONNRESET) == STOPPED

    def test_may_be_both_ends_streams(self, stage: Stage, terminals: list[Terminal]) -> None:
        programs = [
            start("--json", stdin=terminal.slave, stdout=terminal.slave)
            for start, terminal in zip((stage.left, stage.right), terminals, strict=True)
        ]
        for program, terminal in zip(programs, terminals, strict=True):
            program.event("connected")
            os.close(terminal.slave)
        data = random.Random(1).randbytes(3000)
        os.write(terminals[0].master, data)
        assert terminals[1].read(len(data)) == data
        os.write(terminals[1].master, data[::-1])
        assert terminals[0].read(len(data)) == data[::-1]
        # Nobody's controlling terminal: without it there is simply no more input.
        for terminal in terminals:
            os.close(terminal.master)
        assert [ended(program, 0) for program in programs] == ["", ""]


class TestOutput:
    def test_a_full_disk(self, stage: Stage) -> None:
        with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device, by its descriptor)
            left, right = stage.connected(stdout=full.fileno())
        right.write(b"x")
        assert ended(left, errno.ENOSPC) == (
            "Cannot write to standard output: No space left on device. Make room and run it again."
        )
        assert ended(right, errno.ECONNRESET) == STOPPED

    def test_a_limit_on_the_size_of_files(self, stage: Stage, tmp_path: Path) -> None:
        limited = ("sh", "-c", f'ulimit -f 1; exec "$@" >{tmp_path}/file', "sh")
        left, right = stage.connected(before=limited)
        right.write(bytes(100_000))
        message = "Cannot write to standard output: File too large."
        assert ended(left, errno.EFBIG) == message
        assert ended(right, errno.ECONNRESET) == STOPPED

    def test_a_reader_that_is_gone(self, stage: Stage) -> None:
        reading, writing = os.pipe()
        left, right = stage.connected(stdout=writing)
        os.close(writing)
        right.write(b"12345")
        assert os.read(reading, 5) == b"12345"
        os.close(reading)
        right.write(b"67890")
        # As `cat` in a pipeline: of the signal, and without a word.
        assert ended(left, -signal.SIGPIPE) == ""
        assert left.events[-1]["event"] == "code"  # the last line of connecting
        assert ended(right, errno.ECONNRESET) == (
            "The other side stopped reading; 5 bytes did not get through."
        )

    def test_nobody_reads_what_it_says(self, stage: Stage, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        # The reader has come and gone before the program starts.
        pipe = tmp_path / "pipe"
        script = f'true <{pipe} & exec 3>{pipe}; wait; exec "$@" 2>&3 3>&-'
        left = stage.left("--verbose", before=("sh", "-c", script, "sh"))
        right = stage.right("--json")
        left.write(b"work goes on")
        left.close_input()
        right.close_input()
        assert ended(right, 0) == ""
        assert left.wait() == 0
        assert right.output == b"work goes on"

    @pytest.mark.parametrize("then", ["finished", "stopped"])
    def test_a_slow_reader_gets_every_byte_that_arrived(self, stage: Stage, then: str) -> None:
        """Of the plain tunnel, which knows what has arrived and not what was read."""
        reading, writing = os.pipe()
        left, right = (
            stage.left("--json", "--plain", stdout=writing),
            stage.right("--json", "--plain"),
        )
        os.close(writing)
        data = random.Random(1).randbytes(5_000_000)
        right.write(data)
        right.close_input()
        # All of it is over there before the first byte is read.
        assert right.event("delivered")["received"] == len(data)
        if then == "finished":
            left.close_input()
            assert ended(right, 0) == ""
        else:
            right.signal(signal.SIGTERM)
            assert ended(right, -signal.SIGTERM) == ""
        found = bytearray()
        while chunk := os.read(reading, 50_000):
            found += chunk
        os.close(reading)
        assert bytes(found) == data
        if then == "finished":
            assert ended(left, 0) == ""
        else:
            assert ended(left, errno.ECONNRESET) == STOPPED

    def test_what_a_slow_reader_has_not_read_is_not_delivered(self, stage: Stage) -> None:
        """The other side is told when all has come out here, and then both end."""
        reading, writing = os.pipe()
        left, right = stage.connected(stdout=writing)
        os.close(writing)
        left.close_input()
        data = random.Random(1).randbytes(5_000_000)
        right.write(data)
        right.close_input()
        found = bytearray()
        while len(found) < len(data):
            if len(found) < len(data) - 2_000_000:  # more than the pipe holds
                assert not any(event["event"] == "delivered" for event in right.events)
            found += os.read(reading, 50_000)
        assert right.event("delivered")["received"] == len(data)
        assert os.read(reading, 1) == b""
        os.close(reading)
        assert bytes(found) == data
        assert (ended(left, 0), ended(right, 0)) == ("", "")

    def test_what_has_come_out_stays_when_the_other_side_is_stopped(self, stage: Stage) -> None:
        left, right = stage.connected()
        data = random.Random(1).randbytes(1_000_000)
        right.write(data)
        assert left.prints(len(data)) == data
        right.signal(signal.SIGTERM)
        assert ended(right, -signal.SIGTERM) == ""
        assert ended(left, errno.ECONNRESET) == STOPPED
        assert left.output == data


class TestInput:
    @pytest.mark.parametrize("size", [0, 1_000_000])
    def test_a_regular_file(self, stage: Stage, tmp_path: Path, size: int) -> None:
        data = random.Random(1).randbytes(size)
        (tmp_path / "file").write_bytes(data)
        with (tmp_path / "file").open("rb") as file:
            left, right = stage.connected(stdin=file.fileno())
        right.close_input()
        assert (ended(left, 0), ended(right, 0)) == ("", "")
        assert right.output == data

    def test_the_null_device_ends_one_direction_only(self, stage: Stage) -> None:
        left, right = stage.connected(stdin=subprocess.DEVNULL)
        right.write(b"0.7 would have left already")
        right.close_input()
        assert (ended(left, 0), ended(right, 0)) == ("", "")
        assert left.output == b"0.7 would have left already"

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
    def test_closed_streams(self, stage: Stage, closed: str) -> None:
        left = stage.left(before=("sh", "-c", f'exec "$@" {closed}', "sh"))
        right = stage.right("--json")
        right.write(b"to nobody" if ">&-" in closed.split() else b"to you")
        right.close_input()
        left.close_input()
        assert left.wait() == 0
        assert ended(right, 0) == ""
        assert left.output == (b"" if ">&-" in closed.split() else b"to you")
        assert right.output == b""


class TestCommands:
    def test_killed(self, stage: Stage) -> None:
        left, right = stage.connected("--cmd", "exec sleep 1000")
        eventually(lambda: len(stage.mark.processes) == 3, "the command")
        (command,) = set(stage.mark.processes) - {left.process.pid, right.process.pid}
        os.kill(command, signal.SIGKILL)
        assert left.wait() == 128 + signal.SIGKILL
        assert ended(right, 0) == ""

    def test_whose_peer_is_stopped(self, stage: Stage) -> None:
        left, right = stage.connected("--cmd", "sleep 1000 | sleep 1000")
        right.signal(signal.SIGTERM)
        assert ended(left, errno.ECONNRESET) == STOPPED
        assert ended(right, -signal.SIGTERM) == ""


class TestThePeer:
    def test_is_killed(self, stage: Stage) -> None:
        left, right = stage.connected()
        right.signal(signal.SIGKILL)
        right.wait()
        # What is sent is refused, and that is believed once it can't be left from before.
        while left.process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                left.write(b"anybody there?\n")
            time.sleep(0.1)  # somebody types
        message = ended(left, errno.ECONNREFUSED)
        assert message.startswith("The other side's port is closed")

    def test_is_cut_off(self) -> None:
        """The network between them is gone, and nothing says so: half a minute, then both end."""
        with Lab(Kind.DROP, Kind.DROP) as lab:
            spec = f"40000:{lab.right.public.v4}:40001", f"40001:{lab.left.public.v4}:40000"
            with (
                Program([OURS, "--json", spec[0]], lab.left) as left,
                Program([OURS, "--json", spec[1]], lab.right) as right,
            ):
                left.event("connected")
                right.event("connected")
                left.write(b"last words")
                assert right.prints(10) == b"last words"
                began = time.monotonic()
                cut(lab.internet[0])
                for program in (left, right):
                    message = ended(program, errno.ETIMEDOUT)
                    assert message.startswith("Nothing has come from the other side for 30 s")
                assert time.monotonic() - began > 29.0


def cut(router: Node) -> None:
    """Drop everything that this router should pass on."""
    chain = "chain forwarded {\ntype filter hook forward priority 0\ncounter drop\n}\n"
    run = router.run(["nft", "-f", "-"], text=f"table inet cut {{\n{chain}}}\n")
    assert run.returncode == 0, run.stderr


@pytest.fixture
def island() -> Iterator[Namespace]:
    """A network namespace that has nothing but its loopback."""
    spaces = open_namespaces([False])
    yield spaces[0]
    close_namespaces(spaces)


class Outcome:
    """A run that is to fail at once."""

    def __init__(self, *words: str) -> None:
        run = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
        assert run.stdout == ""
        assert "Traceback" not in run.stderr
        self.status = run.returncode
        self.text = run.stderr


class TestFailuresAtTheStart:
    """Section 3 of what was observed of 0.7: the error number is the exit status."""

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_port_that_is_in_use(self, shared: bool) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            # 0.7 shared the port with such a holder, and each got some of the datagrams.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(shared))
            holder.bind(("", 0))
            port = holder.getsockname()[1]
            run = Outcome(OURS, f"{port}:{V4}:1")
        assert run.status == errno.EADDRINUSE == 98
        assert f"UDP port {port} is in use" in run.text

    def test_a_port_that_is_not_ours_to_open(self, island: Namespace) -> None:
        setpriv = need("setpriv", package="util-linux")
        # A namespace of its own, where the administrator has not opened the low ports to all.
        dropped = [setpriv, "--bounding-set=-net_bind_service"]
        if os.geteuid() != 0:
            dropped.append("--inh-caps=-net_bind_service")
        run = Outcome(*island.command([*dropped, OURS, f"53:{V4}:40000"]))
        assert run.status == errno.EACCES == 13
        assert "UDP port 53 may not be opened" in run.text

    @pytest.mark.parametrize("peer", ["192.0.2.1", "2001:db8::1"])
    def test_no_route(self, island: Namespace, peer: str) -> None:
        run = Outcome(*island.command([OURS, f"40000:{peer}:40001"]))
        assert run.status == errno.ENETUNREACH == 101
        assert f"No route to {peer}" in run.text

    @pytest.mark.parametrize("peer", ["no.such.host.invalid", "127.0.0.1x"])
    def test_an_unknown_host(self, peer: str, island: Namespace) -> None:
        run = Outcome(*island.command([OURS, f"40000:{peer}:40001"]))
        assert run.status == errno.EINVAL == 22
        assert peer in run.text

    def test_nobody_answers(self) -> None:
        one, other = free_ports()
        run = Outcome(OURS, "--window=1", "--timeout=1", f"{one}:{V4}:{other}")
        assert run.status == 4
        assert "This means: " in run.text
        assert "Try: " in run.text
        assert f"nat-traverse {other}:" in run.text

    def test_nonsense(self) -> None:
        run = Outcome(OURS, "40000:127.0.0.1")
        assert run.status == 2
        assert run.text.startswith("nat-traverse: '40000:127.0.0.1' is not LOCAL_PORT:PEER:REMOTE")
