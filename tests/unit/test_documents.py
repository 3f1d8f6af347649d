"""What the documents state is what the program does, as far as a test can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nat_traverse.punch.hop import hop_port
from nat_traverse.wire.hello import Agreed, Mode

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
