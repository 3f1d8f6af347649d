"""Records of the error queue: the table of ICMP meanings, and any bytes at all."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.model import ErrorKind, NetworkError
from nat_traverse.net import errqueue, features
from support.sockets import closed_port

LOCAL, ICMP, ICMP6, TIMESTAMP = 1, 2, 3, 4


def record(
    number: int, origin: int, what: tuple[int, int] = (0, 0), info: int = 0, offender: str = ""
) -> bytes:
    head = struct.pack("=IBBBBII", number, origin, *what, 0, info, 0)
    if not offender:
        return head + bytes(16)
    if ":" in offender:
        address = socket.inet_pton(socket.AF_INET6, offender)
        return head + struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address, 0)
    address = socket.inet_pton(socket.AF_INET, offender)
    return head + struct.pack("=HH4s8x", socket.AF_INET, 0, address)


@pytest.mark.parametrize(
    ("icmp_type", "code", "kind"),
    [
        (3, 0, ErrorKind.NETWORK_UNREACHABLE),
        (3, 1, ErrorKind.HOST_UNREACHABLE),
        (3, 2, ErrorKind.PORT_UNREACHABLE),
        (3, 3, ErrorKind.PORT_UNREACHABLE),
        (3, 5, ErrorKind.OTHER),
        (3, 9, ErrorKind.PROHIBITED),
        (3, 10, ErrorKind.PROHIBITED),
        (3, 13, ErrorKind.PROHIBITED),
        (11, 0, ErrorKind.TIME_EXCEEDED),
        (11, 1, ErrorKind.OTHER),
        (12, 0, ErrorKind.OTHER),
        (255, 255, ErrorKind.OTHER),
    ],
)
def test_icmp_meanings(icmp_type: int, code: int, kind: ErrorKind) -> None:
    data = record(errno.ECONNREFUSED, ICMP, (icmp_type, code), info=7, offender="192.0.2.9")
    expected = NetworkError(kind, errno.ECONNREFUSED, "192.0.2.9", mtu=0)
    assert errqueue.parse_extended_error(data) == expected


@pytest.mark.parametrize(
    ("icmp_type", "code", "kind"),
    [
        (1, 0, ErrorKind.NETWORK_UNREACHABLE),
        (1, 1, ErrorKind.PROHIBITED),
        (1, 3, ErrorKind.HOST_UNREACHABLE),
        (1, 4, ErrorKind.PORT_UNREACHABLE),
        (1, 5, ErrorKind.PROHIBITED),
        (1, 6, ErrorKind.PROHIBITED),
        (3, 0, ErrorKind.TIME_EXCEEDED),
        (3, 1, ErrorKind.OTHER),
        (4, 0, ErrorKind.OTHER),
    ],
)
def test_icmp6_meanings(icmp_type: int, code: int, kind: ErrorKind) -> None:
    data = record(errno.EHOSTUNREACH, ICMP6, (icmp_type, code), info=7, offender="2001:db8::9")
    expected = NetworkError(kind, errno.EHOSTUNREACH, "2001:db8::9", mtu=0)
    assert errqueue.parse_extended_error(data) == expected


def test_too_big_states_the_mtu() -> None:
    v4 = errqueue.parse_extended_error(record(errno.EMSGSIZE, ICMP, (3, 4), 1400, "192.0.2.9"))
    v6 = errqueue.parse_extended_error(record(errno.EMSGSIZE, ICMP6, (2, 0), 1280, "2001:db8::9"))
    local = errqueue.parse_extended_error(record(errno.EMSGSIZE, LOCAL, info=1500))
    assert v4 == NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, "192.0.2.9", 1400)
    assert v6 == NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, "2001:db8::9", 1280)
    assert local == NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, None, 1500)


def test_local_errors_mean_what_their_number_means() -> None:
    for number, kind in [
        (errno.EPERM, ErrorKind.NOT_PERMITTED),
        (errno.EACCES, ErrorKind.NOT_PERMITTED),
        (errno.ENETUNREACH, ErrorKind.NETWORK_UNREACHABLE),
        (errno.EHOSTUNREACH, ErrorKind.HOST_UNREACHABLE),
        (errno.ENOBUFS, ErrorKind.OTHER),
    ]:
        assert errqueue.parse_extended_error(record(number, LOCAL)) == NetworkError(kind, number)


def test_other_origins_are_no_errors() -> None:
    assert errqueue.parse_extended_error(record(0, TIMESTAMP)) is None


def test_a_report_without_reporter_is_odd() -> None:
    assert errqueue.parse_extended_error(record(errno.ECONNREFUSED, ICMP, (3, 3))) is None


def test_cut_off_anywhere() -> None:
    whole = record(errno.ECONNREFUSED, ICMP, (3, 3), offender="192.0.2.9")
    for length in range(24):
        assert errqueue.parse_extended_error(whole[:length]) is None
    assert errqueue.parse_extended_error(whole[:24]) is not None


@given(st.binary(max_size=64))
def test_any_bytes_give_a_value(data: bytes) -> None:
    error = errqueue.parse_extended_error(data)
    assert error is None or isinstance(error.kind, ErrorKind)


@given(st.binary(max_size=48), st.sampled_from([LOCAL, ICMP, ICMP6]), st.integers(0, 64))
def test_bytes_with_a_known_origin_give_a_value(data: bytes, origin: int, cut: int) -> None:
    mutated = data[:4] + bytes([origin]) + data[5:]
    errqueue.parse_extended_error(mutated[:cut])


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=64))))
def test_any_control_messages_give_a_value(control: list[tuple[int, int, bytes]]) -> None:
    errqueue.parse_control(control)


def test_foreign_control_messages_are_skipped() -> None:
    data = record(errno.ECONNREFUSED, ICMP, (3, 3), offender="192.0.2.9")
    assert features.IP_RECVERR is not None
    ours = (socket.IPPROTO_IP, features.IP_RECVERR, data)
    error = errqueue.parse_control([(socket.SOL_SOCKET, 29, bytes(16)), ours])
    assert error is not None
    assert error.kind is ErrorKind.PORT_UNREACHABLE
    assert errqueue.parse_control([(socket.SOL_SOCKET, 29, bytes(16))]) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_real_refusal(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock, closed_port(family) as nobody:
        assert errqueue.enable(sock)
        sock.sendto(b"quoted", (nobody.host, nobody.port))
        records, odd = errqueue.drain(sock)
        expected = NetworkError(ErrorKind.PORT_UNREACHABLE, errno.ECONNREFUSED, nobody.host)
        assert records == [(nobody, expected, b"quoted")]
        assert odd == 0
        assert errqueue.drain(sock) == ([], 0)


def test_draining_is_bounded() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, closed_port() as nobody:
        errqueue.enable(sock)
        sent = 0
        while sent < 5:
            try:
                sock.sendto(b"x", (nobody.host, nobody.port))
            except ConnectionRefusedError:
                continue  # left behind by the one before
            sent += 1
        assert len(errqueue.drain(sock, limit=3).records) == 3
        assert len(errqueue.drain(sock, limit=3).records) == 2
