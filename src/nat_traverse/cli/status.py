"""`nat-traverse status`: how the tunnels are that `nat-traverse up` runs."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from nat_traverse.cli import complaint
from nat_traverse.cli.monitor import State
from nat_traverse.cli.places import sockets
from nat_traverse.net.status_socket import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.cli.settings import Status

# As `systemctl status` has them, after LSB: 0 runs, 3 does not. 1 is for what runs and is not up.
UP, NOT_UP, NOT_RUNNING = 0, 1, 3

NOT_ANSWERING: Final = "not-answering"
# s: an answer is made at once; a process that takes longer is stopped, or hangs.
_PATIENCE: Final = 2.0

_MILLISECOND: Final = 1000
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_UNIT: Final = 1024
_PERIODS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def run_status(request: Status) -> int:
    """Print how the tunnels are; returns the exit code.

    0: all that were asked for have a path; 1: one is looking for a path, has ended while others of
    its process run, or does not answer; 3: one does not run, or none does.
    """
    paths = sockets(os.environ, os.geteuid())
    asked = {name: ask(path, _PATIENCE) for name, path in paths.items() if _is_asked(name, request)}
    found = [_read(name, answer) for name, answer in asked.items() if answer is not None]
    missing = [name for name in request.names if name not in {each["name"] for each in found}]
    try:
        if request.json:
            _print(json.dumps(found, indent=2) + "\n")
        elif found:
            _print("\n\n".join("\n".join(_lines(each)) for each in found) + "\n")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own end
        _complain(f"Cannot print the status: {error.strerror}.")
        return error.errno or 1
    for name in missing:
        _complain(f"There is no tunnel {name!r} running.")
    if not found and not request.names and not request.json:
        _complain("No tunnel is running.")
    if missing or not found:
        return NOT_RUNNING
    return UP if all(each["state"] == State.CONNECTED.value for each in found) else NOT_UP


def _print(text: str) -> None:
    """Write to standard output, with escapes in place of letters that the locale doesn't have."""
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _complain(text: str) -> None:
    complaint.write(f"nat-traverse: {text}\n")


def _is_asked(name: str, request: Status) -> bool:
    return not request.names or name in request.names


def _read(name: str, answer: bytes) -> dict[str, Any]:
    """Return what a socket has answered: what no tunnel says counts as no answer.

    Root asks sockets of others. So what can't be shown, as text or as JSON, is found out here.
    """
    try:
        told = json.loads(answer)
        if isinstance(told, dict) and isinstance(told.get("state"), str):
            told["name"] = name
            json.dumps(told, allow_nan=False)
            list(_lines(told))
            return told
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    return {"name": name, "state": NOT_ANSWERING}


# -- for people -----------------------------------------------------------------------------------


def _lines(told: dict[str, Any]) -> Iterator[str]:
    """Yield what a person reads, in the manner of wg(8)."""
    yield f"tunnel: {_plain(told['name'])}"
    for label, text in _rows(told):
        if text:
            yield f"  {_plain(label)}: {_plain(text)}"


def _rows(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    get = told.get
    yield "state", _state(told)
    yield "problem", get("problem") or ""
    yield "from", get("description") or ""
    yield "peer", get("peer") or ""
    port, observed = get("local_port"), get("observed")
    if port is not None:
        yield "local port", f"{port}" + (f" (the peer sees {observed})" if observed else "")
    yield "strategy", get("strategy") or ""
    yield "proven by", get("proof") or ""
    if get("code"):
        yield "code to compare", f"{get('code')}"
    yield "peer's key", get("peer_key") or ""
    if isinstance(get("round_trip"), int | float):
        yield "round trip", f"{told['round_trip'] * _MILLISECOND:.1f} ms"
    if isinstance(get("last_contact"), int | float):
        yield "last contact", f"{_period(told['last_contact'])} ago"
    if isinstance(get("sent"), int) and isinstance(get("received"), int):
        yield "transfer", f"{_amount(told['received'])} received, {_amount(told['sent'])} sent"
    for forward in get("forwards") or []:
        address = forward.get("address")
        yield "forward", f"{forward.get('what')}" + (f", listening on {address}" if address else "")
    yield "command", get("command") or ""
    for name, part in told.items():
        if isinstance(part, dict):
            yield name, ", ".join(f"{key} {_value(value)}" for key, value in part.items())
    if get("pid"):
        yield "process", f"{get('pid')}, version {get('version')}"


def _state(told: dict[str, Any]) -> str:
    words = str(told["state"]).replace("-", " ")
    since = told.get("since")
    if not isinstance(since, int | float):
        return words
    text = f"{words}, for {_period(max(0.0, time.time() - since))}"
    code = told.get("exit_code")
    return text if code is None else f"{text}, with status {code}"


def _value(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key} {each}" for key, each in value.items()) or "none"
    return "none" if value is None else str(value)


def _period(seconds: float) -> str:
    """Spell a time roughly: its two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for size, name in _PERIODS:
        count, left = divmod(left, size)
        if count or (name == "second" and not parts):
            parts.append(f"{count} {name}{'' if count == 1 else 's'}")
    return ", ".join(parts[:2])


def _amount(octets: float) -> str:
    unit = 0
    while octets >= _UNIT and unit < len(_UNITS) - 1:
        octets, unit = octets / _UNIT, unit + 1
    return f"{octets:.0f} B" if unit == 0 else f"{octets:.2f} {_UNITS[unit]}"


def _plain(text: object) -> str:
    """Return a text without anything that a terminal would obey."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in str(text))
