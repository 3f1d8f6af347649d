from __future__ import annotations

import sys

import pytest

from nat_traverse.errors import LocalProtocolError, RemoteProtocolError
from nat_traverse.wire import virtio
from nat_traverse.wire.virtio import Offload, decode, encode

OFFLOAD = Offload(virtio.NEEDS_CHECKSUM, virtio.GSO_TCPV4 | virtio.GSO_ECN, 52, 1348, 20, 16)


def test_it_is_the_kernels_layout() -> None:
    fields = [number.to_bytes(2, sys.byteorder) for number in (52, 1348, 20, 16)]
    assert encode(OFFLOAD) == b"\x01\x81" + b"".join(fields)


def test_what_is_encoded_is_decoded() -> None:
    assert decode(encode(OFFLOAD)) == OFFLOAD
    assert decode(memoryview(encode(OFFLOAD) + b"packet")) == OFFLOAD
    assert decode(virtio.PLAIN) == Offload()


def test_the_numbers_are_those_of_linux() -> None:
    assert (virtio.NEEDS_CHECKSUM, virtio.DATA_VALID) == (1, 2)
    assert (virtio.GSO_NONE, virtio.GSO_TCPV4, virtio.GSO_TCPV6, virtio.GSO_UDP) == (0, 1, 4, 5)
    assert (virtio.GSO_ECN, virtio.SIZE) == (0x80, 10)


@pytest.mark.parametrize("size", [0, 1, 9])
def test_a_frame_may_not_be_shorter(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes"):
        decode(bytes(size))


@pytest.mark.parametrize("offload", [Offload(gso_size=65536), Offload(flags=-1)])
def test_numbers_have_to_fit(offload: Offload) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        encode(offload)
