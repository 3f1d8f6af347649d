"""Both sides of an agreement on keys, its renewals, and everybody who breaks its rules."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import TYPE_CHECKING

import pytest

from nat_traverse.errors import RemoteProtocolError
from nat_traverse.tunnel.keying import (
    AHEAD,
    OVERLAP,
    PACE,
    REJECT_AFTER,
    RENEW_AFTER,
    RENEW_AFTER_MESSAGES,
    Keying,
)
from nat_traverse.tunnel.sealing import LIMIT, Cipher
from nat_traverse.wire.control import Frame
from nat_traverse.wire.sealed import (
    OVERHEAD,
    Offer,
    decode_answer,
    decode_epoch,
    decode_offer,
    encode_epoch,
    encode_offer,
    index_of,
)
from property.footprint import bytes_held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Wire = list[tuple[int, bytes]]

BINDING = bytes(range(64))
AES, CHACHA = Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305
BOTH = (AES, CHACHA)


def side(
    *,
    is_client: bool,
    ciphers: Sequence[Cipher] = BOTH,
    binding: bytes = BINDING,
    chance: Callable[[int], bytes] | None = None,
) -> Keying:
    return Keying(
        is_client=is_client,
        ciphers=ciphers,
        random=chance or random.Random(is_client).randbytes,
        now=0.0,
        binding=binding,
    )


def pass_frames(source: Keying, sink: Keying, now: float = 0.0) -> Wire:
    """Hand over what `source` has to say, and return it."""
    frames = list(source.frames())
    for kind, value in frames:
        sink.receive_frame(kind, value, now)
    return frames


def agree(client: Keying, server: Keying, now: float = 0.0) -> list[int]:
    """Let both talk until nobody has anything to say; returns the types of what was said."""
    said = []
    while frames := pass_frames(client, server, now) + pass_frames(server, client, now):
        said += [kind for kind, _ in frames]
    return said


def pair(now: float = 0.0) -> tuple[Keying, Keying]:
    client, server = side(is_client=True), side(is_client=False)
    agree(client, server, now)
    return client, server


def seal(source: Keying, *plaintexts: bytes) -> bytes:
    assert source.sealer is not None
    return source.sealer.seal(plaintexts)


def has_key(end: Keying) -> bool:
    return end.sealer is not None


def passes(source: Keying, sink: Keying, now: float = 0.0) -> bool:
    return sink.open_run(seal(source, b"content"), 39, now) == [b"content"]


def renew(client: Keying, server: Keying, now: float) -> None:
    client.handle_timer(now)
    assert agree(client, server, now) == [Frame.KEY_OFFER, Frame.KEY_ANSWER, Frame.KEY_CONFIRM]


EXCHANGE = [Frame.KEY_OFFER, Frame.KEY_ANSWER, Frame.KEY_CONFIRM]


# -- agreeing -----------------------------------------------------------------------------------


def test_three_frames_make_a_key_for_both() -> None:
    client, server = side(is_client=True), side(is_client=False)
    assert client.sealer is server.sealer is None
    assert client.names == server.names == ()
    assert agree(client, server) == EXCHANGE
    assert passes(client, server)
    assert passes(server, client)
    assert (client.opened, server.opened) == (1, 1)


def test_nobody_seals_what_the_other_cannot_open_yet() -> None:
    client, server = side(is_client=True), side(is_client=False)
    pass_frames(client, server)
    assert not has_key(server)
    assert len(server.names) == 1  # but it opens
    pass_frames(server, client)
    assert not has_key(server)
    assert passes(client, server)  # before the confirmation is there
    assert has_key(server)
    assert passes(server, client)
    pass_frames(client, server)
    assert passes(server, client)


def test_what_does_not_open_confirms_nothing() -> None:
    client, server = side(is_client=True), side(is_client=False)
    pass_frames(client, server)
    pass_frames(server, client)
    sealed = bytearray(seal(client, b"content"))
    sealed[-1] ^= 1
    assert server.open_run(sealed, 39, 0.0) == []
    assert server.sealer is None
    assert server.forged == 1


def test_each_names_the_index_of_the_other() -> None:
    client, server = pair()
    assert index_of(seal(client, b"")) == server.names[0]
    assert index_of(seal(server, b"")) == client.names[0]


def test_each_direction_has_a_key_of_its_own() -> None:
    client, server = pair()
    sealed = bytearray(seal(client, b"content"))
    sealed[4:8] = client.names[0]  # sent back to whom it came from
    assert client.open_run(sealed, 39, 0.0) == []
    assert client.forged == 1
    assert passes(server, client)


@pytest.mark.parametrize(
    ("client", "server", "chosen"),
    [
        (BOTH, BOTH, AES),
        (BOTH[::-1], BOTH[::-1], CHACHA),
        (BOTH, BOTH[::-1], CHACHA),
        (BOTH[::-1], BOTH, CHACHA),
        (BOTH, (AES,), AES),
        (BOTH[::-1], (AES,), AES),
        ((CHACHA,), BOTH, CHACHA),
        ((AES,), BOTH[::-1], AES),
    ],
)
def test_the_cipher_is_one_that_suits_both(
    client: Sequence[Cipher], server: Sequence[Cipher], chosen: Cipher
) -> None:
    ends = side(is_client=True, ciphers=client), side(is_client=False, ciphers=server)
    pass_frames(*ends)
    ((_, answer),) = ends[1].frames()
    assert decode_answer(answer).ciphers == (chosen,)
    ends[0].receive_frame(Frame.KEY_ANSWER, answer, 0.0)
    assert passes(*ends)


def test_ciphers_of_other_versions_are_passed_over() -> None:
    server = side(is_client=False)
    ((_, value),) = side(is_client=True).frames()
    offer = dataclasses.replace(decode_offer(value), ciphers=(0, 77, 1, 255, 2))
    server.receive_frame(Frame.KEY_OFFER, encode_offer(offer), 0.0)
    ((_, answer),) = server.frames()
    assert decode_answer(answer).ciphers == (AES,)


def test_the_keys_belong_to_one_session() -> None:
    client, server = side(is_client=True), side(is_client=False, binding=BINDING[::-1])
    agree(client, server)
    assert not passes(client, server)
    assert server.forged == 1


@pytest.mark.parametrize(("ciphers", "binding"), [((), BINDING), (BOTH, b"")])
def test_keys_need_a_cipher_and_a_session(ciphers: Sequence[Cipher], binding: bytes) -> None:
    with pytest.raises(ValueError, match="keys need"):
        side(is_client=True, ciphers=ciphers, binding=binding)


def test_indices_differ_whatever_the_chance() -> None:
    client = side(is_client=True, chance=lambda size: b"\xff" * size)
    server = side(is_client=False)
    agree(client, server)
    renew(client, server, RENEW_AFTER)
    assert client.names == (bytes(4), b"\xff" * 4)


# -- renewing -----------------------------------------------------------------------------------


def test_a_key_is_renewed_before_it_is_old() -> None:
    client, server = pair()
    for turn in range(1, 4):
        now = turn * RENEW_AFTER
        client.handle_timer(now - 0.01)
        server.handle_timer(now - 0.01)
        assert not list(client.frames())
        old, names = client.sealer, client.names
        renew(client, server, now)
        assert client.sealer is not old
        assert client.names[0] not in names
        assert passes(client, server, now)
        assert passes(server, client, now)


def test_what_is_under_way_at_a_renewal_still_opens() -> None:
    client, server = pair()
    late = seal(client, b"late one"), seal(server, b"late one")
    renew(client, server, RENEW_AFTER)
    assert passes(client, server, RENEW_AFTER)
    just = RENEW_AFTER + OVERLAP - 0.01
    assert server.open_run(late[0], 40, just) == [b"late one"]
    assert client.open_run(late[1], 40, just) == [b"late one"]
    assert server.open_run(late[0], 40, just) == []
    assert server.replayed == 1


def test_the_key_before_is_forgotten_after_a_while() -> None:
    client, server = pair()
    late = seal(client, b"late one"), seal(server, b"late one")
    renew(client, server, RENEW_AFTER)
    assert (len(client.names), len(server.names)) == (2, 2)
    after = RENEW_AFTER + OVERLAP
    assert server.open_run(late[0], 40, after) == []
    assert server.unknown == 1
    client.handle_timer(after)
    assert client.open_run(late[1], 40, after) == []
    assert (len(client.names), len(server.names)) == (1, 1)
    assert passes(client, server, after)


def test_a_server_goes_on_with_the_old_key_until_the_new_one_is_confirmed() -> None:
    client, server = pair()
    client.handle_timer(RENEW_AFTER)
    pass_frames(client, server, RENEW_AFTER)
    old = server.sealer
    pass_frames(server, client, RENEW_AFTER)
    assert server.sealer is old
    assert passes(server, client, RENEW_AFTER)  # the client has the new one, and this one still
    # A run may have datagrams of both keys, and of others.
    train = [seal(server, b"one"), b"\x04\0\0\0none" + bytes(27)]
    pass_frames(client, server, RENEW_AFTER)
    assert server.sealer is not old
    train += [seal(server, b"two"), bytes(35), seal(server, b"six")]
    assert client.open_run(b"".join(train), 35, RENEW_AFTER) == [b"one", b"two", b"six"]
    assert (client.opened, client.unknown) == (4, 2)


def test_counts_outlive_the_keys() -> None:
    client, server = pair()
    sealed = seal(client, b"content")
    server.open_run(sealed[:-1] + b"x" + sealed + sealed, 39, 0.0)
    counts = server.opened, server.replayed, server.forged
    assert counts == (1, 1, 1)
    for turn in (1, 2, 3):
        renew(client, server, turn * RENEW_AFTER)
    server.handle_timer(1e6)
    assert server.names == ()
    assert (server.opened, server.replayed, server.forged) == counts


def wear(worn: Keying) -> None:
    assert worn.sealer is not None
    worn.sealer.counter = RENEW_AFTER_MESSAGES


def test_a_worn_key_is_renewed_by_the_client() -> None:
    client, server = pair()
    client.handle_timer(8.0)
    assert not list(client.frames())
    wear(client)
    due = client.get_timer()
    assert due is not None
    assert due <= 8.0 + RENEW_AFTER_MESSAGES / (1 << 20)
    client.handle_timer(due)
    assert agree(client, server, due) == EXCHANGE
    assert client.sealer is not None
    assert client.sealer.counter == 0


def test_a_worn_key_is_renewed_for_the_server() -> None:
    client, server = pair()
    wear(server)
    due = server.get_timer()
    assert due is not None
    server.handle_timer(due)
    server.handle_timer(due + 2)  # it asks once
    assert [kind for kind, _ in pass_frames(server, client, due)] == [Frame.KEY_WANTED]
    soon = client.get_timer()
    assert soon is not None
    assert soon <= due
    client.handle_timer(due)
    assert agree(client, server, due) == EXCHANGE
    assert server.sealer is not None
    assert server.sealer.counter == 0
    wear(server)
    server.handle_timer(due + 10)
    assert [decode_epoch(value) for _, value in server.frames()] == [2]


def test_counts_are_looked_at_before_they_can_be_reached() -> None:
    client, _ = pair()
    now, sealed_a_second = 0.0, 900_000
    while not list(client.frames()):
        due = client.get_timer()
        assert due is not None
        assert now < due <= now + 4
        assert client.sealer is not None
        client.sealer.counter += int((due - now) * sealed_a_second)
        now = due
        client.handle_timer(now)
    assert client.sealer is not None
    assert RENEW_AFTER_MESSAGES <= client.sealer.counter < RENEW_AFTER_MESSAGES + 2 * (1 << 20)


def test_nothing_is_sealed_beyond_the_limit() -> None:
    client, _ = pair()
    assert client.sealer is not None
    sealer = client.sealer
    sealer.counter = LIMIT - 1
    assert len(seal(client, b"x")) == 1 + OVERHEAD
    assert not has_key(client)
    assert sealer.seal([b"x"]) == b""


def test_a_key_ends_if_nobody_renews_it() -> None:
    client, server = pair()
    late = seal(client, b"late one")
    client.handle_timer(RENEW_AFTER)
    list(client.frames())  # lost, as the session is
    for each in (client, server):
        each.handle_timer(REJECT_AFTER - 0.01)
        assert has_key(each)
        assert each.get_timer() is not None
        each.handle_timer(REJECT_AFTER)
        assert not has_key(each)
        assert each.names == ()
        assert each.get_timer() is None
    assert server.open_run(late, 40, REJECT_AFTER) == []


def test_a_key_ends_even_if_the_timer_is_late() -> None:
    client, server = pair()
    assert server.open_run(seal(client, b"late one"), 40, REJECT_AFTER) == []
    assert not has_key(server)


def test_a_key_that_was_never_confirmed_ends_as_well() -> None:
    client, server = side(is_client=True), side(is_client=False)
    pass_frames(client, server)
    pass_frames(server, client)
    server.handle_timer(REJECT_AFTER)
    assert server.names == ()
    pass_frames(client, server, REJECT_AFTER)  # too late
    assert not has_key(server)
    client.handle_timer(REJECT_AFTER)
    assert agree(client, server, REJECT_AFTER) == [Frame.KEY_OFFER, Frame.KEY_WANTED, *EXCHANGE[1:]]
    assert passes(client, server, REJECT_AFTER)


def test_an_answer_that_was_long_under_way_is_made_good() -> None:
    client, server = side(is_client=True), side(is_client=False)
    pass_frames(client, server)
    answer = list(server.frames())
    server.handle_timer(REJECT_AFTER)
    now = REJECT_AFTER + 1
    for kind, value in answer:
        client.receive_frame(kind, value, now)
    assert not passes(client, server, now)
    assert agree(client, server, now) == [Frame.KEY_CONFIRM, Frame.KEY_WANTED]
    renew(client, server, now + PACE)
    assert passes(client, server, now + PACE)


def test_after_a_long_sleep_a_new_key_is_made() -> None:
    client, server = pair()
    assert client.get_timer() is not None
    now = 10_000.0
    client.handle_timer(now)
    server.handle_timer(now)
    assert client.sealer is server.sealer is None
    assert agree(client, server, now) == [Frame.KEY_OFFER, Frame.KEY_WANTED, *EXCHANGE[1:]]
    assert passes(server, client, now)


def test_timers_fire_once() -> None:
    client, server = pair()
    now = 0.0
    for _ in range(2000):
        times = [each.get_timer() for each in (client, server)]
        now = min(due for due in times if due is not None)
        for each in (client, server):
            each.handle_timer(now)
            due = each.get_timer()
            assert due is None or due > now
        agree(client, server, now)
    assert now > 20 * RENEW_AFTER
    assert passes(client, server, now)


def test_memory_does_not_grow() -> None:
    client, server = pair()
    held = []
    for turn in range(1, 30):
        renew(client, server, turn * RENEW_AFTER)
        for each, other in ((client, server), (server, client)):
            sealed = seal(other, b"content")
            each.open_run(sealed * 3 + bytes(200), 39, turn * RENEW_AFTER)
        held.append(bytes_held(client) + bytes_held(server))
    assert max(held[5:]) <= max(held[:5]) + 1000


# -- the end ------------------------------------------------------------------------------------


def begun() -> list[tuple[Keying, Wire]]:
    """Return sides in all states, and the frames that each would take next."""
    client, server = side(is_client=True), side(is_client=False)
    states = [(client, server)]
    for step in range(2):
        early, late = side(is_client=True), side(is_client=False)
        pass_frames(early, late)
        if step:
            pass_frames(late, early)
        states.append((early, late))
    agreed = pair()
    renew(*agreed, RENEW_AFTER)  # so that there is a key before
    states.append(agreed)
    renewing = pair()
    renewing[0].handle_timer(RENEW_AFTER)
    pass_frames(*renewing, RENEW_AFTER)
    states.append(renewing)
    frames: Wire = [(kind, offer_of(1)) for kind in (Frame.KEY_OFFER, Frame.KEY_ANSWER)]
    frames += [(kind, encode_epoch(1)) for kind in (Frame.KEY_CONFIRM, Frame.KEY_WANTED)]
    return [(end, frames) for both in states for end in both]


@pytest.mark.parametrize("number", range(10))
def test_what_is_forgotten_is_gone(number: int) -> None:
    end, frames = begun()[number]
    for _ in range(2):
        end.forget()
        assert end.sealer is None
        assert end.names == ()
        assert end.get_timer() is None
        end.handle_timer(1e6)
        for kind, value in frames:  # that were under way
            end.receive_frame(kind, value, 1e6)
        assert not list(end.frames())
        assert end.get_timer() is None
    kept = [getattr(end, name) for name in ("_current", "_previous", "_next", "_offered")]
    assert kept == [None] * 4
    assert (end._private, end._by_head) == (b"", {})


def test_nothing_opens_after_all_is_forgotten() -> None:
    client, server = pair()
    sealed = [seal(client, b"content") for _ in range(3)]
    assert server.open_run(sealed[0] + sealed[0], 39, 0.0) == [b"content"]
    server.forget()
    server.forget()
    assert server.open_run(b"".join(sealed), 39, 0.0) == []
    assert (server.opened, server.replayed, server.forged, server.unknown) == (1, 1, 0, 3)


# -- breaking the rules -------------------------------------------------------------------------


def offer_of(
    epoch: int, public: bytes = bytes(range(1, 33)), ciphers: tuple[int, ...] = (1,)
) -> bytes:
    return encode_offer(Offer(epoch, b"abcd", public, ciphers))


def refuses(end: Keying, kind: int, value: bytes, why: str, now: float = 0.0) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        end.receive_frame(kind, value, now)


@pytest.mark.parametrize(
    ("is_client", "kind"),
    [
        (True, Frame.KEY_OFFER),
        (True, Frame.KEY_CONFIRM),
        (False, Frame.KEY_ANSWER),
        (False, Frame.KEY_WANTED),
        *itertools.product((False, True), (0, Frame.BYE, Frame.NETWORK, 255)),
    ],
)
def test_each_frame_is_one_sides_to_send(is_client: bool, kind: int) -> None:
    refuses(side(is_client=is_client), kind, offer_of(1), "does not send a frame")


@pytest.mark.parametrize("kind", list(Frame))
def test_malformed_frames_are_refused(kind: int) -> None:
    values = (b"", bytes(4), bytes(41), b"\1" * 3, b"\1" * 5, b"\1" * 1024)
    for end, value in itertools.product(pair(), values):
        refuses(end, kind, value, ".")


def test_offers_come_in_order() -> None:
    for epoch in (2, 7, 2**32 - 1):
        refuses(side(is_client=False), Frame.KEY_OFFER, offer_of(epoch), "after key 0")
    _, server = pair()
    for epoch in (1, 3):
        refuses(server, Frame.KEY_OFFER, offer_of(epoch), "after key 1", 100.0)


def test_an_offer_has_to_be_confirmed_before_the_next() -> None:
    server = side(is_client=False)
    server.receive_frame(Frame.KEY_OFFER, offer_of(1), 0.0)
    for epoch in (1, 2):
        refuses(server, Frame.KEY_OFFER, offer_of(epoch), "was not confirmed", 100.0)


@pytest.mark.parametrize("ciphers", [(0,), (3,), (255, 4)])
def test_some_cipher_is_needed_in_common(ciphers: tuple[int, ...]) -> None:
    refuses(side(is_client=False), Frame.KEY_OFFER, offer_of(1, ciphers=ciphers), "no cipher")


# Points of small order (RFC 7748, section 6.1, and their twins): zeros come of them.
SMALL = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("public", SMALL)
def test_public_keys_of_small_order_are_refused(public: bytes) -> None:
    refuses(side(is_client=False), Frame.KEY_OFFER, offer_of(1, public), "nothing comes")
    refuses(side(is_client=True), Frame.KEY_ANSWER, offer_of(1, public), "nothing comes")


def test_answers_fit_the_offer() -> None:
    refuses(side(is_client=True), Frame.KEY_ANSWER, offer_of(2), "nobody asked")
    refuses(side(is_client=True), Frame.KEY_ANSWER, offer_of(1, ciphers=(1, 2)), "2 ciphers")
    refuses(side(is_client=True), Frame.KEY_ANSWER, offer_of(1, ciphers=(3,)), "was not offered")
    only = side(is_client=True, ciphers=(AES,))
    refuses(only, Frame.KEY_ANSWER, offer_of(1, ciphers=(2,)), "was not offered")
    client, _ = pair()
    for epoch in (1, 2):
        refuses(client, Frame.KEY_ANSWER, offer_of(epoch), "nobody asked")


def test_confirmations_fit_the_answer() -> None:
    refuses(side(is_client=False), Frame.KEY_CONFIRM, encode_epoch(1), "was not answered")
    server = side(is_client=False)
    server.receive_frame(Frame.KEY_OFFER, offer_of(1), 0.0)
    refuses(server, Frame.KEY_CONFIRM, encode_epoch(2), "was not answered")
    _, server = pair()
    for epoch in (1, 2):
        refuses(server, Frame.KEY_CONFIRM, encode_epoch(epoch), "was not answered")


def test_only_a_key_that_there_is_can_be_renewed() -> None:
    refuses(side(is_client=True), Frame.KEY_WANTED, encode_epoch(1), "there is none")
    client, _ = pair()
    refuses(client, Frame.KEY_WANTED, encode_epoch(2), "there is none")


def test_a_wish_that_crosses_the_renewal_has_no_effect() -> None:
    client, server = pair()
    client.handle_timer(RENEW_AFTER)
    client.receive_frame(Frame.KEY_WANTED, encode_epoch(1), RENEW_AFTER)
    assert agree(client, server, RENEW_AFTER) == EXCHANGE
    client.receive_frame(Frame.KEY_WANTED, encode_epoch(1), RENEW_AFTER)
    client.handle_timer(RENEW_AFTER + 10)
    assert not list(client.frames())
    due = client.get_timer()
    assert due is not None


def test_a_greedy_server_gets_one_key_a_second() -> None:
    client, server = pair()
    exchanges, now = 0, 0.0
    while now < 20:
        for epoch in (exchanges + 1, max(exchanges, 1), exchanges + 1):
            client.receive_frame(Frame.KEY_WANTED, encode_epoch(epoch), now)
        client.handle_timer(now)
        if agree(client, server, now):
            exchanges += 1
        now += 0.125
    assert 18 <= exchanges <= 20 / PACE


def test_a_hasty_client_loses_the_session() -> None:
    server = side(is_client=False)
    for epoch in range(1, AHEAD + 2):
        server.receive_frame(Frame.KEY_OFFER, offer_of(epoch), 0.0)
        server.receive_frame(Frame.KEY_CONFIRM, encode_epoch(epoch), 0.0)
    refuses(server, Frame.KEY_OFFER, offer_of(AHEAD + 2), "too fast")


def test_a_client_that_keeps_the_pace_never_does() -> None:
    client, server = pair()
    for turn in range(1, 50):
        now = turn * PACE
        client.receive_frame(Frame.KEY_WANTED, encode_epoch(turn), now)
        client.handle_timer(now)
        assert agree(client, server, now) == EXCHANGE


# -- strangers ----------------------------------------------------------------------------------


def test_datagrams_of_nobody_are_counted() -> None:
    _, server = pair()
    assert server.open_run(b"\x04\0\0\0none" + bytes(60), 68, 0.0) == []
    assert server.open_run(bytes(100), 40, 0.0) == []
    assert server.open_run(b"", 40, 0.0) == []
    assert server.open_run(b"\x04", 0, 0.0) == []
    assert (server.opened, server.forged, server.unknown) == (0, 0, 6)


@pytest.mark.parametrize("place", range(5))
def test_a_stranger_takes_nothing_along(place: int) -> None:
    client, server = pair()
    datagrams = [seal(client, bytes([number])) for number in range(4)]
    datagrams.insert(place, b"\x04\0\0\0none" + bytes(25))
    found = server.open_run(b"".join(datagrams), 33, 0.0)
    assert found == [bytes([number]) for number in range(4)]
    assert (server.opened, server.unknown) == (4, 1)
