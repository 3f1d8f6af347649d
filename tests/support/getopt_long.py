"""Perl's Getopt::Long as an oracle, and our scanner's answers in the oracle's form."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nat_traverse.cli import options
from nat_traverse.cli.getopt import LONGEST_NUMBER, Given, scan
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nat_traverse.cli.options import Option

ORACLE: Final = Path(__file__).parents[1] / "compat" / "getopt_oracle.pl"
LEGACY: Final = tuple(option for option in options.TUNNEL.options if option.legacy)

Outcome = tuple[list[tuple[str, str]], list[str]]
"""Events (name and value; an error is called `!`) and operands. A character is one byte."""


def ask(cases: Iterable[tuple[Sequence[str], bool]]) -> list[Outcome]:
    """Ask one Perl process about `cases`: argument lists, each with whether POSIXLY_CORRECT."""
    asked = [
        json.dumps({"arguments": [_as_bytes(word) for word in arguments], "posix": posix})
        for arguments, posix in cases
    ]
    run = subprocess.run(
        [need("perl", package="perl"), ORACLE],
        input="".join(f"{line}\n" for line in asked),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(asked)
    return [
        ([(name, value) for name, value in answer["events"]], answer["operands"])
        for answer in answers
    ]


def ours(arguments: Sequence[str], *, posix: bool, table: Sequence[Option] = LEGACY) -> Outcome:
    """Return what our scanner makes of the same."""
    result = scan(arguments, table, posix=posix)
    events = [
        (event.name, _value_in_perl(event.value)) if isinstance(event, Given) else ("!", event.text)
        for event in result.events
    ]
    return (
        [(name, _as_bytes(value)) for name, value in events],
        [_as_bytes(word) for word in result.operands],
    )


def _as_bytes(text: str) -> str:
    """Spell the bytes of an argument as the characters of the same numbers."""
    return os.fsencode(text).decode("latin-1")


def _value_in_perl(value: str | int | None) -> str:
    """Spell a value as Perl does: a flag is 1, and integers go on as doubles after 64 bits."""
    if value is None:
        return "1"
    if isinstance(value, str):
        return value
    if abs(value) >= 10**LONGEST_NUMBER - 1:
        return "Inf" if value > 0 else "-Inf"
    return str(value) if -(2**63) <= value < 2**64 else f"{value:.15g}"
