"""The whole program, both ends on this machine, as its users start it."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nat_traverse.cli.report import EVENT_FIELDS
from support.ends import free_ports
from support.loopback import V4, exchange, pair, succeed
from support.programs import ours
from support.tools import need

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["plain", "encrypted"])
def kind(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options for one of the two tunnels."""
    return ("--plain",) if request.param == "plain" else ()


class TestRelay:
    @pytest.mark.parametrize("size", [0, 1, 5, 300_000, 5_000_000])
    def test_is_exact_both_ways(self, kind: tuple[str, ...], size: int) -> None:
        with pair(*kind) as (one, other):
            exchange(one, other, size)

    def test_over_ipv6(self, kind: tuple[str, ...]) -> None:
        with pair(*kind, "--json", peer="::1") as (one, other):
            assert one.event("connected")["peer"].startswith("[::1]:")
            exchange(one, other)

    def test_by_a_name_with_both_families(self, kind: tuple[str, ...], tmp_path: Path) -> None:
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 both\n::1 both\n")
        hosts.chmod(0o644)
        script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        unshare = [need("unshare", package="util-linux"), "--mount"]
        if os.geteuid() != 0:
            unshare += ["--user", "--map-root-user"]
        with pair(*kind, "--json", peer="both", before=(*unshare, "sh", "-c", script, "sh")) as (
            one,
            other,
        ):
            opened = one.event("opened")
            assert {peer.rpartition(":")[0] for peer in opened["peers"]} == {V4, "[::1]"}
            paths = [program.event("connected")["peer"] for program in (one, other)]
            # Both on the same one.
            assert len({path.rpartition(":")[0] for path in paths}) == 1
            exchange(one, other)

    @pytest.mark.parametrize("first", ["left", "right"])
    def test_one_side_may_finish_long_before_the_other(
        self, kind: tuple[str, ...], first: str
    ) -> None:
        with pair(*kind) as (left, right):
            short, long = (left, right) if first == "left" else (right, left)
            short.write(b"all of it")
            short.close_input()
            assert long.prints(9) == b"all of it"
            for number in range(30):
                line = b"%d\n" % number
                before = len(short.output)
                long.write(line)
                short.prints(before + len(line))
            long.close_input()
            succeed(left, right)
            assert short.output == b"".join(b"%d\n" % number for number in range(30))
            assert long.output == b"all of it"

    def test_what_is_typed_before_the_connection_arrives(self) -> None:
        one, other = free_ports()
        with ours("--json", f"{one}:{V4}:{other}") as left:
            left.write(b"early")
            left.close_input()
            left.event("opened")
            with ours(f"{other}:{V4}:{one}") as right:
                right.close_input()
                succeed(left, right)
                assert right.output == b"early"

    def test_any_port_here(self) -> None:
        (other,) = free_ports(1)
        with ours("--json", f"0:{V4}:{other}") as left:
            mine = left.event("opened")["local_port"]
            assert left.event("opened")["other_side"].endswith(f":{mine}")
            with ours("--json", f"{other}:{V4}:{mine}") as right:
                assert left.event("connected")["local_port"] == mine
                exchange(left, right)


class TestCommand:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_runs_on_either_side_and_its_status_is_ours(
        self, kind: tuple[str, ...], side: str
    ) -> None:
        command = ("--cmd", "tr a-z A-Z; exit 7")
        sides = (command, ()) if side == "left" else ((), command)
        with pair(*kind, "--json", left=sides[0], right=sides[1]) as (left, right):
            runner, user = (left, right) if side == "left" else (right, left)
            runner.event("running")
            user.write(b"shout")
            user.close_input()
            assert (runner.wait(), user.wait()) == (7, 0)
            assert user.output == b"SHOUT"
            assert runner.output == b""

    def test_runs_on_both_sides(self, kind: tuple[str, ...]) -> None:
        with pair(
            *kind,
            left=("--cmd", "echo question; read answer; test $answer = answer"),
            right=("--cmd", "read question; test $question = question || exit 9; echo answer"),
        ) as (left, right):
            succeed(left, right)

    def test_whose_reader_leaves_early_is_no_failure_of_the_tunnel(
        self, kind: tuple[str, ...]
    ) -> None:
        with pair(*kind, "--json", left=("--cmd", "head -c 5; exit 3")) as (runner, user):
            user.write(b"12345")
            assert (runner.wait(), user.wait()) == (3, 0)
            assert user.output == b"12345"

    def test_killed_by_a_signal(self, kind: tuple[str, ...]) -> None:
        with pair(*kind, left=("--cmd", "kill -9 $$")) as (runner, user):
            assert (runner.wait(), user.wait()) == (128 + 9, 0)

    def test_may_leave_a_process_behind_which_keeps_the_tunnel(
        self, kind: tuple[str, ...], tmp_path: Path
    ) -> None:
        """As `pppd updetach` does: our status is known, and the tunnel goes on without us."""
        more = tmp_path / "more"
        os.mkfifo(more)
        with pair(*kind, "--json", left=("--cmd", f"cat {more} 2>/dev/null & exit 5")) as (
            runner,
            user,
        ):
            assert runner.wait() == 5
            assert user.process.poll() is None
            more.write_bytes(b"from behind")
            assert user.wait() == 0
            assert user.output == b"from behind"


class TestQuit:
    def test_both_sides_end_at_once_and_carry_nothing(self) -> None:
        with pair("--json", "--quit-after-connect") as (one, other):
            one.write(b"not sent")
            succeed(one, other)
            assert one.output == other.output == b""
            assert one.events[-1]["event"] == "connected"


# Binds the port that it was given, and greets whoever is at the other end of the path.
GREETER = """\
import os, socket, sys
mine, host, port, both = sys.argv[1:]
values = {name: os.environ["NAT_TRAVERSE_" + name] for name in
          ("LOCAL_PORT", "PEER_HOST", "PEER_PORT", "PEER")}
assert list(values.values()) == [mine, host, port, both], values
family = socket.AF_INET6 if ":" in host else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.bind(("", int(mine)))
sock.settimeout(0.1)
while True:
    sock.sendto(b"hello from " + mine.encode(), (host, int(port)))
    try:
        data = sock.recv(100)
    except TimeoutError:
        continue
    if data.startswith(b"hello"):
        break
sock.sendto(b"hello from " + mine.encode(), (host, int(port)))
print(data.decode(), both)
sys.exit(6)
"""


class TestHandoff:
    @pytest.mark.parametrize("peer", [V4, "::1"])
    def test_the_command_takes_over_the_port(self, peer: str, tmp_path: Path) -> None:
        greeter = tmp_path / "greeter.py"
        greeter.write_text(GREETER)
        command = (
            f"exec {sys.executable} -I -S {greeter}"
            " {local_port} {peer_host} {peer_port} '{peer}'"
        )
        with pair("--handoff", command, peer=peer) as (one, other):
            assert (one.wait(), other.wait()) == (6, 6)
            host = f"[{peer}]" if ":" in peer else peer
            words = one.output.split()
            assert words[:2] == [b"hello", b"from"]
            assert words[3] == f"{host}:{words[2].decode()}".encode()

    def test_it_is_the_same_process(self) -> None:
        with pair("--handoff", "echo $$; exit 0") as (one, other):
            succeed(one, other)
            assert int(one.output) == one.process.pid
            assert int(other.output) == other.process.pid


FIELDS = {name: set(re.findall(r"`([^`]+)`", text)) for name, text in EVENT_FIELDS}


def documented(events: list[dict[str, Any]]) -> None:
    for event in events:
        assert list(event)[:2] == ["event", "elapsed"]
        assert list(event)[-1] == "text"
        assert isinstance(event["elapsed"], float)
        assert set(event) - {"event", "elapsed", "text"} <= FIELDS[event["event"]], event
    times = [event["elapsed"] for event in events]
    assert times == sorted(times)


class TestWhatIsSaid:
    def test_json_is_one_documented_object_a_line(self, kind: tuple[str, ...]) -> None:
        with pair(*kind, "--json", right=("--cmd", "cat")) as (one, other):
            one.write(b"12345")
            one.close_input()
            succeed(one, other)
            for program in (one, other):
                lines = program.errors.splitlines()
                assert len(lines) == len(program.events)
                documented(program.events)
            names = [event["event"] for event in one.events]
            for name in ("opened", "connected", "finished", "delivered"):
                assert names.count(name) == 1
            assert one.event("finished")["received"] == one.event("delivered")["sent"] == 5
            assert one.event("connected")["encrypted"] is (not kind)
            assert one.event("connected")["round_trip"] > 0

    def test_json_of_a_failure(self) -> None:
        one, other = free_ports()
        with ours("--json", "--window=0", "--timeout=1", f"{one}:{V4}:{other}") as left:
            assert left.wait() == 4
            documented(left.events)
            assert left.events[-1]["event"] == "error"
            assert left.events[-1]["exit_code"] == 4
            assert any(event["event"] == "explanation" for event in left.events)

    def test_quiet_is_silent_when_all_goes_well(self, kind: tuple[str, ...]) -> None:
        with pair(*kind, "--quiet") as (one, other):
            exchange(one, other)
            assert one.errors == other.errors == ""

    def test_in_words(self, kind: tuple[str, ...]) -> None:
        with pair(*kind, "--verbose") as (one, other):
            exchange(one, other)
            assert re.search(
                r"^ +\d+\.\d\d s  connected: port \d+ to 127", one.errors, re.MULTILINE
            )
            assert "run on the other side: nat-traverse " in one.errors
            assert "the peer has received 300,000 of 300,000 bytes" in one.errors
            assert "the peer has sent all: 300,000 bytes arrived" in one.errors

    def test_a_restarted_peer_is_noticed_by_a_plain_tunnel(self) -> None:
        one, other = free_ports()
        with ours("--plain", "--json", f"{one}:{V4}:{other}") as left:
            with ours("--plain", "--json", f"{other}:{V4}:{one}") as right:
                left.event("connected")
                right.event("connected")
                right.signal(signal.SIGKILL)
                right.wait()
            with ours("--plain", "--json", f"{other}:{V4}:{one}") as again:
                left.event("restarted")
                again.event("opened")
                # Neither a byte of it nor its answers come out as data.
                assert left.output == b""
                left.signal(signal.SIGTERM)
                assert left.wait() == -signal.SIGTERM
            documented(left.events)
