"""Writing to standard error where there may be none."""

from __future__ import annotations

import sys


def write(text: str) -> None:
    """Write to standard error at once. If that is gone, nobody reads it: the exit status tells."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # What is left in its buffer would make Python's own end fail, with status 120.
        sys.stderr = None
