"""Endpoints on loopback that behave in a known way."""

from __future__ import annotations

import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@contextmanager
def closed_port(family: socket.AddressFamily = socket.AF_INET) -> Iterator[Endpoint]:
    """Yield an endpoint that refuses every datagram by ICMP.

    The port is held by a socket connected to another one, so that nobody else can open it; a
    datagram from any other sender finds no socket that takes it.
    """
    host = LOOPBACK[family]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.connect((host, 1))
        yield Endpoint(host, int(sock.getsockname()[1]))


def await_readable(descriptor: int, seconds: float = 20.0) -> None:
    """Wait until `descriptor` is readable; fails after `seconds`."""
    assert select.select([descriptor], [], [], seconds)[0], "nothing arrived"
