"""New with old: our program and nat-traverse 0.7, each behind a real kernel NAT."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest

from nat_traverse.lab import Kind, Lab
from nat_traverse.punch.legacy import GRACE
from nat_traverse.wire.hello import ACK_MAGIC, HELLO_MAGIC
from support.lab import Tap, need_lab
from support.programs import Program, original, ours, theirs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.lab import Host

LEFT_PORT, RIGHT_PORT = 40000, 40001
# Long enough for 0.7 to send something, short enough for a test; even, since with an odd window
# an ICMP refusal makes it lose its own acknowledgement.
WINDOW = ("--window=2", "--timeout=20")

HELLOS_A_SECOND = 12  # of every rung together, on the agreed pair: ten, and some slack


@pytest.fixture
def lab() -> Iterator[Lab]:
    need_lab()
    original()
    with Lab(Kind.DROP, Kind.DROP) as lab:
        yield lab


def spec(lab: Lab, side: str) -> str:
    if side == "left":
        return f"{LEFT_PORT}:{lab.right.public.v4}:{RIGHT_PORT}"
    return f"{RIGHT_PORT}:{lab.left.public.v4}:{LEFT_PORT}"


def host(lab: Lab, side: str) -> Host:
    return lab.left if side == "left" else lab.right


def lose(lab: Lab, percent: int) -> None:
    """Lose packets at random, but not the acknowledgements, of which 0.7 has exactly one.

    0.7 does not survive the loss of that. The letter at offset 13 of the payload, behind the 8
    bytes of the UDP header, tells `nat-traverse-ackacka` from `nat-traverse-garbage`.
    """
    rules = f"""
    table ip losing {{
     chain forwarded {{
      type filter hook forward priority 10
      meta l4proto udp @th,168,8 != {ord("a"):#x} numgen random mod 100 < {percent} drop
     }}
    }}
    """
    result = lab.internet[0].run(["nft", "-f", "-"], text=rules)
    assert result.returncode == 0, result.stderr


def text(seed: int) -> bytes:
    """Return 20 kB of text in lines."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 .,;"
    lines: list[str] = []
    while sum(map(len, lines)) < 20_000:
        lines.append("".join(chance.choices(letters, k=chance.randint(0, 120))) + "\n")
    return "".join(lines).encode()[:20_000] + b"\n"


@contextlib.contextmanager
def pair(
    lab: Lab, new: str, *our_options: str, old_options: tuple[str, ...] = ()
) -> Iterator[tuple[Program, Program]]:
    """Run our program on the side `new` and 0.7, with a terminal for its output, on the other."""
    old = "right" if new == "left" else "left"
    with ours("--json", *our_options, spec(lab, new), node=host(lab, new)) as young:
        # 0.7 sends all its packets within the two seconds of its window, and none after that.
        young.event("opened")
        with theirs(
            *WINDOW, *old_options, spec(lab, old), node=host(lab, old), terminal=True
        ) as aged:
            yield young, aged


def relay_both_ways(young: Program, aged: Program, out: bytes, back: bytes) -> None:
    """Let the two find each other, carry `out` to 0.7 and `back` to us, and end, one by one."""
    assert young.event("connected")["generation"] == "0.7"
    aged.says("Connection established")
    young.write(out)
    aged.write(back)
    assert aged.prints(len(out)) == out
    assert young.prints(len(back)) == back
    young.close_input()
    assert young.wait() == 0
    aged.close_input()
    assert aged.wait() == 0
    assert (young.output, aged.output) == (back, out)


@pytest.mark.parametrize("new", ["left", "right"])
class TestBothWays:
    def test_relay_is_exact_in_both_directions(self, lab: Lab, new: str) -> None:
        with pair(lab, new) as (young, aged):
            relay_both_ways(young, aged, text(1), text(2))

    def test_data_that_waits_for_the_connection_arrives_first(self, lab: Lab, new: str) -> None:
        with pair(lab, new) as (young, aged):
            young.write(b"early\n")
            aged.write(b"bird\n")
            assert aged.prints(6) == b"early\n"
            assert young.prints(5) == b"bird\n"

    def test_our_command(self, lab: Lab, new: str) -> None:
        with pair(lab, new, "--cmd", "read line; echo got $line; exit 7") as (young, aged):
            young.event("running")
            aged.says("Connection established")
            aged.write(b"this\n")
            assert aged.prints(9) == b"got this\n"
            assert young.wait() == 7
            aged.close_input()
            assert aged.wait() == 0

    def test_their_command(self, lab: Lab, new: str) -> None:
        # `head` reads a block at a time: reading a datagram byte by byte loses the rest of it.
        command = "head -n 1; echo and that"
        with pair(lab, new, old_options=(f"--cmd={command}",)) as (young, aged):
            young.event("connected")
            aged.says("exec()ing")
            young.write(b"this\n")
            assert young.prints(14) == b"this\nand that\n"
            assert aged.wait() == 0
            young.close_input()
            assert young.wait() == 0

    @pytest.mark.parametrize("loss", [0, 5])
    def test_quit_after_connect(self, lab: Lab, new: str, loss: int) -> None:
        if loss:
            lose(lab, loss)
        quitting = "--quit-after-connect"
        with pair(lab, new, quitting, old_options=(quitting,)) as (young, aged):
            assert (young.wait(), aged.wait()) == (0, 0)
            assert young.events[-1]["event"] == "connected"

    @pytest.mark.parametrize("window", ["0", "2", "5"])
    def test_our_window(self, lab: Lab, new: str, window: str) -> None:
        with pair(
            lab, new, "--window", window, "--quit", old_options=("--quit-after-connect",)
        ) as (young, aged):
            assert (young.wait(), aged.wait()) == (0, 0)

    def test_the_original_started_first_by_its_own_patience(self, lab: Lab, new: str) -> None:
        old = "right" if new == "left" else "left"
        with theirs(
            "--window=6", "--timeout=20", "--quit", spec(lab, old), node=host(lab, old)
        ) as aged:
            aged.says("Sending 6 initial packets... .")
            with ours("--quit", spec(lab, new), node=host(lab, new)) as young:
                assert (young.wait(), aged.wait()) == (0, 0)


def test_nothing_of_ours_comes_out_of_the_original(lab: Lab) -> None:
    """Only what was typed, though hellos were under way until it was known for what it is."""
    with pair(lab, "left") as (young, aged):
        aged.says("Connection established")
        young.event("connected")
        for number in range(20):
            young.write(b"%d\n" % number)
            aged.prints(len(b"".join(b"%d\n" % sent for sent in range(number + 1))))
        young.close_input()
        assert young.wait() == 0
        aged.close_input()
        aged.wait()
        assert aged.output == b"".join(b"%d\n" % number for number in range(20))


@pytest.mark.parametrize("new", ["left", "right"])
def test_an_original_that_comes_when_the_ladder_is_far_up(lab: Lab, new: str) -> None:
    """It gets bare magics and the user's data, and nothing else once it is known for what it is."""
    old = "right" if new == "left" else "left"
    out, back = text(1), text(2)
    with (
        Tap(host(lab, new)) as tap,
        ours("--json", spec(lab, new), node=host(lab, new)) as young,
    ):
        young.event("trying", strategy="spray")
        young.event("trying", strategy="quiet")
        with theirs(*WINDOW, spec(lab, old), node=host(lab, old), terminal=True) as aged:
            relay_both_ways(young, aged, out, back)
    ports = {LEFT_PORT, RIGHT_PORT}
    on_pair = [
        packet for packet in tap.packets if {packet.source[1], packet.destination[1]} == ports
    ]
    heard = next(number for number, packet in enumerate(on_pair) if not packet.leaves)
    sent = [packet.data for packet in on_pair[heard:] if packet.leaves]
    ack = sent.index(ACK_MAGIC)
    # Until it is believed, which takes a second, hellos with a tail go on: it ignores them.
    assert all(data.startswith(HELLO_MAGIC) for data in sent[:ack])
    assert ack <= GRACE * HELLOS_A_SECOND
    assert b"".join(sent[ack + 1 :]) == out
