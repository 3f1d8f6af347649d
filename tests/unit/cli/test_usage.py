from __future__ import annotations

import shlex

import pytest

from nat_traverse._version import __version__
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.options import COMMANDS, DEMO, KINDS, TUNNEL, Command
from nat_traverse.cli.settings import Connect
from nat_traverse.cli.usage import usage

EVERY = (TUNNEL, *COMMANDS.values())


@pytest.mark.parametrize("command", EVERY, ids=lambda command: command.name or "tunnel")
def test_it_fits_the_narrowest_terminal(command: Command) -> None:
    text = usage(command)
    assert text.isascii()
    assert text.endswith("\n")
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("command", EVERY, ids=lambda command: command.name or "tunnel")
def test_every_option_has_a_line(command: Command) -> None:
    lines = usage(command).splitlines()
    for option in command.options:
        assert sum(line.startswith(f"  {option.spelling} ") for line in lines) == 1


def test_meanings_line_up() -> None:
    """Also beside options of one letter, and those with a long value."""
    rows = usage(TUNNEL).split("\n\n")[2:-4]
    for line in "\n".join(rows).splitlines():
        if line.startswith("  "):
            assert line[22:24] == "  ", line
            assert line[24] != " ", line


def test_commands_and_operands() -> None:
    text = usage(TUNNEL)
    assert text.startswith(f"nat-traverse {__version__}: ")
    assert "\n  nat-traverse demo [options]\n" in text
    assert "\n  nat-traverse keygen [options] FILE\n" in text
    assert "\n  nat-traverse up [options] NAME...\n" in text
    assert "\n  nat-traverse status [options] [NAME...]\n" in text
    assert "\n  REMOTE_PORT " in text


def test_kinds_are_explained_once() -> None:
    text = usage(DEMO)
    for choice in KINDS:
        assert text.count(f"\n  {choice.word} ") == 1
    assert text.count("(default: drop)") == 2


def test_the_examples_can_be_typed() -> None:
    text = usage(TUNNEL).replace("\\\n", "")
    lines = [line.partition("$ ")[2] for line in text.splitlines() if "$ " in line]
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "nat-traverse"
        assert isinstance(parse(words, {}), Connect)
