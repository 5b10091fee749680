"""How often a process that runs for long looks for cycles."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from llamastream.heap import settle
class Round: pass
settle()
frozen, one = gc.get_freeze_count(), Round()
one.itself = one
del one
print(frozen > 1000, gc.collect() > 0, gc.isenabled(), gc.get_threshold()[0] > 700)
"""


def test_what_is_there_is_looked_through_no_more_and_what_comes_is() -> None:
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True"] * 4
