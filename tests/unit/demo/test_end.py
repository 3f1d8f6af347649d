"""One end, with small programs in place of the real one."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from typing import TYPE_CHECKING

from nat_traverse.demo import end as module
from nat_traverse.demo.end import COMMAND, End, Happening
from nat_traverse.demo.stage import Place
from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

PLACE = Place("left", "drop", Endpoint("198.51.100.2", 40000), list)


def with_end(script: str, act: Callable[[End], Awaitable[None]]) -> list[Happening]:
    """Run `script` as the program, and `act` on it; returns what it said."""
    said: list[Happening] = []

    async def main() -> None:
        end = End(PLACE, time.monotonic, said.append)
        await end.start(["sh", "-c", script])
        try:
            async with asyncio.timeout(60):
                await act(end)
        finally:
            await end.stop()

    asyncio.run(main())
    return said


def test_the_program_is_this_one() -> None:
    assert COMMAND[1:4] == ("-P", "-m", "nat_traverse")
    assert "--json" in COMMAND


def test_lines_become_happenings_on_the_clock_of_the_demo() -> None:
    script = """
    echo '{"event": "first", "elapsed": 0.5}' >&2
    echo 'no json' >&2
    echo '[1]' >&2
    echo '{"event": "second", "elapsed": 0.75}' >&2
    """

    async def act(end: End) -> None:
        assert await end.ended() == 0

    before = time.monotonic()
    first, other, another, second = with_end(script, act)
    assert {each.side for each in (first, other, another, second)} == {"left"}
    assert first.event == {"event": "first", "elapsed": 0.5}
    assert other.event == {"event": "output", "text": "no json"}
    assert another.event == {"event": "output", "text": "[1]"}
    # What came without a delay worth mentioning was said the difference apart.
    assert before < first.at < second.at <= first.at + 0.2500001


def test_connected_tells_when() -> None:
    async def act(end: End) -> None:
        at = await end.connected()
        assert at is not None
        assert at <= time.monotonic()
        assert await end.connected() == at

    with_end("""echo '{"event": "connected", "elapsed": 0.1}' >&2; read -r _""", act)


def test_a_program_that_ends_was_never_connected() -> None:
    async def act(end: End) -> None:
        assert await end.connected() is None
        assert await end.ended() == 4

    with_end("exit 4", act)


def test_output_is_counted_and_digested() -> None:
    data = bytes(range(256)) * 4000

    async def act(end: End) -> None:
        assert await end.write(data)
        end.close_input()
        await end.output_ended()
        assert end.received == len(data)
        assert end.digest == hashlib.sha256(data).hexdigest()
        assert end.head == data[:4096]
        assert await end.ended() == 0

    with_end("cat", act)


def test_writing_to_a_program_that_has_ended_is_told() -> None:
    async def act(end: End) -> None:
        await end.ended()
        while await end.write(b"x" * 65536):
            pass

    with_end("exec <&-", act)


def test_stop_ends_a_program_that_waits() -> None:
    async def act(end: End) -> None:
        await end.connected()
        await end.stop()
        assert await end.ended() == -signal.SIGTERM

    with_end("""echo '{"event": "connected", "elapsed": 0}' >&2; exec sleep 1000""", act)


def test_stop_ends_a_program_that_does_not_want_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAVE", 0.1)
    script = """
    trap '' TERM
    echo '{"event": "connected", "elapsed": 0}' >&2
    exec sleep 1000
    """

    async def act(end: End) -> None:
        await end.connected()
        await end.stop()
        assert await end.ended() == -signal.SIGKILL

    with_end(script, act)


def test_stop_before_the_start_does_nothing() -> None:
    async def main() -> None:
        await End(PLACE, time.monotonic, lambda _: None).stop()

    asyncio.run(main())
