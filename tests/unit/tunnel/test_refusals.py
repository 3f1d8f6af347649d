from __future__ import annotations

import pytest

from nat_traverse.tunnel.refusals import (
    MalformedProofError,
    MeansDifferError,
    PurposesDifferError,
    Refusal,
    WrongKeyError,
    WrongSecretError,
    refused_by_peer,
)

ERRORS = [
    WrongSecretError(),
    MeansDifferError(1, 2),
    WrongKeyError(None),
    WrongKeyError("nt1abc"),
    PurposesDifferError(1, 2),
    MalformedProofError("no greeting"),
]


@pytest.mark.parametrize("number", Refusal)
def test_the_number_says_the_same_on_both_sides(number: Refusal) -> None:
    error = refused_by_peer(number)
    assert error is not None
    assert error.refusal is number
    assert str(error).startswith("The other side refused: ")


@pytest.mark.parametrize("number", [0, 1, 0x0F, 0x15, 1 << 61])
def test_other_numbers_are_no_refusals(number: int) -> None:
    assert refused_by_peer(number) is None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_sentences_and_one_exit_code(error: Exception) -> None:
    assert str(error).endswith((".", "?"))
    assert getattr(error, "exit_code", None) == 3


def test_who_lacks_what_is_said_in_full() -> None:
    text = str(MeansDifferError(1, 2))
    assert "This side demands a secret" in text
    assert "The other side demands keys" in text
    assert "update" not in text
