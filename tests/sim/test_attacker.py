"""A stranger who sees nothing may send anything, from any address, to both ends.

The stranger knows both public addresses and the agreed ports; what is missing are the nonces.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nat_traverse.model import Endpoint, ErrorKind, Generation
from nat_traverse.punch.machine import Connected, PathValidated
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    Agreed,
    Counts,
    Kind,
    Message,
    Mode,
    Reason,
    encode,
)
from sim import kinds
from sim.pool import in_parallel
from sim.run import Link, Run, Side, ladder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.run import End

RUNS = 10_000
LIMIT = 150.0  # s from the later start

# s between two forged packets, at first and when the run lasts.
_PACE, _SLOW_PACE = 0.01, 0.25
_QUICKLY = 1.5

# Who has no secret accepts a peer of generation 0.7, whose bare magics anybody can forge, unless a
# peer of today answers within a second (docs/protocol.md). Both ends are up by then; where finding
# a path takes longer they have a secret.
_LATEST = 0.5
_SECRET = b"what the stranger does not know"
_MAY_CONNECT_AT_ONCE = ["none", "eim", "adf", "apdf"]

# What a forged packet may say.
_KINDS = tuple(Kind)
_MODES = (None, *Mode)
_REASONS = (None, *Reason)
_STEPS = (None, *Agreed)
_ERRORS = tuple(ErrorKind)

pytestmark = pytest.mark.timeout(1200)


class Verdict(NamedTuple):
    """What came of one run; empty strings where all is well."""

    seed: int
    wrong: str


def forged(chance: random.Random) -> bytes:
    """Return a datagram of any kind that can be made without having seen one."""
    kind = chance.choice(_KINDS)
    draw = chance.random()
    if draw < 0.15:
        return chance.choice((HELLO_MAGIC, ACK_MAGIC))
    if draw < 0.25:
        return chance.randbytes(chance.randrange(60))
    if draw < 0.3:
        return kind.value + chance.randbytes(chance.randrange(100))
    message = Message(
        kind,
        chance.randbytes(16),
        nominate=chance.random() < 0.5,
        done=chance.random() < 0.3,
        mark=chance.random() < 0.1,
        astray=chance.random() < 0.3,
        serial=chance.choice((None, chance.randrange(50))),
        echo=chance.choice((None, chance.randbytes(16))),
        observed=chance.choice((None, Endpoint("192.0.2.66", chance.randrange(65536)))),
        mode=chance.choice(_MODES),
        finished=chance.choice((None, Counts(0, 0))),
        closing=chance.choice(_REASONS),
        agreed=chance.choice(_STEPS),
    )
    return encode(message, size=chance.choice((0, 320, 1400)))


def address(chance: random.Random, end: End, peer: End) -> Endpoint:
    """Return a forged source: often the very one that `end` waits for."""
    host = chance.choice((peer.host.public, peer.host.public, "192.0.2.66", "10.0.0.1"))
    port = chance.choice((peer.port, peer.port, chance.randrange(1, 65536)))
    return Endpoint(host, port) if host != end.host.public else peer.public


def attack(run: Run, chance: random.Random) -> None:
    """Send one packet to either end, or an ICMP error, and come again."""
    end, peer = chance.choice(((run.left, run.right), (run.right, run.left)))
    port = chance.choice((end.port, end.port, end.port, chance.randrange(1, 65536)))
    target = Endpoint(end.host.public, port)
    source = address(chance, end, peer)
    if chance.random() < 0.2:
        kind = chance.choice(_ERRORS)
        reporter = chance.choice((peer.host.public, "192.0.2.1", "10.1.2.3", "100.64.9.9"))
        run.network.forge(kind, reporter, target, source)
    else:
        run.network.inject(source, target, forged(chance))
    pace = _PACE if run.network.now < _QUICKLY else _SLOW_PACE
    run.network.at(run.network.now + pace * chance.random() * 2, attack, run, chance)


def complaints(run: Run) -> Iterator[str]:
    """Yield what must not have happened."""
    if not run.connected:
        yield f"not connected, {run.left.side.gateways} {run.right.side.gateways}"
    for end, peer in ((run.left, run.right), (run.right, run.left)):
        for _, event in end.events:
            if isinstance(event, PathValidated | Connected):
                host = event.path.remote.host
                if host != peer.host.public:
                    yield f"{end.name} was led to {host}"
            if isinstance(event, Connected) and event.generation is not Generation.CURRENT:
                yield f"{end.name} took its peer for a 0.7"
        elsewhere = {send.path.remote.host for _, send in end.records} - {peer.host.public}
        if elsewhere:
            yield f"{end.name} sent to {elsewhere}"


def play(seed: int) -> Verdict:
    """Let two honest ends connect under attack; which gateways they have depends on the seed."""
    chance = random.Random(f"attack {seed}")
    # One run in twenty has one gateway that changes ports, which takes longer.
    names = [chance.choice(_MAY_CONNECT_AT_ONCE), chance.choice(_MAY_CONNECT_AT_ONCE)]
    poison = chance.random() < 0.3
    secret = _SECRET if poison else b""
    if seed % 20 == 0:
        # Not poisoned: who keeps sending to a gateway that takes packets for its own can spoil the
        # agreed port there for good, and a peer with changing ports lets in that port only.
        secret, poison = _SECRET, False
        names[chance.randrange(2)] = chance.choice(("random", "sequential"))
    starts = [0.0, _LATEST * chance.random()]
    sides = [
        Side(kinds.GRID[name](poison=poison), starts=start, factory=ladder(None, secret=secret))
        for name, start in zip(names, starts, strict=True)
    ]
    run = Run(seed, sides[0], sides[1], Link(latency=chance.uniform(0.005, 0.1)), record=True)
    run.network.at(0.0, attack, run, chance)
    run.run(starts[1] + LIMIT)
    return Verdict(seed, "; ".join(complaints(run)))


def test_ten_thousand_attacks_lead_nowhere() -> None:
    wrong = [each for each in in_parallel(play, range(RUNS), piece=100) if each.wrong]
    assert not wrong, f"{len(wrong)} of {RUNS} runs went wrong: {wrong[:5]}"
