"""What the soak does to a stream of datagrams, each by itself, though they travel in trains."""

from __future__ import annotations

import random

import pytest
from bench._meddler import OVERTAKERS, Meddling

SIZE = 10


def numbered(first: int, count: int) -> bytes:
    return b"".join(number.to_bytes(SIZE, "big") for number in range(first, first + count))


def send(meddling: Meddling, total: int, train: int) -> list[int]:
    """Send so many datagrams in trains, and return the numbers in the order they go on."""
    out: list[int] = []
    for first in range(0, total, train):
        data = memoryview(numbered(first, min(train, total - first)))
        for piece in meddling.pass_train(data, SIZE):
            out += [
                int.from_bytes(piece[start : start + SIZE], "big")
                for start in range(0, len(piece), SIZE)
            ]
    out += [int.from_bytes(piece, "big") for piece in meddling.release()]
    return out


@pytest.fixture(params=range(3), ids="seed {}".format)
def meddling(request: pytest.FixtureRequest) -> Meddling:
    return Meddling(random.Random(request.param))


def test_clear_weather_leaves_trains_whole(meddling: Meddling) -> None:
    train = memoryview(numbered(0, 40))
    assert meddling.pass_train(train, SIZE) == [train]


def test_a_shorter_last_datagram_stays_as_it_is(meddling: Meddling) -> None:
    meddling.set(0.5, 0)
    train = memoryview(numbered(0, 4) + b"end")
    pieces = meddling.pass_train(train, SIZE)
    kept = sum(map(len, pieces))
    assert kept in {len(train) - SIZE * lost - tail for lost in range(5) for tail in (0, 3)}


def test_lost_is_lost_and_all_else_keeps_its_order(meddling: Meddling) -> None:
    meddling.set(0.1, 0)
    out = send(meddling, 10_000, 48)
    assert out == sorted(set(out))
    assert len(out) == 10_000 - meddling.lost
    # 1,000 on average with a deviation of 30; ten of them are never met.
    assert 700 < meddling.lost < 1300


def test_everything_can_be_lost(meddling: Meddling) -> None:
    meddling.set(1, 0)
    assert send(meddling, 100, 7) == []


@pytest.mark.parametrize("train", [1, 2, 48])
def test_who_is_out_of_order_is_overtaken_by_three(meddling: Meddling, train: int) -> None:
    meddling.set(0, 0.02)
    out = send(meddling, 2_000, train)
    assert sorted(out) == list(range(2_000))
    moved = [
        (number, out.index(number))
        for number, following in zip(out[1:], out, strict=False)
        if number < following
    ]
    assert len(moved) == meddling.reordered or len(moved) == meddling.reordered - 1
    for number, index in moved:
        if index < len(out) - 1:
            assert sum(other > number for other in out[:index]) == OVERTAKERS


def test_the_weather_can_clear_up(meddling: Meddling) -> None:
    meddling.set(1, 0)
    send(meddling, 10, 5)
    meddling.set(0, 0)
    assert send(meddling, 100, 5) == list(range(100))
