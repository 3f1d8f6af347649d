from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nat_traverse.errors import ErrnoError
from nat_traverse.net.status_socket import NameInUseError, StatusSocket, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0
NOBODY = 65534


@pytest.fixture
def directory(tmp_path: Path) -> str:
    # Not all of pytest's own path, for that of a socket has to be short.
    return str(tmp_path / "run")


@contextmanager
def claimed(directory: str, name: str = "home") -> Iterator[StatusSocket]:
    claim = StatusSocket(directory, name)
    try:
        yield claim
    finally:
        claim.release()


def answers(claim: StatusSocket, answer: bytes, *, times: int = 1) -> list[bytes | None]:
    async def run() -> list[bytes | None]:
        await claim.serve(lambda: answer)
        return [await asyncio.to_thread(ask, claim.path, PATIENCE) for _ in range(times)]

    return asyncio.run(run())


def test_everybody_who_asks_gets_the_answer(directory: str) -> None:
    with claimed(directory) as claim:
        assert answers(claim, b"{}\n", times=3) == [b"{}\n"] * 3
    assert not Path(directory).exists()


def test_the_last_one_removes_the_directory(directory: str) -> None:
    with claimed(directory) as first:
        with claimed(directory, "other"):
            pass
        assert answers(first, b"x") == [b"x"]
    assert not Path(directory).exists()


def test_others_things_stay(directory: str) -> None:
    with claimed(directory):
        Path(directory, "left").mkdir()
    assert os.listdir(directory) == ["left"]  # noqa: PTH208


def test_a_directory_that_is_removed_meanwhile_is_made_again(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        if not removed:  # by the last owner, who had the lock until now
            removed.append(directory)
            Path(directory, "home.lock").unlink()
            Path(directory).rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(directory) as claim:
        assert removed
        assert answers(claim, b"x") == [b"x"]


def test_a_long_answer(directory: str) -> None:
    long = bytes(800_000)
    with claimed(directory) as claim:
        assert answers(claim, long) == [long]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_only_this_user_gets_at_it(directory: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        with claimed(directory) as claim:
            passable = 0o700 if os.geteuid() else 0o711
            lock = claim.path.replace(".sock", ".lock")
            for path, mode in ((directory, passable), (claim.path, 0o600), (lock, 0o600)):
                assert stat.S_IMODE(os.stat(path).st_mode) == mode  # noqa: PTH116
    finally:
        os.umask(before)


def test_a_service_gets_through_the_directory_of_root_to_its_own() -> None:
    """As the unit's user does, whose directory is below root's; see docs/systemd."""
    if os.geteuid() != 0:
        pytest.skip("only root has such a directory")
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        Path(top).chmod(0o755)
        with claimed(f"{top}/run"):
            own = Path(top, "run", "left")
            own.mkdir(mode=0o700)
            os.chown(own, NOBODY, NOBODY)
            for place, comes_in in ((own, True), (own.parent, False)):
                script = 'touch "$0/x" 2>/dev/null'
                run = subprocess.run(["sh", "-c", script, place], user=NOBODY, check=False)
                assert (run.returncode == 0) == comes_in


def test_a_second_one_of_the_same_name_is_refused(directory: str) -> None:
    with claimed(directory) as claim:
        with pytest.raises(NameInUseError) as caught:
            StatusSocket(directory, "home")
        assert caught.value.exit_code == errno.EADDRINUSE
        assert "nat-traverse status home" in str(caught.value)
        # Which changes nothing for the first one, or for others.
        with claimed(directory, "other"):
            assert answers(claim, b"still here") == [b"still here"]


def test_the_name_can_be_had_again(directory: str) -> None:
    for _ in range(2):
        with claimed(directory) as claim:
            assert answers(claim, b"x") == [b"x"]
            claim.release()
            assert ask(claim.path, PATIENCE) is None
            with pytest.raises(ValueError, match="released"):
                answers(claim, b"x")


HOLDER = """\
import signal, sys
from nat_traverse.net.status_socket import StatusSocket
claim = StatusSocket(sys.argv[1], "home")
print("there", flush=True)
signal.pause()
"""


@contextmanager
def holder(directory: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the name, and does not answer."""
    command = [sys.executable, "-c", HOLDER, directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        try:
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_has_left_is_replaced(directory: str) -> None:
    with holder(directory) as process:
        with pytest.raises(NameInUseError):
            StatusSocket(directory, "home")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(os.listdir(directory)) == {"home.lock", "home.sock"}  # noqa: PTH208
    assert ask(f"{directory}/home.sock", PATIENCE) is None
    with claimed(directory) as claim:
        assert answers(claim, b"again") == [b"again"]


def test_a_process_that_hangs_has_an_empty_answer(directory: str) -> None:
    with holder(directory):
        assert ask(f"{directory}/home.sock", 0.05) == b""


@contextmanager
def talking(path: str, piece: bytes) -> Iterator[None]:
    """Somebody at `path` who says `piece` to the first who asks, again and again."""

    def talk() -> None:
        with suppress(OSError):  # who has asked is gone
            accepted, _ = listener.accept()
            with accepted:
                while not ended.wait(0.005):
                    accepted.sendall(piece)

    ended = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("piece", [b"x", bytes(300_000)])
def test_one_that_never_ends_has_an_empty_answer(tmp_path: Path, piece: bytes) -> None:
    with talking(f"{tmp_path}/home.sock", piece):
        assert ask(f"{tmp_path}/home.sock", 0.2 if piece == b"x" else PATIENCE) == b""


def test_one_that_too_many_have_asked_already_has_one_too(directory: str) -> None:
    Path(directory).mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{directory}/home.sock")
        listener.listen(0)
        listener.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(f"{directory}/home.sock")
            # The queue is full, so that there is not even a connection.
            assert ask(f"{directory}/home.sock", 0.05) == b""


def test_a_lock_that_was_removed_in_between_is_none(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last owner removes it after we have opened it, and before we have locked it."""
    Path(directory).mkdir()
    lock = Path(directory, "home.lock")
    removed: list[int] = []
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(os.fstat(descriptor).st_ino)
            lock.rename(lock.with_suffix(".old"))  # renamed, lest its number is given away again
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(directory):
        assert removed
        assert lock.stat().st_ino != removed[0]
        with pytest.raises(NameInUseError):
            StatusSocket(directory, "home")


def test_many_at_once_and_one_gets_it(directory: str) -> None:
    """However starts and ends fall together, no two have the name at the same time."""
    script = """\
import os, sys
from nat_traverse.net.status_socket import NameInUseError, StatusSocket
had = 0
while had < 15:
    try:
        claim = StatusSocket(sys.argv[1], "home")
    except NameInUseError:
        continue
    had += 1
    with open(sys.argv[1] + "/inside", "x"):  # fails if somebody else is inside
        pass
    os.unlink(sys.argv[1] + "/inside")
    claim.release()
"""
    command = [sys.executable, "-c", script, directory]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


@pytest.mark.parametrize("what", ["file", "link", "nowhere", "open"])
def test_a_directory_of_somebody_elses_making(tmp_path: Path, what: str) -> None:
    place = tmp_path / "run"
    if what == "file":
        place.write_text("")
    elif what == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
        if os.geteuid() == 0:
            os.lchown(place, 65534, 65534)
    elif what == "nowhere":
        place.symlink_to(tmp_path / "nothing")
    else:
        place.mkdir()
        place.chmod(0o770)
    with pytest.raises(ErrnoError) as caught:
        StatusSocket(str(place), "home")
    assert caught.value.exit_code in {errno.EACCES, errno.ENOTDIR, errno.ENOENT}
    assert str(place) in str(caught.value)
    assert what != "open" or f"chmod go-w {place}" in str(caught.value)


def test_a_link_that_root_has_made(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make one")
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "private")
    with claimed(str(tmp_path / "run")) as claim:
        assert answers(claim, b"x") == [b"x"]


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ErrnoError, match="No such file") as caught:
        StatusSocket(str(tmp_path / "a" / "b"), "home")
    assert caught.value.exit_code == errno.ENOENT
    with pytest.raises(ErrnoError, match="at most 107 bytes"):
        StatusSocket(str(tmp_path / ("x" * 100)), "home")
    (tmp_path / "home.lock").mkdir()
    with pytest.raises(ErrnoError, match=r"home\.lock: Is a directory"):
        StatusSocket(str(tmp_path), "home")


def test_files_that_are_gone_already_do_not_matter(directory: str) -> None:
    with claimed(directory) as claim:
        Path(claim.path).unlink()
        claim.release()
        claim.release()


def test_nothing_stays_if_the_socket_cannot_be_made(directory: str) -> None:
    Path(directory).mkdir(mode=0o700)
    Path(directory, "home.sock").mkdir()
    with pytest.raises(ErrnoError, match="Is a directory"):
        StatusSocket(directory, "home")
    assert os.listdir(directory) == ["home.sock"]  # noqa: PTH208
