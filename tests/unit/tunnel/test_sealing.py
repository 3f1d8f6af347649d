"""One key: what is sealed opens once, and nothing else does."""

from __future__ import annotations

import random
import sys

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from nat_traverse.tunnel.sealing import LIMIT, WINDOW, Cipher, Opener, Sealer
from nat_traverse.wire.sealed import HEADER_SIZE, OVERHEAD, counter_of, encode_header

KEY = bytes(range(32))
INDEX, OTHER = b"abcd", b"efgh"
CIPHERS = list(Cipher)


def ends(cipher: Cipher = Cipher.AES_256_GCM) -> tuple[Sealer, Opener]:
    return Sealer(KEY, INDEX, cipher), Opener(KEY, INDEX, cipher)


def at(counter: int, sealer: Sealer, plaintext: bytes = b"x") -> bytes:
    """Return a datagram with this counter, whatever was sealed before."""
    sealer.counter = counter
    return sealer.seal([plaintext])


def cut(run: bytes, size: int) -> list[bytes]:
    return [run[start : start + size] for start in range(0, len(run), size)]


def counts(opener: Opener) -> tuple[int, int, int]:
    return opener.opened, opener.forged, opener.replayed


# -- both together ------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 48])
def test_a_train_comes_out_as_it_went_in(cipher: Cipher, count: int) -> None:
    sealer, opener = ends(cipher)
    for turn in range(3):
        train = [bytes([turn, number]) * 50 for number in range(count)]
        train[-1] = train[-1][:7]
        run = sealer.seal(train)
        assert len(run) == sum(map(len, train)) + OVERHEAD * count
        assert opener.open_run(run, 100 + OVERHEAD) == train
    assert sealer.counter == 3 * count
    assert counts(opener) == (3 * count, 0, 0)


@pytest.mark.parametrize(
    ("cipher", "aead"), [(Cipher.AES_256_GCM, AESGCM), (Cipher.CHACHA20_POLY1305, ChaCha20Poly1305)]
)
def test_a_datagram_is_wireguards(cipher: Cipher, aead: type[AESGCM | ChaCha20Poly1305]) -> None:
    sealed = at(0x0506, ends(cipher)[0], b"content")
    assert sealed[:16] == b"\x04\0\0\0abcd\x06\x05\0\0\0\0\0\0"
    nonce = bytes(4) + sealed[8:16]
    assert aead(KEY).decrypt(nonce, sealed[16:], None) == b"content"


def test_any_kind_of_buffer_is_taken() -> None:
    sealer, opener = ends()
    run = sealer.seal([b"one", bytearray(b"two"), memoryview(b"_six")[1:]])
    assert opener.open_run(memoryview(run), 35) == [b"one", b"two", b"six"]
    assert opener.open_run(bytearray(sealer.seal([b"four"])), 36) == [b"four"]


def test_nothing_is_sealed_of_nothing() -> None:
    sealer, opener = ends()
    assert sealer.seal([]) == b""
    assert opener.open_run(b"", 100) == []
    assert opener.open([]) == []
    assert counts(opener) == (0, 0, 0)


def test_an_empty_content_is_one() -> None:
    sealer, opener = ends()
    run = sealer.seal([b""])
    assert len(run) == OVERHEAD
    assert opener.open_run(run, OVERHEAD) == [b""]


@pytest.mark.parametrize(("key", "index"), [(KEY[1:], INDEX), (KEY, b"abc"), (b"", INDEX)])
def test_keys_and_indices_have_one_length(key: bytes, index: bytes) -> None:
    for each in (Sealer, Opener):
        with pytest.raises(ValueError, match="bytes"):
            each(key, index, Cipher.AES_256_GCM)


# -- sealing ------------------------------------------------------------------------------------


def test_no_nonce_is_used_twice() -> None:
    sealer, opener = ends()
    sealer.counter = LIMIT - 5
    assert len(sealer.seal([b"x"] * 3)) == 3 * 33
    assert sealer.seal([b"x"] * 3) == b""  # two are left
    assert sealer.refused == 3
    last = sealer.seal([b"y"] * 2)
    assert [counter_of(each) for each in cut(last, 33)] == [LIMIT - 2, LIMIT - 1]
    assert opener.open_run(last, 33) == [b"y"] * 2
    assert sealer.seal([b"x"]) == b""
    assert (sealer.counter, sealer.refused) == (LIMIT, 4)


def test_a_train_that_fails_takes_its_nonces_along() -> None:
    sealer, _ = ends()
    with pytest.raises(TypeError):
        sealer.seal([b"x", "no bytes"])  # type: ignore[list-item]
    assert counter_of(sealer.seal([b"x"])) == 2


# -- strangers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("count", [2, 8])
def test_a_stranger_in_a_run_takes_nothing_along(place: int, count: int) -> None:
    sealer, opener = ends()
    train = [bytes([number]) * 20 for number in range(count)]
    datagrams = cut(sealer.seal(train), 52)
    datagrams.insert(place, b"\x40" + bytes(51))
    assert opener.open_run(b"".join(datagrams), 52) == train
    assert counts(opener) == (count, 0, 0)


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("count", [2, 8])
def test_a_forgery_in_a_run_takes_nothing_along(place: int, count: int) -> None:
    sealer, opener = ends()
    train = [bytes([number]) * 20 for number in range(count)]
    datagrams = cut(sealer.seal(train), 52)
    forged = min(place, count - 1)
    datagrams[forged] = datagrams[forged][:-1] + bytes([datagrams[forged][-1] ^ 1])
    assert opener.open_run(b"".join(datagrams), 52) == train[:forged] + train[forged + 1 :]
    assert counts(opener) == (count - 1, 1, 0)


def test_every_bit_counts() -> None:
    sealer, opener = ends()
    sealed = sealer.seal([b"content"])
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert opener.open_run(changed, 39) == []
    # A bit of the prefix or the index makes it a stranger's, not a forgery.
    assert counts(opener) == (0, (len(sealed) - 8) * 8, 0)
    assert opener.open_run(sealed, 39) == [b"content"]


def test_forgeries_change_nothing() -> None:
    sealer, opener = ends()
    for counter in (0, 1, WINDOW, LIMIT - 1, LIMIT, (1 << 64) - 1):
        forged = encode_header(INDEX, counter) + bytes(20)
        assert opener.open_run(forged, 36) == []
        assert opener.open_run(forged * 6, 36) == []
    assert counts(opener) == (0, 6 * 7, 0)
    assert opener.open_run(sealer.seal([b"x"] * 6), 33) == [b"x"] * 6


def test_a_counter_beyond_the_limit_is_a_forgery_even_if_it_opens() -> None:
    sealer, opener = ends()
    nonce = bytes(4) + LIMIT.to_bytes(8, "little")
    sealed = encode_header(INDEX, LIMIT) + AESGCM(KEY).encrypt(nonce, b"x", None)
    assert opener.open_run(sealed, 33) == []
    assert opener.open_run(at(LIMIT - 1, sealer) + sealed * 4, 33) == [b"x"]
    assert counts(opener) == (1, 5, 0)


def test_other_keys_and_ciphers_do_not_open() -> None:
    sealed = ends()[0].seal([b"content"])
    for opener in (
        Opener(KEY[::-1], INDEX, Cipher.AES_256_GCM),
        Opener(KEY, INDEX, Cipher.CHACHA20_POLY1305),
    ):
        assert opener.open_run(sealed, 39) == []
        assert counts(opener) == (0, 1, 0)
    other = Opener(KEY, OTHER, Cipher.AES_256_GCM)
    assert other.open_run(sealed, 39) == []
    assert counts(other) == (0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 16, 31])
def test_what_is_too_short_is_nobodys(size: int) -> None:
    sealer, opener = ends()
    sealed = sealer.seal([b"content"])
    assert opener.open_run(sealed[:size], max(size, 1)) == []
    assert opener.open_run(sealed, size) == []
    assert counts(opener) == (0, 0, 0)


# -- replays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 6])
def test_nothing_opens_twice(count: int) -> None:
    sealer, opener = ends()
    run = sealer.seal([b"x"] * count)
    assert len(opener.open_run(run, 33)) == count
    assert opener.open_run(run, 33) == []
    further = sealer.seal([b"y"] * count)
    assert opener.open_run(run + further + run + further, 33) == [b"y"] * count
    assert counts(opener) == (2 * count, 0, 4 * count)


def test_late_ones_open_as_long_as_the_window_reaches() -> None:
    sealer, opener = ends()
    newest = 3 * WINDOW + 7
    assert opener.open_run(at(newest, sealer), 33) == [b"x"]
    oldest = newest - WINDOW + 1
    assert opener.open_run(at(oldest - 1, sealer), 33) == []
    assert counts(opener) == (1, 0, 1)
    assert opener.open_run(at(oldest, sealer), 33) == [b"x"]
    assert opener.open_run(at(newest - 1, sealer), 33) == [b"x"]
    assert opener.open_run(at(oldest, sealer), 33) == []
    assert opener.open_run(at(newest + 1, sealer), 33) == [b"x"]
    assert opener.open_run(at(oldest, sealer), 33) == []  # it has moved on
    assert counts(opener) == (4, 0, 3)


def test_runs_go_round_the_end_of_the_window() -> None:
    sealer, opener = ends()
    sealer.counter = WINDOW - 30
    runs = [sealer.seal([b"x"] * 7) for _ in range(10)]
    for run in runs:
        assert len(opener.open_run(run, 33)) == 7
    for run in runs:
        assert opener.open_run(run, 33) == []
    assert counts(opener) == (70, 0, 70)


def test_a_run_as_long_as_the_window() -> None:
    sealer, opener = ends()
    run = sealer.seal([b""] * (WINDOW + 10))
    assert len(opener.open_run(run, 32)) == WINDOW + 10
    assert opener.open_run(run, 32) == []


def test_any_order_and_any_repetition() -> None:
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    sealer, opener = ends(chance.choice(CIPHERS))
    known: dict[int, bytes] = {}
    contents: dict[int, bytes] = {}
    opened: set[int] = set()
    newest = -1
    datagrams: list[bytes] = []
    for _ in range(400):
        if chance.random() < 0.3:  # what was lost, so that the window goes on
            sealer.counter += chance.choice((1, 3, 100, WINDOW // 3, WINDOW))
        train = [chance.randbytes(7) for _ in range(chance.choice((1, 5)))]
        contents |= dict(enumerate(train, sealer.counter))
        fresh = cut(sealer.seal(train), 39)
        known |= {counter_of(each): each for each in fresh}
        datagrams += fresh
        run = chance.choices(datagrams[-60:], k=chance.randint(1, 8))
        if chance.random() < 0.4:
            run.sort(key=counter_of)
        if chance.random() < 0.3:
            run.insert(chance.randrange(len(run)), run[0][:HEADER_SIZE] + bytes(23))
        expected = []
        for each in run:
            counter = counter_of(each)
            if known[counter] != each or counter in opened or counter <= newest - WINDOW:
                continue
            opened.add(counter)
            newest = max(newest, counter)
            expected.append(contents[counter])
        assert opener.open_run(b"".join(run), 39) == expected
    assert opener.opened == len(opened)
