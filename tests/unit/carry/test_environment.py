from __future__ import annotations

from nat_traverse.carry.environment import SECRET_VARIABLE, without_secret


def test_children_get_all_but_the_secret() -> None:
    ours = {"PATH": "/bin", SECRET_VARIABLE: "correct horse", "NAT_TRAVERSE_PEER": "h"}
    assert without_secret(ours) == {"PATH": "/bin", "NAT_TRAVERSE_PEER": "h"}
    assert SECRET_VARIABLE in ours  # we may still need it: --retry


def test_where_there_is_none_nothing_is_missed() -> None:
    assert without_secret({"A": "b"}) == {"A": "b"}
