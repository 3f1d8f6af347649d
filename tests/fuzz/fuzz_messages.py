"""Fuzzing of everything that parses what others wrote; needs nothing but the project itself.

    python tests/fuzz/fuzz_messages.py --seconds 60 --seed 7
    python tests/fuzz/fuzz_messages.py --replay decode 6e61742d...

Inputs start as valid messages and are mutated by their structure: fields doubled, dropped, swapped,
their lengths falsified, bits flipped, two inputs spliced. What reaches something new, an outcome
that no input before it had, joins the inputs to start from. The contract of every target: a value,
or the one exception that it is documented to raise, and never anything else. Exit status 1 and the
input in hexadecimal when that is broken; the same seed finds it again.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import struct
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.cli.arguments import parse as parse_arguments
from nat_traverse.cli.getopt import scan
from nat_traverse.cli.options import TUNNEL
from nat_traverse.errors import RemoteProtocolError, UsageError
from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.net import errqueue, features
from nat_traverse.net.resolve import parse_literal
from nat_traverse.punch.handshake import DATAGRAM_SIZE, Handshake, HandshakeSettings
from nat_traverse.punch.machine import Connected, Send
from nat_traverse.target import parse as parse_target
from nat_traverse.tunnel.plain import PlainTunnel
from nat_traverse.wire import hello as wire
from nat_traverse.wire.hello import Agreed, Bare, Counts, Kind, Message, Mode, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

OURS, SMALLER, LARGER = b"\x80" * 16, bytes(16), b"\xff" * 16
PEER = Endpoint("203.0.113.2", 40001)
PATHS = (
    Path(0, PEER),
    Path(1, Endpoint("2001:db8::2", 40001)),
    Path(0, PEER._replace(port=999)),  # the peer's host, not its port: gets answers only
    Path(0, Endpoint("192.0.2.66", 40001)),  # another host: must never be answered
)

# Starting points kept for each target. More would slow down the choice of the good ones.
CORPUS = 2000
LONGEST = 4096  # bytes of one input; a hello has 320, and what is longer only repeats itself

Features = set[str]


# -- targets: each returns what the input reached, as words ---------------------------------------


def decode(data: bytes) -> Features:
    """wire.decode: a value or RemoteProtocolError, and a value can be written again."""
    try:
        message = wire.decode(data)
    except RemoteProtocolError as error:
        return {beginning(str(error))}
    if isinstance(message, Bare):
        return {f"bare {message.kind.name}"}
    assert wire.decode(wire.encode(message)) == message
    fields = {name for name in Message.__slots__ if getattr(message, name) not in (None, False)}
    return {"message", *fields, f"{message.kind.name} {len(fields)}"}


def handshake(data: bytes) -> Features:
    """Handshake: any sequence of inputs; only the peer is answered, and with no larger ack."""
    first = data[0] if data else 0
    mode = Mode.PORTS if first & 0x40 else Mode.PLAIN
    settings = HandshakeSettings(OURS, window=first % 3, mode=mode)
    machine = Handshake(settings, PATHS[:2], 0.0)
    found: Features = set()
    now = 0.0
    for operation in unpack(data[1:]):
        now += operation.pause
        machine.handle_timer(now)
        list(machine.effects(now))
        if operation.error is None:
            machine.receive_datagram(operation.data, operation.path, now)
        else:
            machine.receive_error(operation.error, operation.path, now)
        for send in machine.effects(now):
            assert operation.error is None, "a refusal is not answered"
            assert isinstance(send, Send), "a datagram opens no socket"
            assert send.path in PATHS[:3], "an answer to a stranger"
            if not names_us(operation.data):
                assert send.path == operation.path, "an answer to somebody else"
                agreed = send.path in PATHS[:2]
                assert agreed or send.data.startswith(wire.ACK_MAGIC), "a hello to a stranger"
            check_answer(operation.data, send.data)
            found.add(f"send {send.data[:20].decode()} {len(send.data)}")
        while (event := machine.next_event()) is not None:
            found.add(type(event).__name__)
        found.add(f"timers {sorted(machine._timers)}")
    evidence = machine.evidence
    return found | {
        f"{name} {min(getattr(evidence, name), 3)}"
        for name in ("strangers", "malformed", "not_ours", "reflected", "stale")
    }


def tunnel(data: bytes) -> Features:
    """PlainTunnel: any sequence of inputs in a connected tunnel."""
    machine = connected()
    found: Features = set()
    now = 0.0
    for operation in unpack(data[1:]):
        now += operation.pause
        machine.handle_timer(now)
        list(machine.effects(now))
        if operation.error is not None:
            machine.receive_error(operation.error, now)
        elif not machine.take_message(operation.data, operation.path, now):
            machine.note_received(1, len(operation.data), now)
            machine.note_sent(1, len(operation.data), now)
            list(machine.effects(now))  # a mark, perhaps: no answer to this datagram
        if operation.finishes:
            machine.finish(now)
        for send in machine.effects(now):
            assert isinstance(send, Send), "a tunnel opens no socket"
            agreed = send.path in PATHS[:2]
            assert agreed or send.path == operation.path == PATHS[2], "a message to a stranger"
            assert agreed or send.data.startswith(wire.ACK_MAGIC), "a hello to a stranger"
            assert len(send.data) <= DATAGRAM_SIZE
            check_answer(operation.data, send.data)
            found.add(f"send {send.data[:20].decode()} {len(send.data)}")
        while (event := machine.next_event()) is not None:
            found.add(type(event).__name__)
        found.add(f"timers {sorted(machine._timers)}")
    return found


def beginning(text: str) -> str:
    """Return a complaint as far as it does not quote its occasion."""
    return re.split(r"[\d'\":]", text, maxsplit=1)[0]


def names_us(data: bytes) -> bool:
    """Tell whether a message is from somebody who reads our packets: from the peer, that is."""
    with suppress(RemoteProtocolError):
        message = wire.decode(data)
        return isinstance(message, Message) and message.echo == OURS
    return False


def check_answer(asked: bytes, answer: bytes) -> None:
    """Check what holds for a single datagram; the sums are checked in tests/property."""
    if answer.startswith(wire.ACK_MAGIC) and asked.startswith(wire.HELLO_MAGIC):
        assert len(answer) <= len(asked), "an ack is larger than its hello"


def connected() -> PlainTunnel:
    """Return a tunnel with the peer LARGER, over a path that a real handshake has connected."""
    machine = Handshake(HandshakeSettings(OURS), PATHS[:2], 0.0)
    nomination = Message(Kind.HELLO, LARGER, nominate=True, echo=OURS)
    machine.receive_datagram(wire.encode(nomination, size=DATAGRAM_SIZE), PATHS[0], 0.0)
    list(machine.effects(0.0))
    while not isinstance(event := machine.next_event(), Connected):
        assert event is not None, "no connection to start from"
    return PlainTunnel(machine, event, 0.0, room=65_536)


def error_queue(data: bytes) -> Features:
    """The kernel's error records: any bytes are a NetworkError or None."""
    options = ((socket.IPPROTO_IP, features.IP_RECVERR), (41, features.IPV6_RECVERR))
    direct = errqueue.parse_extended_error(data)
    for level, option in options:
        assert errqueue.parse_control([(level, option or 0, data)]) == direct
    if direct is None:
        return {"none"}
    return {direct.kind.name, f"reporter {direct.reporter is not None}", f"mtu {direct.mtu > 0}"}


def command_line(data: bytes) -> Features:
    """getopt and what is made of it: an argument list, its words separated by null bytes."""
    arguments = data.decode("utf-8", "surrogateescape").split("\0")
    found: Features = set()
    for posix in (False, True):
        result = scan(arguments, TUNNEL.options, posix=posix)
        assert len(result.events) + len(result.operands) <= len(arguments)
        found |= {beginning(text) for text in result.errors}
        try:
            request = parse_arguments(arguments, {"POSIXLY_CORRECT": ""} if posix else {})
        except UsageError:
            found.add("usage")
        else:
            found.add(type(request).__name__)
    return found


def target(data: bytes) -> Features:
    """LOCAL_PORT:PEER:REMOTE_PORT: a Target, which can be written and read again, or UsageError."""
    text = data.decode("utf-8", "surrogateescape")
    parse_literal(text, 1)
    try:
        found = parse_target(text)
    except UsageError as error:
        return {beginning(str(error))}
    assert parse_target(str(found)) == found
    literal = parse_literal(found.peer, found.remote_port)
    return {"name" if literal is None else f"literal {literal.is_ipv6} {literal.scope > 0}"}


# -- operations on a machine, in bytes: path and kind (1), pause (1), length (2), data ------------

_OPERATION = struct.Struct("!BBH")
# Indexed by the pause's byte: mostly short, sometimes long enough for any timer.
_PAUSES = (0.0, 0.001, 0.05, 0.1, 0.3, 1.0, 5.0, 31.0)
_IS_ERROR, _FINISHES = 0x80, 0x40


class Operation(NamedTuple):
    """One input of a machine. `pause` is in seconds, before it."""

    path: Path
    pause: float
    data: bytes
    error: NetworkError | None
    finishes: bool


def pack(head: int, pause: int, data: bytes) -> bytes:
    """Write one operation down."""
    return _OPERATION.pack(head, pause, len(data)) + data


def unpack(data: bytes) -> Iterator[Operation]:
    """Read operations from any bytes at all."""
    at = 0
    while at + _OPERATION.size <= len(data):
        head, pause, length = _OPERATION.unpack_from(data, at)
        at += _OPERATION.size
        body = data[at : at + length]
        at += length
        error = None
        if head & _IS_ERROR:
            kinds = list(ErrorKind)
            mtu = int.from_bytes(body[1:3], "big")
            kind = kinds[(body[0] if body else 0) % len(kinds)]
            error = NetworkError(kind, 111, "192.0.2.1" if len(body) % 2 else None, mtu)
        path = PATHS[head % len(PATHS)]
        yield Operation(path, _PAUSES[pause % len(_PAUSES)], body, error, bool(head & _FINISHES))


# -- what to start from ---------------------------------------------------------------------------


def messages() -> list[bytes]:
    """Return messages of every kind, most of them with few fields."""
    fields: list[dict[str, object]] = [
        {},
        {"serial": 1},
        {"nominate": True, "observed": PEER},
        {"nominate": True, "round_trip": 20_000},
        {"done": True},
        {"mark": True, "serial": 2, "room": 65_536},
        {"mode": Mode.PLAIN, "observed": Endpoint("2001:db8::7", 1)},
        {"mode": Mode.PORTS, "astray": True, "observed": PEER},
        {"agreed": Agreed.OPEN},
        {"agreed": Agreed.OPENED},
        {"agreed": Agreed.SILENT},
        {"agreed": Agreed.HOPELESS},
        {"finished": Counts(1, 1000), "serial": 3},
        {"received": Counts(0, 0)},
        *({"closing": reason, "received": Counts(1, 5)} for reason in Reason),
    ]
    whole = [
        Message(kind, nonce, echo=echo, **each)  # type: ignore[arg-type]  # of the fields above
        for kind in Kind
        for nonce in (SMALLER, LARGER, OURS)
        for echo in (None, OURS)
        for each in fields
    ]
    sizes = (0, wire.HELLO_SIZE)
    encoded = [wire.encode(each, size=size) for each in whole for size in sizes]
    return [wire.HELLO_MAGIC, wire.ACK_MAGIC, b"", b"user data", *encoded]


def sequences(chance: random.Random) -> list[bytes]:
    """Return some plausible courses of events."""
    single = messages()
    return [
        bytes([chance.choice((0, 0x40))])
        + b"".join(
            pack(chance.choice((0, 0, 0, 1, 2, 3)), chance.randrange(6), chance.choice(single))
            for _ in range(chance.randint(1, 8))
        )
        for _ in range(300)
    ]


def error_records() -> list[bytes]:
    """Return records of the kernel's error queue."""
    ipv4 = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes(4))
    ipv6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, bytes(16), 0)
    return [
        struct.pack("=IBBBxII", number, origin, kind, code, 1400, 0) + offender
        for number in (1, 90, 111, 113)
        for origin in range(5)
        for kind, code in ((1, 4), (2, 0), (3, 3), (3, 4), (11, 0))
        for offender in (b"", ipv4, ipv6)
    ]


COMMAND_LINES = (
    b"--window=3\x0040000:192.0.2.1:40001",
    b"1:h:2\0-q\0--json\0--timeout\0-1",
    b"--cmd\0echo hi\0--\x001:[2001:db8::1]:2",
    b"--handoff=x\0+v\0-h\0--qui\x001:h:2",
    b"demo\0--left\0drop\0--right=random",
)
TARGETS = (
    b"40000:192.0.2.1:40001",
    b"0:gw.example.org:1",
    b"1:[2001:db8::7]:65535",
    b"1:fe80::1%eth0:2",
    b"1:::ffff:192.0.2.1:2",
    b"1:b\xc3\xbccher.example:2",
)


# -- mutation -------------------------------------------------------------------------------------

_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, *range(1, 15))  # the last are types of fields
_HEAD = 38  # bytes of a message before its first field
_FIELD = struct.Struct("!BH")


class Mutator:
    """Makes new inputs of old ones, by chance and by structure."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def mutate(self, data: bytes, other: bytes) -> bytes:
        """Return `data` after one to four changes; `other` is there to splice with."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 2, 3, 4))):
            data = self.chance.choice(_CHANGES)(self, data, other)
        return data[:LONGEST]

    def mutate_sequence(self, data: bytes, other: bytes) -> bytes:
        """Change a sequence of operations: one of their datagrams, their order, or any byte."""
        chance = self.chance
        if chance.random() < 0.1:
            return self.mutate(data, other)
        ours, theirs = split_operations(data[1:]), split_operations(other[1:])
        if not ours:
            return data[:1] + b"".join(theirs)
        at = chance.randrange(len(ours))
        match chance.randrange(7):
            case 0:
                del ours[at]
            case 1:
                ours.insert(chance.randrange(len(ours)), ours[at])
            case 2:
                ours[at:] = theirs[: chance.randint(0, len(theirs))]
            case 3:
                head = chance.choice((0, 0, 1, 2, _IS_ERROR, _FINISHES))
                ours[at] = pack(head, chance.randrange(256), ours[at][_OPERATION.size :])
            case _:
                head, pause, _ = _OPERATION.unpack_from(ours[at])
                spare = theirs[0][_OPERATION.size :] if theirs else b""
                changed = self.mutate(ours[at][_OPERATION.size :], spare)
                ours[at] = pack(head, pause, changed)
        return data[:1] + b"".join(ours[:40])

    # Changes; each takes the input and another one, and returns a new input.

    def flip(self, data: bytes, _: bytes) -> bytes:
        """Turn one bit."""
        return self._put(data, lambda old: old ^ 1 << self.chance.randrange(8))

    def replace(self, data: bytes, _: bytes) -> bytes:
        """Write one byte that may mean something."""
        return self._put(data, lambda _: self.chance.choice(_INTERESTING))

    def insert(self, data: bytes, _: bytes) -> bytes:
        """Put some bytes in."""
        at = self.chance.randint(0, len(data))
        return data[:at] + self.chance.randbytes(self.chance.randint(1, 20)) + data[at:]

    def delete(self, data: bytes, _: bytes) -> bytes:
        """Take some bytes out."""
        at = self.chance.randint(0, len(data))
        return data[:at] + data[at + self.chance.randint(1, 20) :]

    def cut(self, data: bytes, _: bytes) -> bytes:
        """Cut the end off."""
        return data[: self.chance.randint(0, len(data))]

    def repeat(self, data: bytes, _: bytes) -> bytes:
        """Double a piece."""
        at = self.chance.randint(0, len(data))
        return data[:at] + data[at : at + self.chance.randint(1, 40)] + data[at:]

    def splice(self, data: bytes, other: bytes) -> bytes:
        """Go on with another input."""
        at = self.chance.randint(0, len(data))
        return data[:at] + other[self.chance.randint(0, len(other)) :]

    def pad(self, data: bytes, _: bytes) -> bytes:
        """Add zeros at the end, as padding does."""
        return data + bytes(self.chance.randint(1, 300))

    def rearrange(self, data: bytes, _: bytes) -> bytes:
        """Double, drop or swap whole fields of a message."""
        found = split_fields(data)
        if not found:
            return data
        at = self.chance.randrange(len(found))
        match self.chance.randrange(3):
            case 0:
                del found[at]
            case 1:
                found.insert(self.chance.randint(0, len(found)), found[at])
            case _:
                self.chance.shuffle(found)
        return data[:_HEAD] + b"".join(found)

    def falsify(self, data: bytes, _: bytes) -> bytes:
        """Change the length that a field claims, and sometimes its bytes with it."""
        found = split_fields(data)
        if not found:
            return data
        at = self.chance.randrange(len(found))
        kind, length = _FIELD.unpack_from(found[at])
        value = found[at][_FIELD.size :]
        length = self.chance.choice((0, 1, length + 1, max(length - 1, 0), length * 2, 0xFFFF))
        if self.chance.random() < 0.5:
            value = (value + bytes(64))[:length]
        found[at] = _FIELD.pack(kind, min(length, 0xFFFF)) + value
        return data[:_HEAD] + b"".join(found)

    def _put(self, data: bytes, change: Callable[[int], int]) -> bytes:
        if not data:
            return bytes([self.chance.randrange(256)])
        at = self.chance.randrange(len(data))
        return data[:at] + bytes([change(data[at])]) + data[at + 1 :]


_CHANGES = (
    Mutator.flip,
    Mutator.replace,
    Mutator.insert,
    Mutator.delete,
    Mutator.cut,
    Mutator.repeat,
    Mutator.splice,
    Mutator.pad,
    Mutator.rearrange,
    Mutator.rearrange,
    Mutator.falsify,
    Mutator.falsify,
)


def split_fields(data: bytes) -> list[bytes]:
    """Return the fields of a message as far as they can be told apart, and the rest."""
    found = []
    at = _HEAD
    while at + _FIELD.size <= len(data) and data[at]:
        _, length = _FIELD.unpack_from(data, at)
        end = min(at + _FIELD.size + length, len(data))
        found.append(data[at:end])
        at = end
    if at < len(data):
        found.append(data[at:])
    return [each for each in found if len(each) >= _FIELD.size]


def split_operations(data: bytes) -> list[bytes]:
    """Return the operations of a sequence, each in its own bytes."""
    found = []
    at = 0
    while at + _OPERATION.size <= len(data):
        _, _, length = _OPERATION.unpack_from(data, at)
        end = at + _OPERATION.size + length
        found.append(data[at:end])
        at = end
    return found


# -- running --------------------------------------------------------------------------------------

TARGET_FUNCTIONS: dict[str, Callable[[bytes], Features]] = {
    "decode": decode,
    "handshake": handshake,
    "tunnel": tunnel,
    "error_queue": error_queue,
    "command_line": command_line,
    "target": target,
}
SEQUENCES = frozenset({"handshake", "tunnel"})


class Failure(NamedTuple):
    """An input that broke the contract."""

    target: str
    data: bytes
    error: str

    def __str__(self) -> str:
        return (
            f"{self.error}\nreproduce: python tests/fuzz/fuzz_messages.py"
            f" --replay {self.target} {self.data.hex()}\n"
        )


class Campaign:
    """One run over some targets, all in turn."""

    def __init__(self, seed: int, targets: Sequence[str]) -> None:
        self.chance = random.Random(seed)
        self.mutator = Mutator(self.chance)
        self.targets = targets
        starts = {
            "decode": messages(),
            "handshake": sequences(self.chance),
            "tunnel": sequences(self.chance),
            "error_queue": error_records(),
            "command_line": list(COMMAND_LINES),
            "target": list(TARGETS),
        }
        self.corpus = {name: starts[name] for name in targets}
        self.seen: dict[str, Features] = {name: set() for name in targets}
        self.inputs: Counter[str] = Counter()

    def run(self, seconds: float) -> Failure | None:
        """Go on for `seconds`; return the first failure, or None."""
        for name in self.targets:
            for data in list(self.corpus[name]):
                failure = self.attempt(name, data)
                if failure is not None:
                    return failure
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name in self.targets:
                failure = self.attempt(name, self.next_input(name))
                if failure is not None:
                    return failure
        return None

    def next_input(self, name: str) -> bytes:
        """Return something new to try."""
        corpus = self.corpus[name]
        data, other = self.chance.choice(corpus), self.chance.choice(corpus)
        if name in SEQUENCES:
            return self.mutator.mutate_sequence(data, other)
        return self.mutator.mutate(data, other)

    def attempt(self, name: str, data: bytes) -> Failure | None:
        """Run one input; keep it if it reached something new."""
        self.inputs[name] += 1
        try:
            reached = TARGET_FUNCTIONS[name](data)
        except Exception:  # noqa: BLE001 (whatever it is, it is what we are looking for)
            return Failure(name, data, traceback.format_exc())
        if reached - self.seen[name]:
            self.seen[name] |= reached
            corpus = self.corpus[name]
            if len(corpus) < CORPUS:
                corpus.append(data)
        return None

    def report(self) -> str:
        """Return a table of what was done."""
        lines = [f"{'target':<14}{'inputs':>10}{'outcomes':>10}{'corpus':>10}"]
        lines += [
            f"{name:<14}{self.inputs[name]:>10,}{len(self.seen[name]):>10}"
            f"{len(self.corpus[name]):>10}"
            for name in self.targets
        ]
        return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--target", choices=TARGET_FUNCTIONS, action="append")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "HEX"))
    options = parser.parse_args(arguments)
    if options.replay:
        name, text = options.replay
        sys.stdout.write(f"{sorted(TARGET_FUNCTIONS[name](bytes.fromhex(text)))}\n")
        return 0
    sys.stdout.write(f"seed {options.seed}\n")
    campaign = Campaign(options.seed, options.target or list(TARGET_FUNCTIONS))
    failure = None
    with suppress(KeyboardInterrupt):
        failure = campaign.run(options.seconds)
    sys.stdout.write(campaign.report())
    if failure is not None:
        sys.stdout.write(f"FAILED\n{failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
