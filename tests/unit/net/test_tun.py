"""The device as a program sees it, with a socket in its place; the real one is in the lab's tests.

A pair of SOCK_SEQPACKET sockets reads and writes as the device does: one packet a call, whole.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.errors import DeniedError, DeviceError, UsageError
from nat_traverse.net import features, tun
from nat_traverse.net.tun import MAX_FRAME, Offload, Tun, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST = Offload.CHECKSUM | Offload.TSO4 | Offload.TSO6 | Offload.USO4 | Offload.USO6


class Kernel:
    """Answers the calls on /dev/net/tun: each can be made to fail with an errno."""

    def __init__(self) -> None:
        self.opened, self.other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.opened.setblocking(False)
        self.calls: list[tuple[int, Any]] = []
        self.fails: dict[int, int] = {}
        self.knows = MOST

    def open(self, path: str, flags: int) -> int:
        assert path == "/dev/net/tun"
        assert flags & os.O_CLOEXEC
        assert flags & os.O_NONBLOCK
        if -1 in self.fails:
            raise OSError(self.fails[-1], os.strerror(self.fails[-1]))
        return self.opened.detach()

    def ioctl(self, descriptor: int, request: int, argument: Any) -> Any:
        assert descriptor > 0
        self.calls.append((request, argument))
        if request in self.fails:
            raise OSError(self.fails[request], os.strerror(self.fails[request]))
        if request == tun._TUNSETOFFLOAD:
            if argument & ~self.knows:
                raise OSError(errno.EINVAL, "Invalid argument")
            return 0
        if request == tun._TUNSETIFF:
            name, flags = struct.unpack_from("=16sH", argument)
            return struct.pack("=16sH22x", name.replace(b"%d", b"7\0"), flags)
        return argument


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(os, "open", made.open)
    monkeypatch.setattr("fcntl.ioctl", made.ioctl)
    monkeypatch.setattr(socket, "if_nametoindex", lambda name: 3 if name else 0)
    yield made
    made.opened.close()
    made.other_end.close()


def test_a_device_is_made_anew_and_with_headers(kernel: Kernel) -> None:
    with Tun() as device:
        assert (device.name, device.index, device.offload) == ("nat7", 3, MOST)
        assert not os.get_blocking(device.fileno())
    name, flags = struct.unpack_from("=16sH", dict(kernel.calls)[tun._TUNSETIFF])
    assert name.rstrip(b"\0") == b"nat%d"
    # linux/if_tun.h: IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL.
    assert flags == 0x0001 | 0x1000 | 0x4000 | 0x8000
    assert dict(kernel.calls)[tun._TUNSETVNETHDRSZ] == struct.pack("=i", 10)


@pytest.mark.parametrize(
    "knows", [MOST, Offload.CHECKSUM | Offload.TSO4 | Offload.TSO6, Offload.CHECKSUM, Offload(0)]
)
def test_an_older_kernel_offers_less(kernel: Kernel, knows: Offload) -> None:
    kernel.knows = knows
    with Tun("vpn") as device:
        assert device.offload == knows


def test_reading(kernel: Kernel) -> None:
    buffer = bytearray(MAX_FRAME)
    with Tun() as device:
        assert device.read_into(buffer) is None
        kernel.other_end.send(b"first")
        kernel.other_end.send(b"2nd")
        assert device.read_into(buffer) == 5
        assert device.read_into(memoryview(buffer)[5:]) == 3
        assert buffer.startswith(b"first2nd")
        assert device.read_into(buffer) is None


def test_writing_in_pieces(kernel: Kernel) -> None:
    with Tun() as device:
        assert device.write([b"head", bytearray(b"er "), memoryview(b"payload")])
        assert device.refused == 0
        assert kernel.other_end.recv(100) == b"header payload"


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EAGAIN, 77])
def test_a_refused_packet_is_lost_and_counted(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with Tun() as device:
        monkeypatch.setattr(os, "writev", _failing(number))
        assert not device.write([b"x"])
        assert not device.write([b"x"])
        assert device.refused == 2
    assert kernel.calls


@pytest.mark.parametrize(("number", "text"), [(77, "deleted by somebody"), (errno.EIO, "failed")])
def test_a_device_that_is_gone(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    assert not kernel.calls
    device = Tun()

    class Gone:
        def readinto(self, _: object) -> int:
            raise OSError(number, os.strerror(number))

    with device, monkeypatch.context() as patched:
        patched.setattr(device, "_file", Gone(), raising=True)
        with pytest.raises(DeviceError, match=text):
            device.read_into(bytearray(9))


def test_closing_twice(kernel: Kernel) -> None:
    device = Tun()
    device.close()
    device.close()
    assert device.fileno() == -1
    assert not device.write([b"nowhere"])
    assert kernel.other_end.recv(1) == b""  # closed


@pytest.mark.parametrize(
    ("call", "number", "kind", "text"),
    [
        (-1, errno.ENOENT, DeviceError, "modprobe tun"),
        (-1, errno.ENODEV, DeviceError, "modprobe tun"),
        (-1, errno.EACCES, DeniedError, "chmod 666 /dev/net/tun"),
        (-1, errno.EMFILE, DeviceError, "can't be opened: Too many open files"),
        (tun._TUNSETIFF, errno.EBUSY, DeviceError, "another nat-traverse"),
        (tun._TUNSETIFF, errno.EPERM, DeniedError, "CAP_NET_ADMIN"),
        (tun._TUNSETIFF, errno.ENOMEM, DeviceError, "vpn failed: Cannot allocate"),
        (tun._TUNSETVNETHDRSZ, errno.EINVAL, DeviceError, "Invalid argument"),
        (tun._TUNSETOFFLOAD, errno.EIO, DeviceError, "output error"),
    ],
)
def test_what_the_user_reads(
    kernel: Kernel, call: int, number: int, kind: type[DeviceError], text: str
) -> None:
    kernel.fails[call] = number
    with pytest.raises(DeviceError, match=text) as caught:
        Tun("vpn")
    assert type(caught.value) is kind
    assert caught.value.exit_code == (13 if kind is DeniedError else 1)
    if call != -1:  # nothing is left open
        assert kernel.other_end.recv(1) == b""


@pytest.mark.parametrize("name", ["nat0", "a", "x" * 15, "vpn.home", "to-work", "_1"])
def test_possible_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "x" * 16, "a/b", "a b", "a:b", "a\n", "a\0", "-x", "x%d", "%d", "nät", "a%%"],
)
def test_impossible_names(name: str) -> None:
    with pytest.raises(UsageError, match="can be called"):
        check_name(name)
    with pytest.raises(UsageError):
        Tun(name)


# /proc/sys/net/ipv4/conf has directories of these names besides those of the devices.
@pytest.mark.parametrize("name", ["all", "default"])
def test_names_that_stand_for_every_device(name: str) -> None:
    with pytest.raises(UsageError, match="stands for all of them"):
        check_name(name)
    check_name(name + "0")


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IS_LINUX", False)
    with pytest.raises(DeviceError, match="not yet on this system"):
        Tun()


def _failing(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail
