"""The text of `--help`: the table of options in 80 columns."""

from __future__ import annotations

import textwrap

from nat_traverse._version import __version__
from nat_traverse.cli.options import COMMANDS, TUNNEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from nat_traverse.cli.options import Command, Option

COLUMNS: Final = 80  # the narrowest terminal in common use
MARGIN: Final = 24  # leaves room for the longest option, --quit-after-connect

OPERANDS: Final = (
    ("LOCAL_PORT", "UDP port on this side; 0 for any free one"),
    ("PEER", "public address or name of the other side, IPv4 or IPv6"),
    ("REMOTE_PORT", "UDP port on the other side"),
)

EXAMPLES: Final = """\
The two sides name the same ports, crosswise:
  left   $ nat-traverse 40000:natgw-of-right:40001
  right  $ nat-traverse 40001:natgw-of-left:40000

The SSH server of right, at port 2222 of left; both know the secret:
  left   $ nat-traverse --secret-file secret -L 2222:localhost:22 \\
             40000:natgw-of-right:40001
  right  $ nat-traverse --secret-file secret --expose localhost:22 \\
             40001:natgw-of-left:40000

A path for another program:
  $ nat-traverse 60001:natgw-of-right:60001 --handoff \\
      'openvpn --lport {local_port} --remote {peer_host} {peer_port}'
"""

ABBREVIATIONS: Final = """\
Options can be shortened (-w 3, --win=3) and can start with -, -- or +. The
manual has more: man nat-traverse.
"""


def usage(command: Command) -> str:
    """Return the help text of `command`, ending in a line feed."""
    parts = [f"nat-traverse {__version__}: {command.summary}\n", _synopsis(command)]
    if command is TUNNEL:
        parts.append(_table((name, meaning) for name, meaning in OPERANDS))
    for heading, options in command.groups():
        rows = [(option.spelling, _summary(option)) for option in options]
        parts.append(f"{heading}:\n{_table(rows)}")
    kinds = {option.metavar: option.choices for option in command.options if option.choices}
    for metavar, choices in kinds.items():
        rows = [(choice.word, choice.meaning) for choice in choices]
        parts.append(f"{metavar}:\n{_table(rows)}")
    if command is TUNNEL:
        parts += [EXAMPLES, ABBREVIATIONS]
    return "\n".join(parts)


def _synopsis(command: Command) -> str:
    """Return how to type it, and for the tunnel also what else there is."""
    lines = ["Usage:", f"  {command.synopsis}"]
    if command is TUNNEL:
        lines += [f"  {other.synopsis}" for other in COMMANDS.values()]
    return "\n".join(lines) + "\n"


def _summary(option: Option) -> str:
    return f"{option.summary} (default: {option.default})" if option.default else option.summary


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{line}\n" for row in rows for line in _row(*row))


def _row(term: str, meaning: str) -> Iterator[str]:
    """Set `meaning` in its column, beside `term` where that is short enough."""
    width = COLUMNS - MARGIN
    head, *more = textwrap.wrap(meaning, width, break_on_hyphens=False)
    yield f"  {term}".ljust(MARGIN) + head
    for line in more:
        yield " " * MARGIN + line
