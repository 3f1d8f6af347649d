"""The UDP socket on loopback: errors that are not ours, TTLs, offload, and refusals to open."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from nat_traverse.net import features, offload, udp
from nat_traverse.net.address import sockaddr
from nat_traverse.net.udp import UdpSocket
from support.sockets import LOOPBACK, await_readable, closed_port

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = [socket.AF_INET, socket.AF_INET6]


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    return socket.AddressFamily(request.param)


@pytest.fixture
def pair(family: socket.AddressFamily) -> Iterator[tuple[UdpSocket, UdpSocket]]:
    with (
        UdpSocket(family, 0, host=LOOPBACK[family]) as one,
        UdpSocket(family, 0, host=LOOPBACK[family]) as other,
    ):
        yield one, other


def receive(sock: UdpSocket) -> tuple[bytes, Endpoint]:
    received = sock.receive()
    if received is None:
        await_readable(sock.fileno())
        received = sock.receive()
    assert received is not None
    return received


class Kernel:
    """A socket whose calls fail as they are told to."""

    def __init__(self, real: socket.socket, **failures: list[int]) -> None:
        self._real = real
        self._failures = failures
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name not in ("sendto", "sendmsg", "recvmsg_into", "setsockopt"):
            return real

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            script = self._failures.get(name, [])
            number = script.pop(0) if script else 0
            if number:
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        return call


def fail(sock: UdpSocket, **failures: list[int]) -> Kernel:
    kernel = Kernel(sock._sock, **failures)
    sock._sock = kernel  # type: ignore[assignment] # it stands in for one
    sock._segments._sock = kernel  # type: ignore[assignment] # the same
    return kernel


# -- what it is ---------------------------------------------------------------------------------


def test_it_does_not_block_nor_leak_nor_share(family: socket.AddressFamily) -> None:
    with UdpSocket(family, 0) as sock:
        assert not os.get_blocking(sock.fileno())
        assert not os.get_inheritable(sock.fileno())
        assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert sock._sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        assert sock.receive() is None
        assert sock.receive_errors() == []


def test_both_families_share_a_port_number() -> None:
    with (
        UdpSocket(socket.AF_INET, 0) as v4,
        UdpSocket(socket.AF_INET6, v4.local.port) as v6,
    ):
        assert v4.local == Endpoint("0.0.0.0", v6.local.port)  # noqa: S104 (only compared)
        assert v6.local == Endpoint("::", v4.local.port)


def test_a_datagram_either_way(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    assert one.send(b"there", other.local) is None
    assert receive(other) == (b"there", one.local)
    assert other.send(b"", one.local) is None
    assert receive(one) == (b"", other.local)
    assert one.receive() is None


def test_the_largest_datagram() -> None:
    with (
        UdpSocket(socket.AF_INET6, 0, host="::1") as one,
        UdpSocket(socket.AF_INET6, 0, host="::1") as other,
    ):
        data = random.Random(1).randbytes(65_000)
        assert one.send(data, other.local) is None
        assert receive(other) == (data, one.local)


def test_another_family_is_a_mistake(family: socket.AddressFamily) -> None:
    wrong = Endpoint("192.0.2.1" if family == socket.AF_INET6 else "2001:db8::1", 9)
    with UdpSocket(family, 0) as sock, pytest.raises(ValueError, match="does not fit"):
        sock.send(b"x", wrong)


def test_detached_it_lives_on() -> None:
    sock = UdpSocket(socket.AF_INET, 0)
    port = sock.local.port
    with socket.socket(fileno=sock.detach()) as plain:
        assert plain.getsockname()[1] == port


# -- TTL ----------------------------------------------------------------------------------------


def received_ttl(sock: UdpSocket) -> int:
    await_readable(sock.fileno())
    _, control, _, _ = sock._sock.recvmsg(100, 100)
    ((_, _, data),) = control
    return int(struct.unpack("=i", data)[0])


@pytest.mark.parametrize("by_message", [True, False])
def test_ttl_of_one_packet(pair: tuple[UdpSocket, UdpSocket], *, by_message: bool) -> None:
    one, other = pair
    if other.family == socket.AF_INET6:
        other._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    else:
        other._sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_RECVTTL", 12), 1)
    one._ttl_message = by_message
    one.send(b"usual", other.local)
    one.send(b"low", other.local, ttl=3)
    one.send(b"usual again", other.local)
    usual = received_ttl(other)
    assert usual > 3
    assert received_ttl(other) == 3
    assert received_ttl(other) == usual


def test_the_usual_ttl_comes_back_after_a_failure(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    one._ttl_message = False
    kernel = fail(one, sendto=[errno.EPERM])
    assert one.send(b"x", other.local, ttl=3) is not None
    assert kernel.calls == ["setsockopt", "sendto", "setsockopt"]


# -- errors that are not ours -------------------------------------------------------------------


def test_no_pending_error_costs_a_packet(
    pair: tuple[UdpSocket, UdpSocket], family: socket.AddressFamily
) -> None:
    one, other = pair
    with closed_port(family) as nobody:
        for number in range(20):
            assert one.send(b"refused %d" % number, nobody) is None
            assert one.send(b"kept %d" % number, other.local) is None
        assert [receive(other)[0] for _ in range(20)] == [b"kept %d" % n for n in range(20)]
        expected = NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, nobody.host)
        assert one.receive_errors() == [
            (nobody, expected, b"refused %d" % number) for number in range(20)
        ]
    assert one.counters.repeated == 20


def test_taking_one_record_of_many_spoils_nothing(
    pair: tuple[UdpSocket, UdpSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    monkeypatch.setattr("nat_traverse.net.errqueue.RECORDS_PER_CALL", 1)
    with closed_port(one.family) as nobody:
        for _ in range(4):
            one.send(b"refused", nobody)
        # Each record that is taken puts the next one's error into the socket.
        from nat_traverse.net import errqueue  # noqa: PLC0415 (patched above)

        assert len(errqueue.drain(one._sock, limit=1).records) == 1
        assert one.send(b"kept", other.local) is None
        assert receive(other)[0] == b"kept"
        assert len(one.receive_errors()) == 3


def test_a_pending_error_does_not_hide_a_datagram(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    with closed_port(one.family) as nobody:
        one.send(b"refused", nobody)
        other.send(b"data", one.local)
        assert receive(one) == (b"data", other.local)
        assert len(one.receive_errors()) == 1


def test_an_error_wakes_a_reader(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, _ = pair
    with closed_port(one.family) as nobody:
        one.send(b"refused", nobody)
        await_readable(one.fileno())


def test_repetition_is_bounded(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    kernel = fail(one, sendto=[errno.ECONNREFUSED] * 1000)
    error = one.send(b"x", other.local)
    assert error == NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED)
    assert len(kernel.calls) == udp.ATTEMPTS
    kernel = fail(other, recvmsg_into=[errno.ECONNREFUSED] * 1000)
    assert other.receive() is None
    assert len(kernel.calls) == udp.ATTEMPTS


@pytest.mark.parametrize(
    ("number", "kind", "attempts"),
    [
        (errno.EPERM, ErrorKind.NOT_PERMITTED, 1),
        (errno.EACCES, ErrorKind.NOT_PERMITTED, udp.ATTEMPTS),
        (errno.ENETUNREACH, ErrorKind.NETWORK_UNREACHABLE, udp.ATTEMPTS),
        (errno.EHOSTUNREACH, ErrorKind.HOST_UNREACHABLE, udp.ATTEMPTS),
        (errno.EINVAL, ErrorKind.OTHER, 1),
    ],
)
def test_refusals_by_this_host_are_values(
    pair: tuple[UdpSocket, UdpSocket], number: int, kind: ErrorKind, attempts: int
) -> None:
    one, other = pair
    kernel = fail(one, sendto=[number] * attempts)
    assert one.send(b"x", other.local) == NetworkError(kind, number)
    assert len(kernel.calls) == attempts
    assert one.counters.dropped == 0


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_no_room_is_counted(pair: tuple[UdpSocket, UdpSocket], number: int) -> None:
    one, other = pair
    kernel = fail(one, sendto=[number])
    assert one.send(b"x", other.local) == NetworkError(ErrorKind.OTHER, number)
    assert one.counters.dropped == 1
    assert kernel.calls == ["sendto"]


def test_too_big_states_the_mtu(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    error = one.send(bytes(65_536), other.local)
    assert error is not None
    assert error.kind is ErrorKind.TOO_BIG
    assert error.mtu >= 65_535
    assert one.receive_errors() == []


# -- offload ------------------------------------------------------------------------------------


def collect(sock: UdpSocket, size: int) -> list[bytes]:
    datagrams: list[bytes] = []
    while sum(map(len, datagrams)) < size:
        datagrams.append(receive(sock)[0])
    return datagrams


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("runs", [True, False])
def test_a_burst_arrives_as_datagrams(
    pair: tuple[UdpSocket, UdpSocket], *, trains: bool, runs: bool
) -> None:
    one, other = pair
    other.enable_offload() if runs else offload.enlarge_buffers(other._sock)
    one._segments.trains = one._segments.trains and trains
    data = random.Random(2).randbytes(offload.burst_size(1400) - 1000)
    buffers: list[memoryview | bytes] = [
        memoryview(data)[:5000],
        data[5000:5001],
        memoryview(data)[5001:],
    ]
    assert one.send_segments(buffers, 1400, sockaddr(other.local, one.family)) == len(data)
    expected = [data[start : start + 1400] for start in range(0, len(data), 1400)]
    assert collect(other, len(data)) == expected


def test_linux_sends_a_burst_with_one_call(pair: tuple[UdpSocket, UdpSocket]) -> None:
    if not features.IS_LINUX:
        pytest.skip("UDP_SEGMENT is Linux's")
    one, other = pair
    kernel = fail(one)
    assert one.send_segments([bytes(14_000)], 1400, sockaddr(other.local, one.family)) == 14_000
    assert kernel.calls == ["sendmsg"]


def test_linux_receives_a_burst_with_one_call(pair: tuple[UdpSocket, UdpSocket]) -> None:
    if not features.IS_LINUX:
        pytest.skip("UDP_GRO is Linux's")
    one, other = pair
    assert other.enable_offload()
    one.send_segments([b"a" * 1000, b"b" * 1000, b"c"], 1000, sockaddr(other.local, one.family))
    buffer = memoryview(bytearray(offload.MAX_DATAGRAM))
    await_readable(other.fileno())
    run = other.receive_into(buffer)
    assert run is not None
    assert (run.length, run.segment_size) == (2001, 1000)
    assert run.address == sockaddr(one.local, one.family)
    assert other.receive_into(buffer) is None


def test_receives_all_that_is_there(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    buffer = memoryview(bytearray(offload.MAX_DATAGRAM))
    assert other.receive_many(buffer, 1 << 20) == []
    for data in (b"first", b"", b"third"):
        one.send(data, other.local)
    await_readable(other.fileno())
    arrived = other.receive_many(buffer, 1 << 20)
    address = sockaddr(one.local, one.family)
    assert arrived == [(b"first", 5, address), (b"", 1, address), (b"third", 5, address)]


def test_receives_no_more_than_it_is_asked_for(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    buffer = memoryview(bytearray(offload.MAX_DATAGRAM))
    for _ in range(5):
        one.send(bytes(1000), other.local)
    await_readable(other.fileno())
    octets = 2 * (1000 + offload.CALL)
    assert [len(other.receive_many(buffer, octets)) for _ in range(4)] == [2, 2, 1, 0]


def test_a_refusal_does_not_end_receiving(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    for number in range(3):
        one.send(b"%d" % number, other.local)
    await_readable(other.fileno())
    kernel = fail(other, recvmsg_into=[errno.ECONNREFUSED, errno.ECONNREFUSED])
    arrived = other.receive_many(memoryview(bytearray(offload.MAX_DATAGRAM)), 1 << 20)
    assert [each.data for each in arrived] == [b"0", b"1", b"2"]
    assert other.counters.repeated == 2
    assert kernel.calls.count("recvmsg_into") >= 5


def test_an_empty_datagram_is_one_segment(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    one.send(b"", other.local)
    await_readable(other.fileno())
    run = other.receive_into(bytearray(offload.MAX_DATAGRAM))
    assert run is not None
    assert (run.length, run.segment_size) == (0, 1)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP])
def test_falls_back_when_trains_are_refused(pair: tuple[UdpSocket, UdpSocket], number: int) -> None:
    one, other = pair
    one._segments.trains = True
    kernel = fail(one, sendmsg=[number] * udp.ATTEMPTS)
    to = sockaddr(other.local, one.family)
    assert one.send_segments([b"x" * 25], 10, to) == 25
    assert collect(other, 25) == [b"x" * 10, b"x" * 10, b"x" * 5]
    assert one.receive_errors() == []
    kernel.calls.clear()
    assert one.send_segments([b"y" * 25], 10, to) == 25
    assert kernel.calls == ["sendto"] * 3, "it remembers"


def test_a_segment_larger_than_the_path_is_told_from_a_lack_of_trains(
    pair: tuple[UdpSocket, UdpSocket],
) -> None:
    one, other = pair
    one._segments.trains = True
    fail(one, sendmsg=[errno.EINVAL], sendto=[errno.EMSGSIZE] * udp.ATTEMPTS)
    to = sockaddr(other.local, one.family)
    assert one.send_segments([b"x" * 25], 10, to) == 0
    ((destination, error, quoted),) = one.receive_errors()
    assert (destination, error.kind, quoted) == (other.local, ErrorKind.TOO_BIG, b"")
    assert error.mtu > 0
    assert one._segments.trains


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_full_socket_takes_a_part(pair: tuple[UdpSocket, UdpSocket], number: int) -> None:
    one, other = pair
    to = sockaddr(other.local, one.family)
    one._segments.trains = True
    fail(one, sendmsg=[number], sendto=[0, 0, number])
    assert one.send_segments([b"x" * 25], 10, to) == 0
    one._segments.trains = False
    assert one.send_segments([b"x" * 25], 10, to) == 20
    assert one.receive_errors() == []


def test_a_burst_that_is_forbidden_is_lost_and_reported(
    pair: tuple[UdpSocket, UdpSocket],
) -> None:
    one, other = pair
    fail(one, sendmsg=[errno.EPERM], sendto=[errno.EPERM])
    assert one.send_segments([b"x" * 25], 10, sockaddr(other.local, one.family)) == 25
    ((destination, error, _),) = one.receive_errors()
    assert (destination, error.kind) == (other.local, ErrorKind.NOT_PERMITTED)
    assert one.counters.refused == 1


def test_no_pending_error_costs_a_burst(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, other = pair
    with closed_port(one.family) as nobody:
        for _ in range(10):
            one.send(b"refused", nobody)
            to = sockaddr(other.local, one.family)
            assert one.send_segments([b"x" * 25], 10, to) == 25
    assert sum(map(len, collect(other, 250))) == 250


@pytest.mark.parametrize("size", [0, offload.burst_size(1400) + 1])
def test_a_burst_has_its_limits(pair: tuple[UdpSocket, UdpSocket], size: int) -> None:
    one, other = pair
    with pytest.raises(ValueError, match="burst"):
        one.send_segments([bytes(size)], 1400, sockaddr(other.local, one.family))


@pytest.mark.parametrize(
    ("segment", "expected"),
    [(1, 64), (1400, 64_400), (1200, 64_800), (8000, 64_000), (65_507, 65_507)],
)
def test_burst_size(segment: int, expected: int) -> None:
    assert offload.burst_size(segment) == expected


def test_without_any_of_linux_it_still_relays(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily
) -> None:
    for name in vars(features):
        if name.isupper() and name != "IS_LINUX":
            monkeypatch.setattr(features, name, None)
    monkeypatch.setattr(features, "IS_LINUX", False)
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(UdpSocket(family, 0, host=LOOPBACK[family])) for _ in range(2)
        )
        assert not other.enable_offload()
        to = sockaddr(other.local, family)
        assert one.send(b"low", other.local, ttl=3) is None
        assert one.send_segments([b"x" * 25], 10, to) == 25
        assert collect(other, 28) == [b"low", b"x" * 10, b"x" * 10, b"x" * 5]
        assert one.receive_errors() == []


# -- refusals to open ---------------------------------------------------------------------------


def test_port_in_use(family: socket.AddressFamily) -> None:
    with UdpSocket(family, 0) as holder:
        port = holder.local.port
        with pytest.raises(LocalNetworkError, match=f"UDP port {port} is in use") as caught:
            UdpSocket(family, port)
    assert caught.value.exit_code == errno.EADDRINUSE


def test_port_in_use_by_one_that_would_share() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(LocalNetworkError):
            UdpSocket(socket.AF_INET, holder.getsockname()[1])


def test_not_an_address_of_this_machine() -> None:
    with pytest.raises(LocalNetworkError, match=r"192\.0\.2\.1 is not an address of") as caught:
        UdpSocket(socket.AF_INET, 0, host="192.0.2.1")
    assert caught.value.exit_code == errno.EADDRNOTAVAIL


def test_not_an_address_at_all() -> None:
    with pytest.raises(LocalNetworkError, match="is not an IPv4 address") as caught:
        UdpSocket(socket.AF_INET, 0, host="2001:db8::1")
    assert caught.value.exit_code == errno.EINVAL


@pytest.mark.parametrize(
    ("number", "port", "host", "text"),
    [
        (errno.EACCES, 53, "", "ports below 1024"),
        (errno.EPERM, 53, "", "ports below 1024"),
        (errno.EACCES, 5353, "", "Cannot open UDP port 5353"),
        (errno.EAFNOSUPPORT, 5353, "", "IPv6 is not available on this machine"),
        (errno.EADDRNOTAVAIL, 5353, "", "IPv6 is not available on this machine"),
        (errno.EMFILE, 5353, "", "ulimit"),
    ],
)
def test_what_the_user_reads(number: int, port: int, host: str, text: str) -> None:
    error = udp._explained(OSError(number, "x"), socket.AF_INET6, port, host)
    assert text in str(error)
    assert error.exit_code == number
