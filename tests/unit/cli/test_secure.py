"""The encrypted tunnel of the command line, as whole programs on this machine."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from nat_traverse.carry.addressing import make_plan
from nat_traverse.cli import main, secure
from nat_traverse.cli.arguments import parse
from nat_traverse.cli.settings import Connect
from nat_traverse.errors import (
    DeniedError,
    DeviceError,
    NatTraverseError,
    NotAgreedError,
    PeerGoneError,
    UsageError,
)
from nat_traverse.link.establish import Purpose
from nat_traverse.model import Endpoint
from nat_traverse.punch.settings import DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE
from nat_traverse.session import Opened
from nat_traverse.tunnel.events import Closing
from nat_traverse.wire.hello import HELLO_MAGIC, Mode
from support.ends import free_ports
from support.forwards import unused_port
from support.lab import eventually
from support.leftovers import Mark
from support.loopback import V4, Wire, exchange, old_peer, pair, shake_hands, succeed
from support.programs import ours

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from nat_traverse.api import Settings
    from nat_traverse.carry.addressing import Address, Plan
    from nat_traverse.session import PunchSettings
    from support.programs import Program

PHRASE = "correct horse battery"
SOON = ("--window=0", "--timeout=4")


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def requested(*words: str, port: int = 40000) -> Connect:
    request = parse([*words, f"{port}:127.0.0.1:40001"], {})
    assert isinstance(request, Connect)
    return request


@pytest.mark.parametrize(
    ("words", "purpose", "legacy"),
    [
        ((), Purpose.STREAM, True),
        (("--cmd", "ls"), Purpose.STREAM, True),
        (("--secret", "x"), Purpose.STREAM, False),
        (("--datagrams",), Purpose.DATAGRAMS, False),
        (("--datagrams", "--cmd", "ls"), Purpose.DATAGRAMS, False),
        (("-L", "1:h:2"), Purpose.FORWARDS, False),
        (("--expose", "h:2"), Purpose.FORWARDS, False),
        (("--vpn", "10.0.0.1/24"), Purpose.VPN, False),
    ],
)
def test_what_is_to_be_reached(words: tuple[str, ...], purpose: Purpose, legacy: bool) -> None:
    settings = secure._settings(requested(*words, "--keepalive", "7"))
    assert settings.purpose is purpose
    # Who asks for a proof, or for more than a stream, can do nothing with a peer of 0.7.
    assert settings.punch.legacy is legacy
    assert settings.punch.mode is Mode.TUNNEL
    assert settings.keepalive == 7.0
    large = purpose is Purpose.VPN  # whose packets have to fit inside
    assert settings.punch.datagram_size == (LARGE_DATAGRAM_SIZE if large else DATAGRAM_SIZE)
    assert (settings.punch.local_port, settings.punch.remote_port) == (40000, 40001)


@pytest.mark.parametrize(
    ("words", "consent"),
    [
        ((), 30.0),
        (("--keepalive", "1"), 30.0),  # without another try, patience costs nothing
        (("--retry", "--keepalive", "1"), 3.0),
        (("--retry", "--keepalive", "2"), 6.0),
        (("--retry",), 30.0),
        (("--retry", "--keepalive", "25"), 30.0),
    ],
)
def test_how_long_the_peer_may_be_silent(words: tuple[str, ...], consent: float) -> None:
    assert secure._settings(requested("-D", "0", *words)).consent == consent
    assert secure._settings(requested("--vpn", "10.0.0.1/24", *words)).consent == consent


class Lost:
    """A link as far as `--retry` is concerned; `use` ends with `error`."""

    peer = Endpoint("203.0.113.7", 40_008)

    def __init__(self, error: Exception | None, *, is_client: bool = True) -> None:
        self.error = error
        self.tunnel = SimpleNamespace(session=b"of this link", is_client=is_client)
        self.aborted: list[object] = []

    def abort(self, code: object = None) -> None:
        self.aborted.append(code)


class Told:
    """A report that notes when a tunnel is lost."""

    agreed_port = 40_007

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.parts: dict[str, dict[str, object]] = {}

    def lost(self, text: str) -> None:
        self.texts.append(text)

    def attach(self, part: str, tell: Callable[[], Mapping[str, object]]) -> None:
        self.parts[part] = dict(tell())


class FakeVpn:
    """A VPN that notes what is done to it, and does what its links say."""

    def __init__(self, plan: Plan, _observe: object, keep: AbstractSet[str]) -> None:
        self.plan = plan
        self.keep = keep
        self.device = None
        self.dropped: dict[str, int] = {}
        self.done: list[object] = []
        made.append(self)

    def open(self) -> None:
        self.done.append("open")
        if unable:
            raise unable[0]

    def keep_ways(self, outers: Iterable[Address]) -> None:
        self.done.append(list(map(str, outers)))

    async def use(self, link: Lost) -> None:
        self.done.append(link)
        if link.error is not None:
            raise link.error

    def close(self) -> None:
        self.done.append("close")


made: list[FakeVpn] = []
unable: list[NatTraverseError] = []


def carry(
    monkeypatch: pytest.MonkeyPatch, links: list[Lost], *words: str, port: int = 40000
) -> tuple[list[Settings], Told, int]:
    """Run a VPN over these links, one after the other: what was looked for, told and returned."""
    made.clear()
    wanted: list[Settings] = []
    told = Told()
    coming = iter(links)

    async def watched(_report: object, _reach: object, settings: Settings) -> Lost:
        wanted.append(settings)
        return next(coming)

    monkeypatch.setattr("nat_traverse.carry.vpn.Vpn", FakeVpn)
    monkeypatch.setattr(secure, "watched", watched)
    monkeypatch.setattr(secure, "_REST", 0.0)
    told.observe = lambda _: None  # type: ignore[attr-defined]
    request = requested("--vpn", "10.0.0.1/24", *words, port=port)
    code = asyncio.run(secure.use_secure(request, told))  # type: ignore[arg-type]
    assert isinstance(code, int)
    return wanted, told, code


class TestVpn:
    @pytest.fixture(autouse=True)
    def able(self) -> Iterator[None]:
        unable.clear()
        yield
        unable.clear()

    def test_is_over_with_its_link(self, monkeypatch: pytest.MonkeyPatch) -> None:
        link = Lost(None)
        (settings,), told, code = carry(monkeypatch, [link])
        assert (code, told.texts) == (0, [])
        assert told.parts["vpn"]["addresses"] == ["10.0.0.1/24"]
        assert settings.purpose is Purpose.VPN
        assert made[0].done == ["open", link, "close"]
        assert made[0].plan == make_plan(addresses=["10.0.0.1/24"])
        assert link.aborted == [Closing.STOPPED]

    def test_goes_on_over_the_next_one_with_the_same_device(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = PeerGoneError("Silence. Start both again.", errno.ETIMEDOUT)
        links = [Lost(None), Lost(gone), Lost(NotAgreedError("Not this address."))]
        with pytest.raises(NotAgreedError):
            carry(monkeypatch, links, "--retry")
        assert made[0].done == ["open", *links, "close"]
        assert all(each.aborted == [Closing.STOPPED] for each in links)

    def test_looks_for_the_peer_on_a_spare_pair_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        end = KeyboardInterrupt()
        links = [Lost(None), Lost(None, is_client=False), Lost(end)]  # type: ignore[arg-type]
        wanted: list[PunchSettings] = []
        texts: list[str] = []
        keep = secure._again

        def again(settings: Settings, report: Told, lost: Lost) -> Settings:
            found = keep(settings, report, lost)  # type: ignore[arg-type]
            wanted.append(found.punch)
            texts.extend(report.texts[-1:])
            return found

        monkeypatch.setattr(secure, "_again", again)
        with pytest.raises(KeyboardInterrupt):
            carry(monkeypatch, links, "--retry")
        first, second = wanted
        assert (first.timeout, first.local_port, first.remote_port) == (None, 40_007, 40_001)
        # By that address, if its name can't be looked up: the way there may be the VPN itself.
        assert (first.peer, first.last_known) == ("127.0.0.1", "203.0.113.7")
        assert first.spare is not None
        assert second.spare == first.spare[::-1]  # as the other side has it
        assert texts == ["The other side ended the tunnel."] * 2

    def test_a_lost_link_is_an_error_without_retry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = PeerGoneError("Silence. Start both again.", errno.ETIMEDOUT)
        with pytest.raises(PeerGoneError):
            carry(monkeypatch, [Lost(gone)])
        assert made[0].done[-1] == "close"

    def test_what_is_missing_here_is_told_before_anybody_is_looked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unable.append(DeniedError("Not without CAP_NET_ADMIN."))
        with pytest.raises(DeniedError) as caught:
            carry(monkeypatch, [])
        assert caught.value.exit_code == errno.EACCES
        assert made[0].done == ["open", "close"]

    def test_each_search_goes_beside_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ways are there before anything is sent, and before anybody hears of it."""
        remotes = Endpoint("203.0.113.9", 40_001), Endpoint("fe80::9", 40_001)
        opened = Opened(40_000, (), remotes, (), ())
        links = [Lost(None), Lost(PeerGoneError("Silence.", errno.ETIMEDOUT))]
        coming = iter(links)

        async def reach(_: Settings, observe: Callable[[object], None]) -> Lost:
            observe("resolving")
            observe(opened)
            made[0].done.append("hello")
            return next(coming)

        async def watched(
            report: Told, find: Callable[..., Awaitable[Lost]], settings: Settings
        ) -> Lost:
            if made[0].done[-1] is links[1]:
                raise KeyboardInterrupt
            return await find(settings, report.observe)  # type: ignore[attr-defined]

        def observe(event: object) -> None:
            made[0].done.append(event)

        monkeypatch.setattr("nat_traverse.carry.vpn.Vpn", FakeVpn)
        monkeypatch.setattr(secure, "reach", reach)
        monkeypatch.setattr(secure, "watched", watched)
        monkeypatch.setattr(secure, "_REST", 0.0)
        made.clear()
        told = Told()
        told.observe = observe  # type: ignore[attr-defined]
        request = requested("--vpn", "10.0.0.1/24", "--retry")
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(secure.use_secure(request, told))  # type: ignore[arg-type]
        search = ["resolving", ["203.0.113.9", "fe80::9"], opened, "hello"]
        assert made[0].done == ["open", *search, links[0], *search, links[1], "close"]

    @pytest.mark.parametrize(
        ("port", "words", "kept"),
        [
            (443, ("--retry",), {"net_bind_service"}),
            (1023, ("--retry",), {"net_bind_service"}),
            (1024, ("--retry",), set()),
            (0, ("--retry",), set()),  # the system chooses one that is open to all
            (443, (), set()),  # it is bound once, as root
        ],
    )
    def test_keeps_the_right_to_bind_its_port_again(
        self, port: int, words: tuple[str, ...], kept: set[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = Lost(NotAgreedError("Not this address.") if words else None)
        with suppress(NotAgreedError):
            carry(monkeypatch, [link], *words, "--user", "nobody", port=port)
        assert made[0].keep == kept

    def test_more_networks_than_can_be_announced_are_told_at_once(self) -> None:
        networks = [f"--announce=10.{each}.0.0/16" for each in range(256)]
        with pytest.raises(UsageError, match="256 networks do not fit"):
            requested("--vpn", "10.0.0.1/24", *networks)

    def test_an_unknown_user_is_told_before_anybody_is_looked_for(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nat_traverse.carry.vpn.VpnDevice", None)  # nor is a device made
        words = ("--json", "--vpn", "10.0.0.1/24", "--user", "no-such-user-here")
        assert main([*words, "40000:127.0.0.1:40001"]) == 2
        told = capsys.readouterr().err
        assert "There is no user 'no-such-user-here'" in told
        assert "opened" not in told


def test_errors_of_a_vpn_have_exit_codes() -> None:
    assert DeviceError("x").exit_code == 1
    assert DeniedError("x").exit_code == 13
    assert NotAgreedError("x").exit_code == 9


def test_a_secret_is_hidden_and_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: list[str] = []
    monkeypatch.setattr(secure, "hide_argument", hidden.append)
    settings = secure._settings(requested("--secret", PHRASE))
    assert hidden == [PHRASE]
    assert settings.means.secret == PHRASE.encode()
    assert PHRASE not in repr(settings)
    monkeypatch.setenv("NAT_TRAVERSE_SECRET", "another")
    assert secure._settings(requested()).means.secret == b"another"
    assert hidden == [PHRASE]


# -- who is there ---------------------------------------------------------------------------------


def test_without_anything_both_show_the_same_code() -> None:
    with pair("--json") as (one, other):
        codes = {each.event("code")["code"] for each in (one, other)}
        assert len(codes) == 1
        assert one.event("connected")["proof"] == "code"
        exchange(one, other)


@pytest.mark.parametrize("how", ["option", "file", "environment"])
def test_a_secret_proves_it_and_is_seen_nowhere(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "phrase"
    file.write_text(PHRASE + "\n")
    file.chmod(0o600)
    options = {
        "option": ("--secret", PHRASE),
        "file": ("--secret-file", str(file)),
        "environment": (),
    }[how]
    if how == "environment":
        monkeypatch.setenv("NAT_TRAVERSE_SECRET", PHRASE)
    with pair("--json", "--verbose", *options, left=("--cmd", "env; cat")) as (runner, user):
        for each in (runner, user):
            connected = each.event("connected")
            assert (connected["encrypted"], connected["proof"]) == (True, "secret")
            assert connected["code"] is None
            command_line = Path(f"/proc/{each.process.pid}/cmdline").read_bytes()
            assert b"nat-traverse" in command_line
            assert PHRASE.encode() not in command_line
        user.write(b"through")
        user.close_input()
        succeed(runner, user)
        assert user.output.endswith(b"through")
        assert b"PATH=" in user.output  # the environment of the command
        for each in (runner, user):
            assert PHRASE.encode() not in each.output
            assert PHRASE not in each.errors


def test_a_command_in_the_place_of_this_program_does_not_get_it_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAT_TRAVERSE_SECRET", PHRASE)
    with pair("--handoff", "env") as (one, other):
        succeed(one, other)
        assert b"NAT_TRAVERSE_PEER=" in one.output
        assert PHRASE.encode() not in one.output


def test_another_secret_is_refused_on_both_sides() -> None:
    with pair("--json", left=("--secret", PHRASE), right=("--secret", "wrong")) as (one, other):
        for each in (one, other):
            each.write(b"not sent")
        assert (one.wait(), other.wait()) == (3, 3)
        for each in (one, other):
            assert each.output == b""
            assert each.event("rejected")["failures"] == 1
            assert each.events[-1]["exit_code"] == 3
            assert "secret" in each.events[-1]["message"]
            assert PHRASE not in each.errors
            assert "connected" not in [event["event"] for event in each.events]


def test_a_secret_on_one_side_only() -> None:
    with pair("--json", *SOON, left=("--secret", PHRASE)) as (one, other):
        assert (one.wait(), other.wait()) == (3, 3)
        for each in (one, other):  # which of them says it first is chance
            assert "secret" in each.events[-1]["message"]


def test_keys_are_made_and_prove_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("left", "right")]
    keys = []
    for path in paths:
        assert main(["keygen", str(path)]) == 0
        keys.append(capsys.readouterr().out.strip())
        assert main(["keygen", "--public", str(path)]) == 0
        assert capsys.readouterr().out.strip() == keys[-1]
    assert main(["keygen", str(paths[0])]) == 17  # it is there: EEXIST
    assert "not overwritten" in capsys.readouterr().err
    sides = [
        ("--identity", str(paths[0]), "--peer-key", keys[1]),
        ("--identity", str(paths[1]), "--peer-key", keys[0]),
    ]
    with pair("--json", left=sides[0], right=sides[1]) as (one, other):
        assert one.event("connected")["proof"] == "keys"
        assert one.event("connected")["peer_key"] == keys[1]
        assert other.event("connected")["peer_key"] == keys[0]
        exchange(one, other)
    wrong = ("--identity", str(paths[1]), "--peer-key", keys[1])
    with pair("--json", *SOON, left=sides[0], right=wrong) as (one, other):
        assert (one.wait(), other.wait()) == (3, 3)
        assert keys[0] in other.errors  # the key that it did not expect


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--secret", " "), 2),
        (("--secret", "x", "--secret-file", "y"), 2),
        (("--identity", "/etc/passwd"), 2),
        (("--peer-key", "x"), 2),
        (("--secret-file", "/no/such/file"), 2),
    ],
)
def test_what_is_no_credential_is_told_before_anything_is_opened(
    words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "40000:127.0.0.1:40001"]) == code
    err = capsys.readouterr().err
    assert err.startswith("nat-traverse: ")
    assert "UDP port" not in err


# -- what it is for -------------------------------------------------------------------------------


def test_different_purposes_are_refused_on_both_sides() -> None:
    with pair("--json", right=("--datagrams",)) as (one, other):
        assert (one.wait(), other.wait()) == (3, 3)
        for each in (one, other):
            assert "for different purposes" in each.events[-1]["message"]


@contextmanager
def over_a_wire(left: tuple[str, ...], right: tuple[str, ...]) -> Iterator[tuple[Program, ...]]:
    """Run two ends with somebody in between who sees all."""
    mine, theirs = free_ports()
    with (
        Wire(mine, theirs) as wire,
        ours("--json", *left, f"{mine}:{V4}:{wire.left}") as one,
        ours("--json", *right, f"{theirs}:{V4}:{wire.right}") as other,
    ):
        yield one, other
        watched.extend(wire.copy)


watched: list[bytes] = []


@pytest.fixture(autouse=True)
def unwatched() -> None:
    watched.clear()


MARK = b"for the peer's eyes only " * 20


@pytest.mark.parametrize("plain_side", ["left", "right"])
def test_a_plain_and_an_encrypted_end_say_so_and_send_nothing(plain_side: str) -> None:
    sides = [("--plain",), ()] if plain_side == "left" else [(), ("--plain",)]
    with over_a_wire(*sides) as ends:
        for each in ends:
            each.write(MARK)
            each.close_input()
        assert [each.wait() for each in ends] == [8, 8]
        for each in ends:
            assert each.output == b""
            assert "--plain" in each.events[-1]["message"]
            assert "Nothing was sent in the clear" in each.events[-1]["message"]
            assert each.events[-1]["exit_code"] == 8
    assert watched
    assert not any(MARK[:20] in each for each in watched)


def test_a_path_for_another_program_is_no_tunnel() -> None:
    with pair("--json", left=("--quit-after-connect",)) as (one, other):
        assert other.wait() == 8
        assert "for another program" in other.events[-1]["message"]
        one.signal(signal.SIGKILL)


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_who_is_in_between_reads_the_plain_one_only(kind: str) -> None:
    options = ("--plain",) if kind == "plain" else ()
    with over_a_wire(options, options) as ends:
        for each in ends:
            each.write(MARK)
            each.close_input()
        succeed(*ends)
        assert [each.output for each in ends] == [MARK, MARK]
    assert any(MARK[:20] in each for each in watched) is (kind == "plain")


def test_datagrams(tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = f"head -c 5 >{said}; printf answer; cat >/dev/null"
    with pair("--json", "--datagrams", left=("--cmd", command)) as (runner, user):
        runner.event("running")
        user.event("connected")
        eventually(said.exists, "the command's start")
        user.write(b"12345")
        assert user.prints(6) == b"answer"
        assert said.read_bytes() == b"12345"
        user.close_input()
        succeed(runner, user)


def test_datagrams_from_a_socket_keep_their_boundaries() -> None:
    ours_end, theirs_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine, theirs = free_ports()
    with (
        ours_end,
        ours("--json", "--datagrams", f"{mine}:{V4}:{theirs}") as right,
        theirs_end,
        ours(
            *("--json", "--datagrams", f"{theirs}:{V4}:{mine}"), stdin=theirs_end.fileno()
        ) as left,
    ):
        theirs_end.close()
        for each in (left, right):
            each.event("connected")
        for size in (3, 5000, 4):
            ours_end.send(b"x" * size)
        assert right.prints(7) == b"x" * 7
        told = left.event("too-large")
        assert told["size"] == 5000
        assert 1000 < told["limit"] < 1500
        ours_end.close()
        right.close_input()
        succeed(left, right)


# -- how it ends ----------------------------------------------------------------------------------


def test_a_full_disk_is_told_on_both_sides() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    mine, theirs = free_ports()
    with (
        ours("--json", f"{mine}:{V4}:{theirs}", stdout=full) as left,
        ours("--json", f"{theirs}:{V4}:{mine}") as right,
    ):
        os.close(full)
        right.write(b"12345")
        assert (left.wait(), right.wait()) == (28, 104)
        assert "No space left" in left.events[-1]["message"]
        assert "was stopped" in right.events[-1]["message"]


@pytest.mark.parametrize("more", [0, 1234])
def test_a_reader_that_leaves(more: int) -> None:
    reading, writing = os.pipe()
    mine, theirs = free_ports()
    with (
        ours("--json", f"{mine}:{V4}:{theirs}", stdout=writing) as left,
        ours("--json", f"{theirs}:{V4}:{mine}") as right,
    ):
        os.close(writing)
        right.write(b"12345")
        assert os.read(reading, 100) == b"12345"
        os.close(reading)
        if more:
            right.write(bytes(more))
            assert left.wait() == -signal.SIGPIPE  # as `cat` in a pipeline
            assert right.wait() == 104
            assert f"; {more:,} bytes did not get through." in right.events[-1]["message"]
        else:
            left.close_input()
            right.close_input()
            right.wait()
        assert "error" not in [event["event"] for event in left.events]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_on_both_sides(number: signal.Signals) -> None:
    with pair("--json", left=("--cmd", "cat")) as (left, right):
        left.event("running")
        right.event("connected")
        left.signal(number)
        assert left.wait() == -number
        assert right.wait() == 104
        assert "was stopped" in right.events[-1]["message"]


# -- a peer that runs 0.7 -------------------------------------------------------------------------


def test_an_old_peer_gets_a_plain_tunnel_and_the_user_a_line() -> None:
    with ExitStack() as stack:
        (mine,) = free_ports(1)
        peer = stack.enter_context(old_peer(mine))
        spec = f"{mine}:{V4}:{peer.getsockname()[1]}"
        program = stack.enter_context(ours("--json", spec))
        shake_hands(peer)
        connected = program.event("connected")
        assert (connected["encrypted"], connected["generation"]) == (False, "0.7")
        program.event("plain")
        peer.send(b"in the clear")
        assert program.prints(12) == b"in the clear"
        program.write(b"answer")
        assert peer.recv(100) == b"answer"
        program.signal(signal.SIGTERM)
        assert program.wait() == -signal.SIGTERM


@pytest.mark.parametrize("options", [("--secret", PHRASE), ("--datagrams",), ("-D", "0")])
def test_an_old_peer_will_not_do(options: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        (mine,) = free_ports(1)
        peer = stack.enter_context(old_peer(mine))
        spec = f"{mine}:{V4}:{peer.getsockname()[1]}"
        limits = ("--window=0", "--timeout=2")
        program = stack.enter_context(ours("--json", *limits, *options, spec))
        while not peer.recv(65_535).startswith(HELLO_MAGIC):
            pass
        for _ in range(3):
            peer.send(HELLO_MAGIC)
        program.write(MARK)
        assert program.wait() == 4
        (why,) = (each for each in program.events if each["event"] == "explanation")
        assert why["code"] == "old-peer"
        assert "knocked 3 times" in why["seen"]
        assert program.output == b""
        assert "connected" not in [event["event"] for event in program.events]


# -- with --retry ---------------------------------------------------------------------------------


def count(program: Program, name: str, number: int) -> None:
    """Wait until there have been so many events of this name."""

    def so_many() -> bool:
        return [event["event"] for event in program.events].count(name) == number

    program.wait_until(so_many, f"{number} times {name}")


def test_a_command_is_started_again_for_a_peer_that_was(tmp_path: Path) -> None:
    mine, theirs = free_ports()
    mark = Mark()
    command = f"echo run >>{tmp_path}/runs; cat"
    with ours(
        *("--json", "--retry", "--secret", PHRASE, "--cmd", command, f"{mine}:{V4}:{theirs}"),
        env=mark.environment,
    ) as runner:
        for number in (1, 2, 3):
            with ours("--json", "--secret", PHRASE, f"{theirs}:{V4}:{mine}") as user:
                user.write(b"%d" % number)
                assert user.prints(1) == b"%d" % number
                if number < 3:
                    user.signal(signal.SIGKILL)
                    user.wait()
                    count(runner, "lost", number)
                else:
                    user.close_input()
                    assert (user.wait(), runner.wait()) == (0, 0)
    assert (tmp_path / "runs").read_text() == "run\n" * 3
    mark.gone()


def test_forwards_go_on_with_a_peer_that_was_started_again() -> None:
    mine, theirs = free_ports()
    listening = unused_port()
    with ExitStack() as stack:
        service = stack.enter_context(socket.create_server((V4, 0)))
        service.settimeout(60)
        to = f"{V4}:{service.getsockname()[1]}"
        caller = stack.enter_context(
            ours("--json", "--retry", "-L", f"{listening}:{to}", f"{mine}:{V4}:{theirs}")
        )
        for number in (1, 2):
            with ours("--json", "--expose", to, f"{theirs}:{V4}:{mine}") as other:
                other.event("connected")
                count(caller, "connected", number)
                with socket.create_connection((V4, listening), 20) as client:
                    client.sendall(b"%d" % number)
                    served, _ = service.accept()
                    with served:
                        assert served.recv(1) == b"%d" % number
                        served.sendall(b"yes")
                        assert client.recv(3) == b"yes"
                other.signal(signal.SIGKILL)
                other.wait()
            if number == 1:
                caller.event("lost")
        caller.signal(signal.SIGTERM)
        assert caller.wait() == -signal.SIGTERM


def test_any_port_here_stays_the_same_when_it_is_tried_again() -> None:
    (theirs,) = free_ports(1)
    with ours("--json", "--retry", "--cmd", "cat", f"0:{V4}:{theirs}") as runner:
        mine = runner.event("opened")["local_port"]
        for number in (1, 2):
            with ours("--json", f"{theirs}:{V4}:{mine}") as user:
                user.write(b"%d" % number)
                assert user.prints(1) == b"%d" % number
                user.signal(signal.SIGKILL)
                user.wait()
            count(runner, "lost", number)
        runner.signal(signal.SIGTERM)
        assert runner.wait() == -signal.SIGTERM


def test_without_it_a_peer_that_was_started_again_is_an_error() -> None:
    mine, theirs = free_ports()
    with ours("--json", f"{mine}:{V4}:{theirs}") as left:
        with ours("--json", f"{theirs}:{V4}:{mine}") as right:
            left.event("connected")
            right.event("connected")
            right.signal(signal.SIGKILL)
            right.wait()
        with ours("--json", f"{theirs}:{V4}:{mine}") as again:
            again.event("opened")
            # Which of the two is noticed first depends on how soon the other is there again.
            said = {104: "started again", 111: "has ended there"}
            assert said[left.wait()] in left.events[-1]["message"]
            assert left.output == b""


# -- in the background ----------------------------------------------------------------------------


def test_a_command_that_goes_into_the_background_keeps_the_tunnel(tmp_path: Path) -> None:
    before, after = noise(20_000, 1), noise(20_000, 2)
    (tmp_path / "before").write_bytes(before)
    (tmp_path / "after").write_bytes(after)
    os.mkfifo(tmp_path / "go")
    command = (
        f"cd {tmp_path}; exec 3<&0; head -c 20000 <&3 >got-before; cat before;"
        " { cat go >/dev/null; head -c 20000 >got-after; cat after; } <&3 3<&- 2>/dev/null &"
        " exit 5"
    )
    with pair("--json", left=("--cmd", command)) as (runner, user):
        user.write(after)
        assert user.prints(20_000) == before
        assert runner.wait() == 5
        user.write(before)  # while nobody but the child is there
        (tmp_path / "go").write_bytes(b"go")
        user.close_input()
        assert user.wait() == 0
        assert user.output == before + after
        assert (tmp_path / "got-before").read_bytes() == after
        assert (tmp_path / "got-after").read_bytes() == before


def test_what_stays_in_the_background_ends_with_the_peer(tmp_path: Path) -> None:
    command = f"exec 3<&0; {{ cat >{tmp_path}/got; true; }} <&3 3<&- 2>/dev/null & exit 5"
    with pair("--json", left=("--cmd", command)) as (runner, user):
        assert runner.wait() == 5
        user.write(b"last words")
        eventually(lambda: (tmp_path / "got").read_bytes() == b"last words", "the words")
        user.signal(signal.SIGTERM)
        assert user.wait() == -signal.SIGTERM


def test_datagrams_go_on_in_the_background(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    command = (
        f"cd {tmp_path}; exec 3<&0; head -c 3 <&3 >got; printf before;"
        " { cat go >/dev/null; head -c 4 >more; printf after; } <&3 3<&- 2>/dev/null & exit 5"
    )
    with pair("--json", "--datagrams", left=("--cmd", command)) as (runner, user):
        runner.event("running")
        user.event("connected")
        eventually((tmp_path / "got").exists, "the command's start")
        user.write(b"one")
        assert user.prints(6) == b"before"
        assert runner.wait() == 5
        (tmp_path / "go").write_bytes(b"go")
        user.write(b"more")
        assert user.prints(11) == b"beforeafter"
        user.close_input()
        assert user.wait() == 0
        assert (tmp_path / "more").read_bytes() == b"more"


def test_what_is_in_the_background_can_be_ended_by_a_signal() -> None:
    command = "exec 3<&0; { cat >/dev/null; true; } <&3 3<&- 2>/dev/null & exit 5"
    with pair("--json", left=("--cmd", command)) as (runner, user):
        assert runner.wait() == 5
        # Its child, to which the tunnel was left, is the only one that still has the port.
        (child,) = holders(user.event("connected")["peer"])
        os.kill(child, signal.SIGTERM)
        assert user.wait() == 104
        assert "was stopped" in user.events[-1]["message"]


def holders(peer: str) -> list[int]:
    """Return the processes that have a UDP port of this host open."""
    port = int(peer.rpartition(":")[2])
    lines = Path("/proc/net/udp").read_text(encoding="ascii").splitlines()[1:]
    lines += Path("/proc/net/udp6").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    sockets = {f"socket:[{each[9]}]" for each in fields if int(each[1][-4:], 16) == port}
    found = []
    for path in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if sockets & {str(each.readlink()) for each in path.iterdir()}:
                found.append(int(path.parent.name))
    return found
