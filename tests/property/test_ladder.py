"""Machines with the whole ladder under any sequence of events, in virtual time.

What holds, and is checked here: no exception; the timer always advances; never more than a hundred
packets a second that nobody asked for; never more than 256 sockets; each socket is opened before it
is used or closed, and none stays open but the one of the path.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.punch.handshake import Handshake, HandshakeSettings
from nat_traverse.punch.machine import CloseSocket, Connected, DeadlinePassed, OpenSocket, Send
from nat_traverse.punch.settings import Hard, LadderSettings
from nat_traverse.wire.hello import HELLO_MAGIC, Mode

if TYPE_CHECKING:
    from nat_traverse.punch.machine import Event

EPOCH = 1_800_000_000.0  # the beginning of a minute
HOSTS = ("198.51.100.2", "203.0.113.2")
PORTS = (40_000, 40_001)
ROUTER = "192.0.2.1"

# Calls of a timer in any second of virtual time. A hundred packets, a socket before some of them,
# and what a datagram that has just arrived makes due.
CALLS = 500

# Unsolicited packets in any second: those of the ladder, and the odd one more where its pace turns.
RATE = 100
ODD = 0


@dataclass
class End:
    """One machine, its gateway, and what it does."""

    number: int
    machine: Handshake
    mapping: str  # how its gateway maps: "keep", "symmetric", "other"
    wall: float
    sockets: set[int] = field(default_factory=lambda: {0})
    local: dict[int, int] = field(default_factory=dict)
    mapped: dict[tuple[int, Endpoint | None], int] = field(default_factory=dict)
    back: dict[int, tuple[int, Endpoint | None]] = field(default_factory=dict)
    allowed: set[tuple[int, Endpoint]] = field(default_factory=set)
    calls: deque[float] = field(default_factory=deque)
    unasked: deque[float] = field(default_factory=deque)
    heard: set[Endpoint] = field(default_factory=set)
    connected: bool = False
    failed: bool = False


class World:
    """Two ends and a network that loses packets; every promise is checked at every step."""

    def __init__(self, seed: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.ends: list[End] = []
        self.order = count()
        self.flying: list[tuple[float, int, int, bytes, int, Endpoint]] = []

    def add(self, machine: Handshake, mapping: str, wall: float) -> None:
        end = End(len(self.ends), machine, mapping, wall)
        end.local[0] = PORTS[end.number]
        self.ends.append(end)
        self.settle(end)

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            timers = [(at, end) for end in self.ends if (at := end.machine.get_timer()) is not None]
            at = min((at for at, _ in timers), default=until)
            if self.flying:
                at = min(at, self.flying[0][0])
            if at >= until:
                self.now = until
                return
            self.now = max(self.now, at)
            while self.flying and self.flying[0][0] <= self.now:
                _, _, number, data, port, source = heapq.heappop(self.flying)
                if number < len(self.ends):
                    self.arrive(self.ends[number], data, port, source)
            for at, end in timers:
                if at <= self.now:
                    self.call(end)

    def call(self, end: End) -> None:
        end.machine.handle_timer(self.now)
        self.settle(end)
        end.calls.append(self.now)
        while end.calls[0] <= self.now - 1.0:
            end.calls.popleft()
        assert len(end.calls) <= CALLS, "it would spin"

    def settle(self, end: End) -> None:
        """Carry out what it wants until it wants nothing."""
        while effects := list(end.machine.effects(self.now)):
            for effect in effects:
                if isinstance(effect, Send):
                    self.send(end, effect)
                elif isinstance(effect, OpenSocket):
                    self.open(end, effect)
                else:
                    assert isinstance(effect, CloseSocket)
                    end.sockets.remove(effect.number)
        while (event := end.machine.next_event()) is not None:
            self.note(end, event)

    def note(self, end: End, event: Event) -> None:
        assert not end.failed, "an event after the end"
        end.failed = isinstance(event, DeadlinePassed)
        if isinstance(event, Connected):
            assert not end.connected
            end.connected = True
            assert end.sockets == {0, event.path.socket}
        if end.failed:
            assert end.sockets == {0}
            assert end.machine.get_timer() is None

    def open(self, end: End, asked: OpenSocket) -> None:
        assert asked.number not in end.sockets
        if self.random.random() < 0.002:
            end.machine.socket_failed(asked.number, self.now)
            return
        end.sockets.add(asked.number)
        assert len(end.sockets) <= 256
        end.local[asked.number] = asked.port or self.random.randrange(32_768, 60_999)
        end.machine.socket_opened(asked.number, end.local[asked.number], self.now)

    def send(self, end: End, send: Send) -> None:
        assert send.path.socket in end.sockets
        remote = send.path.remote
        assert remote.host == HOSTS[1 - end.number]
        if remote not in end.heard and send.data.startswith(HELLO_MAGIC):
            end.unasked.append(self.now)
            while end.unasked[0] <= self.now - 1.0 + 1e-6:
                end.unasked.popleft()
            assert len(end.unasked) <= RATE, "a flood"
        key = (send.path.socket, None if end.mapping == "keep" else remote)
        if key not in end.mapped:
            port = end.local[send.path.socket]
            if end.mapping == "symmetric":
                port = self.random.randrange(1024, 65_536)
            end.mapped[key] = port
            end.back[port] = key
        port = end.mapped[key]
        end.allowed.add((port, remote))
        if send.ttl is not None or self.random.random() < self.loss:
            return
        at = self.now + 0.02 + self.random.random() * 0.02
        source = Endpoint(HOSTS[end.number], port)
        entry = (at, next(self.order), 1 - end.number, send.data, remote.port, source)
        heapq.heappush(self.flying, entry)

    def arrive(self, end: End, data: bytes, port: int, source: Endpoint) -> None:
        """Let a datagram in if the gateway knows it."""
        if (port, source) not in end.allowed or end.back[port][0] not in end.sockets:
            return
        end.heard.add(source)
        end.machine.receive_datagram(data, Path(end.back[port][0], source), self.now)
        self.settle(end)


ladders = st.fixed_dictionaries(
    {
        "hard": st.sampled_from(Hard),
        "ttl": st.sampled_from([None, 0, 3]),
        "hints": st.sampled_from([(), (), (5000,), (65_500, 1024)]),
        "secret": st.sampled_from([b"", b"both know it"]),
    }
)
happenings = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),
        st.integers(0, 1),
        st.sampled_from(["error", "magic", "garbage", "forged", "late"]),
        st.integers(0, 5),
        st.sampled_from(ErrorKind),
    ),
    max_size=8,
)


# Explaining a failure takes longer here than the run itself.
@settings(max_examples=25, deadline=None, phases=set(Phase) - {Phase.explain})
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    mappings=st.tuples(*[st.sampled_from(["keep", "symmetric"])] * 2),
    climbing=st.tuples(ladders, ladders),
    modes=st.tuples(*[st.sampled_from(Mode)] * 2),
    later=st.sampled_from([0.0, 1.3, 47.0]),
    second=st.floats(0.0, 60.0),
    skew=st.floats(-10.0, 10.0),
    happens=happenings,
)
def test_two_machines_under_any_events(
    *,
    seed: int,
    loss: float,
    mappings: tuple[str, str],
    climbing: tuple[dict[str, object], dict[str, object]],
    modes: tuple[Mode, Mode],
    later: float,
    second: float,
    skew: float,
    happens: list[tuple[float, int, str, int, ErrorKind]],
) -> None:
    world = World(seed, loss)
    for number, starts in ((0, 0.0), (1, later)):
        world.run(starts)
        wall = EPOCH + second + starts + skew * number
        ladder = LadderSettings(
            PORTS[number],
            wall,
            world.random.randbytes(16),
            **climbing[number],  # type: ignore[arg-type]
        )
        nonce = world.random.randbytes(16)
        whole = HandshakeSettings(nonce, 100.0, mode=modes[number], ladder=ladder)
        agreed = Path(0, Endpoint(HOSTS[1 - number], PORTS[1 - number]))
        world.add(Handshake(whole, [agreed], world.now), mappings[number], wall)
    for pause, number, what, socket, kind in happens:
        world.run(world.now + pause)
        end = world.ends[number]
        peer = Endpoint(HOSTS[1 - number], PORTS[1 - number])
        path = Path(socket if socket in end.sockets else 0, peer)
        if what == "error":
            reporter = [None, ROUTER, "192.168.1.1", peer.host][seed % 4]
            end.machine.receive_error(NetworkError(kind, 111, reporter, 1300), path, world.now)
        elif what == "late":
            world.now += 3.0  # nobody was called for so long
        else:
            data = {"magic": HELLO_MAGIC, "garbage": b"garbage"}.get(
                what, world.random.randbytes(99)
            )
            end.machine.receive_datagram(data, path, world.now)
        world.settle(end)
    world.run(world.now + 120.0)
    for end in world.ends:
        assert end.connected or end.failed or Mode.PORTS in modes
    if loss == 0.0 and not happens and mappings == ("keep", "keep") and later < 60.0:
        assert all(end.connected for end in world.ends)
