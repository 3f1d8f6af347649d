from __future__ import annotations

import random
import sys

from nat_traverse.link.sealed import sort_out
from nat_traverse.net.offload import Arrived
from nat_traverse.wire.sealed import FIRST

ONE, OTHER = ("192.0.2.1", 1), ("192.0.2.2", 2)


def sealed(size: int, mark: int = 0) -> bytes:
    return bytes([FIRST]) + bytes([mark]) * (size - 1)


def packet(size: int, mark: int = 0) -> bytes:
    return b"\x40" + bytes([mark]) * (size - 1)


def test_nothing_has_arrived() -> None:
    assert sort_out([]) == ([], [])


def test_runs_of_one_kind_stay_as_they_are() -> None:
    run, other = sealed(100) * 3 + sealed(40), packet(100) * 2
    batches, others = sort_out([Arrived(run, 100, ONE), Arrived(other, 100, ONE)])
    assert [(each.sender, each.runs) for each in batches] == [(ONE, [(run, 100)])]
    assert (batches[0].datagrams, batches[0].octets) == (4, 340)
    assert others == [Arrived(other, 100, ONE)]


def test_senders_are_kept_apart_and_in_their_order() -> None:
    arrived = [Arrived(sealed(50, mark), 50, ONE if mark % 3 else OTHER) for mark in range(5)]
    batches, others = sort_out(arrived)
    assert others == []
    assert [(each.sender, each.datagrams) for each in batches] == [
        *((OTHER, 1), (ONE, 2), (OTHER, 1), (ONE, 1)),
    ]


def test_what_is_empty_is_nobodys() -> None:
    empty = Arrived(b"", 1, ONE)
    assert sort_out([empty]) == ([], [empty])


def test_a_mixed_run_is_sorted_whatever_comes_first_and_last() -> None:
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    for _ in range(300):
        kinds = [chance.choice((sealed, packet)) for _ in range(chance.randint(1, 8))]
        last = chance.randint(1, 60)
        pieces = [kind(60, mark) for mark, kind in enumerate(kinds)]
        pieces[-1] = pieces[-1][:last]
        size = 60 if len(pieces) > 1 else last
        batches, others = sort_out([Arrived(b"".join(pieces), size, ONE)])
        mine = [piece for piece in pieces if piece[0] == FIRST]
        theirs = [piece for piece in pieces if piece[0] != FIRST]
        assert b"".join(run for each in batches for run, _ in each.runs) == b"".join(mine)
        assert sum(each.datagrams for each in batches) == len(mine)
        assert b"".join(each.data for each in others) == b"".join(theirs)
