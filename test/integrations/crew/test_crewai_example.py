"""The example project and the benchmark, as processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from commandline import ROOT
from llamastream import Engine

SENTENCE = r"\S.{20,}\n"
EXPECTED = (
    rf"\A== Researcher: research\n{SENTENCE}\n== Writer: article\n{SENTENCE}"
    r"\n2 tasks, \d{3,} tokens read, \d{2,} written\n\Z"
)


PROJECT = str(ROOT / "examples" / "crewai_project/main.py")


def run(*command: str, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMASTREAM_", "LLM_"))}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={**environment, **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_shows_both_tasks_live(engine: Engine) -> None:
    assert re.search(EXPECTED, run(PROJECT, "--url", engine.url, "--topic", "slots"))


def test_the_example_takes_its_settings_from_the_environment(engine: Engine) -> None:
    printed = run(PROJECT, LLM_BASE_URL=engine.url, LLM_MAX_TOKENS="20")
    assert re.search(r"2 tasks, \d+ tokens read, 40 written", printed)


def test_the_example_starts_the_demo_engine_when_it_gets_no_url() -> None:
    assert re.search(EXPECTED, run(PROJECT))


def test_our_share_of_an_event_is_below_ten_microseconds() -> None:
    printed = run("benchmarks/crewai_events.py", "--rounds", "20")
    ours = re.search(r"what llamastream adds: (-?[\d.]+) µs", printed)
    together = re.search(r"a piece in all: ([\d.]+) µs", printed)
    assert ours is not None
    assert together is not None
    assert float(ours[1]) < 10
    assert float(together[1]) < 10
