"""Fuzzing of everything that parses what others wrote; needs nothing but the project itself.

    python tests/fuzz/fuzz_messages.py --seconds 60 --seed 7
    python tests/fuzz/fuzz_messages.py --replay decode 6e61742d...

Inputs start as valid messages and are mutated by their structure: fields doubled, dropped, swapped,
their lengths falsified, bits flipped, two inputs spliced. The contract of every target: a value, or
the one exception that it is documented to raise, and never anything else. `campaign.py` tells how
a run goes on from there, and what comes of an input that breaks the contract.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path as File
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":  # a script finds what lies beside it, but not its own package
    sys.path.insert(0, str(File(__file__).parents[1]))

from fuzz import campaign
from fuzz.campaign import OPERATION, Features, Target, beginning, pack, run, split_operations
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
    import random
    from collections.abc import Iterator, Sequence

OURS, SMALLER, LARGER = b"\x80" * 16, bytes(16), b"\xff" * 16
PEER = Endpoint("203.0.113.2", 40001)
PATHS = (
    Path(0, PEER),
    Path(1, Endpoint("2001:db8::2", 40001)),
    Path(0, PEER._replace(port=999)),  # the peer's host, not its port: gets answers only
    Path(0, Endpoint("192.0.2.66", 40001)),  # another host: must never be answered
)


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


# -- operations on a machine, of which the first byte tells path and kind -------------------------

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


def unpack(data: bytes) -> Iterator[Operation]:
    """Read operations from any bytes at all."""
    for each in split_operations(data):
        head, pause, _ = OPERATION.unpack_from(each)
        body = each[OPERATION.size :]
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

_HEAD = 38  # bytes of a message before its first field
_FIELD = struct.Struct("!BH")


class Mutator(campaign.Mutator):
    """Knows the fields of a message, and the operations on a machine."""

    interesting = (0, 1, 2, 0x7F, 0x80, 0xFF, *range(1, 15))  # the last are types of fields
    head = 1

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.changes += (self.rearrange, self.rearrange, self.falsify, self.falsify)

    def parts(self, data: bytes) -> list[bytes]:
        """Return the operations."""
        return split_operations(data)

    def mutate_part(self, part: bytes, other: bytes) -> bytes:
        """Change an operation: where its datagram comes from and what it is, or the datagram."""
        chance = self.chance
        head, pause, _ = OPERATION.unpack_from(part)
        body = part[OPERATION.size :]
        if chance.random() < 0.25:
            return pack(
                chance.choice((0, 0, 1, 2, _IS_ERROR, _FINISHES)), chance.randrange(256), body
            )
        return pack(head, pause, self.mutate(body, other[OPERATION.size :]))

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


# -- running --------------------------------------------------------------------------------------

TARGET_FUNCTIONS: dict[str, Target] = {
    "decode": decode,
    "handshake": handshake,
    "tunnel": tunnel,
    "error_queue": error_queue,
    "command_line": command_line,
    "target": target,
}


class Campaign(campaign.Campaign):
    """A campaign over what parses messages, records, command lines and targets."""

    functions = TARGET_FUNCTIONS
    sequences = frozenset({"handshake", "tunnel"})
    mutator_type = Mutator

    def starts(self) -> dict[str, list[bytes]]:
        """Return what is valid, of every kind."""
        return {
            "decode": messages(),
            "handshake": sequences(self.chance),
            "tunnel": sequences(self.chance),
            "error_queue": error_records(),
            "command_line": list(COMMAND_LINES),
            "target": list(TARGETS),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return run(Campaign, arguments)


if __name__ == "__main__":
    sys.exit(main())
