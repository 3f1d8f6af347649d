from __future__ import annotations

import pytest

from nat_traverse.model import Endpoint, Path
from nat_traverse.punch.machine import Send
from nat_traverse.punch.writer import Writer, in_seconds
from nat_traverse.wire.hello import HELLO_SIZE, Agreed, Kind, Message, Mode, decode, encode

OURS, PEERS = b"\x80" * 16, b"\xff" * 16
AGREED = Path(0, Endpoint("203.0.113.2", 40001))
OTHER = Path(3, Endpoint("203.0.113.2", 28710))


def make(mode: Mode = Mode.PLAIN) -> Writer:
    return Writer(OURS, mode, lambda path: path == AGREED)


def parsed(send: Send) -> Message:
    message = decode(send.data)
    assert isinstance(message, Message)
    return message


def test_the_first_hello() -> None:
    send = make(Mode.PORTS).hello(AGREED, 1.5, ttl=4)
    assert (send.path, send.ttl, len(send.data)) == (AGREED, 4, HELLO_SIZE)
    assert parsed(send) == Message(Kind.HELLO, OURS, serial=1, mode=Mode.PORTS)


def test_a_hello_to_a_peer_that_is_known() -> None:
    writer = make()
    writer.peer = PEERS
    send = writer.hello(OTHER, 1.5, nominate=True, round_trip=0.25, agreed=Agreed.OPEN, size=1400)
    assert len(send.data) == 1400
    assert parsed(send) == Message(
        Kind.HELLO,
        OURS,
        nominate=True,
        astray=True,
        serial=1,
        echo=PEERS,
        observed=OTHER.remote,
        mode=Mode.PLAIN,
        round_trip=250_000,
        agreed=Agreed.OPEN,
    )


def test_a_round_trip_of_hours_is_said_to_be_one_of_an_hour() -> None:
    said = parsed(make().hello(AGREED, 0.0, round_trip=1e9)).round_trip
    assert said == 2**32 - 1
    assert in_seconds(said) == pytest.approx(4295, abs=1)
    assert in_seconds(None) is None


def test_hellos_are_remembered_but_not_for_ever() -> None:
    writer = make()
    for number in range(2000):
        writer.hello(AGREED, float(number), size=320 + number % 2)
    assert writer.sent(None) is None
    assert writer.sent(5000) is None
    assert writer.sent(2000 - 1024) is None
    assert writer.sent(2000 - 1023) == (976.0, 320)
    assert writer.sent(2000) == (1999.0, 321)


def test_a_hello_of_the_search_is_like_any_other_one() -> None:
    writer = make()
    first = writer.search(OTHER, 2)
    assert first == Send(first.data, OTHER, 2)
    assert parsed(first) == Message(Kind.HELLO, OURS, astray=True, mode=Mode.PLAIN)
    assert len(first.data) == HELLO_SIZE
    assert writer.search(AGREED, None).data == first.data
    assert writer.sent(1) is None


def test_an_answer_says_what_was_asked_and_from_where() -> None:
    asked = Message(Kind.HELLO, PEERS, serial=7)
    (send,) = make().answer(asked, HELLO_SIZE, OTHER, nominate=True, agreed=Agreed.OPENED)
    assert send.path == OTHER
    assert parsed(send) == Message(
        Kind.ACK,
        OURS,
        nominate=True,
        astray=True,
        serial=7,
        echo=PEERS,
        observed=OTHER.remote,
        mode=Mode.PLAIN,
        agreed=Agreed.OPENED,
    )


def test_an_answer_is_never_longer_than_its_question() -> None:
    asked = Message(Kind.HELLO, PEERS, serial=7)
    shortest = len(encode(asked))
    lengths = {
        size: len(send.data)
        for size in range(shortest, 1500, 7)
        for send in make().answer(asked, size, AGREED, pad_to=1400)
    }
    assert all(length == min(size, 1400) for size, length in lengths.items())
    assert len(lengths) > 190
    assert make().answer(asked, shortest, AGREED) == []


def test_the_last_word_is_said_twice() -> None:
    writer = make()
    writer.peer = PEERS
    sends = writer.done(AGREED)
    assert len(sends) == 2
    assert {send.path for send in sends} == {AGREED}
    assert parsed(sends[0]) == Message(Kind.ACK, OURS, done=True, echo=PEERS)
