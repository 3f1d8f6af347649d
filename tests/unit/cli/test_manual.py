from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nat_traverse.api import MOST_FAILURES
from nat_traverse.carry.environment import SECRET_VARIABLE
from nat_traverse.cli import settings
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.description import _ALONE, keys, read_description
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
from nat_traverse.cli.monitor import STATUS_FIELDS
from nat_traverse.cli.options import COMMANDS, TUNNEL
from nat_traverse.cli.pages import (
    PAGES,
    STATUS_STATUS,
    TOML_DESCRIPTION,
    UP_EXAMPLE,
    UP_STATUS,
    main,
    page,
)
from nat_traverse.cli.report import EVENT_FIELDS
from nat_traverse.cli.roff import escape
from nat_traverse.cli.settings import Connect, Keygen
from nat_traverse.cli.status import NOT_RUNNING, NOT_UP, UP
from nat_traverse.errors import (
    EXIT_DATA_LOST,
    EXIT_NO_PATH,
    EXIT_NOT_AGREED,
    EXIT_OTHER_PORTS,
    EXIT_USAGE,
    DeniedError,
    DeviceError,
)
from nat_traverse.link.establish import EXIT_MODES_DIFFER
from nat_traverse.net.status_socket import NameInUseError
from nat_traverse.tunnel.refusals import EXIT_NOT_PROVEN
from support.tools import need

DOCS = Path(__file__).parents[3] / "docs"
COMMITTED = DOCS / "nat-traverse.1"


def rendered(page: Path = COMMITTED) -> str:
    """A page as a terminal of 80 columns shows it, without bold and underlined letters."""
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    run = subprocess.run(
        [need("man", package="man-db"), "--warnings", "--nh", "--nj", "-l", page],
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
    for option in TUNNEL.options:
        assert text.count(f".TP\n\\fB{escape(option.word)}\\fR") >= 1
    for command in COMMANDS.values():
        assert f".SS {command.name}\n" in text
        assert f"\\fBnat\\-traverse\\-{command.name}\\fR(1)" in text
    assert text.count("\nWhy: ") == len(DIFFERENCES)


def test_every_exit_code_of_ours() -> None:
    for code in (
        EXIT_USAGE,
        EXIT_NOT_PROVEN,
        EXIT_NO_PATH,
        EXIT_DATA_LOST,
        EXIT_OTHER_PORTS,
        EXIT_MODES_DIFFER,
        EXIT_NOT_AGREED,
        DeviceError.exit_code,
        DeniedError.exit_code,
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
        pytest.param(SERVICE, 2, id="service"),
        pytest.param(PPP, 2, id="ppp"),
        pytest.param(PPP_DATAGRAMS, 2, id="ppp-datagrams"),
        pytest.param(NETCAT, 2, id="netcat"),
    ],
)
def test_the_examples_can_be_typed(text: str, count: int) -> None:
    found = commands(text)
    assert len(found) == count
    for words in found:
        assert isinstance(parse(words, {}), Connect | Keygen | settings.Up | settings.Status)


@pytest.mark.parametrize("text", [SERVICE, UP_EXAMPLE, TOML_DESCRIPTION])
def test_the_descriptions_are_some(text: str, tmp_path: Path) -> None:
    lines = re.findall(r"^    (\S+ = .*)$", text, re.MULTILINE)
    begins = [number for number, line in enumerate(lines) if line.startswith("connect = ")]
    assert begins
    for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True):
        path = tmp_path / "left.toml"
        path.write_text("\n".join(lines[begin:end]))
        path.chmod(0o600)
        assert read_description(str(path), {"HOME": "/root"}).retry


def test_every_field_of_json() -> None:
    for name, _ in EVENT_FIELDS:
        assert f".TP\n\\fB{escape(name)}\\fR\n" in manual()


# -- the pages of the commands --------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_is_the_generated_one(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 0
    assert capsys.readouterr().out == page(name)
    assert (DOCS / name).read_text() == page(name), (
        f"run python -m nat_traverse.cli.pages {name} > docs/{name}"
    )


def test_one_page_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.split() == list(PAGES)
    assert main(["ls.1"]) == 2
    assert "nat-traverse-up.1" in capsys.readouterr().err


@pytest.mark.parametrize("name", PAGES)
def test_man_shows_a_page_without_a_warning(name: str) -> None:
    text = rendered(DOCS / name)
    headings = [line for line in text.splitlines()[1:-1] if line and line[0] != " "]
    assert headings[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
    assert headings[-1] == "SEE ALSO"
    assert "\\f" not in text
    assert "`" not in text


@pytest.mark.parametrize("name", PAGES)
def test_whatis_can_read_the_name_of_a_page(name: str) -> None:
    lexgrog = need("lexgrog", package="man-db")
    run = subprocess.run([lexgrog, DOCS / name], capture_output=True, text=True, check=True)
    assert f'"{name.rpartition(".")[0]} - ' in run.stdout


def test_every_command_has_a_page_with_its_options() -> None:
    for command in COMMANDS.values():
        text = page(f"nat-traverse-{command.name}.1")
        for option in command.options:
            assert text.count(f".TP\n\\fB{escape(option.word)}\\fR") == 1


def test_every_page_leads_to_the_others() -> None:
    links = {f"\\fB{escape(name[:-2])}\\fR({name[-1]})" for name in ("nat-traverse.1", *PAGES)}
    for name in PAGES:
        also = page(name).partition(".SH SEE ALSO\n")[2]
        own = f"\\fB{escape(name[:-2])}\\fR({name[-1]})"
        found = {link for link in links if link in also}
        if name.endswith(".5"):
            assert {
                f"\\fB{escape(each)}\\fR(1)" for each in ("nat-traverse", "nat-traverse-up")
            } == found
        else:
            assert found == links - {own}
    assert links - {"\\fBnat\\-traverse\\fR(1)"} <= {
        link for link in links if link in manual().partition(".SH SEE ALSO\n")[2]
    }


def test_every_key_of_a_description() -> None:
    text = page("nat-traverse.toml.5")
    for key, option in keys().items():
        assert text.count(f".TP\n\\fB{escape(key)}\\fR = ") == 1
        assert (f"\\fB{escape(key)}\\fR = [" in text) == option.repeatable


def test_what_has_another_default_in_a_description(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text('connect = "40000:h:40001"\nexpose = "any"\n')
    path.chmod(0o600)
    connect = read_description(str(path), {})
    assert (connect.retry, connect.deadline) == (True, None)
    _, _, keys_of_it = page("nat-traverse.toml.5").partition(".SH KEYS\n")
    (retry,) = (each for each in keys_of_it.split(".TP\n") if each.startswith("\\fBretry"))
    (timeout,) = (each for each in keys_of_it.split(".TP\n") if each.startswith("\\fBtimeout"))
    assert retry.endswith("By default \\fBtrue\\fR.\n")
    assert timeout.endswith("Without this and \\fBwindow\\fR: never.\n")
    assert "180" not in timeout


def test_every_field_of_the_status() -> None:
    for name, _ in STATUS_FIELDS:
        assert f".TP\n\\fB{escape(name)}\\fR\n" in page("nat-traverse-status.1")


def test_the_statuses_of_a_service() -> None:
    assert [int(code) for code, _ in STATUS_STATUS] == [UP, NOT_UP, NOT_RUNNING]
    assert str(NameInUseError("x", "y").exit_code) in dict(UP_STATUS)
    assert str(errno.EACCES) in dict(UP_STATUS)


def test_what_a_description_may_not_have_is_named() -> None:
    for key in _ALONE:
        assert f"`{key}`" in TOML_DESCRIPTION
