"""Our scanner against Perl's Getopt::Long, on argument lists that a seed made up.

The seed differs from run to run and is printed; NAT_TRAVERSE_SEED=... repeats a run.
"""

from __future__ import annotations

import os
import random
import secrets
from typing import Final

import pytest

from nat_traverse.cli import options
from support.getopt_long import LEGACY, ask, ours

CASES: Final = 30_000

NAMES: Final = [option.name for option in LEGACY]
NUMBERS: Final = [
    *("3", "0", "-1", "+3", "-0", "+0", "007", "1_000", "_3", "-_3", "+__4_", "1__0"),
    *("_", "-", "+", "--3", "0x10", "1e3", "3.5", "3x", "3,4"),
    *("", "3 ", " 3", "3\n", "3\n\n", "\n3"),
    *("\u0663", "3\u0663", "\uff13", "\u00b2"),  # digits, but not ASCII's
    # Around the ends of 64 bits, and beyond those of a double.
    *("9223372036854775808", "-9223372036854775809", "18446744073709551616"),
    *(
        "12345678901234567890",
        "-12345678901234567890",
        "0" * 5000 + "7",
        "9" * 40,
        "8" * 400,
        "-" + "7" * 5000,
    ),
]
OPERANDS: Final = [
    *("1:h:2", "-5:h:2", "40000:[::1]:40001", "-", "--", "+", "=", "=3", "a=b"),
    *("x", "demo", "quit", "window", "window=3"),
    *("", " ", "\n", "ls -la", "1:h:2\n", "\u00e9", "\u212a", "\udcff"),
]
PREFIXES: Final = ["--"] * 6 + ["-"] * 5 + ["+"] * 3 + ["---", "", "-+", "+-", "++", "\u2013", "/"]
SPICE: Final = "abcdehimnoqtuvwyWTCQVH0139=:-+_?!.\n \t\0é\u017f\u212aİ\udc80"


def seed() -> int:
    chosen = int(os.environ.get("NAT_TRAVERSE_SEED") or secrets.randbits(32))
    print(f"NAT_TRAVERSE_SEED={chosen}")  # noqa: T201 (pytest shows it when a test fails)
    return chosen


def word(rng: random.Random) -> str:
    """One word: mostly an option in some disguise, and sometimes spoilt."""
    kind = rng.random()
    if kind < 0.15:
        made = rng.choice(OPERANDS)
    elif kind < 0.25:
        made = rng.choice(NUMBERS)
    else:
        made = option(rng)
    if rng.random() < 0.12:
        made = spoil(rng, made)
    return made.replace("\0", "")  # no argument of a process has one


def option(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    if rng.random() < 0.5:
        name = name[: rng.randint(0 if rng.random() < 0.1 else 1, len(name))]
    if rng.random() < 0.25:
        name = "".join(c.upper() if rng.random() < 0.5 else c for c in name)
    if rng.random() < 0.04:
        name = rng.choice(["no-", "no", ""]) + name.replace("-", rng.choice(["_", "", "--"]))
    if rng.random() < 0.3:
        name += rng.choice(["=", "=", "=", "=", ":", "=="]) + rng.choice(NUMBERS + OPERANDS)
    return rng.choice(PREFIXES) + name


def spoil(rng: random.Random, text: str) -> str:
    at = rng.randint(0, len(text))
    keep = at + rng.choice([0, 0, 1])
    return text[:at] + rng.choice(SPICE) + text[keep:]


def argument_lists() -> list[list[str]]:
    rng = random.Random(seed())
    return [
        [word(rng) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 5, 7]))] for _ in range(CASES)
    ]


@pytest.fixture(scope="module")
def lists() -> list[list[str]]:
    return argument_lists()


@pytest.mark.parametrize("posix", [False, True], ids=["default", "POSIXLY_CORRECT"])
def test_getopt_long_agrees(lists: list[list[str]], posix: bool) -> None:
    answers = ask((arguments, posix) for arguments in lists)
    wrong = [
        f"{arguments!r}\n  ours   {mine}\n  theirs {answer}"
        for arguments, answer in zip(lists, answers, strict=True)
        if (mine := ours(arguments, posix=posix)) != answer
    ]
    assert not wrong, f"{len(wrong)} of {len(lists)} differ:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("posix", [False, True], ids=["default", "POSIXLY_CORRECT"])
def test_later_options_change_nothing(lists: list[list[str]], posix: bool) -> None:
    known = 0
    for arguments in lists:
        before = ours(arguments, posix=posix)
        if any(name == "!" and text.startswith("Unknown option") for name, text in before[0]):
            continue
        known += 1
        after = ours(arguments, posix=posix, table=options.TUNNEL.options)
        assert after == before, arguments
    assert known > CASES // 4  # else the lists are too wild to say anything
