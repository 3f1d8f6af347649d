"""In which order the ports of a gateway are tried, none of them twice.

Likely ones first: what was seen or predicted, then the neighbourhood of the agreed port (a gateway
that keeps ports as long as they are free takes the next one), then everything else. Of that, three
in four are from the upper half, 32768 to 65535, where many gateways take all their ports from; the
rest is not left for later, because some count upwards through all ports, and their ports are next
to each other: all in one half, whichever that is.

Ports that are tried one after the other lie far apart: a step of the golden section spreads them
evenly however many there are. A gateway that counts upwards is then found sooner than by chance,
and one that draws lots no later.
"""

from __future__ import annotations

from collections import deque
from math import gcd
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FIRST_PORT = 1024  # below are the privileged ones; no gateway maps a user's port to them
_UPPER = 32768
_END = 65536
PORTS = _END - FIRST_PORT  # 64,512

_NEIGHBOURS = 8  # above the agreed port: a few hosts at most want the same one
_UPPER_SHARE: Final = (True, True, True, False)

# After a port that the gateway used lately: eight next ones for a gateway that is idle, then every
# eighth, which meets one of 250 ports in a row wherever they begin within the next 512.
_NEAR = 8
_STRIDE = 8
_FAR = 512


class PortOrder:
    """The ports of one host that are still to be tried.

    `agreed` is left out: it has a rung of its own. `chance` is 8 random bytes or more.
    """

    def __init__(self, agreed: int, chance: bytes, *, likely: Iterable[int] = ()) -> None:
        self._tried = {agreed}
        self._likely = deque(likely)
        self._likely.extend(wrap(agreed + distance) for distance in range(1, _NEIGHBOURS + 1))
        self._rest = _mixed(
            _spread(_UPPER, _END - _UPPER, chance[:4]),
            _spread(FIRST_PORT, _UPPER - FIRST_PORT, chance[4:8]),
        )

    def prefer(self, ports: Iterable[int]) -> None:
        """Try these next."""
        self._likely.extendleft(reversed(list(ports)))

    def next_port(self) -> int | None:
        """Return the next port, or None when all have been tried."""
        while self._likely:
            port = self._likely.popleft()
            if port not in self._tried:
                self._tried.add(port)
                return port
        for port in self._rest:
            if port not in self._tried:
                self._tried.add(port)
                return port
        return None

    def was_tried(self, port: int) -> bool:
        """Tell whether this port has been returned."""
        return port in self._tried


def after(port: int) -> list[int]:
    """Return where a gateway that counts upwards probably is, some time after it used `port`."""
    near = [wrap(port + distance) for distance in range(1, _NEAR + 1)]
    far = [wrap(port + distance) for distance in range(2 * _STRIDE, _FAR + 1, _STRIDE)]
    return near + far


def wrap(port: int) -> int:
    """Return `port`, or what a counter that has run past the last port stands at."""
    return FIRST_PORT + (port - FIRST_PORT) % PORTS


def _spread(first: int, count: int, chance: bytes) -> Iterator[int]:
    """Yield `count` ports from `first` on, each once, neighbours in time far apart in number."""
    step = round(count * (5**0.5 - 1) / 2)
    while gcd(step, count) != 1:
        step += 1
    at = int.from_bytes(chance, "big") % count
    for _ in range(count):
        yield first + at
        at = (at + step) % count


def _mixed(upper: Iterator[int], lower: Iterator[int]) -> Iterator[int]:
    """Yield from both, by their shares, until both are empty."""
    sources = {True: upper, False: lower}
    while sources:
        for share in _UPPER_SHARE:
            if share not in sources:
                continue
            port = next(sources[share], None)
            if port is None:
                del sources[share]
            else:
                yield port
