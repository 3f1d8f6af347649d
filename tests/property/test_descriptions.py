"""Any file at all as the description of a tunnel: settings, or clear complaints."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from nat_traverse.cli.description import CONNECT, keys, read_description
from nat_traverse.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGETS = ["40000:192.0.2.1:40001", "1:::1:2", "0:h:65536", "demo", ""]

scalars = st.one_of(
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20),
    st.sampled_from(["8080:localhost:80", "any", "localhost:22", "10.0.0.1/24", "auto", "/x:/y"]),
)
values = st.one_of(scalars, st.lists(scalars, max_size=3))
names = st.one_of(
    st.sampled_from([*keys(), "handoff", "plain"]),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=10),
)
tables = st.dictionaries(names, values, max_size=6)


def spelled(table: Mapping[str, object]) -> str:
    """Return a table in TOML; JSON spells its strings, numbers and lists the same way."""
    return "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in table.items())


def check_complaint(text: str, path: str) -> None:
    assert all(line for line in text.splitlines())
    assert path in text.splitlines()[0]


def check(content: bytes) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "x.toml")
        path.write_bytes(content)
        path.chmod(0o600)
        try:
            connect = read_description(str(path), {})
        except UsageError as error:
            check_complaint(str(error), str(path))
            return
        assert 0 < connect.target.remote_port <= 65535
        assert connect.handoff is None
        assert not connect.is_plain


@settings(max_examples=300, deadline=None)
@given(tables, st.sampled_from(TARGETS))
def test_any_keys_and_values(table: dict[str, object], target: str) -> None:
    check(spelled({CONNECT: target, **table}).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    check(content)
