"""The play, with two shells and two named pipes in place of the programs and the network."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from nat_traverse.demo import play as module
from nat_traverse.demo.play import perform
from nat_traverse.demo.records import JsonScreen
from nat_traverse.demo.stage import Place, Stage
from nat_traverse.errors import NatTraverseError
from nat_traverse.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nat_traverse.demo.outcome import Outcome

CONNECTED = '{"event": "connected", "elapsed": 0, "peer": "", "observed": null, "round_trip": null}'
SAY = f"echo '{CONNECTED}' >&2; exec 3<&0; "
LEFT = SAY + "cat <&3 >$there & cat $back; wait"
# The shell itself holds the output, too, and the end of the output has to be seen.
RIGHT = SAY + "cat <&3 >$back & cat $there; exec >&-; wait"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZE", 300_000)
    monkeypatch.setattr(module, "LATER", 0.0)
    monkeypatch.setattr(module, "_LIMIT", 30.0)


@pytest.fixture
def play(tmp_path: Path) -> Callable[[str, str], Outcome]:
    there, back = tmp_path / "there", tmp_path / "back"
    os.mkfifo(there)
    os.mkfifo(back)

    def enter(script: str) -> Callable[[Sequence[str]], list[str]]:
        return lambda _: ["sh", "-c", f"there={there} back={back}; {script}"]

    def run(left: str, right: str) -> Outcome:
        stage = Stage(
            Place("left", "drop", Endpoint("198.51.100.2", 40000), enter(left)),
            Place("right", "drop", Endpoint("203.0.113.2", 40001), enter(right)),
            rows=(),
        )
        with (tmp_path / "shown").open("w") as out:
            return asyncio.run(perform(stage, JsonScreen(out)))

    return run


def test_a_file_goes_there_and_its_digest_comes_back(
    play: Callable[[str, str], Outcome],
) -> None:
    outcome = play(LEFT, RIGHT)
    assert outcome.exit_code == 0
    assert outcome.connected_after is not None
    assert outcome.transfer is not None
    assert outcome.transfer.received == 300_000


def test_a_changed_file_is_found(play: Callable[[str, str], Outcome]) -> None:
    outcome = play(LEFT, SAY + "cat <&3 >$back & tr a b <$there; exec >&-; wait")
    assert outcome.statuses == (0, 0)
    assert outcome.transfer is not None
    assert outcome.transfer.received == 300_000
    assert not outcome.transfer.intact
    assert outcome.exit_code == 1


def test_a_lost_file_does_not_stop_the_play(play: Callable[[str, str], Outcome]) -> None:
    outcome = play(LEFT, SAY + "cat <&3 >$back & cat $there >/dev/null; exec >&-; wait; exit 5")
    assert outcome.transfer is not None
    assert outcome.transfer.received == 0
    assert outcome.exit_code == 5


def test_a_wrong_answer_is_found(play: Callable[[str, str], Outcome]) -> None:
    outcome = play(LEFT + "; echo more", RIGHT)
    assert outcome.transfer is not None
    assert outcome.transfer.sent_digest == outcome.transfer.received_digest
    assert not outcome.transfer.intact
    assert outcome.exit_code == 1


def test_a_side_that_dies_in_the_middle_ends_the_play(
    play: Callable[[str, str], Outcome],
) -> None:
    outcome = play(SAY + "head -c 1000 <&3 >$there; kill -9 $$", SAY + "cat $there; exit 104")
    assert outcome.statuses == (-9, 104)
    assert outcome.exit_code == 104


def test_without_a_connection_nothing_is_sent(play: Callable[[str, str], Outcome]) -> None:
    outcome = play("exit 4", "exit 4")
    assert outcome.transfer is None
    assert outcome.connected_after is None
    assert outcome.exit_code == 4


def test_one_side_alone_is_no_tunnel(play: Callable[[str, str], Outcome]) -> None:
    outcome = play(SAY + "cat >/dev/null", "exit 98")
    assert outcome.transfer is None
    assert outcome.exit_code == 98


def test_what_never_ends_is_ended(
    play: Callable[[str, str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMIT", 0.5)
    with pytest.raises(NatTraverseError, match="were stopped"):
        play("exec sleep 1000", "exec sleep 1000")
