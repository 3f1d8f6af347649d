"""A description is what a command line is: the same settings, by the same rules."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from nat_traverse.cli import description
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.description import SERVICES, keys, read_description, services
from nat_traverse.cli.getopt import Given, Scan
from nat_traverse.cli.options import FLAG, INTEGER, STRING, TUNNEL, Option
from nat_traverse.cli.settings import Connect
from nat_traverse.errors import ErrnoError, UsageError
from nat_traverse.target import Target

KEY = "nt1" + "q" * 10  # looks like a key, which is looked at later
CONNECT = 'connect = "40000:gw.example.org:40001"\n'
EXPOSE = 'expose = "any"\n'
# As networks and as addresses: more of either than one message has room for.
MANY = [f"10.{high}.{low}.1/24" for high in range(4) for low in range(256)]


class Files:
    """A directory with descriptions."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {"HOME": "/home/u"}

    def read(self, text: str, *, mode: int = 0o600) -> Connect:
        return read_description(self.write(text, mode=mode), self.environment)

    def write(self, text: str, *, mode: int = 0o600) -> str:
        path = self.directory / "home.toml"
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def refused(self, text: str) -> list[str]:
        """What is wrong with a description, without the name of the file."""
        with pytest.raises(UsageError) as caught:
            self.read(text)
        assert caught.value.exit_code == 2
        lines = str(caught.value).split("\n")
        begin = f"{self.directory}/home.toml"
        assert lines[0].startswith(begin)
        return [line.removeprefix(begin).removeprefix(": ") for line in lines]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def typed(*words: str) -> Connect:
    request = parse([*words, "40000:gw.example.org:40001"], {})
    assert isinstance(request, Connect)
    return request


def test_what_a_service_does_by_default(files: Files) -> None:
    assert files.read(CONNECT + EXPOSE) == typed("--retry", "--timeout=0", "--expose", "any")
    assert files.read(CONNECT + EXPOSE).target == Target(40000, "gw.example.org", 40001)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retry = false", ["--timeout=0"]),
        ("retry = true", ["--timeout=0", "--retry"]),
        ("timeout = 30", ["--retry", "--timeout=30"]),
        ("window = 30", ["--retry", "--window=30"]),
        ("timeout = -5", ["--retry", "--timeout=0"]),
        (
            'ttl = "4"\nhard = "always"\nrate = 500',
            ["--ttl", "4", "--hard", "always", "--rate", "500"],
        ),
        ("hint = [40007, 40009]", ["--hint", "40007", "--hint", "40009"]),
        ("hint = 40007", ["--hint", "40007"]),
        (
            "keepalive = 1_0\nverbose = true\njson = true",
            ["--keepalive", "10", "--verbose", "--json"],
        ),
        ("quiet = false", []),
        ('secret = "correct horse"', ["--secret", "correct horse"]),
        (
            'L = ["8080:localhost:80", "udp/53:dns:53"]\nR = "2222:localhost:22"\nD = ["1080"]',
            [
                "-L",
                "8080:localhost:80",
                "-L",
                "udp/53:dns:53",
                "-R",
                "2222:localhost:22",
                "-D",
                "1080",
            ],
        ),
        ('L = ["/run/a.sock:/run/b.sock"]', ["-L", "/run/a.sock:/run/b.sock"]),
        ("R = []", []),
        ("peer-key = []", []),
    ],
)
def test_every_kind_of_option(files: Files, text: str, words: list[str]) -> None:
    service = () if any("=" in word for word in words) else ("--retry", "--timeout=0")
    read = files.read(f"{CONNECT}{EXPOSE}{text}\n")
    assert read == typed("--expose", "any", *service, *words)


def test_a_command(files: Files) -> None:
    read = files.read(f'{CONNECT}cmd = "pppd nodetach notty"\ndatagrams = true\n')
    assert read == typed("--retry", "--timeout=0", "--datagrams", "--cmd", "pppd nodetach notty")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("secret", "{directory}/secret"),
        ("../x/secret", "{directory}/../x/secret"),
        ("/etc/secret", "/etc/secret"),
        ("~/secret", "/home/u/secret"),
        ("$CREDENTIALS_DIRECTORY/secret", "/run/credentials/x/secret"),
        ("$HOME/secret", "{directory}/$HOME/secret"),
    ],
)
def test_names_of_files_count_from_the_description(
    files: Files, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.environment["CREDENTIALS_DIRECTORY"] = "/run/credentials/x"
    read = files.read(f'{CONNECT}{EXPOSE}secret-file = "{value}"\nidentity = "{value}"')
    wanted = expected.format(directory=files.directory)
    assert (read.secret_file, read.identity) == (wanted, wanted)
    # Wherever the program runs, and however the description is called.
    files.write(f'{CONNECT}{EXPOSE}secret-file = "{value}"')
    monkeypatch.chdir(files.directory)
    assert read_description("home.toml", files.environment).secret_file == wanted


def test_a_variable_that_is_not_set_is_told(files: Files) -> None:
    """Not taken for a name, which would be missed by another error, about another file."""
    for environment in ({}, {"HOME": "", "CREDENTIALS_DIRECTORY": ""}):
        files.environment = environment
        lines = files.refused(
            f'{CONNECT}{EXPOSE}secret-file = "$CREDENTIALS_DIRECTORY/s"\nidentity = "~/s"'
        )
        assert lines[0].startswith(
            "secret-file: '$CREDENTIALS_DIRECTORY/s': CREDENTIALS_DIRECTORY is not set: systemd"
        )
        assert lines[1].startswith("identity: '~/s': HOME is not set: ")
        assert len(lines) == 2


@pytest.mark.parametrize("value", ["12345678", '"1234\\u00005678"', '["12345678"]', "12345678.0"])
def test_no_complaint_shows_the_secret(files: Files, value: str) -> None:
    (line,) = files.refused(f"{CONNECT}{EXPOSE}secret = {value}")
    assert line == "secret: a text, in quotes is wanted"


def test_a_key_is_no_file(files: Files) -> None:
    read = files.read(f'{CONNECT}{EXPOSE}identity = "k"\npeer-key = ["{KEY}", "keys"]')
    assert read.peer_keys == (KEY, f"{files.directory}/keys")


def test_all_that_is_wrong_is_told_at_once(files: Files) -> None:
    text = """
        expse = "any"
        l = ["8080:localhost:80"]
        Rate = 100
        rate = "100"
        retry = "yes"
        hint = [1, "2", true]
        timeout = 1.5
        cmd = ["ls"]
        secret = 1234
        handoff = "openvpn"
        quit-after-connect = true
        plain = true
        version = true
        "a b\\u001b" = 1
        vpn-device = %s
        [table]
        x = 1
    """
    # More digits than Python would write.
    found = files.refused(text % f"0x{'f' * 5000}")
    assert found[0] == "expse is no option"
    for line, expected in zip(
        found,
        [
            "expse is no option",
            "l is no option; do you mean L?",
            "Rate is no option; do you mean rate?",
            "rate: a number, without quotes is wanted, not '100'",
            "retry: true or false is wanted, not 'yes'",
            "hint: a number, without quotes, or a list of such is wanted, not '2'",
            "hint: a number, without quotes, or a list of such is wanted, not true",
            "timeout: a number, without quotes is wanted, not 1.5",
            "cmd: a text, in quotes is wanted, not a list",
            "secret: a text, in quotes is wanted",
            "handoff is for a command line only: the process would become another program",
            "quit-after-connect is for a command line only: a service stays",
            "plain is for a command line only: it can't begin again",
            "version is no option",
            "'a b\\x1b' is no option",
            "vpn-device: a text, in quotes is wanted, not a number",
            "table is no option",
            'connect is missing: connect = "LOCAL_PORT:PEER:REMOTE_PORT"',
            "it carries nothing that could begin again; one of these is needed: "
            + ", ".join(services()),
        ],
        strict=True,
    ):
        assert line.endswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate = 5", "rate: --rate is out of range: it can be 20 to 100000"),
        ('hard = "perhaps"', "hard: --hard is 'perhaps', and can be: auto, always, never"),
        ('ttl = "x"', "ttl: --ttl is 'x', and can be: 1 to 255, auto, off"),
        ('L = "8080"', "L: -L '8080': it has to say where to listen, and where that leads."),
        ('cmd = "ls"', "expose: --expose and --cmd exclude each other: a tunnel is for one "),
        ('L = ["a/b:localhost:80"]', "L: '-L a/b:localhost:80': a path in a description has to"),
        ('R = ["22:a/b"]', "R: '-R 22:a/b': a path in a description has to begin with /"),
        ('D = "./x"', "D: '-D ./x': a path in a description has to begin with /"),
        ('vpn = "10.0.0.1/24"\nvpn-device = "a/b"', "vpn-device: No network device can be called"),
        (f'vpn = "10.0.0.1/24"\nannounce = {MANY}', "announce: --announce: too much for one VPN"),
        (f"vpn = {MANY}", "vpn: --vpn: too much for one VPN"),
        ('cmd = "a\\u0000b"', "cmd: a text, in quotes is wanted, not 'a\\x00b'"),
    ],
)  # fmt: skip
def test_the_file_and_the_key_are_named(files: Files, text: str, expected: str) -> None:
    assert files.refused(f"{CONNECT}{EXPOSE}{text}\n")[0].startswith(expected)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('L = "./x.sock:localhost:22"', "L"),
        ('R = "22:./x.sock"', "R"),
        ('D = "./x.sock"', "D"),
        ('expose = "./x.sock"', "expose"),
    ],
)
def test_a_path_is_no_other_one_where_systemd_starts_programs(
    files: Files, monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    """From / a path is the same with a slash before it, and so is in it as a text."""
    monkeypatch.chdir("/")
    (line,) = files.refused(f"{CONNECT}{text}\n")
    assert line.startswith(f"{key}: ")
    assert line.endswith("a path in a description has to begin with /")


def test_a_whole_path_may_be_written_in_any_way(files: Files) -> None:
    read = files.read(f'{CONNECT}L = "/run//[a:b/x.sock]:/run/y"\nexpose = "/run/./z"\n')
    assert read.locals_[0].listen.host == "/run/[a:b/x.sock]"


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ('"40000"', "connect: '40000' is not LOCAL_PORT:PEER:REMOTE_PORT."),
        ('"1:--rate:0"', "connect: REMOTE_PORT is 0"),
        ('"demo"', "connect: 'demo' is a command, and has to be the first word"),
        ("40000", "connect: a text, in quotes is wanted, not 40000"),
        ("[]", "connect: a text, in quotes is wanted, not a list"),
    ],
)
def test_a_wrong_operand(files: Files, operand: str, expected: str) -> None:
    assert files.refused(f"connect = {operand}\n{EXPOSE}")[0].startswith(expected)


@pytest.mark.parametrize("operand", ['"1:192.0.2.1:2"', "1"])
def test_an_operand_beside_a_file_of_wireguards(files: Files, operand: str) -> None:
    (line,) = files.refused(f'connect = {operand}\nwireguard = "nat"\n')
    assert line == "connect: leave it out: the file of wireguard says what to connect"


@pytest.mark.parametrize(
    "text", ["connect = ", "x = 1\nx = 2", "aaa", "x = '\x1b'", "[" * 5000, "x = " + "9" * 5000]
)
def test_what_is_no_toml(files: Files, text: str) -> None:
    (line,) = files.refused(text)
    assert line.removeprefix(" ").startswith("is not TOML: ")
    assert "\x1b" not in line


def test_bytes_that_are_no_text(files: Files) -> None:
    path = files.write("")
    Path(path).write_bytes(b'connect = "\xff"')
    with pytest.raises(UsageError, match="is not TOML"):
        read_description(path, {})


# -- who may change it, and who may read it -------------------------------------------------------


@pytest.mark.parametrize(("mode", "accepted"), [(0o644, True), (0o664, False), (0o646, False)])
def test_nobody_else_may_change_it(files: Files, mode: int, accepted: bool) -> None:
    if accepted:
        files.read(CONNECT + EXPOSE, mode=mode)
        return
    with pytest.raises(ErrnoError, match="chmod go-w") as caught:
        files.read(CONNECT + EXPOSE, mode=mode)
    assert caught.value.exit_code == errno.EACCES


def test_nobody_else_may_read_a_secret(files: Files) -> None:
    text = f'{CONNECT}{EXPOSE}secret = "x"'
    files.read(text, mode=0o600)
    with pytest.raises(ErrnoError, match=r"which has a secret in it,.*chmod 600"):
        files.read(text, mode=0o644)


def test_a_pipe_is_opened_once(tmp_path: Path) -> None:
    """A pipe has nothing more to say, and any other file could be another one by then."""
    path = tmp_path / "home.toml"
    os.mkfifo(path, 0o644)

    def write() -> None:
        with path.open("w") as pipe:  # waits for who reads
            path.unlink()
            pipe.write(f'{CONNECT}{EXPOSE}secret = "x"')

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert read_description(str(path), {}) == typed(
        *("--retry", "--timeout=0", "--expose", "any", "--secret", "x")
    )
    writer.join()


def test_one_that_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "home.toml"
    path.symlink_to("nowhere")
    with pytest.raises(ErrnoError) as caught:
        read_description(str(path), {})
    assert str(caught.value) == f"Cannot read the description {path}: No such file or directory."


def test_one_that_cannot_be_read(files: Files) -> None:
    with pytest.raises(ErrnoError, match="Is a directory"):
        read_description(str(files.directory), {})


def test_a_file_of_wireguards_says_what_to_connect(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it begins again by itself: neither an operand nor --retry go with it."""
    seen: list[Scan] = []

    def settle(found: Scan) -> Connect:
        seen.append(found)
        return typed("--expose", "any")

    option = Option(
        "wireguard", STRING, metavar="CONF", group="", summary="x", manual="", file=True
    )
    monkeypatch.setattr(description, "keys", lambda: {"wireguard": option})
    monkeypatch.setattr(description, "settle_tunnel", settle)
    for value, name in (("nat", "nat"), ("nat.conf", f"{files.directory}/nat.conf")):
        files.read(f'wireguard = "{value}"')
        found = seen.pop()
        assert found.operands == []
        assert [
            (event.name, event.value) for event in found.events if isinstance(event, Given)
        ] == [
            ("wireguard", name),
            ("timeout", 0),
        ]


# -- the table ------------------------------------------------------------------------------------


def test_every_option_is_a_key_or_has_a_reason_not_to_be() -> None:
    for option in TUNNEL.options:
        assert (option.key in keys()) != (
            option.name in description._ALONE or option.name in {"help", "version"}
        )
    assert set(services()) == {option.key for option in TUNNEL.options if option.name in SERVICES}
    assert {"L", "R", "D", "expose", "cmd"} <= set(services())


@pytest.mark.parametrize("key", list(keys()))
def test_any_key_with_a_value_of_its_kind_is_understood(files: Files, key: str) -> None:
    """Whatever the table gets: it is an option here, and what is wrong is told with its key."""
    option = keys()[key]
    value = {FLAG: "true", INTEGER: "30"}.get(option.kind, '"x"')
    problem = ""
    try:
        files.read(f"{CONNECT}{'' if key == 'expose' else EXPOSE}{key} = {value}\n")
    except UsageError as error:
        problem = str(error)
    assert "is no option" not in problem
    assert "is wanted" not in problem
    assert not problem or problem.startswith(f"{files.directory}/home.toml: ")
