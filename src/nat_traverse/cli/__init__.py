"""The command: reads its arguments, says what happens, and returns an exit code.

Everything heavy is imported where it is used, so that `--version` and a typing error are instant.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing would double the time that --version takes
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own); returns the exit code."""
    from nat_traverse.cli.arguments import ShowHelp, ShowVersion, parse  # noqa: PLC0415
    from nat_traverse.errors import UsageError  # noqa: PLC0415

    _open_standard_streams()
    try:
        request = parse(sys.argv[1:] if argv is None else argv, os.environ)
    except UsageError as error:
        print(f"nat-traverse: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(request, ShowVersion):
        from nat_traverse._version import __version__  # noqa: PLC0415

        print(f"nat-traverse {__version__}")
        return 0
    if isinstance(request, ShowHelp):
        from nat_traverse.cli.usage import usage  # noqa: PLC0415

        print(usage(request.command), end="")
        return 0
    return _act(request)


def _act(request: object) -> int:
    """Do what takes a network, and so takes longer to import."""
    import signal  # noqa: PLC0415

    from nat_traverse.cli.settings import Connect, Demo, Keygen, Status, Up  # noqa: PLC0415

    # Until the event loop takes signals over, ^C ends the process as it ends any other, without
    # the traceback of whatever was being imported.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if isinstance(request, Connect):
        from nat_traverse.cli.connect import run  # noqa: PLC0415

        return run(request)
    if isinstance(request, Demo):
        from nat_traverse.cli.demo import run_demo  # noqa: PLC0415

        return run_demo(request)
    if isinstance(request, Keygen):
        from nat_traverse.cli.keygen import run_keygen  # noqa: PLC0415

        return run_keygen(request.path, public=request.public)
    if isinstance(request, Up):
        from nat_traverse.cli.up import run_up  # noqa: PLC0415

        return run_up(request)
    if isinstance(request, Status):
        from nat_traverse.cli.status import run_status  # noqa: PLC0415

        return run_status(request)
    raise AssertionError(f"no such request: {request!r}")


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    Else the first socket becomes somebody's standard output, and what is printed to a missing
    standard error comes out of standard output, where the tunnel's data belongs.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 (standard error)
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
