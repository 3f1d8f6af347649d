"""A Linux kernel with what this machine's may lack, for one command: see `uml-run` beside this."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Sequence

_RUNNER = Path(__file__).with_name("uml-run")

# Exit statuses of the runner's own: the time was up; the kernel ended early; it has no kernel.
_RUNNER_FAILED = (124, 125, 127)

# Seconds that the runner itself may take beyond the guest's time, to end it and to clean up.
_GRACE = 30


def run_in_uml(
    command: str | Sequence[str], *arguments: str, timeout: int = 120, out_dir: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, or the text of a bash script with arguments, as root in a guest of its own.

    The guest sees this machine's files read-only, and `out_dir` writable as $OUT. `timeout` is in
    seconds of real time. Fails the test if the guest could not be run to the command's end.
    """
    need("linux.uml", package="user-mode-linux")
    need("modprobe", package="kmod")
    need("ip", package="iproute2")
    script = ["bash", "-euo", "pipefail", "-c", command, "guest"]
    argv = script if isinstance(command, str) else list(command)
    out = [] if out_dir is None else ["--out", str(out_dir)]
    result = subprocess.run(
        [str(_RUNNER), "--timeout", str(timeout), *out, "--", *argv, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout + _GRACE,
        check=False,
    )
    assert result.returncode not in _RUNNER_FAILED, result.stdout + result.stderr
    return result
