from __future__ import annotations

import pytest

from nat_traverse.cli.report import EVENT_FIELDS
from nat_traverse.demo import words as module
from nat_traverse.demo.words import Words, words


def test_every_label_belongs_to_an_event_of_the_program() -> None:
    documented = {name for name, _ in EVENT_FIELDS}
    assert set(module._LABELS) <= documented
    assert set(module._DETAILS) <= documented


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event": "heard", "text": "heard it"}, Words("heard it", "heard the peer")),
        ({"event": "opened", "text": "UDP port 1\nrun there: x"}, Words("UDP port 1", "port open")),
        (
            {"event": "refused", "error": "time to live exceeded", "text": "ended"},
            Words("ended", "way out opened", detail=True),
        ),
        (
            {"event": "refused", "error": "port unreachable", "text": "refuses"},
            Words("refuses", "refused"),
        ),
        ({"event": "validated", "text": "open"}, Words("open", "path proven", detail=True)),
        (
            {"event": "trying", "strategy": "spray", "text": "looking"},
            Words("looking", "tries: spray"),
        ),
        (
            {"event": "trying", "strategy": "hop", "text": "fresh ports"},
            Words("fresh ports", "tries: hop", detail=True),
        ),
        ({"event": "agreed-pair", "text": "a way"}, Words("a way", "other ports work")),
        ({"event": "explanation", "text": "S\nM\nT"}, Words("S\nM\nT")),
        ({"event": "output", "text": "a line"}, Words("a line")),
        ({"event": "novel"}, Words("novel")),
    ],
)
def test_words(event: dict[str, str], expected: Words) -> None:
    assert words(event) == expected
