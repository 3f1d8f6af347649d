"""Floods of hostile datagrams at the real program, on loopback: it waits, and it relays."""

from __future__ import annotations

import errno
import random
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fuzz.fuzz_messages import Mutator
from nat_traverse.errors import EXIT_NO_PATH, RemoteProtocolError
from nat_traverse.model import Endpoint
from nat_traverse.net.udp import UdpSocket
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    Counts,
    Kind,
    Message,
    Mode,
    Reason,
    decode,
    encode,
)
from support.programs import PATIENCE, ours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.programs import Program

HOST = "127.0.0.1"
OTHER_HOST = "127.0.0.2"
WAITING_FLOOD = 100_000
RELAY_FLOOD = 20_000
WARM_UP = 20_000  # after so many all buffers have been used once, the largest datagrams included

# 80,000 datagrams after the warm-up that each left one object behind, of 32 bytes at the least,
# would take more than this; an allocator that is a little unlucky with its arenas takes less.
RSS_GROWTH = 2 * 1024 * 1024  # bytes

# Bytes sent before we wait for the program to have taken them: below the receive buffer that the
# kernel gives to everybody (212,992, with the kernel's own bytes counted).
IN_FLIGHT = 48 * 1024
LARGEST = 65_507  # bytes of payload in an IPv4 datagram
KERNEL_OVERHEAD = 1024  # bytes that the kernel counts for each datagram besides its own

# What must have arrived for the test to mean anything. Paced as above, all do.
ARRIVED = 0.6

# The schedule of hellos has ten a second at most. One more may be brought forward, two open.
HELLOS_A_SECOND = 10
HELLOS_BESIDE = 3


class Queue(NamedTuple):
    """What the kernel says of a UDP socket."""

    waiting: int  # bytes in its receive buffer, the kernel's own counted
    dropped: int  # datagrams


def queue_of(port: int) -> Queue:
    """Return the state of the IPv4 UDP socket on `port` of this host."""
    for line in Path("/proc/net/udp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            return Queue(int(fields[4].rpartition(":")[2], 16), int(fields[-1]))
    raise AssertionError(f"nobody listens on port {port}")


def memory_of(program: Program) -> int:
    """Return the resident memory of a process in bytes."""
    status = Path(f"/proc/{program.process.pid}/status").read_text("ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def descriptors_of(program: Program) -> int:
    return len(list(Path(f"/proc/{program.process.pid}/fd").iterdir()))


@contextmanager
def bound(port: int = 0, host: str = HOST) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        sock.setblocking(False)
        yield sock


class Attacker:
    """Makes hostile datagrams. What it makes names no nonce of the program's: it knows none."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.mutator = Mutator(self.chance)

    def message(self) -> bytes:
        """Return a sound message, and with a nonce that is never used again."""
        chance = self.chance
        maybe = chance.random
        message = Message(
            kind=chance.choice(list(Kind)),
            nonce=chance.randbytes(16),
            nominate=maybe() < 0.2,
            done=maybe() < 0.1,
            mark=maybe() < 0.1,
            serial=chance.randrange(2**32) if maybe() < 0.9 else None,
            echo=chance.randbytes(16) if maybe() < 0.3 else None,
            observed=Endpoint("198.51.100.2", 1) if maybe() < 0.2 else None,
            mode=Mode.PLAIN if maybe() < 0.3 else None,
            finished=Counts(0, 0) if maybe() < 0.1 else None,
            closing=chance.choice(list(Reason)) if maybe() < 0.1 else None,
            round_trip=chance.randrange(2**32) if maybe() < 0.1 else None,
        )
        return encode(message, size=chance.choice((0, 0, HELLO_SIZE, HELLO_SIZE, 1400)))

    def datagram(self) -> bytes:
        """Return anything."""
        (make,) = self.chance.choices(_MAKERS, _WEIGHTS)
        return make(self)

    def _mutant(self) -> bytes:
        return self.mutator.mutate(self.message(), self.message())

    def _magic(self) -> bytes:
        return self.chance.choice((HELLO_MAGIC, ACK_MAGIC))

    def _magic_and_noise(self) -> bytes:
        return self._magic() + self.chance.randbytes(self.chance.randint(1, 200))

    def _noise(self) -> bytes:
        return self.chance.randbytes(self.chance.randint(1, 1500))

    def _large_message(self) -> bytes:
        return self.message().ljust(LARGEST, b"\0")

    def _large_noise(self) -> bytes:
        return self.chance.randbytes(LARGEST)

    def _nothing(self) -> bytes:
        return b""


_MAKERS = (
    Attacker._mutant,
    Attacker.message,
    Attacker._magic,
    Attacker._magic_and_noise,
    Attacker._noise,
    Attacker._large_message,
    Attacker._large_noise,
    Attacker._nothing,
)
_WEIGHTS = (55, 23, 5, 5, 5, 1, 1, 5)  # per cent


class Pace:
    """Sends no faster than the program on `port` takes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._flying = 0

    def send(self, data: bytes, sock: socket.socket) -> bool:
        """Send; True when all that was sent so far has been taken from the socket's buffer."""
        sock.sendto(data, (HOST, self.port))
        self._flying += len(data) + KERNEL_OVERHEAD
        if self._flying < IN_FLIGHT:
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Wait until the socket's buffer is empty."""
        deadline = time.monotonic() + PATIENCE
        while queue_of(self.port).waiting:
            assert time.monotonic() < deadline, "the program does not take what was sent"
            time.sleep(0.0005)  # between looks; it takes about a millisecond
        self._flying = 0


def received(sock: socket.socket) -> Iterator[bytes]:
    """Yield what has arrived."""
    while True:
        try:
            yield sock.recv(65_535)
        except BlockingIOError:
            return


class Peer:
    """The agreed address and port, in an attacker's hands: notes questions, checks answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.began = time.monotonic()
        self.asked: dict[tuple[bytes, int | None], int] = {}
        self.hellos = 0
        self.acks = 0
        self.own: bytes | None = None  # a hello of the program's

    def may_ask(self, data: bytes) -> bool:
        """Note what is asked; False if its answer could be taken for that of another datagram."""
        try:
            message = decode(data)
        except RemoteProtocolError:
            return True
        if isinstance(message, Message) and message.kind is Kind.HELLO:
            key = (message.nonce, message.serial)
            if key in self.asked:
                return False
            self.asked[key] = len(data)
        return True

    def check(self) -> None:
        """Tell hellos, which come on schedule, from acks: none larger than what it answers."""
        for reply in received(self.sock):
            message = decode(reply)
            assert isinstance(message, Message), "a bare magic to a peer of today"
            if message.kind is Kind.HELLO:
                self.hellos += 1
                self.own = reply
                continue
            self.acks += 1
            assert message.echo is not None
            key = (message.echo, message.serial)
            assert len(reply) <= self.asked[key]
            self.asked[key] = 0  # and none is answered twice
        # Hellos are no answers: they come when they would have come anyway.
        elapsed = time.monotonic() - self.began
        assert self.hellos <= elapsed * HELLOS_A_SECOND + HELLOS_BESIDE


def test_a_flood_at_a_waiting_program() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (shown when the test fails)
    attacker = Attacker(seed)
    with ExitStack() as stack:
        peer_sock = stack.enter_context(bound())
        # From the peer's own host a hello is answered, whatever its port: a gateway may change it.
        strangers = [stack.enter_context(bound(host=OTHER_HOST)) for _ in range(8)]
        peer_port = peer_sock.getsockname()[1]
        peer = Peer(peer_sock)  # its clock has to start before the program's
        program = stack.enter_context(ours("--json", "--timeout=0", f"0:{HOST}:{peer_port}"))
        port = program.event("opened")["local_port"]
        pace = Pace(port)
        # A peer of today was heard; from then on a bare magic passes for nobody's.
        first = encode(Message(Kind.HELLO, attacker.chance.randbytes(16)), size=HELLO_SIZE)
        assert peer.may_ask(first)
        pace.send(first, peer_sock)
        program.event("heard")
        memory = descriptors = 0
        for number in range(WAITING_FLOOD):
            if number == WARM_UP:
                memory, descriptors = memory_of(program), descriptors_of(program)
            data = attacker.datagram()
            sender = peer_sock
            if number % 2:
                sender = attacker.chance.choice(strangers)
            elif number % 100 == 0 and peer.own is not None:
                data = peer.own  # its own, come back
            else:
                while not peer.may_ask(data):
                    data = attacker.datagram()
            if pace.send(data, sender):
                peer.check()
        pace.wait()
        assert program.process.poll() is None
        assert queue_of(port).dropped <= WAITING_FLOOD * (1 - ARRIVED)
        grown = memory_of(program) - memory
        print(f"{grown:,} bytes more, {peer.acks:,} acks, {queue_of(port).dropped} dropped")  # noqa: T201 (the same)
        assert grown <= RSS_GROWTH
        assert descriptors_of(program) == descriptors
        assert program.output == b""
        assert len(program.events) < 50  # what it says does not grow with what it hears
        assert "connected" not in {event["event"] for event in program.events}
        peer.check()
        assert peer.acks > WAITING_FLOOD // 20
        assert [list(received(stranger)) for stranger in strangers] == [[]] * len(strangers)
        # And after all that an honest peer at the agreed address connects.
        peer_sock.close()
        honest = stack.enter_context(ours("--json", f"{peer_port}:{HOST}:{port}"))
        talk(honest, program)


def talk(one: Program, other: Program) -> None:
    """See that both connect, say something each, and end in order."""
    for each in (one, other):
        assert each.event("connected")["generation"] == "current"
    one.write(b"at last\n")
    other.write(b"indeed\n")
    assert other.prints(8) == b"at last\n"
    assert one.prints(7) == b"indeed\n"
    for each in (one, other):
        each.close_input()
    assert (one.wait(), other.wait()) == (0, 0)


@contextmanager
def flooded(port: int) -> Iterator[None]:
    """Send more to `port` than anybody can take, all the time."""
    over = threading.Event()

    def flood() -> None:
        with UdpSocket(socket.AF_INET, 0, host=HOST) as sock:
            train = bytes(64 * 64)  # 64 datagrams in one call
            while not over.is_set():
                sock.send_segments([train], 64, (HOST, port))

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join()


def test_a_flood_without_pause_does_not_stop_the_clock_of_an_attempt() -> None:
    with bound() as peer:
        spec = f"0:{HOST}:{peer.getsockname()[1]}"
        with ours("--json", "--window=0", "--timeout=2", spec) as program:
            port = program.event("opened")["local_port"]
            with flooded(port):
                assert program.wait() == EXIT_NO_PATH
        assert len(list(received(peer))) >= 10  # its hellos went out all the time


def test_a_flood_without_pause_does_not_stop_the_clock_of_a_relay() -> None:
    """The peer is killed: the next keepalive, after ten seconds, is refused, and so is its copy."""
    with ExitStack() as stack:
        left, right, left_port, _ = connected_pair(stack)
        right.signal(signal.SIGKILL)
        right.wait()
        with flooded(left_port):
            assert left.wait() == errno.ECONNREFUSED


def connected_pair(stack: ExitStack) -> tuple[Program, Program, int, int]:
    """Return two programs that are connected, and the ports that they have.

    By a plain tunnel: what an encrypted one leaves to the kernel counts as dropped.
    """
    with bound() as reserved:
        right_port = reserved.getsockname()[1]
        left = stack.enter_context(ours("--json", "--plain", f"0:{HOST}:{right_port}"))
        left_port = left.event("opened")["local_port"]
    right = stack.enter_context(ours("--json", "--plain", f"{right_port}:{HOST}:{left_port}"))
    for each in (left, right):
        each.event("connected")
    return left, right, left_port, right_port


def test_a_flood_of_strangers_at_a_relay() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (shown when the test fails)
    attacker = Attacker(seed)
    rounds = 100
    with ExitStack() as stack:
        strangers = [stack.enter_context(bound()) for _ in range(8)]
        left, right, left_port, right_port = connected_pair(stack)
        paces = [Pace(left_port), Pace(right_port)]
        expected = [b"", b""]
        for _ in range(rounds):
            for number in range(RELAY_FLOOD // rounds):
                data = attacker.datagram()
                paces[number % 2].send(data, attacker.chance.choice(strangers))
            for number, (sender, receiver) in enumerate(((left, right), (right, left))):
                data = attacker.chance.randbytes(attacker.chance.randint(1, 5000))
                sender.write(data)
                expected[number] += data
                receiver.prints(len(expected[number]))
        for pace in paces:
            pace.wait()
        assert sum(queue_of(pace.port).dropped for pace in paces) <= RELAY_FLOOD * (1 - ARRIVED)
        for each in (left, right):
            each.close_input()
        assert (left.wait(), right.wait()) == (0, 0)
        assert [right.output, left.output] == expected
        assert [list(received(stranger)) for stranger in strangers] == [[]] * len(strangers)
        for each in (left, right):
            assert not {event["event"] for event in each.events} & {"restarted", "closed", "error"}
