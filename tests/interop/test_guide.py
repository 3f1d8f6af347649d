"""The recipes of docs/guide.md, run as they are printed.

Only the names in them are given addresses, those of the lab; and each host has an /etc/wireguard
and an /etc/openvpn of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.guide import GUIDE, VPN_RECIPES, Sides, recipes, sides
from support.own_files import need_tun
from support.sshd import ssh_server
from support.tools import need
from support.wireguard import prepare_wireguard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Sides]:
    with sides(tmp_path) as found:
        yield found


def test_every_recipe_of_the_guide_is_run() -> None:
    found = recipes(GUIDE.read_text())
    assert {name for name, _ in found} == {*FIRST, *WIREGUARD, *OPENVPN, *VPN_RECIPES}
    assert all((name, side) in found for name, _ in found for side in ("left", "right"))


# The recipes that this file runs.
FIRST = {"secret", "first", "ssh"}
WIREGUARD = {
    *("wireguard-key", "wireguard-file"),
    *("wireguard", "wireguard-handoff", "wireguard-until"),
}
OPENVPN = {"openvpn-key", "openvpn-file", "openvpn-handoff", "openvpn-until"}


def test_the_first_tunnel(both: Sides) -> None:
    both.run("secret")
    with both.running("first") as (one, other):
        assert (one.wait(), other.wait()) == (0, 0)
        assert other.output == b"hello from left\n"
        assert "proven by the secret" in one.errors


def test_ssh(both: Sides, tmp_path: Path) -> None:
    both.run("secret")
    with ssh_server(both.lab.right, tmp_path) as log_in, both.running("ssh") as (one, _):
        one.says("connected")
        assert log_in(both.lab.left, "-p", "2222").startswith(b"hello\nas root on ")


@pytest.fixture
def wireguard(both: Sides) -> Sides:
    prepare_wireguard(both)
    return both


@pytest.mark.parametrize("recipe", ["wireguard", "wireguard-handoff", "wireguard-until"])
def test_wireguard(recipe: str, wireguard: Sides) -> None:
    with wireguard.running(recipe):
        wireguard.ping("10.77.0.1", "10.77.0.2")


@pytest.fixture
def openvpn(both: Sides) -> Sides:
    need("openvpn", package="openvpn")
    need("openssl", package="openssl")
    need("ping", package="iputils-ping")
    need_tun()
    both.run("openvpn-key")
    both.exchange("/etc/openvpn", "fingerprint")
    both.run("openvpn-file")
    return both


# Debian's, which says what is started at boot. It reads AUTOSTART from a file of this machine's.
GENERATOR = "/usr/lib/systemd/system-generators/openvpn-generator"
AT_BOOT = """\
[ ! -e /etc/default/openvpn ] || mount --bind /dev/null /etc/default/openvpn
exec "$0" at-boot
"""


def test_nothing_starts_openvpn_at_boot(openvpn: Sides) -> None:
    """A second OpenVPN would have the device's addresses, and listen without a path."""
    generator = need(GENERATOR, package="openvpn")
    for side in (openvpn.left, openvpn.right):
        (side.own("/etc/openvpn") / "other.conf").touch()
        side.run(["sh", "-e", "-c", AT_BOOT, generator])
        found = {path.name for path in (side.home / "at-boot" / "openvpn.service.wants").iterdir()}
        assert found == {"openvpn@other.service"}


@pytest.mark.parametrize("recipe", ["openvpn-handoff", "openvpn-until"])
def test_openvpn(recipe: str, openvpn: Sides) -> None:
    with openvpn.running(recipe) as programs:
        for program in programs:
            # OpenVPN writes its log to standard output.
            program.wait_until(
                lambda program=program: b"Initialization Sequence Completed" in program.output,  # type: ignore[misc]
                "OpenVPN's initialization",
            )
        openvpn.ping("10.78.0.1", "10.78.0.2")
