"""The environment of the programs that we run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Holds the secret. What we run is not to know how to pass for us: it could print it anywhere.
SECRET_VARIABLE: Final = "NAT_TRAVERSE_SECRET"  # noqa: S105 (the name, not the secret)


def without_secret(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` as others may have it."""
    return {name: text for name, text in environment.items() if name != SECRET_VARIABLE}
