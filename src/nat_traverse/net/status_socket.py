"""A Unix socket that says how a tunnel is, and sees to it that no two of one name run.

Two files are in a directory that only this user can write to: NAME.lock, which a running tunnel
holds with flock(2), and NAME.sock, which answers each connection with one text and closes it. The
kernel lets go of the lock with the process, however that ends, so whoever has the lock may replace
a socket that was left behind. Who is the last in the directory removes that, too.

A lock that is removed at the end could be one that another process has just opened. So who has got
the lock looks whether it is still the file of that name, and else begins anew.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nat_traverse.errors import ErrnoError

if TYPE_CHECKING:
    from collections.abc import Callable

# Root's directory has those of the system's services below it, each of which has to get through to
# its own; what is in it is closed all the same. Nobody has anything to do in any other user's.
_PASSABLE: Final = 0o711
_PRIVATE: Final = 0o700
_MODE: Final = 0o600
# Times that the directory may vanish under our hands: each takes a tunnel that has just ended.
_ATTEMPTS: Final = 100
_OTHERS_MAY_WRITE: Final = 0o022
# Bytes of an answer that are read at most: one has some hundred, and more if there are forwards.
_LONGEST: Final = 1024 * 1024
_PATH_LIMIT: Final = 107  # bytes (unix(7))


class NameInUseError(ErrnoError):
    """A tunnel of this name runs already; with the number, and so the status, of a port in use."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(
            f"A tunnel {name!r} runs already; its lock is {path}. To see it: nat-traverse status"
            f" {name}",
            errno.EADDRINUSE,
        )


class StatusSocket:
    """The claim to one name, from the moment it is made to `release`.

    Raises NameInUseError, or ErrnoError if the files can't be made.
    """

    def __init__(self, directory: str, name: str) -> None:
        self.path = f"{directory}/{name}.sock"
        self._lock_path = f"{directory}/{name}.lock"
        self._server: asyncio.AbstractServer | None = None
        self._socket: socket.socket | None = None
        if len(os.fsencode(self.path)) > _PATH_LIMIT:
            raise ErrnoError(
                f"Cannot make {self.path}: the path of a socket has at most {_PATH_LIMIT} bytes.",
                errno.ENAMETOOLONG,
            )
        try:
            self._lock = _claimed(directory, self._lock_path, name)
            try:
                self._socket = _listening(self.path)
            except BaseException:
                self.release()
                raise
        except OSError as error:
            number = error.errno or errno.EIO
            where = error.filename or self.path
            raise ErrnoError(f"Cannot make {where}: {os.strerror(number)}.", number) from error

    async def serve(self, answer: Callable[[], bytes]) -> None:
        """Give everybody who connects what `answer` returns, on the event loop that runs now."""
        if self._socket is None:
            raise ValueError("it was released")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Answer(answer), sock=self._socket)

    def release(self) -> None:
        """Remove the files, and let go of the name. A second time does nothing."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._lock >= 0:
            # Still under the lock. Who has given up the right to it leaves them for the next one.
            for path in (self.path, self._lock_path):
                with suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 (a str all the way)
            os.close(self._lock)
            self._lock = -1
            with suppress(OSError):  # others are in it, or it is not this user's to remove
                os.rmdir(os.path.dirname(self.path))  # noqa: PTH106, PTH120 (the same)


def ask(path: str, patience: float) -> bytes | None:
    """Return what the socket `path` answers within `patience` seconds; None if nobody is there.

    A process that is stopped is there, and its answer is empty; so is one that does not end in
    time, or is longer than that of any tunnel.
    """
    deadline = time.monotonic() + patience
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        try:
            sock.connect(path)
        except (TimeoutError, BlockingIOError):  # too many wait for an answer already
            return b""
        except OSError:
            return None
        answer = b""
        try:
            while part := sock.recv(65536):
                answer += part
                left = deadline - time.monotonic()
                if left <= 0 or len(answer) > _LONGEST:
                    return b""
                sock.settimeout(left)
        except OSError:
            return b""
        return answer


class _Answer(asyncio.Protocol):
    """One connection."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._answer())
            transport.close()


def is_own(path: str, user: int) -> bool:
    """Tell whether nobody but `user` can put files into the directory `path`.

    Raises OSError if there is none.
    """
    # Not through a symbolic link, which might be another user's, unless root has made it: systemd
    # does so for services with a user of their own.
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode) and status.st_uid == 0:
        status = os.stat(path)  # noqa: PTH116 (the same)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "", path)
    return status.st_uid == user and not status.st_mode & _OTHERS_MAY_WRITE


def _claimed(directory: str, path: str, name: str) -> int:
    """Return the descriptor of the lock `path`, which is held; its directory is made if need be."""
    user = os.geteuid()
    for _ in range(_ATTEMPTS):
        is_new = _made(directory)
        # Whoever was the last in the directory may remove it at any moment.
        with suppress(FileNotFoundError):
            if is_new and user == 0:
                os.chmod(directory, _PASSABLE)  # noqa: PTH101 (the umask may be anything)
            elif not is_own(directory, user):
                raise ErrnoError(
                    f"Cannot trust the directory {directory}: others than this user may write to"
                    f" it. If it is this user's: chmod go-w {directory}. Else let RUNTIME_DIRECTORY"
                    " name another one.",
                    errno.EACCES,
                )
            return _locked(path, name)
    raise FileNotFoundError(errno.ENOENT, "", directory)


def _made(directory: str) -> bool:
    """Make the directory, unless it is there; tell whether it was made."""
    with suppress(FileExistsError):
        os.mkdir(directory, _PRIVATE)  # noqa: PTH102 (a str all the way)
        return True
    return False


def _locked(path: str, name: str) -> int:
    """Return the descriptor of the lock, which is held; NameInUseError if somebody else has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise NameInUseError(name, path) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # removed by its last owner, between our open and our lock


def _is_at(descriptor: int, path: str) -> bool:
    """Tell whether an open file still has this name."""
    ours = os.fstat(descriptor)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _listening(path: str) -> socket.socket:
    """Return a socket that listens at `path`, and that only this user can connect to."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 (what a process left behind that was killed)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Linux makes the file with the mode of the socket, so there is no moment at which it has
        # another; elsewhere the directory keeps everybody out.
        with suppress(OSError):
            os.fchmod(sock.fileno(), _MODE)
        sock.bind(path)
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock
