"""What a command line asks for, once it has been read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from nat_traverse.carry.addressing import Plan
    from nat_traverse.carry.specs import Dynamic, Exposed, Forward
    from nat_traverse.carry.wireguard import Configuration
    from nat_traverse.target import Target
    from nat_traverse.tunnel.proof import Means

QUIET: Final = -1
NORMAL: Final = 0
VERBOSE: Final = 1


class Connect(NamedTuple):
    """Make a tunnel.

    `deadline` is in seconds from the start, None for no limit. `window` is the number of opening
    packets towards a peer that runs 0.7, at least 0, or None when the user left it open. At most
    one of `cmd`, `handoff`, `quit_after_connect` and `wireguard` is set; none means standard input
    and output.
    `hard` is one of the words of `--hard`; `ttl` is None for auto and 0 for off; `hints` are the
    likeliest ports of the peer's gateway; `rate` is in packets a second, `keepalive` in seconds.
    `secret` to `peer_keys` are as given, names of files among them; `secret` to be hidden. `means`
    is what these say, where they were read already.
    """

    target: Target
    deadline: float | None
    window: int | None = None
    cmd: str | None = None
    handoff: str | None = None
    quit_after_connect: bool = False
    wireguard: Configuration | None = None
    hard: str = "auto"
    ttl: int | None = None
    hints: tuple[int, ...] = ()
    rate: int = 100
    datagrams: bool = False
    plain: bool = False
    locals_: tuple[Forward, ...] = ()
    remotes: tuple[Forward, ...] = ()
    dynamics: tuple[Dynamic, ...] = ()
    exposed: tuple[Exposed, ...] = ()
    retry: bool = False
    vpn: Plan | None = None
    secret: str | None = None
    secret_file: str | None = None
    identity: str | None = None
    peer_keys: tuple[str, ...] = ()
    keepalive: int = 15
    verbosity: int = NORMAL
    json: bool = False
    means: Means | None = None

    def __repr__(self) -> str:
        """Show all but the secret: a traceback may be printed anywhere."""
        fields = self._replace(secret=self.secret and "...")._asdict()
        return f"Connect({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @property
    def is_plain(self) -> bool:
        """True if nothing is to be encrypted here: --plain, or the path is for another program."""
        return self.plain or self.leaves

    @property
    def leaves(self) -> bool:
        """True if the path is for another program, and nothing of ours goes through it."""
        named = self.handoff is not None or self.wireguard is not None
        return named or self.quit_after_connect

    @property
    def forwards(self) -> bool:
        """True if it is about port forwards, and not about one stream."""
        return bool(self.locals_ or self.remotes or self.dynamics or self.exposed)


class Keygen(NamedTuple):
    """Make a key in `path`, or print the public half of the one that is there."""

    path: str
    public: bool = False


class Demo(NamedTuple):
    """Run both ends on this machine, behind gateways of these kinds."""

    left: str
    right: str
    verbosity: int = NORMAL
    json: bool = False


class Up(NamedTuple):
    """Run the tunnels of these names, or that are described in files of these names."""

    names: tuple[str, ...]
    verbosity: int = NORMAL
    json: bool = False


class Status(NamedTuple):
    """Show the tunnels of these names; none: all."""

    names: tuple[str, ...] = ()
    json: bool = False
