"""The Perl original against itself in the lab: the lab is calibrated if 0.7 fares as it should.

It works between gateways that keep the port and let unsolicited packets vanish, and it fails,
with its exit code 4 for a timeout, where a gateway changes the port: by itself, or because it took
the earlier side's packets for its own.
"""

from __future__ import annotations

import subprocess

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import eventually, need_lab
from support.tools import need

# Seconds in which it sends, and then waits for the other side's acknowledgement. What it takes to
# run is thus bounded by 6 s, and Perl's start.
OPTIONS = ["--window=3", "--timeout=3", "--quit-after-connect"]


@pytest.mark.parametrize(
    ("left", "right", "status"),
    [
        (Kind.DROP, Kind.DROP, 0),
        (Kind.DROP, Kind.RANDOM, 4),
        (Kind.ACCEPT, Kind.ACCEPT, 4),
    ],
)
def test_original_fares_as_its_gateways_let_it(left: Kind, right: Kind, status: int) -> None:
    # By its full path: a program of the same name may come first in PATH.
    original = need("/usr/bin/nat-traverse", package="nat-traverse")
    need_lab()
    with (
        Lab(left, right) as lab,
        lab.left.popen(
            [original, *OPTIONS, f"40000:{lab.right.public.v4}:40001"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as first,
    ):
        eventually(lambda: lab.counters().right_received.packets > 0, "the first side's packet")
        second = lab.right.run(
            [original, *OPTIONS, f"40001:{lab.left.public.v4}:40000"], timeout=60
        )
        output, messages = first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (status, status), (messages, second.stderr)
    assert output == second.stdout.encode() == b""
