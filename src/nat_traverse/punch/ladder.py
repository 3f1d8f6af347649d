"""The ladder: all rungs side by side, each starting when those before it had a fair chance.

It knows of sockets, of times and of what the network reported, but nothing of messages: it says
when a hello is to go out on which path, and how far. Who wrote back is the handshake's business.
"""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.model import ErrorKind, Rung
from nat_traverse.punch.agreed import AgreedRung
from nat_traverse.punch.machine import CloseSocket, OpenSocket, RungStarted
from nat_traverse.punch.rung import HOP_SOCKETS, HOP_STARTS, SPRAY_STARTS, Began, Probe
from nat_traverse.punch.settings import Hard
from nat_traverse.punch.ttl import OpeningTtl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nat_traverse.model import NetworkError, Path
    from nat_traverse.punch.hop import HopRung
    from nat_traverse.punch.predict import SweepPlan
    from nat_traverse.punch.rung import Strategy
    from nat_traverse.punch.settings import LadderSettings
    from nat_traverse.punch.spray import SprayRung


class Knock(NamedTuple):
    """A hello to be sent, and the TTL of its packet (None: the system's)."""

    path: Path
    rung: Rung
    ttl: int | None


Order = Knock | OpenSocket | CloseSocket | RungStarted


class Ladder:
    """Runs the rungs on the agreed `paths`. Without `settings` there is the direct rung only."""

    def __init__(self, settings: LadderSettings | None, paths: Sequence[Path], now: float) -> None:
        self._paths = dict.fromkeys(paths)
        self._ttls = {
            ipv6: OpeningTtl(settings.ttl if settings else None) for ipv6 in (False, True)
        }
        self._local_ports: dict[int, int] = {}
        self._owner: dict[int, Strategy] = {}
        self._paused_until: float | None = None
        self._over = self._only_agreed = False
        wall = None if settings is None else settings.wall - now
        self._agreed = AgreedRung(paths, now, wall)
        self._spray: SprayRung | None = None
        self._hop: HopRung | None = None
        self._rungs: list[Strategy] = [self._agreed]
        self._active = self._rungs
        # Rungs that begin later are made when their time has come: most traversals are over by
        # then, and need neither them nor their modules.
        self._later: list[tuple[float, Callable[[], Strategy]]] = []
        self._ports_seen: list[int] = []
        # IPv6 gateways translate no ports, so there is nothing to search or to spoil.
        mapped = [path for path in paths if _may_be_mapped(path)]
        if settings is None or wall is None or not mapped:
            return
        # A spare pair of ports comes last, and is as good as it is: nothing is derived from it.
        mapped = [path for path in mapped if path.remote.port == mapped[0].remote.port]
        first = max(path.socket for path in paths) + 1
        if settings.hard is not Hard.NEVER:
            make = partial(self._make_spray, settings, mapped[0], first + HOP_SOCKETS, now, wall)
            self._later.append((now + SPRAY_STARTS, make))
        make = partial(self._make_hop, settings, mapped, first, now, wall)
        self._later.append((now + HOP_STARTS, make))

    def _make_hop(
        self,
        settings: LadderSettings,
        paths: Sequence[Path],
        first: int,
        start: float,
        wall: float,
    ) -> Strategy:
        from nat_traverse.punch.hop import HopRung  # noqa: PLC0415 (see above)

        self._hop = HopRung(
            [path.remote for path in paths],
            settings.local_port,
            settings.secret,
            first_socket=first,
            start=start,
            wall=wall,
        )
        return self._hop

    def _make_spray(
        self, settings: LadderSettings, target: Path, first: int, start: float, wall: float
    ) -> Strategy:
        from nat_traverse.punch.predict import BlindPlan, MeetingPlan  # noqa: PLC0415 (see above)
        from nat_traverse.punch.spray import MAX_SOCKETS, SprayRung  # noqa: PLC0415

        plan: SweepPlan = BlindPlan(target.remote.port)
        if settings.hints:
            plan = MeetingPlan(settings.hints[0], wall)
        own = len({path.socket for path in self._paths})
        self._spray = SprayRung(
            settings,
            target,
            plan,
            range(first, first + MAX_SOCKETS - own - HOP_SOCKETS),
            start=start,
            paths=len(self._paths),
            unlimited=settings.hard is Hard.ALWAYS,
        )
        for port in self._ports_seen:
            self._spray.port_seen(port)
        return self._spray

    # -- running ------------------------------------------------------------------------------

    def next_time(self) -> float | None:
        """Return when `due` wants to be called."""
        if self._over:
            return None
        earliest = self._later[0][0] if self._later and not self._only_agreed else None
        for rung in self._active:
            at = rung.next_time
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        if earliest is None or self._paused_until is None:
            return earliest
        return max(earliest, self._paused_until)

    def due(self, now: float) -> Iterator[Order]:
        """Yield what is to be done at `now`."""
        if self._over or (self._paused_until is not None and now < self._paused_until):
            return
        while self._later and self._later[0][0] <= now and not self._only_agreed:
            self._rungs.append(self._later.pop(0)[1]())
        for rung in self._active:
            at = rung.next_time
            if at is None or at > now:
                continue
            for action in rung.due(now):
                if isinstance(action, Probe):
                    ttl = None
                    if action.opening:
                        ttl = self._ttls[action.path.remote.is_ipv6].value(action.turn)
                    yield Knock(action.path, action.rung, ttl)
                elif isinstance(action, Began):
                    yield RungStarted(action.rung, action.until)
                else:
                    if isinstance(action, OpenSocket):
                        self._owner[action.number] = rung
                    else:
                        self._forget(action.number)
                    yield action

    def pause(self, until: float) -> None:
        """Do nothing before `until`: a path works. A longer pause than that stays."""
        self._paused_until = max(until, self._paused_until or until)

    def resume(self) -> None:
        """Go on."""
        self._paused_until = None

    def keep_to_agreed(self, only: bool) -> None:
        """Run nothing but the agreed pairs, or everything again.

        The peer seems to be a 0.7, which prints what it does not know.
        """
        self._only_agreed = only
        self._active = [self._agreed] if only else self._rungs

    def stop(self, keep: int | None = None) -> Iterator[CloseSocket]:
        """End all rungs; yield the sockets to be closed: all of ours but `keep`."""
        self._over = True
        for rung in self._rungs:
            for number in rung.stop():
                if number != keep:
                    self._forget(number)
                    yield CloseSocket(number)

    # -- what it is told ----------------------------------------------------------------------

    def socket_opened(self, number: int, port: int, now: float) -> Iterator[CloseSocket]:
        """Learn that a socket is open; yields it back if nobody wants it any more."""
        owner = self._owner.get(number)
        if owner is None or self._over:
            yield CloseSocket(number)
            return
        self._local_ports[number] = port
        owner.socket_opened(number, port, now)

    def socket_failed(self, number: int, now: float) -> None:
        """Learn that a socket could not be opened."""
        owner = self._owner.pop(number, None)
        if owner is not None:
            owner.socket_failed(number, now)

    def refused(self, error: NetworkError, path: Path, now: float) -> None:
        """Take what the network said about a packet on `path`."""
        if error.reporter is None:
            return
        if error.kind is ErrorKind.TIME_EXCEEDED:
            ttl = self._ttls[path.remote.is_ipv6]
            ttl.learn(error.reporter, path.remote.host, self._agreed.turn(path))
        elif error.kind is ErrorKind.PORT_UNREACHABLE and error.reporter == path.remote.host:
            self._agreed.refused(path, now)

    def port_seen(self, path: Path) -> None:
        """Learn that something of the peer's came from a port that was not agreed."""
        if path.socket in self._owner:
            return
        if self._spray is None:
            self._ports_seen.append(path.remote.port)
        else:
            self._spray.port_seen(path.remote.port)

    # -- what it knows ------------------------------------------------------------------------

    def is_sprayed(self, path: Path) -> bool:
        """Tell whether `path` is one on which a socket of the spray waits for a probe."""
        spray = self._spray
        return (
            spray is not None
            and self._owner.get(path.socket) is spray
            and spray.waits_for(path.remote)
        )

    def rung_of(self, path: Path) -> Rung:
        """Return which rung has led to `path`."""
        owner = self._owner.get(path.socket)
        if owner is not None and owner is self._hop:
            return Rung.HOP
        if path in self._paths:
            return Rung.QUIET if self._agreed.is_quiet(path) else Rung.DIRECT
        spray = self._spray
        if spray is not None and (owner is spray or spray.sent_to(path.remote.port)):
            return spray.rung
        return Rung.DIRECT

    def opening_ttl(self, path: Path) -> int | None:
        """Return the TTL of an opening on `path` now."""
        return self._ttls[path.remote.is_ipv6].value(self._agreed.turn(path))

    def local_port(self, number: int) -> int | None:
        """Return the local port of a socket that was opened by an effect."""
        return self._local_ports.get(number)

    @property
    def ports_tried(self) -> int:
        """How many ports of the peer's were tried."""
        return 0 if self._spray is None else self._spray.ports_tried

    @property
    def openings_sent(self) -> int:
        """How many openings of the spray went out."""
        return 0 if self._spray is None else self._spray.openings_sent

    def _forget(self, number: int) -> None:
        self._owner.pop(number, None)
        self._local_ports.pop(number, None)


def _may_be_mapped(path: Path) -> bool:
    """Tell whether a gateway that translates ports may be in front of the peer."""
    if path.remote.is_ipv6:
        return False
    address = ip_address(path.remote.host)
    return not (address.is_loopback or address.is_link_local)
