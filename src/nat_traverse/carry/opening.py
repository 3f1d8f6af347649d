"""Ways to read and write a descriptor that somebody else also uses, without ever waiting in it.

Whether a read or write waits is a flag of the *file description* (open(2)), and our standard input
and output share theirs with the shell, with the rest of the pipeline and with each other. Setting
O_NONBLOCK there makes `cat` in the same terminal fail with EAGAIN, and a program that was killed
leaves it so. So, in this order:

- a **socket** takes MSG_DONTWAIT with each call;
- a **pipe or terminal** is opened anew through `/proc/self/fd`, which gives a description of our
  own with O_NONBLOCK of its own. Linux only: `/dev/fd` elsewhere is a `dup`, and not every process
  may (a pipe made by another user, no /proc);
- a **regular file** never waits in the sense of poll(2), and neither do devices that cannot be
  polled, such as /dev/null and /dev/zero: they are simply read and written;
- for **anything else**, reading asks poll(2) first, and writing sets O_NONBLOCK after all, and
  takes it back at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

# The most that Linux gives to anybody who asks (fs.pipe-max-size). A pipe of the usual 64 KiB holds
# 50 microseconds of a 10 Gbit/s stream, so both ends would sleep and wake for every one burst.
PIPE_SIZE: Final = 1024 * 1024

_F_SETPIPE_SZ: Final[int | None] = getattr(fcntl, "F_SETPIPE_SZ", None)
_F_GETPIPE_SZ: Final[int | None] = getattr(fcntl, "F_GETPIPE_SZ", None)

# /dev/ptmx. To open that anew makes another terminal instead of another way to the same one.
_PTY_MASTER: Final = os.makedev(5, 2)


_STANDARD_ERROR: Final = 2


class Channel(Protocol):
    """One way to move bytes; both directions raise `BlockingIOError` where they would wait."""

    watched: int  # the descriptor to wait for; -1 if it is always ready

    def readinto(self, view: memoryview) -> int:
        """Read what is there, at most `view`; 0 means that no more will come."""
        ...

    def write(self, buffers: Sequence[memoryview | bytes]) -> int:
        """Write some of `buffers` and return how many bytes."""
        ...

    def close(self) -> None:
        """Give back what was opened or set; the descriptor itself stays as it was."""
        ...


def open_channel(descriptor: int, *, writing: bool) -> Channel:
    """Return the way to use `descriptor`. Raises `OSError` if it is closed."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        return _SocketChannel(descriptor)
    if stat.S_ISFIFO(mode):
        _enlarge_pipe(descriptor)
    if not _can_be_polled(descriptor):
        return _ReadyChannel(descriptor)
    if stat.S_ISFIFO(mode) or _is_terminal(descriptor):
        own = _open_anew(descriptor, os.O_WRONLY if writing else os.O_RDONLY)
        if own is not None:
            return _OwnChannel(descriptor, own)
    return _FlaggedChannel(descriptor) if writing else _PolledChannel(descriptor)


class _ReadyChannel:
    """Regular files, and devices that cannot be polled: they take and give at once."""

    def __init__(self, descriptor: int) -> None:
        self.watched = -1
        self._descriptor = descriptor

    def readinto(self, view: memoryview) -> int:
        return os.readv(self._descriptor, [view])

    def write(self, buffers: Sequence[memoryview | bytes]) -> int:
        return os.writev(self._descriptor, buffers)

    def close(self) -> None:
        pass


class _OwnChannel(_ReadyChannel):
    """A second description of the same pipe or terminal, ours alone and never waiting."""

    def __init__(self, descriptor: int, own: int) -> None:
        super().__init__(own)
        # The original is watched. A named pipe whose last writer has left before we opened it anew
        # never reports the hang-up to the new description, only to the old one.
        self.watched = descriptor

    def close(self) -> None:
        os.close(self._descriptor)


class _PolledChannel(_ReadyChannel):
    """Asks before each read. Waits only if another reader takes the bytes in between."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.watched = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def readinto(self, view: memoryview) -> int:
        if not self._poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().readinto(view)


class _FlaggedChannel(_ReadyChannel):
    """O_NONBLOCK on a shared description, for as long as it is written to."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.watched = descriptor
        self._was_blocking = os.get_blocking(descriptor)
        os.set_blocking(descriptor, False)

    def close(self) -> None:
        if self._was_blocking:
            with suppress(OSError):  # closed by its owner meanwhile
                os.set_blocking(self._descriptor, True)


class _SocketChannel:
    """A socket that is somebody else's: each call for itself says that it won't wait."""

    def __init__(self, descriptor: int) -> None:
        self.watched = descriptor
        self._socket = socket.socket(fileno=os.dup(descriptor))
        # Python ignores SIGPIPE, but only in a process whose main program is Python.
        self._flags = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

    def readinto(self, view: memoryview) -> int:
        return self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)

    def write(self, buffers: Sequence[memoryview | bytes]) -> int:
        return self._socket.sendmsg(buffers, [], self._flags)

    def close(self) -> None:
        self._socket.close()


def end_output(descriptor: int) -> None:
    """Close `descriptor` for writing, so that whoever reads it sees the end.

    A socket is shut down in this direction only. The numbers 0 to 2 stay occupied, by /dev/null:
    the next file opened would otherwise become somebody's standard output. Raises `OSError` for
    what a file system reports only when a file is closed, such as a quota on NFS.
    """
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with socket.socket(fileno=os.dup(descriptor)) as sock, suppress(OSError):
            sock.shutdown(socket.SHUT_WR)  # not connected any more: then the end is known
        return
    os.close(os.dup(descriptor))  # dup2 below would swallow the error
    if descriptor > _STANDARD_ERROR:
        os.close(descriptor)
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)


def is_character_device(descriptor: int) -> bool:
    """Return whether `descriptor` is a terminal, even one that is hung up, or a device like it."""
    return stat.S_ISCHR(os.fstat(descriptor).st_mode)


def _can_be_polled(descriptor: int) -> bool:
    """Return whether an event loop can wait for `descriptor`: epoll refuses what never waits."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return False
    if not hasattr(select, "epoll"):  # kqueue refuses /dev/null and its like with a vague EINVAL
        return not stat.S_ISCHR(mode) or os.isatty(descriptor)
    with select.epoll() as probe:
        try:
            probe.register(descriptor, 0)
        except PermissionError:
            return False
    return True


def _is_terminal(descriptor: int) -> bool:
    return os.isatty(descriptor) and os.fstat(descriptor).st_rdev != _PTY_MASTER


def _open_anew(descriptor: int, access: int) -> int | None:
    """Return a new description of the file behind `descriptor`, or None where that cannot be."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", access | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None


def _enlarge_pipe(descriptor: int) -> None:
    if _F_SETPIPE_SZ is None or _F_GETPIPE_SZ is None:
        return
    # Refused beyond the user's share of pipe memory (pipe-user-pages-soft): then it stays small.
    with suppress(OSError):
        if fcntl.fcntl(descriptor, _F_GETPIPE_SZ) < PIPE_SIZE:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, PIPE_SIZE)
