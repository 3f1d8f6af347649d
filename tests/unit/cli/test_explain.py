from __future__ import annotations

from itertools import product

import pytest

from nat_traverse.cli.explain import Explanation, explain
from nat_traverse.model import Endpoint, ErrorKind, Generation, Path
from nat_traverse.punch.evidence import Evidence, PathEvidence

PATH = Path(0, Endpoint("203.0.113.2", 40001))
IPV6 = Path(1, Endpoint("2001:db8::2", 40001))
OTHER_SIDE = "nat-traverse 40001:198.51.100.2:40000"
GATEWAY = "203.0.113.1"


def codes(*paths: PathEvidence, reflected: int = 0) -> list[str]:
    return [each.code for each in told(*paths, reflected=reflected)]


def told(*paths: PathEvidence, reflected: int = 0) -> list[Explanation]:
    evidence = Evidence(dict(zip((PATH, IPV6), paths, strict=False)), reflected=reflected)
    return explain(evidence, OTHER_SIDE)


def seen(*errors: tuple[ErrorKind, str | None], ports: tuple[int, ...] = ()) -> PathEvidence:
    evidence = PathEvidence(hellos_sent=30)
    for kind, reporter in errors:
        evidence.note_error(kind, reporter)
    for port in ports:
        evidence.note_port(port)
    return evidence


def test_silence() -> None:
    (why,) = told(PathEvidence(hellos_sent=30))
    assert why.code == "silence"
    assert why.seen == "Nothing at all came from the peer at 203.0.113.2:40001 (30 packets sent)."
    assert OTHER_SIDE in why.advice
    assert "203.0.113.2 is its public address" in why.advice


def test_a_peer_of_0_7_that_will_not_do() -> None:
    evidence = Evidence({PATH: PathEvidence(hellos_sent=30)}, unwanted_legacy=3, ports_tried=400)
    (why,) = explain(evidence, OTHER_SIDE)
    assert why.code == "old-peer"
    assert "knocked 3 times" in why.seen
    assert "secret" not in why.advice, "whoever knocks may be a stranger: no demand is to be left"


def test_silence_on_two_paths_is_told_of_each() -> None:
    first, second = told(PathEvidence(), PathEvidence())
    assert "203.0.113.2:40001" in first.seen
    assert "[2001:db8::2]:40001" in second.seen


def test_the_way_out_is_closed() -> None:
    (why,) = told(PathEvidence(hellos_sent=30, hellos_received=7, generation=Generation.CURRENT))
    assert why.code == "one-way"
    assert why.seen.startswith("7 packets of the peer's arrived from 203.0.113.2:40001")
    assert "(30 sent)" in why.seen
    assert OTHER_SIDE in why.advice


def test_open_but_never_agreed() -> None:
    evidence = PathEvidence(
        hellos_received=1, acks_received=1, generation=Generation.CURRENT, validated=True
    )
    assert codes(evidence) == ["not-confirmed"]


def test_an_old_peer_that_did_not_finish() -> None:
    evidence = PathEvidence(hellos_received=3, generation=Generation.LEGACY)
    (why,) = told(evidence)
    assert why.code == "legacy-incomplete"
    assert "generation 0.7 was heard at 203.0.113.2:40001" in why.seen


def test_another_port() -> None:
    (why,) = told(seen(ports=(7, 9)))
    assert why.code == "port-changed"
    assert why.seen == "The peer's packets came from 203.0.113.2 port 7, 9, not 40001."
    assert OTHER_SIDE in why.advice


def test_another_port_besides_the_right_one() -> None:
    evidence = seen(ports=(7,))
    evidence.hellos_received, evidence.generation = 2, Generation.CURRENT
    assert codes(evidence) == ["port-changed", "one-way"]


@pytest.mark.parametrize(
    ("kind", "reporter", "code", "text"),
    [
        (ErrorKind.NOT_PERMITTED, None, "local-firewall", "This host refused to send to"),
        (ErrorKind.PORT_UNREACHABLE, GATEWAY, "refused", f"{GATEWAY} answered once that nobody"),
        (ErrorKind.PORT_UNREACHABLE, None, "refused", "203.0.113.2:40001 answered once"),
        (ErrorKind.PROHIBITED, GATEWAY, "prohibited", f"{GATEWAY} forbade the packets, once"),
        (ErrorKind.HOST_UNREACHABLE, GATEWAY, "unreachable", "reported once: host unreachable"),
        (ErrorKind.NETWORK_UNREACHABLE, None, "unreachable", "This host reported once: network"),
    ],
)
def test_refusals(kind: ErrorKind, reporter: str | None, code: str, text: str) -> None:
    first, last = told(seen((kind, reporter)))
    assert first.code == code
    assert text in first.seen
    assert last.code == "silence"


def test_refusals_are_counted() -> None:
    refused = (ErrorKind.PORT_UNREACHABLE, GATEWAY)
    assert "answered 3 times" in told(seen(refused, refused, refused))[0].seen


@pytest.mark.parametrize("kind", [ErrorKind.TIME_EXCEEDED, ErrorKind.TOO_BIG, ErrorKind.OTHER])
def test_what_explains_nothing_is_left_out(kind: ErrorKind) -> None:
    assert codes(seen((kind, GATEWAY))) == ["silence"]


def test_our_own_packets() -> None:
    first, second = told(PathEvidence(), reflected=5)
    assert first.code == "silence"
    assert second.code == "reflected"
    assert second.seen.startswith("5 of our own packets")


def test_a_search_without_a_result() -> None:
    evidence = Evidence({PATH: seen()}, ports_tried=2831, openings_sent=1265)
    first, second = explain(evidence, OTHER_SIDE)
    assert first.code == "silence"
    assert second.code == "both-change-ports"
    assert second.seen.startswith("2,831 other ports of the peer's were tried, and 1,265 openings")
    assert "--hint" in second.advice
    assert "--hard always" in second.advice


def test_a_search_that_was_short_or_of_a_peer_that_was_heard_says_nothing() -> None:
    assert codes_of(Evidence({PATH: seen()}, ports_tried=299)) == ["silence"]
    assert codes_of(Evidence({PATH: seen(ports=(7,))}, ports_tried=2831)) == ["port-changed"]
    elsewhere = Evidence({PATH: seen()}, ports_tried=2831, elsewhere=["192.0.2.9"])
    assert codes_of(elsewhere) == ["silence", "other-address"]


def codes_of(evidence: Evidence) -> list[str]:
    return [each.code for each in explain(evidence, OTHER_SIDE)]


def test_a_peer_at_another_address() -> None:
    evidence = Evidence({PATH: seen()})
    evidence.note_elsewhere("192.0.2.9")
    _, why = explain(evidence, OTHER_SIDE)
    assert why.code == "other-address"
    assert "answered from 192.0.2.9, which is not PEER" in why.seen
    assert why.advice.startswith("Give 192.0.2.9 as PEER")


def test_there_is_always_an_explanation_and_it_is_whole() -> None:
    facts = product(
        (None, *Generation), (0, 3), (False, True), ((), (7,)), (None, *ErrorKind), (None, GATEWAY)
    )
    for generation, hellos, validated, ports, error, reporter in facts:
        evidence = seen(*([(error, reporter)] if error else []), ports=ports)
        evidence.generation, evidence.hellos_received = generation, hellos
        evidence.validated = validated
        explanations = told(evidence)
        assert explanations
        for each in explanations:
            for sentence in (each.seen, each.means, each.advice):
                assert sentence[0].isupper() or sentence[0].isdigit()
                assert sentence.endswith(".")
                assert sentence.isprintable()


def test_codes_are_words_for_scripts() -> None:
    found = {
        code
        for kind in ErrorKind
        for code in codes(seen((kind, None), (kind, GATEWAY), ports=(7,)), reflected=1)
    }
    assert all(code.replace("-", "").isalpha() and code.islower() for code in found)


def test_a_forbidding_router_is_no_local_firewall() -> None:
    """Advice to look at our own rules would mislead."""
    assert "local-firewall" not in codes(seen((ErrorKind.PROHIBITED, GATEWAY)))
