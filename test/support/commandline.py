"""The command line as a process, and what the demo model answers."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from llamastream.engine.demo import demo_questions

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "llamastream"]
QUESTIONS = {question.question: question for question in demo_questions()}
STORY = QUESTIONS["Tell me a story."]
LONG = QUESTIONS["Tell me a long story."]


def run(
    environ: dict[str, str], *arguments: str, stdin: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=environ, input=stdin, capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )


def read_until(descriptor: int, text: bytes, seconds: float) -> bytes:
    data = b""
    end = time.monotonic() + seconds
    while text not in data:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{text!r} did not come within {seconds} s, but {data!r}"
        try:
            data += os.read(descriptor, 65536)
        except OSError:  # Linux: the other side of the terminal is closed
            break
    return data
