"""Holds tunnels open with the library, many in one process, and tells its memory.

    python _many.py COUNT FIRST_PORT PEER FIRST_PEER_PORT

Prints a line of JSON when the library is loaded, one when all tunnels are up and each has carried
a line there and back, and one a few idle seconds later: `{"what": ..., "rss": bytes}`. Ends at the
end of its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import nat_traverse

_SECRET = "correct horse battery staple"  # noqa: S105 (nobody is kept out with it)
_AT_ONCE = 10  # tunnels in the making: a proof costs milliseconds, and the peer waits for seconds
_IDLE = 3.0  # s
_PAGE = 1024


def resident() -> int:
    """Return the bytes of memory that this process has in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * _PAGE
    raise AssertionError("Linux always has the line")


def _tell(what: str) -> None:
    print(json.dumps({"what": what, "rss": resident()}), flush=True)


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _hold(stack: AsyncExitStack, target: str, gate: asyncio.Semaphore) -> list[_Ends]:
    """Make a tunnel, and return its streams: asyncio resets one that nobody keeps."""
    async with gate:
        tunnel = await stack.enter_async_context(nat_traverse.connect(target, secret=_SECRET))
        # Each side opens a stream and answers the other's.
        mine = await tunnel.open_stream()
        mine[1].write(b"ping\n")
        other = await tunnel.accept_stream()
        other[1].write(await other[0].readline())
        if await mine[0].readline() != b"ping\n":
            raise ConnectionError("a tunnel does not carry")
        return [mine, other]


async def main() -> None:
    """Make the tunnels, tell, and wait."""
    count, first_port, peer, first_peer_port = sys.argv[1:]
    _tell("loaded")
    gate = asyncio.Semaphore(_AT_ONCE)
    made: list[asyncio.Task[list[_Ends]]] = []
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for index in range(int(count)):
                target = f"{int(first_port) + index}:{peer}:{int(first_peer_port) + index}"
                made.append(group.create_task(_hold(stack, target, gate)))
        _tell("connected")
        await asyncio.sleep(_IDLE)
        _tell("idle")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for _, writer in (ends for task in made for ends in task.result()):
            writer.close()


if __name__ == "__main__":
    asyncio.run(main())
