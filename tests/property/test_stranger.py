"""A stranger between two honest ends: he can send anything as anybody, and sees nothing.

What he can't do, and is checked here: connect as a peer of today, or keep two such peers from
connecting. What he can do is in `test_handshake`: pass for a 0.7 peer, and so downgrade an attempt
that has not heard its peer yet, since 0.7 has nothing that could be checked.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.model import Generation
from nat_traverse.punch.handshake import Handshake, HandshakeSettings
from nat_traverse.punch.machine import Connected, Settled
from nat_traverse.wire.hello import Bare, decode
from property import strategies as given_by
from support.pair import TO_LEFT, TO_RIGHT, Link, Pair

LEFT_NONCE, RIGHT_NONCE = random.Random(7).randbytes(16), random.Random(8).randbytes(16)
GUESSES = [bytes(16), b"\xff" * 16, LEFT_NONCE[:15] + b"\0"]


def is_bare(data: bytes) -> bool:
    try:
        return isinstance(decode(data), Bare)
    except RemoteProtocolError:
        return False


forgeries = given_by.datagrams(GUESSES, [None, *GUESSES], legacy=False).filter(
    lambda data: not is_bare(data)
)
attacks = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(["left", "right"]), forgeries), max_size=30
)


def run(attack: list[tuple[float, str, bytes]], *, loss: float, late: float, seed: int) -> Pair:
    pair = Pair(
        lambda now: Handshake(HandshakeSettings(LEFT_NONCE), [TO_RIGHT], now),
        lambda now: Handshake(HandshakeSettings(RIGHT_NONCE), [TO_LEFT], now),
        seed=seed,
        link=Link(loss=loss, jitter=0.005),
        right_starts=late,
    )
    for at, end, data in sorted(attack, key=lambda each: each[0]):
        pair.run(at)
        pair.deliver(end, data)
    pair.run(60.0)
    return pair


def check(pair: Pair) -> None:
    for end in (pair.left, pair.right):
        connected = end.event(Connected)
        assert connected is not None
        assert isinstance(connected[1], Connected)
        assert connected[1].path == end.path
        assert connected[1].generation is Generation.CURRENT
        assert end.event(Settled) is not None
    assert isinstance(pair.left.machine, Handshake)
    assert isinstance(pair.right.machine, Handshake)
    assert pair.left.machine.peer_nonce == RIGHT_NONCE
    assert pair.right.machine.peer_nonce == LEFT_NONCE


@settings(max_examples=150, deadline=None)
@given(attacks, st.floats(0, 2))
def test_he_keeps_nobody_from_connecting(
    attack: list[tuple[float, str, bytes]], late: float
) -> None:
    check(run(attack, loss=0.0, late=late, seed=1))


@settings(max_examples=150, deadline=None)
@given(attacks, st.floats(0, 2), st.integers(0, 10**6))
def test_nor_where_packets_are_lost(
    attack: list[tuple[float, str, bytes]], late: float, seed: int
) -> None:
    check(run(attack, loss=0.3, late=late, seed=seed))


@settings(max_examples=150, deadline=None)
@given(attacks, st.floats(0, 2))
def test_nor_slow_it_down_by_more_than_the_pace_of_hellos(
    attack: list[tuple[float, str, bytes]], late: float
) -> None:
    undisturbed = run([], loss=0.0, late=late, seed=1)
    disturbed = run(attack, loss=0.0, late=late, seed=1)
    for name in ("left", "right"):
        alone = undisturbed.ends[name].event(Connected)
        beset = disturbed.ends[name].event(Connected)
        assert alone is not None
        assert beset is not None
        assert beset[0] < alone[0] + 0.3
