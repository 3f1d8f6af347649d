"""Passes UDP between two ends on this machine, and loses some of it and changes its order.

    python _meddler.py PORT_A PEER_A PORT_B PEER_B

The ports are on the loopback address: what comes from PEER_A to PORT_A goes on to PEER_B from
PORT_B, and the other way round. Standard input is read for lines of two numbers from 0 to 1, the
shares of datagrams to lose and to put out of order; each is answered with the counts so far, as
JSON. At the end of the input it ends.

Trains of datagrams (UDP_GRO, UDP_SEGMENT) stay trains on their way through, which is what makes
tens of gigabytes possible, and yet each datagram is lost or held back by itself: a train is cut
where that happens.
"""

from __future__ import annotations

import json
import math
import random
import select
import socket
import struct
import sys

# linux/udp.h; the module socket lacks them.
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104

OVERTAKERS = 3  # that one out of order leaves behind: what congestion controls take for a loss
_PATIENCE = 0.005  # s until one that nothing overtakes goes on all the same
_SOCKET_BUFFER = 4 * 1024 * 1024
_LARGEST = 65_535
_READS = 16  # trains of one direction before the other has its turn
_NEVER = 2**62


class Meddling:
    """One direction. Pure: datagrams in, what is sent instead out, chance is an argument."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._loss = self._reordering = 0.0
        # Datagrams that pass until the next one is lost, or held back, or let go again.
        self._until_loss = self._until_hold = self._until_release = _NEVER
        self._held: bytes | None = None
        self.lost = 0
        self.reordered = 0

    def set(self, loss: float, reordering: float) -> None:
        """Change the shares."""
        self._loss, self._reordering = loss, reordering
        self._until_loss, self._until_hold = self._gap(loss), self._gap(reordering)

    def pass_train(self, train: memoryview, size: int) -> list[memoryview | bytes]:
        """Return the trains to send for one of datagrams of `size` bytes, the last maybe less."""
        count = -(-len(train) // size)
        if min(self._until_loss, self._until_hold, self._until_release) >= count:
            self._advance(count)
            return [train]
        trains: list[memoryview | bytes] = []
        begin = 0  # of what is not in `trains` yet

        def cut(end: int, then: int) -> None:
            nonlocal begin
            if end > begin:
                trains.append(train[begin:end])
            begin = then

        for start in range(0, len(train), size):
            end = min(start + size, len(train))
            if self._until_release == 0:
                cut(start, start)
                trains += self.release()
            lose, hold = self._until_loss == 0, self._until_hold == 0
            self._advance(1)
            if lose:
                cut(start, end)
                self.lost += 1
            elif hold and self._held is None:
                cut(start, end)
                self._held = bytes(train[start:end])
                self._until_release = OVERTAKERS
                self.reordered += 1
        cut(len(train), len(train))
        return trains

    def release(self) -> list[memoryview | bytes]:
        """Return the datagram that is held back, if there is one: it goes on now."""
        held, self._held = self._held, None
        self._until_release = _NEVER
        return [] if held is None else [held]

    def _advance(self, count: int) -> None:
        self._until_release -= count
        for name, share in (("_until_loss", self._loss), ("_until_hold", self._reordering)):
            left = getattr(self, name) - count
            setattr(self, name, left if left >= 0 else self._gap(share))

    def _gap(self, share: float) -> int:
        """Return how many pass before the next one, if each has this chance by itself."""
        if share <= 0:
            return _NEVER
        if share >= 1:
            return 0
        return int(math.log(1 - self._chance.random()) / math.log(1 - share))


class Direction:
    """Moves datagrams from one socket to the other."""

    def __init__(self, source: socket.socket, target: socket.socket, seed: int) -> None:
        self.source = source
        self.meddling = Meddling(random.Random(seed))
        self.overflowed = 0  # trains for which the receiver had no room
        self._target = target
        self._buffer = memoryview(bytearray(_LARGEST))

    def move(self) -> None:
        """Pass on what has come."""
        for _ in range(_READS):
            try:
                length, control, _, _ = self.source.recvmsg_into([self._buffer], 64)
            except (BlockingIOError, ConnectionRefusedError):
                return
            size = length
            for level, kind, value in control:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    size = int.from_bytes(value[:4], sys.byteorder)
            if length:
                for train in self.meddling.pass_train(self._buffer[:length], size):
                    self._send(train, size)

    def release(self) -> None:
        """Let go what is held back."""
        for datagram in self.meddling.release():
            self._send(datagram, len(datagram))

    def _send(self, train: memoryview | bytes, size: int) -> None:
        control = []
        if len(train) > size:
            control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", size))]
        try:
            self._target.sendmsg([train], control)
        except BlockingIOError:
            self.overflowed += 1
        except ConnectionRefusedError:
            pass  # the end is not there yet, or not any more


def main() -> None:
    """Meddle until the end of the input."""
    port_a, peer_a, port_b, peer_b = map(int, sys.argv[1:])
    one, other = _open(port_a, peer_a), _open(port_b, peer_b)
    directions = [Direction(one, other, 1), Direction(other, one, 2)]
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, one, other], [], [], _PATIENCE)
        if sys.stdin in ready and not _obey(directions):
            return
        for direction in directions:
            if direction.source in ready:
                direction.move()
            elif not ready:
                direction.release()


def _open(port: int, peer: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    sock.bind(("127.0.0.1", port))
    sock.connect(("127.0.0.1", peer))
    sock.setblocking(False)
    return sock


def _obey(directions: list[Direction]) -> bool:
    """Read a line and do what it says; returns False at the end of the input."""
    line = sys.stdin.readline()
    if not line:
        return False
    loss, reordering = map(float, line.split())
    for direction in directions:
        direction.meddling.set(loss, reordering)
    counts = {
        "lost": sum(direction.meddling.lost for direction in directions),
        "reordered": sum(direction.meddling.reordered for direction in directions),
        "overflowed": sum(direction.overflowed for direction in directions),
    }
    print(json.dumps(counts), flush=True)
    return True


if __name__ == "__main__":
    main()
