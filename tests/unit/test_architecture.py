"""The rules of the house, read off the source itself. Each says why it is there when it fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.programs import OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = "nat_traverse"

# What stands in one line may not import each other; a line imports from the lines above it. A
# package's own modules may import each other, as long as that goes round in no circle. Names for
# type annotations count like all others: a layer that has to name one above it knows too much.
#
# session stands where its imports put it: it makes the hole that tunnel and carry are given.
# lab and demo stand beside: they know of no protocol, and start programs as a user does.
LAYERS = (
    ("_version", "errors", "form", "model"),
    ("target",),
    ("wire", "lab"),
    ("punch", "demo"),
    ("net",),
    ("session",),
    ("tunnel",),
    ("link",),
    ("carry",),
    ("api",),
    ("cli",),
    ("", "__main__"),  # the package itself, which is the public API
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Who else may look into a layer that is not meant for everybody above it.
ONLY_FOR = {"lab": {"cli", "demo"}, "demo": {"cli"}}

# The layers that take input, time and chance as arguments, and what they stand on.
PURE = frozenset({"errors", "model", "wire", "punch"})

# Everything a pure module may import. A list of what is allowed can't be walked around.
ALLOWED = frozenset(
    {
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "errno",
        "functools",
        "hashlib",
        "hmac",
        "ipaddress",
        "itertools",
        "math",
        "struct",
        "typing",
    }
)

# Why the best known of the others are not on that list.
FORBIDDEN = {
    "asyncio": "a machine is run by its owner, in real or in virtual time",
    "logging": "what happened is an event; a library that logs decides for its user",
    "os": "the operating system is an argument, through effects",
    "random": "chance is an argument, or a failing simulation can't be repeated",
    "secrets": "chance is an argument, or a failing simulation can't be repeated",
    "select": "nothing waits here; get_timer says how long the owner may",
    "socket": "a datagram comes in as bytes and goes out as an effect",
    "subprocess": "a machine changes nothing outside itself",
    "time": "the time is an argument, or nothing can be tested without waiting",
}

# Built-in functions through which a pure module would reach the world all the same.
IMPURE_BUILTINS = frozenset(
    {"open", "print", "input", "breakpoint", "exec", "eval", "compile", "__import__"}
)


class Module(NamedTuple):
    """One module: its name below the package ("" for the package itself), and its tree."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]


class Import(NamedTuple):
    """One imported name, absolute. `nat_traverse.model.Path` is one of ours, `time.sleep` not."""

    line: int
    name: str

    @property
    def inside(self) -> str | None:
        """The name below our package, or None for a module of somebody else's."""
        head, _, rest = self.name.partition(".")
        return rest if head == PACKAGE else None


def module(name: str, text: str, *, is_package: bool = False) -> Module:
    return Module(name, is_package, ast.parse(text))


def modules() -> list[Module]:
    found = []
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE / PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(module(name, path.read_text("utf-8"), is_package=is_package))
    return found


def imports(of: Module) -> Iterator[Import]:
    """Yield all that `of` imports, anywhere in it, under whatever name."""
    for node in ast.walk(of.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (_origin(of, node.level), node.module)))
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}")


def _origin(of: Module, level: int) -> str:
    """Return the package that a relative import of `level` dots starts from."""
    if level == 0:
        return ""
    parts = [PACKAGE, *filter(None, of.name.split("."))]
    up = level - 1 if of.is_package else level
    return ".".join(parts[: len(parts) - up])


def uses(of: Module, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield where `of` names one of the built-in functions `names`."""
    for node in ast.walk(of.tree):
        if isinstance(node, ast.Name) and node.id in names:
            yield node.lineno, node.id
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in names
            and isinstance(node.value, ast.Name)
            and node.value.id in {"builtins", "__builtins__"}
        ):
            yield node.lineno, node.attr


# -- the rules: each takes a module and yields what is wrong with it -----------------------------


def points_downwards(of: Module) -> Iterator[str]:
    for imported in imports(of):
        if imported.inside is None:
            continue
        layer = imported.inside.partition(".")[0]
        if layer not in RANK:
            layer = ""  # a name that the package itself exports
        own = RANK.get(of.layer)
        if own is None:
            yield f"{of.name}: {of.layer!r} is in no layer; give it one in LAYERS"
            return
        same = layer == of.layer and layer != ""
        if not same and RANK[layer] >= own:
            yield (
                f"{of.name}:{imported.line} imports {imported.name}. Imports point downwards only,"
                " so that each layer can be understood, tested and used without those above it"
            )


def keeps_to_its_users(of: Module) -> Iterator[str]:
    for imported in imports(of):
        layer = (imported.inside or "").partition(".")[0]
        users = ONLY_FOR.get(layer)
        if users is not None and of.layer not in users | {layer}:
            yield (
                f"{of.name}:{imported.line} imports {imported.name}, which is for"
                f" {', '.join(sorted(users))} only: a user's tunnel needs no laboratory"
            )


def is_pure(of: Module) -> Iterator[str]:
    if of.layer not in PURE:
        return
    for imported in imports(of):
        if imported.inside is not None:
            continue
        name = imported.name.partition(".")[0]
        if name not in ALLOWED:
            reason = FORBIDDEN.get(name, "if it does no input or output, add it to ALLOWED")
            yield f"{of.name}:{imported.line} imports {imported.name}, but {reason}"
    for line, name in uses(of, IMPURE_BUILTINS):
        yield (
            f"{of.name}:{line} uses {name}(): {of.layer} does no input or output, so that the same"
            " inputs give the same outcome, always"
        )


def prints_nothing(of: Module) -> Iterator[str]:
    if of.layer == "cli":
        return
    for line, name in uses(of, frozenset({"print"})):
        yield (
            f"{of.name}:{line} uses {name}(): standard output belongs to the tunnel, and what the"
            " user reads is decided in cli/"
        )


def says_what_it_is(of: Module) -> Iterator[str]:
    if not (ast.get_docstring(of.tree) or "").strip():
        yield f"{of.name or PACKAGE} has no docstring: a module has one noun, and says which"


RULES = (points_downwards, keeps_to_its_users, is_pure, prints_nothing, says_what_it_is)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rules_are_kept(rule: Callable[[Module], Iterator[str]]) -> None:
    broken = list(chain.from_iterable(rule(each) for each in modules()))
    assert not broken, "\n".join(broken)


def test_no_two_modules_import_each_other() -> None:
    circles = find_circles(modules())
    assert not circles, (
        "modules that import each other in a circle can't be understood one at a time:\n"
        + "\n".join(" > ".join(circle) for circle in circles)
    )


def find_circles(of: list[Module]) -> list[list[str]]:
    """Return the circles of imports at run time (those for type annotations alone are harmless)."""
    names = {each.name for each in of}
    edges = {each.name: _module_edges(each, names) for each in of}
    circles: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            circles.append([*way[way.index(name) :], name])
        elif name not in done:
            for further in sorted(edges[name]):
                walk(further, [*way, name])
            done.add(name)

    for name in sorted(names):
        walk(name, [])
    return circles


def _module_edges(of: Module, names: set[str]) -> set[str]:
    """Return the modules that importing `of` loads: what stands at its top level."""
    top = ast.Module([node for node in of.tree.body if not isinstance(node, ast.If)], [])
    found = set()
    for imported in imports(Module(of.name, of.is_package, top)):
        inside = imported.inside
        while inside and inside not in names:
            inside = inside.rpartition(".")[0]
        if inside and inside != of.name:
            found.add(inside)
    return found


# -- rules about more than one module -----------------------------------------------------------

# Put together, so that this file does not break the rule itself.
OUTSIDE = ".." + "/shared"


def project_files(root: Path) -> Iterator[Path]:
    """Yield the project's files: all but what tools have left in directories of their own."""
    for path in sorted(root.iterdir()):
        hidden = path.name.startswith(".") and path.name not in {".ci", ".github"}
        if path.is_dir():
            if not hidden and path.name not in {"__pycache__", "build", "dist"}:
                yield from project_files(path)
        elif path.is_file():
            yield path


def mentions(root: Path, what: str) -> list[str]:
    return [
        str(path.relative_to(root))
        for path in project_files(root)
        if what.encode() in path.read_bytes()
    ]


def test_the_project_stands_alone() -> None:
    assert len(list(project_files(ROOT))) > 50  # the walk does walk
    found = mentions(ROOT, OUTSIDE)
    assert not found, (
        f"{', '.join(found)}: {OUTSIDE} is mentioned, but a clone has nothing beside itself"
    )


def loaded(*arguments: str) -> set[str]:
    """Return the modules that a run of the interpreter loads."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


SLOW = ("asyncio", "ssl", "socket", "argparse")


@pytest.mark.parametrize("arguments", [[OURS, "--version"], ["-m", PACKAGE, "--version"]])
def test_version_loads_nothing_slow(arguments: list[str]) -> None:
    bare = loaded("-c", "pass")
    ours = loaded(*arguments)
    assert f"{PACKAGE}.cli" in ours
    slow = [
        name for name in sorted(ours - bare) if name.partition(".")[0].removeprefix("_") in SLOW
    ]
    assert not slow, (
        f"--version imports {', '.join(slow)}: scripts ask for the version before each run, and"
        " it is to take at most 2.5 times a bare interpreter's start"
    )


# -- the rules can fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wire.hello", "from nat_traverse.punch import direct"),
        ("wire.hello", "from nat_traverse import punch"),
        ("wire.hello", "import nat_traverse.cli as innocent"),
        ("wire.hello", "from ..net import udp"),
        ("punch.direct", "if TYPE_CHECKING:\n    from nat_traverse.session import Hole"),
        ("net.udp", "def late():\n    from nat_traverse.tunnel.plain import PlainTunnel"),
        ("session", "from nat_traverse.carry.relay import Relay"),
        ("tunnel.plain", "from nat_traverse.carry.relay import Relay"),
        ("carry.relay", "from nat_traverse.cli import main"),
        ("carry.relay", "from nat_traverse import __version__"),
        ("errors", "from nat_traverse.model import Path"),
        ("lab.plan", "from nat_traverse.wire import hello"),
        ("demo.end", "from nat_traverse.session import Hole"),
        ("novelty.thing", "from nat_traverse.model import Path"),
    ],
)
def test_an_import_upwards_is_found(name: str, text: str) -> None:
    assert list(points_downwards(module(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("punch.direct", "from . import machine\nfrom ..wire.hello import Kind\nimport struct"),
        ("cli", "from nat_traverse import session, lab\nfrom nat_traverse.carry import relay"),
        ("__main__", "from nat_traverse.cli import main"),
    ],
)
def test_an_import_downwards_is_not(name: str, text: str) -> None:
    each = module(name, text, is_package=name == "cli")
    assert not list(chain.from_iterable(rule(each) for rule in RULES[:-1]))


def test_a_stranger_in_the_lab_is_found() -> None:
    assert list(keeps_to_its_users(module("session", "from nat_traverse.lab import Lab")))
    assert list(keeps_to_its_users(module("carry.relay", "import nat_traverse.demo.play")))
    assert not list(keeps_to_its_users(module("lab.topology", "from nat_traverse.lab import plan")))


@pytest.mark.parametrize(
    "text",
    [
        *(f"import {name}" for name in FORBIDDEN),
        "import os.path",
        "import time as harmless",
        "from random import randbytes as harmless",
        "def late():\n    from socket import socket",
        "import importlib",
        "import threading",
        "import datetime",
        "from pathlib import Path",
        "open('/etc/passwd')",
        "say = print",
        "print('x')",
        "__import__('time').sleep(1)",
        "exec('import time')",
        "__builtins__.open('x')",
    ],
)
@pytest.mark.parametrize("layer", sorted(PURE))
def test_impurity_is_found(layer: str, text: str) -> None:
    assert list(is_pure(module(f"{layer}.thing", text)))
    assert not list(is_pure(module("net.thing", text)))


def test_printing_is_found() -> None:
    assert list(prints_nothing(module("carry.relay", "print('x')")))
    assert list(prints_nothing(module("net.udp", "import builtins\nbuiltins.print('x')")))
    assert not list(prints_nothing(module("cli.report", "print('x')")))


@pytest.mark.parametrize("text", ["", "x = 1", '""" """'])
def test_silence_is_found(text: str) -> None:
    assert list(says_what_it_is(module("net.udp", text)))


def test_a_circle_is_found() -> None:
    circle = [
        module("a", "from nat_traverse.b import x"),
        module("b", "import nat_traverse.c"),
        module("c", "from nat_traverse import a"),
        module("d", "if TYPE_CHECKING:\n    from nat_traverse.e import x"),
        module("e", "from nat_traverse.d import x"),
    ]
    assert find_circles(circle) == [["a", "b", "c", "a"]]
    assert not find_circles(circle[1:])


def test_a_mention_is_found(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text(OUTSIDE)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text(f"see {OUTSIDE}/guide.md")
    assert mentions(tmp_path, OUTSIDE) == ["docs/guide.md"]


def test_a_slow_import_is_found() -> None:
    assert "asyncio" in loaded("-c", "import asyncio") - loaded("-c", "pass")
