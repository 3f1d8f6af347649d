from __future__ import annotations

import pytest

from nat_traverse.punch.legacy import GRACE, LegacyPeer
from nat_traverse.wire.hello import Kind

HEARD = 100.0  # s, when its first magic arrived


def test_the_ack_is_due_a_moment_after_it_was_heard() -> None:
    peer = LegacyPeer(window=0, now=HEARD)
    assert not peer.wants_ack(1000, HEARD)
    assert not peer.wants_ack(1000, HEARD + GRACE - 1e-3)
    assert peer.wants_ack(0, HEARD + GRACE)


def test_it_is_believed_after_that_moment() -> None:
    peer = LegacyPeer(window=3, now=HEARD)
    assert peer.believed_at == peer.probe_at == HEARD + GRACE
    assert not peer.is_believed(HEARD)
    assert peer.is_believed(HEARD + GRACE)


def test_the_window_comes_first() -> None:
    peer = LegacyPeer(window=3, now=HEARD)
    late = HEARD + GRACE
    assert [peer.wants_ack(sent, late) for sent in range(5)] == [False, False, False, True, True]


def test_there_is_one_ack_and_no_other() -> None:
    peer = LegacyPeer(window=0, now=HEARD)
    peer.ack_sent = True
    assert not peer.wants_ack(10, HEARD + 100.0)


@pytest.mark.parametrize(
    ("sent", "received", "complete"),
    [
        (True, [Kind.ACK, Kind.HELLO], True),
        (True, [Kind.HELLO, Kind.ACK], True),
        (True, [Kind.HELLO], False),
        (False, [Kind.ACK], False),
    ],
)
def test_complete_means_both_acks(*, sent: bool, received: list[Kind], complete: bool) -> None:
    peer = LegacyPeer(window=0, now=HEARD)
    peer.ack_sent = sent
    for kind in received:
        peer.receive(kind)
    assert peer.complete is complete
