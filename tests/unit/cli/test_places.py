from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nat_traverse.cli import places
from nat_traverse.cli.places import descriptions, find_description, runtime, sockets
from nat_traverse.errors import ErrnoError, UsageError

USER, ROOT = 1000, 0
ETC = "/etc/nat-traverse"
TEMPORARY = "/tmp/nat-traverse-1000"  # noqa: S108 (only its name)


@pytest.mark.parametrize(
    ("environment", "user", "expected"),
    [
        ({"HOME": "/home/u"}, USER, ["/home/u/.config/nat-traverse", ETC]),
        ({"HOME": "/root"}, ROOT, [ETC, "/root/.config/nat-traverse"]),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/c"}, USER, ["/c/nat-traverse", ETC]),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "c"}, USER, ["/h/.config/nat-traverse", ETC]),
        ({"HOME": "/"}, USER, ["/.config/nat-traverse", ETC]),
        ({}, USER, [ETC]),
    ],
)  # fmt: skip
def test_where_descriptions_are(
    environment: dict[str, str], user: int, expected: list[str]
) -> None:
    assert descriptions(environment, user) == expected


@pytest.mark.parametrize(
    ("environment", "user", "expected"),
    [
        ({}, ROOT, "/run/nat-traverse"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, ROOT, "/run/nat-traverse"),
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, USER, "/run/user/1000/nat-traverse"),
        ({"XDG_RUNTIME_DIR": ""}, USER, TEMPORARY),
        ({}, USER, TEMPORARY),
        ({"RUNTIME_DIRECTORY": "/run/nat-traverse/x:/run/y"}, USER, "/run/nat-traverse/x"),
        ({"RUNTIME_DIRECTORY": "/run/nat-traverse/x"}, ROOT, "/run/nat-traverse/x"),
    ],
)
def test_where_sockets_are(environment: dict[str, str], user: int, expected: str) -> None:
    assert runtime(environment, user) == expected


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "nat-traverse").mkdir()
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_a_name_is_found(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / "nat-traverse" / "home.toml"
    path.write_text("")
    assert find_description("home", environment, USER) == ("home", str(path))


def test_a_path_is_a_path(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.toml").write_text("")
    (tmp_path / "plain").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_description("here.toml", environment, USER) == ("here", "here.toml")
    assert find_description("./plain", environment, USER) == ("plain", "./plain")
    path = str(tmp_path / "here.toml")
    assert find_description(path, environment, USER) == ("here", path)


def test_what_is_missing_is_told_with_the_places(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        find_description("nobody", environment, USER)
    text = str(caught.value)
    assert "'nobody'" in text
    assert f"{environment['XDG_CONFIG_HOME']}/nat-traverse/nobody.toml or" in text
    assert "/etc/nat-traverse/nobody.toml" in text


def test_what_this_user_may_not_look_at_is_not_taken_for_missing(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory made with umask 077, and a service with a user of its own."""
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        if str(path).startswith(ETC):
            raise PermissionError(errno.EACCES, "", path)
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(ErrnoError, match=r"may not enter .*/etc/nat-traverse/home\.toml") as caught:
        find_description("home", environment, USER)
    assert caught.value.exit_code == errno.EACCES
    path = tmp_path / "nat-traverse" / "home.toml"
    path.write_text("")
    for user in (USER, ROOT):  # first, and second, of the two places
        assert find_description("home", environment, user) == ("home", str(path))


@pytest.mark.parametrize(
    "word", ["", ".", "-x", ".hidden", "a b", "ä", "x" * 49, "a\n", "/etc/", "x/.toml", "\x1b[m"]
)
def test_what_can_be_no_name(word: str, environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="can't be the name") as caught:
        find_description(word, environment, USER)
    assert "\x1b" not in str(caught.value)


def test_names_of_instances_of_systemd(environment: dict[str, str]) -> None:
    for name in ("home-office", "a@b", "a\\x2db", "a:b", "2", "x" * 48):
        with pytest.raises(UsageError, match="There is no tunnel"):
            find_description(name, environment, USER)


def test_sockets_that_there_are(tmp_path: Path) -> None:
    for name in ("b.sock", "a.sock", "a.lock", "c", "-.sock"):
        (tmp_path / name).write_text("")
    environment = {"RUNTIME_DIRECTORY": str(tmp_path)}
    assert sockets(environment, ROOT) == {
        "a": f"{tmp_path}/a.sock",
        "b": f"{tmp_path}/b.sock",
    }
    assert list(sockets(environment, ROOT)) == ["a", "b"]
    assert sockets({"RUNTIME_DIRECTORY": f"{tmp_path}/none"}, ROOT) == {}


def test_root_sees_those_of_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RUN", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.sock").write_text("")
    (tmp_path / "a.sock").write_text("")
    assert sockets({}, ROOT) == {"a": f"{tmp_path}/a.sock", "b": f"{tmp_path}/b/b.sock"}
    # A service itself, and a user, see their own only.
    assert sockets({"RUNTIME_DIRECTORY": f"{tmp_path}/b"}, ROOT) == {"b": f"{tmp_path}/b/b.sock"}
    own = {"XDG_RUNTIME_DIR": os.fspath(tmp_path)}
    assert sockets(own, USER) == {}


def test_a_directory_of_somebody_elses_has_none(tmp_path: Path) -> None:
    """Anybody can make /tmp/nat-traverse-1000, and a socket in it that answers."""
    user = os.geteuid() or USER
    (tmp_path / "a.sock").write_text("")
    environment = {"RUNTIME_DIRECTORY": str(tmp_path)}
    if os.geteuid() == 0:
        assert sockets(environment, user) == {}
        os.chown(tmp_path, user, -1)
    assert list(sockets(environment, user)) == ["a"]
    assert sockets(environment, user + 1) == {}
    tmp_path.chmod(0o777)
    assert sockets(environment, user) == {}
    Path(tmp_path / "a.sock").unlink()
