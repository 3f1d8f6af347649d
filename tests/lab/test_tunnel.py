"""The encrypted tunnel through real kernel NATs, with the programs that people use over it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import Sniffer, eventually
from support.programs import OURS, Program, ours
from support.sides import LEFT_PORT, RIGHT_PORT, address, left, right
from support.sshd import ssh_server
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nat_traverse.lab import Host

SECRET = {"NAT_TRAVERSE_SECRET": "four score and seven"}
SAMPLE = 10_000_000  # bytes that are looked at
MARK = b"nobody on the way may read this "


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Kind.DROP, Kind.DROP) as lab:
        yield lab


@contextmanager
def forwarding(
    lab: Lab, *options: str, exposed: tuple[str, ...] = ("any",)
) -> Iterator[tuple[Program, Program]]:
    """Run a left side with these options and a right one that exposes `exposed`."""
    allowed = [f"--expose={each}" for each in exposed]
    to_right = f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}"
    to_left = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
    with (
        ours("--json", *options, to_right, node=lab.left, env=SECRET) as one,
        ours("--json", *allowed, to_left, node=lab.right, env=SECRET) as other,
    ):
        one.event("connected")
        other.event("connected")
        yield one, other


@contextmanager
def web_server(host: Host, directory: Path, port: int) -> Iterator[None]:
    """Serve a directory by HTTP on the host's loopback address."""
    argv = [
        *(sys.executable, "-m", "http.server", "--bind", "127.0.0.1"),
        *("--directory", str(directory), str(port)),
    ]
    with Program(argv, host):
        eventually(lambda: listens(host, port), "a web server")
        yield


def listens(host: Host, port: int) -> bool:
    found = host.run(["ss", "-Hltn", f"sport = :{port}"])
    return bool(found.stdout.strip())


def fetch(host: Host, *arguments: str) -> bytes:
    """Return what curl gets in `host`."""
    argv = [need("curl", package="curl"), "-sS", "--fail", "--max-time", "60", *arguments]
    got = subprocess.run(
        host.command(argv), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert got.returncode == 0, got.stderr
    return got.stdout


class TestStandardStreams:
    def test_a_large_file_under_loss_and_nobody_reads_it_on_the_way(self, tmp_path: Path) -> None:
        size = 100_000_000
        block = MARK * 4096 + random.Random(1).randbytes(1 << 20)
        content = (block * (size // len(block) + 1))[:size]
        (tmp_path / "file").write_bytes(content)
        with (
            Lab(Kind.DROP, Kind.DROP, loss=3) as lab,
            sniffing(lab) as sniffer,
            (tmp_path / "file").open("rb") as source,
            (tmp_path / "got").open("wb") as sink,
            left(lab, stdin=source.fileno()) as one,
            right(lab, stdin=subprocess.DEVNULL, stdout=sink.fileno()) as other,
        ):
            assert one.event("connected")["encrypted"]
            assert (one.wait(), other.wait()) == (0, 0), one.errors + other.errors
            assert lab.counters().left_sent.bytes > size
        got = (tmp_path / "got").read_bytes()
        assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
        assert len(sniffer.sample) >= SAMPLE
        assert MARK not in sniffer.sample
        # Nor does anything come twice, as a block of the file does.
        pieces = [sniffer.sample[at : at + 16] for at in range(0, SAMPLE, 1000)]
        assert len(set(pieces)) > len(pieces) * 0.95

    def test_who_sniffs_would_read_a_plain_tunnel(self, lab: Lab) -> None:
        """The same eyes see the mark where nothing is encrypted, so they can see."""
        with (
            sniffing(lab) as sniffer,
            left(lab, "--plain") as one,
            right(lab, "--plain") as other,
        ):
            one.event("connected")
            one.write(MARK * 1000)
            one.close_input()
            other.close_input()
            assert (one.wait(), other.wait()) == (0, 0)
        assert MARK in sniffer.sample

    def test_each_direction_ends_for_itself(self, lab: Lab) -> None:
        with left(lab) as one, right(lab, "--cmd", "wc -c; echo the end") as other:
            one.event("connected")
            one.write(bytes(100_000))
            one.close_input()
            assert one.wait() == 0
            assert one.output.split() == [b"100000", b"the", b"end"]
            assert other.wait() == 0

    def test_a_command_has_its_status(self, lab: Lab) -> None:
        with left(lab) as one, right(lab, "--cmd", "exit 7") as other:
            one.event("connected")
            assert other.wait() == 7
            one.close_input()
            one.wait()

    def test_keys_prove_who_is_there(self, lab: Lab, tmp_path: Path) -> None:
        keys = {name: keygen(tmp_path / name) for name in ("left", "right")}
        options = {
            name: ("--identity", str(tmp_path / name), "--peer-key", keys[other])
            for name, other in (("left", "right"), ("right", "left"))
        }
        with left(lab, *options["left"]) as one, right(lab, *options["right"]) as other:
            seen = one.event("connected")
            assert (seen["proof"], seen["peer_key"]) == ("keys", keys["right"])
            assert other.event("connected")["peer_key"] == keys["left"]
            one.write(b"hello")
            one.close_input()
            other.close_input()
            assert (one.wait(), other.wait(), other.output) == (0, 0, b"hello")

    def test_without_a_proof_both_see_the_same_code(self, lab: Lab) -> None:
        with left(lab) as one, right(lab) as other:
            code = one.event("code")["code"]
            assert other.event("code")["code"] == code
            assert len(code) == len("123 456")


def sniffing(lab: Lab) -> Sniffer:
    """Listen on the outer side of the left gateway."""
    return Sniffer(lab.left_gateways[0], "wan", limit=SAMPLE)


def keygen(path: Path) -> str:
    made = subprocess.run([OURS, "keygen", path], capture_output=True, check=True, text=True)
    return made.stdout.strip()


class TestForwards:
    def test_forty_downloads_at_once(self, lab: Lab, tmp_path: Path) -> None:
        contents = [random.Random(number).randbytes(1_000_000) for number in range(40)]
        for number, content in enumerate(contents):
            (tmp_path / str(number)).write_bytes(content)
        with (
            web_server(lab.right, tmp_path, 8080),
            forwarding(lab, "-L", "9090:127.0.0.1:8080"),
            ThreadPoolExecutor(len(contents)) as pool,
        ):
            urls = [f"http://127.0.0.1:9090/{number}" for number in range(len(contents))]
            got = list(pool.map(lambda url: fetch(lab.left, url), urls))
        assert got == contents

    def test_the_other_way_round_and_by_socks(self, lab: Lab, tmp_path: Path) -> None:
        (tmp_path / "page").write_bytes(b"the page")
        options = ("-R", "9091:127.0.0.1:8081", "-D", "1080")
        with (
            web_server(lab.left, tmp_path, 8081),
            web_server(lab.right, tmp_path, 8080),
            forwarding(lab, *options) as (one, _),
        ):
            one.event("listening", what="-R 9091:127.0.0.1:8081")
            assert fetch(lab.right, "http://127.0.0.1:9091/page") == b"the page"
            proxy = ("--proxy", "socks5h://127.0.0.1:1080")
            assert fetch(lab.left, *proxy, "http://127.0.0.1:8080/page") == b"the page"

    def test_names_are_asked_for_by_udp(self, lab: Lab) -> None:
        dig = need("dig", package="bind9-dnsutils")
        with (
            Program([sys.executable, "-c", NAME_SERVER], lab.right) as server,
            forwarding(lab, "-L", "udp/5353:127.0.0.1:53"),
        ):
            server.says("ready")
            for name, answer in (("short.example", "192.0.2.7"), ("long.example", "x" * 200)):
                kind = "A" if name.startswith("short") else "TXT"
                argv = [dig, "@127.0.0.1", "-p", "5353", "+bufsize=4096", "+short", name, kind]
                said = lab.left.run(argv)
                assert answer in said.stdout, said.stdout + said.stderr

    def test_unix_sockets(self, lab: Lab, tmp_path: Path) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(there))
            listener.listen()
            with (
                forwarding(lab, "-L", f"{here}:{there}", exposed=(str(there),)) as (one, _),
                socket.socket(socket.AF_UNIX) as client,
            ):
                client.connect(str(here))
                accepted, _ = listener.accept()
                with accepted, accepted.makefile("rb") as arriving:
                    client.sendall(b"there and ")
                    client.shutdown(socket.SHUT_WR)
                    assert arriving.read() == b"there and "
                    accepted.sendall(b"back")
                with client.makefile("rb") as arriving:
                    assert arriving.read() == b"back"
                one.signal(signal.SIGTERM)
                assert one.wait() == -signal.SIGTERM
        assert not here.exists()

    def test_what_is_not_exposed_is_refused_on_both_sides(self, lab: Lab, tmp_path: Path) -> None:
        with (
            web_server(lab.right, tmp_path, 8080),
            forwarding(lab, "-L", "9090:127.0.0.1:8080", exposed=("127.0.0.1:22",)) as sides,
        ):
            got = lab.left.run(["curl", "-sS", "--max-time", "20", "http://127.0.0.1:9090/"])
            assert got.returncode != 0
            for side in sides:
                side.event("forward-refused", reason="not-exposed")


NAME_SERVER = """\
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 53))
print("ready", file=sys.stderr, flush=True)
while True:
    asked, client = sock.recvfrom(4096)
    end = asked.index(b"\\0", 12) + 5
    question = asked[12:end]
    (kind,) = struct.unpack("!H", question[-4:-2])
    if kind == 1:
        records = [b"\\xc0\\x00\\x02\\x07"]
    else:
        records = [b"\\xc8" + b"x" * 200] * 10
    answers = b"".join(
        b"\\xc0\\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data for data in records
    )
    head = asked[:2] + struct.pack("!HHHHH", 0x8400, 1, len(records), 0, 0)
    sock.sendto(head + question + answers, client)
"""


class TestSsh:
    def test_proxy_command(self, lab: Lab, tmp_path: Path) -> None:
        with ssh_server(lab.right, tmp_path) as client:
            secret = tmp_path / "secret"
            secret.write_text("in a file\n")
            secret.chmod(0o600)
            to_left = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
            to_right = f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}"
            proxy = f"{OURS} --quiet --secret-file {secret} {to_right}"
            nc = need("nc", package="netcat-openbsd")
            with ours(
                *("--secret-file", str(secret), "--cmd", f"{nc} 127.0.0.1 22", to_left),
                node=lab.right,
            ) as other:
                said = client(lab.left, "-o", f"ProxyCommand={proxy}")
                # ssh ends its proxy by a signal, and may do so before it has said goodbye.
                assert other.wait() in (0, errno.ECONNRESET), other.errors
        assert said.startswith(b"hello\nas root on ")


class TestMemory:
    def test_a_reader_that_never_reads_stops_the_sender(self, lab: Lab) -> None:
        """A program that never reads its input: the other side's stops within the windows."""
        with (
            left(lab) as one,
            right(lab, "--cmd", "exec sleep 1000", stdin=subprocess.DEVNULL) as other,
        ):
            one.event("connected")
            other.event("running")
            stop = threading.Event()
            written = pour(one, stop)
            eventually(lambda: not written.grows(), "the sender to be stopped")
            stop.set()
            # 16 MiB of window, 16 MiB before the command, pipes and buffers: below 48 MB.
            assert written.total < 48_000_000
            for side in (one, other):
                assert resident(side.process.pid) < 200_000_000


class Poured:
    """How much was written so far."""

    def __init__(self) -> None:
        self.total = 0
        self._looked = -1

    def grows(self) -> bool:
        before, self._looked = self._looked, self.total
        threading.Event().wait(1.0)
        return self.total != before or self.total == 0


def pour(program: Program, stop: threading.Event) -> Poured:
    """Write to a program for as long as it takes more."""
    assert program.process.stdin is not None
    descriptor = program.process.stdin.fileno()
    os.set_blocking(descriptor, False)
    poured = Poured()
    block = bytes(65536)

    def write() -> None:
        while not stop.is_set():
            try:
                poured.total += os.write(descriptor, block)
            except BlockingIOError:
                stop.wait(0.01)
            except OSError:
                return

    threading.Thread(target=write, daemon=True).start()
    return poured


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def has_open(pid: int, most: int) -> bool:
    return open_files(pid) <= most


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


ECHO = """\
import socket
listener = socket.create_server(("127.0.0.1", 8080), backlog=100)
while True:
    accepted, _ = listener.accept()
    accepted.sendall(accepted.recv(100))
    accepted.close()
"""

# Every third one leaves without reading.
CLIENT = """\
import socket, sys
for number in range(int(sys.argv[1])):
    with socket.create_connection(("127.0.0.1", 9090)) as sock:
        sock.sendall(b"x")
        if number % 3:
            assert sock.recv(100) == b"x"
            assert sock.recv(100) == b""
"""


def test_thousands_of_connections_leave_nothing(lab: Lab) -> None:
    """2,000 connections here; 10,000 streams are counted in the unit tests of the tunnel."""
    with ExitStack() as stack:
        stack.enter_context(Program([sys.executable, "-c", ECHO], lab.right))
        eventually(lambda: listens(lab.right, 8080), "the server")
        sides = stack.enter_context(forwarding(lab, "-L", "9090:127.0.0.1:8080"))

        def connect(count: int) -> None:
            with Program([sys.executable, "-c", CLIENT, str(count)], lab.left) as program:
                assert program.wait() == 0, program.errors

        connect(200)
        before = [(open_files(side.process.pid), resident(side.process.pid)) for side in sides]
        connect(2_000)
        for side, (files, memory) in zip(sides, before, strict=True):
            pid = side.process.pid
            eventually(partial(has_open, pid, files), "the files of connections closed")
            assert resident(side.process.pid) < memory + 8_000_000
