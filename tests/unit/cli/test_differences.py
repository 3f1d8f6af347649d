from __future__ import annotations

from nat_traverse.cli.differences import DIFFERENCES


def test_keys_are_unique() -> None:
    keys = [difference.key for difference in DIFFERENCES]
    assert len(set(keys)) == len(keys)


def test_rows_are_complete_sentences() -> None:
    for row in DIFFERENCES:
        assert row.topic
        for text in (row.before, row.now, row.reason):
            assert text.endswith((".", "`"))
            assert text.count("`") % 2 == 0
