"""What -L, -R, -D and --expose say: ssh's syntax for forwards, with `udp/` and Unix sockets."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Final

from nat_traverse.errors import UsageError
from nat_traverse.wire.request import ANYWHERE, HIGHEST_PORT, Address, Kind

# What stands for both loopback addresses, 127.0.0.1 and ::1. Whoever writes no address to listen
# at means these, as with ssh: a forward that others may use has to be asked for.
LOOPBACK: Final = "localhost"

ANY: Final = "any"

LOCAL_FORM: Final = "[BIND:]PORT:HOST:HOSTPORT"
DYNAMIC_FORM: Final = "[BIND:]PORT"
EXPOSE_FORM: Final = "HOST:PORT, udp/HOST:PORT, /PATH or any"

# Bytes of a Unix socket's path without the zero behind it (unix(7)).
PATH_LIMIT: Final = 107
NAME_LIMIT: Final = 253  # bytes of a host name (RFC 1035, section 2.3.4, as text)

_UDP: Final = "udp/"


@dataclass(frozen=True, slots=True)
class Forward:
    """One -L or -R: what arrives at `listen` goes to `target` on the other side.

    `text` is how the user would write it, with its option.
    """

    text: str
    listen: Address
    target: Address


@dataclass(frozen=True, slots=True)
class Dynamic:
    """One -D: who connects to `listen` says in SOCKS where to."""

    text: str
    listen: Address


@dataclass(frozen=True, slots=True)
class Exposed:
    """One --expose; `address` is None for everything."""

    text: str
    address: Address | None


def parse_local(text: str) -> Forward:
    """Read what follows -L, or raise UsageError."""
    return _forward("-L", text, "8080:localhost:80")


def parse_remote(text: str) -> Forward:
    """Read what follows -R, or raise UsageError."""
    return _forward("-R", text, "2222:localhost:22")


def parse_dynamic(text: str) -> Dynamic:
    """Read what follows -D, or raise UsageError."""
    problem = _Problem("-D", text, DYNAMIC_FORM, "1080")
    if text.startswith(_UDP):
        raise problem.error("SOCKS is forwarded for TCP only")
    parts = _split(text, problem)
    if not 1 <= len(parts) <= 2:  # noqa: PLR2004 (address and port)
        raise problem.error("there are too many colons in it; an IPv6 address needs brackets")
    return Dynamic(f"-D {text}", _listen(Kind.TCP, parts, problem))


def parse_exposed(text: str) -> Exposed:
    """Read what follows --expose, or raise UsageError."""
    problem = _Problem("--expose", text, EXPOSE_FORM, "localhost:22")
    if text.lower() == ANY:
        return Exposed(f"--expose {text}", None)
    kind, rest = _kind(text)
    parts = _split(rest, problem)
    if kind is Kind.TCP and len(parts) == 1 and _is_path(parts[0]):
        return Exposed(f"--expose {text}", _path(parts[0], problem, here=True))
    if len(parts) != 2:  # noqa: PLR2004 (host and port)
        raise problem.error("it is a host and a port, with an IPv6 address in brackets")
    host = _host(parts[0], problem, listening=True)
    port = _port(parts[1], problem)
    if port == 0:
        raise problem.error("nothing is at port 0")
    return Exposed(f"--expose {text}", Address(kind, host, port))


def written_paths(spec: Forward | Dynamic | Exposed) -> list[str]:
    """Return the paths of the Unix sockets, of both sides, as the user wrote them."""
    option, _, text = spec.text.partition(" ")
    _, rest = _kind(text)
    parts = _split(rest, _Problem(option, text, "", ""))  # it was read once: none is found
    return [part for part in parts if _is_path(part)]


@dataclass(frozen=True, slots=True)
class _Problem:
    """Makes the errors for one option and its value."""

    option: str
    text: str
    form: str
    example: str

    def error(self, reason: str) -> UsageError:
        return UsageError(
            f"{self.option} {self.text!r}: {reason}.\n"
            f"The form is {self.option} {self.form}, for example {self.option} {self.example}."
        )


def _forward(option: str, text: str, example: str) -> Forward:
    problem = _Problem(option, text, f"{LOCAL_FORM} (or a /PATH on either side)", example)
    kind, rest = _kind(text)
    parts = _split(rest, problem)
    if _is_path(parts[-1]):
        listening, target_parts = parts[:-1], parts[-1:]
    else:
        listening, target_parts = parts[:-2], parts[-2:]
    if not listening:
        raise problem.error("it has to say where to listen, and where that leads")
    if len(listening) > 2:  # noqa: PLR2004 (address and port)
        raise problem.error("there are too many colons in it; an IPv6 address needs brackets")
    here_listens = option == "-L"
    listen = _listen(kind, listening, problem, here=here_listens)
    target = _target(kind, target_parts, problem, here=not here_listens)
    return Forward(f"{option} {text}", listen, target)


def _kind(text: str) -> tuple[Kind, str]:
    return (Kind.UDP, text[len(_UDP) :]) if text.startswith(_UDP) else (Kind.TCP, text)


def _split(text: str, problem: _Problem) -> list[str]:
    """Split at the colons that are not in brackets; the brackets stay."""
    if not text.isprintable():
        raise problem.error("it has a character that can't be shown")
    parts, depth = [""], 0
    for each in text:
        depth += (each == "[") - (each == "]")
        if depth not in (0, 1):
            raise problem.error("its brackets don't match")
        if each == ":" and not depth:
            parts.append("")
        else:
            parts[-1] += each
    if depth:
        raise problem.error("its brackets don't match")
    return parts


def _is_path(part: str) -> bool:
    return "/" in part


def _listen(kind: Kind, parts: list[str], problem: _Problem, *, here: bool = True) -> Address:
    if len(parts) == 1 and _is_path(parts[0]):
        _check_stream(kind, problem)
        return _path(parts[0], problem, here=here)
    host = LOOPBACK if len(parts) == 1 else parts[0]
    if not host:
        raise problem.error(f"it has to say {ANYWHERE} to listen at all addresses")
    return Address(kind, _host(host, problem, listening=True), _port(parts[-1], problem))


def _target(kind: Kind, parts: list[str], problem: _Problem, *, here: bool) -> Address:
    if len(parts) == 1:
        _check_stream(kind, problem)
        return _path(parts[0], problem, here=here)
    host, port = _host(parts[0], problem, listening=False), _port(parts[1], problem)
    if port == 0:
        raise problem.error("nothing can be reached at port 0")
    return Address(kind, host, port)


def _check_stream(kind: Kind, problem: _Problem) -> None:
    if kind is Kind.UDP:
        raise problem.error("a Unix socket takes the place of a TCP port, not of a UDP port")


def _path(text: str, problem: _Problem, *, here: bool) -> Address:
    """Return a Unix socket. Only this side knows what a relative path is relative to."""
    if not here and not text.startswith("/"):
        raise problem.error("the path on the other side has to begin with /")
    path = os.path.abspath(text) if here else text  # noqa: PTH100 (resolves no links, as it should)
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise problem.error(f"a Unix socket's path has at most {PATH_LIMIT} bytes")
    return Address(Kind.UNIX, path)


def _host(text: str, problem: _Problem, *, listening: bool) -> str:
    """Check a host; an address is brought into its canonical form, and loses its brackets."""
    if text == ANYWHERE:
        if listening:
            return ANYWHERE
        raise problem.error(f"{ANYWHERE} is no host")
    if not text:
        raise problem.error("the host is missing")
    if any(each.isspace() for each in text) or ANYWHERE in text or _is_path(text):
        raise problem.error(f"{text!r} is no host")
    if len(text.encode()) > NAME_LIMIT:
        raise problem.error(f"a host's name has at most {NAME_LIMIT} bytes")
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise problem.error(f"{text[1:-1]!r} is no IPv6 address") from None
    if "[" in text:
        raise problem.error("brackets are for a whole IPv6 address")
    return text


def _port(text: str, problem: _Problem) -> int:
    """Read a port in decimal. int() alone would take `1_0`, and digits of other scripts."""
    if not text:
        raise problem.error("the port is missing")
    digits = text.lstrip("0") or "0"
    if not (digits.isascii() and digits.isdigit()):
        raise problem.error(f"{text!r} is no port")
    if len(digits) > len(str(HIGHEST_PORT)) or int(digits) > HIGHEST_PORT:
        raise problem.error(f"the highest port is {HIGHEST_PORT}")
    return int(digits)
