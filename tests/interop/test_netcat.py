"""The port forward of 0.7's manual: netcat on both ends, used by real ssh and HTTP clients."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import eventually
from support.programs import OURS, Program, ours, with_names
from support.sshd import ssh_server
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nat_traverse.lab import Host


@pytest.fixture
def lab() -> Iterator[Lab]:
    need("nc", package="netcat-openbsd")
    with Lab(Kind.DROP, Kind.DROP) as lab:
        yield lab


@contextlib.contextmanager
def forward(lab: Lab, directory: Path) -> Iterator[None]:
    """Run both commands as the manual gives them; left's TCP port 20000 is right's port 22."""
    to_right = f"10001:{lab.right.public.v4}:10002"
    to_left = f"10002:{lab.left.public.v4}:10001"
    # With -v netcat wants a name for the address it listens on, and ends where it can't ask.
    names = directory / "names"
    names.write_text("127.0.0.1 localhost\n::1 localhost\n0.0.0.0 everywhere\n")
    listening = [OURS, to_right, "--cmd=nc -vl 20000"]
    with (
        Program(with_names(names, listening), lab.left) as left,
        ours(to_left, "--cmd=nc -v localhost 22", node=lab.right) as right,
    ):
        left.says("Listening on")
        right.says("succeeded!")
        yield
        # The client has gone, so both netcats and both ends of the tunnel go, too.
        assert left.wait() == 0
        right.wait()


def listens(host: Host, port: int) -> bool:
    found = host.run(["ss", "-Hltn", f"sport = :{port}"])
    return bool(found.stdout.strip())


def test_http(lab: Lab, tmp_path: Path) -> None:
    need("curl", package="curl")
    page = b"".join(b"line %d of the page\n" % number for number in range(2_000))
    (tmp_path / "page").write_bytes(page)
    server = [sys.executable, "-m", "http.server", "--directory", str(tmp_path), "22"]
    with Program(server, lab.right):
        eventually(lambda: listens(lab.right, 22), "a web server on port 22")
        with forward(lab, tmp_path):
            fetched = subprocess.run(
                lab.left.command(["curl", "-sS", "http://localhost:20000/page"]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
                check=True,
            )
    assert fetched.stdout == page


def test_ssh(lab: Lab, tmp_path: Path) -> None:
    with ssh_server(lab.right, tmp_path) as log_in, forward(lab, tmp_path):
        said = log_in(lab.left, "-p", "20000")
    assert said.startswith(b"hello\nas root on ")
