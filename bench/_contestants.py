"""Who runs: our relay, the Perl original, socat. Each is two command lines and a few habits."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

OURS = str(Path(sys.executable).with_name("nat-traverse"))
ORIGINAL = "/usr/bin/nat-traverse"  # Debian's package


@dataclass(frozen=True, slots=True)
class Contestant:
    """One program. `command` is a template with {local_port}, {peer} and {peer_port}."""

    name: str
    command: str
    # What an end prints on its standard error when it may be fed; "" if it prints nothing: then
    # single bytes are sent in both directions until one arrives.
    ready: str
    # Whether it ends by itself, with everything delivered, at the end of its standard input.
    # The others are left alone until nothing has arrived for a while.
    knows_the_end: bool

    def argv(self, *, local_port: int, peer: str, peer_port: int) -> list[str]:
        """Return the command line of one end."""
        words = shlex.split(self.command)
        return [
            word.format(local_port=local_port, peer=peer, peer_port=peer_port) for word in words
        ]


def contestants(ours: str) -> list[Contestant]:
    """Return all contestants; `ours` is the template of our own command line."""
    return [
        Contestant("ours", ours, '"connected"', knows_the_end=True),
        Contestant(
            "Perl 0.7",
            # An even window: with an odd one a refusal can eat the one ACK that 0.7 sends.
            f"{ORIGINAL} --window=2 {{local_port}}:{{peer}}:{{peer_port}}",
            "Connection established.",
            knows_the_end=False,
        ),
        Contestant(
            "socat",
            # 1,400 bytes a datagram; half a second after the end of input it gives up.
            "socat -b1400 -t0.5 STDIO UDP4:{peer}:{peer_port},sourceport={local_port}",
            "",
            knows_the_end=False,
        ),
    ]


# The plain tunnel, which is what the other two are: nothing of theirs is encrypted either.
OURS_TEMPLATE = f"{shlex.quote(OURS)} --json --plain {{local_port}}:{{peer}}:{{peer_port}}"
