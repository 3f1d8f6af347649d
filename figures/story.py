"""One run in which both gateways take uninvited packets, told from what was recorded of it.

Nothing in it is written by hand but the words: who sent what when, from which port, what the
gateways made of it, and which socket got through are those of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.model import Endpoint, ErrorKind, Rung
from nat_traverse.punch.machine import (
    Connected,
    PathValidated,
    PeerHeard,
    PeerRefused,
    RungStarted,
    Send,
)
from sim import kinds
from sim.nat import ALL_PORTS
from sim.run import Run, Side, ladder

if TYPE_CHECKING:
    from nat_traverse.model import Path
    from sim.run import End

LATER = 4.0  # s between the starts: the early side's packets are remembered, and not yet forgotten

_PEEK = 0.9  # s after the later start: its hellos have arrived, and nothing has got through yet
_LASTS = 30.0  # s
# The epoch's minute begins this many seconds before the run, so that the rungs that wait for a full
# minute are no part of it.
_WALL = 1_800_000_000.0 + 15.0
_SEEDS = 50  # one in two tells this story; the others find a path in another way

# Lifelines, from left to right.
LEFT, LEFT_GATEWAY, RIGHT_GATEWAY, RIGHT = range(4)


class Step(NamedTuple):
    """Something that happened: a packet from one lifeline to another, or (the same one) a word.

    `taken`: it ends with a gateway that takes the packet for its own.
    """

    at: float
    origin: int
    target: int
    text: str
    taken: bool = False


class Story(NamedTuple):
    """The steps in order, and the run's seed."""

    seed: int
    steps: tuple[Step, ...]


def find_story() -> Story:
    """Return the story of the first run in which the early side's search gets through."""
    for seed in range(1, _SEEDS):
        story = _tell(seed)
        if story is not None:
            return story
    raise AssertionError(f"none of the seeds below {_SEEDS} tells the story")


def _tell(seed: int) -> Story | None:
    side = Side(kinds.apdf(poison=True), factory=ladder(None))
    late = Side(side.gateways, starts=LATER, factory=side.factory)
    run = Run(seed, side, late, wall=_WALL, record=True)
    run.run(LATER + _PEEK)
    left, right = run.left, run.right
    changed = _changed_port(run)
    if changed is None or not run.run(_LASTS):
        return None
    through, door = left.path, right.path
    if left.rung is not Rung.SPRAY or through is None or door is None or through.socket != 0:
        return None
    probes = [at for at, send in left.records if send.path == through]
    opened = [at for at, send in right.records if send.path == door]
    tried = {
        send.path.remote.port
        for at, send in left.records
        if at <= probes[0] and send.path.socket == 0
    } - {right.port}
    port = through.remote.port
    pair = f"{left.port} to {right.port}"
    refused = _refusal(left, RIGHT_GATEWAY, LEFT, "ICMP port unreachable")
    back = f"{changed} to {left.port}"
    steps = [
        _opening(left, LEFT, LEFT_GATEWAY, f"opening {pair}, low TTL: dies on the way"),
        _hello(left, LEFT, RIGHT_GATEWAY, f"hello {pair}: uninvited, so taken"),
        refused,
        # From here on; the event is told with the next packet.
        Step(refused.at, LEFT, LEFT, "quiet: no hello of this pair gets that far any more"),
        _opening(right, RIGHT, RIGHT_GATEWAY, f"opening {right.port} to {left.port}, low TTL"),
        Step(
            right.records[0][0],
            RIGHT_GATEWAY,
            RIGHT_GATEWAY,
            f"{right.port} is taken: port {changed} instead",
        ),
        _hello(right, RIGHT, LEFT_GATEWAY, f"hello from {back}: uninvited, so taken"),
        _refusal(right, LEFT_GATEWAY, RIGHT, "ICMP port unreachable"),
        _rung(right, RIGHT, Rung.SPRAY, "spray: 253 fresh sockets, low TTL"),
        Step(opened[0], RIGHT, RIGHT_GATEWAY, f"one of them: opening {port} to {left.port}"),
        Step(probes[0], LEFT, RIGHT, f"probe {len(tried)}: hello {left.port} to {port}"),
        Step(_when(right, PeerHeard), RIGHT, LEFT, f"ack, and hello {port} to {left.port}"),
        Step(_when(left, PathValidated), LEFT, LEFT, "validated"),
        Step(_when(left, Connected), LEFT, LEFT, "connected"),
        Step(_when(right, Connected), RIGHT, RIGHT, "connected"),
    ]
    # In order of time; what is of the same moment stays as it stands.
    return Story(seed, tuple(sorted(steps, key=lambda step: step.at)))


def _changed_port(run: Run) -> int | None:
    """Return the port that the right gateway has given its host instead of the agreed one."""
    gateway, host = run.left.gateways[0].nat, run.right.host.public
    for port in range(ALL_PORTS.low, ALL_PORTS.high + 1):
        if gateway.takes(Endpoint(host, port), run.left.port, run.network.now):
            return port
    return None


def _opening(end: End, origin: int, target: int, text: str) -> Step:
    return Step(_sent(end, low=True), origin, target, text)


def _hello(end: End, origin: int, target: int, text: str) -> Step:
    return Step(_sent(end, low=False), origin, target, text, taken=True)


def _sent(end: End, *, low: bool) -> float:
    """Return when the end first sent something on the agreed pair, with a low TTL or without."""
    pair = _pair(end)
    return next(at for at, send in end.records if _is(send, pair, low))


def _is(send: Send, pair: Path, low: bool) -> bool:
    return send.path == pair and (send.ttl is not None) is low


def _pair(end: End) -> Path:
    return end.records[0][1].path


def _refusal(end: End, origin: int, target: int, text: str) -> Step:
    at = next(
        at
        for at, event in end.events
        if isinstance(event, PeerRefused) and event.error.kind is ErrorKind.PORT_UNREACHABLE
    )
    return Step(at, origin, target, text)


def _rung(end: End, where: int, rung: Rung, text: str) -> Step:
    at = next(
        at for at, event in end.events if isinstance(event, RungStarted) and event.rung is rung
    )
    return Step(at, where, where, text)


def _when(end: End, kind: type) -> float:
    found = end.event(kind)
    assert found is not None, f"{end.name}: no {kind.__name__}"
    return found[0]
