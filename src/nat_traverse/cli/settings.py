"""What a command line asks for, once it has been read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from nat_traverse.cli.target import Target

QUIET: Final = -1
NORMAL: Final = 0
VERBOSE: Final = 1


class Connect(NamedTuple):
    """Make a tunnel.

    `deadline` is in seconds from the start, None for no limit. `window` is the number of opening
    packets towards a peer that runs 0.7, at least 0, or None when the user left it open. At most
    one of `cmd`, `handoff` and `quit_after_connect` is set; none means standard input and output.
    `hard` is one of the words of `--hard`; `ttl` is None for auto and 0 for off; `hints` are the
    likeliest ports of the peer's gateway; `rate` is in packets a second.
    """

    target: Target
    deadline: float | None
    window: int | None = None
    cmd: str | None = None
    handoff: str | None = None
    quit_after_connect: bool = False
    hard: str = "auto"
    ttl: int | None = None
    hints: tuple[int, ...] = ()
    rate: int = 100
    verbosity: int = NORMAL
    json: bool = False


class Demo(NamedTuple):
    """Run both ends on this machine, behind gateways of these kinds."""

    left: str
    right: str
    verbosity: int = NORMAL
    json: bool = False
