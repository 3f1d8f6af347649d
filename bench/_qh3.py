"""The QUIC library by itself: one stream, out of memory into nothing.

    python _qh3.py send ADDRESS PORT PEER_ADDRESS PEER_PORT SECONDS
    python _qh3.py receive ADDRESS PORT PEER_ADDRESS PEER_PORT CERTIFICATE KEY

What the tunnel adds (pipes, an event loop, the proof of who is there, credit of its own) is left
out, and what makes datagrams cheap is left in: trains of equal datagrams go out in one call and
come in by one. So this is what the tunnel could reach at best.

At the end each prints a line of JSON on standard output: `{"bytes": ..., "seconds": ...}`. The
sender's counts what was fed for SECONDS, the receiver's from the first byte to the last.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress
from itertools import pairwise

from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

# linux/udp.h; the module socket lacks them.
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_MOST_IN_TRAIN = 64  # datagrams, UDP_MAX_SEGMENTS of older kernels
_LONGEST_TRAIN = 65_000  # bytes, so that with headers it fits one IP packet
_MOST_READS = 64  # receives before sending has its turn

# With IPv4's and UDP's 28 bytes it stays below 1,500 even behind PPPoE and a tunnel or two.
_DATAGRAM = 1_350
_WINDOW = 16 * 1024 * 1024  # bytes in flight: 1 Gbit/s at 130 ms
_SOCKET_BUFFER = 4 * 1024 * 1024
_CHUNK = bytes(256 * 1024)
_QUEUED_AT_MOST = 1024 * 1024  # bytes handed to the library and not yet sent
_LINGER = 3.0  # s for the peer's last words
_PATIENCE = 60.0  # s without anything at all


class End:
    """One end: a socket, a connection, and what moves datagrams between the two."""

    def __init__(self, local: tuple[str, int], peer: tuple[str, int]) -> None:
        self.peer = peer
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        self.sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        self.sock.bind(local)
        self.sock.connect(peer)
        self.sock.setblocking(False)
        self.heard = time.monotonic()

    def transmit(self, connection: QuicConnection) -> None:
        """Send what the connection has to send, in trains of equal datagrams."""
        datagrams = [data for data, _ in connection.datagrams_to_send(time.monotonic())]
        starts = _train_starts(datagrams)
        for start, end in pairwise([*starts, len(datagrams)]):
            train = datagrams[start:end]
            control = []
            if len(train) > 1:
                control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(train[0])))]
            self._send(train, control)

    def _send(self, train: list[bytes], control: list[tuple[int, int, bytes]]) -> None:
        while True:
            try:
                self.sock.sendmsg(train, control)
            except BlockingIOError:
                select.select([], [self.sock], [], 0.05)
            except ConnectionRefusedError:
                return
            else:
                return

    def receive(self, connection: QuicConnection) -> bool:
        """Hand the connection what has come, and return whether something has."""
        now = time.monotonic()
        single: list[bytes] = []  # datagrams that came alone, in a row
        count = 0
        with suppress(BlockingIOError, ConnectionRefusedError):
            for count in range(1, _MOST_READS + 1):  # noqa: B007 (it is how many there were)
                data, control, _, _ = self.sock.recvmsg(65_535, 64)
                size = _train_size(control, len(data))
                if size == len(data):
                    single.append(data)
                    continue
                if single:
                    connection.receive_many_datagrams(single, self.peer, now)
                    single = []
                connection.receive_gro_buffer(data, size, self.peer, now)
        if single:
            connection.receive_many_datagrams(single, self.peer, now)
        if count > 1 or single:
            self.heard = now
        return count > 1 or bool(single)

    def step(self, connection: QuicConnection, *, may_wait: bool) -> list[QuicEvent]:
        """Let time pass until something happens, and return what did."""
        self.transmit(connection)
        if not self.receive(connection) and may_wait:
            timer = connection.get_timer()
            wait = 0.05 if timer is None else timer - time.monotonic()
            select.select([self.sock], [], [], min(0.05, max(0.0, wait)))
            self.receive(connection)
        timer = connection.get_timer()
        now = time.monotonic()
        if timer is not None and now >= timer:
            connection.handle_timer(now)
        if now - self.heard > _PATIENCE:
            raise TimeoutError("nothing comes from the peer")
        events = []
        while (event := connection.next_event()) is not None:
            events.append(event)
        return events


def send(end: End, seconds: float) -> None:
    """Send zeros for so many seconds, and wait until all have arrived."""
    configuration = _configuration(is_client=True)
    configuration.verify_mode = ssl.CERT_NONE
    configuration.server_name = "bench"
    connection = QuicConnection(configuration=configuration)
    connection.connect(end.peer, time.monotonic())
    stream = -1
    started = float("nan")
    fed = 0
    finished = False
    while True:
        hungry = stream >= 0 and not finished and _has_room(connection)
        if hungry:
            finished = time.monotonic() - started >= seconds
            connection.send_stream_data(stream, _CHUNK, end_stream=finished)
            fed += len(_CHUNK)
        for event in end.step(connection, may_wait=not hungry):
            if isinstance(event, HandshakeCompleted):
                stream = connection.get_next_available_stream_id()
                started = time.monotonic()
            elif isinstance(event, StreamDataReceived):
                connection.close()
                end.transmit(connection)
                _print(fed, time.monotonic() - started)
                return
            elif isinstance(event, ConnectionTerminated):
                raise ConnectionError(event.reason_phrase)


def receive(end: End, certificate: str, key: str) -> None:
    """Receive a stream and forget it, and tell the peer when it has ended."""
    configuration = _configuration(is_client=False)
    configuration.load_cert_chain(certificate, key)
    select.select([end.sock], [], [], _PATIENCE)
    first = end.sock.recv(65_535)
    # A long header: a byte, four of version, one of length, then the connection's name.
    identifier = first[6 : 6 + first[5]]
    connection = QuicConnection(
        configuration=configuration, original_destination_connection_id=identifier
    )
    connection.receive_datagram(first, end.peer, time.monotonic())
    started = last = float("nan")
    received = 0
    ended = closed = False
    while not closed and not (ended and time.monotonic() - last > _LINGER):
        for event in end.step(connection, may_wait=True):
            if isinstance(event, StreamDataReceived):
                last = time.monotonic()
                if not received:
                    started = last
                received += len(event.data)
                if event.end_stream:
                    ended = True
                    connection.send_stream_data(event.stream_id, b".", end_stream=True)
            elif isinstance(event, ConnectionTerminated):
                closed = True
    _print(received, last - started)


def _train_starts(datagrams: list[bytes]) -> list[int]:
    """Return where each train starts: all of one size, but the last may be shorter."""
    starts: list[int] = []
    count = total = size = 0
    open_ended = False
    for index, data in enumerate(datagrams):
        fits = count < _MOST_IN_TRAIN and total + len(data) <= _LONGEST_TRAIN
        if not (open_ended and fits and len(data) <= size):
            starts.append(index)
            size = len(data)
            count = total = 0
        count += 1
        total += len(data)
        open_ended = len(data) == size
    return starts


def _train_size(control: list[tuple[int, int, bytes]], length: int) -> int:
    """Return the bytes of each datagram in what was received at once."""
    for level, kind, value in control:
        if (level, kind) == (_SOL_UDP, _UDP_GRO):
            return min(length, int.from_bytes(value[:4], sys.byteorder))
    return length


def _has_room(connection: QuicConnection) -> bool:
    return bool(connection.get_send_buffer_size() < _QUEUED_AT_MOST)


def _configuration(*, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=["bench"],
        max_data=_WINDOW,
        max_stream_data=_WINDOW,
        max_datagram_size=_DATAGRAM,
        probe_datagram_size=False,
    )


def _print(count: int, seconds: float) -> None:
    print(json.dumps({"bytes": count, "seconds": seconds}), flush=True)


def main() -> None:
    """Run the role of the command line."""
    role, address, port, peer_address, peer_port, *rest = sys.argv[1:]
    end = End((address, int(port)), (peer_address, int(peer_port)))
    with end.sock, suppress(KeyboardInterrupt):
        if role == "send":
            send(end, float(rest[0]))
        else:
            receive(end, *rest)


if __name__ == "__main__":
    main()
