"""`nat-traverse demo` for real: kernel NATs, the program itself, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.lab import eventually
from support.ordinary import ordinary
from support.programs import OURS
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZE = 10_000_000
NOBODY = 65534

Records = list[dict[str, Any]]


def run(
    *options: str,
    command: Sequence[str] = (OURS,),
    env: dict[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a demo to its end."""
    return subprocess.run(
        [*command, "demo", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=env,
        cwd=cwd,
    )


def records(result: subprocess.CompletedProcess[str]) -> Records:
    """Read what `demo --json` put out: nothing but objects, one a line."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def of(event: str, found: Records) -> Records:
    return [record for record in found if record["event"] == event]


def assert_success(result: subprocess.CompletedProcess[str]) -> Records:
    """Check all that the result of a good run has to say; returns the records."""
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    found = records(result)
    last = found[-1]
    assert last["event"] == "result"
    assert last["sent"] == last["received"] == SIZE
    assert last["sha256_sent"] == last["sha256_received"]
    assert last["answered"]
    assert last["statuses"] == {"left": 0, "right": 0}
    assert last["exit_code"] == 0
    assert [record["side"] for record in of("connected", found)].count("left") == 1
    assert [record["side"] for record in of("connected", found)].count("right") == 1
    return found


def test_default() -> None:
    result = run()
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    for line in (
        "    left host   192.168.1.2",
        "    right host  192.168.2.2",
        "  left  $ nat-traverse 40000:203.0.113.2:40001",
        "  right $ nat-traverse 40001:198.51.100.2:40000",
        "      ms  left                    right",
        "       0                          started",
    ):
        assert line in lines
    assert sum("gateway" in line and "drop: " in line for line in lines) == 2
    assert (
        sum(
            "connected: port 40000 to 203.0.113.2:40001, which sees us as" in line for line in lines
        )
        == 1
    )
    assert f"{SIZE:,} of {SIZE:,} bytes came out on the right" in result.stdout
    assert lines[-1].startswith("OK: connected ")
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("left", "right", "publics"),
    [
        ("none", "reject", ["198.51.100.2:40000", "203.0.113.2:40001"]),
        ("ipv6", "ipv6", ["[2001:db8:1:1::2]:40000", "[2001:db8:2:1::2]:40001"]),
        ("double", "drop", ["198.51.100.2:40000", "203.0.113.2:40001"]),
    ],
)
def test_pairs_that_connect(left: str, right: str, publics: list[str]) -> None:
    found = assert_success(run("--left", left, "--right", right, "--json"))
    places = of("place", found)
    assert [place["kind"] for place in places] == [left, right]
    assert [place["public"] for place in places] == publics
    # Each was started alone, and as the other side's user would have to type it.
    started = of("started", found)
    assert started[1]["at"] - started[0]["at"] >= 1
    for place, start in zip(places, started, strict=True):
        assert place["command"] == f"nat-traverse {start['argv'][-1]}"
    times = [record["at"] for record in found if record["side"] == "left"]
    assert times == sorted(times)


def test_a_side_without_ipv4_meets_one_that_has_both() -> None:
    result = run("--left", "ipv6", "--right", "drop")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The left host has no IPv4. So the right side gets IPv6 too" in result.stdout
    assert "connected: port 40000 to [2001:db8:2:1::2]:40001" in result.stdout


def test_gateways_that_change_ports_are_explained() -> None:
    result = run("--left", "random", "--right", "random")
    assert result.returncode == 4, result.stdout + result.stderr
    for side in ("left ", "right"):
        said = [line for line in result.stdout.splitlines() if f"{side} │" in line]
        assert any("Nothing at all came from the peer" in line for line in said)
        assert any("This means: " in line for line in said)
        assert any("Try: " in line for line in said)
        assert said[-1].endswith("has exited with status 4")
    assert result.stdout.splitlines()[-1].startswith("No tunnel between these two: ")


@pytest.fixture
def nobody() -> Iterator[tuple[list[str], dict[str, str]]]:
    """Return the start of a command line without root's rights, and its environment."""
    with ordinary() as (python, environment):
        yield [*python, "-m", "nat_traverse"], environment


def test_works_without_root(nobody: tuple[list[str], dict[str, str]]) -> None:
    command, environment = nobody
    found = assert_success(run("--json", command=command, env=environment, cwd="/"))
    assert not of("fallback", found)
    assert [place["kind"] for place in of("place", found)] == ["drop", "drop"]


def own_namespace(script: str) -> list[str]:
    """Return a command line that runs `script` and then the demo where both are harmless."""
    program = need("unshare", package="util-linux")
    return [
        program,
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-e",
        "-c",
        f'{script}; exec "$@"',
        "sh",
        OURS,
    ]


def test_a_missing_tool_is_named_and_loopback_used() -> None:
    # Like a machine without it: a file in its place that is no program.
    nft = need("nft", package="nftables")
    result = run("--left", "random", command=own_namespace(f"mount --bind /dev/null {nft}"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(
        "No gateways on this machine: nft is missing: apt-get install nftables. Both ends run"
        " over loopback instead, and --left and --right are ignored.\n"
    )
    assert " to 127.0.0.1:" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("OK: ")


def test_a_kernel_that_forbids_namespaces_is_told_and_loopback_used() -> None:
    forbidden = own_namespace("echo 0 >/proc/sys/user/max_net_namespaces")
    found = assert_success(run("--json", command=forbidden))
    (fallback,) = of("fallback", found)
    assert "forbids network namespaces" in fallback["reason"]
    assert [place["kind"] for place in of("place", found)] == ["loopback", "loopback"]


def status_of(pid: int) -> list[str] | None:
    """Return what /proc says of a process, from its state on; None if there is none.

    A zombie is none: in a container there may be nobody to take notice of an orphan's end.
    """
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        status = text.rpartition(")")[2].split()
        return None if status[0] in "ZX" else status
    return None


@contextmanager
def heeded(number: signal.Signals) -> Iterator[None]:
    """Start programs inside that heed a signal even if these tests were told to ignore it.

    A shell's background jobs ignore SIGINT and what `nohup` starts ignores SIGHUP, and so do
    their children.
    """
    if number is signal.SIGKILL:
        yield
        return
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def descendants(pid: int) -> set[int]:
    """Return the processes that `pid` has started, and those that they have."""
    parents = {
        int(entry.name): int(status[1])
        for entry in Path("/proc").glob("[0-9]*")
        if (status := status_of(int(entry.name))) is not None
    }
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def namespaces() -> dict[int, int]:
    """Return the network namespace of every process, as far as it may be looked at."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(entry.name)] = (entry / "ns/net").stat().st_ino
    return found


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (signal.SIGINT, "sending"),
        (signal.SIGTERM, "sending"),
        (signal.SIGHUP, "opened"),
        (signal.SIGKILL, "sending"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_leaves_nothing(number: signal.Signals, event: str) -> None:
    with heeded(number):
        demo = subprocess.Popen(
            [OURS, "demo", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for line in demo.stdout:
            if json.loads(line)["event"] == event:
                break
        # On a busy machine it would else be over before all of /proc is read. What it has started
        # may end meanwhile, and then has no namespace any more.
        demo.send_signal(signal.SIGSTOP)
        started = descendants(demo.pid)
        inside = namespaces()
        made = {inside[pid] for pid in started & set(inside)} - {inside[os.getpid()]}
        assert len(made) == 6  # two hosts, two gateways, two routers
        if number is signal.SIGINT:
            os.killpg(demo.pid, number)  # as ^C on a terminal does it
        else:
            demo.send_signal(number)
        demo.send_signal(signal.SIGCONT)
        demo.stdout.read()
        assert demo.stderr.read() == b""
        assert demo.wait(60) == -number
    if number is signal.SIGKILL:  # the kernel has to do it, and takes its time
        eventually(lambda: not any(map(status_of, started)), "all processes gone")
    assert not any(map(status_of, started))
    assert not made & set(namespaces().values())


def test_a_reader_that_leaves_ends_the_demo() -> None:
    with subprocess.Popen([OURS, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        started = descendants(demo.pid)
        demo.stdout.close()
        assert demo.wait(60) == -signal.SIGPIPE
        assert demo.stderr.read() == b""
    assert started
    assert not any(map(status_of, started))


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("nat-traverse ")
    for words in ("nat-traverse demo [options]", "--left KIND", "--right KIND", "random"):
        assert words in result.stdout


def test_an_unknown_kind_is_refused() -> None:
    result = run("--left", "symmetric")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "--left is 'symmetric', and can be: none, drop," in result.stderr
