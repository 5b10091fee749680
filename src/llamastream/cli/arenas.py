"""Memory of a process with many threads: fewer heaps for them to spread over."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""glibc's malloc.h; see mallopt(3)."""


def give_back() -> None:
    """Have glibc's malloc hand back to the system what it keeps for later: after a start, some megabytes."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).malloc_trim(0)


def share_heaps(most: int = 1) -> None:
    """Have glibc's malloc keep so many heaps instead of eight for each core; elsewhere nothing.

    Each thread of Python takes one of its own, and keeps what it ever had: with a few threads for each server of a
    fleet that is most of the process's memory. Python's threads hardly ever allocate at the same time.
    """
    if sys.platform.startswith("linux"):
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, most)
