from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry import binding
from nat_traverse.carry.binding import Bound, bind
from nat_traverse.errors import LocalNetworkError
from nat_traverse.wire.request import Address, Kind
from support.forwards import sockets_open

if TYPE_CHECKING:
    from pathlib import Path

    from nat_traverse.model import Endpoint


def bound(kind: Kind, host: str, port: int = 0) -> Bound:
    return asyncio.run(bind(Address(kind, host, port)))


def names(found: Bound) -> list[str]:
    return [sock.getsockname()[0] for sock in found.sockets]


@pytest.mark.parametrize("kind", [Kind.TCP, Kind.UDP])
@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        ("LOCALHOST", ["127.0.0.1", "::1"]),
        ("127.0.0.2", ["127.0.0.2"]),
        ("::1", ["::1"]),
        ("*", ["0.0.0.0", "::"]),  # noqa: S104 (it was written)
        ("0.0.0.0", ["0.0.0.0"]),  # noqa: S104
    ],
)
def test_addresses(kind: Kind, host: str, addresses: list[str]) -> None:
    found = bound(kind, host)
    assert names(found) == addresses
    (port,) = {sock.getsockname()[1] for sock in found.sockets}
    assert found.address == Address(kind, host, port)
    assert found.place == Address(kind, host, port).place
    found.close()


def test_a_port_that_is_taken_in_one_family_only() -> None:
    before = sockets_open()
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LocalNetworkError, match=f"localhost:{port}.*Another program") as caught:
            bound(Kind.TCP, "localhost", port)
    assert caught.value.exit_code == errno.EADDRINUSE
    assert sockets_open() == before


def test_a_free_port_is_free_in_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        taken = other.getsockname()[1]
        bind_one = binding._bind_one
        calls = 0

        def unlucky(kind: Kind, endpoint: Endpoint) -> socket.socket:
            nonlocal calls
            calls += 1
            return bind_one(kind, endpoint._replace(port=taken) if calls == 1 else endpoint)

        monkeypatch.setattr(binding, "_bind_one", unlucky)
        found = bound(Kind.TCP, "localhost")
        assert found.address.port != taken
        assert len(found.sockets) == 2
        found.close()


def test_a_family_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    bind_one = binding._bind_one
    missing = {"::1"}

    def without(kind: Kind, endpoint: Endpoint) -> socket.socket:
        if endpoint.host in missing:
            raise OSError(errno.EADDRNOTAVAIL, "")
        return bind_one(kind, endpoint)

    monkeypatch.setattr(binding, "_bind_one", without)
    found = bound(Kind.TCP, "localhost")
    assert names(found) == ["127.0.0.1"]
    found.close()
    missing.add("127.0.0.1")
    with pytest.raises(LocalNetworkError) as caught:
        bound(Kind.TCP, "localhost")
    assert caught.value.exit_code == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("host", "number"), [("192.0.2.1", errno.EADDRNOTAVAIL), ("x.invalid", errno.EINVAL)]
)
def test_what_is_not_ours(host: str, number: int) -> None:
    with pytest.raises(LocalNetworkError) as caught:
        bound(Kind.TCP, host)
    assert caught.value.exit_code == number


def test_a_path_is_the_owners_alone_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    found = bound(Kind.UNIX, str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found.place == str(path)
    found.close()
    assert not path.exists()


def test_a_path_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    before, mask = sockets_open(), os.umask(0o022)
    try:
        with pytest.raises(LocalNetworkError, match="exists already") as caught:
            bound(Kind.UNIX, str(path))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)
    assert caught.value.exit_code == errno.EADDRINUSE
    assert path.exists()
    assert sockets_open() == before


def test_a_path_that_became_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    found = bound(Kind.UNIX, str(path))
    path.rename(tmp_path / "y")  # keeps its inode from being used again
    path.write_text("precious")
    found.close()
    assert path.read_text() == "precious"


def test_a_path_in_no_directory(tmp_path: Path) -> None:
    with pytest.raises(LocalNetworkError) as caught:
        bound(Kind.UNIX, str(tmp_path / "missing" / "x"))
    assert caught.value.exit_code == errno.ENOENT


def test_ports_of_the_system_are_explained() -> None:
    address = Address(Kind.TCP, "localhost", 80)
    assert "below 1024" in binding._hint(address, errno.EACCES)
    assert not binding._hint(address, errno.ENOENT)
