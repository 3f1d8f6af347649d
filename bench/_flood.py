"""Floods of datagrams at a chosen rate, from a node of the lab, in whomever's name.

They leave in trains (UDP_SEGMENT), so that a Python program is able to send 50,000 a second and
more; a lab without offload cuts them on the way, so that each arrives alone.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import HELLO_MAGIC, HELLO_SIZE, Message, Mode

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nat_traverse.lab import Node

# A TTL that nothing else in the lab has, by which a flood is told from other packets.
_TTL = 99

_COUNTER = """
table ip flooded {
    counter flood {
    }
    chain input {
        type filter hook input priority filter; policy accept;
        meta l4proto udp ip ttl 99 counter name flood
    }
}
"""

# Bytes of a datagram that is too large for no train of 64 (65,507 bytes): it has to be padded to
# 1,200 to be a first packet, which is looked at only later.
_FIRST_PACKET = 1000

# Datagrams in a train: the most that every kernel sends.
TRAIN = 64

_HEAD = struct.Struct("!HH")  # bytes of a datagram, datagrams

# Binds to an address that is not its own (IP_TRANSPARENT, linux/in.h), and sends the trains of a
# file over and over, so many datagrams a second, until its standard input ends. What the kernel has
# no room for is lost, as it would be on a wire.
_SENDER = """\
import select, socket, struct, sys, time
file, source, source_port, to, port, rate, ttl = sys.argv[1:]
with open(file, "rb") as opened:
    data = opened.read()
trains, at = [], 0
while at < len(data):
    size, count = struct.unpack_from("!HH", data, at)
    trains.append((size, count, data[at + 4 : at + 4 + size * count]))
    at += 4 + size * count
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_IP, 19, 1)
sock.setsockopt(socket.SOL_IP, socket.IP_TTL, int(ttl))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
sock.bind((source, int(source_port)))
print("ready", flush=True)
begun = time.monotonic()
sent = turn = 0
while True:
    size, count, train = trains[turn % len(trains)]
    turn += 1
    control = [(socket.SOL_UDP, 103, struct.pack("=H", size))]
    try:
        sock.sendmsg([train], control, 0, (to, int(port)))
    except OSError:
        pass
    sent += count
    ahead = begun + sent / float(rate) - time.monotonic()
    if ahead > 0.002 or not turn % 64:
        if select.select([sys.stdin], [], [], max(0, ahead))[0]:
            break
"""


class Train(NamedTuple):
    """Datagrams of one size that are sent at once."""

    size: int
    data: bytes


def train(datagrams: Sequence[bytes]) -> Train:
    """Return datagrams, all of one size, as a train."""
    size = len(datagrams[0])
    assert {len(data) for data in datagrams} == {size}
    assert len(datagrams) <= TRAIN
    return Train(size, b"".join(datagrams))


def count_floods(node: Node) -> None:
    """Begin to count what arrives of floods at a node."""
    made = node.run(["nft", "-f", "-"], text=_COUNTER)
    assert made.returncode == 0, made.stderr


def flooded(node: Node) -> int:
    """Return how many datagrams of floods have arrived at a node."""
    words = node.run(["nft", "list", "counters"]).stdout.split()
    return int(words[words.index("packets") + 1])


@contextmanager
def flood(
    node: Node,
    trains: Sequence[Train],
    source: tuple[str, int],
    to: tuple[str, int],
    *,
    rate: float,
    directory: Path,
) -> Iterator[None]:
    """Send `rate` datagrams a second from `node`, in the name of `source`, while in the block."""
    file = directory / "trains"
    file.write_bytes(
        b"".join(_HEAD.pack(each.size, len(each.data) // each.size) + each.data for each in trains)
    )
    words = (str(file), source[0], source[1], to[0], to[1], rate, _TTL)
    sender = node.popen(
        [sys.executable, "-I", "-S", "-c", _SENDER, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        assert sender.stdout.readline() == b"ready\n"
        try:
            yield
            assert sender.poll() is None, "the flood has ended by itself"
        finally:
            sender.stdin.close()
            sender.wait()


class Flood(NamedTuple):
    """What is sent, in turns, and whether it is sent in the name of the peer or from elsewhere."""

    name: str
    makes: tuple[Callable[[random.Random], bytes], ...]
    as_peer: bool = True

    def trains(self, chance: random.Random) -> list[Train]:
        turns = 40 // len(self.makes)
        return [train([make(chance) for _ in range(TRAIN)]) for make in self.makes * turns]


def hello(chance: random.Random) -> bytes:
    message = Message(
        wire.Kind.HELLO,
        chance.randbytes(16),
        serial=chance.randrange(2**32),
        mode=Mode.TUNNEL,
    )
    return wire.encode(message, size=HELLO_SIZE)


def ack(chance: random.Random) -> bytes:
    return wire.encode(
        Message(
            wire.Kind.ACK,
            chance.randbytes(16),
            serial=chance.randrange(2**32),
            echo=chance.randbytes(16),
        )
    )


def bare(_: random.Random) -> bytes:
    return HELLO_MAGIC


def short_header(chance: random.Random) -> bytes:
    return bytes((0x40 | chance.randrange(64),)) + chance.randbytes(HELLO_SIZE - 1)


def long_header(chance: random.Random) -> bytes:
    """Begin like the first packet of a connection (RFC 9000, section 17.2.2), and go on anyhow."""
    head = bytes((0xC0,)) + (1).to_bytes(4, "big") + bytes((8,)) + chance.randbytes(8)
    return head + chance.randbytes(_FIRST_PACKET - len(head))


EVERYTHING = (hello, ack, bare, short_header, long_header)
FLOODS = (
    Flood("hellos", (hello,)),
    Flood("hellos from elsewhere", (hello,), as_peer=False),
    Flood("acks", (ack,)),
    Flood("magics", (bare,)),
    Flood("packets", (short_header,)),
    Flood("everything", EVERYTHING),
    Flood("everything from elsewhere", EVERYTHING, as_peer=False),
)
