"""Kernel TCP from a pipe to a pipe, with a congestion control of one's choice.

    python _tcp.py send ADDRESS PORT [CONGESTION]       standard input to the peer
    python _tcp.py receive ADDRESS PORT [CONGESTION]    the peer to standard output

The bytes are spliced between socket and pipe, so nothing but the kernel touches them. "connected"
is printed on standard error once they may flow. The exit status is 3 when the kernel does not have
the congestion control, or does not let us use it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import time
from contextlib import suppress

UNAVAILABLE = 3

_MOST_AT_ONCE = 1024 * 1024
_RETRY = 0.05  # s: the receiver's interpreter may start later
_PATIENCE = 30.0  # s until the receiver must listen


def main() -> int:
    """Carry until the end of the input, and return the exit status."""
    role, address, port, *congestion = sys.argv[1:]
    with socket.socket() as sock:
        if congestion:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion[0].encode())
            except OSError as error:
                print(f"{congestion[0]}: {error}", file=sys.stderr)
                return UNAVAILABLE
        if role == "send":
            _connect(sock, (address, int(port)))
            _splice(0, sock.fileno())
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)  # the receiver closes once it has passed on everything
        else:
            with _accept(sock, (address, int(port))) as peer:
                _splice(peer.fileno(), 1, wait_for=peer)
    return 0


def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (error := sock.connect_ex(address)) != 0:
        if time.monotonic() > deadline:
            raise OSError(error, os.strerror(error))
        time.sleep(_RETRY)
    print("connected", file=sys.stderr, flush=True)


def _accept(sock: socket.socket, address: tuple[str, int]) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen(1)
    peer, _ = sock.accept()
    print("connected", file=sys.stderr, flush=True)
    return peer


def _splice(source: int, target: int, wait_for: socket.socket | None = None) -> None:
    pipe = source if source == 0 else target
    with suppress(OSError):  # not a pipe, or beyond the user's share
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _MOST_AT_ONCE)
    while True:
        if wait_for is not None:
            # The kernel would wait for the socket with the pipe locked, and who reads the pipe
            # would wait too.
            select.select([wait_for], [], [])
        if not os.splice(source, target, _MOST_AT_ONCE):
            return


if __name__ == "__main__":
    sys.exit(main())
