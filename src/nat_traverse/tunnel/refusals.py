"""Why a proof is refused: the numbers that travel, and the texts that a user reads.

Whoever refuses ends the QUIC connection with the number, so that both sides can say why. A number
that arrives comes from somebody who has proven nothing yet: its text is a hint for the user, and
nothing else follows from it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nat_traverse.errors import NatTraverseError

# The exit code of all of them: trying again does not help before somebody has changed something.
# 3 is ESRCH, "no such process", which no call on a socket or a file ends with.
EXIT_NOT_PROVEN: Final = 3

SECRET: Final = 0x01  # bit of the means byte: a phrase that both know
KEYS: Final = 0x02  # bit of the means byte: long-lived keys


class Refusal(IntEnum):
    """The application error code of QUIC that the connection ends with."""

    WRONG_SECRET = 0x10
    MEANS_DIFFER = 0x11
    WRONG_KEY = 0x12
    PURPOSES_DIFFER = 0x13
    MALFORMED = 0x14


class ProofError(NatTraverseError):
    """The other side has not proven to be the one that is meant."""

    exit_code = EXIT_NOT_PROVEN
    refusal = Refusal.MALFORMED


class WrongSecretError(ProofError):
    """The other side does not know the secret."""

    refusal = Refusal.WRONG_SECRET

    def __init__(self) -> None:
        super().__init__(
            "Someone who does not know the secret answered."
            " Is it the same on both sides? Capitals and spaces within it count."
            " If it is, a stranger sits between you or at the other end."
        )


class ProofWithheldError(ProofError):
    """The other side was shown what proves this one, and broke off without a proof of its own."""

    refusal = Refusal.WRONG_SECRET

    def __init__(self) -> None:
        super().__init__(
            "Someone answered and broke off when the secret was to be proven."
            " It does not know the secret, or the path failed just then."
        )


class MeansDifferError(ProofError):
    """The two sides were not given the same kinds of credentials; both are means bytes."""

    refusal = Refusal.MEANS_DIFFER

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(" ".join(_differences(ours, theirs)))
        self.ours = ours
        self.theirs = theirs


class WrongKeyError(ProofError):
    """The other side has no key of those that are accepted; `key` is its text, if it has one."""

    refusal = Refusal.WRONG_KEY

    def __init__(self, key: str | None) -> None:
        if key is None:
            text = (
                "The other side's signature is not of this connection."
                " A stranger sits between you, or it runs another version of nat-traverse."
            )
        else:
            text = (
                f"The other side has a key that is not among those given with --peer-key: {key}"
                " - it uses another --identity than you expect, or it is a stranger."
                " Ask its user, by other means than this, which key is right."
            )
        super().__init__(text)
        self.key = key


class PurposesDifferError(ProofError):
    """The other side is the right one, but wants another thing; both are purpose bytes."""

    refusal = Refusal.PURPOSES_DIFFER

    def __init__(self, ours: int | None = None, theirs: int | None = None) -> None:
        super().__init__(
            "The two sides were started for different purposes."
            " Standard input and output or --cmd, --datagrams, and port forwards go each with"
            " its like only: start both sides with the same kind of options."
        )
        self.ours = ours
        self.theirs = theirs


class MalformedProofError(ProofError):
    """The other side does not keep to the protocol; `what` is the breach."""

    refusal = Refusal.MALFORMED

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The other side does not keep to the protocol of the proof: {what}."
            " It is no nat-traverse, or one of another version, or somebody sits between you."
        )


class GivenUpError(ProofError):
    """So many have failed that the next one is not waited for; `last` is the last of them."""

    def __init__(self, last: ProofError, failures: int) -> None:
        super().__init__(
            f"{last} That was attempt {failures}, and each is a guess at what proves you to each"
            " other: giving up. Agree with the other user, then start both again."
        )
        self.refusal = last.refusal
        self.last = last


def refused_by_peer(number: int) -> ProofError | None:
    """Return what the other side's application error code says; None if it is no refusal."""
    text = _SAID_BY_PEER.get(number)
    if text is None:
        return None
    error = ProofError(f"The other side refused: {text}")
    error.refusal = Refusal(number)
    return error


_SAID_BY_PEER: Final[dict[int, str]] = {
    Refusal.WRONG_SECRET: (
        "it says that this side does not know the secret."
        " Is it the same on both sides? Capitals and spaces within it count."
    ),
    Refusal.MEANS_DIFFER: (
        "one side was given a secret or keys, and the other was not."
        " Give both a secret, or both keys, or both of each."
    ),
    Refusal.WRONG_KEY: (
        "it does not accept the key of this side. Is the public half of this side's --identity"
        " among its --peer-key? `nat-traverse keygen --public FILE` prints it."
    ),
    Refusal.PURPOSES_DIFFER: (
        "the two sides were started for different purposes."
        " Start both with the same kind of options."
    ),
    Refusal.MALFORMED: (
        "it says that this side does not keep to the protocol of the proof."
        " It runs another version of nat-traverse, or somebody sits between you."
    ),
}

# Who demands what the other lacks: (bit, is it us), and what is said then. No text advises to
# leave a demand out, since whoever answers with nothing may be a stranger.
_DEMANDS: Final = (
    (
        SECRET,
        True,
        (
            "This side demands a secret and the other was given none:"
            " start it with the same --secret, or a stranger has answered."
        ),
    ),
    (
        SECRET,
        False,
        (
            "The other side demands a secret and this one was given none:"
            " use --secret, --secret-file or NAT_TRAVERSE_SECRET."
        ),
    ),
    (
        KEYS,
        True,
        (
            "This side demands keys and the other was given none:"
            " start it with --identity and --peer-key, or a stranger has answered."
        ),
    ),
    (
        KEYS,
        False,
        (
            "The other side demands keys and this one was given none:"
            " use --identity and --peer-key; `nat-traverse keygen FILE` makes a key."
        ),
    ),
)


def _differences(ours: int, theirs: int) -> list[str]:
    found = [
        text for bit, by_us, text in _DEMANDS if (ours ^ theirs) & bit and bool(ours & bit) is by_us
    ]
    if theirs & ~(SECRET | KEYS):
        found.append(
            "The other side demands a kind of proof that this version does not know: update it."
        )
    return found
