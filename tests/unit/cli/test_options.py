from __future__ import annotations

from nat_traverse.cli import options
from nat_traverse.cli.options import COMMANDS, DEMO, TUNNEL
from nat_traverse.lab.ruleset import Kind
from nat_traverse.punch.settings import DEFAULT_RATE, Hard

EVERY = (TUNNEL, *COMMANDS.values())


def test_legacy_options_are_those_of_0_7() -> None:
    legacy = {option.name: option.kind for option in TUNNEL.options if option.legacy}
    assert legacy == {
        "window": "integer",
        "timeout": "integer",
        "cmd": "string",
        "quit-after-connect": "flag",
        "version": "flag",
        "help": "flag",
    }


def test_names_are_unique_and_typable() -> None:
    for command in EVERY:
        names = [option.name for option in command.options]
        assert len(set(names)) == len(names)
        for name in names:
            assert name == name.lower()
            assert name.replace("-", "").isalpha()


def test_rows_are_complete() -> None:
    for command in EVERY:
        for option in command.options:
            assert option.summary
            assert option.group
            assert option.manual.strip()
            assert bool(option.metavar) == (option.kind != "flag")
            assert not option.choices or option.kind == "string"
            assert not option.file or option.kind == "string"
            assert not option.repeatable or option.kind != "flag"


def test_version_and_help_are_everywhere() -> None:
    for command in EVERY:
        assert options.VERSION in command.options
        assert options.HELP in command.options


def test_commands_cannot_be_taken_for_an_address() -> None:
    for name in COMMANDS:
        assert ":" not in name
        assert name.isalpha()


def test_kinds_are_those_of_the_lab() -> None:
    words = [choice.word for choice in options.KINDS]
    assert sorted(words) == sorted(kind.value for kind in Kind)
    assert options.DEFAULT_KIND in words


def test_words_and_defaults_of_the_search_are_those_of_the_machines() -> None:
    words = [choice.word for choice in options.HARD.choices]
    assert words == [hard.value for hard in Hard]
    assert options.HARD.default == Hard.AUTO.value
    assert float(options.RATE.default) == DEFAULT_RATE


def test_groups_hold_every_option_once() -> None:
    for command in EVERY:
        grouped = [option for _, members in command.groups() for option in members]
        assert sorted(map(id, grouped)) == sorted(map(id, command.options))


def test_what_is_about_a_vpn_is_together() -> None:
    members = dict(TUNNEL.groups())[options.NETWORK]
    names = ["vpn", "vpn-device", "route", "announce", "user"]
    assert [option.name for option in members] == names
    assert all(option.kind == options.STRING for option in members)
    assert options.VPN.spelling == "--vpn ADDR/PREFIX"


def test_spelling_and_synopsis() -> None:
    assert options.WINDOW.spelling == "--window N"
    assert options.QUIET.spelling == "--quiet"
    assert (options.LOCAL.spelling, options.LOCAL.key) == ("-L SPEC", "L")
    assert (options.WINDOW.word, options.WINDOW.key) == ("--window", "window")
    assert (
        options.HANDOFF.label == "close the socket and become CMD, which uses the same port itself"
    )
    assert TUNNEL.synopsis == "nat-traverse [options] LOCAL_PORT:PEER:REMOTE_PORT"
    assert DEMO.synopsis == "nat-traverse demo [options]"
    assert repr(options.CMD) == "<Option --cmd>"
