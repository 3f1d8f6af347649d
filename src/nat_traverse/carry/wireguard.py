"""What --wireguard has to know of a file in the format of wg-quick(8). It keeps no private key."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from nat_traverse import target
from nat_traverse.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nat_traverse.target import Target

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

# What wg-quick takes for the name of a device, 15 characters being the kernel's limit (IFNAMSIZ).
_DEVICE: Final = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")
_SUFFIX: Final = ".conf"
_DIRECTORY: Final = Path("/etc/wireguard")

# 32 bytes in base64: the last digit before the `=` has four bits, so it is one of sixteen.
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")

# wg(8) shows the lines that it refuses, and what stands behind these may be secret.
_SECRETS: Final = ("PrivateKey", "PresharedKey")

# What is dropped wherever it stands, even within a word: by wg(8) the blanks of C, and no other of
# Unicode's; by bash, in which wg-quick is written, NUL. For both of them a line ends at "\n" only.
_DROPPED: Final = dict.fromkeys(map(ord, " \t\n\v\f\r\0"))

# Permissions that a file may not give, as root runs the commands in it. If others may only read it,
# and so the private key, that is its owner's affair: wg-quick warns.
_CHANGED: Final = 0o022

# A file with a thousand peers has 200 KB. Beyond this it is something else.
_LARGEST: Final = 1 << 20

# s. The quickest gateways measured forget a path after 30; with a longer time in the file it would
# not stay open.
LONGEST_KEEPALIVE: Final = 25

_Section: TypeAlias = "dict[str, list[str]]"


class Configuration(NamedTuple):
    """What such a file says of the path. None of it is secret.

    `keepalive` is what the file asks for, in seconds; 0 where it asks for none, or for one that is
    too rare to keep a path open.
    """

    path: str
    device: str
    target: Target
    public_key: str
    keepalive: int


def read(name: str) -> Configuration:
    """Read the file that `wg-quick up` would take for `name`. Raises UsageError."""
    path = _located(name)
    try:
        with path.open("rb") as file:
            _check_mode(os.fstat(file.fileno()).st_mode, path)
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it has no such name"
        raise UsageError(f"--wireguard: {path} can't be read: {reason}") from None
    if len(content) > _LARGEST:
        raise UsageError(f"--wireguard: {path} is too large for a file of wg-quick's")
    return parse(content.decode("utf-8", errors="replace"), path)


def parse(text: str, path: Path) -> Configuration:
    """Read the text of a file. Raises UsageError, which shows nothing that may be secret."""
    lines = [line.partition("#")[0].translate(_DROPPED) for line in text.split("\n")]
    try:
        _check_secrets(lines)
        return _configuration(*_sections(lines), path)
    except UsageError as error:
        raise UsageError(f"--wireguard: {path}: {error}") from None


def _check_mode(mode: int, path: Path) -> None:
    """Refuse a file that anybody may put a command into. A pipe, say of a shell's, keeps none."""
    if stat.S_ISREG(mode) and mode & _CHANGED:
        raise UsageError(
            f"--wireguard: {path} can't be trusted: others than its owner may change it (mode"
            f" {stat.S_IMODE(mode):04o}), and root runs the commands in it. Use: chmod go-w {path}"
        )


def _sections(lines: Iterable[str]) -> tuple[_Section, list[_Section]]:
    """Return what is under [Interface], and under each [Peer]; wg(8) complains of all else."""
    interface: _Section = {}
    peers: list[_Section] = []
    current: _Section | None = None
    for line in lines:
        if line.startswith("["):
            current = {"[interface]": interface, "[peer]": {}}.get(line.lower())
            if current is not None and current is not interface:
                peers.append(current)
        elif "=" in line and current is not None:
            key, _, value = line.partition("=")
            current.setdefault(key.lower(), []).append(value)
    return interface, peers


def _located(name: str) -> Path:
    """Return the absolute path of the file: wg-quick takes a word without slash for a name."""
    if _DEVICE.fullmatch(name) and not name.endswith(_SUFFIX):
        return _DIRECTORY / f"{name}{_SUFFIX}"
    path = Path(os.path.abspath(name))  # noqa: PTH100 (resolves no links: the name is the device's)
    if not (path.name.endswith(_SUFFIX) and _DEVICE.fullmatch(path.name.removesuffix(_SUFFIX))):
        raise UsageError(
            f"--wireguard wants a file as wg-quick does, and {name!r} is none: its name is that of"
            " the device, up to 15 characters, and .conf"
        )
    return path


def _configuration(interface: _Section, peers: list[_Section], path: Path) -> Configuration:
    if interface.get("saveconfig", [""])[-1].lower() == "true":
        raise UsageError(
            "SaveConfig is true, so wg-quick would write the ports that were found into the file,"
            " in place of those agreed upon. Take it out"
        )
    reached = [peer for peer in peers if "endpoint" in peer]
    if len(reached) != 1:
        raise UsageError(
            "one [Peer] has to have an Endpoint, and here"
            f" {'none has' if not reached else f'{len(reached)} have'} one: nat-traverse finds the"
            " way to one peer"
        )
    (peer,) = reached
    public_key = peer.get("publickey", [""])[-1]
    if not _KEY.fullmatch(public_key):
        raise UsageError("PublicKey of the [Peer] with the Endpoint is missing, or no key")
    found = _target(interface, peer["endpoint"][-1])
    if interface.get("table", ["auto"])[-1].lower() != "off":
        _check_routes(found.peer, [net for each in peers for net in _networks(each)])
    return Configuration(
        path=str(path),
        device=path.name.removesuffix(_SUFFIX),
        target=found,
        public_key=public_key,
        keepalive=_keepalive(peer),
    )


def _check_secrets(lines: Iterable[str]) -> None:
    """Refuse what wg(8) would show and may be secret: keys that are none, in whatever section.

    A true key in the wrong section it shows as well; but that can be told from other words, and is
    taken out of them.
    """
    for line in lines:
        key, _, value = line.partition("=")
        for name in _SECRETS:
            if key.lower().startswith(name.lower()) and not _KEY.fullmatch(value):
                raise UsageError(f"{name} is no key of 32 bytes in base64")


def _target(interface: _Section, endpoint: str) -> Target:
    port = interface.get("listenport", [""])[-1]
    if not port:
        raise UsageError("ListenPort is missing: the other side has to know to which port it sends")
    try:
        found = target.parse(f"{port}:{endpoint}")
    except UsageError:
        raise UsageError(
            f"ListenPort is {port!r} and Endpoint {endpoint!r}: they have to be a port, and an"
            " address or name with a port"
        ) from None
    if found.local_port == 0:
        raise UsageError("ListenPort is 0, any port, and the other side has to know which")
    return found


def _keepalive(peer: _Section) -> int:
    text = peer.get("persistentkeepalive", ["off"])[-1]
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= len("65535") else 0
    return seconds if seconds <= LONGEST_KEEPALIVE else 0


def _networks(peer: _Section) -> Iterator[Network]:
    """Yield the AllowedIPs; what is none is for wg(8) to complain of."""
    for word in ",".join(peer.get("allowedips", ())).split(","):
        try:
            yield ipaddress.ip_network(word.removeprefix("+"), strict=False)
        except ValueError:
            continue


def _check_routes(peer: str, networks: list[Network]) -> None:
    """Refuse routes that would send our own packets into the device.

    A name can have any address. So only what has all of one family is sure to have the name's.
    """
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        caught = [network for network in _joined(networks) if network.prefixlen == 0]
    else:
        caught = [network for network in networks if address in network]
    if caught:
        raise UsageError(
            f"AllowedIPs has all of {caught[0]}, and so the other side's own public address: what"
            " looks for a new path would be sent into the old tunnel. Take a smaller network, or"
            " Table = off and routes of your own"
        )


def _joined(networks: list[Network]) -> Iterator[Network]:
    """Yield the fewest networks with the same addresses: two halves are a whole."""
    four = [network for network in networks if isinstance(network, ipaddress.IPv4Network)]
    six = [network for network in networks if isinstance(network, ipaddress.IPv6Network)]
    yield from ipaddress.collapse_addresses(four)
    yield from ipaddress.collapse_addresses(six)
