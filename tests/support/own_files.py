"""A lab's host with files of its own: programs run there do not see those of the other host."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from support.programs import OURS, PATIENCE, Program
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nat_traverse.lab import Host

# Everything is gone when the shell that holds the mounts ends. /run is where WireGuard's programs
# keep a socket for each device, by its name; both hosts have devices of the same name.
_HOLD = """\
mount -t tmpfs tmpfs /run
mount --bind "$1/hosts" /etc/hosts
shift
while [ $# -gt 0 ]; do
  mount --bind "$1" "$2"
  shift 2
done
echo ready
read -r _
"""

# `nsenter` forgets the working directory.
_ENTER = 'cd "$1" && shift && exec "$@"'


class OwnFiles:
    """The files of one host, in a directory of the test's.

    `names` is what /etc/hosts says, and `directories` are the system's that are the host's own,
    empty at first.
    """

    def __init__(
        self, host: Host, home: Path, names: Mapping[str, str], directories: Sequence[str] = ()
    ) -> None:
        self.host = host
        self.home = home
        home.mkdir()
        lines = ["127.0.0.1 localhost\n::1 localhost\n"]
        lines += [f"{address} {name}\n" for name, address in names.items()]
        (home / "hosts").write_text("".join(lines))
        (home / "hosts").chmod(0o644)
        mounts = []
        for directory in directories:
            own = self.own(directory)
            own.mkdir()
            mounts += [str(own), directory]
        words = [need("unshare", package="util-linux"), "--mount", "sh", "-e", "-c", _HOLD, "sh"]
        self._holder = host.popen(
            [*words, str(home), *mounts], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert self._holder.stdout is not None
            assert self._holder.stdout.readline() == b"ready\n", "no files of its own"
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()

    def own(self, path: str) -> Path:
        """Return where a file of the host's is for the test."""
        directory, _, name = path.removeprefix("/").rpartition("/")
        return self.home / f"{directory.replace('/', '-')}-{name}"

    def start(self, argv: Sequence[str]) -> Program:
        """Start a program with the host's own files; `nat-traverse` is ours."""
        return Program(self._command(argv), self.host, env=self._environment())

    def run(self, argv: Sequence[str]) -> str:
        """Run a program to its end, which has to be a good one; return its standard output."""
        process = self.try_run(argv)
        assert process.returncode == 0, f"{argv}: {process.stdout}{process.stderr}"
        return process.stdout

    def try_run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever that is."""
        return subprocess.run(
            self.host.command(self._command(argv)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **self._environment()},
            check=False,
        )

    def ping(self, address: str) -> None:
        """Wait until there is a way to `address`, and see that it is one."""
        deadline = time.monotonic() + PATIENCE
        while self.try_run(["ping", "-c", "1", "-W", "1", address]).returncode:
            assert time.monotonic() < deadline, f"no way to {address} in {PATIENCE:g} s"
            time.sleep(0.05)  # without the device, ping ends at once
        self.run(["ping", "-c", "3", "-i", "0.2", "-W", "5", address])

    def _command(self, argv: Sequence[str]) -> list[str]:
        enter = [need("nsenter", package="util-linux"), f"--mount=/proc/{self._holder.pid}/ns/mnt"]
        return [*enter, "--", "sh", "-c", _ENTER, "sh", str(self.home), *argv]

    def _environment(self) -> dict[str, str]:
        path = f"{Path(OURS).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return {"PATH": path, "HOME": str(self.home)}


def need_tun() -> None:
    """Go on only where network devices of programs' own can be made."""
    if os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return
    if os.environ.get("CI") or os.geteuid() == 0:
        pytest.fail("/dev/net/tun can't be opened: a VPN needs it (modprobe tun)")
    pytest.skip("/dev/net/tun can't be opened: run the tests as root to see a VPN")
