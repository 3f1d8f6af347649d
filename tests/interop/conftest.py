"""All tests here need the lab, and those that can't have it say so."""

from __future__ import annotations

import pytest

from support.lab import need_lab


@pytest.fixture(scope="session", autouse=True)
def _lab_can_be_built() -> None:
    need_lab()
