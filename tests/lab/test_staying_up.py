"""An encrypted tunnel outlives gateways that forget it, and a peer that is started again."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import eventually, forget
from support.programs import Program, ours
from support.sides import LEFT_PORT, RIGHT_PORT, address, connected

if TYPE_CHECKING:
    from collections.abc import Iterator


SECRET = {"NAT_TRAVERSE_SECRET": "and all that"}
LIMIT = 5.0  # s, what is promised


class Stream:
    """Writes into one program at a steady pace, and looks when the other one prints it."""

    BLOCK = 20_000
    PAUSE = 0.02  # s; a megabyte a second, so that a transfer is always under way

    def __init__(self, source: Program, sink: Program, seed: int) -> None:
        self._source = source
        self._sink = sink
        self._random = random.Random(seed)
        self.sent = bytearray()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while not self._over.wait(self.PAUSE):
            block = self._random.randbytes(self.BLOCK)
            self.sent += block
            self._source.write(block)

    def goes_on(self) -> float:
        """Wait until something that is written only now has arrived; returns how long it took."""
        begun, mark = time.monotonic(), len(self.sent) + self.BLOCK
        self._sink.wait_until(lambda: len(self._sink.output) >= mark, "more of the stream")
        return time.monotonic() - begun

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self._source.close_input()


@pytest.mark.parametrize("port", [None, 51234], ids=["same port", "other port"])
def test_a_gateway_forgets_in_mid_transfer(port: int | None) -> None:
    # Behind a second gateway that filters by port nobody hears of the other port (RFC 4787,
    # REQ-8): there only a new traversal helps, and --retry makes one.
    far = Kind.DROP if port is None else Kind.NONE
    with Lab(Kind.DROP, far) as lab, connected(lab) as (one, other):
        there, back = Stream(one, other, 1), Stream(other, one, 2)
        there.goes_on()
        back.goes_on()
        forget(lab.left_gateways[0], port=port)
        assert max(there.goes_on(), back.goes_on()) < LIMIT
        if port is not None:
            assert other.event("moved")["peer"].endswith(f":{port}")
        there.end()
        back.end()
        assert (one.wait(), other.wait()) == (0, 0), one.errors + other.errors
        assert other.output == there.sent
        assert one.output == back.sent


def test_a_gateway_forgets_while_nothing_is_sent() -> None:
    with Lab(Kind.DROP, Kind.NONE) as lab, connected(lab, "--keepalive", "1") as (one, other):
        forget(lab.left_gateways[0], port=51234)
        other.event("moved")
        other.write(b"found again")
        assert one.prints(11) == b"found again"


ECHO = """\
import socket
listener = socket.create_server(("127.0.0.1", 8080), backlog=100)
while True:
    accepted, _ = listener.accept()
    accepted.sendall(accepted.recv(100))
    accepted.close()
"""

# Tries until it is answered, and says how often it was not.
CLIENT = """\
import socket, time
for attempt in range(1000):
    try:
        with socket.create_connection(("127.0.0.1", 9090), 5) as sock:
            sock.sendall(b"x")
            if sock.recv(100) == b"x":
                break
    except OSError:
        pass
    time.sleep(0.05)
"""


@contextmanager
def serving(lab: Lab) -> Iterator[None]:
    with Program([sys.executable, "-c", ECHO], lab.right):
        eventually(lambda: lab.right.run(["ss", "-Hltn", "sport = :8080"]).stdout, "the server")
        yield


def is_answered(lab: Lab) -> float:
    """Connect through the forward until it works; returns how long it took."""
    begun = time.monotonic()
    with Program([sys.executable, "-c", CLIENT], lab.left) as client:
        assert client.wait() == 0
    return time.monotonic() - begun


def left(lab: Lab) -> Program:
    to_right = f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}"
    options = ("--json", "--retry", "-L", "9090:127.0.0.1:8080")
    return ours(*options, to_right, node=lab.left, env=SECRET)


def right(lab: Lab) -> Program:
    to_left = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
    return ours("--json", "--retry", "--expose", "any", to_left, node=lab.right, env=SECRET)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_peer_is_started_again(number: signal.Signals) -> None:
    with Lab(Kind.DROP, Kind.DROP) as lab, serving(lab), left(lab) as one:
        with right(lab) as other:
            is_answered(lab)
            other.signal(number)
            assert other.wait() == -number
        time.sleep(1.0)  # a moment without a peer, as when a machine restarts its services
        with right(lab) as again:
            again.event("opened")
            assert is_answered(lab) < LIMIT
            assert one.process.poll() is None
            assert len([event for event in one.events if event["event"] == "listening"]) == 1
