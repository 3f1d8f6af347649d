"""`nat-traverse keygen`: makes a key for `--identity`, and prints the half that others need."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from typing import Final

from nat_traverse.cli.credentials import read_identity
from nat_traverse.errors import ErrnoError, NatTraverseError
from nat_traverse.tunnel.keys import KEY_SIZE, encode_private, encode_public, public_of

# Only its owner may read it; a file with more is refused where it is used.
_MODE: Final = 0o600


def run_keygen(path: str, *, public: bool = False) -> int:
    """Write a new private key to `path` and print its public half; returns the exit code.

    A file that is there is never overwritten: with it, whatever trusts that key would be lost.
    With `public` nothing is written, and the public half of the key in `path` is printed.
    """
    try:
        if public:
            key = read_identity(path)
        else:
            key = os.urandom(KEY_SIZE)
            _write(path, encode_private(key))
    except NatTraverseError as error:
        print(f"nat-traverse: {error}", file=sys.stderr)
        return error.exit_code
    text = encode_public(public_of(key))
    try:
        print(text, flush=True)
    except OSError as error:
        number = error.errno or errno.EIO
        print(f"nat-traverse: Cannot print {text}: {os.strerror(number)}.", file=sys.stderr)
        _discard_output()
        return number
    if not public:
        print(_advice(path, text), file=sys.stderr)
    return 0


def _advice(path: str, text: str) -> str:
    return (
        f"nat-traverse: The private key is in {path}; it never leaves this machine."
        f" Use it here with --identity {shlex.quote(path)},"
        f" and give the other side the line above, for --peer-key {text}"
    )


def _write(path: str, content: bytes) -> None:
    """Write a new file, or none at all."""
    try:
        # With O_EXCL not even a link that leads nowhere is followed.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    except FileExistsError as error:
        raise ErrnoError(
            f"{path} is there already and is not overwritten."
            f" Its public half: nat-traverse keygen --public {shlex.quote(path)}",
            errno.EEXIST,
        ) from error
    except OSError as error:
        raise _explained(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)  # whatever the umask took away
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        os.unlink(path)  # noqa: PTH108 (a str all the way)
        raise _explained(path, error) from error


def _explained(path: str, error: OSError) -> ErrnoError:
    number = error.errno or errno.EIO
    return ErrnoError(f"Cannot write {path}: {os.strerror(number)}.", number)


def _discard_output() -> None:
    """Let what could not be written go nowhere, lest Python tries it again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
