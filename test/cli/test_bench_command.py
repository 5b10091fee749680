"""`llamastream bench` as a command."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from chromium import SCROLLED, browser, looks_like
from commandline import COMMAND, ROOT, run
from llamastream.client import StreamingClient
from llamastream.engine import Engine
from terminal import Chat, terminal_environ

SHORT = ("--concurrency", "1,2", "--requests", "4", "--repeats", "4", "--output-tokens", "8", "--prompt-tokens", "16")


def bench(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(environ, "bench", *arguments, timeout=100)


def test_a_measurement_is_shown_written_kept_and_listed(
    environ: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    page, rows = tmp_path / "a.html", tmp_path / "a.csv"
    done = bench(environ, "--url", engine.url, *SHORT, "--html", str(page), "--csv", str(rows), "--save", "main")
    assert done.returncode == 0, done.stderr
    for words in ("1 at once", "2 at once", "first token p50", "tokens/s, total", "llamastream 0."):
        assert words in done.stdout
    assert "2 at once, repeat 3 of 4: 4 requests" in done.stderr
    assert page.read_text().count("<svg class") == 4
    with rows.open() as file:
        assert len(list(csv.DictReader(file))) == 32
    assert "kept as baseline main" in done.stderr
    listed = bench(environ, "--list")
    assert "main" in listed.stdout
    kept = Path(environ["HOME"]) / ".local/state/llamastream/baselines/main.json"
    assert json.loads(kept.read_text())["machine"]["host"] == ""
    assert os.uname().nodename not in kept.read_text().split('"')


def test_tables_are_whole_in_a_pipe_and_pages_on_a_screen_of_1000_pixels(
    environ: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    many = ",".join(str(number) for number in range(1, 10))
    page = tmp_path / "a.html"
    loads = ("--concurrency", many, "--requests", "3", "--output-tokens", "4", "--prompt-tokens", "8", "--repeats", "1")
    done = bench(environ, "--url", engine.url, *loads, "--save", "main", "--quiet")
    assert done.returncode == 0, done.stderr
    again = bench(environ, "--url", engine.url, *loads, "--compare", "main", "--quiet", "--html", str(page))
    assert again.returncode in (0, 1), again.stderr
    for text in (done.stdout, again.stdout):
        assert "…" not in text
    heads = [line for line in again.stdout.splitlines() if " at once" in line]
    assert any(all(f"{number} at once" in line for number in range(1, 10)) for line in heads)
    assert any("1 at once" in line and "time to first token" in line for line in heads)
    with browser(tmp_path / "profile") as shown:
        looks_like(shown, 1000, 1200, "light")
        shown.open(page.as_uri())
        assert shown.value(SCROLLED)[1:] == []  # the first has a column for each of the nine loads


def test_a_result_that_nobody_takes_is_told_of_and_kept(environ: dict[str, str], engine: Engine) -> None:
    words = (
        "--url",
        engine.url,
        "--concurrency",
        "1",
        "--requests",
        "1",
        "--repeats",
        "1",
        "--quiet",
        "--save",
        "main",
    )
    for more in ((), ("--json",)):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [*COMMAND, "bench", *words, *more], env=environ, stdout=writer, stderr=subprocess.PIPE, text=True,
                timeout=100, cwd=ROOT,
            )  # fmt: skip
        finally:
            os.close(writer)
        assert done.returncode == 1
        assert "kept as baseline main" in done.stderr
        assert done.stderr.endswith("whoever read standard output has left before it came\n")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("bench", "--url", "http://127.0.0.1:9"), ("tune", "--model", "x.gguf")])
def test_without_a_stdout_nothing_is_measured(environ: dict[str, str], command: tuple[str, ...]) -> None:
    line = f"{shlex.join([*COMMAND, *command])} >&-"
    done = subprocess.run(["sh", "-c", line], env=environ, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        1, "llamastream: standard output is closed: there is nothing to write to\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--list", "--threshold", "-1"), "-1 is not allowed; allowed: a number from 0 to 10"),
        (("--list", "--threshold", "nan"), "nan is not allowed; allowed: a number from 0 to 10"),
        (("--list", "--instances", "300"), "300 is not allowed; allowed: a number from 1 to 256"),
        (("--instances", "0"), "0 is not allowed; allowed: a number from 1 to 256"),
    ],
)
def test_a_number_out_of_its_range_is_refused_whatever_is_asked(
    environ: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    done = bench(environ, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot be read"), ("", "has no prompts"), ('"fine"\n{"role": 1}\n', "line 2")],
)
def test_a_file_of_prompts_is_judged_before_a_server_is_started(
    environ: dict[str, str], tmp_path: Path, text: str | None, says: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    if text is not None:
        prompts.write_text(text)
    done = bench(environ, "--demo", "--binary", "/no/such/llama-server", "--prompts", str(prompts))
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "/no/such/llama-server" not in done.stderr


def test_json_is_the_whole_report(environ: dict[str, str], engine: Engine) -> None:
    done = bench(environ, "--url", engine.url, *SHORT, "--json", "--quiet", "--host-name")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["machine"]["host"] == os.uname().nodename
    assert found["server"]["slots"] == 4
    first = found["loads"][0]
    assert (first["requests"], first["failed"]) == (16, 0)
    estimate = first["percentiles"]["time_to_first_token"]["p50"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert found["comparison"] is None


def made_slower(path: Path, factor: float) -> None:
    """Change a baseline so that the next measurement is slower than it by that much."""
    report: dict[str, Any] = json.loads(path.read_text())
    for load in report["loads"]:
        for name, repeats in load["per_repeat"].items():
            load["per_repeat"][name] = [[value / factor for value in repeat] for repeat in repeats]
    path.write_text(json.dumps(report))


def test_a_regression_is_told_by_the_exit_code(environ: dict[str, str], engine: Engine) -> None:
    assert bench(environ, "--url", engine.url, *SHORT, "--save", "main").returncode == 0
    path = Path(environ["HOME"]) / ".local/state/llamastream/baselines/main.json"
    made_slower(path, 50)
    done = bench(environ, "--url", engine.url, *SHORT, "--compare", "main")
    assert done.returncode == 1, done.stdout
    assert "slower: " in done.stdout
    made_slower(path, 1 / 2500)
    done = bench(environ, "--url", engine.url, *SHORT, "--compare", "main", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["comparison"]["regressions"] == 0
    done = bench(environ, "--url", engine.url, *SHORT, "--turns", "2", "--compare", "main")
    assert done.returncode == 1
    assert "turns was 1 and is 2" in done.stderr


def test_a_server_is_measured_in_turn_with_another_and_judged_by_it(environ: dict[str, str], engine: Engine) -> None:
    # both are the same, so nothing may be far apart; what is slower by chance is let pass
    done = bench(environ, "--url", engine.url, "--versus", engine.url, *SHORT, "--json", "--threshold", "10")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["comparison"]
    assert {finding["load"] for finding in found["findings"]} == {"1 at once", "2 at once"}
    assert all(0.05 < finding["now"] / finding["before"] < 20 for finding in found["findings"])


def test_a_server_of_its_own_is_started_and_ended(environ: dict[str, str]) -> None:
    done = bench(environ, "--demo", "--kind", "embedded", "--parallel", "2", "--ctx-size", "512", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    server = json.loads(done.stdout)["server"]
    assert (server["slots"], server["settings"]["ctx_size"], server["own"]) == (2, 512, True)
    assert server["build"].startswith("xllamacpp 20")
    url = done.stderr.split(" on ")[1].split()[0]
    port = int(url.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nobody listens there any more


def test_ctrl_c_shows_what_was_measured_and_frees_the_slots(
    environ: dict[str, str], engine: Engine, slots_free: Any
) -> None:
    command = [*COMMAND, "bench", "--url", engine.url, "--concurrency", "2", "--output-tokens", "100000"]
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        with StreamingClient(engine.url) as client:
            while sum(slot["is_processing"] for slot in client.slots()) < 2:
                assert process.poll() is None  # each look is a request: there is nothing else to wait for
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert "broken off" in stdout
    assert "Traceback" not in stderr
    slots_free()


def test_on_a_terminal_a_bar_shows_how_far_it_is_and_ctrl_c_ends_it(engine: Engine, tmp_path: Path) -> None:
    arguments = ("--url", engine.url, "--concurrency", "1,2", "--seconds", "0.2", "--repeats", "500")
    environ = terminal_environ(tmp_path)
    with Chat(*arguments, environ=environ, command=[*COMMAND, "bench"]) as running:
        for part in ("2 at once, repeat ", " of 500: ", " done, ", " running", "/1000 "):
            running.expect(part, 60)  # of what comes between two looks, nothing is shown
        running.type("\x03")
        running.expect("broken off; this is what was measured so far")
        running.expect("tokens/s, total")
        assert running.end() == 130


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--demo", "--url", "http://x"), "either --url or --demo"),
        (("--instances", "2", "--url", "http://x"), "either --url or --demo, --model or --instances"),
        (("--demo", "--model", "x.gguf"), "either --demo or --model"),
        (("--versus", "http://x", "--compare", "main"), "either --versus or --compare"),
        (("--versus", "x"), "base_url 'x' from --versus has no scheme"),
        (("--concurrency", "0"), "concurrency = '0' from --concurrency is not allowed"),
        (("--prompts", "/no/such.jsonl"), "/no/such.jsonl"),
        (("--save", "../x"), "the baseline's name '../x' is not allowed"),
        (("--compare", "none"), "there is no baseline 'none'"),
        (("--html", "/no/such/dir/a.html"), "/no/such/dir"),
        (("--url", "http://127.0.0.1:9", "--repeats", "1"), "refused"),
    ],
)
def test_wrong_input_is_one_clear_message(environ: dict[str, str], arguments: tuple[str, ...], says: str) -> None:
    done = bench({**environ, "LLAMASTREAM_MAX_RETRIES": "0"}, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_fleet_of_its_own_is_measured_through_the_gateway_and_ended(environ: dict[str, str], tmp_path: Path) -> None:
    page, rows = tmp_path / "a.html", tmp_path / "a.csv"
    fleet = ("--instances", "2", "--demo", "--kind", "embedded", "--parallel", "2", "--ctx-size", "512")
    done = bench(
        {**environ, "LLAMASTREAM_ALERTS_COMMAND": "false", "LLAMASTREAM_SERVE_MODEL": "/no/such.gguf"},
        *fleet, "--concurrency", "4", *SHORT[2:], "--json", "--html", str(page), "--csv", str(rows), "--save", "fleet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    server = report["server"]
    assert (server["slots"], server["own"], server["model"]) == (4, True, "demo")
    assert server["settings"] == {"instances": 2, "parallel": 2, "ctx_size": 512, "gpu": False}
    assert server["where"] == "a fleet of its own behind the gateway, 2 instances, embedded"
    assert server["build"].startswith("xllamacpp 20")
    (load,) = report["loads"]
    assert (load["requests"], load["failed"]) == (16, 0)
    assert not [note for note in report["notes"] if "slots" in note]  # four at once are what four slots can take
    assert "2 instances" in page.read_text()
    with rows.open() as file:
        assert len(list(csv.DictReader(file))) == 16
    url = done.stderr.split(" on ")[1].split()[0]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0  # nobody listens there any more
    assert not list(Path(environ["XDG_RUNTIME_DIR"]).rglob("*.sock"))


def test_a_fleet_that_does_not_start_says_why(environ: dict[str, str]) -> None:
    done = bench(environ, "--instances", "2", "--model", "/no/such.gguf", *SHORT)
    assert done.returncode == 1
    assert "the fleet to measure did not start: " in done.stderr
    assert "/no/such.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fleet_ends_with_the_measurement_however_that_ends(environ: dict[str, str]) -> None:
    command = [*COMMAND, "bench", "--instances", "2", "--demo", "--kind", "embedded", "--output-tokens", "100000"]
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stderr is not None
        assert "measuring demo on http://127.0.0.1:" in process.stderr.readline()
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
    assert len(family) >= 4  # `serve`, two servers, and guards
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
