"""What malloc keeps of this process's memory: as little as can be had. With glibc; elsewhere nothing is done."""

from __future__ import annotations

import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""glibc's malloc.h; see mallopt(3)."""


def trim() -> None:
    """Hand back to the system what malloc keeps for later."""
    if sys.platform.startswith("linux"):
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).malloc_trim(0)


def share_heaps(most: int = 1) -> None:
    """Have malloc keep so many heaps instead of eight for each core.

    Each thread of Python takes one of its own, and keeps what it ever had: with a few threads for each server of a
    fleet that is most of the process's memory. Python's threads hardly ever allocate at the same time.
    """
    if sys.platform.startswith("linux"):
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, most)
