from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import UsageError
from nat_traverse.target import Target, bracketed, other_side, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40000:gw.example.org:40001", (40000, "gw.example.org", 40001)),
        ("0:192.0.2.1:1", (0, "192.0.2.1", 1)),
        ("00007:192.0.2.1:65535", (7, "192.0.2.1", 65535)),
        ("0" * 5000 + "7:h:1", (7, "h", 1)),
        ("1:2001:db8::7:2", (1, "2001:db8::7", 2)),
        ("1:[2001:DB8:0:0::7]:2", (1, "2001:db8::7", 2)),
        ("1:::1:2", (1, "::1", 2)),
        ("1:fe80::1%eth0:2", (1, "fe80::1%eth0", 2)),
        ("1:[fe80::1%3]:2", (1, "fe80::1%3", 2)),
        ("1:::ffff:192.0.2.1:2", (1, "192.0.2.1", 2)),
        ("1:[::ffff:c000:201]:2", (1, "192.0.2.1", 2)),
        ("1:127.1:2", (1, "127.1", 2)),
        ("1:0x7f000001:2", (1, "0x7f000001", 2)),
        ("1:b\u00fccher.example:2", (1, "b\u00fccher.example", 2)),
    ],
)
def test_accepted(text: str, expected: tuple[int, str, int]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not LOCAL_PORT:PEER:REMOTE_PORT"),
        ("h:1", "'h:1' is not LOCAL_PORT:PEER:REMOTE_PORT"),
        (":h:1", "LOCAL_PORT is missing (0"),
        ("1:h:", "REMOTE_PORT is missing."),
        ("1::2", "PEER, the public address"),
        ("1:h:0", "REMOTE_PORT is 0"),
        ("65536:h:1", "LOCAL_PORT is 65536, and the highest port is 65535"),
        ("1:h:" + "9" * 5000, "and the highest port is 65535"),
        ("1_0:h:1", "LOCAL_PORT is '1_0', which is not a number"),
        ("\u0663:h:1", "LOCAL_PORT is '\u0663', which is not a number"),
        ("1:h:\u00b2", "REMOTE_PORT is '\u00b2', which is not a number"),
        ("+1:h:1", "LOCAL_PORT is '+1', which is not a number"),
        ("1:h:1\n", "REMOTE_PORT is '1\\n', which is not a number"),
        ("1:0:2", "PEER is 0"),
        ("1:a b:2", "PEER is 'a b', and no address or name has a blank"),
        ("1:a\u00a0b:2", "PEER is 'a\\xa0b'"),
        ("1:a\x1b[2Jb:2", "PEER is 'a\\x1b[2Jb'"),
        ("1:a\udcff:2", "PEER is 'a\\udcff'"),
        ("1:h:3:2", "PEER is 'h:3', which is not an IPv6 address"),
        ("1:[h]:2", "PEER is '[h]', which is not an IPv6 address"),
        ("1:[::1:2", "PEER is '[::1', which is not an IPv6 address"),
        ("1:[]:2", "PEER is '[]', which is not an IPv6 address"),
        ("1:[192.0.2.1]:2", "PEER is '[192.0.2.1]', but brackets are for IPv6"),
        ("1:0.0.0.0:2", "PEER is 0.0.0.0, which stands for no host"),
        ("1::::2", "PEER is ::, which stands for no host"),
        ("1:::ffff:0.0.0.0:2", "PEER is 0.0.0.0, which stands for no host"),
        ("1:239.1.2.3:2", "PEER is 239.1.2.3, a multicast address"),
        ("1:ff02::1:2", "PEER is ff02::1, a multicast address"),
        ("1:255.255.255.255:2", "PEER is 255.255.255.255, the broadcast address"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    first, form = str(caught.value).splitlines()
    assert reason in first
    assert form == (
        "The form is LOCAL_PORT:PEER:REMOTE_PORT, for example 40000:gw.example.org:40001."
    )


@given(st.text(st.characters(exclude_categories=())))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        target = parse(text)
    except UsageError:
        return
    assert parse(str(target)) == target


@given(
    st.integers(0, 65535),
    st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str), st.just("a.example")),
    st.integers(1, 65535),
)
def test_what_is_read_can_be_written(local: int, peer: str, remote: int) -> None:
    try:
        target = parse(f"{local}:{peer}:{remote}")
    except UsageError as error:  # a few random addresses are nobody's
        assert "no host" in str(error) or "one other end" in str(error)  # noqa: PT017 (the only error allowed)
        return
    assert (target.local_port, target.remote_port) == (local, remote)
    assert parse(str(target)) == target


def test_the_other_side() -> None:
    target = Target(0, "gw.example.org", 40001)
    assert other_side(target, 40000, None) == (
        "nat-traverse 40001:<public address of this side>:40000"
    )
    assert other_side(target, 40000, "192.0.2.9") == "nat-traverse 40001:192.0.2.9:40000"
    assert other_side(target, 40000, "2001:db8::9") == "nat-traverse 40001:[2001:db8::9]:40000"


def test_brackets() -> None:
    assert bracketed("::1") == "[::1]"
    assert bracketed("h") == "h"
