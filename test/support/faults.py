"""What tests of faults share: a question, an answer in pieces, both clients, and a count of what is open."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from drivers import DRIVERS

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = ["Once ", "upon ", "a ", "time"]

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
