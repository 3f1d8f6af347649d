"""Netlink: questions to Linux's kernel about its network, and orders (RFC 3549, netlink(7)).

A message is a header, a fixed part that depends on its type, and attributes: 2 bytes of length, 2
of type, the value, and up to 3 bytes to the next multiple of four. All numbers are in the machine's
own byte order. Each request here asks for an acknowledgement; the kernel answers in the order of
the requests, before `send` has returned.

    request ──▶   ◀── message …, NLMSG_ERROR (with 0: done, or an errno and the kernel's own words)
    dump    ──▶   ◀── message …, message …, NLMSG_DONE

There is no library in between. Five kinds of messages are needed here; pyroute2, the usual choice,
brings all of netlink, with an event loop, network namespaces and a database of its own. It would be
by far the largest thing that this program depends on, for the sake of two short modules.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from nat_traverse.errors import DeviceError
from nat_traverse.net import features

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# struct nlmsghdr (linux/netlink.h): length, type, flags, sequence number, port.
_HEADER: Final = struct.Struct("=IHHII")
# struct nlattr: length, type.
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct(
    "=i"
)  # the start of struct nlmsgerr, in front of the request's header
_ALIGNMENT: Final = 4

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3

_NLM_F_REQUEST: Final = 0x01
_NLM_F_ACK: Final = 0x04
_NLM_F_DUMP_INTR: Final = 0x10  # what is listed has changed meanwhile: some of it may be missing
_NLM_F_DUMP: Final = 0x300
_NLM_F_ACK_TLVS: Final = 0x200  # of an acknowledgement: attributes follow, the kernel's words

# Flags of a request that makes something: it must not be there yet.
MAKE_NEW: Final = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL

_NLMSGERR_ATTR_MSG: Final = 1

_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF  # without the flags for nested and big-endian values

_SOL_NETLINK: Final = 270
# The kernel's own words beside an errno (Linux 4.12), the request not quoted with it, and requests
# with anything in them that the kernel does not understand refused, not obeyed in part (4.20).
_OPTIONS: Final = (11, 10, 12)  # NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK

# The kernel fills at most 32 KiB when it lists something, and then begins a new datagram.
_BUFFER: Final = 65_536

# Seconds for an answer, which is there when `send` returns. Never reached; but a kernel that gives
# none must not stop the program for ever.
_PATIENCE: Final = 5.0

# How often a list that changed while it was read is asked for. Where routes change all the time,
# the last one has to do: it is right but for one of those that were just changed.
_TRIES: Final = 5


class Message(NamedTuple):
    """A message of the kernel's: its type, its fixed part, and its attributes by type."""

    kind: int
    fixed: bytes
    attributes: dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """Encode an attribute."""
    encoded = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return encoded + bytes(-len(encoded) % _ALIGNMENT)


def nested(kind: int, attributes: Iterable[bytes]) -> bytes:
    """Encode an attribute whose value is attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def attributes_in(data: bytes) -> dict[int, bytes]:
    """Decode attributes; of two of one type the later counts. What is cut off ends them."""
    return dict(_attributes_in(data))


def _attributes_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield kind & _NLA_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % _ALIGNMENT


class Netlink:
    """A netlink socket for links, addresses and routes (NETLINK_ROUTE).

    `fixed` says for each type of message that is read how long its fixed part is.
    """

    def __init__(self, fixed: Mapping[int, int]) -> None:
        if not features.IS_LINUX:
            raise DeviceError("A VPN is not yet on this system: so far only Linux has its device.")
        self._fixed = fixed
        self._number = 0
        try:
            # 0 is NETLINK_ROUTE, and as an address the kernel, which also gives us a port.
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        except OSError as error:
            raise DeviceError(f"This system gives no netlink socket: {error.strerror}.") from error
        self._socket.bind((0, 0))
        self._socket.settimeout(_PATIENCE)
        for option in _OPTIONS:
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                continue  # an older kernel, which says less

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Send a request, and return what the kernel answered before its acknowledgement.

        Raises `OSError`: its `errno` is the kernel's, its `strerror` has the kernel's words.
        """
        answers, _ = self._ask(kind, body, flags | _NLM_F_ACK)
        return answers

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Have the kernel list all there is of something. Raises `OSError` as `request` does."""
        answers: list[Message] = []
        for _ in range(_TRIES):
            answers, is_whole = self._ask(kind, body, _NLM_F_DUMP)
            if is_whole:
                break
        return answers

    def close(self) -> None:
        """Close the socket. Closing twice does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, kind: int, body: bytes, flags: int) -> tuple[list[Message], bool]:
        """Return the kernel's answers, and whether nothing of a list can be missing."""
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        size = _HEADER.size + len(body)
        header = _HEADER.pack(size, kind, flags | _NLM_F_REQUEST, number, 0)
        self._socket.send(header + body)
        answers: list[Message] = []
        is_whole = True
        while True:
            try:
                data, (sender, _groups) = self._socket.recvfrom(_BUFFER)
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, "the kernel gave no answer") from None
            if sender != 0:
                continue  # another process: only port 0 is the kernel
            for kind_, flags_, payload in messages_in(data, number):
                is_whole = is_whole and not flags_ & _NLM_F_DUMP_INTR
                if kind_ in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_for(payload, has_words=bool(flags_ & _NLM_F_ACK_TLVS), kind=kind_)
                    return answers, is_whole
                fixed = self._fixed.get(kind_, 0)
                answers.append(Message(kind_, payload[:fixed], attributes_in(payload[fixed:])))


def messages_in(data: bytes, number: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and payload of each message in a datagram that answers request `number`."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, answered, _port = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        if answered == number:
            yield kind, flags, data[at + _HEADER.size : at + length]
        at += length + -length % _ALIGNMENT


def _raise_for(payload: bytes, *, kind: int, has_words: bool) -> None:
    """Raise the `OSError` in an acknowledgement, if it has one."""
    (negative,) = _ERROR.unpack_from(payload) if len(payload) >= _ERROR.size else (0,)
    if negative == 0:
        return
    text = os.strerror(-negative)
    # Behind the request's header; NETLINK_CAP_ACK leaves the rest of the request out.
    start = _ERROR.size + (_HEADER.size if kind == _NLMSG_ERROR else 0)
    if has_words:
        words = attributes_in(payload[start:]).get(_NLMSGERR_ATTR_MSG, b"")
        if words:
            text += " (" + words.decode(errors="replace").rstrip(".\0") + ")"
    raise OSError(-negative, text)
