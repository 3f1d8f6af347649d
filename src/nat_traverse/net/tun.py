"""A TUN device: a network interface whose packets this process sends and receives.

Theory of operation
-------------------
Opening /dev/net/tun and naming an interface makes one (tun(4) of Linux, `tuntap.rst`); it is there
for as long as the file descriptor is open, and the kernel takes it away with its addresses and
routes however the process ends. IFF_TUN_EXCL has it made anew: a device of that name that exists
already, another program's or a persistent one, is never taken over.

*Offload.* With IFF_VNET_HDR a `virtio_net_hdr` of 10 bytes stands in front of each packet, in both
directions, little-endian. With TUNSETOFFLOAD the kernel hands over what it would hand to a network
card that cuts by itself: TCP and UDP (USO, Linux 6.2) in packets of up to 64 KiB with the size to
cut at in that header, and checksums that are only begun. One read then brings what else would be
45 of them. What can be *written* does not depend on it.

The device comes down and without addresses; `rtnetlink` sets it up.
"""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import struct
from enum import IntFlag
from typing import TYPE_CHECKING, Final, Self

from nat_traverse.errors import DeniedError, DeviceError, UsageError
from nat_traverse.net import features
from nat_traverse.net.privileges import lacks_net_admin

if TYPE_CHECKING:
    from collections.abc import Sequence

# The kernel puts in the lowest number that is free.
AUTOMATIC: Final = "nat%d"

# The virtio_net_hdr in front of each packet, without the later fields that nothing here needs.
VNET_HEADER: Final = 10

# What a buffer for `Tun.read_into` has to hold: a length in an IP header has 16 bits.
MAX_FRAME: Final = VNET_HEADER + 65_535

# IFNAMSIZ - 1 bytes. The kernel refuses '/', ':' and white space, `.` and `..`; and '%' is its own
# for numbers. What is left and not here is nothing that a shell, a log or a sysctl has to meet.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")

# Directories beside those of devices in /proc/sys/net/ipv4/conf: what is for one called so would be
# for every one.
_RESERVED: Final = frozenset({"all", "default"})

_PATH: Final = "/dev/net/tun"

# linux/if_tun.h. The numbers of the calls are the same on all but MIPS, PowerPC and SPARC, whose
# _IOW differs; there they are refused with ENOTTY, and nothing else happens.
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC

_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000  # no further 4 bytes with the protocol: the packet says it itself
_IFF_VNET_HDR: Final = 0x4000
_IFF_TUN_EXCL: Final = 0x8000

_REQUEST: Final = struct.Struct("=16sH22x")  # struct ifreq: the name, the flags
_INT: Final = struct.Struct("=i")

# The kernel's answer once the device was deleted under us. `errno` lacks it where it is not Linux.
_EBADFD: Final = 77


class Offload(IntFlag):
    """What the kernel leaves to the reader of the device: TUN_F_… of linux/if_tun.h."""

    CHECKSUM = 0x01
    TSO4 = 0x02  # TCP in IPv4, uncut
    TSO6 = 0x04
    USO4 = 0x20  # UDP in IPv4, uncut
    USO6 = 0x40


# Tried in turn: a kernel refuses a set with something in it that it does not know. TUN_F_TSO_ECN is
# not asked for: without it a packet with the flag CWR, which only the first segment may carry, is
# cut by the kernel.
_OFFLOADS: Final = (
    Offload.CHECKSUM | Offload.TSO4 | Offload.TSO6 | Offload.USO4 | Offload.USO6,
    Offload.CHECKSUM | Offload.TSO4 | Offload.TSO6,
    Offload.CHECKSUM,
)


def check_name(name: str) -> None:
    """Raise `UsageError` if no device can be called `name`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"No network device can be called {name!r}: at most 15 letters, digits, '_', '-' and"
            " '.', of which the first is a letter, a digit or '_'."
        )
    if name in _RESERVED:
        raise UsageError(
            f"No network device can be called {name!r}: in /proc/sys/net that stands for all of"
            " them. Choose another name."
        )


class Tun:
    """A new TUN device called `name`, which is there until it is closed.

    Raises `UsageError` for an impossible name, `DeniedError` without the right, and `DeviceError`
    when the device can't be had, because there is one of this name or for another reason.
    """

    def __init__(self, name: str = AUTOMATIC) -> None:
        if name != AUTOMATIC:
            check_name(name)
        if not features.IS_LINUX:
            raise DeviceError("A VPN is not yet on this system: so far only Linux has its device.")
        try:
            opened = os.open(_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _not_opened(error) from error
        # Reads into a buffer, and says None when nothing is there: cheaper than an exception.
        self._file = io.FileIO(opened, "r+")
        self._descriptor = opened
        self.refused = 0  # packets that the kernel did not take
        try:
            self.name = _make(opened, name)
            self.index = socket.if_nametoindex(self.name)
            self.offload = _set_offload(opened)
        except OSError as error:
            self._file.close()
            raise _not_made(error, name) from error

    def fileno(self) -> int:
        """Return the file descriptor: readable when there is a packet, or the device is gone."""
        return self._descriptor

    def read_into(self, buffer: memoryview | bytearray) -> int | None:
        """Read one frame, virtio_net_hdr and packet: its size in bytes, None if there is none.

        `buffer` has MAX_FRAME bytes. Raises `DeviceError` when somebody has deleted the device.
        """
        try:
            return self._file.readinto(buffer)
        except OSError as error:
            if error.errno == _EBADFD:
                raise DeviceError(
                    f"The network device {self.name} was deleted by somebody else."
                ) from error
            raise DeviceError(
                f"Reading from the network device {self.name} failed: {error.strerror}."
            ) from error

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Hand one frame, virtio_net_hdr and packet, to the kernel, in as many pieces as it has.

        False when the kernel refuses it (the device is down, the headers contradict each other):
        one packet that is lost, as on any link. It is counted in `refused`.
        """
        try:
            os.writev(self._descriptor, buffers)
        except OSError:
            self.refused += 1
            return False
        return True

    def close(self) -> None:
        """Remove the device, with its addresses and routes. Closing twice does nothing."""
        self._file.close()
        self._descriptor = -1  # the number may soon be another file's

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make(opened: int, name: str) -> str:
    """Make the device, and return its name."""
    import fcntl  # noqa: PLC0415 (not on every system that this module is imported on)

    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    made = fcntl.ioctl(opened, _TUNSETIFF, _REQUEST.pack(name.encode("ascii"), flags))
    fcntl.ioctl(opened, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER))
    fcntl.ioctl(opened, _TUNSETVNETLE, _INT.pack(1))
    called: bytes = _REQUEST.unpack(made)[0]
    return called.rstrip(b"\0").decode("ascii")


def _set_offload(opened: int) -> Offload:
    """Ask for the most that this kernel can leave to us, and return what it is."""
    import fcntl  # noqa: PLC0415 (the same)

    for offload in _OFFLOADS:
        try:
            fcntl.ioctl(opened, _TUNSETOFFLOAD, int(offload))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return offload
    return Offload(0)


def _not_opened(error: OSError) -> DeviceError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeniedError(
            f"{_PATH} may not be opened by this user. It is harmless for all to open, since making"
            f" a device needs CAP_NET_ADMIN besides: sudo chmod 666 {_PATH}; in a container the"
            f" option is --device={_PATH}."
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return DeviceError(
            f"This kernel has no TUN devices: {_PATH} is missing. Load the module with"
            f" sudo modprobe tun; in a container the option is --device={_PATH}."
        )
    return DeviceError(f"{_PATH} can't be opened: {error.strerror}.")


def _not_made(error: OSError, name: str) -> DeviceError:
    shown = "a network device" if name == AUTOMATIC else f"the network device {name}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return lacks_net_admin(f"Making {shown}")
    if error.errno == errno.EBUSY:
        return DeviceError(
            f"There is a network device {name} already: most likely another nat-traverse with"
            f" this name runs (ip -details link show {name}). End that one, or choose another name"
            " with --vpn-device."
        )
    return DeviceError(f"Making {shown} failed: {error.strerror}.")
