"""Rights that are given up: in child processes, for there is no way back."""

from __future__ import annotations

import errno
import json
import os
import pwd
import subprocess
import sys
from typing import Any

import pytest

from nat_traverse.errors import DeniedError, UsageError
from nat_traverse.net import features, privileges
from nat_traverse.net.privileges import CAPABILITIES, Rights, drop_to, lacks_net_admin

USER = "nobody"
NET_ADMIN = 1 << CAPABILITIES["net_admin"]

# Gives up its rights, and says what is left, here and in a program that it starts; then tries to
# have them back. All is imported before: the new user may be unable to read it.
CHILD = """\
import json, os, pwd, subprocess, sys
from nat_traverse.errors import NatTraverseError
from nat_traverse.net.privileges import drop_to
def state(text):
    return dict(line.split(":\\t", 1) for line in text.splitlines() if ":\\t" in line)
def step(user, keep):
    try:
        drop_to(user, frozenset(keep))
    except NatTraverseError as error:
        return [type(error).__name__, str(error)]
    return None
def again(call, *arguments):
    try:
        call(*arguments)
    except PermissionError:
        return False
    return True
outcome = {"steps": [step(*each) for each in json.loads(sys.argv[1])]}
outcome["self"] = state(open("/proc/self/status").read())
ran = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
outcome["started"] = state(ran.stdout)
outcome["groups"] = sorted(os.getgroups())
outcome["root again"] = [
    again(os.setuid, 0), again(os.setgid, 0), again(os.seteuid, 0), again(os.setgroups, [0])
]
print(json.dumps(outcome))
"""


def dropped(*steps: tuple[str, list[str]]) -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.skip("only root has rights to give up")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(steps)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    outcome: dict[str, Any] = json.loads(child.stdout)
    return outcome


def capabilities(state: dict[str, str]) -> dict[str, int]:
    """Return all sets but the bounding one, which gives nothing by itself."""
    return {name: int(state[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


NONE = {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapAmb": 0}


@pytest.mark.parametrize("keep", [[], ["net_admin"]])
def test_nothing_is_left_but_what_is_kept(keep: list[str]) -> None:
    account = pwd.getpwnam(USER)
    outcome = dropped((USER, keep))
    assert outcome["steps"] == [None]
    for state in (outcome["self"], outcome["started"]):
        assert set(state["Uid"].split()) == {str(account.pw_uid)}
        assert set(state["Gid"].split()) == {str(account.pw_gid)}
        assert state["NoNewPrivs"] == "1"
    kept = NET_ADMIN if keep else 0
    assert capabilities(outcome["self"]) == NONE | {"CapPrm": kept, "CapEff": kept}
    assert capabilities(outcome["started"]) == NONE
    assert outcome["groups"] == sorted(os.getgrouplist(USER, account.pw_gid))
    assert outcome["root again"] == [False] * 4


def test_being_that_user_already() -> None:
    outcome = dropped((USER, ["net_admin"]), (USER, ["net_admin"]), (USER, []), (USER, []))
    assert outcome["steps"] == [None] * 4
    assert capabilities(outcome["self"]) == NONE


def test_what_is_given_up_cannot_be_kept_later() -> None:
    outcome = dropped((USER, []), (USER, ["net_admin"]))
    assert outcome["steps"][0] is None
    kind, text = outcome["steps"][1]
    assert kind == "DeniedError"
    assert "CAP_NET_ADMIN can't be kept" in text


def test_only_root_may_become_another_user() -> None:
    outcome = dropped((USER, []), ("daemon", []))
    kind, text = outcome["steps"][1]
    assert kind == "DeniedError"
    assert text.startswith("Only root may become daemon, and this is nobody: start it with sudo")


@pytest.mark.parametrize("user", ["no such user", "", "a\0b", "x" * 300, "nöbody\udcff"])
def test_no_such_user(user: str) -> None:
    with pytest.raises(UsageError, match="no user"):
        drop_to(user)


def test_becoming_root_gives_nothing_up() -> None:
    with pytest.raises(UsageError, match="has all rights"):
        drop_to("root")


def test_a_capability_that_is_unknown() -> None:
    with pytest.raises(KeyError):
        drop_to(USER, frozenset({"sys_admin"}))


class System:
    """What the kernel would say, without being asked."""

    left = Rights(0, 0, 0)

    def __init__(self) -> None:
        self.new_privileges = 0

    def rights(self) -> Rights:
        return self.left

    def set_rights(self, rights: Rights) -> None:
        pass

    def control(self, what: int, value: int) -> int:
        if what == privileges._PR_SET_NO_NEW_PRIVS:
            self.new_privileges = value
        return self.new_privileges


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> pwd.struct_passwd:
    """Let this process seem to be USER already, and not to be able to be anybody else."""
    account = pwd.getpwnam(USER)
    user, group = account.pw_uid, account.pw_gid
    monkeypatch.setattr(os, "getresuid", lambda: (user, user, user))
    monkeypatch.setattr(os, "getresgid", lambda: (group, group, group))
    for name in ("setuid", "setgid", "initgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(privileges, "_System", System)
    return account


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.usefixtures("account")
def test_the_way_back_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    drop_to(USER)
    for way_back in ("setuid", "setgid"):
        with monkeypatch.context() as patched:
            patched.setattr(os, way_back, lambda _: None)
            with pytest.raises(DeniedError, match="did not last"):
                drop_to(USER)


@pytest.mark.usefixtures("account")
def test_rights_that_stay_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "left", Rights(NET_ADMIN, NET_ADMIN, 0))
    with pytest.raises(DeniedError, match="Rights are left"):
        drop_to(USER)


@pytest.mark.usefixtures("account")
def test_another_system_has_users_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IS_LINUX", False)
    monkeypatch.setattr(privileges, "_System", None)
    drop_to(USER)


def test_root_that_may_not(account: pwd.struct_passwd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getresuid", lambda: (0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(DeniedError, match="although it is root: its container"):
        drop_to(account.pw_name)


def test_advice_to_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam(USER).pw_uid)
    error = lacks_net_admin("Making it")
    assert error.exit_code == errno.EACCES
    assert str(error).startswith("Making it was not permitted: it needs CAP_NET_ADMIN")
    assert 'sudo "$(command -v nat-traverse)" --user nobody' in str(error)
    assert "AmbientCapabilities=CAP_NET_ADMIN" in str(error)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)  # nobody has this number
    assert "--user 4000000" in str(lacks_net_admin("x"))


def test_advice_to_root_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--cap-add=NET_ADMIN" in str(lacks_net_admin("Making it"))
