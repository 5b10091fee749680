"""What tests of faults share: a question, an answer in pieces, both clients, and a count of what is open."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers import DRIVERS

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = ["Once ", "upon ", "a ", "time"]

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def descriptors() -> int:
    """Sockets, pipes and the like that are open in this process. Not files: a process opens the list of what servers
    hold for it once, whenever that may be."""
    gc.collect()
    if sys.platform != "linux":
        return 0
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the directory itself is closed by now
            found += not str(each.readlink()).startswith("/")
    return found


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it came true: a poll, of the client's own state, which tells nobody of its changes."""
    for _ in range(5000):
        if condition():
            return True
        threading.Event().wait(0.002)
    return False
