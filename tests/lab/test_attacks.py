"""Attacks on the encrypted tunnel, by real programs and a real man in the middle.

Whatever is tried: the command is never started, no byte comes out or reaches a port, both sides say
why, and end with the documented exit code.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nat_traverse.api import MOST_FAILURES
from nat_traverse.errors import EXIT_NO_PATH
from nat_traverse.lab import Kind, Lab
from nat_traverse.link.establish import EXIT_MODES_DIFFER
from nat_traverse.tunnel.keys import decode_private, public_of
from nat_traverse.tunnel.proof import Means
from nat_traverse.tunnel.refusals import EXIT_NOT_PROVEN
from nat_traverse.wire.hello import MAGIC_PREFIX, Mode
from support.lab import Tap, tcp_connection, tcp_listener, udp_socket
from support.middle import Downgrader, Frames, Nonces, Repeater, Spoiler, Terminator
from support.programs import OURS, Program, original, ours, theirs
from support.sides import LEFT_PORT, RIGHT_PORT, address, transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.lab import Packet

PHRASE = "correct horse battery staple"
TEXT = b"the text that nobody but the peer may read\n"

# s after which a side gives up where nothing else ends it: ten times what an attempt takes. The
# window for a peer of generation 0.7 comes on top of it.
DEADLINE = "10"

HIDDEN_SERVICE = 9000
FORWARDED = 8080


class Sort(NamedTuple):
    """What a side is given to prove who it is."""

    options: tuple[str, ...] = ()
    secret: str | None = None

    @property
    def env(self) -> dict[str, str]:
        return {} if self.secret is None else {"NAT_TRAVERSE_SECRET": self.secret}


NOTHING = Sort()
KNOWS = Sort((), PHRASE)


@pytest.fixture
def lab() -> Iterator[Lab]:
    # Behind gateways that refuse nothing, neither side keeps still because the other one is late.
    with Lab(Kind.DROP, Kind.DROP, offload=False) as lab:
        yield lab


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def run_left(lab: Lab, sort: Sort, *options: str, timeout: str = "60") -> Program:
    arguments = ("--json", "--window=1", "--timeout", timeout, *sort.options, *options)
    spec = f"{LEFT_PORT}:{address(lab.right)}:{RIGHT_PORT}"
    return ours(*arguments, spec, node=lab.left, env=sort.env)


def run_right(lab: Lab, sort: Sort, *options: str, timeout: str = "60") -> Program:
    arguments = ("--json", "--window=1", "--timeout", timeout, *sort.options, *options)
    spec = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
    return ours(*arguments, spec, node=lab.right, env=sort.env)


def command(mark: Path) -> tuple[str, str]:
    return "--cmd", f"touch {mark}; echo from the command"


@contextmanager
def victims(
    lab: Lab, mark: Path, one: Sort, other: Sort, *, timeout: str = "60"
) -> Iterator[tuple[Program, Program]]:
    """Run a command on the left and a relay on the right; nothing may come of either."""
    with (
        run_left(lab, one, *command(mark), timeout=timeout) as left,
        run_right(lab, other, timeout=timeout) as right,
    ):
        right.write(TEXT)
        yield left, right
        assert right.output == left.output == b""
        assert not mark.exists()


def error_of(program: Program, status: int) -> str:
    """Wait for its end and return what it says of it."""
    assert program.wait() == status
    error = program.event("error")
    assert error["exit_code"] == status
    return str(error["message"])


def assert_given_up(program: Program, why: str) -> None:
    """See that a side gave up after so many attempts, and said of each what `why` matches."""
    message = error_of(program, EXIT_NOT_PROVEN)
    assert f"That was attempt {MOST_FAILURES}" in message
    rejected = [event for event in program.events if event["event"] == "rejected"]
    assert [event["failures"] for event in rejected] == list(range(1, MOST_FAILURES))
    for text in (*(event["message"] for event in rejected), message):
        assert re.search(why, text), text


NOT_KNOWN = "does not know the secret"
NOT_KNOWN_OR_ODD = f"{NOT_KNOWN}|does not keep to the protocol"


def test_another_secret(lab: Lab, mark: Path) -> None:
    with victims(lab, mark, KNOWS, Sort((), f"{PHRASE}.")) as sides:
        for side in sides:
            assert_given_up(side, NOT_KNOWN)


@pytest.mark.parametrize("commander", ["with", "without"])
def test_no_secret(lab: Lab, mark: Path, tmp_path: Path, commander: str) -> None:
    """Who has none learns at once that one is needed; who has one waits for somebody better."""
    file = tmp_path / "secret"
    file.write_text(f"{PHRASE}\n")
    file.chmod(0o600)
    knowing = Sort(("--secret-file", str(file)))
    sorts = (knowing, NOTHING) if commander == "with" else (NOTHING, knowing)
    with victims(lab, mark, *sorts, timeout=DEADLINE) as (left, right):
        first, second = (right, left) if commander == "with" else (left, right)
        assert "secret" in error_of(first, EXIT_NOT_PROVEN)
        assert "secret" in second.event("rejected", failures=1)["message"]
        # Nobody comes any more; at the deadline it is the refusal that explains why.
        assert "secret" in error_of(second, EXIT_NOT_PROVEN)


def test_a_peer_of_0_7_has_no_secret(lab: Lab, mark: Path) -> None:
    original()
    target = f"{RIGHT_PORT}:{address(lab.left)}:{LEFT_PORT}"
    with run_left(lab, KNOWS, *command(mark), timeout=DEADLINE) as left:
        left.event("opened")  # a refusal would end 0.7
        with theirs("--window=2", "--timeout=2", target, node=lab.right) as right:
            right.write(TEXT)
            assert right.wait() == EXIT_NO_PATH
            assert "timeout" in right.errors.lower()
            assert left.wait() == EXIT_NO_PATH
            assert left.event("explanation", code="old-peer")
            assert right.output == left.output == b""
    assert not mark.exists()


def test_plain_with_tunnel(lab: Lab, mark: Path) -> None:
    with victims(lab, mark, NOTHING, Sort(("--plain",))) as (left, right):
        assert "--plain" in error_of(left, EXIT_MODES_DIFFER)
        assert "--plain" in error_of(right, EXIT_MODES_DIFFER)


def test_nothing_of_what_is_exposed_is_reached(lab: Lab) -> None:
    forward = f"{FORWARDED}:127.0.0.1:{HIDDEN_SERVICE}"
    with (
        tcp_listener(lab.right, HIDDEN_SERVICE) as hidden,
        run_left(lab, Sort((), "wrong"), "-L", forward) as left,
    ):
        left.event("listening")
        with run_right(lab, KNOWS, "--expose", "any") as right:
            for failures in range(1, MOST_FAILURES):
                left.event("rejected", failures=failures)
                assert_turned_away(lab)
            for side in (left, right):
                assert_given_up(side, NOT_KNOWN)
        hidden.setblocking(False)
        with pytest.raises(BlockingIOError):
            hidden.accept()


def assert_turned_away(lab: Lab) -> None:
    """Connect to the forwarded port, if it is still there; nothing may come back."""
    try:
        client = tcp_connection(lab.left, FORWARDED)
    except AssertionError:
        return  # it has given up by now
    with client, suppress(ConnectionError):
        client.sendall(TEXT)
        assert client.recv(1) == b""


# -- keys ------------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """Two sides that know each other's key."""

    left: Sort
    right: Sort
    public: dict[str, bytes]
    files: dict[str, Path]


def keygen(file: Path) -> str:
    with Program([OURS, "keygen", str(file)]) as made:
        assert made.wait() == 0
        return made.output.decode().strip()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    files = {name: tmp_path / name for name in ("left", "right")}
    texts = {name: keygen(file) for name, file in files.items()}
    public = {name: public_of(decode_private(file.read_bytes())) for name, file in files.items()}
    return Keys(
        Sort(("--identity", str(files["left"]), "--peer-key", texts["right"])),
        Sort(("--identity", str(files["right"]), "--peer-key", texts["left"])),
        public,
        files,
    )


def test_a_changed_key(lab: Lab, mark: Path, keys: Keys) -> None:
    """The one side is refused; the other one, whose key is right, stays until nobody comes."""
    keys.files["right"].unlink()
    new = keygen(keys.files["right"])
    with victims(lab, mark, keys.left, keys.right, timeout=DEADLINE) as (left, right):
        assert "does not accept the key" in error_of(right, EXIT_NOT_PROVEN)
        assert f"not among those given with --peer-key: {new}" in error_of(left, EXIT_NOT_PROVEN)


# -- an earlier run --------------------------------------------------------------------------------


def test_an_earlier_run_is_worth_nothing(lab: Lab, mark: Path) -> None:
    with Tap(lab.left) as tap:
        with (
            run_left(lab, KNOWS, "--cmd", f"cat; touch {mark}") as left,
            run_right(lab, KNOWS) as right,
        ):
            right.write(TEXT)
            right.close_input()
            assert (left.wait(), right.wait()) == (0, 0)
            assert right.output == TEXT
        packets = [packet for packet in tap.packets if not packet.leaves]
    assert mark.exists(), "the run has to be one that does something"
    mark.unlink()
    with (
        udp_socket(lab.right, RIGHT_PORT) as sender,
        run_left(lab, KNOWS, *command(mark), timeout="3") as left,
    ):
        left.event("opened")
        assert any(packet.data.startswith(MAGIC_PREFIX) for packet in packets)
        replay(packets, sender, (address(lab.left), LEFT_PORT))
        error_of(left, EXIT_NO_PATH)
        assert left.output == b""
        names = {event["event"] for event in left.events}
        assert not names & {"validated", "connected", "rejected"}
    assert not mark.exists()


def replay(packets: Sequence[Packet], sender: object, to: tuple[str, int]) -> None:
    """Send what was captured twice: as quickly as may be, and with the pauses that there were."""
    for paced in (False, True):
        before = packets[0].at
        for packet in packets:
            if paced:
                time.sleep(min(0.2, max(0.0, packet.at - before)))
                before = packet.at
            sender.sendto(packet.data, to)  # type: ignore[attr-defined]


# -- somebody in the middle ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nonces", "frames"),
    [
        (Nonces.KEEP, Frames.RELAY),
        (Nonces.CHANGE, Frames.RELAY),
        (Nonces.CHANGE, Frames.OWN),
        (Nonces.CHANGE, Frames.REFLECT),
    ],
    ids=lambda value: value.name.lower(),
)
def test_in_the_middle_with_a_secret(lab: Lab, mark: Path, nonces: Nonces, frames: Frames) -> None:
    guess = Means(b"password")
    with (
        Terminator(lab, nonces, frames, (guess, guess)) as middle,
        victims(lab, mark, KNOWS, KNOWS, timeout="20") as sides,
    ):
        for side in sides:
            assert_given_up(side, NOT_KNOWN_OR_ODD)
        assert_he_tried(middle)


@pytest.mark.parametrize(
    ("nonces", "frames"),
    [
        (Nonces.KEEP, Frames.RELAY),
        (Nonces.CHANGE, Frames.RELAY),
        (Nonces.CHANGE, Frames.OWN),
        (Nonces.CHANGE, Frames.REFLECT),
    ],
    ids=lambda value: value.name.lower(),
)
def test_in_the_middle_with_keys(
    lab: Lab, mark: Path, keys: Keys, nonces: Nonces, frames: Frames
) -> None:
    # What he lacks is a key that they accept; what theirs are he may know.
    own = [Means(identity=bytes(32), peer_keys=(keys.public[side],)) for side in ("left", "right")]
    with (
        Terminator(lab, nonces, frames, (own[0], own[1])) as middle,
        victims(lab, mark, keys.left, keys.right, timeout="20") as sides,
    ):
        for side in sides:
            assert_given_up(side, "signature|among those given with --peer-key|accept the key")
        assert_he_tried(middle)


def assert_he_tried(middle: Terminator) -> None:
    """See that the attack was one: channels with both sides, and something said in them."""
    assert middle.channels >= 2 * MOST_FAILURES - 1
    assert middle.proofs >= 2 * MOST_FAILURES
    assert middle.read == b""


@pytest.mark.parametrize("frames", [Frames.RELAY, Frames.OWN], ids=lambda value: value.name.lower())
def test_in_the_middle_without_a_proof_the_codes_differ(lab: Lab, frames: Frames) -> None:
    """This one he gets: he reads and writes all. The two users can see it."""
    with (
        Terminator(lab, Nonces.CHANGE, frames, (Means(), Means())) as middle,
        run_left(lab, NOTHING) as left,
        run_right(lab, NOTHING) as right,
    ):
        codes = [side.event("code")["code"] for side in (left, right)]
        left.write(TEXT)
        assert right.prints(len(TEXT)) == TEXT
        assert TEXT in middle.read
        assert all(re.fullmatch(r"\d{3} \d{3}", code) for code in codes)
        assert codes[0] != codes[1]


def test_without_anybody_in_the_middle_the_codes_are_the_same(lab: Lab) -> None:
    with run_left(lab, NOTHING) as left, run_right(lab, NOTHING) as right:
        assert left.event("code")["code"] == right.event("code")["code"]
        transfer(left, right)


def test_in_the_middle_who_makes_them_out_to_be_plain(lab: Lab, mark: Path) -> None:
    with (
        Downgrader(lab, Mode.PLAIN),
        victims(lab, mark, KNOWS, KNOWS) as (left, right),
    ):
        for side in (left, right):
            assert "Nothing was sent in the clear" in error_of(side, EXIT_MODES_DIFFER)


def test_in_the_middle_who_makes_them_out_to_be_0_7(lab: Lab, mark: Path) -> None:
    with (
        Downgrader(lab, None),
        victims(lab, mark, KNOWS, KNOWS, timeout=DEADLINE) as (left, right),
    ):
        for side in (left, right):
            error_of(side, EXIT_NO_PATH)
            assert side.event("explanation", code="old-peer")


def test_in_the_middle_who_spoils_packets(lab: Lab) -> None:
    """That is loss, and no more."""
    with (
        Spoiler(lab, seed=7, share=0.1) as middle,
        run_left(lab, KNOWS) as left,
        run_right(lab, KNOWS) as right,
    ):
        transfer(left, right, 200_000)
        assert middle.spoiled > 10


def test_in_the_middle_who_repeats_everything(lab: Lab) -> None:
    with (
        Repeater(lab) as middle,
        run_left(lab, KNOWS) as left,
        run_right(lab, KNOWS) as right,
    ):
        left.write(TEXT)
        assert right.prints(len(TEXT)) == TEXT
        middle.repeat()
        right.write(TEXT)
        assert left.prints(len(TEXT)) == TEXT
        left.close_input()
        right.close_input()
        assert (left.wait(), right.wait()) == (0, 0)
        assert left.output == right.output == TEXT
        assert middle.repeated > 10
