"""Gateways by name: the grid that the ladder is held to, and the kinds of the kernel lab.

A kind is a function of whether the gateway takes unsolicited packets for its own; it returns the
gateways between a host and the Internet, innermost first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nat_traverse.lab import Kind
from sim.nat import Allocation, Behaviour, Dependence, Unsolicited

if TYPE_CHECKING:
    from collections.abc import Callable

Gateways = tuple[Behaviour, ...]

# Linux masquerading whose firewall drops what nobody asked for.
LINUX = Behaviour()


def none(*, poison: bool = False) -> Gateways:
    """A public address, and no firewall: nothing there could take a packet for its own."""
    del poison
    return ()


def eim(*, poison: bool = False) -> Gateways:
    """Kept ports, open to everybody once mapped ("full cone")."""
    return _made(poison, mapping=Dependence.ENDPOINT_INDEPENDENT, filtering=Dependence(0))


def adf(*, poison: bool = False) -> Gateways:
    """Kept ports, open to addresses that were sent to ("restricted cone")."""
    return _made(poison, mapping=Dependence.ENDPOINT_INDEPENDENT, filtering=Dependence.ADDRESS)


def apdf(*, poison: bool = False) -> Gateways:
    """Kept ports, open to endpoints that were sent to: Linux, the ordinary home router."""
    return _made(poison)


def sequential(*, poison: bool = False) -> Gateways:
    """The next port for every new destination, from a start that chance chooses."""
    return _made(poison, allocation=Allocation.SEQUENTIAL)


def random(*, poison: bool = False) -> Gateways:
    """A random port for every new destination."""
    return _made(poison, allocation=Allocation.RANDOM)


GRID: dict[str, Callable[..., Gateways]] = {
    "none": none,
    "eim": eim,
    "adf": adf,
    "apdf": apdf,
    "sequential": sequential,
    "random": random,
}

LAB: dict[Kind, Gateways] = {
    Kind.NONE: (),
    Kind.DROP: (LINUX,),
    Kind.REJECT: (replace(LINUX, unsolicited=Unsolicited.REFUSE),),
    Kind.ACCEPT: (replace(LINUX, unsolicited=Unsolicited.TAKE),),
    Kind.RANDOM: (replace(LINUX, allocation=Allocation.RANDOM),),
    Kind.DOUBLE: (LINUX, LINUX),
}


def _made(
    poison: bool,
    *,
    mapping: Dependence = Dependence.ADDRESS_AND_PORT,
    filtering: Dependence = Dependence.ADDRESS_AND_PORT,
    allocation: Allocation = Allocation.PRESERVED,
) -> Gateways:
    unsolicited = Unsolicited.TAKE if poison else Unsolicited.DROP
    return (
        Behaviour(
            mapping=mapping, filtering=filtering, allocation=allocation, unsolicited=unsolicited
        ),
    )
