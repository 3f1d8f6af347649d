"""What the documents state is what the program does, as far as a test can tell."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import ed25519_basic as curve  # type: ignore[import-untyped]  # it comes without types

from nat_traverse import api
from nat_traverse.carry import calling, serving, udp_forward
from nat_traverse.link.establish import Purpose
from nat_traverse.punch.hop import hop_port
from nat_traverse.punch.settings import DATAGRAM_SIZE
from nat_traverse.tunnel import credit, follow, quic, secure
from nat_traverse.tunnel.events import Closing
from nat_traverse.tunnel.keys import encode_public, public_of
from nat_traverse.tunnel.proof import _SIZES, Means, Proof
from nat_traverse.tunnel.refusals import Refusal
from nat_traverse.wire import control, request
from nat_traverse.wire.control import Frame, FrameReader, encode_frame
from nat_traverse.wire.hello import Agreed, Kind, Message, Mode, encode
from support.vectors import BINDING, CLIENT_RANDOM, PHRASE, PURPOSE, SERVER_RANDOM, VECTORS

if TYPE_CHECKING:
    from enum import IntEnum

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return what the headings of a page can be linked to as, the way GitHub makes it."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in HEADING.findall(text)
    }


def section(heading: str) -> str:
    """Return what stands under a heading of the protocol, to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#)", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def flowing(text: str) -> str:
    """Return a text as if it had no line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lists_of_contents_are_complete_and_in_order(document: Path) -> None:
    text = document.read_text()
    listed = re.findall(r"^- \[(.+?)\]\(#.+?\)$", text, re.MULTILINE)
    if listed:
        assert listed == re.findall(r"^## (.+)$", text, re.MULTILINE)


def test_worked_hop_ports_are_those_of_the_code() -> None:
    found = re.search(r"minute\s+(\d+)", PROTOCOL)
    assert found is not None
    minute = int(found[1])
    ports = re.findall(r"^    (\d+) takes the place of (\d+)$", PROTOCOL, re.MULTILINE)
    (first, own), (second, other) = [(int(new), int(old)) for new, old in ports]
    assert first == hop_port(own, other, minute)
    assert second == hop_port(other, own, minute)
    message = b"nat-traverse hop 1" + own.to_bytes(2) + other.to_bytes(2) + minute.to_bytes(8)
    assert message.hex() in re.sub(r"(?<=[0-9a-f])\s+(?=[0-9a-f])", "", PROTOCOL)


@pytest.mark.parametrize("choices", [Mode, Agreed])
def test_values_of_fields_are_named(choices: type[Mode | Agreed]) -> None:
    row = next(line for line in PROTOCOL.splitlines() if f"| {choices.__name__.upper()} |" in line)
    assert re.findall(r"\d+: ", row) == [f"{choice.value}: " for choice in choices]


# -- the encrypted tunnel -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "choices", "form"),
    [
        ("Greeting", [Purpose], r"\| (\d+) \| ([A-Z_]+) \|"),
        ("Control frames", [Frame], r"\| `(\w\w)` \| ([A-Z_]+) \|"),
        ("How it ends", [Refusal, Closing], r"\| `(\w\w)` \| ([A-Z_]+) \|"),
    ],
)
def test_tables_have_every_number(heading: str, choices: list[type[IntEnum]], form: str) -> None:
    rows = re.findall(form, section(heading))
    known = [(each.value, each.name) for choice in choices for each in choice]
    assert [(int(number, 16), name) for number, name in rows] == known


def test_frames_have_the_lengths_of_the_table() -> None:
    rows = re.findall(r"\| `\w\w` \| ([A-Z]+) \| (\d+)", section("Control frames"))
    stated = {name: int(length) for name, length in rows}
    sizes = {frame.name: size for frame, size in _SIZES.items()}
    done = control.encode_done(0)
    (credited,) = FrameReader().feed(control.encode_credit(control.Credit(0, 0)))
    (finished,) = FrameReader().feed(done)
    sizes |= {"GREETING": 3, "CREDIT": len(credited[1]), "DONE": len(finished[1]), "BYE": 0}
    assert stated == sizes


def test_every_word_of_a_refusal_is_explained() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", section("Requests and replies"), re.MULTILINE)
    words = [row for row in rows if row != "stream"]
    assert words == [word.value for word in request.Word]


@pytest.mark.parametrize(
    ("heading", "phrase"),
    [
        ("The encrypted tunnel", f"at least {quic.SMALLEST_DATAGRAM} bytes"),
        ("The channel", f"| `{quic.PROTOCOL}`;"),
        ("The channel", f"| max_idle_timeout | {quic._IDLE:g} s;"),
        ("The channel", f"| initial_max_data | {quic._CONNECTION_WINDOW >> 20} MiB |"),
        ("The channel", f"| initial_max_stream_data, all three | {quic._WINDOW >> 20} MiB |"),
        ("The channel", f"this one does {secure._AGAIN:g} s after"),
        ("The channel", f"not complete {secure.ESTABLISH:g} s after"),
        ("Control frames", f"more than {control.LONGEST} bytes"),
        ("Control frames", f"at most {secure._EARLY_EVENTS} pieces and 1 MiB"),
        ("Credit", f"the first {credit.FIRST_WINDOW >> 10} KiB"),
        ("Credit", f"up to {credit.LARGEST_WINDOW >> 20} MiB"),
        ("Credit", f"grow by {credit.BUDGET >> 20} MiB"),
        ("Datagrams", f"`{secure.NO_STREAM:x}` stands for"),
        ("Parting", f"hears none for {secure._LINGER:g} s"),
        ("Requests and replies", f"at most {request.LINE_LIMIT} bytes"),
        ("Requests and replies", f"a request {serving.REQUEST_LIMIT:g} s to arrive"),
        ("Requests and replies", f"the {serving.PENDING_LIMIT + 1}th"),
        ("Requests and replies", f"waits {calling.ANSWER_LIMIT:g} s for the answer"),
        ("Requests and replies", f"has {api._LINE_TIMEOUT:g} s for its line"),
        ("Requests and replies", f"the {api._BACKLOG + 1}st stream"),
        ("UDP", f"ends {udp_forward.IDLE_LIMIT:g} s after"),
        ("UDP", f"at most {udp_forward.FLOW_LIMIT} flows"),
        ("Signs of life", f"a QUIC PING {secure.FIRST_KEEPALIVE:g} s after the proof"),
        ("Signs of life", f"every {secure.KEEPALIVE:g} s after that"),
        ("Signs of life", f"after {secure.CONSENT:g} s in which nothing"),
        ("Signs of life", f"has {secure._DOUBT:g} s, or five round trips"),
        (
            "Messages beside QUIC",
            f"{secure._STRANGERS} are looked at in {secure._TURN * 1000:g} ms",
        ),
        ("Following the peer", f"at most every {follow._PACE:g} s"),
        ("Following the peer", f"{follow._WATCHED} addresses are watched"),
    ],
)
def test_numbers_are_those_of_the_code(heading: str, phrase: str) -> None:
    assert phrase in flowing(section(heading))


def test_the_largest_datagram_is_stated() -> None:
    engine = quic.QuicEngine(is_client=True, datagram_size=DATAGRAM_SIZE, name=bytes(8))
    limit = engine.datagram_limit - secure._FLOW_SIZE
    assert f"has {DATAGRAM_SIZE - limit} bytes less" in flowing(section("Datagrams"))
    assert f"{limit:,} bytes at {DATAGRAM_SIZE:,}" in flowing(section("Datagrams"))


def test_the_fingerprint_is_of_the_certificate_in_der() -> None:
    engine = quic.QuicEngine(is_client=False, datagram_size=DATAGRAM_SIZE, name=bytes(8))
    certificate = engine._connection.configuration.certificate
    assert certificate is not None
    x509.load_der_x509_certificate(certificate.public_bytes())
    assert engine._fingerprint() == hashlib.sha256(certificate.public_bytes()).digest()


def test_the_connection_id_of_the_example() -> None:
    name = quic.connection_name(bytes(range(16, 32)), bytes(range(16)))
    assert f"`{name.hex()}`" in section("The channel")


def test_question_and_answer_of_following() -> None:
    asker, other = bytes(range(16)), bytes(range(16, 32))
    messages = [
        encode(Message(Kind.HELLO, asker, serial=1, echo=other)),
        encode(Message(Kind.ACK, other, serial=1, echo=asker)),
    ]
    text = section("Following the peer")
    lines = re.findall(r"^    ([0-9a-f ]+?)  +\S", text, re.MULTILINE)
    assert bytes.fromhex("".join(lines)) == b"".join(messages)
    assert {len(each) for each in messages} == {67}
    assert "have 67 bytes each" in flowing(text)


def test_the_example_of_a_key() -> None:
    text = section("Keys as texts and files")
    private = re.search(r"private +([0-9a-f]{64})", text)
    assert private is not None
    assert f"public   {encode_public(public_of(bytes.fromhex(private[1])))}" in text


# -- one exchange, in full ------------------------------------------------------------------------


def framed(label: str, *parts: bytes) -> bytes:
    """Do what the page says, independently of the program."""
    strings = (f"nat-traverse proof 1: {label}".encode(), *parts)
    return b"".join(len(each).to_bytes(2) + each for each in strings)


def derived(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt=salt, info=info).derive(key)


def side(chance: bytes, blinding: curve.Element) -> tuple[int, bytes]:
    """Return the scalar of one side, and its PAKE message, as the page says."""
    entropy = hashlib.shake_256(framed("spake2", chance)).digest(64)
    x = int.from_bytes(entropy) % curve.L
    return x, b"S" + curve.Base.scalarmult(x).add(blinding).to_bytes()


def exchange() -> dict[str, bytes]:
    """Return what the page shows, made from the inputs by what the page says."""
    order = curve.L
    secret = PHRASE.encode()
    greeting = bytes((1, 1, PURPOSE))
    pw = int.from_bytes(derived(secret, b"", b"SPAKE2 pw", 48)) % order
    seed = derived(b"symmetric", b"", b"SPAKE2 arbitrary element", 48)
    y = int.from_bytes(seed) % curve.Q
    while not curve.isoncurve((curve.xrecover(y), y)):
        y = (y + 1) % curve.Q
    affine = curve.xform_affine_to_extended((curve.xrecover(y), y))
    s = curve.Element(curve.ElementOfUnknownGroup(affine).scalarmult(8).XYTZ)
    client_x, client_pake = side(CLIENT_RANDOM, s.scalarmult(pw))
    server_x, server_pake = side(SERVER_RANDOM, s.scalarmult(pw))
    theirs = curve.bytes_to_element(server_pake[1:])
    k = theirs.add(s.scalarmult(-pw)).scalarmult(client_x).to_bytes()
    hashes = [hashlib.sha256(each).digest() for each in (secret, framed("spake2"))]
    points = sorted((client_pake[1:], server_pake[1:]))
    key = hashlib.sha256(b"".join((*hashes, *points, k))).digest()
    before = framed(
        "transcript",
        BINDING.client_nonce,
        BINDING.server_nonce,
        bytes((BINDING.client_mode,)),
        bytes((BINDING.server_mode,)),
        BINDING.fingerprint,
        greeting,
        greeting,
    )
    t = hashlib.sha256(before).digest()

    def proof(label: str) -> bytes:
        own = derived(key, t, framed(label, client_pake + server_pake), 32)
        return hmac.digest(own, framed("confirmation", t), "sha256")

    return {
        "secret": secret,
        "client random": CLIENT_RANDOM,
        "server random": SERVER_RANDOM,
        "client nonce": BINDING.client_nonce,
        "server nonce": BINDING.server_nonce,
        "fingerprint": BINDING.fingerprint,
        "hashed for T": before,
        "T": t,
        "pw": pw.to_bytes(32, "little"),
        "S": s.to_bytes(),
        "client x": client_x.to_bytes(32, "little"),
        "server x": server_x.to_bytes(32, "little"),
        "K": k,
        "key": key,
        "client GREETING": encode_frame(Frame.GREETING, greeting),
        "client PAKE": encode_frame(Frame.PAKE, client_pake),
        "server GREETING": encode_frame(Frame.GREETING, greeting),
        "server PAKE": encode_frame(Frame.PAKE, server_pake),
        "client PROOF": encode_frame(Frame.PROOF, proof("client key")),
        "server PROOF": encode_frame(Frame.PROOF, proof("server key")),
    }


def shown() -> dict[str, bytes]:
    """Return what the page shows: names, each with one or more lines of hex."""
    found: dict[str, str] = {}
    name = ""
    for line in re.findall(
        r"^    (.{22}[0-9a-f]+)$", section("One exchange in full"), re.MULTILINE
    ):
        name = line[:22].strip() or name
        found[name] = found.get(name, "") + line[22:]
    return {name: bytes.fromhex(value) for name, value in found.items()}


def test_the_exchange_is_computed_as_the_page_says() -> None:
    assert shown() == exchange()


def test_the_program_sends_the_frames_of_the_page() -> None:
    means = Means(shown()["secret"])
    sides = {
        name: Proof(means, PURPOSE, is_client=client, binding=BINDING, random=chance)
        for name, client, chance in (
            ("client", True, shown()["client random"]),
            ("server", False, shown()["server random"]),
        )
    }
    sent = {}
    for name, other in [("client", "server"), ("server", "client")] * 3:
        for kind, value in sides[name].messages():
            sent[f"{name} {Frame(kind).name}"] = encode_frame(kind, value)
            sides[other].receive(kind, value)
    assert all(each.outcome is not None for each in sides.values())
    assert sent == {name: value for name, value in shown().items() if name in sent}
    assert len(sent) == 6


def test_the_vectors_have_the_runs_that_the_page_names() -> None:
    runs = json.loads(VECTORS.read_text("utf-8"))["runs"]
    text = flowing(section("One exchange in full"))
    assert ", ".join(f"*{run['name']}*" for run in runs) in text
    (run,) = [run for run in runs if run["name"] == "secret"]
    frames = {f"{each['from']} {each['frame']}": each["value"] for each in run["frames"]}
    assert frames == {name: shown()[name][3:].hex() for name in frames}
    assert run["transcript"] == shown()["T"].hex()
