"""A WireGuard device, by way of wg(8) and wg-quick(8): up, down, looked at, and moved to a path."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from nat_traverse.carry.environment import without_secret
from nat_traverse.errors import NatTraverseError
from nat_traverse.target import bracketed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.carry.wireguard import Configuration
    from nat_traverse.model import Endpoint

# s. wg takes milliseconds, wg-quick a tenth of a second; but it may run commands of the user's,
# and ask a name server that does not answer.
_LIMIT: Final = 120.0
# s that a command has to undo what it did, once it is told to end.
_GRACE: Final = 5.0

# Where a device sends to while its ports are ours: this host's own discard port (RFC 863). No
# packet of it may leave then, or the other side's would answer it, and take its port for good.
_NOWHERE: Final = "127.0.0.1:9"

# Where root's locks are. A device's name means something within one network namespace only.
_LOCKS: Final = "/run"
_NAMESPACE: Final = "/proc/self/ns/net"

# The lines of a failure that are shown. wg-quick prints every command before it runs it, and says
# when it turns to wireguard-go, which draws a box. What bash has to say begins with a path.
_TOLD: Final = 3
_PRINTABLE: Final = re.compile(r"[A-Za-z`/]")
_ECHO: Final = "[#] "
_TURN: Final = "[!]"
# What comes after a failure of wg-quick's `up`, and is none: it asks for a device, which is perhaps
# not made yet, and removes it.
_UNDOING: Final = re.compile(
    r"Unable to access interface: |\[#\] (resolvconf -d|ip link delete dev) "
)
# A key, also one that has lost its end; what else is so long is no great loss.
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{40,}=?")

# The columns of `wg show DEVICE dump`, by wg(8): of the device, and of each peer.
_DEVICE_COLUMNS: Final = 4
_PEER_COLUMNS: Final = 8


class WireGuardError(NatTraverseError):
    """A command of WireGuard's has failed, or there is none."""


class GoneError(WireGuardError):
    """The device is not there any more."""


class State(NamedTuple):
    """What a device says of itself and the peer. `endpoint` is as wg spells it.

    `handshake` is in seconds since the epoch, 0 where there was none; `received` in bytes;
    `keepalive` in seconds, 0 for none.
    """

    listen_port: int
    endpoint: str | None
    handshake: int
    received: int
    keepalive: int

    @property
    def is_parked(self) -> bool:
        """True if the device is as `park` leaves it, perhaps of a process that was killed."""
        return self.endpoint == _NOWHERE

    @property
    def peer_address(self) -> str | None:
        """Where the peer was last, None if that is not known."""
        return None if self.endpoint is None or self.is_parked else address(self.endpoint)


NEW: Final = State(0, None, 0, 0, 0)
"""The state of a device that has just been made."""


def parse_dump(text: str, public_key: str) -> State | None:
    """Read what `wg show DEVICE dump` prints; None if it has no such peer.

    Raises WireGuardError, without a word of the text: a private key is in it.
    """
    first, *rows = [line.split("\t") for line in text.splitlines()] or [[]]
    if len(first) != _DEVICE_COLUMNS or any(len(row) != _PEER_COLUMNS for row in rows):
        raise _no_dump()
    try:
        for key, _, endpoint, _, handshake, received, _, keepalive in rows:
            if key == public_key:
                return State(
                    listen_port=int(first[2]),
                    endpoint=None if endpoint == "(none)" else endpoint,
                    handshake=int(handshake),
                    received=int(received),
                    keepalive=0 if keepalive == "off" else int(keepalive),
                )
    except ValueError:
        raise _no_dump() from None
    return None


def _no_dump() -> WireGuardError:
    return WireGuardError("wg show ... dump prints something else than wg(8) says")


class Device:
    """The device of a configuration. Every method waits for its command; raises WireGuardError.

    That may take two minutes, and no method minds in which thread it runs.
    """

    def __init__(
        self,
        configuration: Configuration,
        run: Callable[[Sequence[str]], str] | None = None,
    ) -> None:
        self.name = configuration.device
        self._path = configuration.path
        target = configuration.target
        self._agreed = f"{bracketed(target.peer)}:{target.remote_port}"
        self._agreed_port = target.local_port
        self._keepalive = configuration.keepalive
        self._key = configuration.public_key
        self._run = run_command if run is None else run

    def exists(self) -> bool:
        """Tell whether there is such a WireGuard device."""
        return self.name in self._run(["wg", "show", "interfaces"]).split()

    def look(self) -> State:
        """Return how the device and its peer are doing; raises GoneError if there is none."""
        try:
            dump = self._run(["wg", "show", self.name, "dump"])
        except WireGuardError:
            if self.exists():
                raise
            raise GoneError(f"the device {self.name} is gone") from None
        state = parse_dump(dump, self._key)
        if state is None:
            raise WireGuardError(
                f"the device {self.name} has no peer with the PublicKey of {self._path}. If the"
                f" file has changed since: wg-quick down {self._path}"
            )
        return state

    def up(self) -> None:
        """Make the device, as the user would."""
        self._run(["wg-quick", "up", self._path])

    def down(self) -> None:
        """Remove it again, with whatever else the file says."""
        self._run(["wg-quick", "down", self._path])

    def use(self, local_port: int, remote: Endpoint, keepalive: int) -> None:
        """Have the device use a path; `keepalive` is in seconds."""
        self._set(local_port, spelled(remote), keepalive)

    def keep_open(self, keepalive: int) -> None:
        """Have the device keep its path open that often, in seconds; 0 for never."""
        self.look()  # wg makes a peer that is not there
        words = ["wg", "set", self.name, "peer", self._key]
        self._run([*words, "persistent-keepalive", str(keepalive)])

    def park(self) -> State:
        """Take the device off its port and silence it; return how it was, for `restore`.

        If somebody left it like that, what is returned is what the file says.
        """
        before = self.look()
        if before.is_parked:
            before = before._replace(
                listen_port=self._agreed_port, endpoint=None, keepalive=self._keepalive
            )
        self._set(0, _NOWHERE, 0)
        return before

    def restore(self, before: State) -> None:
        """Undo `park`."""
        self._set(before.listen_port, before.endpoint or self._agreed, before.keepalive)

    def _set(self, local_port: int, endpoint: str, keepalive: int) -> None:
        words = ["wg", "set", self.name]
        # Even the same port means a new socket, and an answer on its way to the old one is lost.
        if local_port != self.look().listen_port:
            words += ["listen-port", str(local_port)]
        words += ["peer", self._key, "endpoint", endpoint]
        self._run([*words, "persistent-keepalive", str(keepalive)])


def spelled(remote: Endpoint) -> str:
    """Return an endpoint as wg(8) takes it."""
    # A link-local address means nothing without the interface (RFC 4007, section 11).
    host = f"{remote.host}%{remote.scope}" if remote.scope else remote.host
    return str(remote._replace(host=host))


def address(endpoint: str) -> str:
    """Return the address of an endpoint that wg(8) spells; a link-local one with its interface."""
    return endpoint.rpartition(":")[0].strip("[]")


@contextmanager
def held(configuration: Configuration) -> Iterator[None]:
    """Refuse to be the second one that keeps this device; raises WireGuardError."""
    file = _lock(configuration)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WireGuardError(
                f"another nat-traverse keeps the device {configuration.device} already"
            ) from None
        yield
    finally:
        os.close(file)


def _lock(configuration: Configuration) -> int:
    """Return the descriptor of the file to be locked; raises WireGuardError.

    It goes by the device, which several files may describe. It stays when its owner ends: one that
    is removed could be one that another process has just opened. Who can't make it locks the file
    that describes the device, which only those can do who can read its keys.
    """
    path = _LOCKS
    try:
        with suppress(PermissionError, FileNotFoundError):  # this is not root, or no usual Linux
            space = os.stat(_NAMESPACE).st_ino  # noqa: PTH116 (a str all the way)
            path = f"{_LOCKS}/nat-traverse-wireguard-{space}-{configuration.device}.lock"
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        path = configuration.path
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WireGuardError(f"{path} can't be opened: {error.strerror}") from None


def missing_right() -> str | None:
    """Return why this user can't bring up a device with wg-quick, or None."""
    if shutil.which("wg-quick") is None:
        return "wg-quick is missing: install wireguard-tools"
    # It would start itself anew with sudo, and ask for a password.
    return None if os.geteuid() == 0 else "wg-quick needs root"


def run_command(words: Sequence[str]) -> str:
    """Run a command of WireGuard's to its end, and return what it printed."""
    try:
        # Not through pipes: a daemon that it starts, such as wireguard-go, would keep them open.
        with _memory() as output, _memory() as errors:
            status = _status(words, output, errors)
            errors.seek(0)
            if status:
                reason = _reason(words, errors.read().decode(errors="replace"))
                raise WireGuardError(f"{_named(words)} failed ({status}): {reason}")
            output.seek(0)
            return output.read().decode(errors="replace")
    except FileNotFoundError:
        raise WireGuardError(f"{words[0]} is missing: install wireguard-tools") from None
    except OSError as error:
        raise WireGuardError(f"{_named(words)} can't be run: {error.strerror}") from None


def _memory() -> BinaryIO:
    """Return a file without a name: in memory, where that is possible, as keys are printed."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("wireguard"), "w+b")
    return tempfile.TemporaryFile()


def _status(words: Sequence[str], output: BinaryIO, errors: BinaryIO) -> int:
    """Run a command and return its status; raises WireGuardError if it takes too long."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        # wireguard-go writes to where we read as long as it lives, which nobody reads and no disk
        # limits, unless it is told to be silent. So the user's own wish can't count.
        env={**without_secret(os.environ), "LOG_LEVEL": "silent"},
        # In a session of its own, so that Ctrl-C does not stop it halfway: it is waited for.
        start_new_session=True,
    )
    try:
        return process.wait(_LIMIT)
    except subprocess.TimeoutExpired:
        end_session(process)
        raise WireGuardError(f"{_named(words)} did not end within {_LIMIT:.0f} s") from None


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with those it has started there, and wait for it.

    wg-quick removes its device then; but only once the command has ended that it waits for.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def _named(words: Sequence[str]) -> str:
    """Return a command's name without its details: `wg set nat`."""
    return " ".join(words[:3])


def _reason(words: Sequence[str], errors: str) -> str:
    """Return the last words of a command, or else which command of its own failed; but no key."""
    runs = _runs(errors)
    while "up" in words[1:2] and _UNDOING.match(runs[-1][0]):
        runs.pop()
    told = _told(runs[-1])
    if not told:
        # What was said before that was a warning, perhaps.
        told = [line for run in runs for line in _told(run)] or ["it does not say why"]
        told += [f"the last command: {run[0].removeprefix(_ECHO)}" for run in runs[1:][-1:]]
    return _KEY.sub("(a key)", "; ".join(told[-_TOLD:]))


def _runs(errors: str) -> list[list[str]]:
    """Return what was printed, apart for each command that was run; the first is before them."""
    lines = [line.strip() for line in errors.splitlines()]
    turns = [number for number, line in enumerate(lines) if line.startswith(_TURN)]
    runs = [[""]]
    for line in lines[turns[-1] if turns else 0 :]:
        if line.startswith(_ECHO) or _UNDOING.match(line):
            runs.append([])
        runs[-1].append(line)
    return runs


def _told(run: list[str]) -> list[str]:
    return [line for line in run if _PRINTABLE.match(line)]
