"""The secret, the identity and the peer's keys: from options, the environment and files.

A file that keeps something secret is refused, as ssh does it, if others than its owner may get at
it: such a secret is none any more, and it is better to know. What is checked is the file that was
opened, so nobody can put another one in its place in between.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.environment import SECRET_VARIABLE
from nat_traverse.errors import ErrnoError, UsageError
from nat_traverse.tunnel.keys import PREFIX, decode_private, decode_public
from nat_traverse.tunnel.proof import Means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VARIABLE: Final = SECRET_VARIABLE

# No file of credentials is longer (bytes); /dev/zero and a film are.
_LONGEST: Final = 64 * 1024

# Permissions that a file may not give, if it is a regular one.
PRIVATE: Final = 0o077  # only its owner gets at it
# A file of root's that this user may read: root lends it, by a group or by an access list, which
# shows as the group's permissions. Credentials of systemd services come like that.
_LENT: Final = 0o027
UNCHANGED: Final = 0o022  # everybody may read it, only its owner may change it


def means(
    secret: str | None,
    secret_file: str | None,
    environment: Mapping[str, str],
    identity: str | None,
    peer_keys: Sequence[str],
) -> Means:
    """Return what this side demands and can show.

    Raises UsageError for what makes no sense, and ErrnoError for a file that can't be used. An
    option wins over the environment.
    """
    if secret is not None and secret_file is not None:
        raise UsageError("--secret and --secret-file exclude each other: there is one secret.")
    if identity is None and peer_keys:
        raise UsageError(
            "--peer-key needs --identity: each side shows the other a key, so this one needs its"
            " own. `nat-traverse keygen FILE` makes one."
        )
    if identity is not None and not peer_keys:
        raise UsageError(
            "--identity needs --peer-key: a key is worth something only if it is known whose key"
            " the other side has to show. Its user finds it with `nat-traverse keygen --public`."
        )
    phrase = _phrase(secret, secret_file, environment)
    if identity is None:
        return Means(phrase)
    return Means(phrase, read_identity(identity), read_peer_keys(peer_keys))


def read_identity(path: str) -> bytes:
    """Return the private key (32 bytes) in a file that only its owner may read."""
    pem = read_file(path, "the identity", PRIVATE)
    try:
        return decode_private(pem)
    except UsageError as error:
        raise UsageError(f"The identity {path}: {error}") from None


def read_secret(path: str) -> bytes:
    """Return the first line of a file that only its owner may read, as the proof wants it."""
    first, _, _ = read_file(path, "the secret file", PRIVATE).partition(b"\n")
    try:
        # Some editors begin a file with a mark that no user sees or means.
        text = first.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"The first line of the secret file {path} is not UTF-8.") from None
    return _normal(text, f"the first line of the secret file {path}")


def read_peer_keys(values: Sequence[str]) -> tuple[bytes, ...]:
    """Return the keys that `values` are, or that stand in files of these names, each once."""
    keys: list[bytes] = []
    for value in values:
        if value.strip().lower().startswith(PREFIX):
            keys.append(decode_public(value))
        else:
            keys += _keys_in(value)
    return tuple(dict.fromkeys(keys))


def _phrase(
    secret: str | None, secret_file: str | None, environment: Mapping[str, str]
) -> bytes | None:
    if secret is not None:
        return _normal(secret, "--secret")
    if secret_file is not None:
        return read_secret(secret_file)
    if VARIABLE in environment:
        return _normal(environment[VARIABLE], VARIABLE)
    return None


def _normal(text: str, where: str) -> bytes:
    """Return the phrase as both sides have to have it, however their keyboards compose letters."""
    normal = unicodedata.normalize("NFC", text).strip()
    if not normal:
        raise UsageError(
            f"The secret is empty ({where}). Leave it out to run without one, which is encrypted,"
            " but not authenticated."
        )
    try:
        return normal.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The secret is not UTF-8 ({where}).") from None


def _keys_in(path: str) -> list[bytes]:
    """Return the keys in a file: one a line, and comments behind #."""
    hint = f" A key itself begins with {PREFIX}."
    content = read_file(path, "the file of peer keys", UNCHANGED, missing=hint)
    text = content.decode("utf-8-sig", "replace")
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].strip()
        if not bare:
            continue
        try:
            keys.append(decode_public(bare))
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    if not keys:
        raise UsageError(f"There is no key in {path}.")
    return keys


def read_file(path: str, what: str, forbidden: int, *, missing: str = "") -> bytes:
    """Return all of a file whose mode has none of the bits of `forbidden`.

    `missing` is what to say besides if there is no such file.
    """
    return read_with_status(path, what, forbidden, missing=missing)[0]


def read_with_status(
    path: str, what: str, forbidden: int, *, missing: str = ""
) -> tuple[bytes, os.stat_result]:
    """Do what `read_file` does, and return what the system says of the file that was opened.

    That is for whoever learns only from the content what `check_access` has to forbid: a file
    opened once more could be another one, and a pipe has nothing more to say.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            check_access(status, path, what, forbidden)
            return _read_all(descriptor, path, what), status
        finally:
            os.close(descriptor)
    except OSError as error:
        number = error.errno or errno.EIO
        hint = missing if number == errno.ENOENT else ""
        raise ErrnoError(
            f"Cannot read {what} {path}: {os.strerror(number)}.{hint}", number
        ) from error
    except ValueError:  # a name with a NUL byte
        raise UsageError(f"{path!r} is no name of a file.") from None


def check_access(status: os.stat_result, path: str, what: str, forbidden: int) -> None:
    """Refuse a file that somebody else owns, or that others may get at.

    A pipe or a terminal keeps nothing, so it does not matter who else could have opened it.
    """
    if not stat.S_ISREG(status.st_mode):
        return
    user = os.geteuid()
    if status.st_uid not in {0, user}:
        raise ErrnoError(
            f"Cannot trust {what} {path}: it belongs to another user, who may change it.",
            errno.EACCES,
        )
    if forbidden == PRIVATE and status.st_uid != user:
        forbidden = _LENT
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        does = "change" if forbidden == UNCHANGED else "read or change"
        repair = "go-w" if forbidden == UNCHANGED else "600"
        raise ErrnoError(
            f"Cannot trust {what} {path}: others than its owner may {does} it (mode {mode:04o})."
            f" Use: chmod {repair} {path}",
            errno.EACCES,
        )


def _read_all(descriptor: int, path: str, what: str) -> bytes:
    content = b""
    while chunk := os.read(descriptor, _LONGEST + 1 - len(content)):
        content += chunk
        if len(content) > _LONGEST:
            raise UsageError(f"Cannot use {what} {path}: it has more than {_LONGEST} bytes.")
    return content
