from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.carry.wireguard import Configuration, parse, read
from nat_traverse.errors import UsageError
from nat_traverse.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "ukdP63b53ab25bJwW0jTz9QMAmtpww4ndbjSU3RWSww="
SECRET = "cMYUKCJS0O1vACpxKJPmGA7tehTxpRQ31ZlUkfVmtFA="  # noqa: S105 (nobody's)
PATH = Path("/etc/wireguard/nat.conf")

INTERFACE = f"[Interface]\nPrivateKey = {SECRET}\nListenPort = 51820\nAddress = 10.77.0.1/24\n"
PEER = f"[Peer]\nPublicKey = {KEY}\nEndpoint = gw.example.org:51821\nAllowedIPs = 10.77.0.2/32\n"
FILE = INTERFACE + PEER
FOUND = Configuration(str(PATH), "nat", Target(51820, "gw.example.org", 51821), KEY, 0)


def complaint(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, PATH)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        FILE,
        PEER + INTERFACE,
        FILE.replace("\n", "\r\n"),
        FILE.replace("ListenPort = ", "  listenPORT=").replace("[Peer]", " [peer] # right"),
        FILE.replace("51820", "1\nListenPort = 51820 # agreed"),
        "Endpoint = before any section\n" + FILE,
        FILE.replace("[", "[ ").replace("]", "\t] "),
        FILE.replace("ListenPort", "Listen Port").replace("51821", "518 21"),
        FILE.replace(" = ", "\v=\f").replace(SECRET, f"{SECRET[:9]} {SECRET[9:]}"),
        FILE.replace("Listen", "Listen\0"),
        # Only "\n" ends a line, and so a comment.
        *(f"{FILE}# {end}Endpoint = 192.0.2.1:1" for end in "\v\f\r\x1c\x85\u2028\u2029"),
        FILE + "[Strange]\nEndpoint = 192.0.2.1:1\n",
        FILE + f"[Peer]\nPublicKey = {KEY[::-1]}\nAllowedIPs = 10.77.0.3/32\n",
        INTERFACE + "PostUp = echo Endpoint\nDNS = 10.77.0.1\nMTU = 1380\nnonsense\n" + PEER,
        FILE.replace(f"PrivateKey = {SECRET}\n", "PostUp = wg set %i private-key /k\n"),
        FILE + f"PresharedKey = {SECRET}\nSaveConfig = true\n",  # not where it means anything
    ],
)
def test_what_is_read(text: str) -> None:
    assert parse(text, PATH) == FOUND


@pytest.mark.parametrize(
    ("text", "keepalive"),
    [("off", 0), ("0", 0), ("1", 1), ("25", 25), ("26", 0), ("x", 0), ("9" * 5000, 0), ("-1", 0)],
)
def test_keepalive(text: str, keepalive: int) -> None:
    assert parse(f"{FILE}PersistentKeepalive = {text}\n", PATH).keepalive == keepalive


@pytest.mark.parametrize(
    ("endpoint", "peer"),
    [
        ("192.0.2.1:51821", "192.0.2.1"),
        ("[2001:db8::7]:51821", "2001:db8::7"),
        ("[fe80::1%eth0]:51821", "fe80::1%eth0"),
    ],
)
def test_addresses(endpoint: str, peer: str) -> None:
    found = parse(FILE.replace("gw.example.org:51821", endpoint), PATH)
    assert found.target == Target(51820, peer, 51821)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "none has one"),
        (INTERFACE, "none has one"),
        (FILE + PEER, "2 have one"),
        (FILE.replace("ListenPort = 51820\n", ""), "ListenPort is missing"),
        (FILE.replace("51820", "0"), "ListenPort is 0"),
        (FILE.replace("51820", "65536"), "ListenPort is '65536'"),
        (FILE.replace(":51821", ""), "Endpoint 'gw.example.org'"),
        (FILE.replace(":51821", ":0"), "Endpoint 'gw.example.org:0'"),
        (FILE.replace(KEY, KEY[1:]), "PublicKey of the [Peer]"),
        (FILE.replace(f"PublicKey = {KEY}\n", ""), "PublicKey of the [Peer]"),
        (INTERFACE + "SaveConfig = True\n" + PEER, "SaveConfig is true"),
        # Blanks only of Unicode's: wg refuses them, too.
        (FILE.replace("51820", "51820\u2028"), "ListenPort is '51820\\u2028'"),
        (FILE.replace("51820", "51820\xa0"), "ListenPort is '51820\\xa0'"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    found = complaint(text)
    assert found.startswith(f"--wireguard: {PATH}: ")
    assert said in found


@pytest.mark.parametrize(
    ("network", "endpoint"),
    [
        ("0.0.0.0/0", "gw.example.org:1"),
        ("10.0.0.0/8, ::/0", "gw.example.org:1"),
        ("0.0.0.0/1, 128.0.0.0/1", "gw.example.org:1"),
        ("8000::/1, 10.0.0.0/8, ::/2\nAllowedIPs = 4000::/2", "gw.example.org:1"),
        ("0.0.0.0/1, 128.0.0.0/1", "192.0.2.7:1"),
        ("10.0.0.0/8\nAllowedIPs = 192.0.2.0/24", "192.0.2.7:1"),
        ("+2001:db8::/32", "[2001:db8::7]:1"),
    ],
)
def test_routes_that_lead_us_astray(network: str, endpoint: str) -> None:
    text = FILE.replace("10.77.0.2/32", network).replace("gw.example.org:51821", endpoint)
    assert "the other side's own public address" in complaint(text)
    assert parse(text.replace("[Peer]", "Table = off\n[Peer]"), PATH).target.remote_port == 1
    other = text.replace(f"AllowedIPs = {network}", "AllowedIPs = 10.0.0.0/8, strange")
    assert parse(other, PATH).device == "nat"


@pytest.mark.parametrize(
    ("networks", "endpoint"),
    [
        ("10.77.0.2/32, ::/0", "192.0.2.7:1"),
        ("0.0.0.0/0", "[2001:db8::7]:1"),
        ("0.0.0.0/1, 8000::/1", "gw.example.org:1"),  # two halves, but of two families
        ("192.0.0.0/23, 192.0.3.0/24", "192.0.2.7:1"),
    ],
)
def test_routes_that_leave_us_alone(networks: str, endpoint: str) -> None:
    text = FILE.replace("10.77.0.2/32", networks).replace("gw.example.org:51821", endpoint)
    assert parse(text, PATH).target.remote_port == 1


@pytest.mark.parametrize("section", ["[Peer]", "[ Peer ]", "[peer]\r"])
def test_a_route_of_another_peer_leads_us_astray(section: str) -> None:
    text = FILE.replace("gw.example.org", "192.0.2.7")
    other = f"{section}\nPublicKey = {KEY[::-1]}\nAllowedIPs = 192.0.2.0/24\n"
    assert "all of 192.0.2.0/24" in complaint(text + other)


@pytest.mark.parametrize("key", ["PrivateKey", "PresharedKey"])
@pytest.mark.parametrize("line", ["{} = hunter2", " {} hunter2=", "{}: hunter2", "{}"])
@pytest.mark.parametrize("section", ["[Interface]", "[Peer]", "[Strange]", ""])
def test_a_secret_that_wg_would_complain_of_aloud(key: str, line: str, section: str) -> None:
    found = complaint(f"{section}\n{line.format(key)}\n{FILE}")
    assert found.endswith(f"{key} is no key of 32 bytes in base64")


@given(st.text(), st.booleans())
def test_any_text_is_read_or_refused_and_no_secret_is_told(text: str, after: bool) -> None:
    whole = FILE + text if after else text + FILE
    try:
        said = repr(parse(whole, PATH))
    except UsageError as error:
        said = str(error)
    assert SECRET not in said


# -- which file ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def only_we_may_change_what_we_write() -> Iterator[None]:
    """With the umask of some users their group could, and each file here would be refused."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_name_is_one_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nat_traverse.carry.wireguard._DIRECTORY", tmp_path)
    (tmp_path / "vpn.conf").write_text(FILE)
    assert read("vpn") == FOUND._replace(path=str(tmp_path / "vpn.conf"), device="vpn")


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vpn.conf"
    path.write_text(FILE)
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "vpn.conf", "./vpn.conf"):
        assert read(name).path == str(path)  # absolute, for wg-quick takes a word for a name


def test_the_device_has_the_name_that_wg_quick_gives_it(tmp_path: Path) -> None:
    (tmp_path / "other.conf").write_text(FILE)
    (tmp_path / "vpn.conf").symlink_to("other.conf")
    assert read(str(tmp_path / "vpn.conf")).device == "vpn"


@pytest.mark.parametrize(
    "name", ["", "/", "./nat.txt", "/etc/nat", "sixteen-letters-", "a b.conf", "\0.conf", ".conf"]
)
def test_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="--wireguard wants a file"):
        read(name)


@pytest.mark.parametrize("name", ["/nowhere/nat.conf", "/no\0where/nat.conf"])
def test_no_file(name: str) -> None:
    with pytest.raises(UsageError, match="can't be read: "):
        read(name)


def test_too_large_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nat.conf"
    with path.open("wb") as file:
        file.truncate(1 << 21)
    with pytest.raises(UsageError, match="too large"):
        read(str(path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "nat.conf"
    path.write_bytes(b"# \xff\n" + FILE.encode())
    assert read(str(path)).public_key == KEY


# -- who may change it ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_change(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "nat.conf"
    path.write_text(FILE)
    path.chmod(mode)
    (tmp_path / "link.conf").symlink_to("nat.conf")
    for name in (path, tmp_path / "link.conf"):
        with pytest.raises(UsageError) as caught:
            read(str(name))
        assert str(caught.value) == (
            f"--wireguard: {name} can't be trusted: others than its owner may change it (mode"
            f" 0{mode:o}), and root runs the commands in it. Use: chmod go-w {name}"
        )


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644])
def test_a_file_that_others_may_only_read(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "nat.conf"
    path.write_text(FILE)
    path.chmod(mode)
    assert read(str(path)).public_key == KEY


def test_a_pipe_keeps_nothing_that_others_could_change(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        os.fchmod(reader, 0o666)
        os.write(writer, FILE.encode())
    finally:
        os.close(writer)
    (tmp_path / "nat.conf").symlink_to(f"/proc/self/fd/{reader}")
    try:
        assert read(str(tmp_path / "nat.conf")).public_key == KEY
    finally:
        os.close(reader)
