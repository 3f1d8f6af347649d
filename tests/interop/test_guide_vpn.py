"""The recipes of docs/guide.md for nat-traverse's own VPN and for services, run as printed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.guide import Sides, sides
from support.own_files import need_tun
from support.vpns import behind, pings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Sides]:
    need_tun()
    with sides(tmp_path) as found:
        found.run("secret")
        yield found


def test_a_vpn(both: Sides) -> None:
    with both.running("vpn") as (one, other):
        one.says("nat0 is up")
        other.says("nat0 is up")
        both.ping("10.77.0.1", "10.77.0.2")
        both.ping("fd77::1", "fd77::2")


def test_a_lasting_vpn(both: Sides) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user: run the tests as root to see --user")
    with both.running("vpn-lasting"):
        both.ping("10.77.0.1", "10.77.0.2")


def test_a_service(both: Sides) -> None:
    both.run("service-file")
    with both.running("service"):
        both.ping("10.77.0.1", "10.77.0.2")
        both.ping("fd77::1", "fd77::2")
        both.run("service-status")


def test_site_to_site(both: Sides) -> None:
    left, right = both.lab.left, both.lab.right
    with (
        behind(left, "192.168.5.1/24", "192.168.5.10/24") as near,
        behind(right, "192.168.7.1/24", "192.168.7.10/24") as far,
        both.running("site-to-site") as (one, other),
    ):
        one.says("nat0 is up")
        other.says("nat0 is up")
        assert pings(near, "192.168.7.10")
        assert pings(far, "192.168.5.10")
