"""From a hole to a link whose peer is proven."""

from __future__ import annotations

import asyncio
import secrets
from enum import IntEnum
from typing import TYPE_CHECKING

from nat_traverse.errors import NatTraverseError
from nat_traverse.link.link import Link
from nat_traverse.model import Generation
from nat_traverse.punch.ports import FIRST_PORT, PORTS
from nat_traverse.tunnel.events import Closing
from nat_traverse.tunnel.proof import RANDOM_SIZE, Proof
from nat_traverse.tunnel.quic import SMALLEST_DATAGRAM, QuicEngine, connection_name
from nat_traverse.tunnel.secure import CONSENT, KEEPALIVE, SecureTunnel
from nat_traverse.tunnel.transcript import Binding, digest
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from nat_traverse.session import Hole
    from nat_traverse.tunnel.events import Event
    from nat_traverse.tunnel.proof import Means

# 8 is ENOEXEC, "exec format error", which no call on a socket ends with.
EXIT_MODES_DIFFER = 8


class Purpose(IntEnum):
    """What a side wants of an encrypted tunnel; the two sides want the same, or there is none."""

    STREAM = 1  # standard input and output, or a command: one stream
    DATAGRAMS = 2  # the same, as datagrams
    FORWARDS = 3  # port forwards
    PROGRAM = 4  # a program's own streams, through the library
    VPN = 5  # IP packets between two network devices


class ModesDifferError(NatTraverseError):
    """The two sides want the path for different things."""

    exit_code = EXIT_MODES_DIFFER


async def establish(
    hole: Hole,
    means: Means,
    purpose: Purpose,
    observe: Callable[[Event], None] | None = None,
    *,
    keepalive: float = KEEPALIVE,
    consent: float = CONSENT,
) -> Link:
    """Return the link on `hole`, with the peer proven; the hole is the link's from now on.

    Raises ProofError, ModesDifferError, NoAnswerError, PeerGoneError; the hole is closed then.
    """
    try:
        _check(hole)
        tunnel = _tunnel(hole, means, purpose, keepalive, consent)
        link = Link(hole, tunnel, observe)
    except BaseException:
        hole.say_goodbye()
        hole.close()
        raise
    link.start()
    try:
        await asyncio.shield(link.proven)
    except BaseException:
        link.abort(Closing.STOPPED)
        raise
    return link


def _check(hole: Hole) -> None:
    """Raise ModesDifferError if the peer does not want an encrypted tunnel, or can't have one."""
    if hole.connected.generation is Generation.LEGACY:
        raise ModesDifferError(
            "The other side runs nat-traverse 0.7, which can't encrypt. Update it, or use --plain."
        )
    theirs = hole.handshake.peer_mode
    if theirs is Mode.PLAIN:
        raise ModesDifferError(
            "The other side was started with --plain and this one was not. Nothing was sent in"
            " the clear. Leave it out there, or give it here too."
        )
    if theirs is Mode.PORTS:
        raise ModesDifferError(
            "The other side wants the two ports for another program (--quit-after-connect or"
            " --handoff), and this one a tunnel. Start both for the same."
        )
    size = hole.connected.datagram_size
    if size < SMALLEST_DATAGRAM:
        raise ModesDifferError(
            f"The path takes datagrams of {size} bytes at most, and the encrypted tunnel needs"
            f" {SMALLEST_DATAGRAM}. The likeliest reason is a tunnel on the way; use another"
            " network, or --plain with something that encrypts by itself."
        )


def _tunnel(
    hole: Hole, means: Means, purpose: Purpose, keepalive: float, consent: float
) -> SecureTunnel:
    handshake = hole.handshake
    peer_nonce = handshake.peer_nonce
    if peer_nonce is None:
        raise AssertionError("a peer of today has a nonce")
    is_client = handshake.controlling
    nonces = (handshake.nonce, peer_nonce)
    modes = (handshake.mode.value, handshake.peer_mode.value)
    client_nonce, server_nonce = nonces if is_client else nonces[::-1]
    client_mode, server_mode = modes if is_client else modes[::-1]

    def make_proof(fingerprint: bytes) -> Proof:
        binding = Binding(client_nonce, server_nonce, client_mode, server_mode, fingerprint)
        chance = secrets.token_bytes(RANDOM_SIZE)
        return Proof(means, purpose, is_client=is_client, binding=binding, random=chance)

    engine = QuicEngine(
        is_client=is_client,
        datagram_size=hole.connected.datagram_size,
        name=connection_name(client_nonce, server_nonce),
    )
    now = asyncio.get_running_loop().time()
    return SecureTunnel(
        handshake,
        hole.connected,
        engine,
        make_proof,
        now,
        keepalive=keepalive,
        consent=consent,
    )


def spare_ports(link: Link) -> tuple[int, int]:
    """Return the pair of ports, ours first, on which to look for each other when `link` is lost.

    Both sides derive it from what is known to this session alone. The gateways have no memory of
    it: one that has just seen its host move to another address keeps the agreed port for the old
    one, some minutes long, and gives the new one another, for which the other side has to search.
    """
    tunnel = link.tunnel
    client, server = (
        FIRST_PORT + int.from_bytes(digest(label, tunnel.session)[:8], "big") % PORTS
        for label in (b"spare port of the client", b"spare port of the server")
    )
    return (client, server) if tunnel.is_client else (server, client)
