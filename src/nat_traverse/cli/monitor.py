"""What `nat-traverse status` shows of one tunnel, gathered from the run's events and its link."""

from __future__ import annotations

import os
import time
from enum import Enum
from typing import TYPE_CHECKING, Final

from nat_traverse._version import __version__
from nat_traverse.api import Rejected, Unfinished
from nat_traverse.carry.streams import Listening, ListeningEnded
from nat_traverse.carry.vpn_events import VpnUp
from nat_traverse.link.link import Link
from nat_traverse.punch.machine import Connected
from nat_traverse.session import Hole, Opened, PortChosen
from nat_traverse.tunnel.events import Proven
from nat_traverse.tunnel.keys import encode_public

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nat_traverse.cli.settings import Connect
    from nat_traverse.link.statistics import Statistics
    from nat_traverse.tunnel.proof import Outcome


class State(Enum):
    """How a tunnel is. The values are what a user reads."""

    SEARCHING = "searching"
    CONNECTED = "connected"
    SEARCHING_AGAIN = "searching-again"
    ENDED = "ended"


STATUS_FIELDS: Final = (
    ("name", "Of the tunnel."),
    ("state", ("`searching` (there was no tunnel yet), `connected`, `searching-again` (the tunnel"
     " was lost), `ended` (for good, while others of the same process run), or `not-answering`: its"
     " process runs and is stopped, or hangs, or talks nonsense; then there are no more fields than"
     " these two. With `wireguard` it is `connected` when WireGuard has shaken hands.")),
    ("since", "When this state began, in seconds since 1970."),
    ("description", "The file that describes it, with its whole path."),
    ("target", "What it connects, as on the command line."),
    ("peer", "The address of the peer now, or null."),
    ("local_port", "Ours, or null before the sockets are open."),
    ("observed", "Our address as the peer saw it when the path was found, or null."),
    ("strategy", "Which found the path: `direct`, `quiet`, `hop`, `spray`, `predict`; or null."),
    ("round_trip", "Seconds, smoothed, as of now; or null."),
    ("last_contact", "Seconds since the peer last gave a sign of life, or null."),
    ("sent", ("Bytes in datagrams to the peer, over all paths since the start; null with"
     " `wireguard`, whose packets do not pass through here.")),
    ("received", "The same from the peer."),
    ("paths", "How many paths have been in use since the start."),
    ("encrypted", "True with a tunnel of its own; null without one, or with another program's."),
    ("proof", "What proves who is there: `secret`, `keys`, `secret and keys`, `code`; or null."),
    ("code", "What both users compare, where nothing else proves who is there; or null."),
    ("peer_key", "The key that the peer has proven to own, or null."),
    ("forwards", ("Objects with `what` (as on the command line) and `address` (where it listens, or"
     " null); what is exposed is among them.")),
    ("command", "What `cmd` runs, or null."),
    ("problem", "What was told last about why there is no tunnel, or null while there is one."),
    ("exit_code", "What it ended with, or null."),
    ("pid", "Of the process."),
    ("version", "Of the program."),
)  # fmt: skip
"""The documentation of `status --json`: names, and what they mean. Names are never changed."""


class Monitor:
    """Keeps the state of one tunnel.

    Times come from `clock`, which is that of the event loop, and `wall`, in seconds since 1970.
    `has_begun` is whether all is held that it needs of this host, and the peer is looked for.
    """

    def __init__(
        self,
        name: str,
        path: str,
        connect: Connect,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.state = State.SEARCHING
        self.has_begun = False
        self._path = path
        self._connect = connect
        self._clock = clock
        self._wall = wall
        self._since = clock()
        self._local_port: int | None = None
        self._connected: Connected | None = None
        self._outcome: Outcome | None = None
        self._link: Link | None = None
        self._device_peer: str | None = None  # where a WireGuard device sends to
        self._paths = 0
        self._sent = self._received = 0  # by links that are over
        self._listening: dict[str, str] = {}
        self._problem: str | None = None
        self._exit_code: int | None = None
        self._parts: dict[str, Callable[[], Mapping[str, object]]] = {}

    # -- what happens -------------------------------------------------------------------------

    def observe(self, event: object) -> None:
        """Take one event of the run's."""
        match event:
            case Opened(local_port=port) | PortChosen(port):
                self._local_port = port
            case Connected():
                self._connected = event
            case Proven(outcome):
                self._outcome = outcome
            case Listening(what, address):
                self._listening[what] = address
            case ListeningEnded(what):
                self._listening.pop(what, None)
            case VpnUp():
                self._reached()
            case Rejected(error):
                self._problem = str(error)
            case Unfinished(text):
                self._problem = text

    def searching(self) -> None:
        """Take note that the search begins, with listeners held, and the device of a VPN."""
        self.has_begun = True

    def found(self, what: object) -> None:
        """Take note that there is a tunnel now; `what` is its link or its hole.

        A hole for WireGuard is none yet: whether there is a peer behind it WireGuard will say. Nor
        is a link for a VPN, before addresses and keys are agreed on.
        """
        self._settle_accounts()
        if isinstance(what, Link):
            self._link = what
        elif isinstance(what, Hole):
            self._connected = what.connected
        if self._connect.wireguard is None and self._connect.vpn is None:
            self._reached()

    def shaken(self, peer: str | None) -> None:
        """Take note that WireGuard is connected to `peer`, as it spells it."""
        self.has_begun = True
        self._device_peer = peer
        if self.state is not State.CONNECTED:
            self._reached()

    def _reached(self) -> None:
        self._paths += 1
        self._problem = None
        self._enter(State.CONNECTED)

    def lost(self, message: str) -> None:
        """Take note that there is none any more, and that another is looked for."""
        self._forget(message)
        self._enter(State.SEARCHING_AGAIN)

    def trouble(self, message: str) -> bool:
        """Take note of why there is none yet; tell whether that is new."""
        is_new, self._problem = message != self._problem, message
        return is_new

    def ended(self, exit_code: int) -> None:
        """Take note of the end."""
        self._forget(self._problem)
        self._listening.clear()
        self._exit_code = exit_code
        self._enter(State.ENDED)

    def attach(self, part: str, tell: Callable[[], Mapping[str, object]]) -> None:
        """Have `tell` say what is shown under the name `part`."""
        self._parts[part] = tell

    # -- what is told -------------------------------------------------------------------------

    @property
    def summary(self) -> str:
        """The state in a few words, for a service manager."""
        match self.state:
            case State.CONNECTED:
                return f"connected to {self._peer}"
            case State.ENDED:
                words = f"ended with status {self._exit_code}"
            case _ if self._connect.wireguard is not None and self._connected is not None:
                words = f"waiting for WireGuard to shake hands with {self._peer}"
            case _ if self._link is not None:
                words = f"agreeing on a VPN with {self._peer}"
            case _:
                again = " again" if self.state is State.SEARCHING_AGAIN else ""
                words = f"looking for a path to {self._connect.target.peer}{again}"
        return f"{words}: {self._problem.splitlines()[0]}" if self._problem else words

    def describe(self) -> dict[str, object]:
        """Return the state as it is now, by the names of STATUS_FIELDS."""
        now, here = self._clock(), self._statistics
        is_up = self.state is State.CONNECTED
        connected, outcome = (self._connected, self._outcome) if is_up else (None, None)
        round_trip = None if connected is None else connected.round_trip
        if here is not None and here.round_trip is not None:
            round_trip = here.round_trip
        observed = None if connected is None else connected.observed
        counts = self._connect.wireguard is None
        return {
            "name": self.name,
            "state": self.state.value,
            "since": round(self._wall() - (now - self._since), 3),
            "description": self._path,
            "target": str(self._connect.target),
            "peer": self._peer if is_up else None,
            "local_port": self._local_port,
            "observed": None if observed is None else str(observed),
            "strategy": None if connected is None else connected.rung.value,
            "round_trip": round_trip,
            "last_contact": None if here is None else round(max(0.0, now - here.heard), 3),
            "sent": self._sent + (0 if here is None else here.sent) if counts else None,
            "received": self._received + (0 if here is None else here.received) if counts else None,
            "paths": self._paths,
            "encrypted": True if is_up and here is not None else None,
            "proof": None if outcome is None else outcome.means,
            "code": None if outcome is None else outcome.code,
            "peer_key": _key(outcome),
            "forwards": self._forwards(),
            "command": self._connect.cmd,
            "problem": self._problem,
            "exit_code": self._exit_code,
            "pid": os.getpid(),
            "version": __version__,
            **{part: dict(tell()) for part, tell in self._parts.items()},
        }

    @property
    def _peer(self) -> str | None:
        if self._link is not None:
            return str(self._link.peer)  # it may have moved
        if self._device_peer is not None:
            return self._device_peer
        return None if self._connected is None else str(self._connected.path.remote)

    @property
    def _statistics(self) -> Statistics | None:
        return None if self._link is None else self._link.statistics

    def _forwards(self) -> list[dict[str, object]]:
        connect = self._connect
        texts = [each.text for each in connect.locals_]
        texts += [each.text for each in connect.remotes]
        texts += [each.text for each in connect.dynamics]
        texts += [each.text for each in connect.exposed]
        return [{"what": text, "address": self._listening.get(text)} for text in texts]

    def _forget(self, problem: str | None) -> None:
        self._settle_accounts()
        self._connected = self._outcome = self._device_peer = None
        self._problem = problem
        # What the peer listens at for us is gone with the link; ours stays.
        for remote in self._connect.remotes:
            self._listening.pop(remote.text, None)

    def _settle_accounts(self) -> None:
        """Add what a link that is over has carried to what its successors will."""
        here, self._link = self._statistics, None
        if here is not None:
            self._sent += here.sent
            self._received += here.received

    def _enter(self, state: State) -> None:
        self.state = state
        self._since = self._clock()


def _key(outcome: Outcome | None) -> str | None:
    if outcome is None or outcome.peer_key is None:
        return None
    return encode_public(outcome.peer_key)
