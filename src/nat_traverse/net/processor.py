"""What this machine's processor has instructions for, as far as its kernel says so."""

from __future__ import annotations

from functools import cache
from typing import Final

# AES alone is half of AES-GCM: the other half multiplies without carry (`pclmulqdq` on x86, `pmull`
# on ARM), and in software that takes longer than the AES it is added to.
_NEEDED: Final = ({"aes", "pclmulqdq"}, {"aes", "pmull"})

# How the line begins: on x86 and on ARM. The first one is enough, for all cores that a Linux
# process may be moved between have the same.
_BEGINNINGS: Final = ("flags", "Features")

_DESCRIPTION: Final = "/proc/cpuinfo"


@cache
def has_aes() -> bool:
    """Say whether AES-GCM is computed by instructions made for it; False where nobody says.

    Without them it is several times slower than ChaCha20-Poly1305, and with them twice as fast.
    """
    try:
        with open(_DESCRIPTION, encoding="ascii", errors="replace") as lines:  # noqa: PTH123 (pathlib is not loaded for one file)
            for line in lines:
                if line.startswith(_BEGINNINGS):
                    has = set(line.partition(":")[2].split())
                    return any(needed <= has for needed in _NEEDED)
    except OSError:
        pass
    return False
