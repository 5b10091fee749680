"""Each script in examples/ runs for real: against a running server, and on its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llamastream.engine import Engine

EXAMPLES = Path(__file__).parents[2] / "examples"

# what each script must have printed, as a regular expression
EXPECTED = {
    "sync_stream.py": r".{20,}\nended by: stop, tokens: \d{2,}\n\Z",
    "async_stream.py": r".{20,}\nended by: stop, tokens: \d{2,}\n\Z",
    "cancel_from_thread.py": r"\nended by: cancelled, kept: \d+ characters\nbusy slots: 0, after \d+ ms\n\Z",
    "events.py": r"\Astart +200 .*\ntext +'.*\nusage .*\ntimings .*\nend +stop, \d+ pieces.*first_token: [\d.]+ ms",
    "launch_engine.py": r"url: \S+, slots: \d, models: demo\n.*demo model",
    "many_streams.py": r"\A(\d+) answers complete: \1\n\d+ tokens in .*\nfirst token: median \d+ ms, slowest \d+ ms",
    "tool_call.py": r"\Aended by: tool_calls\nget_weather\(\{.*\}\) -> 18 degrees and sunny in .+\n.+\n\Z",
}
# These have tests of their own, which name them.
TESTED_BY = {
    "crewai_project/main.py": "integrations/crew/test_crewai_example.py",
    "batch_job.py": "docs/test_batch_job.py",
    "fastapi_chat/app.py": "integrations/test_fastapi_chat.py",
    "fastapi_chat/with_langchain.py": "integrations/langchain/test_langchain_fastapi.py",
}
# short answers where the script lets one choose: what is tried here is the script, not the model
BRIEF = {"sync_stream.py": ["Count to ten."], "async_stream.py": ["Count to ten."], "many_streams.py": ["-n", "5"]}


def run(script: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMASTREAM_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_example_is_run_by_a_test() -> None:
    projects = [main.parent for main in EXAMPLES.rglob("main.py")]  # whose other modules are run with it
    scripts = {
        str(path.relative_to(EXAMPLES))
        for path in EXAMPLES.rglob("*.py")
        if path.name == "main.py" or not any(path.is_relative_to(project) for project in projects)
    }
    assert scripts == EXPECTED.keys() | TESTED_BY.keys()
    for script, test in TESTED_BY.items():
        assert f'"{script}"' in (Path(__file__).parents[1] / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", sorted(EXPECTED))
def test_example_with_a_running_server(script: str, engine: Engine) -> None:
    assert re.search(EXPECTED[script], run(script, *BRIEF.get(script, []), "--url", engine.url), re.DOTALL)


@pytest.mark.parametrize("script", sorted(EXPECTED.keys() - {"launch_engine.py"}))
def test_example_starts_the_demo_engine_when_it_gets_no_url(script: str) -> None:
    assert re.search(EXPECTED[script], run(script, *BRIEF.get(script, [])), re.DOTALL)


def test_launch_engine_says_that_nothing_runs_afterwards() -> None:
    printed = run("launch_engine.py", "--parallel", "3")
    assert re.search(EXPECTED["launch_engine.py"], printed, re.DOTALL)
    assert "slots: 3" in printed
    assert printed.endswith("running: False\n")
