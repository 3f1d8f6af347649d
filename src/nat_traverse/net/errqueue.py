"""The error queue of a UDP socket: what the network says about packets that were sent earlier.

Theory of operation
-------------------
An ICMP error arrives long after the `sendto` that caused it has returned. Linux delivers it to the
socket that owned the packet in two ways at once, if `IP_RECVERR` or `IPV6_RECVERR` is set:

1. A record is appended to the socket's *error queue*. `recvmsg(MSG_ERRQUEUE)` takes it off: as its
   address the destination that the failed packet had, as its data what the ICMP message quotes of
   our payload, and as a control message a `sock_extended_err` (ip(7), ipv6(7)) with the ICMP type
   and code, followed by the address of the *offender*, the node that sent the ICMP message.
2. The error number is left in the socket itself (`SO_ERROR`). Whatever call comes next, a send or
   a receive and to whatever destination, fails with this number **and does nothing**: its packet
   is not sent. It is cleared by that, but taking a record off the queue sets it anew, to the number
   of the record behind it; and each further ICMP message sets it again.

Without the option an unconnected socket learns nothing, and a puncher needs to: "port unreachable"
from the peer's gateway decides which strategy runs next. So the option is set, the queue is read,
and `udp.UdpSocket` repeats a call which failed with somebody else's error.

The local stack queues records too (origin *local*): EMSGSIZE, which is also what the call that
caused it has returned.

A record that makes no sense is dropped and counted, never raised: it quotes what strangers sent.
See RFC 792 and RFC 4443 for types and codes, RFC 1122 (3.2.2.1) and RFC 5927 for how little an
ICMP error proves: it is an observation, never a reason to give up.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from nat_traverse.net import features
from nat_traverse.net.address import endpoint_of

if TYPE_CHECKING:
    from collections.abc import Iterable

# Records taken off in one call. Enough for a burst of refusals on a spray socket; bounded, because
# whoever floods us with ICMP must not keep the event loop in here.
RECORDS_PER_CALL: Final = 64

# struct sock_extended_err: ee_errno, ee_origin, ee_type, ee_code, ee_pad, ee_info, ee_data.
_EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
_FAMILY: Final = struct.Struct("=H")  # sa_family_t, the start of the offender's address
_IPV4_ADDRESS: Final = slice(4, 8)  # in struct sockaddr_in, after family and port
_IPV6_ADDRESS: Final = slice(8, 24)  # in struct sockaddr_in6, after family, port and flow label

_ORIGIN_LOCAL: Final = 1  # SO_EE_ORIGIN_LOCAL; the other origins (time stamps, zero copy) are
_ORIGIN_ICMP: Final = 2  # never asked for on these sockets
_ORIGIN_ICMP6: Final = 3

# A router quotes at most 576 bytes (RFC 1812, 4.3.2.3) or 1,280 (RFC 4443, 2.4): more is not there.
_QUOTE_SIZE: Final = 2048
# One sock_extended_err with a sockaddr_in6 is 44 bytes. The rest is room for options that somebody
# might set on the socket later, so that ours is never cut off.
_CONTROL_SIZE: Final = 512

_ICMP_UNREACHABLE: Final = 3
_ICMP_TIME_EXCEEDED: Final = 11
_ICMP6_UNREACHABLE: Final = 1
_ICMP6_TOO_BIG: Final = 2
_ICMP6_TIME_EXCEEDED: Final = 3

# (type, code) of RFC 792, RFC 1122 (3.2.2.1) and RFC 1812 (5.2.7.1).
_ICMP_KINDS: Final = {
    (_ICMP_UNREACHABLE, 0): ErrorKind.NETWORK_UNREACHABLE,
    (_ICMP_UNREACHABLE, 1): ErrorKind.HOST_UNREACHABLE,
    (_ICMP_UNREACHABLE, 2): ErrorKind.PORT_UNREACHABLE,  # protocol: it too answers for itself
    (_ICMP_UNREACHABLE, 3): ErrorKind.PORT_UNREACHABLE,
    (_ICMP_UNREACHABLE, 4): ErrorKind.TOO_BIG,
    (_ICMP_UNREACHABLE, 6): ErrorKind.NETWORK_UNREACHABLE,  # unknown
    (_ICMP_UNREACHABLE, 7): ErrorKind.HOST_UNREACHABLE,  # unknown
    (_ICMP_UNREACHABLE, 8): ErrorKind.HOST_UNREACHABLE,  # source host isolated
    (_ICMP_UNREACHABLE, 9): ErrorKind.PROHIBITED,  # network
    (_ICMP_UNREACHABLE, 10): ErrorKind.PROHIBITED,  # host
    (_ICMP_UNREACHABLE, 11): ErrorKind.NETWORK_UNREACHABLE,  # for this type of service
    (_ICMP_UNREACHABLE, 12): ErrorKind.HOST_UNREACHABLE,  # for this type of service
    (_ICMP_UNREACHABLE, 13): ErrorKind.PROHIBITED,  # communication, by filtering
    (_ICMP_UNREACHABLE, 14): ErrorKind.PROHIBITED,  # host precedence violation
    (_ICMP_UNREACHABLE, 15): ErrorKind.PROHIBITED,  # precedence cut-off
    # Code 1 of time exceeded is a reassembly that failed, which says nothing about hops.
    (_ICMP_TIME_EXCEEDED, 0): ErrorKind.TIME_EXCEEDED,
}

# (type, code) of RFC 4443, section 3.
_ICMP6_KINDS: Final = {
    (_ICMP6_UNREACHABLE, 0): ErrorKind.NETWORK_UNREACHABLE,  # no route
    (_ICMP6_UNREACHABLE, 1): ErrorKind.PROHIBITED,
    (_ICMP6_UNREACHABLE, 2): ErrorKind.NETWORK_UNREACHABLE,  # beyond the scope of our address
    (_ICMP6_UNREACHABLE, 3): ErrorKind.HOST_UNREACHABLE,
    (_ICMP6_UNREACHABLE, 4): ErrorKind.PORT_UNREACHABLE,
    (_ICMP6_UNREACHABLE, 5): ErrorKind.PROHIBITED,  # ingress or egress policy, a subset of 1
    (_ICMP6_UNREACHABLE, 6): ErrorKind.PROHIBITED,  # reject route, a subset of 1
    (_ICMP6_TOO_BIG, 0): ErrorKind.TOO_BIG,
    (_ICMP6_TIME_EXCEEDED, 0): ErrorKind.TIME_EXCEEDED,
}

_ERRNO_KINDS: Final = {
    errno.EPERM: ErrorKind.NOT_PERMITTED,  # a firewall's output chain
    errno.EACCES: ErrorKind.NOT_PERMITTED,  # a "prohibit" route, a broadcast address
    errno.ENETUNREACH: ErrorKind.NETWORK_UNREACHABLE,
    errno.ENETDOWN: ErrorKind.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: ErrorKind.NETWORK_UNREACHABLE,  # IPv6 without an address of our own
    errno.EHOSTUNREACH: ErrorKind.HOST_UNREACHABLE,
    errno.EHOSTDOWN: ErrorKind.HOST_UNREACHABLE,
    errno.ECONNREFUSED: ErrorKind.PORT_UNREACHABLE,
    errno.EMSGSIZE: ErrorKind.TOO_BIG,
}


class QueuedError(NamedTuple):
    """One record: where the packet was going, what became of it, the start of its payload.

    The port of `destination` is 0 for an error of the local stack, which does not record it. An
    error of the local stack is known by its `error.reporter` being None.
    """

    destination: Endpoint
    error: NetworkError
    quoted: bytes


class Drained(NamedTuple):
    """What one `drain` found: the records that make sense, and how many did not."""

    records: list[QueuedError]
    odd: int


def enable(sock: socket.socket) -> bool:
    """Ask for error records on `sock`; False where the platform has no error queue."""
    if features.MSG_ERRQUEUE is None:
        return False
    level, option = _levels(sock.family)
    if option is None:
        return False
    try:
        sock.setsockopt(level, option, 1)
    except OSError:
        return False
    return True


def drain(sock: socket.socket, limit: int = RECORDS_PER_CALL) -> Drained:
    """Take up to `limit` records off the error queue of `sock`; never blocks and never raises."""
    records: list[QueuedError] = []
    odd = 0
    if features.MSG_ERRQUEUE is None:
        return Drained(records, odd)
    for _ in range(limit):
        try:
            quoted, control, _flags, address = sock.recvmsg(
                _QUOTE_SIZE, _CONTROL_SIZE, features.MSG_ERRQUEUE | socket.MSG_DONTWAIT
            )
        except OSError:
            break  # the queue is empty
        error = parse_control(control)
        destination = endpoint_of(address)
        if error is None or destination is None:
            odd += 1
        else:
            records.append(QueuedError(destination, error, quoted))
    return Drained(records, odd)


def parse_control(control: Iterable[tuple[int, int, bytes]]) -> NetworkError | None:
    """Return what the control messages of one record say, or None if they say nothing usable."""
    for level, kind, data in control:
        if (level, kind) in (_levels(socket.AF_INET), _levels(socket.AF_INET6)):
            return parse_extended_error(data)
    return None


def parse_extended_error(data: bytes) -> NetworkError | None:
    """Return the meaning of a `sock_extended_err` and the offender behind it, or None.

    Total: any bytes at all give a value. Pure: no socket is needed to test it.
    """
    if len(data) < _EXTENDED_ERROR.size:
        return None
    number, origin, icmp_type, code, info, _data = _EXTENDED_ERROR.unpack_from(data)
    if origin == _ORIGIN_ICMP:
        kind = _ICMP_KINDS.get((icmp_type, code), ErrorKind.OTHER)
    elif origin == _ORIGIN_ICMP6:
        kind = _ICMP6_KINDS.get((icmp_type, code), ErrorKind.OTHER)
    elif origin == _ORIGIN_LOCAL:
        kind = kind_of_errno(number)
    else:
        return None
    reporter = None if origin == _ORIGIN_LOCAL else _offender(data[_EXTENDED_ERROR.size :])
    if reporter is None and origin != _ORIGIN_LOCAL:
        return None
    return NetworkError(kind, number, reporter, mtu=info if kind is ErrorKind.TOO_BIG else 0)


def kind_of_errno(number: int) -> ErrorKind:
    """Return what an error number means when this host itself refused to send."""
    return _ERRNO_KINDS.get(number, ErrorKind.OTHER)


def _levels(family: int) -> tuple[int, int | None]:
    if family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, features.IPV6_RECVERR
    return socket.IPPROTO_IP, features.IP_RECVERR


def _offender(address: bytes) -> str | None:
    """Return the IP address in a C `sockaddr`, or None if there is none."""
    if len(address) < _FAMILY.size:
        return None
    (family,) = _FAMILY.unpack_from(address)
    if family == socket.AF_INET and len(address) >= _IPV4_ADDRESS.stop:
        return socket.inet_ntop(socket.AF_INET, address[_IPV4_ADDRESS])
    if family == socket.AF_INET6 and len(address) >= _IPV6_ADDRESS.stop:
        return socket.inet_ntop(socket.AF_INET6, address[_IPV6_ADDRESS])
    return None
