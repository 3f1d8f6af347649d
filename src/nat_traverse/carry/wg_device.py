"""A WireGuard device, by way of wg(8) and wg-quick(8): up, down, looked at, and moved to a path."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

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

# Where a device sends to while its ports are ours: this host's own discard port (RFC 863). No
# packet of it may leave then, or the other side's would answer it, and take its port for good.
_NOWHERE: Final = "127.0.0.1:9"

# The lines of a failure that are shown. wg-quick prints every command before that, and says when it
# turns to wireguard-go, which draws a box.
_TOLD: Final = 3
_PRINTABLE: Final = re.compile(r"[A-Za-z`]")
_TURN: Final = "[!]"
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{43}=")

# The columns of `wg show DEVICE dump`, by wg(8): of the device, and of each peer.
_DEVICE_COLUMNS: Final = 4
_PEER_COLUMNS: Final = 8


class WireGuardError(NatTraverseError):
    """A command of WireGuard's has failed, or there is none."""


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
    """The device of a configuration. Every method waits for its command; raises WireGuardError."""

    def __init__(
        self,
        configuration: Configuration,
        run: Callable[[Sequence[str]], str] | None = None,
    ) -> None:
        self.name = configuration.device
        self._path = configuration.path
        self._agreed = f"{bracketed(configuration.target.peer)}:{configuration.target.remote_port}"
        self._key = configuration.public_key
        self._run = run_command if run is None else run

    def exists(self) -> bool:
        """Tell whether there is such a WireGuard device."""
        return self.name in self._run(["wg", "show", "interfaces"]).split()

    def look(self) -> State:
        """Return how the device and its peer are doing."""
        try:
            dump = self._run(["wg", "show", self.name, "dump"])
        except WireGuardError:
            if self.exists():
                raise
            raise WireGuardError(f"the device {self.name} is gone") from None
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

    def park(self) -> State:
        """Take the device off its port and silence it; return how it was, for `restore`."""
        before = self.look()
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


@contextmanager
def held(configuration: Configuration) -> Iterator[None]:
    """Refuse to be the second one that keeps this device; raises WireGuardError.

    The file is locked, as it is one a device, and only those can lock it who can read its keys.
    """
    try:
        file = os.open(configuration.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WireGuardError(f"{configuration.path} can't be read: {error.strerror}") from None
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


def missing_right() -> str | None:
    """Return why this user can't bring up a device with wg-quick, or None."""
    if shutil.which("wg-quick") is None:
        return "wg-quick is missing: install wireguard-tools"
    # It would start itself anew with sudo, and ask for a password.
    return None if os.geteuid() == 0 else "wg-quick needs root"


def run_command(words: Sequence[str]) -> str:
    """Run a command of WireGuard's to its end, and return what it printed."""
    # Not through pipes: a daemon that it starts, such as wireguard-go, would keep them open. That
    # one writes to where we read as long as it lives, unless it is told to be silent.
    environment = {"LOG_LEVEL": "silent", **without_secret(os.environ)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            # In a session of its own, so that Ctrl-C does not stop it halfway: it is waited for.
            status = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                start_new_session=True,
                timeout=_LIMIT,
                check=False,
            ).returncode
        except FileNotFoundError:
            raise WireGuardError(f"{words[0]} is missing: install wireguard-tools") from None
        except subprocess.TimeoutExpired:
            raise WireGuardError(f"{_named(words)} did not end within {_LIMIT:.0f} s") from None
        errors.seek(0)
        if status:
            reason = _reason(errors.read().decode(errors="replace"))
            raise WireGuardError(f"{_named(words)} failed ({status}): {reason}")
        output.seek(0)
        return output.read().decode(errors="replace")


def _named(words: Sequence[str]) -> str:
    """Return a command's name without its details: `wg set nat`."""
    return " ".join(words[:3])


def _reason(errors: str) -> str:
    """Return the last words of a command, without the commands it ran and without any key."""
    lines = [line.strip() for line in errors.splitlines()]
    turns = [number for number, line in enumerate(lines) if line.startswith(_TURN)]
    told = [line for line in lines[turns[-1] if turns else 0 :] if _PRINTABLE.match(line)]
    return _KEY.sub("(a key)", "; ".join(told[-_TOLD:])) or "it does not say why"
