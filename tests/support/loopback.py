"""Two ends of the whole program on this machine."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from typing import TYPE_CHECKING, Self

from nat_traverse.wire.hello import ACK_MAGIC, HELLO_MAGIC
from support.ends import free_ports
from support.leftovers import Mark, can_be_bound
from support.programs import OURS, PATIENCE, Program

if TYPE_CHECKING:
    from collections.abc import Iterator

V4 = "127.0.0.1"


@contextlib.contextmanager
def pair(
    *options: str,
    left: tuple[str, ...] = (),
    right: tuple[str, ...] = (),
    peer: str = V4,
    before: tuple[str, ...] = (),
) -> Iterator[tuple[Program, Program]]:
    """Run two ends; `options` are for both, `before` is what runs the program."""
    one, other = free_ports()
    mark = Mark()

    def end(more: tuple[str, ...], mine: int, theirs: int) -> Program:
        spec = f"{mine}:{peer}:{theirs}"
        return Program([*before, OURS, *options, *more, spec], env=mark.environment)

    with end(left, one, other) as first, end(right, other, one) as second:
        yield first, second
    mark.gone()
    assert can_be_bound(one)
    assert can_be_bound(other)


def succeed(*programs: Program) -> None:
    assert [program.wait() for program in programs] == [0] * len(programs)


def exchange(one: Program, other: Program, size: int = 300_000) -> None:
    """Send bytes both ways, end both directions, and see that all arrived."""
    there, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    one.write(there)
    other.write(back)
    one.close_input()
    other.close_input()
    succeed(one, other)
    assert (other.output, one.output) == (there, back)


class Wire:
    """A wire between two ends that keeps a copy of all that passes.

    Each end takes it for its peer: the left one writes to `left`, the right one to `right`.
    """

    def __init__(self, left_port: int, right_port: int) -> None:
        self._ports = left_port, right_port
        self._sockets = tuple(socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for each in self._sockets:
            each.bind((V4, 0))
        self.left, self.right = (int(each.getsockname()[1]) for each in self._sockets)
        self.copy: list[bytes] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        for each in self._sockets:
            each.close()

    def _carry(self) -> None:
        while not self._ended.is_set():
            readable, _, _ = select.select(self._sockets, [], [], 0.1)
            for each in readable:
                here = self._sockets.index(each)
                with contextlib.suppress(OSError):  # a refusal, since nobody is there yet
                    data = each.recv(65_535)
                    self.copy.append(data)
                    self._sockets[1 - here].sendto(data, (V4, self._ports[1 - here]))


@contextlib.contextmanager
def old_peer(port: int) -> Iterator[socket.socket]:
    """Be a peer of generation 0.7 for a program at `port`: yields its socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((V4, 0))
        sock.connect((V4, port))  # it hears nobody else
        sock.settimeout(PATIENCE)
        yield sock


def shake_hands(sock: socket.socket) -> None:
    """Do what 0.7 does until it is connected."""
    while not sock.recv(65_535).startswith(HELLO_MAGIC):
        pass
    sock.send(HELLO_MAGIC)
    while sock.recv(65_535) != ACK_MAGIC:
        pass
    sock.send(ACK_MAGIC)
