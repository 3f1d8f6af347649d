"""`nat-traverse demo`: both ends on this one machine, between two kernel NATs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from nat_traverse.cli.options import KINDS
from nat_traverse.cli.settings import VERBOSE
from nat_traverse.cli.signals import Signalled, die_of, run_until_signalled
from nat_traverse.demo.play import perform
from nat_traverse.demo.records import JsonScreen
from nat_traverse.demo.stage import in_lab, on_loopback
from nat_traverse.demo.text import TextScreen
from nat_traverse.errors import NatTraverseError, OutputError
from nat_traverse.lab import Kind, Lab, available

if TYPE_CHECKING:
    from nat_traverse.cli.settings import Demo
    from nat_traverse.demo.outcome import Outcome
    from nat_traverse.demo.screen import Screen
    from nat_traverse.demo.stage import Stage


def run_demo(request: Demo) -> int:
    """Show a tunnel at work; returns the exit code. Signals end the process by themselves.

    0: the file arrived unchanged and both programs ended with 0; 4: no path between these two
    gateways. Nothing is left on this machine in any case: both programs are ended in order, and
    the kernel ends the namespaces even if this process has no time to do so.
    """
    try:
        return _run(request, _screen(request)).exit_code
    except Signalled as signalled:
        die_of(signalled.number)
    except KeyboardInterrupt:
        # While the lab was being built or removed, outside of the event loop.
        die_of(signal.SIGINT)
    except BrokenPipeError:
        # Nobody reads any more: `nat-traverse demo | head`.
        die_of(signal.SIGPIPE)
    except NatTraverseError as error:
        print(f"nat-traverse: {error}", file=sys.stderr)
        if isinstance(error, OutputError) and sys.stdout is not None:
            _discard_output()
        return error.exit_code


def _run(request: Demo, screen: Screen) -> Outcome:
    """Build the lab if it can be had, and play in it."""
    reason = available()
    if reason is not None:
        screen.fell_back(reason)
        return _perform(on_loopback(), screen)
    left, right = Kind(request.left), Kind(request.right)
    with Lab(left, right) as lab:
        meanings = {choice.word: choice.meaning for choice in KINDS}
        return _perform(in_lab(lab, left, right, meanings), screen)


def _perform(stage: Stage, screen: Screen) -> Outcome:
    screen.set_up(stage)
    return run_until_signalled(perform(stage, screen))


def _screen(request: Demo) -> Screen:
    if sys.stdout is None:
        raise OutputError("Standard output is closed, and a demo is to be looked at.", errno.EBADF)
    if request.json:
        return JsonScreen(sys.stdout)
    return TextScreen(sys.stdout, verbose=request.verbosity >= VERBOSE, environment=os.environ)


def _discard_output() -> None:
    """Let what could not be written go nowhere, lest Python tries it again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
