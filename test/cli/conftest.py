"""What tests of the command line share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without settings and with an empty HOME."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA", "XDG_", "PYTHONUNBUFFERED"))}
    return {**kept, "HOME": str(tmp_path), "COLUMNS": "200", "NO_COLOR": "1"}
