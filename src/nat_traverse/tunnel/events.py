"""What happens in an encrypted tunnel, as its user is told, and why one may be closed."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from nat_traverse.errors import ErrnoError
from nat_traverse.tunnel import engine as quic

if TYPE_CHECKING:
    from nat_traverse.model import Path
    from nat_traverse.tunnel.proof import Outcome
    from nat_traverse.tunnel.refusals import ProofError


class Closing(IntEnum):
    """Why a side ends the connection; the numbers are QUIC's application error codes.

    Those of a failed proof stand in `proof.Refusal`.
    """

    COMPLETE = 0
    NOT_READING = 1  # what takes the data there (a command, a pipe) has ended
    STOPPED = 2  # a signal, or an error on that side
    PROTOCOL = 3  # the other side broke the rules of this protocol
    NOT_AGREED = 4  # the two sides' addresses and networks do not fit; the text says what


@dataclass(frozen=True, slots=True)
class Proven:
    """Event: the peer is who it has to be. Nothing was served before."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class NotProven:
    """Event: the proof failed, here or there. `error` is what the user reads."""

    error: ProofError


@dataclass(frozen=True, slots=True)
class NotEstablished:
    """Event: no encrypted channel came about in time."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """Event: the first that is heard of a stream of the peer's, before anything else of it."""

    stream: int


@dataclass(frozen=True, slots=True)
class CreditGrown:
    """Event: more of a stream may be sent."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamDone:
    """Event: the peer has consumed all of a stream, to its end."""

    stream: int


@dataclass(frozen=True, slots=True)
class FlowDatagram:
    """Event: an unreliable datagram that belongs to a stream."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """Event: a control frame that is not about the tunnel itself, but for what it carries."""

    kind: int
    value: bytes


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Event: the peer is somewhere else now, and was followed."""

    path: Path


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """Event: the peer ended the tunnel. `code` may be none of `Closing`; `text` is the peer's."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class PeerVanished:
    """Event: no sign of life. `errno` is ECONNREFUSED, ECONNRESET (started again) or ETIMEDOUT."""

    errno: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Event: both sides have said bye, or this one has and the other is gone."""


Event = (
    Proven
    | NotProven
    | NotEstablished
    | StreamOpened
    | quic.StreamData
    | quic.StreamReset
    | quic.StreamStopped
    | CreditGrown
    | StreamDone
    | FlowDatagram
    | FrameReceived
    | PathChanged
    | PeerClosed
    | PeerVanished
    | Ended
)


class NoSuchStreamError(ErrnoError):
    """The stream is over, or never was."""

    def __init__(self, stream: int) -> None:
        super().__init__(f"stream {stream} is over", errno.EPIPE)
