"""The fuzz targets, for five seconds and with another seed each time; and that they find things."""

from __future__ import annotations

import inspect
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz import fuzz_messages, fuzz_packets, fuzz_sealed
from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire import hello as wire

FUZZERS = (fuzz_messages, fuzz_packets, fuzz_sealed)
SCRIPTS = tuple(Path(inspect.getfile(each)) for each in FUZZERS)


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


@pytest.mark.parametrize("fuzz", FUZZERS, ids=lambda fuzz: fuzz.__name__)
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


@pytest.mark.parametrize("fuzz", FUZZERS, ids=lambda fuzz: fuzz.__name__)
def test_a_failure_is_told_with_what_runs_it_again(
    fuzz: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(data: bytes) -> set[str]:
        raise ZeroDivisionError(data)

    target = list(fuzz.TARGET_FUNCTIONS)[-1]
    first = fuzz.Campaign(1, [target]).corpus[target][0]
    monkeypatch.setitem(fuzz.TARGET_FUNCTIONS, target, fails)
    assert fuzz.main(["--target", target, "--seconds", "1", "--seed", "1"]) == 1
    said = capsys.readouterr().out
    assert "ZeroDivisionError" in said
    _, _, command = said.partition("reproduce: python ")
    script, *arguments = command.split()
    assert Path(__file__).parents[2] / script == Path(fuzz.__file__)
    assert arguments == ["--replay", target, first.hex()]
    with pytest.raises(ZeroDivisionError):
        fuzz.main(arguments)
