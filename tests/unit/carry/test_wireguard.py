from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_traverse.carry.wireguard import Configuration, parse, read
from nat_traverse.errors import UsageError
from nat_traverse.target import Target

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
        "PrivateKey = before any section\n" + FILE,
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


@pytest.mark.parametrize("key", ["PrivateKey", "PresharedKey"])
def test_a_secret_that_wg_would_complain_of_aloud(key: str) -> None:
    section = "[Interface]" if key == "PrivateKey" else "[Peer]"
    found = complaint(FILE.replace(section, f"{section}\n{key} = hunter2"))
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
