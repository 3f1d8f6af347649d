"""What this host's routing knows about a destination. No packet leaves for any of this.

Connecting a UDP socket only looks up a route: it chooses our own address (RFC 6724, section 5)
and gives access to the path MTU that the kernel remembers for the destination.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nat_traverse.errors import LocalNetworkError
from nat_traverse.net import features
from nat_traverse.net.address import endpoint_from, sockaddr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.model import Endpoint


def source_for(to: Endpoint) -> Endpoint:
    """Return the address that this host would send from to `to`; its port means nothing.

    Raises `LocalNetworkError` (101 and its kin) when there is no route.
    """
    with _routed(to) as sock:
        return endpoint_from(sock.getsockname())


def path_mtu(to: Endpoint) -> int | None:
    """Return the size in bytes of the largest IP packet to `to`, as far as the kernel knows.

    It knows the MTU of its own interface, and a smaller one once an ICMP message has told it. None
    where the platform does not say. Raises `LocalNetworkError` when there is no route.
    """
    level, option = (
        (socket.IPPROTO_IPV6, features.IPV6_MTU)
        if to.is_ipv6
        else (socket.IPPROTO_IP, features.IP_MTU)
    )
    if option is None:
        return None
    with _routed(to) as sock:
        return sock.getsockopt(level, option)


@contextmanager
def _routed(to: Endpoint) -> Iterator[socket.socket]:
    """Connect a UDP socket to `to` for the length of a `with` block."""
    family = socket.AF_INET6 if to.is_ipv6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise _explained(error, to) from error
    with sock:
        try:
            sock.connect(sockaddr(to, family))
        except OSError as error:
            raise _explained(error, to) from error
        yield sock


def _explained(error: OSError, to: Endpoint) -> LocalNetworkError:
    number = error.errno if error.errno and error.errno > 0 else errno.EINVAL
    version = "IPv6" if to.is_ipv6 else "IPv4"
    if number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        number = errno.ENETUNREACH  # what a host without this family says in other words
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        text = (
            f"No route to {to.host}: this machine has no {version} connection that leads there."
            f" Check that the network is up (`ip {'-6 ' if to.is_ipv6 else ''}route`)"
            " and that the address is the peer's public one."
        )
    elif number in (errno.EACCES, errno.EPERM):
        text = f"Sending to {to.host} is forbidden on this machine, by a route or a firewall."
    else:
        text = f"Cannot send to {to.host}: {os.strerror(number)}."
    return LocalNetworkError(text, number)
