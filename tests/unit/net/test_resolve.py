"""Names and written-out addresses. No name server is asked: what it would say is given."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.errors import LocalNetworkError
from nat_traverse.model import Endpoint
from nat_traverse.net import resolve as module
from nat_traverse.net.resolve import parse_literal, resolve, select


def answer(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    def getaddrinfo(*_: object, **__: object) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def v4(host: str) -> tuple[Any, ...]:
    return (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, 9))


def v6(host: str, scope: int = 0) -> tuple[Any, ...]:
    return (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (host, 9, 0, scope))


def test_addresses_of_no_host_or_of_many_are_left_out() -> None:
    nobody = [v4("0.0.0.0"), v4("224.0.0.1"), v4("255.255.255.255"), v6("::"), v6("ff02::1")]  # noqa: S104 (not bound)
    assert select([*nobody, v4("192.0.2.1")]) == [Endpoint("192.0.2.1", 9)]


@pytest.mark.parametrize("host", ["00", "0x0", "224.1"])
def test_a_number_in_disguise_that_is_no_host_is_unknown(host: str) -> None:
    with pytest.raises(LocalNetworkError, match="Unknown host") as caught:
        asyncio.run(resolve(host, 9))
    assert caught.value.exit_code == errno.EINVAL


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("192.0.2.1", Endpoint("192.0.2.1", 9)),
        ("2001:DB8:0:0::7", Endpoint("2001:db8::7", 9)),
        ("::ffff:192.0.2.1", Endpoint("192.0.2.1", 9)),
        ("::ffff:c000:201", Endpoint("192.0.2.1", 9)),
        ("fe80::1%7", Endpoint("fe80::1", 9, 7)),
        ("fe80::1%lo", Endpoint("fe80::1", 9, 1)),
    ],
)
def test_literals(host: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, AssertionError("a literal needs no lookup"))
    monkeypatch.setattr(socket, "if_nametoindex", {"lo": 1}.__getitem__)
    assert asyncio.run(resolve(host, 9)) == [endpoint]


@pytest.mark.parametrize(
    "host",
    ["", "example.org", "127.1", "192.0.2.1x", "192.0.2.1%lo", "[::1]", ":::", "fe80::1%"],
)
def test_not_literals(host: str) -> None:
    assert parse_literal(host, 9) is None


def test_an_unknown_zone_is_not_a_literal() -> None:
    assert parse_literal("fe80::1%no-such-interface", 9) is None


@given(st.text(max_size=30))
def test_any_text_is_a_literal_or_not(host: str) -> None:
    parse_literal(host, 9)


@given(st.ip_addresses())
def test_every_address_is_canonical(address: Any) -> None:
    endpoint = parse_literal(address.exploded, 9)
    assert endpoint is not None
    mapped = getattr(address, "ipv4_mapped", None)
    packed = (mapped or address).packed
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    assert socket.inet_pton(family, endpoint.host) == packed


def test_a_name_gives_all_addresses_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [v6("2001:db8::1"), v4("192.0.2.1"), v6("fe80::1", 3), v4("192.0.2.2")]
    answer(monkeypatch, found)
    assert asyncio.run(resolve("peer.example", 9)) == [
        Endpoint("2001:db8::1", 9),
        Endpoint("192.0.2.1", 9),
        Endpoint("fe80::1", 9, 3),
        Endpoint("192.0.2.2", 9),
    ]


def test_select_leaves_out_what_it_has_already() -> None:
    unix = (socket.AF_UNIX, 0, 0, "", ("/x",))
    found = [v4("192.0.2.1"), v6("::ffff:192.0.2.1"), unix, v4("192.0.2.1"), v6("::1")]
    assert select(found) == [Endpoint("192.0.2.1", 9), Endpoint("::1", 9)]


def test_select_is_bounded() -> None:
    found = [v4(f"192.0.2.{number}") for number in range(100)]
    assert select(found) == [Endpoint(f"192.0.2.{number}", 9) for number in range(16)]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "Unknown host peer.example"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "name server does not answer"),
        (OSError(errno.EMFILE, "x"), "Unknown host"),
        (UnicodeError("label too long"), "Unknown host"),
        (ValueError("embedded null"), "Unknown host"),
        ([], "Unknown host"),
    ],
)
def test_failures_are_22_as_ever(monkeypatch: pytest.MonkeyPatch, result: Any, text: str) -> None:
    answer(monkeypatch, result)
    with pytest.raises(LocalNetworkError, match=text) as caught:
        asyncio.run(resolve("peer.example", 9))
    assert caught.value.exit_code == errno.EINVAL


@pytest.mark.parametrize("host", ["a" * 70 + ".invalid", "nul\0", "white space.invalid"])
def test_impossible_names(host: str) -> None:
    with pytest.raises(LocalNetworkError):
        asyncio.run(resolve(host, 9))


def test_nobody_waits_for_a_resolver_after_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    asked = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        asked.set()
        release.wait(60)
        return [v4("192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def cancelled() -> None:
        task = asyncio.create_task(resolve("peer.example", 9))
        await asyncio.to_thread(asked.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = set(threading.enumerate())
    asyncio.run(cancelled())
    assert not release.is_set(), "the loop ended while the resolver was still busy"
    (resolver,) = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name == "resolve peer.example"
    ]
    release.set()
    resolver.join(60)
    assert not resolver.is_alive()


def test_an_answer_after_a_cancellation_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    release = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        release.wait(60)
        return [v4("192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: pytest.fail(str(context)))
        task = asyncio.create_task(module._look_up("peer.example", 9))
        await asyncio.sleep(0)
        task.cancel()
        release.set()
        for thread in threading.enumerate():
            if thread.name == "resolve peer.example":
                await asyncio.to_thread(thread.join)
        answered.set()
        await asyncio.sleep(0)

    asyncio.run(cancelled())
    assert answered.is_set()
