"""What the protocol's page and the vectors say of sealed datagrams, computed independently."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nat_traverse.link.establish import Purpose
from nat_traverse.tunnel import keying, sealing
from nat_traverse.tunnel.sealing import Cipher
from nat_traverse.wire import sealed
from nat_traverse.wire.control import Frame, FrameReader, encode_frame
from support.vectors import SEALED_VECTORS, SESSION, VECTORS, generate_sealed

PROTOCOL = (VECTORS.parents[1] / "protocol.md").read_text("utf-8")
RUNS: list[dict[str, Any]] = json.loads(SEALED_VECTORS.read_text("utf-8"))["runs"]
AEADS: dict[str, type[AESGCM | ChaCha20Poly1305]] = {
    "AES_256_GCM": AESGCM,
    "CHACHA20_POLY1305": ChaCha20Poly1305,
}
KEYS = [
    pytest.param(run, key, id=f"{run['name']} {key['epoch']}")
    for run in RUNS
    for key in run["keys"]
]


def section(heading: str) -> str:
    """Return what stands under a heading of the protocol, to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#)", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def flowing(text: str) -> str:
    """Return a text as if it had no line breaks."""
    return " ".join(text.split())


def test_the_vectors_are_those_of_the_program() -> None:
    assert SEALED_VECTORS.read_text("utf-8") == generate_sealed(), (
        "sealed datagrams have changed on the wire: that takes another version. If no version with"
        " this one was ever released: PYTHONPATH=src:tests python -m support.vectors"
    )


# -- computed as the page says --------------------------------------------------------------------


def agreement(run: dict[str, Any], key: dict[str, Any]) -> dict[str, bytes]:
    """Return all of a key that follows from both private keys and indices."""
    number = key["epoch"].to_bytes(4, "big")
    cipher = bytes((run["cipher"],))
    private, public, index = {}, {}, {}
    for side in ("client", "server"):
        private[side] = X25519PrivateKey.from_private_bytes(bytes.fromhex(key[side]["private"]))
        public[side] = private[side].public_key().public_bytes_raw()
        index[side] = bytes.fromhex(key[side]["index"])
    secret = private["client"].exchange(X25519PublicKey.from_public_bytes(public["server"]))
    info = b"nat-traverse sealed 1" + cipher + number + public["client"] + public["server"]
    derived = HKDF(SHA256(), 64, salt=bytes.fromhex(run["session"]), info=info).derive(secret)
    return {
        "client public": public["client"],
        "server public": public["server"],
        "KEY_OFFER": number + index["client"] + public["client"] + cipher,
        "KEY_ANSWER": number + index["server"] + public["server"] + cipher,
        "KEY_CONFIRM": number,
        "secret": secret,
        "info": info,
        "client key": derived[:32],
        "server key": derived[32:],
    }


@pytest.mark.parametrize(("run", "key"), KEYS)
def test_keys_are_derived_as_the_page_says(run: dict[str, Any], key: dict[str, Any]) -> None:
    made = agreement(run, key)
    assert made["secret"].hex() == key["secret"]
    for side in ("client", "server"):
        assert made[f"{side} public"].hex() == key[side]["public"]
        assert made[f"{side} key"].hex() == key[side]["key"]
    frames = [(each["from"], each["frame"], each["value"]) for each in key["frames"]]
    assert frames == [
        ("client", "KEY_OFFER", made["KEY_OFFER"].hex()),
        ("server", "KEY_ANSWER", made["KEY_ANSWER"].hex()),
        ("client", "KEY_CONFIRM", made["KEY_CONFIRM"].hex()),
    ]


def seal(
    run: dict[str, Any], key: dict[str, Any], sender: str, counter: int, content: bytes
) -> bytes:
    """Do what the page says, independently of the program."""
    receiver = "server" if sender == "client" else "client"
    little = counter.to_bytes(8, "little")
    aead = AEADS[run["name"]](bytes.fromhex(key[sender]["key"]))
    head = b"\x04\0\0\0" + bytes.fromhex(key[receiver]["index"])
    return head + little + aead.encrypt(bytes(4) + little, content, None)


@pytest.mark.parametrize(("run", "key"), KEYS)
def test_datagrams_are_sealed_as_the_page_says(run: dict[str, Any], key: dict[str, Any]) -> None:
    assert len(key["datagrams"]) == 6
    for each in key["datagrams"]:
        made = seal(run, key, each["from"], each["counter"], bytes.fromhex(each["content"]))
        assert made.hex() == each["datagram"]


def test_there_is_a_run_for_each_cipher_and_a_renewal_in_each() -> None:
    assert [(run["name"], run["cipher"]) for run in RUNS] == [(each.name, each) for each in Cipher]
    assert all([key["epoch"] for key in run["keys"]] == [1, 2] for run in RUNS)
    assert {run["session"] for run in RUNS} == {SESSION.hex()}


# -- what the page shows --------------------------------------------------------------------------


def shown() -> dict[str, bytes]:
    """Return what the page shows: names, each with one or more lines of hex."""
    found: dict[str, str] = {}
    name = ""
    for line in re.findall(r"^    (.{22}[0-9a-f]+)$", section("A key in full"), re.MULTILINE):
        name = line[:22].strip() or name
        found[name] = found.get(name, "") + line[22:]
    return {name: bytes.fromhex(value) for name, value in found.items()}


def test_the_example_is_computed_as_the_page_says() -> None:
    run = RUNS[0]
    key = run["keys"][0]
    content = bytes.fromhex(key["datagrams"][1]["content"])
    made = agreement(run, key)
    frames = {
        name: encode_frame(Frame[name], made[name]) for name in made if name in Frame.__members__
    }
    assert shown() == made | frames | {
        "session": SESSION,
        "client private": bytes.fromhex(key["client"]["private"]),
        "server private": bytes.fromhex(key["server"]["private"]),
        "first datagram": seal(run, key, "client", 0, b""),
        "second content": content,
        "second datagram": seal(run, key, "client", 1, content),
    }
    assert f"the run {run['name']}" in section("A key in full")


@pytest.mark.parametrize(
    ("heading", "phrase"),
    [
        ("Telling datagrams apart", f"`{sealed.PREFIX.hex(' ')}`"),
        ("Sealed datagrams", f"It is {sealed.OVERHEAD} bytes longer"),
        ("Sealed datagrams", f"{sealing.WINDOW:,} or more below"),
        ("Sealed datagrams", f"No more than 2^{sealing.LIMIT.bit_length() - 1} datagrams"),
        ("Agreeing on keys", f"the {len(keying._LABEL)} bytes of {keying._LABEL.decode()}"),
        ("Renewing keys", f"{keying.RENEW_AFTER:g} s after the last answer"),
        ("Renewing keys", f"sealed 2^{keying.RENEW_AFTER_MESSAGES.bit_length() - 1} datagrams"),
        ("Renewing keys", f"no sooner than {keying.PACE:g} s after the answer"),
        ("Renewing keys", f"{keying.REJECT_AFTER:g} s after it was made"),
        ("Renewing keys", f"or {keying.OVERLAP:g} s after another took its place"),
        ("Renewing keys", f"more than {keying.AHEAD} offers ahead of one a second"),
    ],
)
def test_numbers_are_those_of_the_code(heading: str, phrase: str) -> None:
    assert phrase in flowing(section(heading))


def test_ciphers_are_named() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z0-9_]+) \|", section("Sealed datagrams"), re.MULTILINE)
    assert rows == [(str(each.value), each.name) for each in Cipher]


def test_frames_have_the_lengths_of_the_table() -> None:
    rows = re.findall(r"\| `\w\w` \| (KEY_[A-Z]+) \| ([\d a-z]+) \|", section("Control frames"))
    offers = [
        sealed.Offer(1, bytes(4), bytes(32), (1,) * count) for count in (1, sealed.MOST_CIPHERS)
    ]
    shortest, longest = (len(sealed.encode_offer(offer)) for offer in offers)
    (confirm,) = FrameReader().feed(encode_frame(Frame.KEY_CONFIRM, sealed.encode_epoch(1)))
    assert rows == [
        ("KEY_OFFER", f"{shortest} to {longest}"),
        ("KEY_ANSWER", str(shortest)),
        ("KEY_CONFIRM", str(len(confirm[1]))),
        ("KEY_WANTED", str(len(confirm[1]))),
    ]


def test_the_purpose_is_named() -> None:
    assert f"| {Purpose.VPN} | VPN |" in section("Greeting")
