"""How the fuzzers of this directory work: what they share; each has its targets and their formats.

A target is a function of any bytes. It feeds them to a parser or a machine, checks with `assert`
what must hold whatever comes, and returns what the input reached, as words: the kind of the value,
the beginning of the complaint, how often something happened. Any exception that leaves it breaks
the contract.

A campaign goes over its targets in turn. It first runs the inputs to start from, which are valid
and differ in kind, since what is only random gets stuck at the first check. From then on each input
is an old one, chosen by chance and changed by a Mutator: byte by byte, by what its format knows of
structure, and, if it is a sequence, in its parts and their order. An input that reached a word
which none had reached before joins those to start from, so that the next ones get farther. Words
stand in for a measurement of coverage, which would slow down every input.

All chance comes from one seed, which is printed first: the same seed tries the same inputs, in the
same order. Only where it ends is left to the clock. The first input that breaks the contract ends
the campaign: it is printed in hexadecimal with the command that runs it again, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
import inspect
import random
import re
import struct
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Features = set[str]
Target = Callable[[bytes], Features]
Change = Callable[[bytes, bytes], bytes]

# Starting points kept for each target. More would slow down the choice of the good ones.
CORPUS = 2000


# -- running --------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """An input that broke the contract. `script` is the name of the fuzzer's file."""

    script: str
    target: str
    data: bytes
    error: str

    def __str__(self) -> str:
        return (
            f"{self.error}\nreproduce: python tests/fuzz/{self.script}"
            f" --replay {self.target} {self.data.hex()}\n"
        )


class Campaign(ABC):
    """One run over some targets, all in turn. A fuzzer says in a subclass which there are.

    The inputs of the targets in `sequences` consist of parts, and are changed as such.
    """

    functions: ClassVar[Mapping[str, Target]]
    sequences: ClassVar[frozenset[str]]
    mutator_type: ClassVar[type[Mutator]]

    def __init__(self, seed: int, targets: Sequence[str]) -> None:
        self.chance = random.Random(seed)
        self.mutator = self.mutator_type(self.chance)
        self.targets = targets
        starts = self.starts()
        self.corpus = {name: starts[name] for name in targets}
        self.seen: dict[str, Features] = {name: set() for name in targets}
        self.inputs: Counter[str] = Counter()

    @abstractmethod
    def starts(self) -> dict[str, list[bytes]]:
        """Return the inputs to start from, for each target; chance is `self.chance`."""

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
        if name in self.sequences:
            return self.mutator.mutate_sequence(data, other)
        return self.mutator.mutate(data, other)

    def attempt(self, name: str, data: bytes) -> Failure | None:
        """Run one input; keep it if it reached something new."""
        self.inputs[name] += 1
        try:
            reached = self.functions[name](data)
        except Exception:  # noqa: BLE001 (whatever it is, it is what we are looking for)
            script = Path(inspect.getfile(type(self))).name
            return Failure(script, name, data, traceback.format_exc())
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


def run(kind: type[Campaign], arguments: Sequence[str] | None = None) -> int:
    """Run a campaign of that kind from the command line; return the exit status."""
    about = inspect.getdoc(inspect.getmodule(kind)) or ""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--target", choices=kind.functions, action="append")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "HEX"))
    options = parser.parse_args(arguments)
    if options.replay:
        name, text = options.replay
        sys.stdout.write(f"{sorted(kind.functions[name](bytes.fromhex(text)))}\n")
        return 0
    sys.stdout.write(f"seed {options.seed}\n")
    campaign = kind(options.seed, options.target or list(kind.functions))
    failure = None
    with suppress(KeyboardInterrupt):
        failure = campaign.run(options.seconds)
    sys.stdout.write(campaign.report())
    if failure is not None:
        sys.stdout.write(f"FAILED\n{failure}")
        return 1
    return 0


def beginning(text: str) -> str:
    """Return a complaint as far as it does not quote its occasion."""
    return re.split(r"[\d'\":]", text, maxsplit=1)[0]


# -- mutation -------------------------------------------------------------------------------------


class Mutator(ABC):
    """Makes new inputs of old ones, by chance. A format's own knowledge is in a subclass.

    `interesting` are bytes that may mean something in the format. `piece` is how many bytes are put
    in or taken out at most, `longest` how many an input has, and `most` how many parts a sequence,
    behind the `head` bytes with which it begins.
    """

    interesting: ClassVar[Sequence[int]]
    piece: ClassVar[int] = 20
    longest: ClassVar[int] = 4096  # a hello has 320, a packet 1,500; more only repeats itself
    most: ClassVar[int] = 40
    head: ClassVar[int] = 0

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        # One is chosen each time; what is in here twice is chosen twice as often.
        self.changes: tuple[Change, ...] = (
            self.flip,
            self.replace,
            self.insert,
            self.delete,
            self.cut,
            self.repeat,
            self.splice,
            self.pad,
        )

    def mutate(self, data: bytes, other: bytes) -> bytes:
        """Return `data` after one to four changes; `other` is there to splice with."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 2, 3, 4))):
            data = self.chance.choice(self.changes)(data, other)
        return data[: self.longest]

    def mutate_sequence(self, data: bytes, other: bytes) -> bytes:
        """Change a sequence: one of its parts, their order, or any byte."""
        chance = self.chance
        ours, theirs = self.parts(data[self.head :]), self.parts(other[self.head :])
        if not ours or chance.random() < 0.05:
            return self.mutate(data, other)
        at = chance.randrange(len(ours))
        match chance.randrange(8):
            case 0:
                del ours[at]
            case 1:
                ours.insert(chance.randint(0, len(ours)), ours[at])
            case 2:
                ours[at:] = theirs[chance.randint(0, len(theirs)) :]
            case 3:
                ours[at], ours[0] = ours[0], ours[at]
            case _:
                ours[at] = self.mutate_part(ours[at], chance.choice(theirs) if theirs else b"")
        return data[: self.head] + b"".join(ours[: self.most])

    @abstractmethod
    def parts(self, data: bytes) -> list[bytes]:
        """Return the parts of a sequence, each in its own bytes."""

    @abstractmethod
    def mutate_part(self, part: bytes, other: bytes) -> bytes:
        """Return a part of a sequence with something changed in it."""

    def place(self, end: int) -> int:
        """Choose where to change something: from 0 to `end`, which is among them."""
        return self.chance.randint(0, end)

    # Changes; each takes the input and another one, and returns a new input.

    def flip(self, data: bytes, _: bytes) -> bytes:
        """Turn one bit."""
        return self._put(data, lambda old: old ^ 1 << self.chance.randrange(8))

    def replace(self, data: bytes, _: bytes) -> bytes:
        """Write one byte that may mean something."""
        return self._put(data, lambda _: self.chance.choice(self.interesting))

    def insert(self, data: bytes, _: bytes) -> bytes:
        """Put some bytes in."""
        at = self.place(len(data))
        return data[:at] + self.chance.randbytes(self.chance.randint(1, self.piece)) + data[at:]

    def delete(self, data: bytes, _: bytes) -> bytes:
        """Take some bytes out."""
        at = self.place(len(data))
        return data[:at] + data[at + self.chance.randint(1, self.piece) :]

    def cut(self, data: bytes, _: bytes) -> bytes:
        """Cut the end off."""
        return data[: self.place(len(data))]

    def repeat(self, data: bytes, _: bytes) -> bytes:
        """Double a piece."""
        at = self.place(len(data))
        return data[:at] + data[at : at + self.chance.randint(1, 2 * self.piece)] + data[at:]

    def splice(self, data: bytes, other: bytes) -> bytes:
        """Go on with another input, where that is as far, or anywhere in it."""
        at = self.place(len(data))
        to = at if self.chance.random() < 0.5 else self.chance.randint(0, len(other))
        return data[:at] + other[to:]

    def pad(self, data: bytes, _: bytes) -> bytes:
        """Add zeros at the end, as padding does."""
        return data + bytes(self.chance.randint(1, 300))

    def _put(self, data: bytes, change: Callable[[int], int]) -> bytes:
        if not data:
            return bytes([self.chance.randrange(256)])
        at = self.place(len(data) - 1)
        return data[:at] + bytes([change(data[at])]) + data[at + 1 :]


# -- what happens to a machine, in bytes: what it is (1), pause (1), length (2), data --------------

OPERATION = struct.Struct("!BBH")


def pack(head: int, pause: int, data: bytes) -> bytes:
    """Write one operation down. What `head` and `pause` stand for is up to the fuzzer."""
    return OPERATION.pack(head, pause, len(data)) + data


def split_operations(data: bytes) -> list[bytes]:
    """Read operations from any bytes at all; return each in its own bytes."""
    found = []
    at = 0
    while at + OPERATION.size <= len(data):
        _, _, length = OPERATION.unpack_from(data, at)
        end = at + OPERATION.size + length
        found.append(data[at:end])
        at = end
    return found
