"""The grammar of the command line: Perl's Getopt::Long in its default configuration.

Theory of operation
===================

Users of 0.7 have its command lines in scripts, so the grammar is that of the module it used, down
to the error texts. A word is one of four things:

    --                  ends the options; whatever follows is an operand
    -x...  --x...  +x   an option; all three prefixes mean the same, and there are no bundles of
                        single letters: `-w3` is an option called `w3`
    -                   an operand
    anything else       an operand

An option's name ends at the first `=` that is not its first character; what follows is its value,
and it may not be empty. Without `=`, an option that wants a value takes the next word, *whatever it
looks like*, and there an empty word is a value. Names are compared without regard to ASCII case,
and may be shortened. Errors are collected while the scan goes on.

Operands may stand between options. When POSIXLY_CORRECT is set they may not: the first operand
ends the options. It also takes away `+`, abbreviations, and `=` after a single dash.

A name stands for, in this order:

    1. the option of exactly that name;
    2. the one option of 0.7 that it is a prefix of;
    3. the one later option that it is a prefix of.

The order of 2 and 3 is ours, and keeps a promise: adding an option to the table never changes what
an argument list means in which 0.7 found no unknown option.
"""

from __future__ import annotations

from nat_traverse.cli.options import FLAG, INTEGER, Option

TYPE_CHECKING = False  # importing typing would double the time that --version takes
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Final

    Value = str | int | None

LONGEST_NUMBER: Final = 308
"""Digits of the largest number, and Perl's, which counts in doubles, is infinite beyond it. Some
limit is needed: int() refuses more than 4,300 digits, and an argument can have 100,000."""


class Given:
    """An option was given. `value` is None for a flag."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Value) -> None:
        self.name = name
        self.value = value

    def __repr__(self) -> str:
        return f"Given({self.name!r}, {self.value!r})"


class Rejected:
    """A word was no option, or its value no value. `text` is what the user reads."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Rejected({self.text!r})"


class Scan:
    """What an argument list says: its options and errors in order, and its operands in order."""

    __slots__ = ("events", "operands")

    def __init__(self, events: Sequence[Given | Rejected], operands: Sequence[str]) -> None:
        self.events = events
        self.operands = operands

    @property
    def errors(self) -> list[str]:
        """The texts of what was rejected, in order."""
        return [event.text for event in self.events if isinstance(event, Rejected)]


def scan(arguments: Iterable[str], options: Sequence[Option], *, posix: bool) -> Scan:
    """Read `arguments` (without the program's name) by the table `options`. Never raises.

    `posix` is whether the environment has POSIXLY_CORRECT, with any value.
    """
    words = iter(arguments)
    events: list[Given | Rejected] = []
    operands: list[str] = []
    for word in words:
        if word == "--":
            break
        prefix = _prefix(word, posix=posix)
        if prefix:
            events.append(_read(prefix, word.removeprefix(prefix), words, options, posix=posix))
        else:
            operands.append(word)
            if posix:
                break
    operands.extend(words)
    return Scan(events, operands)


def _prefix(word: str, *, posix: bool) -> str:
    """Return what makes `word` an option; an empty string when it is an operand."""
    for prefix in ("--", "-") if posix else ("--", "-", "+"):
        if word.startswith(prefix):
            return "" if word == "-" else prefix
    return ""


def _read(
    prefix: str, body: str, words: Iterator[str], options: Sequence[Option], *, posix: bool
) -> Given | Rejected:
    """Read one option, taking its value from `words` where it has none attached."""
    name, value = _split(body) if prefix == "--" or not posix else (body, None)
    if not name:
        return Rejected(f"Missing option after {prefix}")
    lowered = _lower(name)
    found = _resolve(lowered, options, abbreviated=not posix)
    if not found:
        return Rejected(f"Unknown option: {name if posix else lowered}")
    if len(found) > 1:
        candidates = ", ".join(sorted(option.name for option in found))
        return Rejected(f"Option {lowered} is ambiguous ({candidates})")
    return _take(found[0], value, words)


def _split(body: str) -> tuple[str, str | None]:
    """Cut `name=value`. A `=` in front belongs to the name: `--=3` is an option called `=3`."""
    cut = body.find("=", 1)
    return (body, None) if cut < 0 else (body[:cut], body[cut + 1 :])


def _resolve(name: str, options: Sequence[Option], *, abbreviated: bool) -> list[Option]:
    """Return the options that `name` may stand for: none, the one, or several candidates."""
    exact = [option for option in options if option.name == name]
    if exact or not abbreviated:
        return exact
    begun = [option for option in options if option.name.startswith(name)]
    return [option for option in begun if option.legacy] or begun


def _take(option: Option, attached: str | None, words: Iterator[str]) -> Given | Rejected:
    """Give `option` its value: the attached one, or the next word."""
    if option.kind == FLAG:
        if attached is not None:
            return Rejected(f"Option {option.name} does not take an argument")
        return Given(option.name, None)
    value = next(words, None) if attached is None else attached or None
    if value is None:
        return Rejected(f"Option {option.name} requires an argument")
    if option.kind == INTEGER:
        number = _integer(value)
        if number is None:
            return Rejected(f'Value "{value}" invalid for option {option.name} (number expected)')
        return Given(option.name, number)
    return Given(option.name, value)


def _integer(text: str) -> int | None:
    """Read `[-+]?_*[0-9][0-9_]*` and perhaps one line feed, or return None.

    The line feed is a Perl pattern's `$`, which matches in front of it as well.
    """
    digits = text.removesuffix("\n")
    sign = -1 if digits.startswith("-") else 1
    if digits.startswith(("-", "+")):
        digits = digits[1:]
    digits = digits.replace("_", "")
    if not (digits.isascii() and digits.isdigit()):
        return None
    digits = digits.lstrip("0") or "0"
    return sign * int(digits if len(digits) <= LONGEST_NUMBER else "9" * LONGEST_NUMBER)


def _lower(text: str) -> str:
    """Lower the case of ASCII letters only: to Perl, an argument is a string of bytes."""
    return "".join(c.lower() if c.isascii() else c for c in text)
