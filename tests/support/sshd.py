"""A real SSH server in a host of the lab, and a way to log in on it."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.programs import Program
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nat_traverse.lab import Host


@contextmanager
def ssh_server(host: Host, directory: Path) -> Iterator[Callable[..., bytes]]:
    """Run an SSH server on port 22 of `host`, with keys of its own.

    Yields what logs in, as `log_in(from_host, *options)`: it says hello, and returns the answer.
    """
    sshd = need("sshd", package="openssh-server")
    if os.geteuid() != 0:
        pytest.skip("sshd needs root: run the tests as root to see ssh through the tunnel")
    keys = {name: directory / f"{name}-key" for name in ("host", "user")}
    for key in keys.values():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    authorized = directory / "authorized"
    authorized.write_text(keys["user"].with_suffix(".pub").read_text())
    configuration = directory / "sshd_config"
    configuration.write_text(
        f"Port 22\nHostKey {keys['host']}\nAuthorizedKeysFile {authorized}\nStrictModes no\n"
        f"UsePAM no\nPermitRootLogin yes\nPidFile {directory}/pid\n"
    )

    def log_in(from_host: Host, *options: str) -> bytes:
        client = [
            *("ssh", "-i", str(keys["user"]), "-o", "StrictHostKeyChecking=no"),
            *("-o", f"UserKnownHostsFile={directory}/known", "-o", "BatchMode=yes", "-F", "none"),
            *(*options, "root@localhost", "cat; echo as $(id -un) on $SSH_CONNECTION"),
        ]
        said = subprocess.run(
            from_host.command(client),
            input=b"hello\n",
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        return said.stdout

    # What the package's service would have made before starting it.
    script = f'mkdir -p /run/sshd && exec {sshd} -D -e -f "$1"'
    with Program(["sh", "-c", script, "sh", str(configuration)], host) as server:
        server.says("Server listening on")
        yield log_in
