"""SOCKS 5 as its server reads it (RFC 1928): greeting, request, reply. Bytes to values and back.

Programs on this host speak it to `-D`. No authentication is offered, since the listening socket is
this host's own, and CONNECT is the only command. The decoders take what has arrived so far: they
return the message and how many bytes it took, or None if it is not complete; since each field says
how long it is, neither message can grow beyond its limit.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from typing import NamedTuple

from nat_traverse.errors import RemoteProtocolError

VERSION = 5
VERSION_4 = 4  # what programs of before 1996 speak, and nobody has to any more

# Bytes of the longest messages: 255 methods; a name of 255 bytes.
GREETING_LIMIT = 2 + 255
REQUEST_LIMIT = 4 + 1 + 255 + 2

NO_AUTHENTICATION = 0x00
_NONE_ACCEPTABLE = 0xFF

_IPV4 = 1
_NAME = 3
_IPV6 = 4
_SIZES = {_IPV4: 4, _IPV6: 16}
_HEAD = 4  # version, command, reserved, type of address
_PORT = 2
_GREETING_HEAD = 2  # version, number of methods


class Command(IntEnum):
    """What a client may ask for."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Code(IntEnum):
    """What a reply says (RFC 1928, section 6)."""

    SUCCEEDED = 0
    FAILED = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class Request(NamedTuple):
    """What the client wants. `command` may be a number that no RFC knows."""

    command: int
    host: str
    port: int


class UnsupportedAddressError(RemoteProtocolError):
    """The request has a type of address that RFC 1928 does not know: how long it is, neither."""


def decode_greeting(data: bytes | bytearray) -> tuple[bytes, int] | None:
    """Return the methods of authentication that the client offers, and the size of its greeting."""
    if not data:
        return None
    _check_version(data[0])
    if len(data) < _GREETING_HEAD:
        return None
    size = _GREETING_HEAD + data[1]
    return (bytes(data[_GREETING_HEAD:size]), size) if len(data) >= size else None


def decode_request(data: bytes | bytearray) -> tuple[Request, int] | None:
    """Return the request and its size in bytes."""
    if not data:
        return None
    _check_version(data[0])
    if len(data) <= _HEAD:
        return None
    kind = data[3]
    if kind == _NAME:
        start, length = _HEAD + 1, data[_HEAD]
    elif kind in _SIZES:
        start, length = _HEAD, _SIZES[kind]
    else:
        raise UnsupportedAddressError(f"address of type {kind}")
    end = start + length
    if len(data) < end + _PORT:
        return None
    host = _host(kind, bytes(data[start:end]))
    port = int.from_bytes(data[end : end + _PORT], "big")
    return Request(data[1], host, port), end + _PORT


def encode_choice(methods: bytes) -> tuple[bytes, bool]:
    """Return the answer to a greeting, and whether the client may go on."""
    accepted = NO_AUTHENTICATION in methods
    return bytes([VERSION, NO_AUTHENTICATION if accepted else _NONE_ACCEPTABLE]), accepted


def encode_reply(code: Code) -> bytes:
    """Return the answer to a request.

    The address that the connection comes from is the other side's affair: it is given as zeros.
    """
    return bytes([VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0])


def encode_refusal_4() -> bytes:
    """Return what tells a client of version 4 that it is refused (the only answer it reads)."""
    return bytes([0, 91, 0, 0, 0, 0, 0, 0])


def _check_version(version: int) -> None:
    if version != VERSION:
        raise RemoteProtocolError(f"version {version}, and not {VERSION}")


def _host(kind: int, value: bytes) -> str:
    if kind != _NAME:
        return str(ipaddress.ip_address(value))
    try:
        name = value.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("name is not UTF-8") from None
    if not name or not name.isprintable():
        raise RemoteProtocolError("name is empty or has control characters")
    return name
