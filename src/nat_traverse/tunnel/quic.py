"""QUIC by qh3: the one module that knows this library.

qh3 is pinned to one version in pyproject.toml, for its core is young. What is relied on here beyond
its documented interface is marked; a new version has to be looked through for that.

The certificate is made anew for each connection and says nothing: who is there is proven inside
the channel, over the certificate's fingerprint (`proof`). The key exchange is X25519 together with
ML-KEM-768, which qh3 offers first and both ends here take.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from qh3._hazmat import pull_quic_header
from qh3.quic import events as quic
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.tls import SignatureAlgorithm

from nat_traverse.tunnel.engine import (
    Alive,
    Datagram,
    Established,
    StreamData,
    StreamReset,
    StreamStopped,
    Terminated,
)
from nat_traverse.tunnel.pace import Pacer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qh3._hazmat import QuicConnectionCore

    from nat_traverse.tunnel.engine import EngineEvent

# What the two ends call this protocol in the TLS handshake (RFC 7301).
PROTOCOL: Final = "nat-traverse/1"

# Bytes that the peer may send beyond what has arrived. Enough for 1 Gbit/s at 130 ms; how much is
# really under way is up to our own credit, below this.
_WINDOW: Final = 16 * 1024 * 1024
_CONNECTION_WINDOW: Final = 4 * _WINDOW

# Bytes of a packet that are not the datagram's: a header of 1 + 8 + 4, an AEAD tag of 16, a frame
# type and a length of 1 + 2, and some room, for a datagram that is too large ends the connection.
_OVERHEAD: Final = 40

# s. The tunnel's own consent is stricter and has the last word; this one is only there so that an
# engine never waits for ever.
_IDLE: Final = 60.0

# s, as long as QUIC knows nothing of the path: its first packets are repeated after about twice as
# much. The tunnel repeats them much sooner, as they are. Where the engine gets to do it, qh3 takes
# the loss for a sign that the path is narrow, and never sends more than 1,200 bytes from then on.
_FIRST_ROUND_TRIP: Final = 2.0

# Bytes that a path has to take for QUIC to be possible at all (RFC 9000, section 14).
SMALLEST_DATAGRAM: Final = 1200

_CID_SIZE: Final = 8
# qh3 tells packets apart by connection ID and nothing else is wanted of an address.
_PEER: Final = ("192.0.2.1", 1)  # a documentation address (RFC 5737), which is never sent to

_INITIAL: Final = 0
_TLS_ERRORS: Final = 0x100  # what QUIC adds to the numbers of TLS alerts (RFC 9001, section 4.8)
# qh3 warns of every peer's goodbye. Where nobody has asked for its log, that does not belong on our
# user's standard error, on which Python puts a warning that has no handler.
logging.getLogger("quic").addHandler(logging.NullHandler())


def connection_name(client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return the connection ID that a client begins with.

    Both know it, an off-path attacker can't: so his Initial packets never reach the server's
    connection, which would take the first one for the client's.
    """
    text = b"nat-traverse connection" + client_nonce + server_nonce
    return hashlib.sha256(text).digest()[:_CID_SIZE]


class QuicEngine:
    """One connection, as `Engine` describes it.

    `datagram_size` is the largest UDP payload that fits the path, in bytes, at least
    SMALLEST_DATAGRAM. `name` is what `connection_name` returns.
    """

    def __init__(self, *, is_client: bool, datagram_size: int, name: bytes) -> None:
        self._first_name = name
        self._is_client = is_client
        self._configuration = _configuration(is_client=is_client, datagram_size=datagram_size)
        self._connection = self._new_connection()
        self.datagram_limit = datagram_size - _OVERHEAD
        self._begun = False
        self._answered = False
        self._established = False
        self._over = False
        self._pings = 0
        self._put_back: quic.QuicEvent | None = None
        self._pacer = Pacer()
        self._is_held = False  # by the pacer: there may be more to send

    @property
    def name(self) -> bytes:
        """The connection ID that the peer's packets bear: qh3 keeps to the first one."""
        return self._connection.host_cid

    def start(self, now: float) -> None:
        """Begin the handshake; the server has nothing to do."""
        if self._is_client:
            self._begun = True
            self._connection.connect(_PEER, now)

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams of the peer's, or of anybody who pretends to be it."""
        if self._established:
            self._guarded(self._receive_many, list(datagrams), now)
            return
        for data in datagrams:
            self._begun = self._begun or self._is_first(data)
            if self._begun:
                self._guarded(self._connection.receive_datagram, data, _PEER, now)
                self._begin_anew_if_odd()

    def receive_run(self, run: bytes, size: int, now: float) -> None:
        """Take datagrams of `size` bytes each, the last perhaps shorter, in one piece."""
        if self._established:
            self._guarded(self._receive_run, run, size, now)
        else:
            self.receive([run[at : at + size] for at in range(0, len(run), size)], now)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """Return what is to be sent now, which counts as sent."""
        # Beyond the documented interface: what that has does the same, but loses all datagrams if
        # the last one can't be made, and spends as much time on its log, which is off, as on them.
        core = self._connection._core  # noqa: SLF001
        datagrams: list[bytes] = []
        if core is None:
            return datagrams
        left = credit = self._credit(core, now)
        try:
            while left > 0 and (transmit := core.poll_transmit(now)) is not None:
                datagrams.append(transmit[0])
                left -= len(transmit[0])
        except RuntimeError:
            pass  # it is tried again at the next opportunity, of which timers see to one
        self._is_held = left <= 0
        if credit < float("inf"):
            self._pacer.spend(credit - left)
        self._answered = self._answered or bool(datagrams)
        return datagrams

    def get_timer(self) -> float | None:
        """Return when `handle_timer` is next wanted, or `datagrams_to_send` while held back."""
        if self._is_held:
            # What the engine's own timer would have sent has to wait for that moment, too.
            return self._pacer.next_time(self._configuration.max_datagram_size)
        return self._connection.get_timer()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self._guarded(self._connection.handle_timer, now)

    def next_event(self) -> EngineEvent | None:
        """Return the oldest unread event."""
        while (event := self._next_quic_event()) is not None:
            if isinstance(event, quic.StreamDataReceived):
                return self._joined(event)
            told = self._translated(event)
            if told is not None:
                return told
        # Beyond the documented interface: qh3 tells of a peer's goodbye only some time later.
        closed = self._connection._close_event  # noqa: SLF001
        if closed is not None and not self._over:
            self._over = True
            return _terminated(closed)
        return None

    def open_stream(self, *, both_ways: bool = True) -> int | None:
        """Open a stream and return its number; None while the peer allows no more of them."""
        connection = self._connection
        if both_ways:
            allowed = connection.max_concurrent_bidi_streams
            if connection.get_next_available_stream_id() // 4 >= allowed:
                return None
        try:
            # Beyond the documented interface, and what qh3's own streams do.
            return connection._open_stream(is_unidirectional=not both_ways)  # noqa: SLF001
        except QuicConnectionError:
            return None  # the peer has closed it, and the event that says so is yet to be read

    def send(self, stream: int, data: bytes | memoryview, *, fin: bool = False) -> None:
        """Queue bytes of a stream; the engine keeps a copy."""
        # What comes behind the peer's goodbye goes nowhere, before that was read as an event too.
        with suppress(QuicConnectionError):
            self._connection.send_stream_data(stream, data, fin)

    def unsent(self, stream: int) -> int:
        """Return how many bytes of a stream have not been sent for the first time yet."""
        return self._connection.get_send_buffer_size(stream)

    def reset(self, stream: int, code: int) -> None:
        """Give up sending on a stream."""
        self._quietly(self._connection.reset_stream, stream, code)

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to give up sending on a stream."""
        self._quietly(self._connection.stop_stream, stream, code)

    def send_datagram(self, data: bytes) -> None:
        """Send an unreliable datagram of at most `datagram_limit` bytes."""
        if len(data) > self.datagram_limit:
            raise ValueError(f"a datagram of {len(data)} bytes, and {self.datagram_limit} fit")
        with suppress(QuicConnectionError):
            self._connection.send_datagram_frame(data)

    @property
    def has_room(self) -> bool:
        """True if the path takes more at the moment, as far as congestion control knows."""
        # Beyond the documented interface: datagrams that can't be sent pile up in the engine.
        core = self._connection._core  # noqa: SLF001
        if core is None or self._is_held:
            return False
        return core.bytes_in_flight < core.congestion_window

    @property
    def round_trip(self) -> float | None:
        """The smoothed round-trip time (RFC 9002, section 5.3) in seconds; None if unknown."""
        # Beyond the documented interface.
        core = self._connection._core  # noqa: SLF001
        return None if core is None else core.smoothed_rtt or None

    def ping(self) -> None:
        """Ask the peer for a sign of life: the event Alive, if it comes."""
        self._pings += 1
        self._quietly(self._connection.send_ping, self._pings)

    def close(self, code: int, reason: str) -> None:
        """End the connection; what is to be sent then says so to the peer."""
        self._over = True
        self._quietly(self._connection.close, code, None, reason)

    def _credit(self, core: QuicConnectionCore, now: float) -> float:
        """Return how many bytes may leave now; what begins and ends a connection always may."""
        round_trip = core.smoothed_rtt
        if not self._established or self._over or not round_trip:
            return float("inf")
        return self._pacer.allowance(core.congestion_window, round_trip, now)

    def _receive_run(self, run: bytes, size: int, now: float) -> None:
        """Do what `receive_gro_buffer` does, but for a log of each datagram, which is off.

        It is a fifth of a receiver's work.
        """
        connection = self._connection
        connection._require_core().receive_gro_buffer(run, size, _PEER, now)  # noqa: SLF001
        connection._drain_core()  # noqa: SLF001

    def _receive_many(self, datagrams: list[bytes], now: float) -> None:
        """Do what `receive_many_datagrams` does, but for that log as well."""
        connection = self._connection
        connection._require_core().receive_many_datagrams(datagrams, _PEER, now)  # noqa: SLF001
        connection._drain_core()  # noqa: SLF001

    def _new_connection(self) -> QuicConnection:
        if not self._is_client:
            return QuicConnection(
                configuration=self._configuration,
                original_destination_connection_id=self._first_name,
            )
        connection = QuicConnection(configuration=self._configuration)
        # Beyond the documented interface: else it is chosen at random.
        connection._original_destination_connection_id = self._first_name  # noqa: SLF001
        return connection

    def _begin_anew_if_odd(self) -> None:
        """Have a server forget a first packet that it can't use.

        A client whose first packets were all lost asks for a sign of life with a packet that holds
        no more than that. qh3 ends the connection on one, though the real first packets follow.
        """
        # Beyond the documented interface, as in `next_event`.
        failed = self._connection._close_event  # noqa: SLF001
        if self._answered or self._is_client or failed is None:
            return
        if failed.error_code < _TLS_ERRORS:
            self._connection = self._new_connection()
            self._begun = False

    def _is_first(self, data: bytes) -> bool:
        """Tell whether `data` is the first packet of the client that we wait for."""
        try:
            header = pull_quic_header(data, 0, _CID_SIZE)
        except ValueError:
            return False
        return bool(header[1] == _INITIAL and header[3] == self._first_name)

    def _guarded(self, operation: Callable[..., None], *arguments: object) -> None:
        """Run one input; what the engine can't digest ends the connection and nothing else."""
        try:
            operation(*arguments)
        except (
            QuicConnectionError,
            RuntimeError,
            ValueError,
            AssertionError,
            IndexError,
            KeyError,
        ):
            # Not of the peer's making, as far as anybody can tell: what fails to authenticate is
            # dropped by qh3 without an exception. One packet less is what UDP may always do.
            return

    @staticmethod
    def _quietly(operation: Callable[..., None], *arguments: object) -> None:
        """Run what makes no difference to a stream or connection that is over already."""
        try:
            operation(*arguments)
        except (QuicConnectionError, ValueError, AssertionError):
            return

    def _next_quic_event(self) -> quic.QuicEvent | None:
        event, self._put_back = self._put_back, None
        return self._connection.next_event() if event is None else event

    def _joined(self, first: quic.StreamDataReceived) -> StreamData:
        """Return all that follows on the same stream at once: qh3 has an event for each packet."""
        parts, fin, stream = [first.data], first.end_stream, first.stream_id
        while not fin and (event := self._next_quic_event()) is not None:
            if not isinstance(event, quic.StreamDataReceived) or event.stream_id != stream:
                self._put_back = event
                break
            parts.append(event.data)
            fin = event.end_stream
        return StreamData(stream, parts[0] if len(parts) == 1 else b"".join(parts), fin)

    def _translated(self, event: quic.QuicEvent) -> EngineEvent | None:
        """Return what an event of qh3's is in the tunnel's words; None if it is of no interest."""
        told: EngineEvent | None = None
        match event:
            case quic.DatagramFrameReceived(data):
                told = Datagram(data)
            case quic.StreamReset(code, stream):
                told = StreamReset(stream, code)
            case quic.StopSendingReceived(code, stream):
                told = StreamStopped(stream, code)
            case quic.PingAcknowledged():
                told = Alive()
            case quic.HandshakeCompleted():
                self._established = True
                told = Established(self._fingerprint())
            case quic.ConnectionTerminated() if not self._over:
                self._over = True
                told = _terminated(event)
        return told

    def _fingerprint(self) -> bytes:
        """Return the SHA-256 of the server's certificate."""
        if self._is_client:
            certificate = self._connection.get_peercert()
        else:
            certificate = self._connection.configuration.certificate
        if certificate is None:
            raise AssertionError("a TLS 1.3 server has a certificate")
        return hashlib.sha256(certificate.public_bytes()).digest()


def _terminated(event: quic.ConnectionTerminated) -> Terminated:
    """Return what it means; only an application's goodbye names no frame (RFC 9000, 19.19)."""
    said = event.frame_type is None
    return Terminated(event.error_code if said else None, event.reason_phrase)


def _configuration(*, is_client: bool, datagram_size: int) -> QuicConfiguration:
    configuration = QuicConfiguration(
        alpn_protocols=[PROTOCOL],
        is_client=is_client,
        connection_id_length=_CID_SIZE,
        idle_timeout=_IDLE,
        initial_rtt=_FIRST_ROUND_TRIP,
        max_data=_CONNECTION_WINDOW,
        max_stream_data=_WINDOW,
        max_datagram_size=datagram_size,
        max_datagram_frame_size=datagram_size,
        # The handshake has proven the size with a datagram of it; larger ones are not wanted.
        probe_datagram_size=False,
    )
    if is_client:
        # No authority vouches for the peer: its certificate is pinned by the proof.
        configuration.verify_mode = ssl.CERT_NONE
        configuration.server_name = "nat-traverse.invalid"  # never resolved (RFC 6761)
        configuration.signature_algorithms = [SignatureAlgorithm.ED25519]
    else:
        certificate, key = _certificate()
        configuration.load_cert_chain(certificate, key)
    return configuration


def _certificate() -> tuple[bytes, bytes]:
    """Return a new self-signed certificate and its key, both as PEM."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nat-traverse")])
    # Nobody looks at the dates; both clocks may be wrong, so they say "always".
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 12, 31, tzinfo=dt.UTC))
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private
