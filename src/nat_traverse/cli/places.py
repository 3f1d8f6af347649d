"""Where the files of a service are: what describes its tunnels, and the sockets that tell of them.

The descriptions are searched for in two places, a user's own first (XDG Base Directory
Specification): `$XDG_CONFIG_HOME/nat-traverse`, by default `~/.config/nat-traverse`, and
`/etc/nat-traverse`; for root in the other order. The sockets are in the first that there is of
`$RUNTIME_DIRECTORY` (what systemd gives a service), `/run/nat-traverse` for root,
`$XDG_RUNTIME_DIR/nat-traverse` for everybody else, and `/tmp/nat-traverse-UID`.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final

from nat_traverse.errors import ErrnoError, UsageError
from nat_traverse.net.status_socket import is_own

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM: Final = "nat-traverse"
SUFFIX: Final = ".toml"
SOCKET_SUFFIX: Final = ".sock"
SYSTEM: Final = "/etc/nat-traverse"
RUN: Final = "/run/nat-traverse"

# What a tunnel may be called: a file name that no shell and no log reads anything into. The path of
# a socket has 107 bytes (unix(7)), and most of them are for the directory.
_NAME: Final = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_@.:\\-]{0,47}")


def find_description(word: str, environment: Mapping[str, str], user: int) -> tuple[str, str]:
    """Return the name of the tunnel that `word` stands for, and the file that describes it.

    A word with a slash, or that ends in `.toml`, is the file itself. Raises UsageError if there is
    no such file, or the name can't be one, and ErrnoError if this user may not look.
    """
    if "/" in word or word.endswith(SUFFIX):
        name, places = os.path.basename(word).removesuffix(SUFFIX), [word]  # noqa: PTH119 (a str)
    else:
        name = word
        places = [f"{place}/{word}{SUFFIX}" for place in descriptions(environment, user)]
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} can't be the name of a tunnel: it is made of up to 48 letters, digits and"
            " . _ - @ : \\, and begins with neither . nor -."
        )
    closed = ""
    for path in places:
        try:
            os.lstat(path)
        except PermissionError:
            closed = closed or path
        except (OSError, ValueError):  # there is none, nor can there be
            continue
        else:
            return name, path
    if closed:
        raise ErrnoError(
            f"Cannot look for the tunnel {name!r}: this user may not enter the directory of"
            f" {closed}. If others may: chmod 755 that directory.",
            errno.EACCES,
        )
    raise UsageError(f"There is no tunnel {name!r}: no file {' or '.join(places)}.")


def descriptions(environment: Mapping[str, str], user: int) -> list[str]:
    """Return the directories that descriptions are searched for in, in this order."""
    places = [SYSTEM]
    base = environment.get("XDG_CONFIG_HOME", "")
    home = environment.get("HOME", "")
    if not base.startswith("/") and home.startswith("/"):  # a relative one counts for nothing
        base = f"{home.rstrip('/')}/.config"
    if base.startswith("/"):
        places.append(f"{base}/{PROGRAM}")
    return places if user == 0 else places[::-1]


def runtime(environment: Mapping[str, str], user: int) -> str:
    """Return the directory for the sockets of the tunnels that are run from here."""
    given = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given.startswith("/"):
        return given
    if user == 0:
        return RUN
    base = environment.get("XDG_RUNTIME_DIR", "")
    return f"{base}/{PROGRAM}" if base.startswith("/") else f"/tmp/{PROGRAM}-{user}"  # noqa: S108


def sockets(environment: Mapping[str, str], user: int) -> dict[str, str]:
    """Return the paths of the sockets that there are, by the names of their tunnels, in order.

    Root sees those of system services as well, each of which has a directory of its own. For
    everybody else, a directory that others may write to has none: they could answer in a tunnel's
    place.
    """
    directory = runtime(environment, user)
    if user != 0 and not _is_own(directory, user):
        return {}
    found = dict(_sockets_in(directory))
    if directory == RUN:
        for below in _names_in(directory):
            for name, path in _sockets_in(f"{directory}/{below}"):
                found.setdefault(name, path)
    return dict(sorted(found.items()))


def _is_own(directory: str, user: int) -> bool:
    try:
        return is_own(directory, user)
    except OSError:
        return False  # there is none


def _sockets_in(directory: str) -> list[tuple[str, str]]:
    names = [each.removesuffix(SOCKET_SUFFIX) for each in _names_in(directory)]
    paths = [(name, f"{directory}/{name}{SOCKET_SUFFIX}") for name in names]
    return [(name, path) for name, path in paths if _NAME.fullmatch(name) and os.path.lexists(path)]


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 (only the names are wanted)
    except OSError:
        return []  # there is none, or it is somebody else's
