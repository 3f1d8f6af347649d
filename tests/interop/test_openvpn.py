"""OpenVPN over a punched port: with --quit-after-connect in a shell's loop, and with --handoff."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from support.programs import OURS, Program
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORT = "60001"
TUNNEL = {"left": ("10.9.0.1", "10.9.0.2"), "right": ("10.9.0.2", "10.9.0.1")}


@pytest.fixture
def lab() -> Iterator[Lab]:
    need("openvpn", package="openvpn")
    need("ping", package="iputils-ping")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        if os.environ.get("CI") or os.geteuid() == 0:
            pytest.fail("/dev/net/tun can't be opened: OpenVPN needs it (modprobe tun)")
        pytest.skip("/dev/net/tun can't be opened: run the tests as root to see OpenVPN")
    with Lab(Kind.DROP, Kind.DROP) as lab:
        yield lab


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["openvpn", "--genkey", "secret", str(path)], check=True, capture_output=True)
    return path


def openvpn(side: str, key: Path) -> str:
    """Return the part of OpenVPN's command line that is the same in both examples."""
    mine, yours = TUNNEL[side]
    return (
        f"exec openvpn --dev tun0 --dev-type tun --ifconfig {mine} {yours} --secret {key}"
        " --cipher AES-256-CBC --providers legacy default --ping 5 --ping-restart 60"
    )


def run_loop(lab: Lab, side: str, key: Path, *options: str) -> Program:
    """Run the loop of the manual: try until there is a path, then start OpenVPN on the port."""
    host, peer = (lab.left, lab.right) if side == "left" else (lab.right, lab.left)
    address = peer.public.v4
    script = f"""
    until {OURS} --quit-after-connect {" ".join(options)} {PORT}:{address}:{PORT}; do
        echo "status $?" >&2
        sleep 1
    done
    {openvpn(side, key)} --lport {PORT} --remote {address} {PORT}
    """
    return Program(["sh", "-c", script], host)


def run_handoff(lab: Lab, side: str, key: Path) -> Program:
    """Run the same with one option."""
    host, peer = (lab.left, lab.right) if side == "left" else (lab.right, lab.left)
    command = f"{openvpn(side, key)} --lport {{local_port}} --remote {{peer_host}} {{peer_port}}"
    return Program([OURS, "--handoff", command, f"{PORT}:{peer.public.v4}:{PORT}"], host)


def ping_through(lab: Lab, left: Program, right: Program) -> None:
    # OpenVPN writes its log to standard output.
    for program in (left, right):
        program.wait_until(
            lambda program=program: b"Initialization Sequence Completed" in program.output,  # type: ignore[misc]
            "OpenVPN's initialization",
        )
    for host, (_, other) in ((lab.left, TUNNEL["left"]), (lab.right, TUNNEL["right"])):
        ping = host.run(["ping", "-c", "3", "-i", "0.2", "-W", "5", "-I", "tun0", other])
        assert ping.returncode == 0, ping.stdout + ping.stderr


def test_after_quit_in_an_until_loop(lab: Lab, key: Path) -> None:
    # The first attempts of the left side find nobody, and must not let OpenVPN start.
    with run_loop(lab, "left", key, "--window=1", "--timeout=1") as left:
        left.says("status 4")
        assert b"OpenVPN" not in left.output
        with run_loop(lab, "right", key) as right:
            ping_through(lab, left, right)


def test_by_handoff(lab: Lab, key: Path) -> None:
    with run_handoff(lab, "left", key) as left, run_handoff(lab, "right", key) as right:
        ping_through(lab, left, right)
        # It replaced nat-traverse: the process that was started is OpenVPN itself now.
        for program in (left, right):
            assert b"openvpn" in cmdline(program)


def cmdline(program: Program) -> bytes:
    with open(f"/proc/{program.process.pid}/cmdline", "rb") as file:  # noqa: PTH123
        return file.read()
