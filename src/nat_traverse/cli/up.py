"""`nat-traverse up`: the tunnels that files describe, side by side, until the program is stopped.

Each tunnel is a task of its own: one that ends for good, because the other side is the wrong one or
its command has ended, leaves the others alone. Before anything starts, every description has been
read, with the files of secrets and keys that it names, and every name is taken, so that a mistake
is told at once and nothing is left half done.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING

from nat_traverse.cli import complaint, credentials
from nat_traverse.cli.connect import process_start, tell_failure, use
from nat_traverse.cli.description import read_description
from nat_traverse.cli.monitor import Monitor, State
from nat_traverse.cli.places import find_description, runtime
from nat_traverse.cli.settings import NORMAL
from nat_traverse.cli.signals import Signalled, die_of, run_until_signalled
from nat_traverse.cli.up_report import is_journal, make_up_report
from nat_traverse.errors import ErrnoError, NatTraverseError, UsageError
from nat_traverse.net.notify import VARIABLES, Notifier
from nat_traverse.net.status_socket import StatusSocket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nat_traverse.cli.settings import Connect, Up
    from nat_traverse.cli.up_report import UpReport


def run_up(request: Up) -> int:
    """Run the tunnels; returns the exit code. Signals end the process by themselves.

    0: all have ended as they should; else the status of the first that did not. 2: a description is
    wrong, and other errors of it and of the files that it names; 98: one of them runs already. With
    these, none was started.
    """
    try:
        return run_until_signalled(_Service(_described(request)).run())
    except Signalled as signalled:
        die_of(signalled.number)
    except KeyboardInterrupt:  # outside of the event loop
        die_of(signal.SIGINT)
    except (UsageError, ErrnoError) as error:
        for line in str(error).splitlines():
            _complain(line, error.exit_code, request)
        return error.exit_code


def _complain(line: str, exit_code: int, request: Up) -> None:
    """Tell why nothing was started, as the reports tell of an error."""
    text = f"nat-traverse: {line}"
    if request.json:
        elapsed = round(time.monotonic() - process_start(), 3)
        fields = {"message": line, "exit_code": exit_code, "text": line}
        text = json.dumps({"event": "error", "elapsed": elapsed, **fields})
    complaint.write(f"{'<3>' if is_journal(os.environ) else ''}{text}\n")


def _described(request: Up) -> dict[str, tuple[str, Connect]]:
    """Return the file and the settings of every tunnel, by its name.

    Raises UsageError or ErrnoError with all that is wrong with any of them, and the exit code of
    what is wrong first.
    """
    found: dict[str, tuple[str, Connect]] = {}
    problems: list[UsageError | ErrnoError] = []
    for word in request.names:
        try:
            name, path = find_description(word, os.environ, os.geteuid())
            if name in found:
                problems.append(UsageError(f"{word}: there is another tunnel {name!r} here."))
                continue
            connect = read_description(path, os.environ)
            found[name] = path, _with_wishes(_with_means(connect, path), request)
        except (UsageError, ErrnoError) as error:
            problems.append(error)
    for path, connect in found.values():
        if len(found) > 1 and connect.vpn is not None and connect.vpn.user is not None:
            text = f"{path}: user: the whole process would become it: run this one alone"
            problems.append(UsageError(text))
    if problems:
        raise _together(problems)
    return found


def _together(problems: Sequence[UsageError | ErrnoError]) -> UsageError | ErrnoError:
    """Return one error that says what all of them say."""
    first, text = problems[0], "\n".join(map(str, problems))
    return ErrnoError(text, first.errno) if isinstance(first, ErrnoError) else UsageError(text)


def _with_means(connect: Connect, path: str) -> Connect:
    """Return the settings with what the secrets and keys are; their files may be pipes: read once.

    Raises UsageError and ErrnoError for those that can't be used.
    """
    if connect.is_plain:  # WireGuard has its own
        return connect
    given = connect.secret, connect.secret_file, os.environ, connect.identity, connect.peer_keys
    try:
        return connect._replace(means=credentials.means(*given))
    except ErrnoError as error:
        raise ErrnoError(f"{path}: {error}", error.errno) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _with_wishes(connect: Connect, request: Up) -> Connect:
    """Return the settings with what the command line says about how it talks."""
    verbosity = connect.verbosity if request.verbosity == NORMAL else request.verbosity
    return connect._replace(verbosity=verbosity, json=connect.json or request.json)


class _Service:
    """All tunnels of this process, and what its service manager is told of them."""

    def __init__(self, described: Mapping[str, tuple[str, Connect]]) -> None:
        self._directory = runtime(os.environ, os.geteuid())
        self._notifier = Notifier(os.environ, os.getpid())
        started = process_start()
        self._tunnels: list[_Tunnel] = []
        self._failures: list[int] = []
        self._is_ready = False
        for name, (path, connect) in described.items():
            where = os.path.abspath(path)  # noqa: PTH100 (who asks may be in another directory)
            monitor = Monitor(name, where, connect)
            report = make_up_report(
                connect, os.environ, started=started, monitor=monitor, changed=self._tell
            )
            self._tunnels.append(_Tunnel(connect, report))
        for variable in VARIABLES:
            os.environ.pop(variable, None)  # a command that is run is not this service

    async def run(self) -> int:
        """Run them all; returns the exit code. Raises ErrnoError if a name can't be had.

        The names are claimed here, where a signal is waited for, so that none ends the process with
        their files left behind.
        """
        with ExitStack() as stack:
            claims: list[StatusSocket] = []
            for tunnel in self._tunnels:
                claims.append(StatusSocket(self._directory, tunnel.report.monitor.name))
                stack.callback(claims[-1].release)
            for tunnel, claim in zip(self._tunnels, claims, strict=True):
                await claim.serve(tunnel.answer)
            return await self._run()

    async def _run(self) -> int:
        watching = asyncio.ensure_future(self._watch())
        tasks: list[asyncio.Task[int]] = []
        try:
            self._tell()
            tasks += [asyncio.ensure_future(tunnel.run()) for tunnel in self._tunnels]
            for ending in asyncio.as_completed(tasks):
                status = await ending
                if status:
                    self._failures.append(status)
            return self._failures[0] if self._failures else 0
        finally:
            self._notifier.tell(STOPPING="1", STATUS="ending")
            watching.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(watching, *tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Tell the service manager that this event loop runs, twice as often as it wants."""
        interval = self._notifier.watchdog
        while interval is not None:
            self._notifier.tell(WATCHDOG="1")
            await asyncio.sleep(interval / 2)

    def _tell(self) -> None:
        """Tell the service manager how the tunnels are, and when each has begun.

        Then names, listeners and the devices of VPNs are there. The other side is not waited for: a
        machine that starts would wait as well, for as long as it is away.
        """
        monitors = [tunnel.report.monitor for tunnel in self._tunnels]
        if not self._is_ready:
            alive = [each for each in monitors if each.state is not State.ENDED]
            self._is_ready = bool(alive) and all(each.has_begun for each in alive)
            if self._is_ready:
                self._notifier.tell(READY="1")
        if len(monitors) == 1:
            self._notifier.tell(STATUS=monitors[0].summary)
        else:
            self._notifier.tell(STATUS="; ".join(f"{m.name}: {m.summary}" for m in monitors))


class _Tunnel:
    """One tunnel: its settings, and what it says."""

    def __init__(self, connect: Connect, report: UpReport) -> None:
        self.report = report
        self._connect = connect

    def answer(self) -> bytes:
        """Return the state, as a line of JSON."""
        return json.dumps(self.report.monitor.describe()).encode() + b"\n"

    async def run(self) -> int:
        """Run it until it ends for good; returns its exit code."""
        status = await self._run()
        self.report.ended(status)
        return status

    async def _run(self) -> int:
        report = self.report
        try:
            outcome = await use(self._connect, report)
            if isinstance(outcome, int):
                return outcome
            return await self._go_on(outcome)
        except NatTraverseError as error:
            return tell_failure(error, report)
        except Exception:  # noqa: BLE001 (the others are not to end by it)
            report.failed(f"a mistake of this program:\n{traceback.format_exc()}", 1)
            return 1

    async def _go_on(self, outcome: object) -> int:
        """Stay for the process that a command has left behind: a service is in the background."""
        from nat_traverse.cli.plain import PlainBackground  # noqa: PLC0415 (see there)
        from nat_traverse.cli.secure import SecureBackground  # noqa: PLC0415

        if not isinstance(outcome, SecureBackground | PlainBackground):
            raise AssertionError(f"no description asks for {outcome!r}")  # noqa: TRY004 (a bug)
        await outcome.go_on(self.report.observe)
        return outcome.detached.status
