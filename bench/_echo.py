"""An echo server for small messages, and a client that times them on several ways to it in turn.

    python _echo.py serve ADDRESS PORT
    python _echo.py ask COUNT ADDRESS PORT [ADDRESS PORT]...

The client prints a list of lists in JSON: the round trips in seconds on each way. The ways take
turns message by message, so that whatever else the machine does, it does to all of them.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

_MESSAGE = b"a keystroke, or a small request".ljust(64, b".")
_WARM_UP = 50  # messages on each way that are not counted
_PATIENCE = 30.0  # s for an answer, or for the server to be there


def serve(address: str, port: int) -> None:
    """Answer every connection with what it sends, for ever."""
    with socket.create_server((address, port)) as listener:
        print("listening", file=sys.stderr, flush=True)
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_answer, args=(peer,), daemon=True).start()


def _answer(peer: socket.socket) -> None:
    with peer:
        while data := peer.recv(4096):
            peer.sendall(data)


def ask(count: int, addresses: list[tuple[str, int]]) -> list[list[float]]:
    """Return the round trips on each way, in seconds."""
    ways = [socket.create_connection(address, _PATIENCE) for address in addresses]
    for way in ways:
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(_WARM_UP):
        for way in ways:
            _round_trip(way)
    results: list[list[float]] = [[] for _ in ways]
    for _ in range(count):
        for way, seconds in zip(ways, results, strict=True):
            seconds.append(_round_trip(way))
    return results


def _round_trip(way: socket.socket) -> float:
    start = time.perf_counter()
    way.sendall(_MESSAGE)
    left = len(_MESSAGE)
    while left:
        data = way.recv(left)
        if not data:
            raise ConnectionError("the way has closed")
        left -= len(data)
    return time.perf_counter() - start


def main() -> None:
    """Do what the command line says."""
    role, *words = sys.argv[1:]
    if role == "serve":
        serve(words[0], int(words[1]))
    else:
        ports = map(int, words[2::2])
        print(json.dumps(ask(int(words[0]), list(zip(words[1::2], ports, strict=True)))))


if __name__ == "__main__":
    main()
