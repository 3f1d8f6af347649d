"""One simulated NAT: the axes of RFC 4787, each on its own, and what Linux adds to them.

A `Behaviour` says how a gateway of a kind behaves, a `Nat` is one that remembers. It knows neither
TTL nor links, which are `sim.network`'s; the time is an argument.

    source ── outbound(source, remote) ──> external endpoint, or None: dropped
    inner endpoint, or None: unsolicited <── inbound(remote, port) ── remote

*Taking* an unsolicited packet is the behaviour that NAT devices are not meant to have and Linux
gateways without a firewall do: the packet becomes a flow of the gateway's own. While that flow is
remembered, nobody behind the gateway gets the same port towards the same remote.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    import random
    from collections.abc import Hashable

# How often a random port is drawn before a free one is looked for upwards from the last draw.
_DRAWS = 16

_HIGHEST_PORT = 65_535


class Dependence(IntEnum):
    """Of the remote endpoint, what a mapping is bound to or a filter compares (RFC 4787)."""

    ENDPOINT_INDEPENDENT = 0
    ADDRESS = 1
    ADDRESS_AND_PORT = 2


class Allocation(Enum):
    """Which external port a new mapping gets."""

    PRESERVED = "preserved"  # that of the host; if it is taken, what `Clash` says
    SEQUENTIAL = "sequential"  # the one allocated before plus a step
    RANDOM = "random"  # any in the range
    BLOCK = "block"  # any in one block of the range, which the gateway was given at its start


class Clash(Enum):
    """Which port a mapping gets when its host's is taken."""

    NEXT = "next"  # the next free one upwards
    RANDOM = "random"  # any free one of the range, as Linux does


class Unsolicited(Enum):
    """What meets a packet that nobody behind the gateway asked for."""

    DROP = "drop"
    REFUSE = "refuse"  # ICMP port unreachable
    TAKE = "take"  # taken for the gateway's own: "poisoning"


class PortRange(NamedTuple):
    """External ports, both ends included."""

    low: int = 1024  # those below belong to services of the gateway's own
    high: int = _HIGHEST_PORT

    @property
    def size(self) -> int:
        return self.high - self.low + 1


ALL_PORTS = PortRange()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a gateway of a kind behaves; the defaults are Linux masquerading behind a firewall.

    one_way, two_way   seconds that an unused mapping lives, before and after it became a stream
    stream_after       seconds after its making from which a mapping with an answer is a stream
    inbound_refreshes  whether packets from outside keep a mapping alive, too
    follows_source     whether a new mapping first tries the port that the newest one of the same
                       source has, as Linux does; only with PRESERVED
    step, start        of SEQUENTIAL; no start: by chance
    block              ports in a block of BLOCK
    flow_limit         mappings at a time; a packet that needs one more is dropped
    hairpin            whether hosts behind it reach each other by its public address; where not,
                       such a packet meets the gateway itself, which refuses it
    answers            whether a gateway that takes packets also refuses them by ICMP, as Linux does
    """

    mapping: Dependence = Dependence.ADDRESS_AND_PORT
    filtering: Dependence = Dependence.ADDRESS_AND_PORT
    allocation: Allocation = Allocation.PRESERVED
    clash: Clash = Clash.RANDOM
    follows_source: bool = True
    ports: PortRange = ALL_PORTS
    step: int = 1
    start: int | None = None
    block: int = 2016
    one_way: float = 30.0
    two_way: float = 120.0
    stream_after: float = 2.0
    inbound_refreshes: bool = True
    hairpin: bool = False
    flow_limit: int | None = None
    unsolicited: Unsolicited = Unsolicited.DROP
    answers: bool = True


class Mapping:
    """A source behind the gateway, its external endpoint, and for how long.

    `remote` is the one that it was made for, `part` what it is bound to of that: see `Dependence`.
    """

    __slots__ = (
        "answered",
        "expires",
        "external",
        "part",
        "permits",
        "remote",
        "source",
        "stream_from",
    )

    def __init__(
        self,
        source: Endpoint,
        external: Endpoint,
        remote: Endpoint,
        part: Hashable,
        stream_from: float,
    ) -> None:
        self.source = source
        self.remote = remote
        self.external = external
        self.part = part
        self.stream_from = stream_from
        self.expires = 0.0
        self.answered = False
        # Who may send here, until when; used where the filter is stricter than the mapping.
        self.permits: dict[Hashable, float] = {}


class Nat:
    """A gateway's memory. `public` is its address outside."""

    def __init__(self, behaviour: Behaviour, public: str, rng: random.Random) -> None:
        self.behaviour = behaviour
        self.public = public
        # Whether an unsolicited packet is answered by ICMP port unreachable.
        self.refuses = behaviour.unsolicited is Unsolicited.REFUSE or (
            behaviour.unsolicited is Unsolicited.TAKE and behaviour.answers
        )
        self._random = rng.random
        self._mapping = int(behaviour.mapping)
        self._filtering = int(behaviour.filtering)
        self._strict = behaviour.filtering > behaviour.mapping
        self._loose = behaviour.filtering < behaviour.mapping
        self._follows = behaviour.follows_source and behaviour.allocation is Allocation.PRESERVED
        self._takes = behaviour.unsolicited is Unsolicited.TAKE
        self._inner: dict[Hashable, Mapping] = {}
        self._outer: dict[Hashable, Mapping] = {}
        self._of_source: dict[Endpoint, list[Mapping]] = {}  # oldest first, if `_follows`
        self._of_port: dict[int, list[Mapping]] = {}  # oldest first, if `_loose`
        self._taken: dict[tuple[int, Endpoint], float] = {}  # until when
        self._range = behaviour.ports
        if behaviour.allocation is Allocation.BLOCK:
            blocks = behaviour.ports.size // behaviour.block
            low = behaviour.ports.low + int(self._random() * blocks) * behaviour.block
            self._range = PortRange(low, low + behaviour.block - 1)
        self._low = self._range.low
        self._size = self._range.size
        self._next = self._draw() if behaviour.start is None else behaviour.start

    # -- packets ------------------------------------------------------------------------------

    def outbound(self, source: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        """Return the external endpoint of a packet to `remote`, or None if it is dropped."""
        depends = self._mapping
        part = remote if depends == 2 else remote.host if depends else None
        mapping = self._inner.get((source, part))
        if mapping is None or mapping.expires <= now:
            if mapping is not None:
                self._forget(mapping)
            mapping = self._make(source, part, remote, now)
            if mapping is None:
                return None
        self._refresh(mapping, remote, now)
        return mapping.external

    def touch(self, source: Endpoint, remote: Endpoint, now: float) -> None:
        """Take a packet that dies here of its TTL: it makes no mapping, but refreshes one."""
        depends = self._mapping
        mapping = self._inner.get(
            (source, remote if depends == 2 else remote.host if depends else None)
        )
        if mapping is not None and mapping.expires > now:
            self._refresh(mapping, remote, now)

    def inbound(self, remote: Endpoint, port: int, now: float) -> Endpoint | None:
        """Return for whom a packet from outside is; None: unsolicited, see `refuses`."""
        mapping = self.find(remote, port, now)
        if mapping is None:
            if self._takes:
                self._taken[port, remote] = now + self.behaviour.one_way
            return None
        if self.behaviour.inbound_refreshes:
            self._refresh(mapping, remote, now)
        mapping.answered = True
        return mapping.source

    def find(self, remote: Endpoint, port: int, now: float) -> Mapping | None:
        """Return the mapping through which `remote` can reach somebody on `port`, if any."""
        depends = self._mapping
        mapping = self._outer.get(
            (port, remote if depends == 2 else remote.host if depends else None)
        )
        if mapping is not None and mapping.expires > now:
            if not self._strict:
                return mapping
            allowed = mapping.permits.get(remote if self._filtering == 2 else remote.host)
            return mapping if allowed is not None and allowed > now else None
        return self._find_loosely(remote, port, now) if self._loose else None

    # -- what a test asks ---------------------------------------------------------------------

    def flows(self, now: float) -> int:
        """Return how many mappings there are."""
        return sum(mapping.expires > now for mapping in self._inner.values())

    def takes(self, remote: Endpoint, port: int, now: float) -> bool:
        """Return whether it holds packets from `remote` to `port` for its own."""
        until = self._taken.get((port, remote))
        return until is not None and until > now

    # -- mappings -----------------------------------------------------------------------------

    def _refresh(self, mapping: Mapping, remote: Endpoint, now: float) -> None:
        stream = mapping.answered and now > mapping.stream_from
        mapping.expires = now + (self.behaviour.two_way if stream else self.behaviour.one_way)
        if self._strict:
            key = remote if self._filtering == 2 else remote.host
            mapping.permits[key] = mapping.expires

    def _make(
        self, source: Endpoint, part: Hashable, remote: Endpoint, now: float
    ) -> Mapping | None:
        limit = self.behaviour.flow_limit
        if limit is not None and len(self._inner) >= limit:
            for old in [old for old in self._inner.values() if old.expires <= now]:
                self._forget(old)
            if len(self._inner) >= limit:
                return None
        port = self._allocate(source, part, remote, now)
        if port is None:
            return None
        mapping = Mapping(
            source, Endpoint(self.public, port), remote, part, now + self.behaviour.stream_after
        )
        self._inner[source, part] = mapping
        self._outer[port, part] = mapping
        if self._follows:
            self._of_source.setdefault(source, []).append(mapping)
        if self._loose:
            self._of_port.setdefault(port, []).append(mapping)
        return mapping

    def _forget(self, mapping: Mapping) -> None:
        del self._inner[mapping.source, mapping.part]
        mapping.expires = 0.0
        # `_outer` is left alone: what has expired there is overwritten when the port is free, and
        # its slot may belong to another mapping by now.

    def _find_loosely(self, remote: Endpoint, port: int, now: float) -> Mapping | None:
        there = self._of_port.get(port)
        if there is None:
            return None
        there[:] = [mapping for mapping in there if mapping.expires > now]
        if not self._filtering:
            return there[-1] if there else None
        for mapping in reversed(there):
            if mapping.remote.host == remote.host:
                return mapping
        return None

    # -- ports --------------------------------------------------------------------------------

    def _allocate(
        self, source: Endpoint, part: Hashable, remote: Endpoint, now: float
    ) -> int | None:
        allocation = self.behaviour.allocation
        if allocation is Allocation.SEQUENTIAL:
            port = self._search(self._next, self.behaviour.step, part, remote, now)
            if port is not None:
                self._next = self._wrap(port + self.behaviour.step)
            return port
        if allocation is Allocation.PRESERVED:
            if self._follows:
                followed = self._newest_port(source, now)
                if followed is not None and self._is_free(followed, part, remote, now):
                    return followed
            if self._is_free(source.port, part, remote, now):
                return source.port
            if self.behaviour.clash is Clash.NEXT:
                return self._search(self._wrap(source.port + 1), 1, part, remote, now)
        port = self._draw()
        for _ in range(_DRAWS):
            if self._is_free(port, part, remote, now):
                return port
            port = self._draw()
        return self._search(port, 1, part, remote, now)

    def _newest_port(self, source: Endpoint, now: float) -> int | None:
        known = self._of_source.get(source)
        while known:
            if known[-1].expires > now:
                return known[-1].external.port
            known.pop()
        return None

    def _search(
        self, first: int, step: int, part: Hashable, remote: Endpoint, now: float
    ) -> int | None:
        port = first
        for _ in range(self._size):
            if self._is_free(port, part, remote, now):
                return port
            port = self._wrap(port + step)
        return None

    def _is_free(self, port: int, part: Hashable, remote: Endpoint, now: float) -> bool:
        mapping = self._outer.get((port, part))
        if mapping is not None and mapping.expires > now:
            return False
        return not self._takes or self._taken.get((port, remote), 0.0) <= now

    def _draw(self) -> int:
        return self._low + int(self._random() * self._size)

    def _wrap(self, port: int) -> int:
        return self._low + (port - self._low) % self._size
