"""From what was seen to what it means: the one place where evidence becomes text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.model import ErrorKind, Generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nat_traverse.model import Path
    from nat_traverse.punch.evidence import Evidence, PathEvidence

_UNREACHABLE = frozenset({ErrorKind.HOST_UNREACHABLE, ErrorKind.NETWORK_UNREACHABLE})

# Ports tried, from which on a search that found nothing says something: two thirds of those that
# can succeed have done so by then.
_SEARCHED = 300


class Explanation(NamedTuple):
    """Why there is no path: what was seen, what it means, what to try. One sentence or more each.

    `code` is a stable word for scripts.
    """

    code: str
    seen: str
    means: str
    advice: str


def explain(evidence: Evidence, other_side: str) -> list[Explanation]:
    """Return what can be said about each path, and about all; never nothing.

    `other_side` is the command that the peer's user should have run.
    """
    found = [] if not evidence.unwanted_legacy else [_old_peer(evidence.unwanted_legacy)]
    found += [
        explanation
        for path, seen in evidence.paths.items()
        for explanation in _explain_path(path, seen, other_side)
        # What a refused peer of 0.7 sends is counted for all paths together.
        if explanation.code != "silence" or not evidence.unwanted_legacy
    ]
    found.extend(_elsewhere(host) for host in evidence.elsewhere)
    if evidence.ports_tried >= _SEARCHED and not _was_heard(evidence):
        found.append(_search_failed(evidence))
    if evidence.reflected:
        found.append(_own_packets(evidence.reflected))
    return found


def _was_heard(evidence: Evidence) -> bool:
    return bool(evidence.elsewhere or evidence.unwanted_legacy) or any(
        seen.generation is not None or seen.other_ports for seen in evidence.paths.values()
    )


def _explain_path(path: Path, seen: PathEvidence, other_side: str) -> Iterator[Explanation]:
    peer = str(path.remote)
    yield from _explain_errors(peer, seen)
    if seen.other_ports:
        ports = ", ".join(map(str, seen.other_ports))
        yield Explanation(
            "port-changed",
            f"The peer's packets came from {path.remote.host} port {ports},"
            f" not {path.remote.port}.",
            "The peer's gateway changes port numbers, or the peer uses another LOCAL_PORT; and what"
            " we sent back did not get through.",
            f"Check the other side's command: {other_side}. If it is that: give both sides more"
            " time (--timeout), without --hard never; try IPv6; or forward the port there.",
        )
    if seen.generation is Generation.LEGACY:
        yield Explanation(
            "legacy-incomplete",
            f"A peer of generation 0.7 was heard at {peer}, but its acknowledgement never came.",
            "It was stopped, or its one acknowledgement was lost on the way.",
            "Start both sides again within ten seconds; better, update the other one.",
        )
    elif seen.validated:
        yield Explanation(
            "not-confirmed",
            f"The path to {peer} worked in both directions, but was never agreed on.",
            "The peer was stopped at that moment, or the path died again.",
            "Start both sides again.",
        )
    elif seen.hellos_received:
        yield Explanation(
            "one-way",
            f"{seen.hellos_received} packets of the peer's arrived from {peer},"
            f" and none of ours was answered ({seen.hellos_sent} sent).",
            "The way in is open and the way out is not: the peer's gateway or a firewall there"
            " drops our packets, or it has given the peer another port.",
            f"Check the other side's command: {other_side}. Look for a firewall there; and leave"
            " both sides running for two minutes, with clocks that agree within ten seconds.",
        )
    elif not seen.other_ports:
        yield Explanation(
            "silence",
            f"Nothing at all came from the peer at {peer} ({seen.hellos_sent} packets sent).",
            "Likeliest, the other side was not running at the time, or uses another address or"
            " port; else a gateway or firewall on the way blocks UDP.",
            f"Check that the other side runs: {other_side}; that {path.remote.host} is its public"
            " address; and that both were running at the same time.",
        )


def _explain_errors(peer: str, seen: PathEvidence) -> Iterator[Explanation]:
    for (kind, reporter), count in seen.errors.items():
        times = "once" if count == 1 else f"{count} times"
        if kind is ErrorKind.NOT_PERMITTED and reporter is None:
            yield Explanation(
                "local-firewall",
                f"This host refused to send to {peer}, {times} (operation not permitted).",
                "A firewall on this machine forbids it.",
                "Allow outgoing UDP there; to see the rules: nft list ruleset.",
            )
        elif kind is ErrorKind.PORT_UNREACHABLE:
            yield Explanation(
                "refused",
                f"{reporter or peer} answered {times} that nobody listens on the port.",
                "The peer's gateway answers for itself, which is usual until the other side has"
                " started; or the peer itself is not running.",
                "Start the other side and leave both running over the full minute: then both knock"
                " at the same second. Their clocks must not differ by more than ten seconds.",
            )
        elif kind is ErrorKind.PROHIBITED:
            yield Explanation(
                "prohibited",
                f"{reporter or peer} forbade the packets, {times}.",
                "A firewall on the way does not let UDP through.",
                "Try other ports, such as 443 or 53 as REMOTE_PORT, or ask who runs it.",
            )
        elif kind in _UNREACHABLE:
            yield Explanation(
                "unreachable",
                f"{reporter or 'This host'} reported {times}: {kind.value}.",
                f"There is no route to {peer} at the moment, here or further on.",
                "Check both Internet connections, and that the address is a public one.",
            )


def _old_peer(count: int) -> Explanation:
    return Explanation(
        "old-peer",
        f"Somebody who speaks as nat-traverse 0.7 does knocked {count} times, and was not let in.",
        "That version can't encrypt, knows no secret and no keys, and carries one stream only; or"
        " somebody on the way cuts messages short, to make this side do without encryption.",
        "Update the other side.",
    )


def _elsewhere(host: str) -> Explanation:
    return Explanation(
        "other-address",
        f"Somebody who received our packets answered from {host}, which is not PEER.",
        "The peer's gateway, or its carrier's, has several public addresses.",
        f"Give {host} as PEER; without a secret no answer from elsewhere is accepted.",
    )


def _search_failed(evidence: Evidence) -> Explanation:
    return Explanation(
        "both-change-ports",
        f"{evidence.ports_tried:,} other ports of the peer's were tried, and"
        f" {evidence.openings_sent:,} openings made for its own search; none met the other.",
        "If the other side was running all the time, both gateways change port numbers, which can't"
        " be found out blindly, or one of them blocks UDP.",
        "Try IPv6, or forward a port on one of the gateways. If a gateway counts its ports upwards,"
        " give the other side a recent one as --hint, on both sides; else --hard always with a"
        " --rate of 1000 or more, if the networks can bear that.",
    )


def _own_packets(count: int) -> Explanation:
    return Explanation(
        "reflected",
        f"{count} of our own packets came back to us.",
        "PEER and the ports lead to this very process, or a gateway turns packets round.",
        "Give the other side's public address, not your own, and two different ports.",
    )
