from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nat_traverse.cli.credentials import read_identity, read_peer_keys
from nat_traverse.cli.keygen import run_keygen
from nat_traverse.tunnel.keys import decode_public, public_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_a_new_key_is_its_owners_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], umask: int
) -> None:
    path = tmp_path / "my key"
    before = os.umask(umask)
    try:
        assert run_keygen(str(path)) == 0
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600
    output, advice = capsys.readouterr()
    assert output.count("\n") == 1
    assert read_peer_keys([output]) == (public_of(read_identity(str(path))),)
    assert f"--identity '{path}'" in advice
    assert f"--peer-key {output}" in advice


def test_every_key_is_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run_keygen(str(tmp_path / name))
    first, second = map(decode_public, capsys.readouterr().out.split())
    assert first != second


def test_the_public_half_can_be_had_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "key")
    run_keygen(path)
    made = capsys.readouterr().out
    assert run_keygen(path, public=True) == 0
    assert capsys.readouterr() == (made, "")


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for name in (path, link):
        assert run_keygen(str(name)) == errno.EEXIST
        output, complaint = capsys.readouterr()
        assert output == ""
        assert "not overwritten" in complaint
        assert f"keygen --public {name}" in complaint
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_keygen(str(tmp_path / "no" / "key")) == errno.ENOENT
    assert "Cannot write" in capsys.readouterr().err
    assert run_keygen(str(tmp_path / "key"), public=True) == errno.ENOENT
    assert "Cannot read the identity" in capsys.readouterr().err


def test_half_a_key_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    assert run_keygen(str(tmp_path / "key")) == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in capsys.readouterr().err


def test_a_full_device_as_standard_output_still_tells_the_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    program = f"""
from nat_traverse.cli.keygen import run_keygen
raise SystemExit(run_keygen({str(path)!r}))
"""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device)
        run = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert run.returncode == errno.ENOSPC
    assert decode_public(run.stderr.split()[3].rstrip(":")) == public_of(read_identity(str(path)))
    assert run.stderr.count("\n") == 1
