from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nat_traverse.model import Endpoint, Path
from nat_traverse.tunnel.follow import Follower
from nat_traverse.wire.hello import HELLO_SIZE, Kind, Message, decode, encode

if TYPE_CHECKING:
    from nat_traverse.punch.machine import Send

OURS, PEER, STRANGER = b"\x01" * 16, b"\x02" * 16, b"\x03" * 16


def path(number: int = 1) -> Path:
    return Path(0, Endpoint("203.0.113.2", 50_000 + number))


def make() -> Follower:
    return Follower(OURS, PEER)


def read(send: Send | None) -> Message:
    assert send is not None
    message = decode(send.data)
    assert isinstance(message, Message)
    return message


def ack(question: Message, **changes: object) -> Message:
    fields: dict[str, object] = {"serial": question.serial, "echo": OURS, **changes}
    return Message(Kind.ACK, PEER, **fields)  # type: ignore[arg-type]


class TestAsking:
    def test_a_question_names_both_nonces(self) -> None:
        send = make().hear(path(), 1350, 0.0)
        message = read(send)
        assert send is not None
        assert send.path == path()
        assert (message.kind, message.nonce, message.echo) == (Kind.HELLO, OURS, PEER)
        assert message.serial is not None

    def test_nobody_is_asked_more_than_he_has_sent(self) -> None:
        follower = make()
        sizes = []
        for now in range(200):
            send = follower.hear(path(), 30, float(now))
            sizes.append(0 if send is None else len(send.data))
            assert sum(sizes) <= 30 * len(sizes)
        assert sum(sizes) > 0

    def test_a_few_acks_are_enough_to_be_asked(self) -> None:
        follower = make()
        asked = [follower.hear(path(), 40, 0.01 * number) for number in range(3)]
        assert any(asked)

    def test_five_questions_a_second_however_many_ask_for_one(self) -> None:
        follower = make()
        asked = [
            follower.hear(path(number), 1350, number / 1000)  # forged addresses
            for number in range(2000)
        ]
        assert sum(send is not None for send in asked) <= 11

    def test_memory_is_bounded(self) -> None:
        follower = make()
        for number in range(2000):
            follower.hear(path(number), 1350, float(number))
        assert len(follower._heard) <= 16
        assert len(follower._asked) <= 16


class TestAnswers:
    def test_the_answer_to_a_question_proves_it(self) -> None:
        follower = make()
        question = read(follower.hear(path(), 1350, 0.0))
        assert follower.is_peers(ack(question))
        assert follower.take_answer(ack(question), path())

    def test_once(self) -> None:
        follower = make()
        question = read(follower.hear(path(), 1350, 0.0))
        assert follower.take_answer(ack(question), path())
        assert not follower.take_answer(ack(question), path())

    def test_from_where_it_was_asked_only(self) -> None:
        follower = make()
        question = read(follower.hear(path(1), 1350, 0.0))
        assert not follower.take_answer(ack(question), path(2))
        assert not follower.take_answer(ack(question), path(1)._replace(socket=1))
        assert follower.take_answer(ack(question), path(1))

    @pytest.mark.parametrize("serial", [None, 0, 2])
    def test_with_its_serial_only(self, serial: int | None) -> None:
        follower = make()
        question = read(follower.hear(path(), 1350, 0.0))
        assert question.serial == 1
        assert not follower.take_answer(ack(question, serial=serial), path())

    def test_several_questions_may_be_open(self) -> None:
        follower = make()
        first = read(follower.hear(path(1), 1350, 0.0))
        second = read(follower.hear(path(2), 1350, 1.0))
        assert follower.take_answer(ack(first), path(1))
        assert not follower.take_answer(ack(second), path(2)), "the later one was given up"

    @pytest.mark.parametrize("fields", [{"echo": None}, {"echo": STRANGER}, {"nonce": STRANGER}])
    def test_a_message_that_does_not_name_both_is_not_the_peers(
        self, fields: dict[str, bytes | None]
    ) -> None:
        whole: dict[str, object] = {"nonce": PEER, "echo": OURS, **fields}
        assert not make().is_peers(Message(Kind.ACK, **whole))  # type: ignore[arg-type]


class TestBeingAsked:
    def test_the_answer_repeats_the_serial(self) -> None:
        question = Message(Kind.HELLO, PEER, serial=77, echo=OURS)
        size = len(encode(question))
        send = make().answer(question, size, path())
        message = read(send)
        assert send is not None
        assert len(send.data) <= size
        assert send.path == path()
        assert (message.kind, message.nonce) == (Kind.ACK, OURS)
        assert (message.serial, message.echo) == (77, PEER)

    def test_no_answer_is_longer_than_the_question(self) -> None:
        question = Message(Kind.HELLO, PEER, serial=77, echo=OURS)
        assert make().answer(question, len(encode(question)) - 1, path()) is None
        assert make().answer(question, HELLO_SIZE, path()) is not None

    def test_two_followers_understand_each_other(self) -> None:
        ours, theirs = make(), Follower(PEER, OURS)
        question = ours.hear(path(), 1350, 0.0)
        assert question is not None
        assert theirs.is_peers(read(question))
        answer = theirs.answer(read(question), len(question.data), path(9))
        assert ours.is_peers(read(answer))
        assert ours.take_answer(read(answer), path())
