"""How much a machine holds on to, whatever its attributes are called."""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

# What a machine refers to without owning it.
_SHARED = (type, types.ModuleType, types.FunctionType, types.MethodType, types.CodeType)


def bytes_held(owner: object) -> int:
    """Return how many bytes the objects have that can be reached from `owner`; no code counts."""
    seen: set[int] = {id(owner)}
    waiting: list[Any] = [owner]
    total = 0
    while waiting:
        each = waiting.pop()
        total += sys.getsizeof(each)
        for referred in gc.get_referents(each):
            if id(referred) not in seen and not isinstance(referred, _SHARED):
                seen.add(id(referred))
                waiting.append(referred)
    return total
