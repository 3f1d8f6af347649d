"""The rules of the scanner, one by one. tests/compat compares it with Perl's own."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nat_traverse.cli.getopt import Given, Rejected, Scan, scan
from nat_traverse.cli.options import FLAG, STRING, TUNNEL, Option


def read(*words: str, posix: bool = False) -> tuple[list[str], list[str]]:
    return plain(scan(words, TUNNEL.options, posix=posix))


def plain(result: Scan) -> tuple[list[str], list[str]]:
    """Write a scan down as text."""
    events = [
        f"! {event.text}" if isinstance(event, Rejected) else f"{event.name}={event.value}"
        for event in result.events
    ]
    return events, list(result.operands)


@pytest.mark.parametrize("word", ["--window=3", "-window=3", "+window=3", "--WiNdOw=3", "-w=3"])
def test_spellings(word: str) -> None:
    assert read(word) == (["window=3"], [])


def test_options_and_operands_mix() -> None:
    assert read("a", "-q", "b", "--json") == (["quit-after-connect=None", "json=None"], ["a", "b"])


def test_two_dashes_end_the_options() -> None:
    assert read("a", "--", "-q", "--") == ([], ["a", "-q", "--"])


def test_a_lone_dash_is_an_operand_and_a_lone_plus_is_not() -> None:
    assert read("-", "+") == (["! Missing option after +"], ["-"])


def test_a_string_takes_whatever_comes() -> None:
    assert read("--cmd", "--") == (["cmd=--"], [])
    assert read("--cmd", "") == (["cmd="], [])
    assert read("--cmd=a=b") == (["cmd=a=b"], [])


def test_a_missing_value() -> None:
    assert read("--cmd=") == (["! Option cmd requires an argument"], [])
    assert read("--win") == (["! Option window requires an argument"], [])


def test_a_bad_number_takes_its_word_along() -> None:
    text = '! Value "1:h:2" invalid for option window (number expected)'
    assert read("--window", "1:h:2", "x") == ([text], ["x"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("3\n", 3), ("-_1_0_", -10), ("+007", 7), ("0" * 5000 + "5", 5)],
)
def test_numbers(text: str, value: int) -> None:
    assert read("--timeout", text) == ([f"timeout={value}"], [])


@pytest.mark.parametrize("text", ["", "_", "+", "3\n\n", "\u0663", "\u00b2", "+-3", "3 "])
def test_no_numbers(text: str) -> None:
    rejected = f'! Value "{text}" invalid for option timeout (number expected)'
    assert read("--timeout", text) == ([rejected], [])


def test_a_number_longer_than_int_takes() -> None:
    (event,) = scan(["--timeout=-" + "1" * 100_000], TUNNEL.options, posix=False).events
    assert isinstance(event, Given)
    assert isinstance(event.value, int)
    assert event.value < -(10**300)


def test_case_is_that_of_ascii() -> None:
    kelvin = "\N{KELVIN SIGN}"  # str.lower() makes it a k
    assert read(f"--X{kelvin}") == ([f"! Unknown option: x{kelvin}"], [])


def test_abbreviations_of_0_7_come_first() -> None:
    assert read("-q", "-v", "-ver", "-c", "x") == (
        ["quit-after-connect=None", "version=None", "version=None", "cmd=x"],
        [],
    )
    assert read("--quie", "--verb", "--j") == (["quiet=None", "verbose=None", "json=None"], [])


def flag(name: str, *, legacy: bool) -> Option:
    return Option(name, FLAG, group="g", summary="s", manual="m", legacy=legacy)


def test_several_candidates_are_listed() -> None:
    table = [flag("wait", legacy=False), flag("walk", legacy=False), flag("wa", legacy=False)]
    table.append(Option("war", STRING, group="g", summary="s", manual="m", legacy=True))
    table.append(flag("warm", legacy=True))
    assert plain(scan(["-WA"], table, posix=False)) == (["wa=None"], [])
    assert plain(scan(["-w"], table, posix=False)) == (["! Option w is ambiguous (war, warm)"], [])
    assert plain(scan(["-w"], table[:2], posix=False)) == (
        ["! Option w is ambiguous (wait, walk)"],
        [],
    )


def test_posixly_correct() -> None:
    assert read("--window=3", "a", "-q", posix=True) == (["window=3"], ["a", "-q"])
    assert read("--Win=3", posix=True) == (["! Unknown option: Win"], [])
    assert read("-window=3", posix=True) == (["! Unknown option: window=3"], [])
    assert read("-WINDOW", "3", posix=True) == (["window=3"], [])
    assert read("+window", posix=True) == ([], ["+window"])


def test_errors_in_order() -> None:
    result = scan(["--x", "-q", "--y"], TUNNEL.options, posix=False)
    assert result.errors == ["Unknown option: x", "Unknown option: y"]
    assert repr(result.events[0]) == "Rejected('Unknown option: x')"
    assert repr(result.events[1]) == "Given('quit-after-connect', None)"


@given(st.lists(st.text(st.characters(exclude_categories=()))), st.booleans())
@example(["--window=" + "9" * 5000], False)
def test_anything_is_read_and_no_word_appears_from_nowhere(words: list[str], posix: bool) -> None:
    result = scan(words, TUNNEL.options, posix=posix)
    assert len(result.events) + len(result.operands) <= len(words)
    rest = iter(words)
    assert all(operand in rest for operand in result.operands)  # a subsequence


@pytest.mark.parametrize(
    ("word", "name"),
    [("--t", "timeout"), ("--h", "help"), ("--q", "quit-after-connect"), ("--v", "version")],
)
def test_later_options_take_no_letter_away(word: str, name: str) -> None:
    events, _ = read(word, "7")
    assert events[0].startswith(f"{name}=")


def test_later_options_can_be_shortened_as_far_as_they_differ() -> None:
    assert read("--tt=7", "--hi=7", "--ra=7", "--har=never", "--han=ls") == (
        ["ttl=7", "hint=7", "rate=7", "hard=never", "handoff=ls"],
        [],
    )
    assert read("--ha=never") == (["! Option ha is ambiguous (handoff, hard)"], [])
