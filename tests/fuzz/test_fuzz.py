"""The fuzz targets, for five seconds and with another seed each time; and that they find things."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz import fuzz_messages, fuzz_packets, fuzz_sealed
from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire import hello as wire

CAMPAIGNS = (fuzz_messages, fuzz_packets, fuzz_sealed)
SCRIPTS = tuple(
    Path(__file__).with_name(f"{each.__name__.rpartition('.')[2]}.py") for each in CAMPAIGNS
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_five_seconds_of_fuzzing(script: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    run = subprocess.run(
        [sys.executable, script, "--seconds", "5", "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    sys.stdout.write(run.stdout)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"
    assert f"seed {seed}" in run.stdout


@pytest.mark.parametrize("fuzz", CAMPAIGNS, ids=lambda fuzz: fuzz.__name__)
def test_a_seed_repeats_the_run(fuzz: Any) -> None:
    inputs = []
    for _ in range(2):
        campaign = fuzz.Campaign(7, list(fuzz.TARGET_FUNCTIONS))
        inputs.append([campaign.next_input(name) for name in campaign.targets for _ in range(50)])
    assert inputs[0] == inputs[1]


def test_a_broken_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_length(value: bytes | None, _size: int) -> bytes | None:
        return value

    monkeypatch.setattr(wire, "_exactly", forgets_the_length)
    failure = fuzz_messages.Campaign(7, ["decode"]).run(60)
    assert failure is not None
    assert failure.target == "decode"
    monkeypatch.undo()
    with pytest.raises(RemoteProtocolError):
        wire.decode(failure.data)  # it is no message, and the sound parser says so


def test_a_failure_is_told_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(data: bytes) -> set[str]:
        raise ZeroDivisionError(data)

    monkeypatch.setitem(fuzz_messages.TARGET_FUNCTIONS, "target", fails)
    assert fuzz_messages.main(["--target", "target", "--seconds", "1", "--seed", "1"]) == 1
    said = capsys.readouterr().out
    assert "ZeroDivisionError" in said
    assert f"--replay target {fuzz_messages.TARGETS[0].hex()}" in said
