"""Networks between two hosts, all run alike: our --vpn, OpenVPN and wireguard-go.

Each function starts one program's two ends on a path, waits until the inner addresses can be used,
and takes everything down again. Where there are NATs between the hosts, they are ones that keep
ports, and the other two programs are told by hand what ours finds out.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench import _certificate
from bench._contestants import OURS
from bench._meter import time_so_far
from bench._streams import UnavailableError, write_secret

from nat_traverse.lab.namespace import run_scripts, system_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nat_traverse.lab.topology import Host

OURS_TEMPLATE = (
    f"{shlex.quote(OURS)} --secret-file {{secret}} --vpn {{inside}}/30 --vpn-device {{device}}"
    " {local_port}:{peer}:{peer_port}"
)

_INSIDE = {"left": "10.77.0.1", "right": "10.77.0.2"}

# wireguard-go keeps its sockets in one directory of the machine, by the device's name: so the names
# differ, and not only between the two ends.
_DEVICES = {side: f"bench{os.getpid() % 100_000:05}{side[0]}" for side in ("left", "right")}

_PATIENCE = 15.0  # s until a network stands, on however slow a machine
_GRACE = 5.0  # s to end after SIGTERM
_POLL = 0.05  # s between looks


class Route(Protocol):
    """Two hosts and whatever is between them; each has its address in `public.v4`."""

    left: Host
    right: Host


class Process:
    """A running program, and the file that has all that it printed."""

    def __init__(self, host: Host, argv: list[str], log: Path) -> None:
        self._log = log
        # The level is wireguard-go's: it has no other way to say that it is ready.
        environment = {**system_environment(), "LOG_LEVEL": "verbose"}
        with log.open("wb") as output:
            self._process = host.popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    def cpu(self) -> float:
        """Return the processor time so far in seconds, with that of all processes it started."""
        return time_so_far(self._process.pid)

    def runs(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def said(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End it."""
        if self.runs():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        if self.runs():
            self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Network:
    """A network that stands: the address of its right end, and both ends' programs."""

    right: str
    processes: tuple[Process, Process]

    def cpu(self) -> float:
        """Return the processor time of both ends so far, in seconds."""
        return sum(process.cpu() for process in self.processes)

    def check(self) -> None:
        """Raise `RuntimeError` if an end has ended."""
        for process in self.processes:
            if not process.runs():
                raise RuntimeError(f"a VPN has ended too early; it said:\n{process.said()}")


@contextmanager
def ours(path: Route, directory: Path, port: int, template: str) -> Iterator[Network]:
    """Run our --vpn. The template has {secret}, {inside}, {device} and the words of the ports."""
    secret = write_secret(directory)

    def argv(side: str, peer: str | None, mine: int, yours: int) -> list[str]:
        values = {"local_port": mine, "peer": peer, "peer_port": yours, "secret": secret}
        values |= {"inside": _INSIDE[side], "device": _DEVICES[side]}
        return [word.format(**values) for word in shlex.split(template)]

    commands = {
        "left": argv("left", path.right.public.v4, port, port + 1),
        "right": argv("right", path.left.public.v4, port + 1, port),
    }
    with _network(path, directory, commands) as network:
        yield network


@contextmanager
def openvpn(path: Route, directory: Path, port: int) -> Iterator[Network]:
    """Run OpenVPN in user space, with the data cipher that its two ends agree on by themselves."""
    program = _program("openvpn", "openvpn")
    certificates = {side: _certificate.make(directory, side) for side in ("left", "right")}

    def argv(side: str, other: str, peer: str | None, role: str) -> list[str]:
        return shlex.split(
            f"{program} --dev {_DEVICES[side]} --dev-type tun --topology p2p --proto udp"
            f" --disable-dco --ifconfig {_INSIDE[side]} {_INSIDE[other]}"
            f" --lport {port} --remote {peer} {port} {role}"
            f" --cert {certificates[side].certificate} --key {certificates[side].key}"
            f" --peer-fingerprint {certificates[other].fingerprint}"
        )

    commands = {
        "left": argv("left", "right", path.right.public.v4, "--tls-client"),
        "right": argv("right", "left", path.left.public.v4, "--tls-server --dh none"),
    }
    with _network(path, directory, commands) as network:
        yield network


@contextmanager
def wireguard(path: Route, directory: Path, port: int) -> Iterator[Network]:
    """Run wireguard-go. Raises `UnavailableError` without root."""
    program = _program("wireguard-go", "wireguard-go")
    wg = _program("wg", "wireguard-tools")
    if os.geteuid() != 0:
        raise UnavailableError("wireguard-go needs root for its directory in /var/run")
    keys = {}
    for side in ("left", "right"):
        private = subprocess.run([wg, "genkey"], check=True, capture_output=True).stdout
        public = subprocess.run([wg, "pubkey"], check=True, capture_output=True, input=private)
        file = directory / f"{side}.private"
        file.touch(mode=0o600)
        file.write_bytes(private)
        keys[side] = (file, public.stdout.decode().strip())

    def configure(side: str, host: Host, other: str, peer: str | None) -> None:
        device = _DEVICES[side]
        script = (
            f"{wg} set {device} private-key {keys[side][0]} listen-port {port}"
            f" peer {keys[other][1]} allowed-ips 0.0.0.0/0 endpoint {peer}:{port}"
            " persistent-keepalive 1\n"
            f"ip address add {_INSIDE[side]}/30 dev {device}\n"
            # What wg-quick takes on a path with an MTU of 1,500.
            f"ip link set {device} mtu 1420 up\n"
        )
        run_scripts([(host.namespace, script)])

    commands = {side: [program, "-f", _DEVICES[side]] for side in ("left", "right")}

    def start(processes: list[Process]) -> None:
        # Who asks earlier may find a socket that nobody listens at yet, and wg removes such ones.
        for process in processes:
            _wait_for(lambda process=process: "UAPI listener" in process.said(), process.said)  # type: ignore[misc]
        configure("left", path.left, "right", path.right.public.v4)
        configure("right", path.right, "left", path.left.public.v4)

    with _network(path, directory, commands, start) as network:
        yield network


@contextmanager
def _network(
    path: Route,
    directory: Path,
    commands: dict[str, list[str]],
    configure: Callable[[list[Process]], None] | None = None,
) -> Iterator[Network]:
    with ExitStack() as stack:
        processes = []
        for side, host in (("left", path.left), ("right", path.right)):
            process = Process(host, commands[side], directory / f"{side}.log")
            stack.callback(process.close)
            processes.append(process)
        network = Network(_INSIDE["right"], (processes[0], processes[1]))
        if configure is not None:
            configure(processes)
        ping = ["ping", "-c", "1", "-W", "1", "-n", network.right]

        def answers() -> bool:
            network.check()
            return path.left.run(ping).returncode == 0

        _wait_for(
            answers,
            lambda: "an answer; the VPN said:\n" + "\n".join(one.said() for one in processes),
        )
        yield network


def _wait_for(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what()}")
        time.sleep(_POLL)


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=system_environment()["PATH"])
    if found is None:
        raise UnavailableError(f"apt-get install {package}")
    return found
