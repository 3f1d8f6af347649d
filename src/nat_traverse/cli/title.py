"""Hides a secret from `ps`: whoever is logged in can read the arguments of every process.

The kernel keeps no copy of them. What /proc/PID/cmdline shows is the memory that they were handed
over in, and a process may write there. For a moment at the start the secret is to be seen all the
same, which is why `--secret-file` and the environment exist.
"""

from __future__ import annotations

import os
from typing import Final

# Where /proc/PID/stat has the two ends of that memory, counted from the field behind the name of
# the program, which is field 2 and the only one that may contain spaces and parentheses.
_ARG_START: Final = 48 - 3
_ARG_END: Final = 49 - 3


def hide_argument(value: str) -> None:
    """Overwrite `value` where it is an argument of this process, or what follows a = in one.

    So all of `--secret WORDS`, `--secret=WORDS` and their abbreviations are covered. Never raises:
    where it does not work, and on other systems than Linux, all stays as it was.
    """
    if not value:
        return
    try:
        secret = os.fsencode(value)
        start, end = _argument_area()
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    except (OSError, ValueError, IndexError):
        return
    try:
        _overwrite(memory, start, end, secret)
    except (OSError, OverflowError):
        pass
    finally:
        os.close(memory)


def _argument_area() -> tuple[int, int]:
    """Return the addresses where the arguments begin and end."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 (no path is built here)
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[_ARG_START]), int(fields[_ARG_END])


def _overwrite(memory: int, start: int, end: int, secret: bytes) -> None:
    """Write x over every occurrence of `secret`; each argument ends with a NUL byte."""
    area = os.pread(memory, end - start, start)
    position = start
    for argument in area.split(b"\0"):
        if argument == secret or argument.endswith(b"=" + secret):
            offset = len(argument) - len(secret)
            os.pwrite(memory, b"x" * len(secret), position + offset)
        position += len(argument) + 1
