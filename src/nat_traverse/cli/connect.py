"""The tunnel itself: from settings to an exit code, with signals on the way."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from nat_traverse.carry.handoff import Handoff
from nat_traverse.cli.explain import explain
from nat_traverse.cli.plain import PlainBackground, use_plain
from nat_traverse.cli.report import Report, make_report
from nat_traverse.cli.search import punch_settings, watched
from nat_traverse.cli.signals import Signalled, die_of, run_until_signalled
from nat_traverse.errors import NatTraverseError, OtherPortsError
from nat_traverse.session import Hole, NotFoundError, punch
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from nat_traverse.cli.secure import SecureBackground
    from nat_traverse.cli.settings import Connect
    from nat_traverse.target import Target

Background: TypeAlias = "PlainBackground | SecureBackground"
Outcome: TypeAlias = "int | Handoff | Background"


def run(connect: Connect) -> int:
    """Make the tunnel and use it; returns the exit code. Signals end the process by themselves."""
    report = make_report(connect, started=process_start())
    try:
        outcome = run_until_signalled(use(connect, report))
        if isinstance(outcome, Handoff):
            outcome.execute()
        if not isinstance(outcome, int):
            return _go_into_background(outcome, report)
    except Signalled as signalled:
        die_of(signalled.number)
    except BrokenPipeError:
        # Nobody reads our output any more. Like `cat` in a pipeline: no message.
        die_of(signal.SIGPIPE)
    except NatTraverseError as error:
        return tell_failure(error, report)
    return outcome


def tell_failure(error: NatTraverseError, report: Report) -> int:
    """Tell why a run has failed; returns its exit code."""
    if isinstance(error, NotFoundError):
        report.evidence(error.evidence)
        report.explained(explain(error.evidence, report.other_side))
        report.failed(f"{error}.", error.exit_code)
    else:
        report.failed(str(error), error.exit_code)
    return error.exit_code


async def use(connect: Connect, report: Report) -> Outcome:
    """Make the tunnel and use it; what is returned is an exit code, or what remains to be done."""
    if connect.wireguard is not None:
        from nat_traverse.cli.wireguard import use_wireguard  # noqa: PLC0415 (few need it)

        await use_wireguard(connect, connect.wireguard, report)
    if connect.leaves:
        return await _find_ports(connect, report)
    if connect.plain:
        settings = punch_settings(connect, Mode.PLAIN)
        return await use_plain(connect, report, await watched(report, punch, settings))
    from nat_traverse.cli.secure import use_secure  # noqa: PLC0415 (slow to import)

    return await use_secure(connect, report)


async def _find_ports(connect: Connect, report: Report) -> int | Handoff:
    """Find a path for another program."""
    hole = await watched(report, punch, punch_settings(connect, Mode.PORTS))
    try:
        await hole.settle()
        if connect.handoff is not None:
            remote = hole.connected.path.remote
            return Handoff(connect.handoff, hole.socket.local.port, remote)
        if not hole.connected.agreed:
            raise OtherPortsError(_other_ports(hole, report.agreed_port, connect.target))
        return 0
    finally:
        hole.close()


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


def _go_into_background(background: Background, report: Report) -> int:
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
        run_until_signalled(background.go_on(report.observe))
    return 0


def process_start() -> float:
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
