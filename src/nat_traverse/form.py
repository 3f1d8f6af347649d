"""The form of the one word that says whom to reach; apart, since `--help` needs nothing else."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would double the time that --version takes
if TYPE_CHECKING:
    from typing import Final

FORM: Final = "LOCAL_PORT:PEER:REMOTE_PORT"
EXAMPLE: Final = "40000:gw.example.org:40001"
