"""Fuzzing of everything that reads sealed datagrams, and the frames about their keys.

    python tests/fuzz/fuzz_sealed.py --seconds 60 --seed 7
    python tests/fuzz/fuzz_sealed.py --replay server 20000029...

Inputs start as what an honest peer sends, since chance is fixed here: whole conversations, with
renewals and datagrams under each key. They are changed by their structure: operations doubled,
dropped, swapped, their bytes falsified, two inputs spliced. The contract: a frame that breaks the
rules raises RemoteProtocolError and nothing else does, whatever comes; what is delivered was sealed
by the peer, and is delivered once. `campaign.py` tells how a run goes on, and what comes of an
input that breaks the contract.
"""

from __future__ import annotations

import random
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":  # a script finds what lies beside it, but not its own package
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import campaign
from fuzz.campaign import OPERATION, Features, Target, pack, run, split_operations
from nat_traverse.errors import RemoteProtocolError
from nat_traverse.tunnel.keying import PACE, RENEW_AFTER, Keying
from nat_traverse.tunnel.sealing import Cipher
from nat_traverse.wire import sealed
from nat_traverse.wire.control import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZE = 44  # bytes of a datagram here
CONTENTS = frozenset(b"genuine %04d" % number for number in range(10_000))


# -- targets: each returns what the input reached, as words ---------------------------------------


def offer(data: bytes) -> Features:
    """Codecs of the frames: a value or RemoteProtocolError, and a value can be written again."""
    reached = set()
    for decode in (sealed.decode_offer, sealed.decode_answer):
        try:
            found = decode(data)
        except RemoteProtocolError as error:
            reached.add(without_numbers(str(error)))
        else:
            assert sealed.encode_offer(found) == data
            reached.add(f"{decode.__name__} {len(found.ciphers)}")
    try:
        assert sealed.encode_epoch(sealed.decode_epoch(data)) == data
    except RemoteProtocolError as error:
        reached.add(without_numbers(str(error)))
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
                return reached | {without_numbers(str(error)), f"after {len(reached)}"}
        for kind, _ in machine.frames():
            reached.add(f"sent {Frame(kind).name}")
        assert len(machine.names) <= 3
        reached.add(f"keys {len(machine.names)} {machine.sealer is not None}")
    counts = (machine.opened, machine.forged, machine.replayed, machine.unknown)
    assert machine.opened == len(delivered)
    return reached | {f"counts {[min(count, 3) for count in counts]}"}


def without_numbers(text: str) -> str:
    """Return a complaint without its occasion, which often stands in the middle here."""
    return re.sub(r"0x[\da-f]+|\d+", "", text)


# -- operations on a machine, of which the first byte tells the kind ------------------------------

DATAGRAMS = 0xFF  # a kind that no frame has: the size of a datagram (1), then a run
# Indexed by the pause's byte.
_PAUSES = (0.0, 0.001, PACE, 4.0, 31.0, RENEW_AFTER, 181.0)
_SHORT, _UNTIL_RENEWAL = 0, 5


class Operation(NamedTuple):
    """One input of the machine. `pause` is in seconds, before it."""

    kind: int
    pause: float
    data: bytes


def unpack(data: bytes) -> Iterator[Operation]:
    """Read operations from any bytes at all."""
    for each in split_operations(data):
        kind, pause, _ = OPERATION.unpack_from(each)
        yield Operation(kind, _PAUSES[pause % len(_PAUSES)], each[OPERATION.size :])


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
        operation[OPERATION.size :]
        for side in conversations()
        for operation in split_operations(side[-1])
        if operation[0] != DATAGRAMS
    ]


def runs() -> list[bytes]:
    """Return runs of datagrams, with their sizes."""
    return [
        operation[OPERATION.size :]
        for side in conversations()
        for operation in split_operations(side[-1])
        if operation[0] == DATAGRAMS
    ]


# -- mutation -------------------------------------------------------------------------------------

_KINDS = (*range(0x20, 0x25), DATAGRAMS)


class Mutator(campaign.Mutator):
    """Knows the operations on a machine, and the datagrams in a run."""

    interesting = (0, 1, 2, 3, 4, 16, 31, 32, SIZE, 0x7F, 0x80, 0xFF)
    piece = SIZE
    longest = 8192  # a run has many datagrams
    most = 60  # so that it can go beyond a renewal

    def parts(self, data: bytes) -> list[bytes]:
        """Return the operations."""
        return split_operations(data)

    def mutate_part(self, part: bytes, other: bytes) -> bytes:
        """Change an operation: its kind, the pause before it, the order in a run, or its bytes."""
        chance = self.chance
        kind, pause, _ = OPERATION.unpack_from(part)
        body = part[OPERATION.size :]
        match chance.randrange(5):
            case 0:
                return pack(kind, chance.randrange(len(_PAUSES)), body)
            case 1:
                return pack(chance.choice(_KINDS), pause, body)
            case 2 if kind == DATAGRAMS:
                return pack(kind, pause, body[:1] + self.shuffle(body[1:]))
            case _:
                return pack(kind, pause, self.mutate(body, other[OPERATION.size :]))

    def shuffle(self, run: bytes) -> bytes:
        """Change the order of the datagrams of a run, with some doubled and some dropped."""
        datagrams = [run[at : at + SIZE] for at in range(0, len(run), SIZE)]
        return b"".join(self.chance.choices(datagrams, k=len(datagrams) + 1)) if datagrams else run


# -- running --------------------------------------------------------------------------------------

TARGET_FUNCTIONS: dict[str, Target] = {
    "offer": offer,
    "split": split,
    "client": client,
    "server": server,
}


class Campaign(campaign.Campaign):
    """A campaign over what reads sealed datagrams, and frames about keys."""

    functions = TARGET_FUNCTIONS
    sequences = frozenset({"client", "server"})
    mutator_type = Mutator

    def starts(self) -> dict[str, list[bytes]]:
        """Return what an honest peer sends."""
        heard_by_client, heard_by_server = conversations()
        return {
            "offer": offers(),
            "split": runs(),
            "client": heard_by_client,
            "server": heard_by_server,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return run(Campaign, arguments)


if __name__ == "__main__":
    sys.exit(main())
