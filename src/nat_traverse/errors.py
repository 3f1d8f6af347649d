"""The exceptions of nat-traverse, and the exit code that each of them means.

    NatTraverseError
     ├── UsageError            2    the command line or an argument makes no sense
     ├── ProofError            3    the peer has not proven to be the one (in `tunnel.refusals`)
     ├── NoPathError           4    the deadline passed and no path was found (0.7's code)
     ├── DataLostError         5    the plain tunnel lost data, which can't be had again
     ├── OtherPortsError       6    a path was found, but not between the ports agreed upon
     ├── ModesDifferError      8    the two sides want different things (in `link.establish`)
     ├── NoAnswerError         1    a path without a tunnel on it (in `link.link`): tried again
     ├── PeerGoneError         the errno: 104 ended early, 110 fell silent, 111 refuses
     ├── LocalNetworkError     the errno: 22 unknown host, 98 in use, 101 no route, 13 not permitted
     ├── OutputError           the errno of the failed write: 28 disk full
     ├── DeviceError           1    a network device could not be made or set up
     │    └── DeniedError      13   the right for that, or to become another user, is missing
     ├── NotAgreedError        9    both want a VPN, and not the same one: addresses, networks
     ├── WireGuardError        1    a command of WireGuard's failed (in `carry.wg_device`)
     │    └── GoneError        1    its device is gone: tried again, if it was ours (the same)
     ├── LabError              1    the demo's network could not be built (in `lab.namespace`)
     └── ProtocolError
          ├── RemoteProtocolError  the peer (or a stranger) sent something that is no message
          └── LocalProtocolError   this program tried to build a message that cannot exist

The text of an exception is what the user reads: what failed, the likeliest reason, what to try.
"""

from __future__ import annotations

import errno

EXIT_USAGE = 2
EXIT_NO_PATH = 4  # what 0.7 returned for its timeout
EXIT_DATA_LOST = errno.EIO  # 5 on every platform we run on
# 6 is ENXIO, "no such device or address", which no call on a UDP socket ends with.
EXIT_OTHER_PORTS = errno.ENXIO
# 9 is EBADF, "bad file descriptor", which no call on a socket of ours ends with.
EXIT_NOT_AGREED = errno.EBADF


def shown(text: str) -> str:
    """Return `text` so that a terminal can be given it: what a peer sends may be anything."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class NatTraverseError(Exception):
    """The root: every failure that is reported to a user. `exit_code` is the process's status."""

    exit_code = 1


class UsageError(NatTraverseError):
    """The command line, or an argument of the library, makes no sense."""

    exit_code = EXIT_USAGE


class NoPathError(NatTraverseError):
    """No path to the peer was validated before the deadline."""

    exit_code = EXIT_NO_PATH


class DataLostError(NatTraverseError):
    """The plain tunnel lost datagrams: both ends compared their counts at the end."""

    exit_code = EXIT_DATA_LOST


class OtherPortsError(NatTraverseError):
    """There is a path, but no program that keeps to the agreed ports can use it."""

    exit_code = EXIT_OTHER_PORTS


class ErrnoError(NatTraverseError):
    """A failure whose exit code is the operating system's error number, as it was with 0.7."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number
        self.exit_code = number if 0 < number < 256 else 1  # noqa: PLR2004 (a wait status has 8 bits)


class LocalNetworkError(ErrnoError):
    """A socket could not be opened, bound or routed on this host."""


class PeerGoneError(ErrnoError):
    """An established tunnel ended without the peer having finished."""


class OutputError(ErrnoError):
    """What the peer sent could not be written: the disk is full, the device is gone."""


class DeviceError(NatTraverseError):
    """A network device, an address or a route could not be had from this host."""


class DeniedError(DeviceError):
    """The right to do something is missing: to the network, or to run as another user."""

    exit_code = errno.EACCES


class NotAgreedError(NatTraverseError):
    """Both sides want a VPN, and their addresses or networks do not fit together."""

    exit_code = EXIT_NOT_AGREED


class ProtocolError(NatTraverseError):
    """A message that cannot be; never shown to a user as such, but counted."""


class RemoteProtocolError(ProtocolError):
    """Bytes from the network that are no message of this protocol."""


class LocalProtocolError(ProtocolError):
    """This program tried to build a message that the protocol cannot express."""
