"""`make faults` and `make soak` in their shortest forms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> str:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), *sys.path]))}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_short_run_of_faults_writes_nothing() -> None:
    before = (ROOT / "docs/reliability.md").read_bytes()
    lines = run("tools.faults", "--quick", "--only", "tools").splitlines()
    assert len(lines) == 4
    assert all(" ok " in line for line in lines)
    assert (ROOT / "docs/reliability.md").read_bytes() == before


def test_a_short_soak() -> None:
    out = run("tools.soak", "--minutes", "0.03", "--seed", "1")
    assert "'whole': " in out
    assert "WRONG" not in out
    assert "busy slots 0" in out
