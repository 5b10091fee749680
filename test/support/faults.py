"""What tests of faults share: a question, an answer in pieces, both clients, and a count of what is open."""

from __future__ import annotations

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
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it came true: a poll, of the client's own state, which tells nobody of its changes."""
    for _ in range(5000):
        if condition():
            return True
        threading.Event().wait(0.002)
    return False
