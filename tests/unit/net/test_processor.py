"""What a kernel says of its processor, in the words of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nat_traverse.net import processor
from nat_traverse.net.processor import has_aes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

X86 = (
    "processor\t: 0\nmodel name\t: Something aes\nflags\t\t: fpu sse2 {} hypervisor\nbugs\t: aes\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {} crc32\n"
POWER = "processor\t: 0\ncpu\t\t: POWER9\n"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    has_aes.cache_clear()
    yield
    has_aes.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("pclmulqdq ssse3 aes"), True),
        (X86.format("aes"), False),
        (X86.format("pclmulqdq vaes"), False),
        (X86.format("pclmulqdq") + X86.format("pclmulqdq aes"), False),
        (ARM.format("aes pmull sha1"), True),
        (ARM.format("pmull"), False),
        (POWER, False),
        ("", False),
        ("flags\n", False),
        ("flags\t: aes pclmulqdq \udcff", True),
    ],
)
def test_what_the_kernel_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, *, expected: bool
) -> None:
    description = tmp_path / "cpuinfo"
    description.write_text(text, encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr(processor, "_DESCRIPTION", str(description))
    assert has_aes() is expected


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "_DESCRIPTION", str(tmp_path / "missing"))
    assert has_aes() is False


def test_it_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = has_aes()
    monkeypatch.setattr(processor, "_DESCRIPTION", str(tmp_path / "missing"))
    assert has_aes() is before
