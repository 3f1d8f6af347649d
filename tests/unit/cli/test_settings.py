from __future__ import annotations

import pytest

from nat_traverse.carry import specs
from nat_traverse.carry.addressing import make_plan
from nat_traverse.carry.wireguard import Configuration
from nat_traverse.cli.settings import Connect
from nat_traverse.target import Target

TARGET = Target(40000, "gw.example.org", 40001)
WIREGUARD = Configuration("/etc/wireguard/nat.conf", "nat", TARGET, "key", 0)


def test_the_secret_is_in_no_text_of_it() -> None:
    settings = Connect(TARGET, 180.0, secret="hunter2", cmd="ls")  # noqa: S106 (nobody's)
    for text in (repr(settings), str(settings), f"{settings}", f"{[settings]}"):
        assert "hunter2" not in text
        assert "cmd='ls'" in text
        assert "secret='...'" in text
    assert settings.secret == "hunter2"  # noqa: S105 (the same)
    assert "secret=None" in repr(Connect(TARGET, 180.0))
    assert "secret=''" in repr(Connect(TARGET, 180.0, secret=""))
    plan = make_plan(addresses=["10.77.0.1/24"], user="nobody")
    text = repr(Connect(TARGET, 180.0, vpn=plan, secret="hunter2"))  # noqa: S106 (the same)
    assert "hunter2" not in text
    assert "10.77.0.1/24" in text


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (Connect(TARGET, None), False),
        (Connect(TARGET, None, cmd="ls"), False),
        (Connect(TARGET, None, plain=True), True),
        (Connect(TARGET, None, quit_after_connect=True), True),
        (Connect(TARGET, None, handoff="ls"), True),
        (Connect(TARGET, None, wireguard=WIREGUARD), True),
    ],
)
def test_what_is_not_encrypted_here(settings: Connect, plain: bool) -> None:
    assert settings.is_plain is plain
    assert settings.leaves is (plain and not settings.plain)


def test_what_is_about_forwards() -> None:
    assert not Connect(TARGET, None, cmd="ls").forwards
    assert not Connect(TARGET, None, vpn=make_plan(addresses=["10.77.0.1/24"])).forwards
    assert Connect(TARGET, None, locals_=(specs.parse_local("1:h:2"),)).forwards
    assert Connect(TARGET, None, remotes=(specs.parse_remote("1:h:2"),)).forwards
    assert Connect(TARGET, None, dynamics=(specs.parse_dynamic("1"),)).forwards
    assert Connect(TARGET, None, exposed=(specs.parse_exposed("h:2"),)).forwards
