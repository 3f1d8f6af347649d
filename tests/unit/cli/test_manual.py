from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from nat_traverse.cli.differences import DIFFERENCES
from nat_traverse.cli.manual import manual
from nat_traverse.cli.options import COMMANDS, TUNNEL
from nat_traverse.cli.report import EVENT_FIELDS
from nat_traverse.cli.roff import escape
from nat_traverse.errors import EXIT_DATA_LOST, EXIT_NO_PATH, EXIT_OTHER_PORTS, EXIT_USAGE
from support.tools import need

COMMITTED = Path(__file__).parents[3] / "docs" / "nat-traverse.1"


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
            name = option.name.replace("-", "\\-")
            assert text.count(f".TP\n\\fB\\-\\-{name}\\fR") >= 1
    for command in COMMANDS.values():
        assert f".SS {command.name}\n" in text
    assert text.count("\nWhy: ") == len(DIFFERENCES)


def test_every_exit_code_of_ours() -> None:
    for code in (EXIT_USAGE, EXIT_NO_PATH, EXIT_DATA_LOST, EXIT_OTHER_PORTS):
        assert f".TP\n\\fB{code}\\fR\n" in manual()


def test_every_field_of_json() -> None:
    for name, _ in EVENT_FIELDS:
        assert f".TP\n\\fB{escape(name)}\\fR\n" in manual()
