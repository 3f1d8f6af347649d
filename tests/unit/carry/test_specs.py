from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.carry.specs import (
    parse_dynamic,
    parse_exposed,
    parse_local,
    parse_remote,
    written_paths,
)
from nat_traverse.errors import UsageError
from nat_traverse.wire.request import (
    Address,
    Connect,
    Kind,
    Listen,
    decode_request,
    encode_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def tcp(host: str, port: int) -> Address:
    return Address(Kind.TCP, host, port)


def udp(host: str, port: int) -> Address:
    return Address(Kind.UDP, host, port)


def unix(path: str) -> Address:
    return Address(Kind.UNIX, path)


FORWARDS = {
    "8080:localhost:80": (tcp("localhost", 8080), tcp("localhost", 80)),
    "0:10.0.0.1:80": (tcp("localhost", 0), tcp("10.0.0.1", 80)),
    "127.0.0.2:8080:a.example:80": (tcp("127.0.0.2", 8080), tcp("a.example", 80)),
    "*:80:[2001:DB8::7]:080": (tcp("*", 80), tcp("2001:db8::7", 80)),
    "0.0.0.0:80:a:80": (tcp("0.0.0.0", 80), tcp("a", 80)),  # noqa: S104 (it was written)
    "[::]:80:a:80": (tcp("::", 80), tcp("a", 80)),
    "[::1]:8080:[fe80::1%eth0]:80": (tcp("::1", 8080), tcp("fe80::1%eth0", 80)),
    "udp/53:[::1]:53": (udp("localhost", 53), udp("::1", 53)),
    "udp/*:53:ns:53": (udp("*", 53), udp("ns", 53)),
    "8080:/run/x.sock": (tcp("localhost", 8080), unix("/run/x.sock")),
    "[::1]:8080:/run/x.sock": (tcp("::1", 8080), unix("/run/x.sock")),
    "/tmp/x:localhost:80": (unix("/tmp/x"), tcp("localhost", 80)),  # noqa: S108 (only parsed)
    "/tmp/x:/run/y": (unix("/tmp/x"), unix("/run/y")),  # noqa: S108
}

WRONG = [
    "",
    ":",
    "80",
    "80:",
    "80:localhost",
    "localhost:80",
    ":localhost:80",
    "80:localhost:",
    "80::80",
    ":80:localhost:80",  # ssh's way to say "everywhere"; here it has to be written
    "80:localhost:0",
    "80:localhost:65536",
    "65536:localhost:80",
    "99999999999999999999:localhost:80",
    "x:localhost:80",
    "+80:localhost:80",
    "8_0:localhost:80",
    "\u0663:localhost:80",
    "80:*:80",
    "80:a*:80",
    "80:::1:80",
    "80:[::1:80",
    "80:::1]:80",
    "80:[[::1]]:80",
    "80:[localhost]:80",
    "80:[127.0.0.1]:80",
    "80:a[::1]:80",
    "80:a b:80",
    "80:a\nb:80",
    "1:2:3:4:5",
    "a:b:80:/run/x",
    "/run/x",
    "udp/53:/run/x",
    "udp//run/x:a:80",
    "udp/53",
    "80:" + "a" * 254 + ":80",
    "80:/" + "a" * 107,
]


@pytest.mark.parametrize("text", FORWARDS)
def test_forwards(text: str) -> None:
    for option, parse in (("-L", parse_local), ("-R", parse_remote)):
        forward = parse(text)
        assert (forward.listen, forward.target) == FORWARDS[text]
        assert forward.text == f"{option} {text}"


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:20])
def test_what_is_no_forward(text: str) -> None:
    for parse, form in ((parse_local, "-L [BIND:]PORT:HOST"), (parse_remote, "-R [BIND:]PORT:")):
        with pytest.raises(UsageError) as caught:
            parse(text)
        assert form in str(caught.value)
        assert "for example" in str(caught.value)


def test_only_paths_of_this_side_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(Path.cwd() / "x")
    assert parse_local("./x:localhost:80").listen == unix(here)
    assert parse_remote("80:./x").target == unix(here)
    assert parse_exposed("./x").address == unix(here)
    with pytest.raises(UsageError, match="begin with /"):
        parse_local("80:./x")
    with pytest.raises(UsageError, match="begin with /"):
        parse_remote("./x:localhost:80")


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("1080", tcp("localhost", 1080)),
        ("0", tcp("localhost", 0)),
        ("*:1080", tcp("*", 1080)),
        ("[::1]:1080", tcp("::1", 1080)),
        ("/run/x", unix("/run/x")),
    ],
)
def test_dynamic_forwards(text: str, listen: Address) -> None:
    dynamic = parse_dynamic(text)
    assert dynamic.listen == listen
    assert dynamic.text == f"-D {text}"


@pytest.mark.parametrize("text", ["", "x", ":1080", "1080:", "a:1080:b", "udp/1080", "::1:1080"])
def test_what_is_no_dynamic_forward(text: str) -> None:
    with pytest.raises(UsageError, match=r"-D \[BIND:\]PORT"):
        parse_dynamic(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("any", None),
        ("ANY", None),
        ("localhost:22", tcp("localhost", 22)),
        ("[::1]:22", tcp("::1", 22)),
        ("*:8080", tcp("*", 8080)),
        ("udp/a:53", udp("a", 53)),
        ("/run/x.sock", unix("/run/x.sock")),
    ],
)
def test_exposed(text: str, address: Address | None) -> None:
    exposed = parse_exposed(text)
    assert exposed.address == address
    assert exposed.text == f"--expose {text}"


@pytest.mark.parametrize(
    "text",
    ["", "22", "localhost", "localhost:", "a:0", "a:*", ":22", "::1:22", "udp//run/x", "/a:1"],
)
def test_what_cannot_be_exposed(text: str) -> None:
    with pytest.raises(UsageError, match="--expose HOST:PORT"):
        parse_exposed(text)


ANYTHING = st.text(st.sampled_from("01289:[]/*.ax% \u0663\x00\udcff"), max_size=14)


def test_paths_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """From / some of them are a part of what they are completed to, or that of them."""
    monkeypatch.chdir("/")
    local, remote = parse_local("./a:/run//b"), parse_remote("[::1]:22:x/[y:z]")
    assert (local.listen, remote.target) == (unix("/a"), unix("/x/[y:z]"))
    assert written_paths(local) == ["./a", "/run//b"]
    assert written_paths(remote) == ["x/[y:z]"]
    assert written_paths(parse_dynamic("./s")) == ["./s"]
    assert written_paths(parse_exposed("./e")) == ["./e"]
    for text in ("any", "udp/ns:53", "[::1]:22"):
        assert written_paths(parse_exposed(text)) == []


@given(ANYTHING | ANYTHING.map("udp/".__add__) | ANYTHING.map("80:".__add__))
def test_anything_is_a_forward_that_can_be_asked_for_or_a_usage_error(text: str) -> None:
    parsers: list[Callable[[str], object]] = [parse_dynamic, parse_exposed]
    for parse in parsers:
        with contextlib.suppress(UsageError):
            parse(text)
    with contextlib.suppress(UsageError):
        target = Connect(parse_local(text).target)
        assert decode_request(encode_request(target)[:-1]) == target
    with contextlib.suppress(UsageError):
        listen = Listen(parse_remote(text).listen)
        assert decode_request(encode_request(listen)[:-1]) == listen
