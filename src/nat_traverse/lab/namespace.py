"""One network namespace, held open by a process that cannot outlive its owner.

    owner ──pipe──▶ holder (sh, inside the namespace): waits for the end of its standard input
      │                 at the end: kills whatever else runs in the namespace, then exits
      └──nsenter──▶ commands, inside the namespace

A namespace lives as long as a process is in it, and these have no name in the file system. The
holder waits on a pipe whose other end only the owner has, and the kernel closes that however the
owner ends, `kill -9` included. So nothing can be left behind.

With root a namespace is a plain one. Without, the first one comes with a user namespace in which
the user is root, and the others are made inside that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import IO, TYPE_CHECKING

from nat_traverse.errors import NatTraverseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Where Debian keeps ip and nft, and what an ordinary user's PATH lacks there.
_SYSTEM_PATH = "/usr/sbin:/sbin"

# The programs that the lab runs, and the Debian package that brings each.
_TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "nft": "nftables"}

# Seconds for a holder to end after its pipe was closed, before it is killed. It takes milliseconds;
# this is for a machine that swaps.
_CLOSE_LIMIT = 5.0

# rp_filter is copied from the machine's own settings; here nothing may be dropped but by a rule
# that one can read. Redirects would show two hosts behind one gateway a way around it. Duplicate
# address detection would keep an IPv6 address unusable for its first 2 seconds, and addresses in
# the lab cannot collide.
_SETTINGS = """\
cd /proc/sys/net
for where in ipv4/conf/all ipv4/conf/default; do
  echo 0 >$where/rp_filter
  echo 0 >$where/send_redirects
done
[ ! -e ipv6 ] || for where in ipv6/conf/all ipv6/conf/default; do
  echo 0 >$where/accept_dad
  echo 0 >$where/accept_ra
done
"""
_FORWARDING = """\
echo 1 >ipv4/ip_forward
[ ! -e ipv6 ] || echo 1 >ipv6/conf/all/forwarding
"""

# The killing is repeated because a process may fork while the list is being walked.
_HOLD = """\
cd /
ip link set lo up
echo ready
set +e
read -r _
for round in 1 2 3; do
  for process in /proc/[0-9]*; do
    [ "$process" != "/proc/$$" ] && [ "$process/ns/net" -ef "/proc/$$/ns/net" ] &&
      kill -9 "${process#/proc/}"
  done
done 2>/dev/null
"""


class LabError(NatTraverseError):
    """The lab could not be built on this machine; the text says what refused."""


class Namespace:
    """A network namespace and the commands that run in it.

    `inside`, when not root, is the namespace whose user namespace this one shares. Packets are
    forwarded between its links where `forwards` is true. The constructor does not wait for the
    kernel: `await_ready()` does, and raises `LabError` if it refused.
    """

    def __init__(self, *, rootless: bool, inside: Namespace | None, forwards: bool) -> None:
        command = [_tool("unshare"), "--net"]
        if rootless and inside is None:
            command += ["--user", "--map-root-user"]
        command += ["sh", "-e", "-c", _SETTINGS + (_FORWARDING if forwards else "") + _HOLD]
        if inside is not None:
            command = [*inside.enter_user(), "--", *command]
        self._rootless = rootless
        self._holder = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=system_environment(),
            # An interrupt typed at the terminal is for the owner to handle: if it took the network
            # away at once, the owner could not end in order.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process that holds the namespace; `ip link … netns` calls a namespace by it."""
        return self._holder.pid

    def await_ready(self) -> None:
        """Wait until commands can run in the namespace. Raises `LabError`."""
        assert self._holder.stdout is not None  # noqa: S101 (a pipe was asked for)
        if self._holder.stdout.readline():
            return
        assert self._holder.stderr is not None  # noqa: S101 (the same)
        reason = _first_line(self._holder.stderr.read()) or "no reason given"
        raise LabError(f"this kernel or its container forbids network namespaces ({reason})")

    def enter_user(self) -> list[str]:
        """Return the start of a command line that gives it the rights to work on namespaces."""
        enter = [_tool("nsenter")]
        if self._rootless:
            enter += ["--preserve-credentials", f"--user=/proc/{self.pid}/ns/user"]
        return enter

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in the namespace, under one process id."""
        return [*self.enter_user(), f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start `argv` in the namespace; the arguments are those of `subprocess.Popen`.

        The process is killed at the latest when the namespace is closed.
        """
        return subprocess.Popen(
            self.command(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            start_new_session=start_new_session,
            pass_fds=pass_fds,
        )

    def run(
        self, argv: Sequence[str], *, text: str = "", timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` to its end with `text` as its standard input and both outputs captured.

        A failure is not raised; `timeout` seconds raise `subprocess.TimeoutExpired`.
        """
        return subprocess.run(
            self.command(argv),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=system_environment(),
            check=False,
        )

    def release(self) -> None:
        """Let the namespace end, without waiting for it. Nothing can be run in it any more."""
        if self._holder.stdin is not None:
            self._holder.stdin.close()

    def close(self) -> None:
        """Remove the namespace and whatever still runs in it. Closing twice does nothing."""
        self.release()
        try:
            self._holder.wait(_CLOSE_LIMIT)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()


def open_namespaces(forwarding: Sequence[bool]) -> list[Namespace]:
    """Make one namespace per element, which says whether it forwards packets.

    Raises `LabError` when the kernel refuses, with everything removed again.
    """
    rootless = not _can_make_plain_ones()
    opened: list[Namespace] = []
    try:
        for forwards in forwarding:
            inside = opened[0] if rootless and opened else None
            opened.append(Namespace(rootless=rootless, inside=inside, forwards=forwards))
            if rootless and inside is None:
                opened[0].await_ready()  # the others are made inside its user namespace
        for namespace in opened[1 if rootless else 0 :]:
            namespace.await_ready()
    except BaseException:
        close_namespaces(opened)
        raise
    return opened


def close_namespaces(namespaces: Sequence[Namespace]) -> None:
    """Remove several namespaces, all at the same time."""
    for namespace in namespaces:
        namespace.release()
    for namespace in namespaces:
        namespace.close()


def run_scripts(jobs: Iterable[tuple[Namespace, str]]) -> None:
    """Run a shell script in each namespace, all at the same time. Raises `LabError`."""
    started = [
        subprocess.Popen(
            namespace.command(["sh", "-e", "-c", script]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=system_environment(),
        )
        for namespace, script in jobs
    ]
    complaints = [(process.communicate()[1], process.returncode) for process in started]
    for complaint, status in complaints:
        if status:
            reason = _first_line(complaint) or f"exit status {status}"
            raise LabError(f"a part of the lab was refused by this machine ({reason})")


def missing_tool() -> str | None:
    """Return a sentence about the first program that is missing and its package, or None."""
    try:
        for name in _TOOLS:
            _tool(name)
    except LabError as error:
        return str(error)
    return None


def system_environment() -> dict[str, str]:
    """Return this process's environment with the system's directories added to PATH."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"}


def _can_make_plain_ones() -> bool:
    if os.geteuid() != 0:
        return False
    # Root in a container often lacks the privilege, and may still have user namespaces.
    probe = subprocess.run([_tool("unshare"), "--net", "true"], capture_output=True, check=False)
    return probe.returncode == 0


def _tool(name: str) -> str:
    found = shutil.which(name, path=system_environment()["PATH"])
    if found is None:
        raise LabError(f"{name} is missing: apt-get install {_TOOLS[name]}")
    return found


def _first_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().partition("\n")[0]
