"""Types of the fixtures of the tests of recovery."""

from __future__ import annotations

from collections.abc import Callable

from llamastream.engine import Engine
from tools.faults.asking import Answer, Ask

Whole = Callable[[Ask], Answer]
Start = Callable[..., Engine]
