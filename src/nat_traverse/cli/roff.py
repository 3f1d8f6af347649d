"""The markup in which the texts of this package are written, and its rendering for man(1).

Paragraphs are separated by an empty line. A paragraph that is indented is an example and keeps its
lines. Inside a paragraph, `backquotes` enclose what is typed literally and *asterisks* what stands
for something else.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def section(title: str, *bodies: str) -> str:
    """Return a section; the bodies are rendered already."""
    return f".SH {escape(title)}\n" + "".join(bodies)


def subsection(title: str, *bodies: str) -> str:
    """Return a subsection; the bodies are rendered already."""
    return f".SS {escape(title)}\n" + "".join(bodies)


def prose(text: str) -> str:
    """Render paragraphs and examples."""
    return "".join(_block(block) for block in _blocks(text))


def entry(term: str, text: str) -> str:
    """Render a term, itself in the markup, with its explanation indented below it."""
    first, *others = _blocks(text)
    body = "".join(_block(block, opening=".IP") for block in others)
    return f".TP\n{inline(term)}\n{inline(first)}\n{body}"


def terms(rows: Iterable[tuple[str, str]]) -> str:
    """Render a list of words with their meanings; a word that has markup of its own keeps it."""
    return "".join(entry(f"`{term}`" if "*" not in term else term, text) for term, text in rows)


def inline(text: str) -> str:
    """Render one paragraph on one line."""
    fonts = {"`": r"\fB", "*": r"\fI"}
    rendered, font = "", ""
    for character in " ".join(text.split()):
        if character == font:
            rendered, font = rendered + r"\fR", ""
        elif character in fonts and not font:
            rendered, font = rendered + fonts[character], character
        else:
            rendered += escape(character)
    return _protected(rendered)


def escape(text: str) -> str:
    """Keep roff from reading anything into `text`.

    A plain `-` would come out as a typographic hyphen, which can neither be pasted nor searched.
    """
    special = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
    return "".join(special.get(character, character) for character in text)


def _blocks(text: str) -> list[str]:
    return [block.strip("\n") for block in textwrap.dedent(text).strip("\n").split("\n\n")]


def _block(block: str, opening: str = ".PP") -> str:
    if block.startswith(" "):
        lines = [_protected(escape(line)) for line in textwrap.dedent(block).splitlines()]
        return f"{opening}\n.RS 4\n.nf\n" + "\n".join(lines) + "\n.fi\n.RE\n"
    return f"{opening}\n{inline(block)}\n"


def _protected(line: str) -> str:
    """Keep a line from being taken for a request, which begins with a dot or an apostrophe."""
    return rf"\&{line}" if line.startswith((".", "'")) else line
