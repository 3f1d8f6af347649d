"""The library: `connect` makes an encrypted tunnel, `punch` a hole for a protocol of your own.

    async with nat_traverse.connect("40000:gw.example.org:40001", secret="correct horse") as tunnel:
        reader, writer = await tunnel.open_stream()

The command line is a client of this module and uses nothing else to connect.
"""

from __future__ import annotations

import asyncio
import errno
import unicodedata
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from nat_traverse import session
from nat_traverse.errors import PeerGoneError, RemoteProtocolError, UsageError
from nat_traverse.link.establish import Purpose, establish
from nat_traverse.link.link import NoAnswerError
from nat_traverse.model import Generation
from nat_traverse.session import Hole, NotFoundError, Opened, PunchSettings
from nat_traverse.target import parse
from nat_traverse.tunnel.events import Closing
from nat_traverse.tunnel.keys import decode_public, encode_public
from nat_traverse.tunnel.proof import Means
from nat_traverse.tunnel.refusals import GivenUpError, ProofError, PurposesDifferError
from nat_traverse.tunnel.secure import CONSENT, KEEPALIVE
from nat_traverse.wire.hello import Mode
from nat_traverse.wire.request import LINE_LIMIT, Plain, decode_request, encode_request

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from nat_traverse.link.link import Link
    from nat_traverse.model import Endpoint
    from nat_traverse.session import SessionEvent
    from nat_traverse.tunnel.events import Event as TunnelEvent

__all__ = ["Settings", "Tunnel", "connect", "punch", "reach"]

# Failed proofs after which a run gives up. Each is one guess of somebody who plays the peer, so a
# phrase of one in a million words stands against one chance in 200,000 a run; a user who mistypes
# learns of it at once.
MOST_FAILURES: Final = 5

# s between two attempts at least: at most five proofs are worked on in a second.
_PACE: Final = 0.2

# s: below the 30 s after which the quickest gateways measured forget a path, and the peer gives up.
LONGEST_KEEPALIVE: Final = 25

# s to try, as on the command line: the other user has to be told, walk to a keyboard and type.
_TIMEOUT: Final = 180.0

# s for the first line of a stream that the peer has opened; it travels with what opens the stream.
_LINE_TIMEOUT: Final = 10.0

# Streams that the peer has opened and nobody has accepted; more are refused. As `listen` has it.
_BACKLOG: Final = 100
# Datagrams that have arrived and nobody has taken; then the oldest is lost, as in a socket.
_DATAGRAMS: Final = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """What `reach` needs: the way, who is to be there, and what the tunnel is for.

    `keepalive` is in seconds, and `consent`, the time without any sign of the peer after which the
    tunnel is over.
    """

    punch: PunchSettings
    means: Means
    purpose: Purpose
    keepalive: float = KEEPALIVE
    consent: float = CONSENT


@dataclass(frozen=True, slots=True)
class Rejected:
    """Event: somebody answered who could not prove to be the peer. `failures` have been so far."""

    error: ProofError
    failures: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Event: a path was found, and the tunnel on it came to nothing; it is tried again."""

    text: str


_T = TypeVar("_T")
_Pair: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Event: TypeAlias = "SessionEvent | TunnelEvent | Rejected | Unfinished"


async def reach(settings: Settings, observe: Callable[[Event], None]) -> Link | Hole:
    """Find the peer, encrypt, and prove; returns the link.

    Where `settings.punch.legacy` allows it, a peer of generation 0.7 gets no link: its hole is
    returned. Raises what `session.punch` and `establish` do. A stranger who can't prove anything
    is told of by a Rejected event, and the search goes on; the fifth one ends it.
    """
    return await _Search(settings, observe).run()


class _Search:
    """The attempts of one `reach`."""

    def __init__(self, settings: Settings, observe: Callable[[Event], None]) -> None:
        self._settings = settings
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        timeout = settings.punch.timeout
        self._deadline = None if timeout is None else self._loop.time() + timeout
        self._local_port = settings.punch.local_port
        self._failures = 0
        self._last: ProofError | None = None

    async def run(self) -> Link | Hole:
        while True:
            begun = self._loop.time()
            hole = await self._punch()
            if hole.connected.generation is Generation.LEGACY:
                return hole
            try:
                return await establish(
                    hole,
                    self._settings.means,
                    self._settings.purpose,
                    self._observe,
                    keepalive=self._settings.keepalive,
                    consent=self._settings.consent,
                )
            except ProofError as error:
                self._note(error)
            except (NoAnswerError, PeerGoneError) as error:
                self._observe(Unfinished(str(error)))
            await asyncio.sleep(max(0.0, begun + _PACE - self._loop.time()))

    async def _punch(self) -> Hole:
        settings = replace(self._settings.punch, local_port=self._local_port)
        if self._deadline is not None:
            settings = replace(settings, timeout=max(0.0, self._deadline - self._loop.time()))
        try:
            return await session.punch(settings, self._take)
        except NotFoundError as error:
            # Who was rejected explains more than that nobody else came.
            raise error if self._last is None else self._last from None

    def _take(self, event: SessionEvent) -> None:
        if isinstance(event, Opened):
            if self._failures:
                return  # the same sockets again
            self._local_port = event.local_port
        self._observe(event)

    def _note(self, error: ProofError) -> None:
        """Count a failed proof; raises it where there is no sense in trying on."""
        self._failures += 1
        self._last = error
        # Only what was proven counts: a code that a stranger sends must not end the run.
        if not self._settings.means.byte or isinstance(error, PurposesDifferError):
            raise error
        if self._failures == MOST_FAILURES:
            raise GivenUpError(error, self._failures)
        self._observe(Rejected(error, self._failures))


class Tunnel:
    """An encrypted tunnel to a peer that is who it has to be; made by `connect`.

    code         six digits that the peer has, too, if neither secret nor keys were given: compare
                 them by other means to be sure that nobody sits in between
    peer_key     the text of the key that the peer has proven to own, if keys were given
    round_trip   of the path in seconds, as measured when it was found; None if it was not
    strategy     which rung of the ladder found the path

    All methods belong to the event loop that it was made on.
    """

    def __init__(self, link: Link) -> None:
        outcome = link.proven.result()
        self.code = outcome.code
        self.peer_key = None if outcome.peer_key is None else encode_public(outcome.peer_key)
        self.round_trip = link.connected.round_trip
        self.strategy = link.connected.rung.value
        self._link = link
        self._streams: deque[_Pair] = deque()
        self._accepted = asyncio.Event()
        self._datagrams: deque[bytes] = deque(maxlen=_DATAGRAMS)
        self._arrived = asyncio.Event()
        self._greeting: set[asyncio.Task[None]] = set()
        link.on_stream = self._make_protocol
        link.on_datagram = self._take_datagram

    @property
    def peer(self) -> Endpoint:
        """Where the peer is at present; it may move."""
        return self._link.peer

    @property
    def datagram_limit(self) -> int:
        """How many bytes a datagram may have."""
        return self._link.tunnel.datagram_limit

    async def open_stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a stream, reliable and in order, with an end of its own in each direction.

        Raises PeerGoneError when the tunnel is over.
        """
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = self._link.open_stream(protocol)
        transport.write(encode_request(Plain()))
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._link.loop)

    async def accept_stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the next stream that the peer opens; raises PeerGoneError when there won't be."""
        while not self._streams:
            self._accepted.clear()
            await self._or_over(self._accepted.wait())
        return self._streams.popleft()

    def send_datagram(self, data: bytes) -> None:
        """Send a datagram, which may be lost, doubled or overtaken.

        Raises ValueError if it is larger than `datagram_limit`, PeerGoneError after the end.
        """
        if self._link.is_over:
            raise _over()
        self._link.send_datagram(data)

    async def receive_datagram(self) -> bytes:
        """Return the next datagram of the peer's; raises PeerGoneError when there won't be.

        1,024 are kept for a program that is slow; then the oldest are lost.
        """
        while not self._datagrams:
            self._arrived.clear()
            await self._or_over(self._arrived.wait())
        return self._datagrams.popleft()

    async def wait_closed(self) -> None:
        """Wait until the tunnel is over; raises what ended it, if that was no orderly end."""
        await asyncio.shield(self._link.closed)

    async def aclose(self) -> None:
        """Wait until the peer has read all streams that were ended here, then end the tunnel.

        Streams that were not ended are reset. Raises what ended the tunnel, if it was something
        else; limit the time with `asyncio.timeout`.
        """
        if self._link.is_over:
            return
        try:
            await self._link.drain()
        finally:
            self._link.abort(Closing.COMPLETE)

    def abort(self) -> None:
        """End the tunnel at once; the peer is told."""
        self._link.abort(Closing.STOPPED)

    async def _or_over(self, awaitable: Coroutine[None, None, _T]) -> _T:
        """Await something that will not come when the tunnel is over."""
        task = self._link.loop.create_task(awaitable)
        both: set[asyncio.Future[Any]] = {task, self._link.closed}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        self._link.closed.result()
        raise _over()

    def _take_datagram(self, data: bytes) -> None:
        self._datagrams.append(data)
        self._arrived.set()

    def _make_protocol(self) -> asyncio.Protocol:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._link.loop.create_task(self._greet(reader, writer))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), connected)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the line that a stream begins with, and keep the stream for `accept_stream`."""
        try:
            async with asyncio.timeout(_LINE_TIMEOUT):
                line = await reader.readuntil(b"\n")
            wanted = len(line) <= LINE_LIMIT and decode_request(line[:-1]) == Plain()
            if wanted and len(self._streams) < _BACKLOG:
                self._streams.append((reader, writer))
                self._accepted.set()
                return
        except (
            TimeoutError,
            ConnectionError,
            RemoteProtocolError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass
        writer.transport.abort()


@asynccontextmanager
async def connect(
    target: str,
    *,
    secret: str | None = None,
    identity: bytes | None = None,
    peer_keys: Sequence[str] = (),
    timeout: float | None = _TIMEOUT,  # noqa: ASYNC109 (it is about the peer, not about this call)
    keepalive: float = KEEPALIVE,
    observe: Callable[[Event], None] | None = None,
) -> AsyncIterator[Tunnel]:
    """Make a tunnel to a peer that does the same, and end it when the block is left.

    target      LOCAL_PORT:PEER:REMOTE_PORT, as on the command line; LOCAL_PORT 0 is any free port
    secret      a phrase that both sides know; a short one is safe (SPAKE2, RFC 9382)
    identity    this side's private Ed25519 key, 32 bytes; together with `peer_keys`
    peer_keys   the texts of the public keys of which the peer has to own one
    timeout     s to try; None: for ever
    keepalive   s between two signs of life on an idle tunnel
    observe     is called with everything that happens, as dataclasses

    Raises UsageError for arguments that make no sense, LocalNetworkError, NoPathError at the
    deadline, ProofError when the peer is not the right one, ModesDifferError.

    When the block ends by itself, what was written to streams that were ended arrives first; when
    it ends by an exception, the tunnel ends at once.
    """
    if not 1 <= keepalive <= LONGEST_KEEPALIVE:
        raise UsageError(f"keepalive is {keepalive} s, and can be 1 to {LONGEST_KEEPALIVE}")
    means = _means(secret, identity, peer_keys)
    punching = replace(_punch_settings(target, timeout), roaming=bool(means.byte))
    settings = Settings(punching, means, Purpose.PROGRAM, keepalive)
    link = await reach(settings, observe or _ignore)
    if isinstance(link, Hole):
        raise AssertionError("a 0.7 peer was not wanted")  # noqa: TRY004 (no wrong type: a bug)
    tunnel = Tunnel(link)
    try:
        yield tunnel
        await tunnel.aclose()
    finally:
        tunnel.abort()


@dataclass(frozen=True, slots=True)
class PunchedHole:
    """A path through the gateways on both sides, for a protocol of your own.

    socket       a UDP socket that is connected to the peer, not blocking; yours while the block of
                 `punch` lasts. The gateways forget the path after 30 s of silence
    peer         the peer's address
    round_trip   of the path in seconds, as measured; None if it was not
    strategy     which rung of the ladder found the path
    """

    socket: socket.socket
    peer: Endpoint
    round_trip: float | None
    strategy: str


@asynccontextmanager
async def punch(
    target: str,
    *,
    timeout: float | None = _TIMEOUT,  # noqa: ASYNC109 (the same)
    observe: Callable[[SessionEvent], None] | None = None,
) -> AsyncIterator[PunchedHole]:
    """Find a path to a peer that does the same, and give its socket away.

    Nothing is encrypted and nobody is proven: that is your protocol's business. Arguments and
    exceptions are those of `connect`. The peer may have been quicker: what it sent before this
    returned may be lost, and a few datagrams that are none of yours may be in the socket, which
    begin with `nat-traverse-`. Have your protocol repeat its first words until it is answered.
    """
    settings = replace(_punch_settings(target, timeout), mode=Mode.PORTS)
    hole = await session.punch(settings, observe or _ignore)
    try:
        await hole.settle()
        with hole.give_away() as sock:
            sock.setblocking(False)  # which Python does not know of a descriptor
            connected = hole.connected
            yield PunchedHole(
                sock, connected.path.remote, connected.round_trip, connected.rung.value
            )
    finally:
        hole.close()


def _means(secret: str | None, identity: bytes | None, peer_keys: Sequence[str]) -> Means:
    """Return what is to be proven. Raises UsageError."""
    phrase = None if secret is None else unicodedata.normalize("NFC", secret).strip().encode()
    try:
        return Means(phrase, identity, tuple(decode_public(key) for key in peer_keys))
    except ValueError as error:
        raise UsageError(f"{error}") from error


def _punch_settings(target: str, timeout: float | None) -> PunchSettings:
    read = parse(target)
    return PunchSettings(
        read.local_port,
        read.peer,
        read.remote_port,
        timeout=timeout,
        mode=Mode.TUNNEL,
        legacy=False,
    )


def _ignore(_: object) -> None:
    pass


def _over() -> PeerGoneError:
    return PeerGoneError("The tunnel is over.", errno.EPIPE)
