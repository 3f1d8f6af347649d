"""The rights of this process: what to say when one is missing, and how to give up all but a few.

Theory of operation
-------------------
A VPN needs CAP_NET_ADMIN (capabilities(7)) for its device, its addresses and its routes, and from
then on only file descriptors that are open. So root does the first part, and becomes an ordinary
user for the second, in which the peer's bytes are read. The order is forced by what each step
still needs:

1. supplementary groups, then the group, then the user: the first two need what the third gives up;
2. the capabilities: a change of the user from root clears them, unless PR_SET_KEEPCAPS asks to
   keep what is *permitted*; of that all but `keep` is then given up by name. None is inheritable,
   so a program that this process starts has none of them;
3. no_new_privs: no program that is started from now on gains rights by being executed, `sudo`
   included;
4. the way back is tried, and has to fail.

Permissions belong to a thread. The C library gives all threads the new user; the rest is for the
calling thread and those that it starts.
"""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nat_traverse.errors import DeniedError, UsageError
from nat_traverse.net import features

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Set as AbstractSet

# The capabilities that something here may want to keep, by their numbers (linux/capability.h).
CAPABILITIES: Final = {"net_bind_service": 10, "net_admin": 12, "net_raw": 13}

# linux/prctl.h
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39

# Two words for each of the three sets; the only version in use since Linux 2.6.26.
_CAPABILITY_VERSION_3: Final = 0x20080522

_ROOT: Final = 0


class Rights(NamedTuple):
    """The three sets of capabilities of a thread: a bit for each."""

    effective: int
    permitted: int
    inheritable: int


def lacks_net_admin(doing: str) -> DeniedError:
    """Return the error for want of CAP_NET_ADMIN; `doing` begins its first sentence."""
    if os.geteuid() == _ROOT:
        return DeniedError(
            f"{doing} was not permitted, although this is root: the container or the service it"
            " runs in has no CAP_NET_ADMIN. With docker or podman add --cap-add=NET_ADMIN"
            " --device=/dev/net/tun; in a systemd unit, CAP_NET_ADMIN to CapabilityBoundingSet=."
        )
    name = _name_of(os.geteuid())
    return DeniedError(
        f"{doing} was not permitted: it needs CAP_NET_ADMIN, which {name} does not have. Start it"
        " as root, and it becomes that user again as soon as the device is there:"
        f' sudo "$(command -v nat-traverse)" --user {name} and the same arguments; or, for'
        f' `nat-traverse up`, user = "{name}" in the description, and sudo; or in a systemd'
        f" unit: User={name} and AmbientCapabilities=CAP_NET_ADMIN."
    )


def check_user(user: str) -> None:
    """Raise what `drop_to` would raise if there is no such user, or this one may not become it."""
    account = _account(user)
    if os.geteuid() not in (_ROOT, account.pw_uid):
        raise _only_root(user)


def drop_to(user: str, keep: AbstractSet[str] = frozenset()) -> None:
    """Become `user` for good, with no capability but those in `keep` (names in CAPABILITIES).

    The environment (HOME, USER, LOGNAME) is left to the caller. Best called while there is only
    one thread. Raises `UsageError` when there is no such user, or it is root, and `DeniedError`
    when this process may not become it; it has then given up a part of its rights, and should end.
    """
    kept = sum(1 << CAPABILITIES[name] for name in keep)
    account = _account(user)
    system = _System() if features.IS_LINUX else None
    if system is not None and kept & ~system.rights().permitted:
        names = ", ".join(f"CAP_{name.upper()}" for name in sorted(keep))
        raise DeniedError(f"{names} can't be kept when becoming {user}: this process has it not.")
    try:
        if system is not None:
            system.control(_PR_SET_KEEPCAPS, 1 if kept else 0)
        _become(account)
        if system is not None:
            system.set_rights(Rights(kept, kept, 0))
            system.control(_PR_SET_KEEPCAPS, 0)
            system.control(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise _explained(error, user) from error
    _verify(account)
    if system is not None and not (
        system.rights() == Rights(kept, kept, 0) and system.control(_PR_GET_NO_NEW_PRIVS, 0)
    ):
        raise DeniedError(f"Rights are left after becoming {user}: this system keeps them back.")


def _account(user: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user)
    except (KeyError, ValueError):  # the latter for a name with a zero byte in it
        raise UsageError(
            f"There is no user {user!r} on this machine (getent passwd lists those there are)."
        ) from None
    if account.pw_uid == _ROOT:
        raise UsageError(f"{user} has all rights, so becoming it gives none up: name another user.")
    return account


def _become(account: pwd.struct_passwd) -> None:
    user, group = account.pw_uid, account.pw_gid
    if os.getresuid() == (user, user, user) and os.getresgid() == (group, group, group):
        return  # it is this user already, whose groups it could not set
    os.initgroups(account.pw_name, group)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def _verify(account: pwd.struct_passwd) -> None:
    """Raise `DeniedError` if this process is not `account`, or could be root again."""
    user, group = account.pw_uid, account.pw_gid
    good = os.getresuid() == (user, user, user) and os.getresgid() == (group, group, group)
    with suppress(PermissionError):
        os.setuid(_ROOT)
        good = False
    with suppress(PermissionError):
        if group != _ROOT:
            os.setgid(_ROOT)
            good = False
    if not good:
        raise DeniedError(
            f"Becoming {account.pw_name} did not last: this system lets a process be root again."
        )


class _System:
    """The calls that Python's `os` does not have: prctl(2), capget(2) and capset(2)."""

    def __init__(self) -> None:
        import ctypes  # noqa: PLC0415 (takes milliseconds, and most runs give up no rights)

        self._ctypes = ctypes
        self._library: Any = ctypes.CDLL(None, use_errno=True)

    def control(self, what: int, value: int) -> int:
        return self._checked(
            self._library.prctl(what, *map(self._ctypes.c_ulong, (value, 0, 0, 0)))
        )

    def rights(self) -> Rights:
        words = self._words()
        self._checked(self._library.capget(self._header(), words))
        # The lower halves of the three sets, then the upper ones.
        low, high = words[:3], words[3:]
        return Rights(*(a | b << 32 for a, b in zip(low, high, strict=True)))

    def set_rights(self, rights: Rights) -> None:
        halves = [part & 0xFFFFFFFF for part in rights] + [part >> 32 for part in rights]
        self._checked(self._library.capset(self._header(), self._words(*halves)))

    def _header(self) -> ctypes.Array[ctypes.c_uint32]:
        return (self._ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)  # 0: the calling thread

    def _words(self, *values: int) -> ctypes.Array[ctypes.c_uint32]:
        return (self._ctypes.c_uint32 * 6)(*values)

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self._ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def _explained(error: OSError, user: str) -> DeniedError:
    if os.geteuid() == _ROOT:
        return DeniedError(
            f"This process may not become {user} ({error.strerror}), although it is root: its"
            " container or service lacks CAP_SETUID and CAP_SETGID, or maps no such user."
        )
    return _only_root(user)


def _only_root(user: str) -> DeniedError:
    return DeniedError(
        f"Only root may become {user}, and this is {_name_of(os.geteuid())}: start it with sudo,"
        " or do without --user."
    )


def _name_of(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)  # a container's user often has no entry
