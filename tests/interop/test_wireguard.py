"""--wireguard with WireGuard itself (wireguard-go), behind the kernel's own NAT."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind
from support.guide import sides
from support.lab import eventually
from support.programs import PATIENCE
from support.tools import need
from support.wireguard import (
    DEVICE,
    crash,
    devices,
    endpoint,
    impatient,
    impatient_service,
    keep_alive_often,
    listen_port,
    prepare_wireguard,
    status,
)

if TYPE_CHECKING:
    from pathlib import Path

    from support.programs import Program

AGREED = 51820
OWN, OTHER = "10.77.0.1", "10.77.0.2"

# The search that users wait half a minute for takes a second with this.
FAST = ("--rate", "2000")


def test_ports_that_were_found_and_found_again(tmp_path: Path) -> None:
    """Right's gateway picks ports by chance, and then forgets the one that was found."""
    need("conntrack", package="conntrack")
    with sides(tmp_path, Kind.DROP, Kind.RANDOM) as both:
        prepare_wireguard(both)
        keep_alive_often(both.left)
        keep_alive_often(both.right)
        left_public = both.lab.left.public.v4
        with impatient(both.left, 6.0, *FAST) as one, impatient(both.right, 6.0, *FAST) as other:
            used = other.event("wireguard-endpoint")
            assert used["local_port"] != AGREED
            assert used["peer"] == f"{left_public}:{AGREED}"
            assert listen_port(both.right) == used["local_port"]
            first = one.event("wireguard-endpoint")
            assert first["local_port"] == AGREED == listen_port(both.left)
            assert first["peer"] == endpoint(both.left)
            assert first["keepalive"] == 1
            both.ping(OWN, OTHER)
            for program in (one, other):
                program.event("wireguard-handshake")

            # WireGuard alone would send from a port that left's gateway knows nothing of, for ever.
            both.lab.right_gateways[0].run(["conntrack", "-F"])
            for program in (one, other):
                program.event("lost")
                program.wait_until(
                    lambda program=program: names(program).count("wireguard-endpoint") >= 2,  # type: ignore[misc]
                    "another path",
                )
            assert endpoint(both.left) != first["peer"]
            both.ping(OWN, OTHER)
            for program in (one, other):
                assert names(program).count("wireguard-up") == 1
                program.signal(signal.SIGTERM)
                assert program.wait() == -signal.SIGTERM
                assert names(program)[-1] == "wireguard-down"
        assert devices(both.left) == devices(both.right) == []


def names(program: Program) -> list[str]:
    return [event["event"] for event in program.events]


def test_a_device_that_is_up_is_used_and_left(tmp_path: Path) -> None:
    with sides(tmp_path) as both:
        prepare_wireguard(both)
        both.left.run(["wg-quick", "up", DEVICE])
        before = endpoint(both.left)

        # Nobody is there: the device gets its port back.
        with both.left.start(["nat-traverse", "--json", "--wireguard", DEVICE]) as alone:
            alone.event("opened")
            assert listen_port(both.left) != AGREED
            alone.signal(signal.SIGINT)
            assert alone.wait() == -signal.SIGINT
        assert (listen_port(both.left), endpoint(both.left)) == (AGREED, before)

        with (
            both.left.start(["nat-traverse", "--json", "--wireguard", DEVICE]) as one,
            both.right.start(["nat-traverse", "--json", "--wireguard", DEVICE]) as other,
        ):
            both.ping(OWN, OTHER)
            one.event("wireguard-handshake")
            one.signal(signal.SIGTERM)
            assert one.wait() == -signal.SIGTERM
            assert not {"wireguard-up", "wireguard-down"} & set(names(one))
            assert devices(both.left) == [DEVICE]

            # One that works is not disturbed.
            with both.left.start(["nat-traverse", "--json", "--wireguard", DEVICE]) as again:
                again.event("wireguard-found")
                both.ping(OWN, OTHER)
                assert "opened" not in names(again)
            other.event("wireguard-up")


def test_a_service_whose_wireguard_crashes(tmp_path: Path) -> None:
    """On both sides, so that nobody waits for a silence."""
    with sides(tmp_path) as both:
        prepare_wireguard(both)
        with impatient_service(both.left) as one, impatient_service(both.right) as other:
            for paths in (1, 2):
                for program in (one, other):
                    program.wait_until(
                        lambda program=program, paths=paths: (  # type: ignore[misc]
                            names(program).count("wireguard-handshake") >= paths
                        ),
                        "a handshake",
                    )
                told = status(both.left)
                assert (told["state"], told["paths"], told["sent"]) == ("connected", paths, None)
                assert told["peer"] == told["wireguard"]["endpoint"] == endpoint(both.left)
                assert told["wireguard"]["handshake_age"] < PATIENCE
                assert told["wireguard"]["received"] > 0
                if paths == 1:
                    crash(both.left)
                    crash(both.right)
            both.ping(OWN, OTHER)
            lost = one.event("lost")
            assert lost["message"] == "wireguard: the device nat is gone."
            for program in (one, other):
                assert names(program).count("wireguard-up") == 2
                program.signal(signal.SIGTERM)
                assert program.wait() == -signal.SIGTERM
        assert devices(both.left) == devices(both.right) == []


@pytest.mark.parametrize(
    ("moment", "number"), [("opened", signal.SIGINT), ("wireguard-endpoint", signal.SIGHUP)]
)
def test_nothing_is_left(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    with sides(tmp_path) as both:
        prepare_wireguard(both)
        start = ["nat-traverse", "--json", "--wireguard", DEVICE]
        with both.left.start(start) as one, both.right.start(start):
            one.event(moment)
            with both.left.start(start) as second:
                second.says("another nat-traverse keeps the device nat already")
                assert second.wait() == 1
            one.signal(number)
            assert one.wait() == -number
        eventually(lambda: not devices(both.left), "the end of the device")
