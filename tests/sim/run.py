"""Two real machines in a simulated network, from their start to a path or a deadline.

    run = Run(7, left=Side(kinds.apdf()), right=Side(kinds.random(), starts=20.0), link=Link())
    run.run(180.0)
    assert run.connected
    run.left.time, run.left.rung, run.left.most_sockets

The run is a function of its seed and arguments; print the seed when a test fails.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nat_traverse.model import Endpoint, Path, Rung
from nat_traverse.punch.handshake import Handshake
from nat_traverse.punch.machine import (
    CloseSocket,
    Connected,
    DeadlinePassed,
    Event,
    OpenSocket,
    Send,
)
from nat_traverse.punch.settings import HandshakeSettings, LadderSettings
from sim.network import Host, Network
from sim.network import Link as Link  # noqa: PLC0414 (what a run is described with)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nat_traverse.model import NetworkError
    from nat_traverse.punch.evidence import Evidence
    from nat_traverse.punch.machine import Machine
    from sim.nat import Behaviour
    from sim.network import Gateway, Socket

# Any time since the epoch that is the beginning of a minute.
_EPOCH = 1_800_000_000.0
_MINUTE = 60.0

PORTS = (40_000, 40_001)  # agreed on, left and right

_MOST_SOCKETS = 1024  # the usual limit of open files


class Birth(NamedTuple):
    """What a machine is made from, when its time comes."""

    now: float
    wall: float  # the clock of its host, which may be wrong
    port: int
    paths: tuple[Path, ...]
    random: random.Random
    remotes: tuple[Endpoint, ...]

    def draw(self) -> bytes:
        """Return 16 random bytes."""
        return self.random.randbytes(16)


if TYPE_CHECKING:
    Factory = Callable[[Birth], Machine]


def direct(timeout: float | None = 180.0, **settings: Any) -> Factory:
    """Return a factory of handshakes with the direct rung only."""

    def make(birth: Birth) -> Machine:
        return Handshake(
            HandshakeSettings(nonce=birth.draw(), timeout=timeout, **settings),
            birth.paths,
            birth.now,
        )

    return make


def ladder(
    timeout: float | None = 180.0, handshake: dict[str, Any] | None = None, **settings: Any
) -> Factory:
    """Return a factory of handshakes with the whole ladder; `settings` are the ladder's."""

    def make(birth: Birth) -> Machine:
        climbing = LadderSettings(
            **{"local_port": birth.port, "wall": birth.wall, "chance": birth.draw(), **settings}
        )
        whole = HandshakeSettings(
            nonce=birth.draw(), timeout=timeout, ladder=climbing, **(handshake or {})
        )
        return Handshake(whole, birth.paths, birth.now)

    return make


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a run.

    gateways  between the host and the Internet, innermost first
    starts    when its machine is made (s)
    clock     how far its wall clock is ahead (s)
    factory   makes the machine; None: `direct()`
    port      the agreed port; None: the one from `PORTS`
    remotes   where its user thinks that the peer is; none: at its public address and port
    busy      local ports that other programs hold
    """

    gateways: Sequence[Behaviour] = ()
    starts: float = 0.0
    clock: float = 0.0
    factory: Factory | None = None
    port: int | None = None
    remotes: tuple[Endpoint, ...] = ()
    busy: tuple[int, ...] = ()


@dataclass(eq=False)
class End:
    """One side while it runs, and all that was seen of it."""

    name: str
    side: Side
    host: Host
    port: int
    random: random.Random
    record: bool
    gateways: list[Gateway] = field(default_factory=list)  # innermost first, shared ones last
    remotes: tuple[Endpoint, ...] = ()
    machine: Machine | None = None
    events: list[tuple[float, Event]] = field(default_factory=list)
    connected: tuple[float, Connected] | None = None
    failed: tuple[float, DeadlinePassed] | None = None
    sent: list[float] = field(default_factory=list)  # when, each datagram
    unsolicited: list[float] = field(default_factory=list)  # the same, to who was not heard yet
    low_ttl: int = 0  # datagrams
    bytes: int = 0
    most_sockets: int = 0
    records: list[tuple[float, Send]] = field(default_factory=list)  # all of them, if asked for
    heard: set[Endpoint] = field(default_factory=set)
    sockets: dict[int, Socket] = field(default_factory=dict)  # by the machine's number
    timer: float | None = None

    @property
    def public(self) -> Endpoint:
        """Where the peer is told to send."""
        return Endpoint(self.host.public, self.port)

    @property
    def time(self) -> float | None:
        """Return when it was connected."""
        return None if self.connected is None else self.connected[0]

    @property
    def rung(self) -> Rung | None:
        return None if self.connected is None else self.connected[1].rung

    @property
    def path(self) -> Path | None:
        return None if self.connected is None else self.connected[1].path

    @property
    def agreed(self) -> bool | None:
        return None if self.connected is None else self.connected[1].agreed

    @property
    def evidence(self) -> Evidence | None:
        """Return what the machine says when it gives up."""
        return None if self.failed is None else self.failed[1].evidence

    def event(self, kind: type) -> tuple[float, Event] | None:
        """Return the first event of a kind."""
        return next(((at, event) for at, event in self.events if isinstance(event, kind)), None)

    def busiest(self, seconds: float = 1.0, *, unsolicited: bool = False) -> int:
        """Return the most datagrams in any window that long."""
        times = self.unsolicited if unsolicited else self.sent
        most = first = 0
        for last, time in enumerate(times):
            # The tolerance is for sums of floating point: a pace of 100 a second is no 101.
            while times[first] <= time - seconds + 1e-6:
                first += 1
            most = max(most, last - first + 1)
        return most


class Run:
    """Two sides, a network, and the time.

    `shared` are gateways above both sides' own, outermost last: a carrier's, or with no others the
    one gateway of a LAN. `wall` is the true wall clock at time 0; None: any second of a minute.
    """

    def __init__(
        self,
        seed: int,
        left: Side | None = None,
        right: Side | None = None,
        link: Link | None = None,
        *,
        shared: Sequence[Behaviour] = (),
        wall: float | None = None,
        record: bool = False,
    ) -> None:
        self.seed = seed
        rng = random.Random(seed)
        self.wall = _EPOCH + _MINUTE * rng.random() if wall is None else wall
        self.network = Network(rng, link)
        self._record = record
        sides = (left or Side(), right or Side())
        above = self.network.add_shared(shared)
        self.left, self.right = self.ends = tuple(
            self._build_side(number, side, above) for number, side in enumerate(sides)
        )
        for end, other in ((self.left, self.right), (self.right, self.left)):
            end.remotes = end.side.remotes or (other.public,)
            self.network.at(end.side.starts, self._begin, end)

    @property
    def connected(self) -> bool:
        """Whether both sides are."""
        return self.left.connected is not None and self.right.connected is not None

    @property
    def waited(self) -> float | None:
        """Return the seconds from the later start until both were connected."""
        if self.left.connected is None or self.right.connected is None:
            return None
        start = max(self.left.side.starts, self.right.side.starts)
        return max(self.left.connected[0], self.right.connected[0]) - start

    def run(self, until: float) -> bool:
        """Run until both are connected, or one gave up, or it is that late; return `connected`."""
        if not self._over():
            self.network.run(until)
        return self.connected

    def go_on(self, seconds: float) -> None:
        """Let the machines run on, whatever they have come to: what they send then is counted."""
        until = self.network.now + seconds
        while self.network.now < until:
            self.network.run(until)

    # -- building -----------------------------------------------------------------------------

    def _build_side(self, number: int, side: Side, above: Gateway | None) -> End:
        """Hang the side's gateways and host below the Internet or the shared gateways."""
        host, gateways = self.network.add_side(number, side.gateways, above)
        end = End(
            name=("left", "right")[number],
            side=side,
            host=host,
            port=PORTS[number] if side.port is None else side.port,
            random=random.Random(f"{self.seed} {number}"),
            record=self._record,
            gateways=gateways,
        )
        for port in side.busy:
            host.open(port, _discard)
        return end

    # -- running ------------------------------------------------------------------------------

    def _begin(self, end: End) -> None:
        now = self.network.now
        paths = tuple(Path(0, remote) for remote in end.remotes)
        assert self._open(end, 0, end.port) is not None, f"port {end.port} is taken"
        birth = Birth(
            now, self.wall + now + end.side.clock, end.port, paths, end.random, end.remotes
        )
        end.machine = (end.side.factory or direct())(birth)
        self._settle(end, end.machine)

    def _open(self, end: End, number: int, port: int) -> Socket | None:
        assert number not in end.sockets, f"{end.name} opens socket {number} twice"
        if len(end.sockets) >= _MOST_SOCKETS:
            return None
        network = self.network

        def receive(data: bytes, remote: Endpoint) -> None:
            machine = end.machine
            if machine is not None:
                end.heard.add(remote)
                machine.receive_datagram(data, Path(number, remote), network.now)
                self._settle(end, machine)

        def refuse(error: NetworkError, remote: Endpoint) -> None:
            machine = end.machine
            if machine is not None:
                machine.receive_error(error, Path(number, remote), network.now)
                self._settle(end, machine)

        opened = end.host.open(port, receive, refuse)
        if opened is not None:
            end.sockets[number] = opened
            end.most_sockets = max(end.most_sockets, len(end.sockets))
        return opened

    def _settle(self, end: End, machine: Machine) -> None:
        """Carry out what the machine wants, until it wants nothing."""
        network = self.network
        now = network.now
        while True:
            asked: list[tuple[int, Socket | None]] = []
            for effect in machine.effects(now):
                if type(effect) is Send:
                    self._send(end, effect, now)
                elif type(effect) is OpenSocket:
                    opened = None if effect.ipv6 else self._open(end, effect.number, effect.port)
                    asked.append((effect.number, opened))
                elif type(effect) is CloseSocket:
                    end.sockets.pop(effect.number).close()
            for number, opened in asked:
                if opened is None:
                    machine.socket_failed(number, now)
                else:
                    machine.socket_opened(number, opened.port, now)
            self._read(end, machine, now)
            if not asked:
                break
        timer = machine.get_timer()
        if timer is not None and timer != end.timer:
            network.at(max(timer, now), self._wake, end, timer)
        end.timer = timer

    def _send(self, end: End, effect: Send, now: float) -> None:
        number, remote = effect.path
        end.sent.append(now)
        end.bytes += len(effect.data)
        if remote not in end.heard:
            end.unsolicited.append(now)
        if effect.ttl is not None:
            end.low_ttl += 1
        if end.record:
            end.records.append((now, effect))
        # A number that is not open is a mistake of the machine's, and a KeyError here.
        self.network.send(end.sockets[number], remote, effect.data, effect.ttl)

    def _read(self, end: End, machine: Machine, now: float) -> None:
        while (event := machine.next_event()) is not None:
            end.events.append((now, event))
            if isinstance(event, Connected) and end.connected is None:
                end.connected = (now, event)
            elif isinstance(event, DeadlinePassed):
                end.failed = (now, event)
            else:
                continue
            if self._over():
                self.network.stop()

    def _wake(self, end: End, timer: float) -> None:
        # A timer that was put off or off altogether leaves its event behind.
        if end.timer == timer and end.machine is not None:
            end.timer = None
            end.machine.handle_timer(self.network.now)
            self._settle(end, end.machine)

    def _over(self) -> bool:
        return self.connected or any(end.failed is not None for end in self.ends)


def _discard(data: bytes, remote: Endpoint) -> None:
    del data, remote
