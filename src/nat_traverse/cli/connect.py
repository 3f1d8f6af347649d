"""The tunnel itself: from settings to an exit code, with signals on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_traverse.carry.command import Detached, continue_detached, run_command
from nat_traverse.carry.handoff import Handoff
from nat_traverse.carry.stdio import relay_standard_streams
from nat_traverse.cli.explain import explain
from nat_traverse.cli.report import Report, TerminalReport, make_report
from nat_traverse.cli.signals import Signalled, die_of, run_until_signalled
from nat_traverse.errors import NatTraverseError, OtherPortsError
from nat_traverse.punch.settings import Hard
from nat_traverse.session import Hole, NotFoundError, PunchSettings, punch
from nat_traverse.tunnel.plain import PlainTunnel
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.cli.settings import Connect
    from nat_traverse.cli.target import Target

_STATUS_EVERY = 1.0  # s between two states of the live line


@dataclass(frozen=True, slots=True)
class _Background:
    """The command has left a process behind, for which the tunnel has to stay."""

    detached: Detached
    hole: Hole
    tunnel: PlainTunnel


def run(connect: Connect) -> int:
    """Make the tunnel and use it; returns the exit code. Signals end the process by themselves."""
    report = make_report(connect, started=_process_start())
    try:
        outcome = run_until_signalled(_connect(connect, report))
        if isinstance(outcome, Handoff):
            outcome.execute()
        if isinstance(outcome, _Background):
            return _go_into_background(outcome, report)
    except Signalled as signalled:
        die_of(signalled.number)
    except BrokenPipeError:
        # Nobody reads our output any more. Like `cat` in a pipeline: no message.
        die_of(signal.SIGPIPE)
    except NotFoundError as error:
        report.evidence(error.evidence)
        report.explained(explain(error.evidence, report.other_side))
        report.failed(f"{error}.", error.exit_code)
        return error.exit_code
    except NatTraverseError as error:
        report.failed(str(error), error.exit_code)
        return error.exit_code
    return outcome


async def _connect(connect: Connect, report: Report) -> int | Handoff | _Background:
    hole = await _punch(connect, report)
    keep = False
    try:
        if connect.quit_after_connect:
            await hole.settle()
            if not hole.connected.agreed:
                raise OtherPortsError(_other_ports(hole, report.agreed_port, connect.target))
            return 0
        if connect.handoff is not None:
            await hole.settle()
            remote = hole.connected.path.remote
            return Handoff(connect.handoff, hole.socket.local.port, remote)
        loop = asyncio.get_running_loop()
        tunnel = PlainTunnel(
            hole.handshake, hole.connected, loop.time(), room=hole.socket.receive_room
        )
        if connect.cmd is None:
            await relay_standard_streams(hole, tunnel, report.observe)
            return 0
        report.running(connect.cmd)
        status = await run_command(connect.cmd, hole, tunnel, report.observe)
        if isinstance(status, int):
            return status
        keep = True
        return _Background(status, hole, tunnel)
    finally:
        if not keep:
            hole.close()


async def _punch(connect: Connect, report: Report) -> Hole:
    """Find the path, with a live line on a terminal meanwhile."""
    target = connect.target
    settings = PunchSettings(
        local_port=target.local_port,
        peer=target.peer,
        remote_port=target.remote_port,
        timeout=connect.deadline,
        window=connect.window or 0,
        # Whoever leaves the path to another program leaves it two ports, and nothing else.
        mode=Mode.PORTS
        if connect.quit_after_connect or connect.handoff is not None
        else Mode.PLAIN,
        hard=Hard(connect.hard),
        rate=connect.rate,
        ttl=connect.ttl,
        hints=connect.hints,
    )
    showing = asyncio.ensure_future(_show_status(report))
    try:
        return await punch(settings, report.observe)
    finally:
        showing.cancel()
        if isinstance(report, TerminalReport):
            report.clear()


def _other_ports(hole: Hole, local_port: int, target: Target) -> str:
    """Return what the user reads when the path that was found is not between the agreed ports."""
    path, observed = hole.connected.path, hole.connected.observed
    seen = "" if observed is None else f" (the peer sees {observed})"
    return (
        f"A path was found, but not between ports {local_port} here and {target.remote_port} there:"
        f" it leads from port {hole.socket.local.port}{seen} to {path.remote}. The likeliest reason"
        " is a gateway that changes port numbers. Try --handoff, which tells the other program the"
        " ports that do work, or let the tunnel itself carry the data."
    )


async def _show_status(report: Report) -> None:
    while True:
        await asyncio.sleep(_STATUS_EVERY)
        report.waiting()


def _go_into_background(background: _Background, report: Report) -> int:
    """Leave the terminal to its user; a child goes on with the tunnel.

    The event loop has ended, and with it every thread: the one state in which a fork is safe.
    """
    if os.fork():
        # Not through Python's own end: what is open belongs to the child now.
        os._exit(background.detached.status)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    with suppress(NatTraverseError, BrokenPipeError):
        run_until_signalled(_continue(background, report.observe))
    return 0


async def _continue(background: _Background, observe: Callable[..., None]) -> None:
    try:
        await continue_detached(background.detached, background.hole, background.tunnel, observe)
    finally:
        background.hole.close()


def _process_start() -> float:
    """Return when this process started, on time.monotonic's clock, or now if it can't be told.

    Linux tells it in ticks since boot, and counts suspend; a difference of two such times does not.
    """
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
            ticks = int(stat.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):
        age = 0.0
    return time.monotonic() - age
