"""A producer and a consumer of bytes that cost next to nothing, so that the relays are measured.

Both move pages with splice(2): the producer out of a file in memory, the consumer into /dev/null.
Neither copies, and each is a thread that is nearly always inside the system call.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress

# The most that an unprivileged pipe may have (fs.pipe-max-size).
_PIPE_SIZE = 1024 * 1024
_FILE_SIZE = 16 * 1024 * 1024
_MOST_AT_ONCE = 1024 * 1024


class Producer(threading.Thread):
    """Writes `size` bytes into the pipe `descriptor`, from the moment it is started.

    Without a size it writes until it is stopped.
    """

    def __init__(self, descriptor: int, size: int = 2**62) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._size = size
        self._stopped = False
        self.started = float("nan")  # seconds of `time.monotonic`
        _enlarge(descriptor)

    def run(self) -> None:
        """Write; ends early when nobody reads any more."""
        file = os.memfd_create("traffic")
        try:
            os.ftruncate(file, _FILE_SIZE)
            for start in range(0, _FILE_SIZE, _MOST_AT_ONCE):
                os.pwrite(file, os.urandom(_MOST_AT_ONCE), start)
            self.started = time.monotonic()
            with suppress(BrokenPipeError):
                self._copy(file)
        finally:
            os.close(file)

    def stop(self) -> None:
        """End after the piece that is being written, which waits as long as the pipe is full."""
        self._stopped = True

    def _copy(self, file: int) -> None:
        left = self._size
        while left and not self._stopped:
            offset = (self._size - left) % _FILE_SIZE
            size = min(left, _FILE_SIZE - offset, _MOST_AT_ONCE)
            left -= os.splice(file, self._descriptor, size, offset_src=offset)


class Consumer(threading.Thread):
    """Counts the bytes that come out of the pipe `descriptor`, until its end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self.count = 0
        self.last = time.monotonic()
        _enlarge(descriptor)

    def run(self) -> None:
        """Count."""
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            while size := os.splice(self._descriptor, null, _MOST_AT_ONCE):
                self.last = time.monotonic()
                self.count += size
        finally:
            os.close(null)


def _enlarge(descriptor: int) -> None:
    with suppress(OSError):  # beyond the user's share: then all contestants have the small one
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
