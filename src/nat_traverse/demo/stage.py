"""Where the two programs run: in the lab, or, where none can be had, on this host itself."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from nat_traverse.lab import Kind
from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nat_traverse.lab import Addresses, Host, Lab, Node

LEFT: Final = "left"
RIGHT: Final = "right"

# The ports of the manual's examples. Each host of the lab has all ports to itself.
_LEFT_PORT: Final = 40000
_RIGHT_PORT: Final = 40001

_LOOPBACK: Final = "127.0.0.1"


class Place(NamedTuple):
    """One side of the stage.

    `public` is what the other side has to use as PEER. `enter` turns a command line into one that
    runs at this place.
    """

    side: str
    kind: str
    public: Endpoint
    enter: Callable[[Sequence[str]], list[str]]


class Row(NamedTuple):
    """One node of the sketch, in the order from left to right: a host, or `between` the two."""

    what: str
    address: str
    remark: str = ""
    between: bool = False


class Stage(NamedTuple):
    """Two places, and what lies between them. `notes` are sentences about it."""

    left: Place
    right: Place
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def specification(self, place: Place) -> str:
        """Return the operand of the command line for `place`."""
        other = self.right if place is self.left else self.left
        return f"{place.public.port}:{other.public}"


def in_lab(lab: Lab, left: Kind, right: Kind, meanings: Mapping[str, str]) -> Stage:
    """Return the stage that a lab of these kinds makes; `meanings` explains each kind.

    If one side has no IPv4, both sides use IPv6: the lab gives it to the other side as well.
    """
    ipv6 = Kind.IPV6 in (left, right)
    notes = [
        f"The {without} host has no IPv4. So the {other} side gets IPv6 too, with a firewall"
        " instead of a NAT, and the tunnel uses that."
        for without, other, kind, others in ((LEFT, RIGHT, left, right), (RIGHT, LEFT, right, left))
        if kind is Kind.IPV6 and others not in (Kind.IPV6, Kind.NONE)
    ]
    rows = (
        *_side_rows(lab.left, lab.left_gateways, left, meanings, ipv6=ipv6),
        Row("Internet", "", f"{len(lab.internet)} routers", between=True),
        *reversed(_side_rows(lab.right, lab.right_gateways, right, meanings, ipv6=ipv6)),
    )
    return Stage(
        _place(lab.left, left, _LEFT_PORT, ipv6=ipv6),
        _place(lab.right, right, _RIGHT_PORT, ipv6=ipv6),
        rows,
        tuple(notes),
    )


def on_loopback() -> Stage:
    """Return a stage without any gateway: this host, and two ports of it that are free now."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
    ):
        left.bind((_LOOPBACK, 0))
        right.bind((_LOOPBACK, 0))
        ports = int(left.getsockname()[1]), int(right.getsockname()[1])
    places = [
        Place(side, "loopback", Endpoint(_LOOPBACK, port), list)
        for side, port in zip((LEFT, RIGHT), ports, strict=True)
    ]
    rows = tuple(Row(f"{place.side} end", place.public.host) for place in places)
    return Stage(places[0], places[1], rows)


def _place(host: Host, kind: Kind, port: int, *, ipv6: bool) -> Place:
    return Place(host.name, kind.value, Endpoint(_one(host.public, ipv6=ipv6), port), host.command)


def _side_rows(
    host: Host, gateways: Sequence[Node], kind: Kind, meanings: Mapping[str, str], *, ipv6: bool
) -> list[Row]:
    """Return the rows of one side, from the host outwards."""
    # What a gateway does to IPv4 does not matter when IPv6 goes through it.
    behaves = Kind.IPV6 if ipv6 and gateways else kind
    remark = f"{behaves.value}: {meanings[behaves.value]}"
    rows = [Row(f"{host.name} host", _one(host.address, ipv6=ipv6), "" if gateways else remark)]
    for gateway in gateways:
        rows.append(Row("gateway", _one(gateway.address, ipv6=ipv6), remark, between=True))
        remark = "the second of the two"
    return rows


def _one(addresses: Addresses, *, ipv6: bool) -> str:
    """Return the address of the family in use; every node of the lab has one then."""
    address = addresses.v6 if ipv6 else addresses.v4
    if address is None:
        raise AssertionError("this node lacks the family that both sides were given")
    return address
