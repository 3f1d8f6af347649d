from __future__ import annotations

from dataclasses import replace

import pytest

from nat_traverse.tunnel.transcript import Binding, digest, framed
from support.vectors import BINDING


def test_parts_can_be_told_apart() -> None:
    assert framed(b"x", b"ab", b"c") != framed(b"x", b"a", b"bc")
    assert framed(b"x", b"a") != framed(b"x", b"a", b"")
    assert digest(b"x", b"a") != digest(b"y", b"a")


def test_everything_is_in_the_transcript() -> None:
    hashes = {
        BINDING.transcript(b"1", b"2"),
        BINDING.transcript(b"2", b"1"),
        replace(BINDING, client_nonce=bytes(16)).transcript(b"1", b"2"),
        replace(BINDING, server_nonce=b"\1" * 16).transcript(b"1", b"2"),
        replace(BINDING, client_mode=9).transcript(b"1", b"2"),
        replace(BINDING, server_mode=9).transcript(b"1", b"2"),
        replace(BINDING, fingerprint=bytes(32)).transcript(b"1", b"2"),
    }
    assert len(hashes) == 7


@pytest.mark.parametrize("sizes", [(15, 16, 32), (16, 17, 32), (16, 16, 31)])
def test_a_binding_has_the_lengths_it_has(sizes: tuple[int, int, int]) -> None:
    first, second, third = map(bytes, sizes)
    with pytest.raises(ValueError, match="lengths"):
        Binding(first, second, 1, 1, third)
