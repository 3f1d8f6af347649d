"""The spray: finding the port of one gateway that changes ports, whichever side it is on.

Theory of operation. Nobody says which of the two gateways is the hard one, so each side plays both
parts at once:

1. *Openings.* Many sockets send a hello with a low TTL to the peer's agreed port. If our gateway is
   the hard one, each makes a mapping on some port that we don't know, which lets in the peer's
   agreed endpoint and nobody else. They are refreshed before a gateway forgets them.
2. *Probes.* The main socket sends hellos to the peer's ports, each once. If the peer's gateway is
   the hard one, a probe that meets one of its mappings arrives at one of its sockets; our own
   gateway lets the answer in, since we have just sent there.

With s openings and n distinct probes into N ports the chance that all miss is that of drawing n
times from an urn without a hit: C(N - s, n) / C(N, n). 253 openings and 1,160 probes leave 1 %.

The openings must not reach the peer's gateway: one that takes uninvited packets for its own would
never let our peer answer from there afterwards.

The budget of 4,096 packets in 180 s is spent so that the side which comes first still has enough
when the other one comes up to 90 s later: six series of openings, 28 s apart, leave 2,578 probes.
Of these, 1,330 go out at once (with both sides up, they find 99 % in 20 s), 470 in the next minute
and a bit, for people who say "now" to each other are rarely further apart, and 778 after that.

Who has more time begins anew after that, and keeps still for a minute and a half in every second
attempt. Our own gateway may be one that took a hello of the peer's for its own. If a probe goes to
the port that this came from, it leaves from another port than ours, and with Linux so do all later
ones: a new flow gets the port of the same socket's newest one. The peer does not wait for these,
and only silence helps.

A user's rate, or the hellos to many addresses, may leave so little that the openings alone would
take it all. Then there are fewer of them, and half of the packets are probes.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Final

from nat_traverse.model import Endpoint, Path, Rung
from nat_traverse.punch.machine import OpenSocket
from nat_traverse.punch.ports import PortOrder, after
from nat_traverse.punch.predict import REFRESH, Sweep
from nat_traverse.punch.rung import SPRAY_STARTS as STARTS
from nat_traverse.punch.rung import Action, Began, Probe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nat_traverse.punch.predict import SweepPlan
    from nat_traverse.punch.settings import LadderSettings

# Sockets of a traversal altogether: that many flows pass home routers of which 512 fail.
MAX_SOCKETS = 256
MAX_PACKETS = 4096  # of openings and probes, an attempt
ATTEMPT = 180.0  # s; what a run without any time options takes. Longer runs begin anew after that.

# Packets a second that other rungs may send for each of the peer's addresses: direct eleven in its
# first second, or quiet and hop five each. Two more are for the odd hello that is due at once.
_RESERVED_A_PATH = 11
_RESERVED = 2

# (until, in s from the beginning of the attempt; how many probes have been sent by then). Between
# two points it is even; no pace is above what the rate leaves.
_AT_ONCE: Final = 1330
_USUAL_ATTEMPT: Final = ((0.0, _AT_ONCE), (92.0, 1800), (175.0, 2578))
# Every second attempt: what goes out at once is followed by a silence, and then by the rest.
_CURING_ATTEMPT: Final = ((0.0, _AT_ONCE), (175.0, 2578))
# s; Linux forgets such flows after 30 s, but until it clears them away, which it does once a minute
# or sooner, they lend their port. 65 s were not always enough.
_SILENCE: Final = 95.0


class SprayRung:
    """A `Strategy`. `target` is the path of the agreed pair whose other ports are sought.

    `sockets` are the numbers under which more sockets may be opened. `paths` is how many paths
    the other rungs send on, and `unlimited` lifts the budget of an attempt. `plan` says when and
    whereto the openings go.
    """

    def __init__(
        self,
        settings: LadderSettings,
        target: Path,
        plan: SweepPlan,
        sockets: Iterable[int],
        *,
        start: float,
        paths: int,
        unlimited: bool,
    ) -> None:
        self._settings = settings
        self._target = target
        self._plan = plan
        self._unlimited = unlimited
        self.rung = Rung.PREDICT if settings.hints else Rung.SPRAY
        self._waiting: int | None = None
        self._open: list[Path] = []  # from each socket to where all openings go
        self._spacing = 1.0 / max(
            settings.rate - _RESERVED_A_PATH * paths - _RESERVED, settings.rate / 25
        )
        most = max(1, int(REFRESH / 2 / self._spacing))
        self._spare = list(sockets)[:most][::-1]
        self._slot = self._attempt_start = start + STARTS
        self._sweep: Sweep | None = None
        self._swept = 0
        self._next_sweep = plan.next_sweep(self._slot, first=True)
        self._door = self._remote(plan.port)
        self._turn = -1
        self._attempt = 0
        self._silent_until = 0.0
        self._order = self._new_order()
        self._spent = self._probes = self._series = 0
        self._told = False
        # The totals, for whoever explains a failure.
        self.ports_tried = 0
        self.openings_sent = 0
        self._probe_at = self._next_probe_time()
        self.next_time = self._plan_next()

    # -- Strategy -----------------------------------------------------------------------------

    def due(self, now: float) -> Iterator[Action]:
        """Yield the one packet, or the one socket, whose turn it is."""
        if self.next_time is None or self.next_time > now:
            return
        if not self._told:
            self._told = True
            yield Began(self.rung)
        if now >= self._attempt_start + ATTEMPT:
            self._begin_attempt(now)
        if self._sweep is None and self._next_sweep.at <= now and self._has_budget():
            self._begin_sweep()
        action: Action | None = None
        if self._sweep is not None:
            action = self._open_next(self._sweep, now)
        elif self._probe_at <= now and self._has_budget():
            self._take_slot(now)
            action = self._probe(now)
        self.next_time = self._plan_next()
        if action is not None:
            yield action

    def socket_opened(self, number: int, port: int, now: float) -> None:
        """Take a socket into use: its turn to send is now."""
        del port, now
        if number == self._waiting:
            self._waiting = None
            self._open.append(Path(number, self._door))
            self.next_time = self._plan_next()

    def socket_failed(self, number: int, now: float) -> None:
        """Do with the sockets that there are."""
        del now
        if number == self._waiting:
            self._waiting = None
            self._spare.clear()
            self.next_time = self._plan_next()

    def stop(self) -> list[int]:
        """End; return the sockets."""
        self.next_time = None
        numbers = [path.socket for path in self._open]
        if self._waiting is not None:
            numbers.append(self._waiting)
        self._open = []
        return numbers

    # -- what it is told ----------------------------------------------------------------------

    def port_seen(self, port: int) -> None:
        """Learn that a packet of the peer's came from this port: the next ones are likely."""
        self._order.prefer([port, *after(port)])

    def waits_for(self, remote: Endpoint) -> bool:
        """Tell whether openings went to `remote`, so that a packet from there is a probe."""
        return remote == self._door

    def sent_to(self, port: int) -> bool:
        """Tell whether a probe went to this port of the peer's."""
        return self._order.was_tried(port)

    @property
    def sockets_open(self) -> int:
        """How many sockets this rung has open."""
        return len(self._open)

    def _plan_next(self) -> float | None:
        """Return when the next packet may and should go out."""
        if self._waiting is not None:
            return None
        again = self._attempt_start + ATTEMPT
        if not self._has_budget():
            return again
        if self._sweep is not None:
            return self._slot
        return max(self._slot, min(self._next_sweep.at, self._probe_at, again))

    # -- openings -----------------------------------------------------------------------------

    def _begin_sweep(self) -> None:
        self._sweep = self._next_sweep
        self._swept = 0
        self._series += 1
        if not self._sweep.full:
            self._turn += 1

    def _open_next(self, sweep: Sweep, now: float) -> Action | None:
        """Return the next opening of the series, or the socket that it needs first."""
        if self._swept == len(self._open) and self._spare:
            self._waiting = self._spare.pop()
            return OpenSocket(self._waiting)
        opening = None
        if self._swept < len(self._open):
            self._take_slot(now)
            opening = self._opening_on(self._open[self._swept], sweep)
            self._swept += 1
        if self._swept == len(self._open) and not self._spare:
            self._sweep = None
            self._next_sweep = Sweep(inf, full=False)
            if self._series < self._plan.most:
                self._next_sweep = self._plan.next_sweep(now, first=False)
        return opening

    def _opening_on(self, path: Path, sweep: Sweep) -> Probe:
        self._spent += 1
        self.openings_sent += 1
        return Probe(path, self.rung, not sweep.full, max(self._turn, 0))

    # -- probes -------------------------------------------------------------------------------

    @property
    def _is_curing(self) -> bool:
        return not self._unlimited and self._attempt % 2 == 0

    def _probe(self, now: float) -> Probe | None:
        port = self._order.next_port()
        if port is None:
            if not self._unlimited:
                return None
            self._order = self._new_order()
            port = self._order.next_port() or self._target.remote.port
        self._spent += 1
        self._probes += 1
        self.ports_tried += 1
        if self._is_curing and self._probes == _AT_ONCE:
            self._silent_until = now + _SILENCE
        self._probe_at = self._next_probe_time()
        return Probe(Path(self._target.socket, self._remote(port)), self.rung)

    def _next_probe_time(self) -> float:
        """Return when the next probe may go out, apart from the pace of single packets."""
        held = self._plan.probes_held(self._probes)
        if held is not None:
            return held
        if self._unlimited:
            return self._attempt_start
        schedule = _CURING_ATTEMPT if self._is_curing else _USUAL_ATTEMPT
        at = self._attempt_start + _time_of_probe(self._probes + 1, schedule)
        return max(at, self._silent_until)

    def _remote(self, port: int) -> Endpoint:
        # As `_replace`, which takes twice as long, and there are thousands of them.
        host, _, scope = self._target.remote
        return Endpoint(host, port, scope)

    def _new_order(self) -> PortOrder:
        self._attempt += 1
        # Each attempt has an order of its own, from the same random bytes.
        chance = bytes(byte ^ (self._attempt * 73 & 0xFF) for byte in self._settings.chance)
        hints = [port for hint in self._settings.hints for port in (hint, *after(hint))]
        return PortOrder(self._target.remote.port, chance, likely=hints)

    def _take_slot(self, now: float) -> None:
        """Put the next packet off. A timer that came late is not made up for in a burst."""
        self._slot = max(self._slot + self._spacing, now)

    def _has_budget(self) -> bool:
        return self._unlimited or self._spent < MAX_PACKETS

    def _begin_attempt(self, now: float) -> None:
        self._attempt_start = now
        self._spent = self._probes = self._series = 0
        if not self._unlimited:
            self._order = self._new_order()
        self._sweep = None
        self._next_sweep = self._plan.next_sweep(now, first=not self._open)
        self._probe_at = self._next_probe_time()


def _time_of_probe(number: int, schedule: Sequence[tuple[float, int]]) -> float:
    """Return how many seconds into the attempt the probe of this number (1, 2, ...) is allowed."""
    for (begin, least), (end, most) in pairwise(schedule):
        if number <= least:
            return begin
        if number <= most:
            return begin + (number - least) / (most - least) * (end - begin)
    return ATTEMPT
