"""Tunnels that files describe, through the lab's gateways: kept up, and told of truthfully."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import eventually
from support.ordinary import NOBODY, RESTRICTED, only, ordinary
from support.programs import Program
from support.services import Services
from support.sides import LEFT_PORT, RIGHT_PORT, address
from support.vpns import V4, is_reached

if TYPE_CHECKING:
    from collections.abc import Iterator

# s, what is promised: from when the network is there again, and the program has started.
LIMIT = 10.0
# s that a side is away, as a laptop with its lid closed: longer than anything that waits for it.
SLEEP = 90.0

ECHO = """\
import socket
listener = socket.create_server(("127.0.0.1", 8080), backlog=100)
while True:
    accepted, _ = listener.accept()
    with accepted:
        try:
            accepted.sendall(accepted.recv(100))
        except OSError:  # reset: the tunnel was lost
            pass
"""

# Says each time that it was answered.
CLIENT = """\
import socket, time
while True:
    try:
        with socket.create_connection(("127.0.0.1", 9090), 5) as sock:
            sock.settimeout(1)
            sock.sendall(b"x")
            if sock.recv(100) == b"x":
                print("x", end="", flush=True)
    except OSError:
        pass
    time.sleep(0.05)
"""


class Life:
    """Left has a forward to a server of right's, and a client of it that goes on and on; and a VPN.

    Each side's two tunnels are in one process.
    """

    def __init__(self, lab: Lab, services: Services, client: Program) -> None:
        self.lab = lab
        self.services = services
        self._client = client
        to_right = f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}"
        to_left = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
        services.describe("left", to_right, 'L = "9090:127.0.0.1:8080"', "keepalive = 1")
        services.describe("right", to_left, 'expose = "127.0.0.1:8080"', "keepalive = 1")
        to_right = f"{LEFT_PORT + 10}:{address(lab.right)}:{RIGHT_PORT + 10}"
        to_left = f"{RIGHT_PORT + 10}:{address(lab.left)}:{LEFT_PORT + 10}"
        vpn = 'vpn-device = "work0"'
        services.describe("left-vpn", to_right, f'vpn = "{V4[0]}/24"', vpn, "keepalive = 1")
        services.describe("right-vpn", to_left, f'vpn = "{V4[1]}/24"', vpn, "keepalive = 1")
        self.left = services.up("left", "left-vpn", node=lab.left)
        self.right = self.start_right()

    def start_right(self) -> Program:
        return self.services.up("right", "right-vpn", node=self.lab.right)

    def goes_on(self) -> float:
        """Wait until both tunnels carry something; returns how long it took.

        The client has to be answered twice, since the first answer may have been under way.
        """
        begun, mark = time.monotonic(), len(self._client.output) + 2
        self._client.prints(mark)
        is_reached(self.lab.left, V4[1])
        took = time.monotonic() - begun
        # `status` tells the truth: it knows of both, and that the peer was heard just now.
        for name in ("left", "left-vpn"):
            told = self.services.ask(name)
            assert told["state"] == "connected"
            assert told["last_contact"] < LIMIT
        return took

    def device(self) -> int:
        """Return the number of left's device, which another one would not have."""
        shown = self.lab.left.run(["ip", "-json", "link", "show", "work0"]).stdout
        return int(json.loads(shown)[0]["ifindex"])


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with (
        Lab(Kind.DROP, Kind.DROP) as lab,
        Services(tmp_path) as services,
        Program([sys.executable, "-c", ECHO], lab.right),
    ):
        eventually(lambda: lab.right.run(["ss", "-Hltn", "sport = :8080"]).stdout, "the server")
        with Program([sys.executable, "-c", CLIENT], lab.left) as client:
            yield Life(lab, services, client)


def test_a_peer_that_is_killed_and_started_again(life: Life) -> None:
    services = life.services
    life.goes_on()
    device = life.device()
    told = services.comes_to("left", "connected")
    assert services.ask("left-vpn")["vpn"]["device"] == "work0"
    assert told["peer"] == f"{address(life.lab.right)}:{RIGHT_PORT}"
    assert told["observed"] == f"{address(life.lab.left)}:{LEFT_PORT}"
    assert (told["proof"], told["paths"]) == ("secret", 1)
    assert services.status().returncode == 0
    life.right.signal(signal.SIGKILL)
    life.right.wait()
    lost = services.comes_to("left", "searching-again")
    services.comes_to("left-vpn", "searching-again")
    assert lost["peer"] is None
    assert lost["problem"]
    assert lost["sent"] >= told["sent"]
    both = services.status("left", "right")
    assert both.returncode == 3
    assert "no tunnel 'right' running" in both.stderr
    assert "state: searching again" in both.stdout
    life.right = life.start_right()
    services.comes_to("right", "searching")  # it has started
    assert life.goes_on() < LIMIT
    assert life.device() == device
    told = services.ask("left")
    assert (told["state"], told["paths"], told["problem"]) == ("connected", 2, None)
    assert told["sent"] > lost["sent"]
    # Who is killed leaves the name free, who lives does not.
    again = services.up("left", node=life.lab.left)
    assert again.wait() == errno.EADDRINUSE
    assert services.ask("left")["state"] == "connected"
    for program, number in ((life.left, signal.SIGTERM), (life.right, signal.SIGINT)):
        program.signal(number)
        assert program.wait() == -number
    assert services.left_over == []
    assert life.lab.left.run(["ip", "link", "show", "work0"]).returncode != 0


def test_gateways_that_forget_and_a_host_that_moves(life: Life) -> None:
    life.goes_on()
    device = life.device()
    for gateway in (*life.lab.left_gateways, *life.lab.right_gateways):
        assert gateway.run(["conntrack", "-F"]).returncode == 0
    assert life.goes_on() < LIMIT
    # From a wireless to a wired network, say: for a second there is none, then another address.
    moved = life.lab.left.run(["sh", "-ec", MOVE])
    assert moved.returncode == 0, moved.stderr
    assert life.goes_on() < LIMIT
    assert life.device() == device
    assert life.left.process.poll() is None


MOVE = """\
set -- $(ip -4 -o address show scope global)
device=$2 old=$4
gateway=$(ip -4 route show default | awk '{print $3}')
ip address del $old dev $device
sleep 1
ip address add ${old%.*}.77/${old#*/} dev $device
ip route replace default via $gateway dev $device
"""


def test_a_side_that_sleeps(life: Life) -> None:
    services = life.services
    life.goes_on()
    device = life.device()
    life.right.signal(signal.SIGSTOP)
    begun = time.monotonic()
    for name in ("left", "left-vpn"):
        services.comes_to(name, "searching-again")
    status = services.status("right")
    assert status.returncode == 1
    assert "state: not answering" in status.stdout
    time.sleep(max(0.0, begun + SLEEP - time.monotonic()))
    assert services.ask("left-vpn")["state"] == "searching-again"
    life.right.signal(signal.SIGCONT)
    assert life.goes_on() < LIMIT
    assert life.device() == device
    assert services.status("--json", "left", "right", "left-vpn", "right-vpn").returncode == 0


def test_a_vpn_with_the_rights_of_the_unit(tmp_path: Path) -> None:
    """As far as they can be had without systemd; see tests/unit/test_systemd.py."""
    is_root = os.geteuid() == 0
    with Lab(Kind.DROP, Kind.DROP) as lab, ordinary(*only("net_admin")) as (python, environment):
        directory = tmp_path
        if is_root:  # whose directory is within nobody else's reach
            directory = Path(environment["PYTHONPATH"], "service")
            directory.mkdir()
        with Services(directory) as services:
            to_right = f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}"
            to_left = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
            services.describe("left", to_right, 'vpn = ["10.77.0.1/24", "fd77::1/64"]')
            services.describe("right", to_left, 'vpn = ["10.77.0.2/24", "fd77::2/64"]')
            for path in (directory, *directory.rglob("*")) if is_root else ():
                os.chown(path, NOBODY, NOBODY)
            command = (*python, "-c", RESTRICTED)
            left = services.up("left", node=lab.left, program=command, env=environment)
            right = services.up("right", node=lab.right, program=command, env=environment)
            services.comes_to("left", "connected")
            services.comes_to("right", "connected")
            for node, peer in ((lab.left, "10.77.0.2"), (lab.right, "fd77::1")):
                ping = node.run(["ping", "-c", "1", "-w", "10", peer])
                assert ping.returncode == 0, ping.stdout
            vpn = services.ask("left")["vpn"]
            assert vpn["addresses"] == ["10.77.0.1/24", "fd77::1/64"]
            assert vpn["mtu"] >= 1280
            left.signal(signal.SIGTERM)
            right.signal(signal.SIGTERM)
            assert (left.wait(), right.wait()) == (-signal.SIGTERM, -signal.SIGTERM)
            assert services.left_over == []
            assert lab.left.run(["ip", "link", "show", vpn["device"]]).returncode != 0
