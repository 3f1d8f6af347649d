from __future__ import annotations

import secrets
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from nat_traverse.net.notify import Notifier

if TYPE_CHECKING:
    from pathlib import Path


def manager(address: str) -> closing[socket.socket]:
    """A service manager that listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(10)
    return closing(sock)


def test_a_socket_with_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": path}, 7)
        notifier.tell(READY="1", STATUS="connected")
        notifier.tell(WATCHDOG="1")
        assert sock.recv(1000) == b"READY=1\nSTATUS=connected"
        assert sock.recv(1000) == b"WATCHDOG=1"


def test_an_abstract_socket() -> None:
    name = f"nat-traverse-test-{secrets.token_hex(8)}"
    with manager(f"\0{name}") as sock:
        Notifier({"NOTIFY_SOCKET": f"@{name}"}, 7).tell(STOPPING="1")
        assert sock.recv(1000) == b"STOPPING=1"


def test_a_value_is_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as sock:
        Notifier({"NOTIFY_SOCKET": path}, 7).tell(STATUS="a\nREADY=1\r\udc80")
        assert sock.recv(1000) == b"STATUS=a READY=1 ?"


@pytest.mark.parametrize("name", ["", "/nowhere/at/all", "@nobody-listens-here", "/x" * 200])
def test_nobody_listens(name: str) -> None:
    Notifier({"NOTIFY_SOCKET": name}, 7).tell(READY="1")
    Notifier({}, 7).tell(READY="1")


def test_a_manager_that_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path):
        notifier = Notifier({"NOTIFY_SOCKET": path}, 7)
        for _ in range(2000):  # more than any queue of datagrams takes
            notifier.tell(WATCHDOG="1")


@pytest.mark.parametrize(
    ("more", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),  # meant for our parent
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "٣"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
)
def test_the_watchdog(more: dict[str, str], interval: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", **more}, 7).watchdog == interval
    assert Notifier(more, 7).watchdog is None  # nobody to tell
