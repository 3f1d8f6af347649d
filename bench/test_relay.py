"""The relay that the benchmarks of bad paths run over does what it is asked, packet by packet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from bench._paths import Weather, Wire, wire

if TYPE_CHECKING:
    from collections.abc import Iterator

CLEAR = Weather(0, 0)
PORT = 4000

# Sends so many datagrams, each with its number, and all at once; prints when it began.
SEND = """\
import socket, sys, time
count, size = map(int, sys.argv[1:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    print(time.monotonic())
    for number in range(count):
        sock.sendto(number.to_bytes(4, "big").ljust(size, b"."), ("192.0.2.2", 4000))
"""
BIND = """\
import json, socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
sock.bind(("192.0.2.2", 4000))
sock.settimeout(10)
print("bound", flush=True)
"""
# Prints the numbers and the times of what comes, until nothing has come for a while.
RECEIVE = f"""{BIND}
come = []
try:
    while True:
        data = sock.recv(2048)
        sock.settimeout(0.5)
        come.append((int.from_bytes(data[:4], "big"), time.monotonic()))
except TimeoutError:
    print(json.dumps(come))
"""

# What is sent in trains.
CONTENT = """\
import random
content = random.Random(1).randbytes(3_000_001)
"""
TCP_SEND = f"""{CONTENT}
import socket
with socket.create_connection(("192.0.2.2", 4001)) as sock:
    sock.sendall(content)
"""
# Prints whether all has come.
TCP_RECEIVE = f"""{CONTENT}
import socket
server = socket.create_server(("192.0.2.2", 4001))
print("bound", flush=True)
connection = server.accept()[0]
print(b"".join(iter(lambda: connection.recv(1 << 20), b"")) == content)
"""
# Datagrams of 1,000 bytes in trains, as UDP_SEGMENT (103) makes them; the last of each is short.
TRAINS = """\
trains = [content[start : start + 40_300] for start in range(0, 1_000_000, 40_300)]
"""
UDP_SEND = f"""{CONTENT}{TRAINS}
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(17, 103, 1000)
    sock.connect(("192.0.2.2", 4000))
    for train in trains:
        sock.send(train)
"""
UDP_RECEIVE = f"""{CONTENT}{TRAINS}{BIND}
expected = [train[at : at + 1000] for train in trains for at in range(0, len(train), 1000)]
print([sock.recv(2048) for _ in expected] == expected)
"""


@pytest.fixture(scope="module")
def joined() -> Iterator[Wire]:
    # Figures of bad paths mean nothing without it, so what is missing is an error.
    assert shutil.which("cc") is not None, "no C compiler: apt-get install gcc libc6-dev"
    assert os.access("/dev/net/tun", os.R_OK | os.W_OK), "/dev/net/tun can't be opened: be root"
    with wire(CLEAR) as joined:
        yield joined


def transfer(joined: Wire, receive: str, send: str, *arguments: object) -> tuple[str, str]:
    """Run a receiver on the right and then a sender on the left; returns what each of them says."""
    receiver = joined.right.popen([sys.executable, "-c", receive], stdout=subprocess.PIPE)
    with receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"bound\n"
        sent = joined.left.run([sys.executable, "-c", send, *map(str, arguments)])
        return receiver.stdout.read().decode(), sent.stdout


def burst(joined: Wire, count: int, size: int) -> tuple[list[int], float]:
    """Send a burst; returns the numbers as they came, and the s from the first sent to the last."""
    received, began = transfer(joined, RECEIVE, SEND, count, size)
    come = json.loads(received)
    return [number for number, _ in come], come[-1][1] - float(began)


def test_the_round_trip_is_what_was_asked_for(joined: Wire) -> None:
    joined.set(Weather(0.04, 0))
    ping = joined.left.run(["ping", "-c", "5", "-i", "0.05", "192.0.2.2"]).stdout
    times = re.findall(r"time=([\d.]+) ms", ping)
    assert len(times) == 5, ping
    assert min(map(float, times)) >= 40


def test_the_rate_is_that_of_whole_packets(joined: Wire) -> None:
    joined.set(Weather(0, 10e6, queue=10))
    numbers, seconds = burst(joined, 100, 1222)
    assert numbers == list(range(100))
    # 100 packets of 1,250 bytes are 0.1 s at 10 Mbit/s; no machine makes that shorter.
    assert seconds >= 0.1


def test_what_the_queue_does_not_hold_is_dropped(joined: Wire) -> None:
    # The queue is 10 ms: 10 packets of 1 ms each, the one that is being sent, and those that
    # were sent while the burst was on its way in.
    joined.set(Weather(0, 10e6, queue=0.010))
    numbers, _ = burst(joined, 200, 1222)
    sums = joined.set(CLEAR)
    assert numbers[:11] == list(range(11))
    assert sums.overflowed == 200 - len(numbers)
    assert sums.overflowed > 0


def test_so_many_are_lost(joined: Wire) -> None:
    joined.set(Weather(0, 0, loss=0.1))
    numbers, _ = burst(joined, 400, 100)
    sums = joined.set(CLEAR)
    assert sums.lost == 400 - len(numbers)
    assert numbers == sorted(numbers)
    # 40 on average with a deviation of 6; the relay's randomness is the same each time.
    assert 10 < sums.lost < 90


def test_who_is_put_out_of_order_is_overtaken_by_three(joined: Wire) -> None:
    joined.set(Weather(0, 0, reordering=0.02))
    numbers, _ = burst(joined, 400, 100)
    sums = joined.set(CLEAR)
    assert sorted(numbers) == list(range(400))
    moved = [
        number
        for index, number in enumerate(numbers)
        if sum(other > number for other in numbers[:index]) >= 3
    ]
    assert moved
    # Where the sender was held up for some ms, nobody was there to overtake.
    assert len(moved) <= sums.reordered


@pytest.mark.parametrize("rate", [0, 200e6], ids=["unlimited", "200 Mbit/s"])
@pytest.mark.parametrize(
    ("receive", "send"), [(TCP_RECEIVE, TCP_SEND), (UDP_RECEIVE, UDP_SEND)], ids=["tcp", "udp"]
)
def test_trains_arrive_as_they_were_sent(
    joined: Wire, receive: str, send: str, rate: float
) -> None:
    # The checksums are the kernels': a train that was cut or joined wrongly does not arrive.
    joined.set(Weather(0.01, rate, queue=1))
    assert transfer(joined, receive, send)[0] == "True\n"


def test_a_train_loses_packets_one_by_one(joined: Wire) -> None:
    joined.set(Weather(0.01, 200e6, loss=0.02, reordering=0.02, queue=1))
    assert transfer(joined, TCP_RECEIVE, TCP_SEND)[0] == "True\n"
    sums = joined.set(CLEAR)
    # 3,000,001 bytes are at least 2,055 packets of 1,460 bytes.
    assert sums.delivered > 2055
    assert 10 < sums.lost < 200
