"""A direct tunnel between two machines that both sit behind NAT, with no server in between.

    async with nat_traverse.connect("40000:gw.example.org:40001", secret="correct horse") as tunnel:
        reader, writer = await tunnel.open_stream()

    async with nat_traverse.punch("40000:gw.example.org:40001") as hole:
        hole.socket.send(b"a protocol of your own")

What is listed in `__all__` is the interface; everything else may change with any version.
"""

from __future__ import annotations

import sys
from types import ModuleType

from nat_traverse._version import __version__

TYPE_CHECKING = False  # importing typing would double the time that `--version` takes
if TYPE_CHECKING:
    # For readers of types only: at run time `__getattr__` below imports them.
    from nat_traverse.api import PunchedHole, Tunnel, connect, punch  # noqa: TC004
    from nat_traverse.errors import NatTraverseError  # noqa: TC004

__all__ = ["NatTraverseError", "PunchedHole", "Tunnel", "__version__", "connect", "punch"]


class _Package(ModuleType):
    """This package: imports what is heavy when it is first used, as PEP 562 has it, and one more.

    The function `punch` has the name of the package of traversal machines. Python's import sets
    that as an attribute here as soon as anybody imports one of them; the attribute is the function
    at all times, and the package is reached by `from nat_traverse.punch import ...`.
    """

    @property
    def punch(self) -> object:
        from nat_traverse import api  # noqa: PLC0415 (see above)

        return api.punch

    @punch.setter
    def punch(self, _: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        if name == "NatTraverseError":
            from nat_traverse.errors import NatTraverseError  # noqa: PLC0415 (see above)

            return NatTraverseError
        if name in __all__:
            from nat_traverse import api  # noqa: PLC0415 (see above)

            return getattr(api, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
