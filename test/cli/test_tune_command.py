"""`llamastream tune` as a command: what it prints, writes and refuses, and how it is broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chromium import POOR_CONTRAST, SCROLLED, browser, chromium, looks_like
from commandline import COMMAND, ROOT, run
from llamastream.bench.tune.result import TuneResult
from llamastream.engine.demo import demo_model_path
from serving import environment, runtime_directory
from terminal import Chat, terminal_environ

MODEL = str(demo_model_path())
QUICK = (
    "--kind", "embedded", "--ctx-size", "512", "--budget", "20", "--prompt-tokens", "32", "--output-tokens", "16",
    "--at-once", "2",
)  # fmt: skip


def tune(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(environ, "tune", *arguments, timeout=120)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.CompletedProcess[str], Path]]:
    """One search with all outputs, and where they are; one of them takes the place of a file that was there."""
    home = tmp_path_factory.mktemp("tune")
    with runtime_directory() as runtime:
        (home / "tuned.toml").write_text("# mine\n")
        written = ("--force", "--write", str(home / "tuned.toml"), "--html", str(home / "tuned.html"))
        yield tune(environment(home, runtime), "--model", MODEL, *QUICK, "--goal", "balanced", "--json", *written), home


def test_json_on_stdout_is_one_object_and_nothing_else(found: tuple[Any, Path]) -> None:
    done, _ = found
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert set(result) == set(TuneResult.__struct_fields__)
    (model,) = result["models"]
    assert model["model"] == MODEL
    assert {tried["part"] for tried in model["tried"]} >= {"defaults", "search"}
    assert model["defaults"]["score"] > 0


def test_in_a_pipe_each_trial_is_a_line_on_stderr(found: tuple[Any, Path]) -> None:
    done, home = found
    lines = done.stderr.splitlines()
    (model,) = json.loads(done.stdout)["models"]
    assert lines[0] == f"looking at {MODEL}"
    assert lines[-1].startswith(f"written to {home / 'tuned.toml'}; use it with: LLAMASTREAM_CONFIG=")
    trials = [line for line in lines if " s  " in line]
    assert len(trials) == len(model["tried"])
    assert trials[0].endswith(" ms)")
    assert "\x1b" not in done.stderr


def test_the_file_that_it_wrote_by_force_is_one_that_serve_takes(found: tuple[Any, Path]) -> None:
    _, home = found
    table = tomllib.loads((home / "tuned.toml").read_text())
    assert set(table) == {"serve"}
    assert table["serve"]["model"] == MODEL


@pytest.mark.skipif(chromium() is None, reason="needs Chromium on PATH, or its path in CHROMIUM")
def test_the_page_fits_and_is_readable_light_and_dark_and_asks_nobody(found: tuple[Any, Path], tmp_path: Path) -> None:
    done, home = found
    (model,) = json.loads(done.stdout)["models"]
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with browser(tmp_path / "profile") as page:
        for width, scheme in ((1280, "light"), (1280, "dark"), (1000, "light"), (375, "light"), (375, "dark")):
            looks_like(page, width, 1200, scheme)
            page.open((home / "tuned.html").as_uri())
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.value(POOR_CONTRAST) == []
            if width >= 1000:
                assert page.value(SCROLLED) == []
            page.screenshot(pictures / f"tune-{width}-{scheme}.png")
        rows = page.value("document.querySelectorAll('table:last-of-type tbody tr').length")
        assert rows >= len(model["tried"])
        assert page.value("document.querySelectorAll('svg.chart .dot').length") == sum(
            tried["figures"] is not None for tried in model["tried"]
        )
        assert page.value("document.querySelector('pre').innerText") == (home / "tuned.toml").read_text()
        assert page.value("performance.getEntriesByType('resource').length + document.scripts.length") == 0


def test_a_file_that_is_there_is_kept(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("# mine\n")
    refused = tune(environ, "--model", MODEL, *QUICK, "--write", str(path))
    assert refused.returncode == 1
    assert refused.stderr == f"llamastream: {path} exists: give another name, or --force to overwrite it\n"
    assert path.read_text() == "# mine\n"


def test_on_a_terminal_a_live_table_shows_the_trials_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    arguments = ("--model", MODEL, *QUICK, "--budget", "120", "--write", str(tmp_path / "tuned.toml"))
    with Chat(*arguments, environ=terminal_environ(tmp_path), command=[*COMMAND, "tune"]) as running:
        running.expect("looking at ", 60)
        for words in (" of 120 s", "first token, ms", "llama-server's defaults", "round 1"):
            running.expect(words, 60)
        assert b"\x1b[" in running.raw  # it is drawn in place
        running.type("\x03")
        running.expect("broken off; this is the best so far", 30)
        assert running.end() == 130
    assert not (tmp_path / "tuned.toml").exists()


def test_ctrl_c_shows_the_best_so_far_and_leaves_no_server(environ: dict[str, str]) -> None:
    command = [*COMMAND, "tune", "--model", MODEL, *QUICK, "--budget", "120", "--json"]
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 1" in line:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["interrupted"] is True
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_ctrl_c_before_the_first_trial_says_that_there_is_no_result(environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "tune", "--model", MODEL, *QUICK, "--json"], env=environ, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert "looking at " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "broken off before anything was measured: there is no result\n"


def test_no_model_that_is_fast_enough_is_told_by_the_exit_code_also_quietly(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "tuned.toml"
    arguments = ("--model", MODEL, *QUICK, "--goal", "latency", "--min-tokens-per-second", "1000000")
    done = tune(environ, *arguments, "--write", str(path), "--quiet")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    for words in ("settings", "tokens/s, latency", "llama-server's defaults", "trials, "):
        assert words in done.stdout
    assert "no model gives a stream 1,000,000 tokens/s; the fastest" in done.stdout
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "there is no model to tune for: give --model FILE"),
        (("--model", "/no/such.gguf"), "/no/such.gguf"),
        (("--model", "a", "--model", "b", "--write", "x.toml"), "--write with several models needs --min-tokens-per"),
        (("--model", MODEL, "--html", "/no/such/dir/a.html"), "the directory /no/such/dir does not exist"),
        (("--model", MODEL, "--write", "/no/such/dir/a.toml"), "the directory /no/such/dir does not exist"),
        (("--model", MODEL, "--budget", "0"), "budget = 0"),
    ],
)
def test_wrong_input_is_one_clear_message(environ: dict[str, str], arguments: tuple[str, ...], says: str) -> None:
    done = tune(environ, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
