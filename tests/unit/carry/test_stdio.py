"""Standard input and output, by number, whatever Python makes of them."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import stdio
from nat_traverse.carry.stdio import STANDARD_INPUT, STANDARD_OUTPUT, relay_standard_streams
from nat_traverse.errors import ErrnoError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.carry.descriptors import Sink, Source


class Copying:
    """A relay that goes nowhere: what it reads it writes."""

    complete = paused = False

    def __init__(self, source: Source, sink: Sink) -> None:
        self.source, self.sink = source, sink

    async def run(self) -> None:
        buffer = memoryview(bytearray(100))
        readable = asyncio.Event()
        self.source.start(readable.set)
        while not self.source.ended:
            await readable.wait()
            readable.clear()
            size = self.source.readinto(buffer)
            self.sink.write(buffer[: size or 0])
        await self.sink.aclose()

    async def pause(self) -> None:
        raise AssertionError

    def leave(self) -> None:
        raise AssertionError


@contextmanager
def standard_pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Put pipes where standard input and output would be; pytest has those itself."""
    reading, ours = os.pipe()
    theirs, writing = os.pipe()
    monkeypatch.setattr(stdio, "STANDARD_INPUT", reading)
    monkeypatch.setattr(stdio, "STANDARD_OUTPUT", writing)
    yield ours, theirs
    os.close(reading)
    os.close(theirs)


def test_the_relay_is_put_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with standard_pipes(monkeypatch) as (ours, theirs):
        os.write(ours, b"through")
        os.close(ours)
        asyncio.run(relay_standard_streams(Copying))
        assert os.read(theirs, 100) == b"through"
        assert os.read(theirs, 100) == b""  # our output has ended


def test_one_that_is_closed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "STANDARD_INPUT", 1000)
    with pytest.raises(ErrnoError, match="standard input"):
        asyncio.run(relay_standard_streams(Copying))


def test_they_are_known_by_number() -> None:
    assert (STANDARD_INPUT, STANDARD_OUTPUT) == (0, 1)
