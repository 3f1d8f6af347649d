"""Two machines and a network between them, in virtual time: a failure is a seed number."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from nat_traverse.model import Endpoint, Path
from nat_traverse.punch.machine import Send

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.punch.machine import Event, Machine

LEFT = Endpoint("198.51.100.2", 40000)
RIGHT = Endpoint("203.0.113.2", 40001)
TO_RIGHT = Path(0, RIGHT)
TO_LEFT = Path(0, LEFT)

# More inputs than any of these exchanges needs: two machines that answer each other for ever are
# a failure, not a hang.
_STEPS = 100_000


@dataclass
class Link:
    """What the network does, in each direction: loss and duplication as chances, seconds."""

    loss: float = 0.0
    latency: float = 0.01
    jitter: float = 0.0
    duplication: float = 0.0
    largest: int = 65_535
    low_ttl_dies: bool = True


@dataclass
class End:
    """One machine and all that came out of it."""

    machine: Machine
    path: Path
    starts: float
    events: list[tuple[float, Event]] = field(default_factory=list)
    sent: list[tuple[float, Send]] = field(default_factory=list)

    def event(self, kind: type) -> tuple[float, Event] | None:
        return next(((at, event) for at, event in self.events if isinstance(event, kind)), None)


class Pair:
    """Runs two machines against each other; each is made by a factory when its time comes."""

    def __init__(
        self,
        left: Callable[[float], Machine],
        right: Callable[[float], Machine],
        *,
        seed: int = 1,
        link: Link | None = None,
        right_starts: float = 0.0,
    ) -> None:
        self.random = random.Random(seed)
        self.link = link or Link()
        self.now = 0.0
        self._factories = {"left": (left, 0.0), "right": (right, right_starts)}
        self.ends: dict[str, End] = {}
        self._order = count()
        # (time, order, end, what arrives there)
        self._flying: list[tuple[float, int, str, bytes]] = []

    @property
    def left(self) -> End:
        return self.ends["left"]

    @property
    def right(self) -> End:
        return self.ends["right"]

    def run(self, until: float) -> None:
        """Let virtual time pass."""
        for _ in range(_STEPS):
            at = self._next_time()
            if at is None or at > until:
                self.now = until
                return
            self.now = max(self.now, at)
            self._step()
        raise AssertionError("the machines do not come to rest")

    def deliver(self, end: str, data: bytes) -> None:
        """Put something into the network by hand."""
        heapq.heappush(self._flying, (self.now, next(self._order), end, data))

    def _next_time(self) -> float | None:
        times = [starts for name, (_, starts) in self._factories.items() if name not in self.ends]
        times += [at for end in self.ends.values() if (at := end.machine.get_timer()) is not None]
        if self._flying:
            times.append(self._flying[0][0])
        return min(times, default=None)

    def _step(self) -> None:
        for name, (factory, starts) in self._factories.items():
            if name not in self.ends and starts <= self.now:
                path = TO_RIGHT if name == "left" else TO_LEFT
                self.ends[name] = End(factory(self.now), path, starts)
        while self._flying and self._flying[0][0] <= self.now:
            _, _, name, data = heapq.heappop(self._flying)
            if name in self.ends:
                end = self.ends[name]
                end.machine.receive_datagram(data, end.path, self.now)
                self._settle(name)
        for name, end in self.ends.items():
            at = end.machine.get_timer()
            if at is not None and at <= self.now:
                end.machine.handle_timer(self.now)
            self._settle(name)

    def _settle(self, name: str) -> None:
        end = self.ends[name]
        for effect in end.machine.effects(self.now):
            assert isinstance(effect, Send), "without a ladder no socket is opened or closed"
            end.sent.append((self.now, effect))
            self._transmit("right" if name == "left" else "left", effect)
        while (event := end.machine.next_event()) is not None:
            end.events.append((self.now, event))

    def _transmit(self, to: str, effect: Send) -> None:
        link = self.link
        if effect.ttl is not None and link.low_ttl_dies:
            return
        copies = 2 if self.random.random() < link.duplication else 1
        for _ in range(copies):
            if self.random.random() < link.loss or len(effect.data) > link.largest:
                continue
            at = self.now + link.latency + self.random.random() * link.jitter
            heapq.heappush(self._flying, (at, next(self._order), to, effect.data))
