"""Runs a command and reports the processor time of all processes that come of it.

    python _meter.py REPORT COMMAND...

Perl's nat-traverse forks and does not wait for its child, so the child's time would be in nobody's
account. This process declares itself the reaper of all its descendants (prctl(2), Linux) and adds
up what `wait4` says of each. REPORT receives `{"status": ..., "cpu": seconds}`. SIGTERM is passed
on to the command.

`time_so_far` asks the same of a process that still runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def time_so_far(pid: int) -> float:
    """Return the processor time of a process and all it has started, in seconds.

    Those that have ended count if they were waited for.
    """
    place = Path(f"/proc/{pid}")
    # What comes behind the program's name in parentheses, which may contain anything.
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5)
    threads = (place / "task").glob("*/children")
    children = " ".join(thread.read_text() for thread in threads).split()
    return own / os.sysconf("SC_CLK_TCK") + sum(time_so_far(int(child)) for child in children)


def main() -> None:
    """Run the command line's command to its end, and that of all it has started."""
    report, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    child = os.posix_spawnp(command[0], command, os.environ)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    # Only the command may hold these: their end is how the others learn that it has gone.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    cpu = 0.0
    status = 0
    while True:
        try:
            pid, wait_status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu += usage.ru_utime + usage.ru_stime
        if pid == child:
            status = os.waitstatus_to_exitcode(wait_status)
    Path(report).write_text(json.dumps({"status": status, "cpu": cpu}))


if __name__ == "__main__":
    main()
