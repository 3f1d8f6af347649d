"""Programs that carry a stream from a pipe on the left to a pipe on the right, all run alike.

Each function starts one program's two ends on a path, waits until bytes may flow, and takes
everything down again. What they have in common is a `Stream`.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import _certificate
from bench._contestants import OURS
from bench._tcp import UNAVAILABLE
from bench._traffic import Consumer, Producer
from bench.datapath import End, wait_for

from nat_traverse.lab.namespace import system_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench._paths import Pair, Wire

OURS_TEMPLATE = (
    f"{shlex.quote(OURS)} --json --secret-file {{secret}} {{local_port}}:{{peer}}:{{peer_port}}"
)

# A phrase as one is advised to use; a longer one is no slower.
_SECRET = "correct horse battery staple"  # noqa: S105 (nobody is kept out with it)

_TCP = Path(__file__).with_name("_tcp.py")
_INSIDE = {"left": "10.9.0.1", "right": "10.9.0.2"}  # OpenVPN's own addresses

_GRACE = 5.0  # s for a program to end after SIGTERM
_LOOK = 0.05  # s between looks whether the programs live


class UnavailableError(Exception):
    """The machine does not have what a row needs; the text says what."""


@dataclass(slots=True)
class Stream:
    """A running program, its two pipes, and whose processor time counts."""

    feed: End
    output: int
    charged: list[End]
    # The other ends, closed after these: what they carry for must be gone first.
    further: list[End] = field(default_factory=list)
    # Those of all ends that do not end with the stream.
    lasting: list[End] = field(default_factory=list)

    def ends(self) -> list[End]:
        """Return all ends, in the order in which they can end."""
        every = [*self.further, *self.charged]
        return [end for end in every if end not in self.lasting] + self.lasting


@dataclass(frozen=True, slots=True)
class Result:
    """What went through."""

    goodput: float  # bit/s that came out
    cpu: float  # s of processor time per 10^9 bytes


def whole(stream: Stream, seconds: float) -> Result:
    """Feed for so many seconds and wait until all has come out and every program has ended."""
    consumer, producer = _start(stream)
    _sleep(stream, seconds)
    producer.stop()
    producer.join()
    for end in stream.ends():
        end.end_input()
    consumer.join()
    for end in stream.lasting:
        end.process.terminate()
    for end in stream.further:
        end.finish()
    cpu = sum(end.finish() for end in stream.charged)
    return Result(
        consumer.count * 8 / (consumer.last - producer.started), cpu / (consumer.count / 1e9)
    )


def window(stream: Stream, seconds: float) -> float:
    """Return the bit/s that came out in the first so many seconds; what is under way is dropped.

    A slow start is in it, as it is for whoever fetches a file.
    """
    consumer, producer = _start(stream)
    _sleep(stream, seconds)
    elapsed = time.monotonic() - producer.started
    count = consumer.count
    for end in stream.ends():
        end.process.terminate()
    for end in stream.ends():
        try:
            end.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            end.process.kill()
    producer.join()
    consumer.join()
    return count * 8 / elapsed


def write_secret(directory: Path) -> Path:
    """Write the file with the phrase that both ends know."""
    secret = directory / "secret"
    secret.touch(mode=0o600)
    secret.write_text(f"{_SECRET}\n")
    return secret


@contextmanager
def ours(pair: Pair | Wire, directory: Path, port: int, template: str) -> Iterator[Stream]:
    """Run our tunnel; `template` has {secret}, {local_port}, {peer} and {peer_port}."""
    secret = write_secret(directory)

    def argv(peer: str | None, mine: int, yours: int) -> list[str]:
        values = {"secret": secret, "local_port": mine, "peer": peer, "peer_port": yours}
        return [word.format(**values) for word in shlex.split(template)]

    with (
        _end(pair, "left", argv(pair.right.public.v4, port, port + 1), directory) as left,
        _end(pair, "right", argv(pair.left.public.v4, port + 1, port), directory) as right,
    ):
        for end in (left, right):
            wait_for(lambda end=end: end.said('"connected"'), "the connection", end)  # type: ignore[misc]
        yield Stream(left, right.output, [left, right])


@contextmanager
def tcp(pair: Pair | Wire, directory: Path, port: int, congestion: str) -> Iterator[Stream]:
    """Run kernel TCP. Raises `UnavailableError` if there is no such congestion control."""
    with _tcp(pair, directory, (str(pair.right.public.v4), port), congestion) as (left, right):
        yield Stream(left, right.output, [left, right])


@contextmanager
def ssh(pair: Pair | Wire, directory: Path, port: int) -> Iterator[Stream]:
    """Run ssh with its own sshd and keys of its own. Raises `UnavailableError` without root."""
    sshd = _program("sshd", "openssh-server")
    client = _program("ssh", "openssh-client")
    if os.geteuid() != 0:
        raise UnavailableError("sshd needs root")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    configuration = _ssh_keys(directory)
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    server = [sshd, "-D", "-e", "-f", str(configuration), "-p", str(port)]
    # The remote command has to be a program; cat adds little beside ssh itself.
    command = [client, "-F", "none", "-i", str(directory / "user"), "-p", str(port), "-T"]
    for option in (
        "Ciphers=aes128-gcm@openssh.com",
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        f"UserKnownHostsFile={directory}/known",
        "IdentitiesOnly=yes",
    ):
        command += ["-o", option]
    command += [
        f"{getpass.getuser()}@{pair.right.public.v4}",
        f"echo ready >&2; exec cat >{shlex.quote(str(fifo))}",
    ]
    with _end(pair, "right", server, directory) as right:
        wait_for(lambda: right.said("Server listening"), "sshd", right)
        with _end(pair, "left", command, directory) as left:
            wait_for(lambda: left.said("ready"), "the connection", left)
            output = os.open(fifo, os.O_RDONLY)
            try:
                yield Stream(left, output, [left, right], lasting=[right])
            finally:
                os.close(output)


@contextmanager
def openvpn(pair: Pair | Wire, directory: Path, port: int) -> Iterator[Stream]:
    """Run kernel TCP through OpenVPN in user space; only OpenVPN's own time is charged."""
    program = _program("openvpn", "openvpn")
    certificates = {side: _certificate.make(directory, side) for side in ("left", "right")}

    def argv(side: str, other: str, peer: str | None, role: str) -> list[str]:
        words = (
            f"{program} --dev tun9 --dev-type tun --topology p2p --proto udp --disable-dco"
            f" --ifconfig {_INSIDE[side]} {_INSIDE[other]} --lport {port} --remote {peer} {port}"
            f" {role} --cert {certificates[side].certificate} --key {certificates[side].key}"
            f" --peer-fingerprint {certificates[other].fingerprint}"
            " --cipher AES-256-GCM --data-ciphers AES-256-GCM"
        )
        # Its log goes to standard output.
        return ["sh", "-c", f"exec {words} >&2"]

    to_left = argv("right", "left", pair.left.public.v4, "--tls-server --dh none")
    to_right = argv("left", "right", pair.right.public.v4, "--tls-client")
    with (
        _end(pair, "right", to_left, directory) as server,
        _end(pair, "left", to_right, directory) as client,
    ):
        for end in (server, client):
            wait_for(lambda end=end: end.said("Sequence Completed"), "OpenVPN", end)  # type: ignore[misc]
        inside = directory / "inside"
        inside.mkdir()
        with _tcp(pair, inside, (_INSIDE["right"], port), "cubic") as (left, right):
            both = [client, server]
            yield Stream(left, right.output, both, further=[left, right], lasting=both)


@contextmanager
def _tcp(
    pair: Pair | Wire, directory: Path, address: tuple[str, int], congestion: str
) -> Iterator[tuple[End, End]]:
    words = [address[0], str(address[1]), congestion]
    with (
        _end(pair, "right", [sys.executable, str(_TCP), "receive", *words], directory) as right,
        _end(pair, "left", [sys.executable, str(_TCP), "send", *words], directory) as left,
    ):
        for end in (left, right):
            try:
                wait_for(lambda end=end: end.said("connected"), "the connection", end)  # type: ignore[misc]
            except RuntimeError as error:
                if end.process.poll() is not None and end.status() == UNAVAILABLE:
                    raise UnavailableError(f"no {congestion} in this kernel") from error
                raise
        yield left, right


@contextmanager
def _end(pair: Pair | Wire, side: str, argv: list[str], directory: Path) -> Iterator[End]:
    end = End(pair.left if side == "left" else pair.right, argv, directory)
    try:
        yield end
    finally:
        end.close()


def _start(stream: Stream) -> tuple[Consumer, Producer]:
    consumer = Consumer(stream.output)
    consumer.start()
    producer = Producer(stream.feed.feed)
    producer.start()
    return consumer, producer


def _sleep(stream: Stream, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(_LOOK, left))
        for end in stream.ends():
            if end.process.poll() is not None:
                raise RuntimeError(f"a program has ended too early; it said:\n{end.errors()}")


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=system_environment()["PATH"])
    if found is None:
        raise UnavailableError(f"apt-get install {package}")
    return found


def _ssh_keys(directory: Path) -> Path:
    """Make both key pairs, and return the server's configuration."""
    keygen = _program("ssh-keygen", "openssh-client")
    for name in ("host", "user"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True)
    configuration = directory / "sshd_config"
    configuration.write_text(
        f"HostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\nStrictModes no\n"
        f"PermitRootLogin yes\nUsePAM no\nPidFile none\n"
    )
    return configuration
