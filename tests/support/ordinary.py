"""Our program as a user with few rights runs it, wherever the tests' own interpreter lies."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nat_traverse
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOBODY = 65534

# prctl(2), PR_SET_MDWE and PR_MDWE_REFUSE_EXEC_GAIN: as MemoryDenyWriteExecute=. A kernel
# before 6.3 does not know it.
RESTRICTED = """\
import ctypes, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
from nat_traverse.cli import main
sys.exit(main())
"""

# What the program imports besides the standard library, and what that imports.
LIBRARIES = ("qh3", "spake2", "cryptography", "cffi", "_cffi_backend")


def only(*capabilities: str) -> list[str]:
    """Return setpriv's options for a process that has these capabilities, and never gets more."""
    kept = ",".join(["-all", *(f"+{each}" for each in capabilities)])
    options = ["--no-new-privs", f"--bounding-set={kept}", f"--inh-caps={kept}"]
    return [*options, f"--ambient-caps={kept}"] if capabilities else options


@contextmanager
def ordinary(*options: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield how to start Python as nobody, and the environment in which it finds our program.

    `options` are more of setpriv's. Neither the interpreter of the tests nor the sources need to be
    within the reach of nobody: if they are in root's home they are not. Without root's rights to
    give away, it is this user.
    """
    environment = {**os.environ, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    if os.geteuid() != 0:
        yield [sys.executable], environment
        return
    user = [need("setpriv", package="util-linux"), f"--reuid={NOBODY}", f"--regid={NOBODY}"]
    # Through a shell: setpriv itself still has root's rights when it looks for the program.
    user += ["--clear-groups", *options, "sh", "-c", 'exec "$@"', "sh"]
    assert subprocess.check_output([*user, "id", "-u"]).decode().strip() == str(NOBODY)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        source = Path(nat_traverse.__file__).parent
        shutil.copytree(source, Path(directory, "nat_traverse"))
        for library in LIBRARIES:
            _copy_library(library, Path(directory))
        environment["PYTHONPATH"] = directory
        yield [*user, _reachable(user, environment), "-P"], environment


def _copy_library(name: str, directory: Path) -> None:
    """Copy an installed package or module into `directory`."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    origin = Path(found.origin)
    if found.submodule_search_locations:
        shutil.copytree(origin.parent, directory / name)
    else:
        shutil.copy(origin, directory)


def _reachable(user: Sequence[str], environment: dict[str, str]) -> str:
    """Return an interpreter that `user` can run the program with."""
    for python in (sys.executable, need("python3", package="python3")):
        for candidate in (python, os.path.realpath(python), "/usr/bin/python3"):
            probe = subprocess.run(
                [*user, candidate, "-P", "-c", "import nat_traverse.tunnel.quic, spake2"],
                capture_output=True,
                env=environment,
                cwd="/",
                check=False,
            )
            if probe.returncode == 0:
                return candidate
    pytest.fail(
        "no Python 3.11 or newer within the reach of an ordinary user: apt-get install python3"
    )
