"""The paths of one traversal, agreed or found, and how far each of them has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_traverse.punch.evidence import PathEvidence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from nat_traverse.model import Endpoint, Path
    from nat_traverse.punch.legacy import LegacyPeer

# Paths that are remembered. Only the peer can validate one; 2 would do.
MOST = 64
# Other addresses of the peer's that are remembered: carriers use a handful for one customer.
MOST_HOSTS = 8


@dataclass(slots=True)
class Route:
    """What is known of one path.

    size_limit   the largest datagram in bytes that it is to be used with
    triggered    whether a hello of the peer's has already brought one of ours forward
    legacy       the exchange with a 0.7 peer, as long as it looks like one
    observed     our own endpoint as the peer sees it
    works        somebody on it has named our nonce: both directions are open
    astray       the peer says that our address is not the agreed one
    nominations  how many went out on it
    """

    path: Path
    evidence: PathEvidence
    size_limit: int
    triggered: bool = False
    legacy: LegacyPeer | None = None
    observed: Endpoint | None = None
    works: bool = False
    astray: bool = False
    nominations: int = 0


class Routes:
    """All of them; `agreed` are the paths that the users named, by address and ports."""

    def __init__(self, agreed: Sequence[Path], datagram_size: int) -> None:
        self._agreed = frozenset(agreed)
        self._datagram_size = datagram_size
        self._routes = {path: self._new(path) for path in agreed}
        # The first path to each address of the peer's.
        self._first = self._first_agreed()

    def __iter__(self) -> Iterator[Route]:
        """Walk over all, the agreed ones first."""
        return iter(self._routes.values())

    def __len__(self) -> int:
        return len(self._routes)

    @property
    def hosts(self) -> Collection[str]:
        """The addresses of the peer's: those that the user named, and those that were adopted."""
        return self._first.keys()

    def adopt(self, path: Path) -> bool:
        """Take the address of `path` for one of the peer's; False if there are too many."""
        known = len(self._first) - len({agreed.remote.host for agreed in self._agreed})
        if known >= MOST_HOSTS or self.add(path) is None:
            return False
        self._first[path.remote.host] = path
        return True

    def is_agreed(self, path: Path) -> bool:
        """Tell whether this is a pair of the agreed ports."""
        return path in self._agreed

    def get(self, path: Path) -> Route | None:
        """Return what is known of `path`, if anything is."""
        return self._routes.get(path)

    def of_host(self, path: Path) -> Route:
        """Return the first route to the host of `path`, which has to be one of `hosts`.

        Where the user named the host, that is an agreed one.
        """
        if path in self._agreed:
            return self._routes[path]
        return self._routes[self._first[path.remote.host]]

    def add(self, path: Path) -> Route | None:
        """Return the route of `path`, a new one if need be; None if there are too many."""
        route = self._routes.get(path)
        if route is None and len(self._routes) < MOST:
            route = self._routes[path] = self._new(path)
        return route

    def begin_anew(self) -> None:
        """Forget what works: it did with another run of the peer, or has died."""
        self._first = self._first_agreed()
        for path, route in list(self._routes.items()):
            route.nominations = 0
            route.works = False
            if path not in self._agreed:
                del self._routes[path]

    def _first_agreed(self) -> dict[str, Path]:
        agreed = [path for path in self._routes if path in self._agreed]
        return {path.remote.host: path for path in reversed(agreed)}

    def _new(self, path: Path) -> Route:
        return Route(path, PathEvidence(), self._datagram_size)
