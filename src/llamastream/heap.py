"""Memory of a process that runs for long: what malloc keeps of it, as little as can be had (with glibc; elsewhere
nothing is done), and how often Python looks for cycles."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""glibc's malloc.h; see mallopt(3)."""
_OFTEN = (10_000, 50, 10)
"""After how many objects Python looks for cycles among the youngest, and after how many such looks among older ones.
A look takes about 4 ms for 10,000 objects, and no stream goes on meanwhile. Its own first number, 700 to 2,000, is a
look for every few requests; its own 10 behind this one is a look at all objects of 1,000 streams when that many have
come, which takes 40 ms and finds nothing: ended requests leave no cycles (test/gateway/test_gateway_garbage.py)."""


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


def settle() -> None:
    """What is there now stays for as long as the process: Python need not look through it for cycles, again and again.

    A program has some 100,000 objects once it is loaded; to look through all of them takes many milliseconds, in which
    no stream goes on.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_OFTEN)
