from __future__ import annotations

from nat_traverse.punch.legacy import LegacyPeer
from nat_traverse.wire.hello import Kind


def test_the_ack_is_due_at_once_without_a_window() -> None:
    assert LegacyPeer(window=0).wants_ack(0)


def test_the_window_comes_first() -> None:
    peer = LegacyPeer(window=3)
    assert [peer.wants_ack(sent) for sent in range(5)] == [False, False, False, True, True]


def test_there_is_one_ack_and_no_other() -> None:
    peer = LegacyPeer(window=0)
    peer.ack_sent = True
    assert not peer.wants_ack(10)


def test_complete_means_both_acks() -> None:
    def complete(*, sent: bool, received: list[Kind]) -> bool:
        peer = LegacyPeer(window=0)
        peer.ack_sent = sent
        for kind in received:
            peer.receive(kind)
        return peer.complete

    assert complete(sent=True, received=[Kind.ACK, Kind.HELLO])
    assert not complete(sent=True, received=[Kind.HELLO])
    assert not complete(sent=False, received=[Kind.ACK])
