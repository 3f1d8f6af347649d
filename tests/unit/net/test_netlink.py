"""Messages to and from the kernel: their form, with a socket in place of the kernel."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct

import pytest

from nat_traverse.errors import DeviceError
from nat_traverse.net import features, netlink
from nat_traverse.net.netlink import (
    MAKE_NEW,
    Message,
    Netlink,
    attribute,
    attributes_in,
    messages_in,
    nested,
)

KIND = 24
NOT_OURS = 77
WORDS = 1  # NLMSGERR_ATTR_MSG
HAS_WORDS = 0x200  # NLM_F_ACK_TLVS


def message(kind: int, number: int, payload: bytes = b"", flags: int = 0) -> bytes:
    text = struct.pack("=IHHII", 16 + len(payload), kind, flags, number, 0) + payload
    return text + bytes(-len(text) % 4)


def acknowledgement(number: int, error: int = 0, words: bytes = b"", kind: int = 2) -> bytes:
    payload = struct.pack("=i", -error)
    if kind == 2:
        payload += struct.pack("=IHHII", 16, KIND, 5, number, 0)
    if words:
        payload += attribute(WORDS, words)
    return message(kind, number, payload, HAS_WORDS if words else 0)


class Kernel:
    """A socket that has its answers ready: datagrams with the port that each comes from."""

    def __init__(self, *answers: bytes, port: int = 0) -> None:
        self.answers = [(answer, (port, 0)) for answer in answers]
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent = data

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        assert size >= 32_768  # what the kernel fills when it lists something
        if not self.answers:
            raise TimeoutError("timed out")
        return self.answers.pop(0)

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def setsockopt(self, *_: int) -> None:
        raise OSError(errno.ENOPROTOOPT, "as an old kernel says")

    def close(self) -> None:
        self.answers = []


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(socket, "socket", lambda *_: made)
    return made


@pytest.mark.parametrize("value", [b"", b"1", b"1234", b"12345"])
def test_attributes_and_back(value: bytes) -> None:
    data = attribute(3, value) + nested(9, [attribute(1, value), attribute(2, b"x")])
    assert len(data) % 4 == 0
    found = attributes_in(data)
    assert found.keys() == {3, 9}
    assert found[3] == value
    assert attributes_in(found[9]) == {1: value, 2: b"x"}


def test_an_attribute_byte_by_byte() -> None:
    # netlink(7): length without the padding, type, value, padding to 4 bytes.
    assert attribute(5, b"abc") == struct.pack("=HH", 7, 5) + b"abc\0"
    assert nested(5, [attribute(1, b"ab")]) == struct.pack("=HHHH2sxx", 12, 0x8005, 6, 1, b"ab")


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_no_messages(seed: int) -> None:
    source = random.Random(seed)
    good = attribute(1, b"12") + attribute(2, b"345678")
    for _ in range(2000):
        data = bytearray(message(KIND, 1, good) + source.randbytes(source.randrange(40)))
        for _ in range(source.randrange(4)):
            data[source.randrange(len(data))] = source.choice((0, 1, 3, 4, 255))
        data = data[: source.randrange(len(data) + 1)]
        for _, _, payload in messages_in(bytes(data), 1):
            assert all(len(value) <= len(payload) for value in attributes_in(payload).values())


def test_a_request(kernel: Kernel) -> None:
    kernel.answers = [
        (message(KIND, 1, b"FIXD" + attribute(1, b"a")), (0, 0)),
        (acknowledgement(1), (0, 0)),
    ]
    with Netlink({KIND: 4}) as asked:
        assert asked.request(KIND, b"body", MAKE_NEW) == [Message(KIND, b"FIXD", {1: b"a"})]
    length, kind, flags, number, port = struct.unpack_from("=IHHII", kernel.sent)
    assert (length, kind, number, port) == (20, KIND, 1, 0)
    # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL
    assert flags == 0x001 | 0x004 | 0x400 | 0x200
    assert kernel.sent[16:] == b"body"


def test_a_dump_in_several_datagrams(kernel: Kernel) -> None:
    one = message(KIND, 1, b"a" + bytes(3)), message(NOT_OURS, 1), message(KIND, 9, b"late")
    kernel.answers = [
        (b"".join(one), (0, 0)),
        (message(KIND, 1, b"b") + acknowledgement(1, kind=3), (0, 0)),
    ]
    answers = Netlink({KIND: 1}).dump(KIND, b"")
    assert [(each.kind, each.fixed) for each in answers] == [
        (KIND, b"a"),
        (NOT_OURS, b""),
        (KIND, b"b"),
    ]
    assert struct.unpack_from("=IHH", kernel.sent)[2] == 0x301  # NLM_F_REQUEST, NLM_F_DUMP


CHANGED = 0x10  # NLM_F_DUMP_INTR


@pytest.mark.parametrize("where", [KIND, 3])
def test_a_list_that_changes_meanwhile_is_asked_for_again(kernel: Kernel, where: int) -> None:
    def listed(number: int, content: bytes, changed: int) -> tuple[bytes, tuple[int, int]]:
        flags = {where: changed}
        parts = message(KIND, number, content, flags.get(KIND, 0)), message(KIND, number, b"z")
        return b"".join(parts) + message(3, number, bytes(4), flags.get(3, 0)), (0, 0)

    kernel.answers = [listed(1, b"a", CHANGED), listed(2, b"b", CHANGED), listed(3, b"c", 0)]
    asked = Netlink({KIND: 1})
    assert [each.fixed for each in asked.dump(KIND, b"")] == [b"c", b"z"]
    # One that never stands still has to do as it is.
    contents = [b"%d" % number for number in range(9)]
    kernel.answers = [listed(4 + at, content, CHANGED) for at, content in enumerate(contents)]
    assert [each.fixed for each in asked.dump(KIND, b"")] == [b"4", b"z"]
    assert len(kernel.answers) == 4


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize(
    ("words", "text"),
    [(b"", "File exists"), (b"Nope.\0", "File exists (Nope)"), (b"\xff\0", "File exists (\ufffd)")],
)
def test_a_refusal_and_its_words(kernel: Kernel, kind: int, words: bytes, text: str) -> None:
    kernel.answers = [(acknowledgement(1, errno.EEXIST, words, kind), (0, 0))]
    with pytest.raises(OSError, match="File exists") as caught:
        Netlink({}).request(KIND, b"")
    assert (caught.value.errno, caught.value.strerror) == (errno.EEXIST, text)


def test_only_the_kernel_is_believed(kernel: Kernel) -> None:
    kernel.answers = [(acknowledgement(1, errno.EPERM), (4711, 0)), (acknowledgement(1), (0, 0))]
    assert Netlink({}).request(KIND, b"") == []


def test_answers_to_earlier_requests_do_not_count(kernel: Kernel) -> None:
    asked = Netlink({})
    kernel.answers = [(acknowledgement(1), (0, 0))]
    asked.request(KIND, b"")
    kernel.answers = [(acknowledgement(1, errno.EPERM), (0, 0)), (acknowledgement(2), (0, 0))]
    assert asked.request(KIND, b"") == []


@pytest.mark.parametrize("answer", [b"", b"short", message(3, 1), message(2, 1, b"x")])
def test_an_acknowledgement_that_says_nothing(kernel: Kernel, answer: bytes) -> None:
    kernel.answers = [(answer, (0, 0)), (acknowledgement(1), (0, 0))]
    assert Netlink({}).request(KIND, b"") == []


def test_no_answer(kernel: Kernel) -> None:
    assert not kernel.answers
    with pytest.raises(OSError, match="no answer") as caught:
        Netlink({}).request(KIND, b"")
    assert caught.value.errno == errno.ETIMEDOUT


def test_no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(DeviceError, match="no netlink socket: Address family"):
        Netlink({})
    monkeypatch.setattr(features, "IS_LINUX", False)
    with pytest.raises(DeviceError, match="not yet on this system"):
        Netlink({})


def test_the_real_kernel_explains_itself() -> None:
    get_route = 26
    with Netlink({KIND: 12}) as asked:
        # An address of IPv4 whose prefix is longer than an address.
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 33, 0, 0, 0, 0, 0, 0, 0)
        with pytest.raises(OSError, match="Invalid argument") as caught:
            asked.request(get_route, body + attribute(1, b"\x7f\0\0\1"))
        assert caught.value.errno == errno.EINVAL
        # And it answers the next request all the same.
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
        (answer,) = asked.request(get_route, body + attribute(1, b"\x7f\0\0\1"))
        assert answer.kind == KIND
    assert netlink._BUFFER >= 32_768
