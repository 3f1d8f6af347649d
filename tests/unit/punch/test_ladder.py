from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path, Rung
from nat_traverse.punch.ladder import Knock, Ladder, Order
from nat_traverse.punch.machine import CloseSocket, OpenSocket, RungStarted
from nat_traverse.punch.settings import Hard, LadderSettings

PEER = Endpoint("203.0.113.2", 40001)
PATH = Path(0, PEER)
SECOND = Path(0, Endpoint("203.0.113.3", 40001))
IPV6 = Path(1, Endpoint("2001:db8::2", 40001))
EPOCH = 1_800_000_000.0  # the beginning of a minute
START = 100.0  # on the owner's clock
OURS = 40000
ROUTER = "198.51.100.1"


@dataclass
class Runner:
    """A ladder, and all that it did; times are seconds since its start."""

    ladder: Ladder
    done: list[tuple[float, Order]] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    most: int = 0
    now: float = START

    def run(self, until: float) -> list[tuple[float, Order]]:
        """Let time pass, and return what was done meanwhile."""
        before = len(self.done)
        for _ in range(50_000):
            at = self.ladder.next_time()
            if at is None or at > START + until:
                return self.done[before:]
            self.now = max(self.now, at)
            for order in list(self.ladder.due(self.now)):
                self.carry_out(order)
        raise AssertionError("it does not come to rest")

    def carry_out(self, order: Order) -> None:
        self.done.append((self.now - START, order))
        if isinstance(order, OpenSocket):
            assert order.number not in self.open
            self.open.add(order.number)
            self.most = max(self.most, len(self.open))
            back = list(self.ladder.socket_opened(order.number, 50_000 + order.number, self.now))
            assert back == []
        elif isinstance(order, CloseSocket):
            self.open.remove(order.number)
        elif isinstance(order, Knock):
            assert order.path.socket in self.open | {0, 1}

    def knocks(self, *rungs: Rung) -> list[tuple[float, Knock]]:
        return [
            (at, order)
            for at, order in self.done
            if isinstance(order, Knock) and (not rungs or order.rung in rungs)
        ]

    def events(self) -> list[RungStarted]:
        return [order for _, order in self.done if isinstance(order, RungStarted)]


def make(*paths: Path, wall: float = 20.0, **settings: Any) -> Runner:
    """A runner; the wall clock stands at this second of a minute."""
    whole = LadderSettings(OURS, EPOCH + wall, bytes(range(16)), **settings)
    return Runner(Ladder(whole, paths or (PATH,), START))


def refusal(kind: ErrorKind, reporter: str | None) -> NetworkError:
    return NetworkError(kind, 111, reporter)


def test_without_settings_there_is_the_direct_rung_only() -> None:
    runner = Runner(Ladder(None, (PATH,), START))
    runner.run(200.0)
    assert len(runner.knocks(Rung.DIRECT)) == len(runner.done) > 200
    assert [knock.ttl for _, knock in runner.knocks()[:3]] == [2, 2, None]
    assert runner.events() == []
    assert (runner.ladder.ports_tried, runner.ladder.openings_sent) == (0, 0)


def test_all_rungs_side_by_side() -> None:
    runner = make()
    runner.run(120.0)
    first = {rung: runner.knocks(rung)[0][0] for rung in Rung if runner.knocks(rung)}
    assert first[Rung.DIRECT] == 0.0
    assert first[Rung.SPRAY] == pytest.approx(0.5)
    assert 10.0 <= first[Rung.QUIET] < 21.0
    assert first[Rung.HOP] == pytest.approx(28.0)  # the lead of the next minute
    assert [event.rung for event in runner.events()[:3]] == [Rung.SPRAY, Rung.QUIET, Rung.HOP]
    assert runner.ladder.ports_tried + runner.ladder.openings_sent == len(runner.knocks(Rung.SPRAY))


def test_sockets_are_256_altogether() -> None:
    for paths in [(PATH,), (PATH, IPV6)]:
        runner = make(*paths)
        runner.run(200.0)
        own = len({path.socket for path in paths})
        assert runner.most + own == 256
        assert min(runner.open) >= own


@pytest.mark.parametrize("paths", [1, 2, 4])
def test_never_more_than_a_hundred_a_second(paths: int) -> None:
    runner = make(*(Path(0, Endpoint(f"203.0.113.{n}", 40001)) for n in range(1, 1 + paths)))
    runner.run(200.0)
    times = [at for at, _ in runner.knocks()]
    first = most = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1.0 + 1e-6:
            first += 1
        most = max(most, last - first + 1)
    assert most <= 100


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.7.7", "::1", "fe80::1"])
def test_nothing_is_searched_where_no_gateway_translates_ports(host: str) -> None:
    runner = make(Path(0, Endpoint(host, 40001)))
    runner.run(200.0)
    assert not any(isinstance(order, OpenSocket) for _, order in runner.done)
    assert {knock.rung for _, knock in runner.knocks()} == {Rung.DIRECT, Rung.QUIET}


def test_the_search_is_for_the_addresses_that_may_be_mapped() -> None:
    runner = make(IPV6, PATH)
    runner.run(30.0)
    assert {knock.path.remote.host for _, knock in runner.knocks(Rung.SPRAY)} == {PEER.host}
    assert {knock.path.remote.host for _, knock in runner.knocks(Rung.HOP)} == {PEER.host}


SPARE = Path(1, PEER._replace(port=50_001))  # of a tunnel that was lost; it comes last


@pytest.mark.parametrize("hard", [Hard.AUTO, Hard.ALWAYS])
def test_nothing_is_derived_from_a_spare_pair_of_ports(hard: Hard) -> None:
    """It is tried as it is, and what the search does is the same as without it."""
    found = {}
    for paths in [(PATH,), (PATH, SPARE)]:
        runner = make(*paths, hard=hard)
        runner.run(60.0)
        found[len(paths)] = runner
    with_spare, without = found[2], found[1]
    assert {k.path for _, k in with_spare.knocks(Rung.DIRECT)} == {PATH, SPARE}
    assert with_spare.ladder.rung_of(SPARE) in (Rung.DIRECT, Rung.QUIET)
    for rung in (Rung.HOP, Rung.SPRAY):
        ports = [
            [knock.path.remote.port for _, knock in runner.knocks(rung)]
            for runner in (with_spare, without)
        ]
        assert SPARE.remote.port not in ports[0][:100]
        assert ports[0][:100] == ports[1][:100]
        assert all(knock.path.socket != SPARE.socket for _, knock in with_spare.knocks(rung))
    assert with_spare.most + 2 <= 256


def test_of_several_addresses_each_is_searched_and_no_spare_one() -> None:
    spares = [Path(1, path.remote._replace(port=50_001)) for path in (PATH, SECOND)]
    both, alone = make(PATH, SECOND, *spares), make(PATH, SECOND)
    for runner in (both, alone):
        runner.run(60.0)
    hops = [[knock.path.remote for _, knock in runner.knocks(Rung.HOP)] for runner in (both, alone)]
    assert hops[0] == hops[1]
    assert {remote.host for remote in hops[0]} == {PEER.host, SECOND.remote.host}


def test_never_keeps_to_pairs_that_both_know() -> None:
    runner = make(hard=Hard.NEVER)
    runner.run(200.0)
    assert runner.knocks(Rung.SPRAY) == []
    assert runner.knocks(Rung.HOP)
    assert runner.most == 2
    assert not runner.ladder.is_sprayed(Path(3, PEER))


def test_always_has_no_limit() -> None:
    counts = {}
    for hard in (Hard.AUTO, Hard.ALWAYS):
        runner = make(hard=hard)
        runner.run(175.0)
        counts[hard] = len(runner.knocks(Rung.SPRAY))
    assert counts[Hard.AUTO] <= 4096
    assert counts[Hard.ALWAYS] > 12_000


def test_hints_lead_to_prediction() -> None:
    runner = make(hints=(5000,))
    runner.run(30.0)
    assert runner.events()[0].rung is Rung.PREDICT
    openings = [knock for _, knock in runner.knocks(Rung.PREDICT) if knock.path.socket]
    assert {knock.path.remote.port for knock in openings} == {5180}
    assert {knock.ttl for knock in openings} == {2}


class TestPausing:
    def test_nothing_happens_until_then(self) -> None:
        runner = make()
        runner.run(2.0)
        runner.ladder.pause(START + 7.0)
        assert list(runner.ladder.due(START + 6.9)) == []
        assert runner.ladder.next_time() == START + 7.0
        assert runner.run(6.99) == []
        assert len(runner.run(8.0)) > 50

    def test_what_was_missed_is_not_made_up_for(self) -> None:
        runner = make()
        runner.run(2.0)
        runner.ladder.pause(START + 12.0)
        assert len([1 for at, order in runner.run(12.0) if isinstance(order, Knock)]) <= 5

    def test_it_may_be_ended_early(self) -> None:
        runner = make()
        runner.run(2.0)
        runner.ladder.pause(START + 100.0)
        runner.ladder.resume()
        assert len(runner.run(3.0)) > 50

    def test_with_an_old_peer_only_the_agreed_pair_is_used(self) -> None:
        runner = make()
        runner.run(2.0)
        runner.ladder.keep_to_agreed(True)
        assert {order.path for _, order in runner.run(9.0) if isinstance(order, Knock)} == {PATH}
        runner.ladder.keep_to_agreed(False)
        assert len(runner.run(10.0)) > 50


class TestStopping:
    def test_closes_every_socket(self) -> None:
        runner = make()
        runner.run(60.0)
        assert len(runner.open) == 254
        closed = [order.number for order in runner.ladder.stop()]
        assert sorted(closed) == sorted(runner.open)
        assert runner.ladder.next_time() is None
        assert list(runner.ladder.due(START + 100.0)) == []
        assert list(runner.ladder.stop()) == []

    def test_keeps_the_one_that_is_wanted(self) -> None:
        runner = make()
        runner.run(60.0)
        closed = {order.number for order in runner.ladder.stop(keep=7)}
        assert runner.open - closed == {7}
        assert runner.ladder.local_port(7) == 50_007
        assert runner.ladder.local_port(8) is None

    def test_a_socket_that_comes_too_late_is_given_back(self) -> None:
        ladder = make().ladder
        orders = [order for at in (0.0, 0.5) for order in ladder.due(START + at)]
        (asked,) = [order for order in orders if isinstance(order, OpenSocket)]
        assert list(ladder.stop()) == [CloseSocket(asked.number)]
        assert list(ladder.socket_opened(asked.number, 1, START + 1.0)) == [
            CloseSocket(asked.number)
        ]
        ladder.socket_failed(asked.number, START + 1.0)
        assert ladder.next_time() is None


def test_a_socket_that_fails_is_done_without() -> None:
    ladder = make().ladder
    numbers = []
    while (at := ladder.next_time()) is not None and at < START + 60.0:
        for order in list(ladder.due(at)):
            if isinstance(order, OpenSocket):
                numbers.append(order.number)
                ladder.socket_failed(order.number, at)
            assert not isinstance(order, CloseSocket)
            if isinstance(order, Knock):
                assert order.path.socket == 0
    assert len(numbers) == 2  # one of the spray, one of the hop rung
    ladder.socket_failed(999, START + 60.0)


class TestTtl:
    def test_is_learned_from_reports_and_used_by_all(self) -> None:
        runner = make()
        runner.run(2.0)
        runner.ladder.refused(refusal(ErrorKind.TIME_EXCEEDED, "192.168.1.1"), PATH, START + 2.0)
        runner.ladder.refused(refusal(ErrorKind.TIME_EXCEEDED, ROUTER), PATH, START + 2.0)
        runner.run(200.0)
        late = {k.ttl for at, k in runner.knocks() if at > 2.0 and k.ttl is not None}
        assert late == {3}
        assert runner.ladder.opening_ttl(PATH) == 3

    def test_is_learned_for_each_family(self) -> None:
        ladder = make(PATH, IPV6).ladder
        ladder.refused(refusal(ErrorKind.TIME_EXCEEDED, "10.0.0.1"), PATH, START)
        assert (ladder.opening_ttl(PATH), ladder.opening_ttl(IPV6)) == (3, 2)

    def test_changes_in_turn_as_long_as_nothing_was_reported(self) -> None:
        runner = make()
        runner.run(400.0)
        for rung in (Rung.QUIET, Rung.HOP, Rung.SPRAY):
            found = {k.ttl for _, k in runner.knocks(rung) if k.ttl is not None}
            assert found == {2, 4, 7}

    @pytest.mark.parametrize(("fixed", "used"), [(5, {5}), (0, set())])
    def test_is_the_users_if_he_says_so(self, fixed: int, used: set[int]) -> None:
        runner = make(ttl=fixed)
        runner.run(60.0)
        assert {k.ttl for _, k in runner.knocks() if k.ttl is not None} == used

    def test_a_report_from_nobody_says_nothing(self) -> None:
        ladder = make().ladder
        ladder.refused(refusal(ErrorKind.TIME_EXCEEDED, None), PATH, START)
        ladder.refused(refusal(ErrorKind.HOST_UNREACHABLE, ROUTER), PATH, START)
        assert ladder.opening_ttl(PATH) == 2


class TestRefusal:
    def test_by_the_peers_gateway_makes_the_pair_quiet(self) -> None:
        runner = make()
        runner.run(1.0)
        error = refusal(ErrorKind.PORT_UNREACHABLE, PEER.host)
        runner.ladder.refused(error, PATH, START + 1.0)
        assert runner.ladder.rung_of(PATH) is Rung.QUIET
        runner.run(9.0)
        agreed = [knock for at, knock in runner.knocks() if at > 1.0 and knock.path == PATH]
        assert len(agreed) == 2
        assert all(knock.ttl is not None for knock in agreed)

    @pytest.mark.parametrize("kind", [ErrorKind.PORT_UNREACHABLE, ErrorKind.HOST_UNREACHABLE])
    def test_by_others_does_not(self, kind: ErrorKind) -> None:
        ladder = make().ladder
        ladder.refused(refusal(kind, ROUTER), PATH, START)
        assert ladder.rung_of(PATH) is Rung.DIRECT


class TestWhatItKnows:
    def test_which_rung_has_led_where(self) -> None:
        runner = make()
        runner.run(60.0)
        hop = runner.knocks(Rung.HOP)[0][1].path
        opening = next(k.path for _, k in runner.knocks(Rung.SPRAY) if k.path.socket)
        probe = next(k.path for _, k in runner.knocks(Rung.SPRAY) if not k.path.socket)
        ladder = runner.ladder
        assert ladder.rung_of(PATH) is Rung.QUIET
        assert ladder.rung_of(hop) is Rung.HOP
        assert ladder.rung_of(opening) is Rung.SPRAY
        assert ladder.rung_of(probe) is Rung.SPRAY
        assert ladder.rung_of(Path(0, PEER._replace(port=1))) is Rung.DIRECT

    def test_where_it_waits_for_a_probe(self) -> None:
        runner = make()
        runner.run(60.0)
        opening = next(k.path for _, k in runner.knocks(Rung.SPRAY) if k.path.socket)
        assert runner.ladder.is_sprayed(opening)
        assert not runner.ladder.is_sprayed(Path(opening.socket, PEER._replace(port=1)))
        assert not runner.ladder.is_sprayed(PATH)
        assert not runner.ladder.is_sprayed(runner.knocks(Rung.HOP)[0][1].path)

    def test_a_port_that_was_seen_comes_next_if_our_main_socket_saw_it(self) -> None:
        runner = make()
        runner.run(20.0)
        runner.ladder.port_seen(Path(7, PEER._replace(port=20_000)))
        runner.run(30.0)
        tried = [k.path.remote.port for _, k in runner.knocks(Rung.SPRAY) if not k.path.socket]
        runner.ladder.port_seen(Path(0, PEER._replace(port=20_000)))
        runner.run(40.0)
        later = [k.path.remote.port for _, k in runner.knocks(Rung.SPRAY) if not k.path.socket]
        assert not set(range(20_001, 20_005)) <= set(tried)
        assert set(range(20_000, 20_005)) <= set(later)

    def test_a_port_that_was_seen_before_the_search_began_is_tried_first(self) -> None:
        runner = make()
        runner.ladder.port_seen(Path(0, PEER._replace(port=20_000)))
        runner.run(10.0)
        tried = [k.path.remote.port for _, k in runner.knocks(Rung.SPRAY) if not k.path.socket]
        assert tried[:5] == [20_000, 20_001, 20_002, 20_003, 20_004]

    def test_without_a_search_there_is_nothing_to_prefer(self) -> None:
        make(hard=Hard.NEVER).ladder.port_seen(Path(0, PEER._replace(port=20_000)))
