"""`LOCAL_PORT:PEER:REMOTE_PORT`: whom to reach, and between which two ports.

LOCAL_PORT ends at the first colon and REMOTE_PORT starts after the last, so that an IPv6 address
may stand between them with or without brackets.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from nat_traverse.errors import UsageError
from nat_traverse.form import EXAMPLE, FORM

HIGHEST_PORT = 65535  # RFC 768: a port has 16 bits
COLONS = 2  # the form has two; an IPv6 address brings more


class Target(NamedTuple):
    """What the operand of the command line says.

    `local_port` 0 stands for any free port; `remote_port` is never 0. `peer` is the canonical text
    of an IPv4 or IPv6 address (without brackets, perhaps with a zone, never IPv4-mapped), or else
    a name for the resolver.
    """

    local_port: int
    peer: str
    remote_port: int

    def __str__(self) -> str:
        return f"{self.local_port}:{bracketed(self.peer)}:{self.remote_port}"


def parse(text: str) -> Target:
    """Read LOCAL_PORT:PEER:REMOTE_PORT, or raise UsageError."""
    if text.count(":") < COLONS:
        raise _error(f"{text!r} is not {FORM}")
    local, _, rest = text.partition(":")
    peer, _, remote = rest.rpartition(":")
    target = Target(_port("LOCAL_PORT", local), _peer(peer), _port("REMOTE_PORT", remote))
    if target.remote_port == 0:
        raise _error("REMOTE_PORT is 0, and nothing can be sent to port 0: give the other side's")
    return target


def other_side(target: Target, own_port: int, own_address: str | None) -> str:
    """Return the command that the user of the other side runs.

    `own_port` is the port that was bound, which tells more than a LOCAL_PORT of 0; `own_address` is
    the public address of this side where it is known.
    """
    address = bracketed(own_address) if own_address else "<public address of this side>"
    return f"nat-traverse {target.remote_port}:{address}:{own_port}"


def bracketed(host: str) -> str:
    """Put an IPv6 address in brackets; leave anything else as it is."""
    return f"[{host}]" if ":" in host else host


def _port(name: str, text: str) -> int:
    """Read a port in decimal, leading zeros allowed. int() alone would take `1_0` and `٣`."""
    if not text:
        hint = " (0 stands for any free one)" if name == "LOCAL_PORT" else ""
        raise _error(f"{name} is missing{hint}")
    digits = text.lstrip("0") or "0"
    if not (digits.isascii() and digits.isdigit()):
        raise _error(f"{name} is {text!r}, which is not a number from 0 to {HIGHEST_PORT}")
    if len(digits) > len(str(HIGHEST_PORT)) or int(digits) > HIGHEST_PORT:
        raise _error(f"{name} is {text}, and the highest port is {HIGHEST_PORT}")
    return int(digits)


def _peer(text: str) -> str:
    """Check PEER, and bring an address into its canonical form."""
    if not text:
        raise _error("PEER, the public address or name of the other side, is missing")
    if not text.isprintable() or any(c.isspace() for c in text):
        raise _error(f"PEER is {text!r}, and no address or name has a blank or such a character")
    if text == "0":  # the resolver would take it for 0.0.0.0
        raise _error("PEER is 0, which is neither an address nor a name")
    in_brackets = text.startswith("[") and text.endswith("]")
    try:
        address = ipaddress.ip_address(text[1:-1] if in_brackets else text)
    except ValueError:
        if in_brackets or any(c in text for c in ":[]"):
            raise _error(f"PEER is {text!r}, which is not an IPv6 address") from None
        return text
    if in_brackets and address.version == 4:  # noqa: PLR2004 (the name of a protocol)
        raise _error(f"PEER is {text!r}, but brackets are for IPv6 addresses")
    return _host(address)


def _host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return the text of an address that belongs to one host, or raise UsageError."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_unspecified:
        raise _error(f"PEER is {address}, which stands for no host at all")
    if address.is_multicast:
        raise _error(f"PEER is {address}, a multicast address: a tunnel has one other end")
    if address == ipaddress.IPv4Address("255.255.255.255"):  # RFC 919, section 7
        raise _error(f"PEER is {address}, the broadcast address: a tunnel has one other end")
    return str(address)


def _error(reason: str) -> UsageError:
    return UsageError(f"{reason}.\nThe form is {FORM}, for example {EXAMPLE}.")
