"""Fuzzing of everything that reads sealed datagrams, and the frames about their keys.

    python tests/fuzz/fuzz_sealed.py --seconds 60 --seed 7
    python tests/fuzz/fuzz_sealed.py --replay server 20000029...

Inputs start as what an honest peer sends, since chance is fixed here: whole conversations, with
renewals and datagrams under each key. They are changed by their structure: operations doubled,
dropped, swapped, their bytes falsified, two inputs spliced. What reaches something new joins the
inputs to start from, as in `fuzz_messages.py`. The contract: a frame that breaks the rules raises
RemoteProtocolError and nothing else does, whatever comes; what is delivered was sealed by the peer,
and is delivered once. Exit status 1 and the input in hexadecimal when that is broken; the same seed
finds it again.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.tunnel.keying import PACE, RENEW_AFTER, Keying
from nat_traverse.tunnel.sealing import Cipher
from nat_traverse.wire import sealed
from nat_traverse.wire.control import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CORPUS = 2000  # starting points kept for each target
LONGEST = 8192  # bytes of one input
SIZE = 44  # bytes of a datagram here
CONTENTS = frozenset(b"genuine %04d" % number for number in range(10_000))

Features = set[str]


# -- targets: each returns what the input reached, as words ---------------------------------------


def offer(data: bytes) -> Features:
    """Codecs of the frames: a value or RemoteProtocolError, and a value can be written again."""
    reached = set()
    for decode in (sealed.decode_offer, sealed.decode_answer):
        try:
            found = decode(data)
        except RemoteProtocolError as error:
            reached.add(beginning(str(error)))
        else:
            assert sealed.encode_offer(found) == data
            reached.add(f"{decode.__name__} {len(found.ciphers)}")
    try:
        assert sealed.encode_epoch(sealed.decode_epoch(data)) == data
    except RemoteProtocolError as error:
        reached.add(beginning(str(error)))
    else:
        reached.add("epoch")
    return reached


def split(data: bytes) -> Features:
    """wire.sealed.split: each datagram of a run by itself, and none is lost or added."""
    size, run = int.from_bytes(data[:1], "big") or 1, data[1:]
    found = sealed.split(run, size)
    datagrams = [run[at : at + size] for at in range(0, len(run), size)] or [b""]
    assert len(found) == len(datagrams)
    for (head, counter, rest), datagram in zip(found, datagrams, strict=True):
        if len(datagram) < sealed.SMALLEST:
            assert (head, counter, rest) == (b"", 0, b"")
            with suppress(RemoteProtocolError):
                raise AssertionError(sealed.index_of(datagram))
        else:
            assert head + counter.to_bytes(8, "little") + rest == datagram
            assert counter == sealed.counter_of(datagram)
            assert sealed.is_sealed(datagram) == (head == sealed.PREFIX + sealed.index_of(datagram))
    return {f"{min(len(found), 5)} {len(run) % size > 0} {size < sealed.SMALLEST}"}


def client(data: bytes) -> Features:
    """Keying, as the client: any frames, datagrams and pauses."""
    return keying(data, is_client=True)


def server(data: bytes) -> Features:
    """Keying, as the server."""
    return keying(data, is_client=False)


def keying(data: bytes, *, is_client: bool) -> Features:
    machine = honest(is_client=is_client)
    reached: Features = set()
    delivered: set[bytes] = set()
    now = 0.0
    for operation in unpack(data):
        now += operation.pause
        machine.handle_timer(now)
        due = machine.get_timer()
        assert due is None or due > now
        if operation.kind == DATAGRAMS:
            size = int.from_bytes(operation.data[:1], "big") or SIZE
            found = machine.open_run(operation.data[1:], size, now)
            assert CONTENTS.issuperset(found), "forged"
            assert not delivered.intersection(found), "delivered twice"
            assert len(set(found)) == len(found), "delivered twice"
            delivered.update(found)
            reached.add(f"opened {min(len(found), 4)}")
        else:
            try:
                machine.receive_frame(operation.kind, operation.data, now)
            except RemoteProtocolError as error:
                # The session is over, and so is what is asked of the machine.
                return reached | {beginning(str(error)), f"after {len(reached)}"}
        for kind, _ in machine.frames():
            reached.add(f"sent {Frame(kind).name}")
        assert len(machine.names) <= 3
        reached.add(f"keys {len(machine.names)} {machine.sealer is not None}")
    counts = (machine.opened, machine.forged, machine.replayed, machine.unknown)
    assert machine.opened == len(delivered)
    return reached | {f"counts {[min(count, 3) for count in counts]}"}


def beginning(text: str) -> str:
    """Return an error's words without the numbers in it."""
    return re.sub(r"\d+", "", text)


# -- operations, in bytes: kind (1), pause (1), length (2), data ----------------------------------

_OPERATION = struct.Struct("!BBH")
DATAGRAMS = 0xFF  # a kind that no frame has: the size of a datagram (1), then a run
# Indexed by the pause's byte.
_PAUSES = (0.0, 0.001, PACE, 4.0, 31.0, RENEW_AFTER, 181.0)
_SHORT, _UNTIL_RENEWAL = 0, 5


class Operation(NamedTuple):
    """One input of the machine. `pause` is in seconds, before it."""

    kind: int
    pause: float
    data: bytes


def pack(kind: int, pause: int, data: bytes) -> bytes:
    """Write one operation down."""
    return _OPERATION.pack(kind, pause, len(data)) + data


def unpack(data: bytes) -> Iterator[Operation]:
    """Read operations from any bytes at all."""
    for each in split_operations(data):
        kind, pause, _ = _OPERATION.unpack_from(each)
        yield Operation(kind, _PAUSES[pause % len(_PAUSES)], each[_OPERATION.size :])


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


# -- what to start from ---------------------------------------------------------------------------


def honest(*, is_client: bool) -> Keying:
    """Return a side whose chance is always the same, so that recorded datagrams open."""
    chance = random.Random(is_client)
    return Keying(
        is_client=is_client,
        ciphers=tuple(Cipher),
        random=chance.randbytes,
        now=0.0,
        binding=b"session",
    )


def conversations() -> tuple[list[bytes], list[bytes]]:
    """Return what a client and what a server hears, from the beginning to each of some ends."""
    ends = honest(is_client=True), honest(is_client=False)
    heard: tuple[list[bytes], list[bytes]] = ([], [])
    starts: tuple[list[bytes], list[bytes]] = ([], [])
    serial = 0
    for turn in range(3):
        now = turn * RENEW_AFTER
        pauses = [_UNTIL_RENEWAL if turn else _SHORT] * 2
        for end in ends:
            end.handle_timer(now)
        for source in (0, 1) * 3:
            sink = 1 - source
            for kind, value in ends[source].frames():
                ends[sink].receive_frame(kind, value, now)
                heard[sink].append(pack(kind, pauses[sink], value))
                pauses[sink] = _SHORT
            sealer = ends[source].sealer
            if sealer is not None:
                run = sealer.seal([b"genuine %04d" % (serial + each) for each in range(5)])
                serial += 5
                ends[sink].open_run(run, SIZE, now)
                heard[sink].append(pack(DATAGRAMS, pauses[sink], bytes([SIZE]) + run))
                pauses[sink] = _SHORT
            starts[sink].append(b"".join(heard[sink]))
    asked = pack(Frame.KEY_WANTED, 2, sealed.encode_epoch(3))
    starts[0].append(b"".join((*heard[0], asked)))
    return starts


def offers() -> list[bytes]:
    """Return the values of all kinds of frames."""
    return [
        operation[_OPERATION.size :]
        for side in conversations()
        for operation in split_operations(side[-1])
        if operation[0] != DATAGRAMS
    ]


def runs() -> list[bytes]:
    """Return runs of datagrams, with their sizes."""
    return [
        operation[_OPERATION.size :]
        for side in conversations()
        for operation in split_operations(side[-1])
        if operation[0] == DATAGRAMS
    ]


# -- mutation -------------------------------------------------------------------------------------

_INTERESTING = (0, 1, 2, 3, 4, 16, 31, 32, SIZE, 0x7F, 0x80, 0xFF)
_KINDS = (*range(0x20, 0x25), DATAGRAMS)


class Mutator:
    """Makes new inputs of old ones, by chance and by structure."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def mutate(self, data: bytes, other: bytes) -> bytes:
        """Return `data` after one to four changes; `other` is there to splice with."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 2, 3, 4))):
            data = self.change(data, other)
        return data[:LONGEST]

    def mutate_sequence(self, data: bytes, other: bytes) -> bytes:
        """Change a sequence of operations: one of them, their order, or any byte."""
        chance = self.chance
        if chance.random() < 0.05:
            return self.mutate(data, other)
        ours, theirs = split_operations(data), split_operations(other)
        if not ours:
            return other
        at = chance.randrange(len(ours))
        kind, pause, _ = _OPERATION.unpack_from(ours[at])
        body = ours[at][_OPERATION.size :]
        match chance.randrange(9):
            case 0:
                del ours[at]
            case 1 | 2:
                ours.insert(chance.randrange(len(ours) + 1), ours[at])
            case 3:
                ours[at:] = theirs[chance.randint(0, len(theirs)) :]
            case 4:
                ours[at] = pack(kind, chance.randrange(len(_PAUSES)), body)
            case 5:
                ours[at] = pack(chance.choice(_KINDS), pause, body)
            case 6 if kind == DATAGRAMS:
                ours[at] = pack(kind, pause, body[:1] + self.shuffle(body[1:]))
            case _:
                spare = theirs[0][_OPERATION.size :] if theirs else b""
                ours[at] = pack(kind, pause, self.mutate(body, spare))
        return b"".join(ours[:60])

    def shuffle(self, run: bytes) -> bytes:
        """Change the order of the datagrams of a run, with some doubled and some dropped."""
        datagrams = [run[at : at + SIZE] for at in range(0, len(run), SIZE)]
        return b"".join(self.chance.choices(datagrams, k=len(datagrams) + 1)) if datagrams else run

    def change(self, data: bytes, other: bytes) -> bytes:
        """Make one change."""
        chance = self.chance
        at = chance.randint(0, len(data))
        match chance.randrange(6):
            case 0:  # turn a bit
                new = bytes([data[at] ^ 1 << chance.randrange(8)]) if at < len(data) else b"\0"
            case 1:  # a byte that may mean something
                new = bytes([chance.choice(_INTERESTING)])
            case 2:  # put some bytes in
                return data[:at] + chance.randbytes(chance.randint(1, 50)) + data[at:]
            case 3:  # take some out
                return data[:at] + data[at + chance.randint(1, 50) :]
            case 4:  # double a piece
                return data[:at] + data[at : at + chance.randint(1, 2 * SIZE)] + data[at:]
            case _:  # go on with another input, or end
                return data[:at] + (other[at:] if chance.random() < 0.7 else b"")
        return data[:at] + new + data[at + 1 :]


# -- running --------------------------------------------------------------------------------------

TARGET_FUNCTIONS: dict[str, Callable[[bytes], Features]] = {
    "offer": offer,
    "split": split,
    "client": client,
    "server": server,
}
SEQUENCES = frozenset({"client", "server"})


class Failure(NamedTuple):
    """An input that broke the contract."""

    target: str
    data: bytes
    error: str

    def __str__(self) -> str:
        return (
            f"{self.error}\nreproduce: python tests/fuzz/fuzz_sealed.py"
            f" --replay {self.target} {self.data.hex()}\n"
        )


class Campaign:
    """One run over some targets, all in turn."""

    def __init__(self, seed: int, targets: Sequence[str]) -> None:
        self.chance = random.Random(seed)
        self.mutator = Mutator(self.chance)
        self.targets = targets
        heard_by_client, heard_by_server = conversations()
        starts = {
            "offer": offers(),
            "split": runs(),
            "client": heard_by_client,
            "server": heard_by_server,
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
