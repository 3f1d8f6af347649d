from __future__ import annotations

import errno
import os
import unicodedata
from typing import TYPE_CHECKING

import pytest

from nat_traverse.cli import credentials
from nat_traverse.cli.credentials import (
    UNCHANGED,
    check_access,
    means,
    read_file,
    read_identity,
    read_peer_keys,
    read_secret,
    read_with_status,
)
from nat_traverse.errors import ErrnoError, UsageError
from nat_traverse.tunnel.keys import encode_private, encode_public, public_of
from nat_traverse.tunnel.proof import Means

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = bytes(range(32))
OTHERS = [public_of(bytes([number]) * 32) for number in range(3)]
TEXTS = [encode_public(key) for key in OTHERS]


def put(path: Path, content: str | bytes, mode: int = 0o600) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return str(path)


@pytest.fixture
def identity(tmp_path: Path) -> str:
    return put(tmp_path / "identity", encode_private(PRIVATE))


# -- which of them counts -----------------------------------------------------------------------


def test_nothing_is_demanded_unless_asked_for() -> None:
    assert means(None, None, {"PATH": "/bin"}, None, []) == Means()


def test_an_option_wins_over_the_environment(tmp_path: Path) -> None:
    environment = {"NAT_TRAVERSE_SECRET": "three"}
    path = put(tmp_path / "secret", "two\n")
    assert means("one", None, environment, None, []).secret == b"one"
    assert means(None, path, environment, None, []).secret == b"two"
    assert means(None, None, environment, None, []).secret == b"three"


def test_a_secret_and_keys_go_together(identity: str) -> None:
    assert means("one", None, {}, identity, TEXTS[:1]) == Means(b"one", PRIVATE, (OTHERS[0],))


@pytest.mark.parametrize(
    ("secret", "secret_file", "key_file", "peer_keys", "reason"),
    [
        ("one", "two", None, [], "exclude"),
        (None, None, "key", [], "--identity needs --peer-key"),
        (None, None, None, TEXTS[:1], "--peer-key needs --identity"),
        ("", None, None, [], "empty"),
        (" \t\n", None, None, [], "empty"),
        ("\udcff", None, None, [], "UTF-8"),
    ],
)
def test_what_makes_no_sense(
    secret: str | None,
    secret_file: str | None,
    key_file: str | None,
    peer_keys: list[str],
    reason: str,
) -> None:
    with pytest.raises(UsageError, match=reason):
        means(secret, secret_file, {}, key_file, peer_keys)


def test_an_empty_variable_is_no_way_to_run_without_a_secret() -> None:
    with pytest.raises(UsageError, match="NAT_TRAVERSE_SECRET"):
        means(None, None, {"NAT_TRAVERSE_SECRET": ""}, None, [])


# -- the phrase ---------------------------------------------------------------------------------


def test_a_phrase_is_the_same_however_it_was_typed(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "stäple Å")
    apart = unicodedata.normalize("NFD", composed)
    assert composed != apart
    wanted = composed.encode()
    assert means(f"  {apart}\n", None, {}, None, []).secret == wanted
    for number, content in enumerate((apart, f"{apart}\r\nmore\n", f"\ufeff {composed}\n")):
        assert read_secret(put(tmp_path / str(number), content)) == wanted


def test_spaces_and_capitals_within_count() -> None:
    phrases = {means(text, None, {}, None, []).secret for text in ("a b", "a  b", "A b", "ab")}
    assert len(phrases) == 4


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"\nsecond\n", "empty"), (b"\xff\n", "UTF-8")]
)
def test_a_file_without_a_secret(tmp_path: Path, content: bytes, reason: str) -> None:
    path = put(tmp_path / "secret", content)
    with pytest.raises(UsageError, match=reason) as caught:
        read_secret(path)
    assert path in str(caught.value)


def test_an_endless_file_is_not_read_for_ever() -> None:
    with pytest.raises(UsageError, match="more than"):
        read_secret("/dev/zero")


def test_a_pipe_will_do() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"one\n")
        os.close(writer)
        assert read_secret(f"/dev/fd/{reader}") == b"one"
    finally:
        os.close(reader)


# -- who may read it ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610])
def test_a_file_that_others_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    secret = put(tmp_path / "secret", "one\n", mode)
    key = put(tmp_path / "key", encode_private(PRIVATE), mode)
    for read, path in ((read_secret, secret), (read_identity, key)):
        with pytest.raises(ErrnoError, match=f"mode 0{mode:o}.*chmod 600") as caught:
            read(path)
        assert caught.value.exit_code == errno.EACCES


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_ones_own_is_read(tmp_path: Path, mode: int) -> None:
    assert read_secret(put(tmp_path / "secret", "one\n", mode)) == b"one"


@pytest.mark.parametrize(
    ("owner", "mode", "trusted"),
    [
        (0, 0o400, True),
        (0, 0o440, True),  # root lends it to this user's group
        (0, 0o640, True),
        (0, 0o644, False),
        (0, 0o660, False),
        (1234, 0o600, True),
        (1234, 0o640, False),
        (77, 0o600, False),
    ],
)
def test_only_root_may_lend_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: int, mode: int, trusted: bool
) -> None:
    path = put(tmp_path / "secret", "one\n", mode)
    real = os.fstat

    def owned(descriptor: int) -> os.stat_result:
        status = list(real(descriptor))
        status[4] = owner
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    if trusted:
        assert read_secret(path) == b"one"
    else:
        with pytest.raises(ErrnoError, match="Cannot trust"):
            read_secret(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_secret, read_identity):
        with pytest.raises(ErrnoError, match="No such file") as caught:
            read(str(tmp_path / "nothing"))
        assert caught.value.exit_code == errno.ENOENT
    with pytest.raises(ErrnoError, match="directory"):
        read_secret(str(tmp_path))
    with pytest.raises(UsageError, match="no name"):
        read_secret("a\0b")


def test_an_identity_that_is_none_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "key", "hello\n")
    with pytest.raises(UsageError, match="no private key") as caught:
        read_identity(path)
    assert path in str(caught.value)


# -- the peer's keys ----------------------------------------------------------------------------


def test_peer_keys_are_texts_and_files(tmp_path: Path) -> None:
    content = (
        f"# those of the office\n\n{TEXTS[1]}  # the gateway\n  {TEXTS[2].upper()}\r\n{TEXTS[0]}"
    )
    path = put(tmp_path / "keys", content, 0o644)
    assert read_peer_keys([TEXTS[0], path]) == (OTHERS[0], OTHERS[1], OTHERS[2])


def test_a_mistyped_key_is_not_taken_for_a_file() -> None:
    with pytest.raises(UsageError, match="no public key"):
        read_peer_keys([TEXTS[0][:-1]])


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "keys", f"{TEXTS[0]}\nnonsense \x1b[31m\n", 0o644)
    with pytest.raises(UsageError, match="line 2") as caught:
        read_peer_keys([path])
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"#\xff\n"])
def test_a_file_without_keys(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="no key"):
        read_peer_keys([put(tmp_path / "keys", content, 0o644)])


def test_whoever_may_change_the_keys_could_let_himself_in(tmp_path: Path) -> None:
    for mode in (0o664, 0o646):
        with pytest.raises(ErrnoError, match=r"change it.*chmod go-w"):
            read_peer_keys([put(tmp_path / "keys", TEXTS[0], mode)])


def test_a_missing_file_of_keys_says_what_a_key_looks_like() -> None:
    with pytest.raises(ErrnoError, match="begins with nt1"):
        read_peer_keys(["alice"])


# -- other files --------------------------------------------------------------------------------


def test_no_other_missing_file_is_taken_for_a_key() -> None:
    for forbidden in (UNCHANGED, credentials.PRIVATE):
        with pytest.raises(ErrnoError) as caught:
            read_file("alice", "the file", forbidden)
        assert str(caught.value) == "Cannot read the file alice: No such file or directory."


def test_what_was_opened_can_be_checked_later(tmp_path: Path) -> None:
    """By whoever sees a secret in it: not what has its name by then."""
    path = put(tmp_path / "file", "one", 0o644)
    content, status = read_with_status(path, "the file", UNCHANGED)
    assert content == b"one"
    os.replace(put(tmp_path / "other", "two", 0o600), path)  # noqa: PTH105 (a str all the way)
    with pytest.raises(ErrnoError, match=r"mode 0644.*chmod 600"):
        check_access(status, path, "the file", credentials.PRIVATE)
