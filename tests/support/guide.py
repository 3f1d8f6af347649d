"""The commands of docs/guide.md, exactly as it prints them.

What can be run stands in a fenced block with a comment before it that names the recipe and the side
that runs it: `<!-- run: wireguard-files left -->`. `both` is for either side.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nat_traverse.lab import Kind, Lab
from support.own_files import OwnFiles
from support.tools import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.programs import Program

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"

# The names that the guide uses for the public addresses of the two sides.
NAMES = {"left": "left.example.org", "right": "right.example.org"}

# Where the recipes keep their files.
DIRECTORIES = ("/etc/wireguard", "/etc/openvpn")

# The recipes that test_guide_vpn.py runs; test_guide.py runs all others.
VPN_RECIPES = {
    *("vpn", "vpn-lasting", "site-to-site"),
    *("service-file", "service", "service-status"),
}

_RECIPE = re.compile(
    r"^<!-- run: ([a-z-]+) (left|right|both) -->\n\n```(?:sh|bash)\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = "<!-- run:"


def recipes(text: str) -> dict[tuple[str, str], str]:
    """Return the script of each recipe and side."""
    found: dict[tuple[str, str], str] = {}
    matches = _RECIPE.findall(text)
    assert len(matches) == text.count(_MARK), "a mark is not followed by a block"
    for name, side, script in matches:
        for each in ("left", "right") if side == "both" else (side,):
            assert (name, each) not in found, f"{name} is there twice for {each}"
            found[name, each] = script
    return found


def script(name: str, side: str) -> list[str]:
    """Return the command that runs a recipe: it ends with the first command that fails."""
    return [need("bash", package="bash"), "-e", "-c", recipes(GUIDE.read_text())[name, side]]


class Sides(NamedTuple):
    """Both hosts, with the network they are in."""

    lab: Lab
    left: OwnFiles
    right: OwnFiles

    def run(self, recipe: str) -> None:
        """Run a recipe to its end on both sides."""
        for side in ("left", "right"):
            getattr(self, side).run(script(recipe, side))

    @contextlib.contextmanager
    def running(self, recipe: str) -> Iterator[tuple[Program, Program]]:
        """Start a recipe on both sides; at the end it is killed."""
        with (
            self.left.start(script(recipe, "left")) as one,
            self.right.start(script(recipe, "right")) as other,
        ):
            yield one, other

    def exchange(self, directory: str, suffix: str) -> None:
        """Do what the two users do: each gives the other one file."""
        for giver, taker, side in (
            (self.left, self.right, "left"),
            (self.right, self.left, "right"),
        ):
            name = f"{side}.{suffix}"
            shutil.copy(giver.own(directory) / name, taker.own(directory) / name)

    def ping(self, own: str, other: str) -> None:
        """See that both reach each other by their addresses in the VPN."""
        self.left.ping(other)
        self.right.ping(own)


@contextlib.contextmanager
def sides(directory: Path, left: Kind = Kind.DROP, right: Kind = Kind.DROP) -> Iterator[Sides]:
    """Give both hosts files of their own; the names of the guide lead to each other."""
    with Lab(left, right) as lab:
        names = {
            name: getattr(lab, side).public.v4 or getattr(lab, side).public.v6
            for side, name in NAMES.items()
        }
        with (
            OwnFiles(lab.left, directory / "left", names, DIRECTORIES) as one,
            OwnFiles(lab.right, directory / "right", names, DIRECTORIES) as other,
        ):
            yield Sides(lab, one, other)
