from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from nat_traverse.carry.handoff import Handoff
from nat_traverse.model import Endpoint

V4 = Endpoint("203.0.113.7", 40001)
V6 = Endpoint("2001:db8::7", 40001)
LINK_LOCAL = Endpoint("fe80::1", 40001, 3)


def line(command: str, peer: Endpoint = V4) -> str:
    return Handoff(command, 40000, peer).line()


def test_the_four_words_are_filled_in_wherever_they_stand() -> None:
    command = "a {local_port} b{peer_host}c '{peer_port}' \"{peer}\" {local_port}"
    assert line(command) == "a 40000 b203.0.113.7c '40001' \"203.0.113.7:40001\" 40000"


def test_ipv6_is_bracketed_only_together_with_a_port() -> None:
    assert line("{peer_host} {peer}", V6) == "2001:db8::7 [2001:db8::7]:40001"


def test_a_link_local_address_comes_with_its_interface() -> None:
    assert line("{peer_host} {peer}", LINK_LOCAL) == "fe80::1%3 [fe80::1%3]:40001"


@pytest.mark.parametrize(
    "command",
    [
        "echo ${HOME} $HOME {} {x} { peer }",
        "awk '{print $1}'",
        "{PEER} {peer-host} {peer_host_} {{}}",
        "printf %s%%",
        "",
    ],
)
def test_everything_else_in_braces_is_the_users_own(command: str) -> None:
    assert line(command) == command


def test_a_doubled_brace_is_no_escape() -> None:
    assert line("{{peer_port}}") == "{40001}"


def test_the_environment_has_the_same_values_and_all_that_was_there() -> None:
    inherited = {"HOME": "/root", "NAT_TRAVERSE_PEER": "of an outer run"}
    assert Handoff("x", 40000, V6).environment(inherited) == {
        "HOME": "/root",
        "NAT_TRAVERSE_LOCAL_PORT": "40000",
        "NAT_TRAVERSE_PEER_HOST": "2001:db8::7",
        "NAT_TRAVERSE_PEER_PORT": "40001",
        "NAT_TRAVERSE_PEER": "[2001:db8::7]:40001",
    }
    assert inherited["NAT_TRAVERSE_PEER"] == "of an outer run"


# The process that becomes the command; it must say nothing more once it has become that.
BECOME = """\
import sys
from nat_traverse.carry.handoff import Handoff
from nat_traverse.model import Endpoint
Handoff(sys.argv[1], 40000, Endpoint("2001:db8::7", 40001)).execute()
print("still Python")
"""


def become(command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BECOME, command],
        input=text,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_the_process_becomes_the_command() -> None:
    run = become('echo $$ $PPID; echo "$NAT_TRAVERSE_PEER" {peer_port}; exit 9')
    assert run.returncode == 9
    numbers, values = run.stdout.splitlines()
    assert numbers.split()[1] == str(os.getpid())
    assert values == "[2001:db8::7]:40001 40001"
    assert run.stderr == ""


def test_the_command_dies_of_a_closed_pipe_as_any_other() -> None:
    # `yes` complains if SIGPIPE is ignored, as Python ignores it.
    run = become("yes | head -n 1")
    assert (run.returncode, run.stdout, run.stderr) == (0, "y\n", "")


def test_standard_input_is_the_commands() -> None:
    assert become("cat", "handed over").stdout == "handed over"


def test_without_a_shell_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nat_traverse.carry.handoff.SHELL", "/no/such/shell")
    # This process stays, and what it ignores it is to go on ignoring.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(FileNotFoundError):
        Handoff("true", 40000, V4).execute()
