"""Programs that tests compare against: they are required, and their absence is loud."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str, *, package: str) -> str:
    """Return the path of `program`, or fail (in CI and as root) or skip by naming `package`.

    Whoever can install packages has no excuse; anybody else is told exactly what is missing.
    """
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is not None:
        return found
    message = f"{program} is missing, or not for this user to run: apt-get install {package}"
    if os.environ.get("CI") or os.geteuid() == 0:
        pytest.fail(message)
    pytest.skip(message)
