"""Runs of two real machines: what is measured of them is true."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nat_traverse.model import Endpoint, Path, Rung
from nat_traverse.punch.machine import (
    CloseSocket,
    DeadlinePassed,
    Effect,
    Event,
    OpenSocket,
    Send,
)
from sim import kinds
from sim.network import EPHEMERAL
from sim.run import Birth, Link, Run, Side, direct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.model import NetworkError

EASY = ["none", "eim", "adf", "apdf"]


@pytest.mark.parametrize("left", EASY)
@pytest.mark.parametrize("right", EASY)
@pytest.mark.parametrize("later", [0.0, 1.3])
def test_easy_gateways_are_crossed_directly(left: str, right: str, later: float) -> None:
    for seed in range(5):
        run = Run(
            seed, Side(kinds.GRID[left]()), Side(kinds.GRID[right](), starts=later), Link(loss=0.05)
        )
        assert run.run(60.0), f"seed {seed}"
        assert run.waited is not None
        assert run.waited < 5.0, f"seed {seed}"
        for end, other in ((run.left, run.right), (run.right, run.left)):
            assert end.rung is Rung.DIRECT
            assert end.agreed
            assert end.path == Path(0, other.public)
            assert (end.failed, end.evidence) == (None, None)
            assert end.most_sockets == 1


def test_direct_rung_alone_fails_where_the_late_gateway_takes_packets() -> None:
    gateways = kinds.apdf(poison=True)
    run = Run(1, Side(gateways, factory=direct(20.0)), Side(gateways, starts=3.7))
    assert not run.run(60.0)
    assert run.network.now == pytest.approx(20.0)
    assert run.left.evidence is not None
    assert run.right.evidence is None
    assert run.waited is run.left.time is None
    assert not run.run(60.0)  # it is over
    assert run.network.now == pytest.approx(20.0)


def test_run_is_a_function_of_its_seed() -> None:
    def story(seed: int) -> list[tuple[float, Event]]:
        link = Link(loss=0.2, jitter=0.02, duplication=0.1, reordering=0.1)
        run = Run(seed, Side(kinds.apdf()), Side(kinds.adf(), starts=0.7), link)
        run.run(60.0)
        return run.left.events + run.right.events

    assert story(1) == story(1)
    assert len({str(story(seed)) for seed in range(5)}) == 5


def test_shared_gateway_has_to_hairpin() -> None:
    for hairpin in (True, False):
        gateway = replace(kinds.LINUX, hairpin=hairpin)
        assert Run(1, shared=(gateway,)).run(20.0) is hairpin


class Scripted:
    """A machine that does at each of its times what it is told, and writes all down."""

    def __init__(self, birth: Birth, script: dict[float, list[Effect]]) -> None:
        self.birth = birth
        self.script = {birth.now + at: effects for at, effects in script.items()}
        self.due: list[Effect] = []
        self.events: list[Event] = []
        self.heard: list[tuple[bytes, Path, float]] = []
        self.errors: list[tuple[NetworkError, Path, float]] = []
        self.opened: dict[int, int] = {}
        self.failed: list[int] = []

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        self.heard.append((data, path, now))

    def receive_error(self, error: NetworkError, path: Path, now: float) -> None:
        self.errors.append((error, path, now))

    def socket_opened(self, number: int, port: int, now: float) -> None:
        del now
        self.opened[number] = port
        self.due.append(Send(b"opened", self.birth.paths[0]._replace(socket=number)))

    def socket_failed(self, number: int, now: float) -> None:
        del now
        self.failed.append(number)

    def handle_timer(self, now: float) -> None:
        for at in [at for at in self.script if at <= now]:
            self.due += self.script.pop(at)

    def get_timer(self) -> float | None:
        return min(self.script, default=None)

    def effects(self, now: float) -> Iterator[Effect]:
        del now
        while self.due:
            yield self.due.pop(0)

    def next_event(self) -> Event | None:
        return self.events.pop(0) if self.events else None


def scripted(
    left: dict[float, list[Effect]], side: Side | None = None, *, record: bool = False
) -> tuple[Run, Scripted, Scripted]:
    """Run a script on the left for 10 s; the right listens."""
    made: list[Scripted] = []

    def factory(script: dict[float, list[Effect]], birth: Birth) -> Scripted:
        made.append(Scripted(birth, script))
        return made[-1]

    side = side or Side()
    run = Run(
        1,
        replace(side, factory=lambda birth: factory(left, birth)),
        Side(factory=lambda birth: factory({}, birth)),
        wall=600.0,
        record=record,
    )
    run.run(10.0)
    one, other = made
    return (run, one, other) if one.birth.port == run.left.port else (run, other, one)


TO_RIGHT = Path(0, Endpoint("203.0.113.2", 40_001))


def test_machine_is_born_when_its_time_comes() -> None:
    run, left, _ = scripted({}, Side(starts=2.5, clock=-7.0))
    assert left.birth.now == 2.5
    assert left.birth.wall == 600.0 + 2.5 - 7.0
    assert left.birth.paths == (TO_RIGHT,)
    assert left.birth.port == run.left.public.port == 40_000
    assert len(left.birth.draw()) == 16


def test_sockets_are_opened_and_closed_and_counted() -> None:
    script: dict[float, list[Effect]] = {
        1.0: [OpenSocket(5), OpenSocket(6, port=50_000), OpenSocket(7, port=50_001)],
        2.0: [OpenSocket(8, ipv6=True), OpenSocket(9, port=40_000)],
        3.0: [CloseSocket(5), CloseSocket(6)],
        4.0: [OpenSocket(5)],
    }
    run, left, right = scripted(script, Side(busy=(50_001,)))
    assert left.opened[6] == 50_000
    assert left.opened[5] in EPHEMERAL
    assert left.failed == [7, 8, 9]
    assert run.left.most_sockets == 3
    assert sorted(run.left.sockets) == [0, 5]
    assert [data for data, _, _ in right.heard] == [b"opened"] * 3


def test_late_packet_meets_a_closed_socket() -> None:
    script: dict[float, list[Effect]] = {
        1.0: [OpenSocket(5, port=50_000)],
        2.0: [CloseSocket(5)],
        3.0: [Send(b"x", TO_RIGHT)],
    }
    run, left, right = scripted(script)
    back = Path(0, Endpoint("198.51.100.2", 50_000))
    right.script[12.0] = [Send(b"late", back)]
    run.network.at(11.0, run._settle, run.right, right)
    run.go_on(5.0)
    assert left.heard == []
    ((error, path, _),) = right.errors
    assert error.reporter == "198.51.100.2"
    assert path == back


def test_sending_on_a_socket_that_is_not_open_is_a_failure() -> None:
    with pytest.raises(KeyError):
        scripted({1.0: [Send(b"x", TO_RIGHT._replace(socket=3))]})


def test_packets_are_counted() -> None:
    script: dict[float, list[Effect]] = {
        float(at): [Send(b"12", TO_RIGHT, 2 if at % 2 else None)] * 5 for at in range(4)
    }
    script[3.5] = [Send(b"12", TO_RIGHT)] * 2
    run, _, _ = scripted(script, record=True)
    assert len(run.left.sent) == len(run.left.unsolicited) == len(run.left.records) == 22
    assert run.left.bytes == 44
    assert run.left.low_ttl == 10
    assert run.left.busiest() == 7
    assert run.left.busiest(2.0) == 12
    assert run.right.busiest() == 0


def test_packets_to_who_was_heard_are_not_unsolicited() -> None:
    run = Run(1, Side(), Side(starts=1.0))
    assert run.run(10.0)
    run.go_on(3.0)
    left = run.left
    assert 0 < len(left.unsolicited) < len(left.sent)
    # The peer was heard by the first packet after a second and a latency.
    assert max(left.unsolicited) < 1.1


def test_deadline_stops_the_run_and_going_on_does_not_stop() -> None:
    run = Run(1, Side(factory=direct(1.0)), Side(starts=5.0))
    assert not run.run(30.0)
    assert run.left.event(DeadlinePassed) is not None
    assert run.network.now == pytest.approx(1.0)
    run.go_on(6.0)
    assert run.network.now == pytest.approx(7.0)
    assert run.right.sent
    assert run.right.sent[0] == 5.0
