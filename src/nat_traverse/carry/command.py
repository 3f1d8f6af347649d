"""A command whose standard input and output are the tunnel.

It runs through the shell, between two pipes. Its end is not always the end of the tunnel: a daemon
goes into the background, exits, and leaves a process behind that goes on talking. As long as
anybody holds the writing end of the pipe, the tunnel stays; the command's status is known already,
so the caller may go into the background as well (`Detached`). With 0.7, which gave the command the
socket itself, the shell's prompt came back then, too.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from nat_traverse.carry.descriptors import Sink, Source
from nat_traverse.carry.environment import without_secret
from nat_traverse.carry.processes import Process, descendants, send_signal

SHELL = "/bin/sh"
_SIGNAL_BASE = 128  # what a shell adds to the number of the signal that ended a command

# A command whose tunnel is gone sees the end of its input. It gets this long (s) to leave by
# itself, the same after SIGTERM, then SIGKILL: what `docker stop` and systemd do, only quicker,
# since a user waits. One more signal to us cuts it short.
_GRACE = 2.0
_LOOK_EVERY = 0.02  # s; nothing announces the end of a process that is not our own child


class Relaying(Protocol):
    """What runs between the tunnel and the command: `Relay`, `StreamRelay`, `DatagramRelay`."""

    complete: bool  # our data ended before the tunnel did
    paused: bool  # `run` returned, or is about to, with the tunnel alive

    async def run(self) -> None:
        """Relay until the tunnel is over."""

    async def pause(self) -> None:
        """Make `run` return while the tunnel lives, with nothing held here."""

    def leave(self) -> None:
        """End the tunnel as soon as the peer has all of our data."""


class MakeRelay(Protocol):
    """Makes a relay between a tunnel and a command that has `grace` seconds to read its input."""

    def __call__(self, source: Source, sink: Sink, *, grace: float) -> Relaying:
        """Return the relay."""
        ...


class Pipes:
    """Our ends of the command's two pipes, and who closes them when."""

    def __init__(self, output: int, input_: int) -> None:
        self._output: int | None = output
        self._input: int | None = input_

    def relay(self, make_relay: MakeRelay) -> tuple[Relaying, Sink]:
        """Return a relay between the tunnel and the command, and the sink it writes to."""
        if self._output is None or self._input is None:
            raise ValueError("the pipes are closed")
        source = Source(self._output, name="the command's output")
        sink = Sink(self._input, name="the command's input")
        return make_relay(source, sink, grace=_GRACE), sink

    def is_held(self) -> bool:
        """Tell whether anybody can still write to us: a pipe without writers is hung up."""
        if self._output is None:
            return False
        poll = select.poll()
        poll.register(self._output, 0)  # a hang-up is reported unasked
        return not poll.poll(0)

    def keep(self, sink: Sink) -> None:
        """Prepare for another relay: if the command's input has ended, another sink stands in."""
        if sink.ended:
            self._input = os.open(os.devnull, os.O_WRONLY)

    def discard(self) -> None:
        """Close both; no sink has had them."""
        for descriptor in (self._input, self._output):
            if descriptor is not None:
                os.close(descriptor)
        self._input = self._output = None

    def close(self, sink: Sink) -> None:
        """Close both, except what `sink` has closed already by ending it."""
        if self._input is not None and not sink.ended:
            os.close(self._input)
        if self._output is not None:
            os.close(self._output)
        self._input = self._output = None


@dataclass(frozen=True, slots=True)
class Detached:
    """The command has exited with `status`; somebody it left behind still uses `pipes`."""

    status: int
    pipes: Pipes


async def run_command(
    command: str, make_relay: MakeRelay, *, packets: bool = False
) -> int | Detached:
    """Run `command` over the tunnel, and return its exit status as a shell gives it.

    With `packets` it gets packet sockets in place of pipes, which keep each of its writes apart.
    Raises what the relay's `run` raises; the command and its children are ended then.
    """
    process, pipes = await _start_whole(command, packets=packets)
    relay, sink = pipes.relay(make_relay)
    relaying = asyncio.ensure_future(relay.run())
    exited = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({relaying, exited}, return_when=asyncio.FIRST_COMPLETED)
        if not relaying.done():
            if pipes.is_held():
                await relay.pause()
                if relay.paused:
                    await relaying
                    pipes.keep(sink)
                    return Detached(_status(await exited), pipes)
            relay.leave()
        await relaying
    except BaseException:
        relaying.cancel()
        with suppress(asyncio.CancelledError, Exception):  # it was raised here already
            await relaying
        pipes.close(sink)
        await _end(process, exited)
        raise
    pipes.close(sink)
    if not relay.complete:
        await _end(process, exited)  # nobody is left to hear what it says
    return _status(await exited)


async def continue_detached(detached: Detached, make_relay: MakeRelay) -> None:
    """Go on relaying for what a detached command left behind; raises what the relay's run does."""
    relay, sink = detached.pipes.relay(make_relay)
    relay.leave()
    try:
        await relay.run()
    finally:
        detached.pipes.close(sink)


async def _start_whole(command: str, *, packets: bool) -> tuple[asyncio.subprocess.Process, Pipes]:
    """Start the command. Cancelled, let it come into being first, so that all of it can be ended.

    asyncio would end the shell alone, and leave what that has started by then to itself.
    """
    starting = asyncio.ensure_future(_start(command, packets=packets))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        process, pipes = await starting
        pipes.discard()
        await _end(process, asyncio.ensure_future(process.wait()))
        raise


async def _start(command: str, *, packets: bool) -> tuple[asyncio.subprocess.Process, Pipes]:
    their_input, our_output, our_input, their_output = _packet_pair() if packets else _pipe_pair()
    try:
        process = await asyncio.create_subprocess_exec(
            *(SHELL, "-c", command),
            stdin=their_input,
            stdout=their_output,
            env=without_secret(os.environ),
        )
    except BaseException:
        os.close(our_input)
        os.close(our_output)
        raise
    finally:
        os.close(their_input)
        os.close(their_output)
    return process, Pipes(our_input, our_output)


def _pipe_pair() -> tuple[int, int, int, int]:
    """Return the command's input, our end of it, our end of its output, and the command's."""
    return *os.pipe(), *os.pipe()


def _packet_pair() -> tuple[int, int, int, int]:
    """Return the same, of sockets that keep packets apart and tell of their end."""
    kind = socket.SOCK_SEQPACKET
    (in_there, in_here), (out_here, out_there) = (
        socket.socketpair(socket.AF_UNIX, kind),
        socket.socketpair(socket.AF_UNIX, kind),
    )
    return in_there.detach(), in_here.detach(), out_here.detach(), out_there.detach()


async def _end(process: asyncio.subprocess.Process, exited: asyncio.Future[int]) -> None:
    """Wait a moment for the command to leave, then make it, with all that it started."""
    # Found before it is gone: afterwards its children belong to somebody else.
    family = set() if exited.done() else set(descendants(process.pid))
    for number in (signal.SIGTERM, signal.SIGKILL):
        if await _is_gone(family, exited):
            return
        family.update(descendants(*(each.number for each in family if each.is_alive)))
        send_signal(family, number)
    await _is_gone(family, exited)


async def _is_gone(family: set[Process], exited: asyncio.Future[int]) -> bool:
    """Tell whether the command and all of `family` leave by themselves in time."""
    deadline = asyncio.get_running_loop().time() + _GRACE
    with suppress(asyncio.CancelledError):  # somebody is in a hurry: no more waiting
        while asyncio.get_running_loop().time() < deadline:
            if exited.done() and not any(process.is_alive for process in family):
                return True
            await asyncio.sleep(_LOOK_EVERY)
    return False


def _status(returncode: int) -> int:
    return _SIGNAL_BASE - returncode if returncode < 0 else returncode
