from __future__ import annotations

from nat_traverse.model import ErrorKind
from nat_traverse.punch.evidence import Evidence, PathEvidence


def test_an_error_is_news_once_a_kind_and_reporter() -> None:
    evidence = PathEvidence()
    refused = ErrorKind.PORT_UNREACHABLE
    assert evidence.note_error(refused, "203.0.113.2")
    assert not evidence.note_error(refused, "203.0.113.2")
    assert evidence.note_error(refused, None)
    assert evidence.errors == {(refused, "203.0.113.2"): 2, (refused, None): 1}


def test_memory_is_bounded_whatever_a_stranger_sends() -> None:
    evidence, whole = PathEvidence(), Evidence({})
    for number in range(1000):
        evidence.note_error(ErrorKind.OTHER, f"198.51.100.{number}")
        evidence.note_port(number)
        whole.note_elsewhere(f"198.51.100.{number}")
    assert len(evidence.errors) == len(evidence.other_ports) == len(whole.elsewhere) == 8
    assert not evidence.note_port(3)
    assert not evidence.note_error(ErrorKind.OTHER, "new")


def test_a_port_is_news_once() -> None:
    evidence = PathEvidence()
    assert evidence.note_port(28710)
    assert not evidence.note_port(28710)


def test_another_address_of_the_peers_is_remembered_once() -> None:
    evidence = Evidence({})
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        evidence.note_elsewhere(host)
    assert evidence.elsewhere == ["192.0.2.1", "192.0.2.2"]
