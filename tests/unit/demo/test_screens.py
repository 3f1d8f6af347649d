from __future__ import annotations

import errno
import io
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.demo.end import Happening
from nat_traverse.demo.outcome import Moment, Outcome, Transfer
from nat_traverse.demo.records import RECORD_FIELDS, JsonScreen
from nat_traverse.demo.stage import Place, Row, Stage
from nat_traverse.demo.text import TextScreen
from nat_traverse.errors import OutputError
from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from nat_traverse.demo.screen import Screen

LEFT = Place("left", "drop", Endpoint("198.51.100.2", 40000), list)
RIGHT = Place("right", "none", Endpoint("203.0.113.2", 40001), list)
STAGE = Stage(
    LEFT,
    RIGHT,
    (
        Row("left host", "192.168.1.2"),
        Row("gateway", "198.51.100.2", "drop: " + "long " * 20, between=True),
        Row("Internet", "", "2 routers", between=True),
        Row("right host", "203.0.113.2", "none: no gateway"),
    ),
    ("A note.",),
)
GOOD = Outcome(
    0.183,
    Transfer(
        sent=10_000_000,
        received=10_000_000,
        sent_digest="aa",
        received_digest="aa",
        answered=True,
        seconds=0.5,
    ),
    (0, 0),
)


class Out(io.TextIOWrapper):
    """A text stream like standard output, into memory."""

    def __init__(self, *, terminal: bool = False, encoding: str = "utf-8") -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        return self.raw_bytes.getvalue().decode(self.encoding)


class Broken(io.StringIO):
    """A stream that can't be written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


def play(screen: Screen, outcome: Outcome = GOOD) -> None:
    """Show one of everything."""
    screen.fell_back("no nft")
    screen.set_up(STAGE)
    screen.started(0.0, LEFT, "40000:203.0.113.2:40001", ["python", "-m", "nat_traverse"])
    heard = {"event": "heard", "elapsed": 0.1, "text": "heard the peer at 203.0.113.2:40001"}
    screen.happened(Happening("right", 1.1, heard))
    proven = {"event": "validated", "elapsed": 0.1, "text": "the path is open in both directions"}
    screen.happened(Happening("right", 1.1, proven))
    explanation = {"event": "explanation", "text": "S.\nThis means: M.\nTry: A."}
    screen.happened(Happening("left", 1.2, explanation))
    screen.sending(1.3, 10_000_000)
    screen.ended(2.0, "left", 0)
    screen.ended(2.0, "right", -9)
    screen.concluded(2.1, outcome, [Moment(0.0, "left", "started")], 1.0)


def shown(out: Out, *, verbose: bool = False, **environment: str) -> str:
    play(TextScreen(out, verbose=verbose, environment=environment))
    return out.text


def test_text_has_everything_a_reader_wants() -> None:
    text = shown(Out())
    assert "\x1b" not in text
    for line in (
        (
            "No gateways on this machine: no nft. Both ends run over loopback instead, and"
            " --left and --right are ignored."
        ),
        "    left host   192.168.1.2",
        "  │ Internet                  2 routers",
        "    right host  203.0.113.2   none: no gateway",
        "A note.",
        "  left  $ nat-traverse 40000:203.0.113.2:40001",
        "  right $ nat-traverse 40001:198.51.100.2:40000",
        "   0.00 s  left  │ $ nat-traverse 40000:203.0.113.2:40001",
        "   1.10 s  right │ heard the peer at 203.0.113.2:40001",
        "   1.20 s  left  │ S.",
        "           left  │ This means: M.",
        "           left  │ Try: A.",
        "   2.00 s  left  │ has exited with status 0",
        "   2.00 s  right │ has exited by signal 9",
        "   -1000  started",
        "10,000,000 of 10,000,000 bytes came out on the right, in 0.50 s (20 MB/s).",
    ):
        assert line in text.splitlines()
    assert "10,000,000 random bytes go into left, as fast as right takes them" in text
    assert text.endswith(f"\n{GOOD.verdict}\n")


def test_details_are_for_verbose() -> None:
    assert "open in both directions" not in shown(Out())
    assert "python -m nat_traverse" not in shown(Out())
    text = shown(Out(), verbose=True)
    assert "   1.10 s  right │ the path is open in both directions" in text
    assert "   0.00 s  demo  │ runs python -m nat_traverse" in text


def test_colours_are_for_terminals_whose_user_wants_them() -> None:
    assert "\x1b[36mleft " in shown(Out(terminal=True))
    assert "\x1b[1;32mOK: " in shown(Out(terminal=True))
    assert "\x1b[" in shown(Out(terminal=True), NO_COLOR="")
    assert "\x1b" not in shown(Out(terminal=True), NO_COLOR="1")
    assert "\x1b" not in shown(Out())


def test_failure_is_red() -> None:
    out = Out(terminal=True)
    outcome = Outcome(None, None, (4, 4))
    play(TextScreen(out, verbose=False, environment={}), outcome)
    assert f"\x1b[1;31m{outcome.verdict}" in out.text
    assert "bytes came out" not in out.text


def test_lines_are_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(Out(terminal=True)))
    body = text.partition("The same as a timeline")[0]
    sketched = [line for line in body.splitlines() if "No gateways" not in line]
    assert max(map(len, sketched)) <= 80
    assert "  │                           long" in text
    assert "           demo  │ " in text


def test_a_terminal_without_the_character_gets_another() -> None:
    text = shown(Out(encoding="latin-1"))
    assert "│" not in text
    assert "   1.10 s  right | heard the peer at 203.0.113.2:40001\n" in text


def records(outcome: Outcome = GOOD) -> list[dict[str, Any]]:
    out = Out()
    play(JsonScreen(out), outcome)
    return [json.loads(line) for line in out.text.splitlines()]


def test_json_is_one_documented_object_a_line() -> None:
    documentation = dict(RECORD_FIELDS)
    for record in records():
        assert next(iter(record)) == "event"
        assert record["side"] in ("left", "right", "demo")
        assert isinstance(record["at"], float)
        if record["side"] == "demo":
            fields = set(record) - {"event", "side", "at"}
            assert all(f"`{field}`" in documentation[record["event"]] for field in fields)


def test_json_has_the_lines_of_both_sides_as_they_are() -> None:
    (heard,) = (record for record in records() if record["event"] == "heard")
    assert heard == {
        "event": "heard",
        "elapsed": 0.1,
        "text": "heard the peer at 203.0.113.2:40001",
        "side": "right",
        "at": 1.1,
    }


def test_json_ends_with_the_result() -> None:
    assert records()[-1] == {
        "event": "result",
        "side": "demo",
        "at": 2.1,
        "connected_after": 0.183,
        "sent": 10_000_000,
        "received": 10_000_000,
        "sha256_sent": "aa",
        "sha256_received": "aa",
        "answered": True,
        "seconds": 0.5,
        "statuses": {"left": 0, "right": 0},
        "exit_code": 0,
    }
    failed = records(Outcome(None, None, (4, 4)))[-1]
    assert failed["connected_after"] is failed["sent"] is failed["sha256_received"] is None
    assert failed["exit_code"] == 4


@pytest.mark.parametrize("json_lines", [False, True])
def test_what_cannot_be_written_is_an_error(json_lines: bool) -> None:
    full = Broken(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    screen: Screen = (
        JsonScreen(full) if json_lines else TextScreen(full, verbose=False, environment={})
    )
    with pytest.raises(OutputError, match="No space left") as caught:
        screen.set_up(STAGE)
    assert caught.value.exit_code == errno.ENOSPC


def test_a_reader_that_left_is_another_matter() -> None:
    screen = JsonScreen(Broken(BrokenPipeError(errno.EPIPE, "gone")))
    with pytest.raises(BrokenPipeError):
        screen.fell_back("x")
