"""The spine: settings, then sockets, then the handshake, then a hole that something can use."""

from __future__ import annotations

import asyncio
import secrets
import socket
import socket as socket_module  # `Hole.socket` is another thing
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.errors import LocalNetworkError, NoPathError
from nat_traverse.model import Endpoint, Path
from nat_traverse.net.address import sockaddr
from nat_traverse.net.driver import Driver
from nat_traverse.net.resolve import resolve
from nat_traverse.net.route import path_mtu, source_for
from nat_traverse.net.udp import UdpSocket
from nat_traverse.punch.handshake import Handshake
from nat_traverse.punch.machine import (
    Connected,
    DeadlinePassed,
    Event,
    PathValidated,
    PeerHeard,
    Settled,
)
from nat_traverse.punch.settings import (
    DATAGRAM_SIZE,
    DEFAULT_RATE,
    HandshakeSettings,
    Hard,
    LadderSettings,
)
from nat_traverse.wire.hello import (
    HELLO_SIZE,
    NONCE_SIZE,
    Counts,
    Kind,
    Message,
    Mode,
    Reason,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nat_traverse.punch.evidence import Evidence

# Addresses of one name that are tried side by side. Eight at ten hellos a second stay below the
# 100 packets a second that home gateways take for harmless.
MAX_PATHS = 8
_CHANCE = 16  # bytes: 128 bits, so that nobody can tell which ports are tried next
_CLOSING_COPIES = 2  # never answered, so one copy more against loss
_ANY_PORT_TRIES = 16  # for a port that is free in both address families


@dataclass(frozen=True, slots=True)
class PunchSettings:
    """What to connect to.

    `peer` is a name or an address; `local_port` 0 means any free one. `timeout` is in seconds,
    None: for ever. `window` is how many hellos a 0.7 peer gets before the ack. `mode` is what the
    path is for; `legacy` and `roaming` say who will do, as in `HandshakeSettings`. `spare` is a
    second pair of ports, the local one first, which both sides have agreed on by other means: no
    gateway remembers anything of it. `datagram_size` is in bytes, of the largest datagram of the
    user's data that there is any use for. `last_known` is an address to try when the name can't be
    looked up. The rest is how to find it, as in `LadderSettings`.
    """

    local_port: int
    peer: str
    remote_port: int
    timeout: float | None = None
    window: int = 0
    mode: Mode = Mode.PLAIN
    hard: Hard = Hard.AUTO
    rate: float = DEFAULT_RATE
    ttl: int | None = None
    hints: tuple[int, ...] = ()
    legacy: bool = True
    roaming: bool = False
    spare: tuple[int, int] | None = None
    datagram_size: int = DATAGRAM_SIZE
    last_known: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """Event: the sockets are open. `sources` are this host's own addresses towards the peer.

    `unreachable` holds the peer's addresses that this host has no route to, and `left_out` those
    beyond the first eight.
    """

    local_port: int
    sources: tuple[Endpoint, ...]
    remotes: tuple[Endpoint, ...]
    unreachable: tuple[tuple[Endpoint, str], ...]
    left_out: tuple[Endpoint, ...]


class PortChosen(NamedTuple):
    """Event, before Connected: its path has a port of ours other than the one of `Opened`."""

    local_port: int


SessionEvent = Opened | PortChosen | Event


class NotFoundError(NoPathError):
    """No path before the deadline; `evidence` is what was seen meanwhile."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__("no path to the peer was found in time")
        self.evidence = evidence


class Hole:
    """A punched hole: the sockets, the path that both sides agreed on, and the handshake.

    The owner closes it. `connected` says which path, how far and how large.
    """

    def __init__(
        self,
        sockets: dict[int, UdpSocket],
        handshake: Handshake,
        driver: Driver,
        connected: Connected,
        settled: asyncio.Event,
    ) -> None:
        self.connected = connected
        self.handshake = handshake
        self._sockets = sockets
        self._driver = driver
        self._settled = settled

    @property
    def socket(self) -> UdpSocket:
        """The socket of the path, which need not be one of the agreed port."""
        return self._sockets[self.connected.path.socket]

    @property
    def others(self) -> dict[int, UdpSocket]:
        """The sockets of the other paths, by number."""
        return {
            number: sock
            for number, sock in self._sockets.items()
            if number != self.connected.path.socket
        }

    async def settle(self) -> None:
        """Answer the peer until it needs no more answers, or can't be waited for any longer."""
        self._driver.start()
        try:
            await self._settled.wait()
        finally:
            self._driver.stop()

    def say_goodbye(self) -> None:
        """Tell the peer that there will be no tunnel; for a hole that nothing was sent through."""
        _say_goodbye(self.handshake.mode, self.handshake, self._sockets)

    def give_away(self) -> socket_module.socket:
        """Return the socket of the path, connected to the peer, and close all others.

        It is the caller's to close. Nothing of this package is left in it: no record of errors, no
        offload.
        """
        remote = self.connected.path.remote
        given = socket_module.socket(fileno=self.socket.detach())
        self.close()
        given.connect(sockaddr(remote, given.family))
        return given

    def close(self) -> None:
        """Close all sockets."""
        self._driver.stop()
        _close(self._sockets)


async def punch(settings: PunchSettings, observe: Callable[[SessionEvent], None]) -> Hole:
    """Find a path to the peer. `observe` is told everything that happens.

    Raises LocalNetworkError if there is nothing to send from or to, NotFoundError at the deadline.
    """
    routes = _Routes(await _resolve(settings))
    sockets = _open_sockets(settings.local_port, routes.families())
    for sock in sockets.values():
        # Before anything is sent: the peer may connect first, and its data arrive in a burst.
        sock.enlarge_buffers()
    try:
        local_port = next(iter(sockets.values())).local.port
        observe(routes.opened(local_port))
        numbers = {sock.local.is_ipv6: number for number, sock in sockets.items()}
        paths = [Path(numbers[remote.is_ipv6], remote) for remote in routes.remotes]
        if settings.spare is not None:
            paths += _spare_paths(settings.spare, routes, sockets)
        return await _shake_hands(settings, sockets, paths, observe)
    except BaseException:
        _close(sockets)
        raise


async def _resolve(settings: PunchSettings) -> list[Endpoint]:
    try:
        return await resolve(settings.peer, settings.remote_port)
    except LocalNetworkError:
        # The way to the name server may be the very tunnel that is looked for.
        if settings.last_known is None:
            raise
        return await resolve(settings.last_known, settings.remote_port)


def _spare_paths(
    spare: tuple[int, int], routes: _Routes, sockets: dict[int, UdpSocket]
) -> list[Path]:
    """Open the spare pair's sockets, as far as they can be had, and return the paths on them."""
    local_port, remote_port = spare
    numbers = {}
    remotes = routes.remotes[: MAX_PATHS - len(routes.remotes)]  # so many in all
    for ipv6 in dict.fromkeys(remote.is_ipv6 for remote in remotes):
        with suppress(LocalNetworkError):  # somebody else has that port
            sock = UdpSocket(socket.AF_INET6 if ipv6 else socket.AF_INET, local_port)
            sock.enlarge_buffers()
            numbers[ipv6] = max(sockets) + 1
            sockets[numbers[ipv6]] = sock
    return [
        Path(numbers[remote.is_ipv6], remote._replace(port=remote_port))
        for remote in remotes
        if remote.is_ipv6 in numbers
    ]


async def _shake_hands(
    settings: PunchSettings,
    sockets: dict[int, UdpSocket],
    paths: Sequence[Path],
    observe: Callable[[SessionEvent], None],
) -> Hole:
    loop = asyncio.get_running_loop()
    local_port = next(iter(sockets.values())).local.port
    handshake = Handshake(_handshake_settings(settings, local_port, paths), paths, loop.time())
    outcome: asyncio.Future[Connected | DeadlinePassed] = loop.create_future()
    settled = asyncio.Event()
    roomy = set(sockets)

    def on_event(event: Event) -> None:
        if isinstance(event, PeerHeard | PathValidated | Connected):
            number = event.path.socket
            if number in sockets and number not in roomy:
                # The peer may send data as soon as it has a way, and this is the first sign of one.
                # Not earlier: there may be hundreds of such sockets.
                sockets[number].enlarge_buffers()
                roomy.add(number)
        if isinstance(event, Connected):
            chosen = sockets[event.path.socket].local.port
            if chosen != local_port:
                observe(PortChosen(chosen))
        observe(event)
        if isinstance(event, Connected | DeadlinePassed):
            driver.stop()
            if not outcome.done():
                outcome.set_result(event)
        elif isinstance(event, Settled):
            settled.set()
            driver.stop()

    driver = Driver(handshake, sockets, loop, on_event)
    driver.start()
    try:
        # Cancelled after the outcome is known, this raises all the same.
        connected = _found(await outcome)
    except BaseException:
        driver.stop()
        _say_goodbye(settings.mode, handshake, sockets)
        raise
    return Hole(sockets, handshake, driver, connected, settled)


def _found(outcome: Connected | DeadlinePassed) -> Connected:
    if isinstance(outcome, DeadlinePassed):
        raise NotFoundError(outcome.evidence)
    return outcome


def _say_goodbye(mode: Mode, handshake: Handshake, sockets: Mapping[int, UdpSocket]) -> None:
    """Tell a peer that is connected, or may be, that there will be no tunnel.

    It would else wait for us until it finds out. A peer of generation 0.7 has no word for it, and
    other programs, which a path between ports is for, don't know ours.
    """
    if mode is Mode.PORTS or handshake.peer_nonce is None:
        return
    closing = Message(
        Kind.HELLO,
        handshake.nonce,
        echo=handshake.peer_nonce,
        received=Counts(0, 0),
        closing=Reason.STOPPED,
    )
    data = encode(closing, size=HELLO_SIZE)
    for path in handshake.promised:
        if path.socket in sockets:
            for _ in range(_CLOSING_COPIES):
                sockets[path.socket].send(data, path.remote)


def _handshake_settings(
    settings: PunchSettings, local_port: int, paths: Sequence[Path]
) -> HandshakeSettings:
    """Add to the user's settings what chance, the clocks and the kernel have to say."""
    return HandshakeSettings(
        nonce=secrets.token_bytes(NONCE_SIZE),
        timeout=settings.timeout,
        window=settings.window,
        datagram_size=min(_largest_datagram(path.remote, settings.datagram_size) for path in paths),
        mode=settings.mode,
        ladder=LadderSettings(
            local_port=local_port,
            wall=time.time(),
            chance=secrets.token_bytes(_CHANCE),
            hard=settings.hard,
            rate=settings.rate,
            ttl=settings.ttl,
            hints=settings.hints,
        ),
        legacy=settings.legacy,
        roaming=settings.roaming,
    )


class _Routes:
    """The peer's addresses, sorted into those that this host can send to and the rest."""

    def __init__(self, resolved: Sequence[Endpoint]) -> None:
        self.remotes: list[Endpoint] = []
        self._sources: list[Endpoint] = []
        self._unreachable: list[tuple[Endpoint, str]] = []
        self._left_out: list[Endpoint] = []
        failure: LocalNetworkError | None = None
        for remote in resolved:
            try:
                source = source_for(remote)
            except LocalNetworkError as error:
                self._unreachable.append((remote, str(error)))
                failure = failure or error
                continue
            if len(self.remotes) == MAX_PATHS:
                self._left_out.append(remote)
                continue
            self.remotes.append(remote)
            if source.host not in {known.host for known in self._sources}:
                self._sources.append(source)
        if not self.remotes and failure is not None:
            raise failure

    def families(self) -> list[bool]:
        """Return which families have a path, the preferred first; True is IPv6."""
        return list(dict.fromkeys(remote.is_ipv6 for remote in self.remotes))

    def opened(self, local_port: int) -> Opened:
        return Opened(
            local_port=local_port,
            sources=tuple(source._replace(port=local_port) for source in self._sources),
            remotes=tuple(self.remotes),
            unreachable=tuple(self._unreachable),
            left_out=tuple(self._left_out),
        )


def _open_sockets(port: int, families: Sequence[bool]) -> dict[int, UdpSocket]:
    """Open one socket a family, all on the same port."""
    for attempt in range(_ANY_PORT_TRIES):
        sockets: dict[int, UdpSocket] = {}
        try:
            for number, ipv6 in enumerate(families):
                chosen = port or next((each.local.port for each in sockets.values()), 0)
                sockets[number] = UdpSocket(socket.AF_INET6 if ipv6 else socket.AF_INET, chosen)
        except LocalNetworkError:
            _close(sockets)
            # With "any port" the first family's free port may be taken in the second.
            if port or not sockets or attempt == _ANY_PORT_TRIES - 1:
                raise
        else:
            return sockets
    raise AssertionError("unreachable: the last attempt raises")


def _largest_datagram(remote: Endpoint, wanted: int) -> int:
    """Return the size in bytes of the largest datagram for user data, as far as the kernel knows.

    At most what is `wanted`, and no fragments: at most what the first link, or an earlier report of
    the path, lets through.
    """
    mtu = path_mtu(remote)
    return wanted if mtu is None else min(wanted, max(mtu - remote.headers, 1))


def _close(sockets: Mapping[int, UdpSocket]) -> None:
    for sock in sockets.values():
        sock.close()
