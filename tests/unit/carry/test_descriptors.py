"""Sources and sinks on real descriptors: pipes, terminals, files, devices, sockets."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import random
import socket
import stat
import tempfile
import threading
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nat_traverse.carry import descriptors, opening
from nat_traverse.carry.descriptors import HIGH_WATER, LIMIT, LOW_WATER, Sink, Source
from nat_traverse.errors import ErrnoError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

PATIENCE = 30.0  # s; only a failing test waits so long
DATA = random.Random(3).randbytes(3_000_000)


def run(test: Coroutine[None, None, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test

    asyncio.run(bounded())


class Channel(NamedTuple):
    """Two descriptors: what is written to one can be read from the other."""

    reading: int
    writing: int


@contextmanager
def pipe_() -> Iterator[Channel]:
    reading, writing = os.pipe()
    yield Channel(reading, writing)
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


@contextmanager
def socketpair() -> Iterator[Channel]:
    one, other = socket.socketpair()
    yield Channel(one.detach(), other.detach())


@contextmanager
def terminal() -> Iterator[Channel]:
    """What is written to the slave, the side of a program, can be read from the master."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    yield Channel(master, slave)


@contextmanager
def keyboard() -> Iterator[Channel]:
    with terminal() as (master, slave):
        yield Channel(slave, master)


CHANNELS = [pipe_, socketpair, terminal, keyboard]


@pytest.fixture(params=CHANNELS, ids=lambda make: make.__name__.strip("_"))
def channel(request: pytest.FixtureRequest) -> Iterator[Channel]:
    with request.param() as both:
        yield both
        for descriptor in both:
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Channel]:
    with pipe_() as both:
        yield both


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() - before == set()


def open_descriptors() -> set[int]:
    found = set()
    for descriptor in range(256):
        with suppress(OSError):
            os.fstat(descriptor)
            found.add(descriptor)
    return found


async def read_all(source: Source, *, at_once: int = 65_536) -> bytes:
    """Read to the end as a relay does: a bounded amount a call."""
    ended = asyncio.get_running_loop().create_future()
    view = memoryview(bytearray(at_once))
    parts: list[bytes] = []

    def read() -> None:
        try:
            size = source.readinto(view)
        except ErrnoError as error:
            ended.set_exception(error)
            return
        if size:
            parts.append(bytes(view[:size]))
        elif size == 0:
            ended.set_result(None)

    source.start(read)
    await ended
    return b"".join(parts)


class Reader(threading.Thread):
    """Reads a descriptor, slowly if `wait` says so, to its end or until `size` bytes came."""

    def __init__(self, descriptor: int, size: int, wait: Callable[[], object] = int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size = size
        self._wait = wait
        self.data = bytearray()
        self.start()

    def run(self) -> None:
        while len(self.data) < self._size:
            self._wait()
            part = os.read(self._descriptor, 100_000)
            if not part:
                break
            self.data += part

    def result(self) -> bytes:
        self.join(PATIENCE)
        assert not self.is_alive()
        return bytes(self.data)


# -- sources ------------------------------------------------------------------------------------


def test_a_source_reads_everything_in_order(channel: Channel) -> None:
    async def test() -> None:
        source = Source(channel.reading)
        # A terminal that hangs up forgets what nobody has read yet.
        forgets = os.isatty(channel.writing)

        def write() -> None:
            for start in range(0, len(DATA), 50_000):
                view = memoryview(DATA)[start : start + 50_000]
                while view:
                    view = view[os.write(channel.writing, view) :]
            if not forgets:
                os.close(channel.writing)

        writer = threading.Thread(target=write)
        writer.start()
        got = await (read_exactly(source, len(DATA)) if forgets else read_all(source))
        assert got == DATA
        source.close()
        writer.join()

    run(test())


async def read_exactly(source: Source, size: int) -> bytes:
    enough = asyncio.get_running_loop().create_future()
    got = bytearray()
    view = memoryview(bytearray(65_536))

    def read() -> None:
        count = source.readinto(view)
        got.extend(view[: count or 0])
        if len(got) >= size and not enough.done():
            enough.set_result(None)

    source.start(read)
    await enough
    source.pause()
    return bytes(got)


def test_a_source_says_when_nothing_is_there(channel: Channel) -> None:
    async def test() -> None:
        source = Source(channel.reading)
        view = memoryview(bytearray(10))
        assert source.readinto(view) is None
        os.write(channel.writing, b"abc")
        assert await read_exactly(source, 3) == b"abc"
        assert source.readinto(view) is None
        source.close()
        assert source.readinto(view) == 0

    run(test())


def test_a_paused_source_leaves_the_bytes(channel: Channel) -> None:
    async def test() -> None:
        source = Source(channel.reading)
        called = asyncio.Event()
        source.start(called.set)
        source.pause()
        source.pause()
        os.write(channel.writing, b"abc")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not called.is_set()
        source.resume()
        source.resume()
        await called.wait()
        assert source.readinto(memoryview(bytearray(10))) == 3
        source.close()

    run(test())


@pytest.mark.parametrize("make", [pipe_, socketpair, terminal])
def test_a_shared_description_stays_blocking(
    make: Callable[[], AbstractContextManager[Channel]],
) -> None:
    async def test(channel: Channel) -> None:
        source, sink = Source(channel.reading), Sink(channel.writing)
        sink.write(b"abc")
        assert os.get_blocking(channel.reading)
        assert os.get_blocking(channel.writing)
        source.close()
        sink.close()
        for descriptor in channel:
            assert os.get_blocking(descriptor)
            os.close(descriptor)

    with make() as channel:
        run(test(channel))


def test_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)

    async def test() -> None:
        with path.open("rb") as file:
            assert await read_all(Source(file.fileno())) == DATA

    run(test())


def test_a_regular_file_leaves_others_their_turn(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))

    async def test() -> None:
        order: list[str] = []
        with path.open("rb") as file:
            source = Source(file.fileno())
            view = memoryview(bytearray(100))
            ended = asyncio.Event()

            def read() -> None:
                order.append("file")
                if not source.readinto(view):
                    ended.set()

            source.start(read)

            async def other() -> None:
                while not ended.is_set():
                    order.append("other")
                    await asyncio.sleep(0)

            await asyncio.gather(other(), ended.wait())
        assert order.count("file") == 11
        assert order.count("other") >= 10

    run(test())


def test_a_ready_source_can_pause_and_end_in_its_own_callback(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))

    async def test() -> None:
        with path.open("rb") as file:
            source = Source(file.fileno())
            calls = []

            def read() -> None:
                calls.append(source.readinto(memoryview(bytearray(10))))
                source.pause()

            source.start(read)
            for _ in range(5):
                await asyncio.sleep(0)
            assert calls == [10]
            source.close()
            source.resume()
            await asyncio.sleep(0)
            assert calls == [10]

    run(test())


def test_dev_null_is_at_its_end() -> None:
    async def test() -> None:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        assert await read_all(Source(descriptor)) == b""
        os.close(descriptor)

    run(test())


def test_dev_zero_can_be_read() -> None:
    async def test() -> None:
        descriptor = os.open("/dev/zero", os.O_RDONLY)
        source = Source(descriptor)
        assert source.readinto(memoryview(bytearray(10))) == 10
        source.close()
        os.close(descriptor)

    run(test())


def test_a_hung_up_terminal_has_ended() -> None:
    async def test() -> None:
        master, slave = pty.openpty()
        source = Source(slave)
        os.close(master)
        assert await read_all(source) == b""
        os.close(slave)

    run(test())


def test_the_master_of_a_hung_up_terminal_has_ended() -> None:
    async def test() -> None:
        master, slave = pty.openpty()
        source = Source(master)
        os.close(slave)
        assert await read_all(source) == b""
        os.close(master)

    run(test())


def test_a_named_pipe_whose_writer_left_before(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def test() -> None:
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reading, True)
        writing = os.open(path, os.O_WRONLY)
        os.close(writing)
        assert await read_all(Source(reading)) == b""
        os.close(reading)

    run(test())


def test_a_source_that_cannot_be_opened_anew(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_open_anew", lambda *_: None)
    test_a_source_reads_everything_in_order(channel)


def test_a_source_that_cannot_be_opened_anew_does_not_wait(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_open_anew", lambda *_: None)
    test_a_source_says_when_nothing_is_there(channel)


def test_a_directory_cannot_be_read(tmp_path: Path) -> None:
    async def test() -> None:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(ErrnoError, match="Cannot read standard input") as caught:
            await read_all(Source(descriptor))
        assert caught.value.exit_code == errno.EISDIR
        os.close(descriptor)

    run(test())


def test_a_closed_descriptor_cannot_be_read(pipe: Channel) -> None:
    async def test() -> None:
        os.close(pipe.reading)
        with pytest.raises(ErrnoError, match="Cannot read the file: Bad file") as caught:
            Source(pipe.reading, name="the file")
        assert caught.value.exit_code == errno.EBADF

    run(test())


# -- sinks --------------------------------------------------------------------------------------


def test_a_sink_writes_everything_in_order(channel: Channel) -> None:
    async def test() -> None:
        sink = Sink(channel.writing)
        reader = Reader(channel.reading, len(DATA))
        for start in range(0, len(DATA), 64_400):
            sink.write(memoryview(DATA)[start : start + 64_400])
        await sink.drain()
        assert sink.buffered == 0
        assert await asyncio.to_thread(reader.result) == DATA
        sink.close()

    run(test())


def test_a_sink_that_cannot_be_opened_anew(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_open_anew", lambda *_: None)
    test_a_sink_writes_everything_in_order(channel)
    assert os.get_blocking(channel.writing)


def test_a_flag_that_was_set_before_stays_set(
    pipe: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_open_anew", lambda *_: None)
    os.set_blocking(pipe.writing, False)

    async def test() -> None:
        sink = Sink(pipe.writing)
        sink.close()
        assert not os.get_blocking(pipe.writing)

    run(test())


def test_data_may_be_reused_at_once(pipe: Channel) -> None:
    async def test() -> None:
        sink = Sink(pipe.writing)
        buffer = bytearray(100_000)
        expected = bytearray()
        for number in range(20):
            buffer[:] = bytes([number]) * len(buffer)
            expected += buffer
            sink.write(memoryview(buffer))
        assert sink.buffered > 0
        reader = Reader(pipe.reading, len(expected))
        await sink.aclose()
        assert await asyncio.to_thread(reader.result) == expected

    run(test())


def is_congested(sink: Sink) -> bool:
    return sink.congested  # asked anew: a type checker believes that it stays as it was


def test_a_slow_reader_congests_a_sink_and_gets_everything(pipe: Channel) -> None:
    async def test() -> None:
        progress = asyncio.Event()
        sink = Sink(pipe.writing, on_progress=progress.set)
        sent = 0
        while not is_congested(sink):
            sink.write(DATA[:64_400])
            sent += 64_400
        assert HIGH_WATER <= sink.buffered <= LIMIT
        assert not progress.is_set()
        gate = threading.Semaphore(0)
        reader = Reader(pipe.reading, sent, gate.acquire)
        while not progress.is_set():
            assert is_congested(sink)
            gate.release(10)
            await asyncio.sleep(0)
        assert not is_congested(sink)
        assert sink.buffered <= LOW_WATER
        gate.release(1_000_000)
        await sink.aclose()
        assert await asyncio.to_thread(reader.result) == DATA[:64_400] * (sent // 64_400)

    run(test())


def test_a_sink_is_bounded(pipe: Channel) -> None:
    async def test() -> None:
        sink = Sink(pipe.writing)
        with pytest.raises(BufferError):  # noqa: PT012 (the loop is what has to end)
            for _ in range(LIMIT // 1_000_000 + 2):
                sink.write(bytes(1_000_000))
        assert sink.buffered <= LIMIT
        sink.close()

    run(test())


def test_small_writes_are_joined(pipe: Channel) -> None:
    async def test() -> None:
        sink = Sink(pipe.writing)
        sink.write(bytes(opening.PIPE_SIZE))
        before = sink.buffered
        for _ in range(100_000):
            sink.write(b"x")
        assert sink.buffered - before <= 100_000
        assert len(sink._blocks) <= 1 + sink.buffered // 100_000
        sink.close()

    run(test())


def test_the_end_of_a_pipe_is_seen(pipe: Channel) -> None:
    async def test() -> None:
        sink = Sink(pipe.writing)
        sink.write(b"last words")
        await sink.aclose()
        await sink.aclose()
        assert os.read(pipe.reading, 100) == b"last words"
        assert os.read(pipe.reading, 100) == b""
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(pipe.writing)

    run(test())


def test_the_end_of_a_socket_is_seen_and_the_other_direction_lives() -> None:
    one, other = socket.socketpair()

    async def test() -> None:
        sink, source = Sink(one.fileno()), Source(one.fileno())
        sink.write(b"request")
        await sink.aclose()
        assert other.recv(100) == b"request"
        assert other.recv(100) == b""
        other.sendall(b"response")
        other.close()
        assert await read_all(source) == b"response"

    with one, other:
        run(test())


def test_standard_output_stays_occupied() -> None:
    """In a process of its own: descriptor 1 is this one's."""
    script = """if True:
        import asyncio, os
        from nat_traverse.carry.descriptors import Sink

        async def main():
            sink = Sink(1)
            sink.write(b"all of it")
            await sink.aclose()
            assert os.path.samestat(os.fstat(1), os.stat(os.devnull))
            print("into the void", flush=True)
            os.read(0, 1)  # the reader must see the end while this process lives

        asyncio.run(main())
    """
    import subprocess  # noqa: PLC0415 (only here)
    import sys  # noqa: PLC0415 (only here)

    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read() == b"all of it"
        process.stdin.write(b".")
    assert process.returncode == 0


def test_a_reader_that_went_away(pipe: Channel) -> None:
    async def test() -> None:
        sink = Sink(pipe.writing)
        os.close(pipe.reading)
        with pytest.raises(BrokenPipeError):
            sink.write(b"x")
        with pytest.raises(BrokenPipeError):
            sink.write(b"x")
        with pytest.raises(BrokenPipeError):
            await sink.aclose()
        assert isinstance(sink.failure, BrokenPipeError)

    run(test())


def test_a_reader_that_goes_away_in_between(channel: Channel) -> None:
    if os.isatty(channel.writing):
        return  # a terminal that hangs up gives EIO, which is a test of its own

    async def test() -> None:
        failed = asyncio.Event()
        sink = Sink(channel.writing, on_progress=failed.set)
        while not sink.buffered:
            sink.write(bytes(1_000_000))
        draining = asyncio.create_task(sink.drain())
        await asyncio.sleep(0)
        os.close(channel.reading)
        await failed.wait()
        with pytest.raises(BrokenPipeError):
            await draining
        with pytest.raises(BrokenPipeError):
            await sink.drain()
        assert sink.buffered == 0
        sink.close()

    run(test())


def test_a_terminal_that_hangs_up() -> None:
    async def test() -> None:
        master, slave = pty.openpty()
        sink = Sink(slave)
        os.close(master)
        with pytest.raises(OutputError) as caught:
            sink.write(b"x")
        assert caught.value.exit_code == errno.EIO
        sink.close()
        os.close(slave)

    run(test())


def test_a_full_disk() -> None:
    async def test() -> None:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        sink = Sink(descriptor)
        with pytest.raises(OutputError, match="standard output: No space left") as caught:
            sink.write(b"x")
        assert caught.value.exit_code == errno.ENOSPC
        with pytest.raises(OutputError):
            await sink.aclose()
        os.close(descriptor)

    run(test())


def test_a_regular_file_takes_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def test() -> None:
        with path.open("ab") as file:
            file.write(b"before ")
            file.flush()
            sink = Sink(file.fileno())
            sink.write(DATA)
            assert sink.buffered == 0
            await sink.drain()
            sink.close()

    run(test())
    assert path.read_bytes() == b"before " + DATA


def test_an_error_that_comes_only_at_the_end(
    pipe: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over_quota(_: int) -> None:
        raise OSError(errno.EDQUOT, "x")

    monkeypatch.setattr(descriptors, "end_output", over_quota)

    async def test() -> None:
        sink = Sink(pipe.writing, name="the file")
        with pytest.raises(OutputError, match=r"Cannot write to the file: .*Make room"):
            await sink.aclose()

    run(test())


def test_closing_drops_what_waits_and_frees_who_waits(pipe: Channel) -> None:
    async def test() -> None:
        sink = Sink(pipe.writing)
        while not sink.buffered:
            sink.write(bytes(1_000_000))
        draining = asyncio.create_task(sink.drain())
        await asyncio.sleep(0)
        sink.close()
        sink.close()
        await draining
        assert sink.buffered == 0
        os.fstat(pipe.writing)

    run(test())


def test_a_closed_descriptor_cannot_be_written(pipe: Channel) -> None:
    async def test() -> None:
        os.close(pipe.writing)
        with pytest.raises(OutputError, match="Bad file descriptor"):
            Sink(pipe.writing)

    run(test())


# -- pipes --------------------------------------------------------------------------------------


def test_pipes_are_enlarged(pipe: Channel) -> None:
    if not hasattr(fcntl, "F_GETPIPE_SZ"):
        pytest.skip("pipes can be enlarged on Linux only")
    opening.open_channel(pipe.reading, writing=False).close()
    assert fcntl.fcntl(pipe.reading, fcntl.F_GETPIPE_SZ) == opening.PIPE_SIZE


def test_a_pipe_that_may_not_grow_is_used_as_it_is(
    pipe: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "PIPE_SIZE", 1 << 40)
    opening.open_channel(pipe.reading, writing=False).close()


def test_without_linux_nothing_is_opened_anew(
    pipe: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    for name in ("_F_SETPIPE_SZ", "_F_GETPIPE_SZ"):
        monkeypatch.setattr(opening, name, None)
    channel = opening.open_channel(pipe.writing, writing=True)
    assert channel.write([b"abc"]) == 3
    channel.close()
    assert os.get_blocking(pipe.writing)


def test_the_kind_of_a_file_without_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.epoll")
    with tempfile.TemporaryFile() as file, open(os.devnull, "rb") as null:  # noqa: PTH123 (a device)
        assert not opening._can_be_polled(file.fileno())
        assert not opening._can_be_polled(null.fileno())
        assert stat.S_ISCHR(os.fstat(null.fileno()).st_mode)
