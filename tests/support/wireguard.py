"""WireGuard on both sides of a lab, with the files that the guide makes."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nat_traverse.carry.wg_watch import SILENT_AFTER
from support.own_files import need_tun
from support.tools import need

if TYPE_CHECKING:
    from support.guide import Sides
    from support.own_files import OwnFiles
    from support.programs import Program

FILE = "/etc/wireguard"
DEVICE = "nat"

# Our program with shorter times: nobody has a minute to wait for a test.
_IMPATIENT = """\
import sys
from nat_traverse.carry import wg_watch
from nat_traverse.cli import main, wireguard
wg_watch.SILENT_AFTER = float(sys.argv.pop(1))
wireguard._LOOK_EVERY = 0.2
sys.exit(main())
"""


def prepare_wireguard(both: Sides) -> None:
    """Make keys and files on both sides."""
    need("wg-quick", package="wireguard-tools")
    need("wireguard-go", package="wireguard-go")
    need("ping", package="iputils-ping")
    need_tun()
    both.run("wireguard-key")
    both.exchange(FILE, "pub")
    both.run("wireguard-file")


def impatient(side: OwnFiles, silent_after: float, *options: str) -> Program:
    """Start `nat-traverse --wireguard` that looks often, and soon takes silence for a loss."""
    words = ["--json", "--wireguard", DEVICE, *options]
    return side.start([sys.executable, "-c", _IMPATIENT, str(silent_after), *words])


def impatient_service(side: OwnFiles) -> Program:
    """Start `nat-traverse up work`, which looks often."""
    path = side.home / "work.toml"
    path.write_text(f'wireguard = "{DEVICE}"\n')
    words = ["up", "--json", str(path)]
    return side.start([sys.executable, "-c", _IMPATIENT, str(SILENT_AFTER), *words])


def status(side: OwnFiles) -> dict[str, Any]:
    """Return what the service says of itself."""
    (told,) = json.loads(side.try_run(["nat-traverse", "status", "--json"]).stdout)
    assert isinstance(told, dict)
    return told


def crash(side: OwnFiles) -> None:
    """Kill the side's wireguard-go. The kernel's WireGuard can't crash: its device is removed."""
    daemons = _daemons(side)
    for daemon in daemons:
        os.kill(daemon, signal.SIGKILL)
    if not daemons:
        side.run(["ip", "link", "delete", "dev", DEVICE])


def _daemons(side: OwnFiles) -> list[int]:
    """Return the processes of wireguard-go in the network of the side's host, which is its own."""
    space = Path(side.run(["readlink", "/proc/self/ns/net"]).strip())
    assert space != Path("/proc/self/ns/net").readlink()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            is_one = (process / "comm").read_text() == "wireguard-go\n"
            if is_one and (process / "ns" / "net").readlink() == space:
                found.append(int(process.name))
    return found


def keep_alive_often(side: OwnFiles) -> None:
    """Let the side's WireGuard send a sign of life every second."""
    path = side.own(FILE) / f"{DEVICE}.conf"
    text = path.read_text()
    assert "PersistentKeepalive = 25" in text
    path.write_text(text.replace("PersistentKeepalive = 25", "PersistentKeepalive = 1"))


def devices(side: OwnFiles) -> list[str]:
    """Return the WireGuard devices of a side, which are also looked for as devices of any kind."""
    found = side.run(["wg", "show", "interfaces"]).split()
    links = side.run(["ip", "-brief", "link"])
    assert [line.split()[0] for line in links.splitlines() if line.startswith(DEVICE)] == found
    return found


def listen_port(side: OwnFiles) -> int:
    """Return the port of the side's device."""
    return int(side.run(["wg", "show", DEVICE, "listen-port"]))


def endpoint(side: OwnFiles) -> str:
    """Return where the side's device sends to."""
    return side.run(["wg", "show", DEVICE, "endpoints"]).split()[1]
