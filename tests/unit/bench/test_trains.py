"""How bare qh3 groups datagrams, which decides what the tunnel is compared with."""

from __future__ import annotations

from bench._qh3 import _train_starts


def datagrams(*sizes: int) -> list[bytes]:
    return [bytes(size) for size in sizes]


def test_equal_datagrams_and_a_shorter_last_one_are_one_train() -> None:
    assert _train_starts(datagrams(1350, 1350, 1350, 20)) == [0]


def test_nothing_follows_a_shorter_one() -> None:
    assert _train_starts(datagrams(1350, 20, 20, 1350)) == [0, 2, 3]


def test_a_longer_one_begins_a_train() -> None:
    assert _train_starts(datagrams(20, 1350, 1350)) == [0, 1]


def test_a_train_has_so_many_datagrams_and_so_many_bytes_at_most() -> None:
    assert _train_starts(datagrams(*[100] * 130)) == [0, 64, 128]
    assert _train_starts(datagrams(*[1350] * 100)) == [0, 48, 96]


def test_nothing_is_no_train() -> None:
    assert _train_starts([]) == []
