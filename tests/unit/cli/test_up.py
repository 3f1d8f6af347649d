"""`nat-traverse up`, as whole programs on this machine; the lab has gateways in between."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from nat_traverse.cli import main
from nat_traverse.cli.secure import _settings
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE, Up
from nat_traverse.cli.up import _described, _Service
from nat_traverse.tunnel.keys import encode_private, encode_public, public_of
from support.ends import free_ports
from support.forwards import unused_port
from support.lab import eventually
from support.leftovers import can_be_bound
from support.loopback import old_peer, shake_hands
from support.programs import OURS
from support.services import Services, passes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with Services(tmp_path) as made:
        yield made


@pytest.fixture
def here(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The same for a run in this process."""
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    return services


def pair(services: Services, one: str = "one", other: str = "two") -> tuple[int, int]:
    """Describe both ends of a tunnel on this machine."""
    mine, theirs = free_ports()
    listen, target = unused_port(), unused_port()
    services.describe(one, f"{mine}:127.0.0.1:{theirs}", f'L = "{listen}:127.0.0.1:{target}"')
    services.describe(other, f"{theirs}:127.0.0.1:{mine}", f'expose = "127.0.0.1:{target}"')
    return listen, target


# -- before it runs -------------------------------------------------------------------------------


def test_what_is_wrong_is_told_at_once(here: Services, capsys: Capture) -> None:
    here.describe("one", "40000:127.0.0.1:40001")
    here.describe("two", "40000:127.0.0.1:40001", 'expose = "any"', "rate = 1")
    assert main(["up", "one", "two", "three"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "one.toml: it carries nothing" in lines[0]
    assert "two.toml: rate: --rate is out of range" in lines[1]
    assert "There is no tunnel 'three'" in lines[2]
    assert all(line.startswith("nat-traverse: ") for line in lines)
    assert here.left_over == []


def test_secrets_that_cannot_be_used_are_wrong_too(here: Services, capsys: Capture) -> None:
    """All are told, of whatever kind, and nothing is started; the first gives the status."""
    open_to_all = here.directory / "nat-traverse" / "wrong"
    open_to_all.write_text("something else")
    open_to_all.chmod(0o644)
    here.describe("one", "40000:127.0.0.1:40001", 'expose = "any"', proof="wrong")
    here.describe("two", "40000:127.0.0.1:40001", 'expose = "any"', proof="none")
    here.describe("three", "40000:127.0.0.1:40001", 'expose = "any"', 'identity = "none"')
    here.describe("four", "40000:127.0.0.1:40001", "rate = 1")
    assert main(["up", "one", "two", "three", "four"]) == errno.EACCES
    one, two, three, four = capsys.readouterr().err.splitlines()[:4]
    assert "one.toml: Cannot trust the secret file" in one
    assert "two.toml: Cannot read the secret file" in two
    assert "three.toml: --identity needs --peer-key" in three
    assert "four.toml" in four
    assert here.left_over == []


def test_secrets_and_keys_from_pipes_are_read_once(here: Services) -> None:
    private = bytes(range(32))
    contents = {"pipe": b"from a pipe\n", "key": encode_private(private)}
    writers = []
    for name, content in contents.items():
        pipe = here.directory / "nat-traverse" / name
        os.mkfifo(pipe, 0o600)
        writers.append(threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True))
        writers[-1].start()
    peer = encode_public(public_of(bytes(32)))
    lines = ('expose = "any"', 'identity = "key"', f'peer-key = "{peer}"')
    here.describe("one", "40000:127.0.0.1:40001", *lines, proof="pipe")
    (_, connect) = _described(Up(("one",)))["one"]
    for writer in writers:
        writer.join()
    # Nobody writes into the pipes any more: who opens one now waits for ever.
    means = _settings(connect).means
    assert means == connect.means
    assert (means.secret, means.identity) == (b"from a pipe", private)
    assert "from a pipe" not in repr(connect)


def test_what_is_wrong_is_json_as_well(here: Services, capsys: Capture) -> None:
    assert main(["up", "--json", "none", "nobody"]) == 2
    assert here.left_over == []
    for line, name in zip(capsys.readouterr().err.splitlines(), ("none", "nobody"), strict=True):
        told = json.loads(line)
        assert list(told) == ["event", "elapsed", "message", "exit_code", "text"]
        assert (told["event"], told["exit_code"]) == ("error", 2)
        assert told["elapsed"] >= 0
        assert told["message"].startswith(f"There is no tunnel {name!r}")


def test_no_file_is_there_before_signals_are_waited_for(here: Services) -> None:
    here.describe("one", "40000:127.0.0.1:40001", 'expose = "any"')
    _Service(_described(Up(("one",))))
    assert here.left_over == []


def test_the_journal_learns_how_grave_it_is(
    here: Services, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nat_traverse.cli.up.is_journal", lambda _: True)
    assert main(["up", "none"]) == 2
    assert capsys.readouterr().err.startswith("<3>nat-traverse: There is no tunnel 'none'")
    assert here.left_over == []


def test_the_same_tunnel_twice(here: Services, capsys: Capture) -> None:
    path = here.describe("one", "40000:127.0.0.1:40001", 'expose = "any"')
    assert main(["up", "one", str(path)]) == 2
    assert "there is another tunnel 'one' here" in capsys.readouterr().err


def test_who_gives_up_rights_does_so_alone(here: Services, capsys: Capture) -> None:
    here.describe("one", "40000:127.0.0.1:40001", 'vpn = "10.0.0.1/24"', 'user = "nobody"')
    here.describe("two", "40001:127.0.0.1:40000", 'expose = "any"')
    assert main(["up", "one", "two"]) == 2
    assert "one.toml: user: the whole process" in capsys.readouterr().err
    assert list(_described(Up(("one",)))) == ["one"]


def test_a_file_that_others_may_change(here: Services, capsys: Capture) -> None:
    here.describe("one", "40000:127.0.0.1:40001", 'cmd = "ls"').chmod(0o666)
    assert main(["up", "one"]) == errno.EACCES
    assert "Cannot trust the description" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("", (NORMAL, False), (NORMAL, False)),
        ("verbose = true", (NORMAL, False), (VERBOSE, False)),
        ("verbose = true", (QUIET, True), (QUIET, True)),
        ("json = true", (VERBOSE, False), (VERBOSE, True)),
    ],
)
def test_how_it_talks(
    here: Services, file: str, line: tuple[int, bool], told: tuple[int, bool]
) -> None:
    here.describe("one", "40000:127.0.0.1:40001", 'expose = "any"', file)
    (_, connect) = _described(Up(("one",), *line))["one"]
    assert (connect.verbosity, connect.json) == told


# -- while it runs --------------------------------------------------------------------------------


def test_forwards_work_and_nothing_is_left(services: Services) -> None:
    listen, target = pair(services)
    one, two = services.up("one"), services.up("two", "--json")
    services.comes_to("one", "connected")
    told = services.comes_to("two", "connected")
    assert passes(listen, target)
    assert told["pid"] == two.process.pid
    after = services.ask("two")
    assert after["sent"] > told["sent"]
    assert after["received"] > told["received"]
    assert after["last_contact"] < 60
    assert two.event("connected")["name"] == "two"
    assert all(line.startswith("one: ") for line in one.errors.splitlines())
    assert services.left_over == ["one.lock", "one.sock", "two.lock", "two.sock"]
    one.signal(signal.SIGTERM)
    assert one.wait() == -signal.SIGTERM
    assert services.comes_to("two", "searching-again")["problem"]
    two.signal(signal.SIGINT)
    assert two.wait() == -signal.SIGINT
    assert services.left_over == []


def test_a_second_start_is_refused_and_starts_nothing(services: Services) -> None:
    pair(services)
    one = services.up("one")
    services.comes_to("one", "searching")
    again = services.up("two", "one")
    assert again.wait() == errno.EADDRINUSE
    assert again.errors.startswith("nat-traverse: A tunnel 'one' runs already; its lock is ")
    assert len(again.errors.splitlines()) == 1
    assert services.left_over == ["one.lock", "one.sock"]
    # What a killed process leaves is no hindrance.
    one.signal(signal.SIGKILL)
    one.wait()
    assert services.left_over == ["one.lock", "one.sock"]
    assert services.status("one").returncode == 3
    services.up("one")
    services.comes_to("one", "searching")


def test_several_in_one_process_and_one_that_fails(services: Services) -> None:
    listen, target = pair(services)
    mine, theirs = free_ports()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forward = f'L = "127.0.0.1:{taken.getsockname()[1]}:127.0.0.1:1"'
        services.describe("bad", f"{mine}:127.0.0.1:{theirs}", forward)
        both = services.up("one", "bad", "two")
        services.comes_to("one", "connected")
        services.comes_to("two", "connected")
        assert passes(listen, target)
        bad = services.comes_to("bad", "ended")
    assert bad["exit_code"] == errno.EADDRINUSE
    assert "in use" in bad["problem"]
    assert {line.split(":")[0] for line in both.errors.splitlines()} == {"one", "bad", "two"}
    assert services.status().returncode == 1
    assert services.status("one", "two").returncode == 0
    both.signal(signal.SIGTERM)
    assert both.wait() == -signal.SIGTERM
    assert services.left_over == []


def test_the_first_failure_is_the_status(services: Services) -> None:
    ports = free_ports(4)
    services.describe("one", f"{ports[0]}:127.0.0.1:{ports[1]}", 'cmd = "exit 7"')
    services.describe("two", f"{ports[1]}:127.0.0.1:{ports[0]}", 'cmd = "true"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forward = f'L = "127.0.0.1:{taken.getsockname()[1]}:127.0.0.1:1"'
        services.describe("bad", f"{ports[2]}:127.0.0.1:{ports[3]}", forward)
        program = services.up("one", "two", "bad")
        # bad ends at once, and the others when their commands have.
        assert program.wait() == errno.EADDRINUSE
    assert "bad: " in program.errors
    assert services.left_over == []


def test_a_command_that_leaves_a_daemon_behind(services: Services) -> None:
    ports = free_ports()
    held = services.directory / "held"
    script = f"exec 3<&0; (read -r line <&3; echo $line >{held}; read -r line <&3) &"
    # Else one whose command has not been seen to end yet would look for the other side again.
    once = "retry = false"
    services.describe("one", f"{ports[0]}:127.0.0.1:{ports[1]}", f"cmd = '{script}'", once)
    services.describe("two", f"{ports[1]}:127.0.0.1:{ports[0]}", 'cmd = "echo hello; sleep 1000"')
    one, two = services.up("one"), services.up("two")
    eventually(lambda: held.exists() and held.read_text() == "hello\n", "the daemon's file")
    assert one.process.poll() is None
    two.signal(signal.SIGTERM)
    assert two.wait() == -signal.SIGTERM
    one.wait()
    assert services.left_over == []


def test_a_tunnel_that_the_other_side_ends_without_retry(services: Services) -> None:
    ports = free_ports()
    connects = [f"{ports[side]}:127.0.0.1:{ports[1 - side]}" for side in (0, 1)]
    services.describe("one", connects[0], 'expose = "any"', "retry = false")
    services.describe("two", connects[1], 'expose = "any"')
    one, two = services.up("one"), services.up("two")
    services.comes_to("one", "connected")
    services.comes_to("two", "connected")
    two.signal(signal.SIGTERM)
    assert one.wait() == errno.ECONNRESET
    assert all(map(can_be_bound, ports))


def test_a_limit_for_the_first_path(services: Services) -> None:
    ports = free_ports()
    services.describe(
        "one", f"{ports[0]}:127.0.0.1:{ports[1]}", 'expose = "any"', "timeout = 1", "window = 0"
    )
    one = services.up("one")
    assert one.wait() == 4
    assert "one: " in one.errors
    assert "no path to the peer was found in time." in one.errors


def test_a_name_that_is_unknown_yet_is_waited_for(services: Services) -> None:
    services.describe("one", "40000:nobody.invalid:40001", 'expose = "any"')
    one = services.up("one", "--json")
    assert one.event("held-up")["name"] == "one"
    assert services.ask("one")["state"] == "searching"
    assert "nobody.invalid" in services.ask("one")["problem"]


def test_a_port_that_is_in_use_is_waited_for(services: Services) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        path = services.describe("one", f"{port}:127.0.0.1:{free_ports()[0]}", 'expose = "any"')
        one = services.up(os.path.relpath(path), "--json")
        assert str(port) in one.event("held-up")["message"]
        told = services.ask("one")
        assert told["state"] == "searching"
        assert told["problem"]
        assert told["description"] == str(path)
    assert one.event("opened")["local_port"] == port


def test_the_exit_status_tells_if_standard_error_does_not(here: Services) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device, by its descriptor)
        environment = {**os.environ, **here.environment}
        done = subprocess.run([OURS, "up", "none"], stderr=full, env=environment, check=False)
    assert done.returncode == 2


# -- a peer that runs 0.7 -------------------------------------------------------------------------


def describe_command(here: Services, connect: str, *lines: str) -> str:
    """Describe a tunnel without a proof, with which a peer of 0.7 could do."""
    path = here.directory / "nat-traverse" / "one.toml"
    path.write_text("\n".join([f'connect = "{connect}"', *lines]))
    return str(path)


def test_who_looks_again_can_do_nothing_with_0_7(here: Services) -> None:
    for retry, legacy in (("true", False), ("false", True)):
        describe_command(here, "40000:127.0.0.1:40001", 'cmd = "id"', f"retry = {retry}")
        (_, connect) = _described(Up(("one",)))["one"]
        assert _settings(connect).punch.legacy is legacy


def test_a_command_for_0_7_that_leaves_a_process_behind(services: Services) -> None:
    mine = free_ports()[0]
    with old_peer(mine) as peer:
        connect = f"{mine}:127.0.0.1:{peer.getsockname()[1]}"
        command = 'cmd = "{ sleep 0.5; echo late; } & echo soon"'
        one = services.up(describe_command(services, connect, command, "retry = false"), "--json")
        shake_hands(peer)
        heard = b""
        while b"late" not in heard:
            heard += peer.recv(65_535)
        assert b"soon" in heard
        assert one.wait() == 0, one.errors


# -- the service manager --------------------------------------------------------------------------


def test_the_service_manager_is_told(services: Services) -> None:
    pair(services)
    address = str(services.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        before = ("sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh")
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        one = services.up("one", before=before, env=environment)
        heard: list[str] = []

        def hears(beginning: str) -> str:
            while not (found := [line for line in heard if line.startswith(beginning)]):
                heard.extend(manager.recv(4096).decode().splitlines())
            return found[0]

        # The other side may be away for days, and the machine's start is not to wait for it.
        hears("READY=1")
        hears("STATUS=looking for a path to 127.0.0.1")
        hears("WATCHDOG=1")
        services.up("two")
        assert hears("STATUS=connected to ").endswith(f" {services.ask('one')['peer']}")
        one.signal(signal.SIGTERM)
        hears("STOPPING=1")
        assert heard.count("READY=1") == 1
        assert one.wait() == -signal.SIGTERM


def test_a_problem_is_told_to_the_service_manager(services: Services) -> None:
    services.describe("one", "40000:nobody.invalid:40001", 'expose = "any"')
    address = str(services.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        services.up("one", env={"NOTIFY_SOCKET": address})
        heard = ""
        while not re.search("STATUS=looking for a path to nobody.invalid: .*nobody.invalid", heard):
            heard += manager.recv(4096).decode() + "\n"
        assert "READY=1" in heard.splitlines()


def test_who_ends_at_once_has_never_been_ready(services: Services) -> None:
    address = str(services.directory / "notify")
    mine, theirs = free_ports()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        manager.bind(address)
        manager.setblocking(False)
        forward = f'L = "127.0.0.1:{taken.getsockname()[1]}:127.0.0.1:1"'
        services.describe("bad", f"{mine}:127.0.0.1:{theirs}", forward)
        assert services.up("bad", env={"NOTIFY_SOCKET": address}).wait() == errno.EADDRINUSE
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard += manager.recv(4096).decode().splitlines()
    assert "STOPPING=1" in heard
    assert "READY=1" not in heard


def test_what_a_command_is_not_told(services: Services) -> None:
    ports = free_ports()
    connects = [f"{ports[side]}:127.0.0.1:{ports[1 - side]}" for side in (0, 1)]
    file = services.directory / "environment"
    services.describe("one", connects[0], f'cmd = "env >{file}"')
    services.describe("two", connects[1], 'cmd = "true"')
    environment = {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "1000000"}
    both = services.up("one", "two", env=environment)
    assert both.wait() == 0
    assert "NOTIFY_SOCKET" not in file.read_text()
    assert "WATCHDOG" not in file.read_text()


def test_the_journal_is_recognized(services: Services) -> None:
    services.describe("one", "40000:nobody.invalid:40001", 'expose = "any"')
    log = services.directory / "log"
    log.write_text("")
    status = log.stat()
    script = f'exec 2>>{log}; JOURNAL_STREAM={status.st_dev}:{status.st_ino} exec "$@"'
    services.up("one", before=("sh", "-c", script, "sh"))
    eventually(lambda: "<4>one: " in log.read_text(), "a warning in the journal")
