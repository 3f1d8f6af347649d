from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nat_traverse.api import MOST_FAILURES
from nat_traverse.carry.environment import SECRET_VARIABLE
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.differences import DIFFERENCES
from nat_traverse.cli.manual import (
    KEYS,
    NETCAT,
    PPP,
    PPP_DATAGRAMS,
    PROOFS,
    PROXY_COMMAND,
    SECURITY,
    SERVICE,
    SOCKS,
    SSH,
    manual,
)
from nat_traverse.cli.options import COMMANDS, TUNNEL
from nat_traverse.cli.report import EVENT_FIELDS
from nat_traverse.cli.roff import escape
from nat_traverse.cli.settings import Connect, Keygen
from nat_traverse.errors import EXIT_DATA_LOST, EXIT_NO_PATH, EXIT_OTHER_PORTS, EXIT_USAGE
from nat_traverse.link.establish import EXIT_MODES_DIFFER
from nat_traverse.tunnel.refusals import EXIT_NOT_PROVEN
from support.tools import need

DOCS = Path(__file__).parents[3] / "docs"
COMMITTED = DOCS / "nat-traverse.1"


def rendered() -> str:
    """The page as a terminal of 80 columns shows it, without bold and underlined letters."""
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    run = subprocess.run(
        [need("man", package="man-db"), "--warnings", "--nh", "--nj", "-l", COMMITTED],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""  # where groff's warnings go
    return re.sub(r".\x08|\x1b\[[0-9;]*m", "", run.stdout)


def test_the_committed_page_is_the_generated_one() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "nat_traverse.cli.manual"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == manual()
    assert COMMITTED.read_text() == manual(), (
        "run python -m nat_traverse.cli.manual > docs/nat-traverse.1"
    )


def test_man_shows_every_section_without_a_warning() -> None:
    headings = [line for line in rendered().splitlines()[1:-1] if line and line[0] != " "]
    assert headings == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "COMMANDS",
        "EXAMPLES",
        "SECURITY",
        "EXIT STATUS",
        "ENVIRONMENT",
        "OUTPUT",
        "DIFFERENCES FROM 0.7",
        "SEE ALSO",
    ]


def test_man_shows_what_can_be_pasted() -> None:
    text = rendered()
    assert 'nat-traverse --cmd="pppd updetach noauth passive notty \\' in text
    assert "nat-traverse --quit-after-connect 60001:natgw-of-right:60001" in text
    assert "\\f" not in text
    assert "`" not in text


def test_whatis_can_read_the_name() -> None:
    run = subprocess.run(
        [need("lexgrog", package="man-db"), COMMITTED], capture_output=True, text=True, check=True
    )
    assert '"nat-traverse - direct tunnel between two hosts behind NAT"' in run.stdout


def test_every_option_command_and_difference() -> None:
    text = manual()
    for command in (TUNNEL, *COMMANDS.values()):
        for option in command.options:
            assert text.count(f".TP\n\\fB{escape(option.word)}\\fR") >= 1
    for command in COMMANDS.values():
        assert f".SS {command.name}\n" in text
    assert text.count("\nWhy: ") == len(DIFFERENCES)


def test_every_exit_code_of_ours() -> None:
    for code in (
        EXIT_USAGE,
        EXIT_NOT_PROVEN,
        EXIT_NO_PATH,
        EXIT_DATA_LOST,
        EXIT_OTHER_PORTS,
        EXIT_MODES_DIFFER,
    ):
        assert f".TP\n\\fB{code}\\fR\n" in manual()


def test_the_environment() -> None:
    for name in (SECRET_VARIABLE, "POSIXLY_CORRECT"):
        assert f".TP\n\\fB{name}\\fR\n" in manual()


def test_numbers_are_those_of_the_program() -> None:
    assert MOST_FAILURES == 5
    text = " ".join(f"{SECURITY} {PROOFS} {SERVICE}".split())
    assert "five attempts" in text
    assert "five guesses" in text
    assert f"1 chance in {10**6 // MOST_FAILURES:,}" in text
    assert "six digits" in text


def commands(text: str) -> list[list[str]]:
    """Return every command of ours in the examples of a text, as words without the first."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    found = [re.search(r"(?<!['-])nat-traverse .*$", line) for line in lines]
    return [shlex.split(match[0])[1:] for match in found if match is not None]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        pytest.param(SSH, 2, id="ssh"),
        pytest.param(PROXY_COMMAND, 1, id="proxy"),  # the other one is a value of a variable
        pytest.param(SOCKS, 2, id="socks"),
        pytest.param(KEYS, 4, id="keys"),
        pytest.param(SERVICE, 1, id="service"),
        pytest.param(PPP, 2, id="ppp"),
        pytest.param(PPP_DATAGRAMS, 2, id="ppp-datagrams"),
        pytest.param(NETCAT, 2, id="netcat"),
    ],
)
def test_the_examples_can_be_typed(text: str, count: int) -> None:
    found = commands(text)
    assert len(found) == count
    for words in found:
        assert isinstance(parse(words, {}), Connect | Keygen)


def test_the_unit_is_that_of_the_documents() -> None:
    unit = (DOCS / "systemd" / "nat-traverse.service").read_text()
    assert textwrap.indent(unit, "    ") in SERVICE


def test_every_field_of_json() -> None:
    for name, _ in EVENT_FIELDS:
        assert f".TP\n\\fB{escape(name)}\\fR\n" in manual()
