"""Somebody on the path: a router through whose hands every datagram between two hosts goes.

    left host ── router 1 ── router 2 ── right host
                    └── Middle: takes all, and sends what it likes in either's name

The router forwards nothing; a thread reads what arrives there and sends raw packets.
"""

from __future__ import annotations

import random
import secrets
import select
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Self

from nat_traverse.tunnel import engine as quic
from nat_traverse.tunnel.events import Closing
from nat_traverse.tunnel.proof import RANDOM_SIZE, Proof
from nat_traverse.tunnel.quic import QuicEngine, connection_name
from nat_traverse.tunnel.refusals import ProofError, Refusal
from nat_traverse.tunnel.transcript import Binding
from nat_traverse.wire.control import FrameReader, encode_frame
from nat_traverse.wire.hello import MAGIC_PREFIX, MAGIC_SIZE, Bare, Message, Mode, decode, encode
from support.lab import Packet, forged, forging_socket, packet_socket, parsed

if TYPE_CHECKING:
    from nat_traverse.lab import Lab
    from nat_traverse.tunnel.proof import Means

# Forwarded packets are dropped; those of the router itself, raw ones among them, are not.
_RULES = """
table ip middle {
    chain forward {
        type filter hook forward priority filter - 1; policy accept;
        meta l4proto udp drop
    }
}
"""

# s between two looks at timers, where nothing arrives.
_TURN = 0.02

# Bytes of a datagram that a 1,500-byte path carries, less 8 that some access lines take: what
# nat-traverse finds in the lab, and so what the attacker's engines may send.
_DATAGRAM_SIZE = 1420


# Of what he sends in his own time; the same as any host's.
_TTL = 64


class Middle:
    """A man in the middle who passes everything on; what else he does is for subclasses."""

    def __init__(self, lab: Lab) -> None:
        router = lab.internet[0]
        blocked = router.run(["nft", "-f", "-"], text=_RULES)
        assert blocked.returncode == 0, blocked.stderr
        self._taps = {packet_socket(router, side): side for side in ("left", "right")}
        self._forger = forging_socket(router)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.packets = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for sock in (*self._taps, self._forger):
            sock.close()
        assert self._failure is None, self._failure

    def take(self, side: str, packet: Packet) -> None:
        """Deal with a packet that came from `side`: left or right."""
        del side
        self.send(packet)

    def tick(self) -> None:
        """Do what is due, whether something has arrived or not."""

    def send(self, packet: Packet) -> None:
        """Send a packet, one hop further than where it came from."""
        if packet.ttl > 1:
            whole = forged(packet.source, packet.destination, packet.data, packet.ttl - 1)
            self._forger.sendto(whole, (packet.destination[0], 0))

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                readable, _, _ = select.select(list(self._taps), [], [], _TURN)
                for tap in readable:
                    data, address = tap.recvfrom(65_535)
                    packet = parsed(data)
                    if packet is not None and address[2] != socket.PACKET_OUTGOING:
                        self.packets += 1
                        self.take(self._taps[tap], packet)
                self.tick()
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self._failure = error


class Spoiler(Middle):
    """Changes single bits of what is encrypted."""

    def __init__(self, lab: Lab, *, seed: int, share: float) -> None:
        super().__init__(lab)
        self._random = random.Random(seed)
        self._share = share
        self.spoiled = 0

    def take(self, side: str, packet: Packet) -> None:
        """Spoil some packets and pass all on."""
        if not packet.data.startswith(MAGIC_PREFIX) and self._random.random() < self._share:
            self.spoiled += 1
            data = bytearray(packet.data)
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            packet = packet._replace(data=bytes(data))
        super().take(side, packet)


class Repeater(Middle):
    """Passes everything on, and says it all once more when told to."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._kept: list[Packet] = []
        self._wanted = threading.Event()
        self.repeated = 0

    def repeat(self) -> None:
        """Have all that has passed so far sent again."""
        self._wanted.set()

    def take(self, side: str, packet: Packet) -> None:
        """Keep a packet and pass it on."""
        self._kept.append(packet)
        super().take(side, packet)

    def tick(self) -> None:
        """Repeat what has passed, if that is wanted."""
        if self._wanted.is_set():
            self._wanted.clear()
            for packet in list(self._kept):
                self.send(packet)
                self.repeated += 1


class Downgrader(Middle):
    """Makes each side believe that the other one wants less: `mode`, or to be a 0.7 (None)."""

    def __init__(self, lab: Lab, mode: Mode | None) -> None:
        super().__init__(lab)
        self._mode = mode

    def take(self, side: str, packet: Packet) -> None:
        """Change the messages of the traversal."""
        if packet.data.startswith(MAGIC_PREFIX):
            message = decode(packet.data)
            if self._mode is None or isinstance(message, Bare):
                packet = packet._replace(data=packet.data[:MAGIC_SIZE])
            elif message.mode is not None:
                lowered = encode(replace(message, mode=self._mode), size=len(packet.data))
                packet = packet._replace(data=lowered)
        super().take(side, packet)


class Nonces(Enum):
    """What is done to the nonces of the two sides."""

    KEEP = "kept"
    CHANGE = "changed"  # a little, so that the roles stay as they are


class Frames(Enum):
    """What is done with the frames of the proof."""

    RELAY = "relayed"
    REFLECT = "reflected"  # each side hears itself
    OWN = "his own"  # he proves, to both, what he can


@dataclass
class _End:
    """What is known of one side, and the connection with it."""

    address: tuple[str, int] | None = None
    nonce: bytes | None = None
    engine: QuicEngine | None = None
    is_client: bool = False  # the side; the engine is the other role
    established: bool = False
    proof: Proof | None = None
    frames: FrameReader = field(default_factory=FrameReader)
    control: int | None = None  # our control stream to this side
    streams: dict[int, int] = field(default_factory=dict)  # this side's, and the other's number
    waiting: list[quic.EngineEvent] = field(default_factory=list)  # until the channel is there
    over: bool = False  # nothing can be sent any more

    def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send on a stream, unless the connection has ended."""
        assert self.engine is not None
        if not self.over:
            self.engine.send(stream, data, fin=fin)

    def close(self, code: int, reason: str = "") -> None:
        """End the connection."""
        if self.engine is not None and not self.over:
            self.over = True
            self.engine.close(code, reason)


class Terminator(Middle):
    """Has an encrypted channel with each side, with his own certificate, and passes on the rest."""

    def __init__(
        self, lab: Lab, nonces: Nonces, frames: Frames, means: tuple[Means, Means] | None = None
    ) -> None:
        super().__init__(lab)
        self._how = nonces
        self._frames = frames
        self._means = dict(zip(("left", "right"), means or (), strict=False))
        self._ends = {"left": _End(), "right": _End()}
        self.channels = 0
        self.proofs = 0  # frames of the proof that were passed on
        self.read = b""  # what he has understood of the data

    def take(self, side: str, packet: Packet) -> None:
        """Deal with a packet."""
        end = self._ends[side]
        if not packet.data.startswith(MAGIC_PREFIX):
            self._take_quic(side, packet.data)
            return
        message = decode(packet.data)
        assert isinstance(message, Message)
        if end.nonce != message.nonce:
            # Another attempt: both begin anew.
            for name, each in self._ends.items():
                self._drop(each)
                nonce = message.nonce if name == side else each.nonce
                self._ends[name] = _End(each.address, nonce)
            self._ends[side].address = packet.source
        changed = replace(
            message,
            nonce=self._changed(message.nonce),
            echo=None if message.echo is None else self._changed(message.echo),
        )
        self.send(packet._replace(data=encode(changed, size=len(packet.data))))

    def tick(self) -> None:
        """Let the engines do what is due, and send what they have."""
        now = time.monotonic()
        for side, end in self._ends.items():
            if end.engine is None:
                continue
            at = end.engine.get_timer()
            if at is not None and at <= now:
                end.engine.handle_timer(now)
            self._read(side, end)
        for end in self._ends.values():
            self._transmit(end)

    def _transmit(self, end: _End) -> None:
        """Send what is to be sent to a side, in the other one's name."""
        for each in self._ends.values():
            if end.engine is not None and end.address and each.address and each is not end:
                for data in end.engine.datagrams_to_send(time.monotonic()):
                    self.send(Packet(0.0, True, _TTL, each.address, end.address, data))

    def _drop(self, end: _End) -> None:
        """End a connection, so that its side does not wait for what is not to come."""
        if end.engine is not None:
            end.close(Refusal.WRONG_SECRET)
            self._transmit(end)

    def _other(self, side: str) -> _End:
        return self._ends["right" if side == "left" else "left"]

    def _changed(self, nonce: bytes) -> bytes:
        """Return what stands for a nonce on the other side of him, and the other way round."""
        return nonce if self._how is Nonces.KEEP else nonce[:-1] + bytes((nonce[-1] ^ 1,))

    def _take_quic(self, side: str, data: bytes) -> None:
        if self._ends[side].engine is None:
            if self._ends["left"].nonce is None or self._ends["right"].nonce is None:
                return
            for name in self._ends:
                self._begin(name)
        engine = self._ends[side].engine
        assert engine is not None
        engine.receive([data], time.monotonic())

    def _begin(self, side: str) -> None:
        """Make the connection with one side, in the role that it expects."""
        end, own, peers = self._ends[side], *self._nonces(side)
        end.is_client = own > peers
        pair = (own, peers) if end.is_client else (peers, own)
        end.engine = QuicEngine(
            is_client=not end.is_client, datagram_size=_DATAGRAM_SIZE, name=connection_name(*pair)
        )
        end.engine.start(time.monotonic())

    def _nonces(self, side: str) -> tuple[bytes, bytes]:
        """Return the nonces that a side knows: its own, and what it takes for its peer's."""
        own, peers = self._ends[side].nonce, self._other(side).nonce
        assert own is not None
        assert peers is not None
        return own, self._changed(peers)

    # -- inside the channels ------------------------------------------------------------------

    def _read(self, side: str, end: _End) -> None:
        assert end.engine is not None
        while (event := end.engine.next_event()) is not None:
            if isinstance(event, quic.Established):
                self.channels += 1
                end.established = True
                end.control = end.engine.open_stream(both_ways=False)
                if self._frames is Frames.OWN:
                    end.proof = self._make_proof(side, event.fingerprint)
                    self._say_proof(end)
            else:
                end.over = end.over or isinstance(event, quic.Terminated)
                end.waiting.append(event)
        other = self._other(side)
        while end.waiting and end.established and other.established:
            self._pass_on(end, other, end.waiting.pop(0))

    def _make_proof(self, side: str, fingerprint: bytes) -> Proof:
        end, own, peers = self._ends[side], *self._nonces(side)
        nonces = (own, peers) if end.is_client else (peers, own)
        mode = Mode.TUNNEL.value
        binding = Binding(*nonces, mode, mode, fingerprint)
        chance = secrets.token_bytes(RANDOM_SIZE)
        return Proof(
            self._means[side], 1, is_client=not end.is_client, binding=binding, random=chance
        )

    def _pass_on(self, end: _End, other: _End, event: quic.EngineEvent) -> None:
        assert end.engine is not None
        assert other.engine is not None
        match event:
            case quic.StreamData(stream, data, fin) if stream % 4 in (2, 3):
                assert not fin
                self._take_frames(end, other, data)
            case quic.StreamData(stream, data, fin):
                self.read += data
                if not other.over:
                    other.send(self._stream(end, other, stream), data, fin=fin)
            case quic.StreamReset(stream, code):
                other.engine.reset(self._stream(end, other, stream), code)
            case quic.StreamStopped(stream, code):
                other.engine.stop(self._stream(end, other, stream), code)
            case quic.Datagram(data):
                other.engine.send_datagram(data)
            case quic.Terminated(code, reason):
                other.close(code or 0, reason)

    def _stream(self, end: _End, other: _End, number: int) -> int:
        if number not in end.streams:
            assert other.engine is not None
            opened = other.engine.open_stream()
            assert opened is not None
            end.streams[number] = opened
            other.streams[opened] = number
        return end.streams[number]

    def _take_frames(self, end: _End, other: _End, data: bytes) -> None:
        for kind, value in end.frames.feed(data):
            if end.proof is not None and end.proof.outcome is None:
                try:
                    end.proof.receive(kind, value)
                except ProofError:
                    # He does not say that he has seen a proof and knows now that he guessed wrong.
                    end.close(Closing.STOPPED)
                else:
                    self._say_proof(end)
                continue
            to = end if self._frames is Frames.REFLECT else other
            self.proofs += 1
            assert to.control is not None
            to.send(to.control, encode_frame(kind, value))

    def _say_proof(self, end: _End) -> None:
        assert end.control is not None
        assert end.proof is not None
        for kind, value in end.proof.messages():
            self.proofs += 1
            end.send(end.control, encode_frame(kind, value))
