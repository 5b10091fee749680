"""`llamastream status`, `restart`, `drain`, `undrain`, `logs`: commands to a fleet that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from commandline import COMMAND, ROOT, run
from llamastream.client import StreamingClient
from serving import Serving, busy
from terminal import Chat, terminal_environ


def states(pair: Serving) -> dict[str, str]:
    return {report["id"]: report["state"] for report in pair.status()["instances"]}


def test_status_shows_every_instance(pair: Serving) -> None:
    done = pair.command("status")
    assert done.returncode == 0
    head, titles, first, second = done.stdout.splitlines()
    assert head.startswith(pair.ready()["name"])
    assert "2 of 2 ready" in head
    assert titles.split()[:4] == ["instance", "state", "url", "pid"]
    for line, instance in zip((first, second), pair.ready()["instances"], strict=True):
        assert line.split()[:3] == [instance["id"], "ready", instance["url"]]


def test_status_as_json_has_the_figures_of_each_instance(pair: Serving) -> None:
    found = pair.status()
    assert (found["pid"], found["phase"]) == (pair.process.pid, "running")
    wanted = {"id", "url", "pid", "state", "reason", "slots", "in_flight", "restarts", "rss_bytes", "tokens_per_second"}
    for report in found["instances"]:
        assert wanted <= set(report)
        assert psutil.pid_exists(report["pid"])
        assert report["slots"] == 4


def test_status_shows_requests_that_run_and_their_speed(pair: Serving) -> None:
    url = pair.ready()["instances"][0]["url"]
    with busy(url):
        found = pair.wait_status(lambda status: status["instances"][0]["tokens_per_second"] > 0)
        assert found["instances"][0]["in_flight"] == 1


def test_status_of_a_fleet_that_is_not_all_ready_exits_with_3(pair: Serving) -> None:
    assert pair.command("drain", "demo-1").returncode == 0
    assert pair.command("status").returncode == 3
    assert pair.command("status", "--any", "--quiet").returncode == 0
    assert states(pair) == {"demo-0": "ready", "demo-1": "draining"}
    assert pair.command("undrain", "demo-1").returncode == 0
    assert pair.command("status", "--quiet").returncode == 0


def test_drain_waits_for_the_requests_that_run(pair: Serving) -> None:
    url = pair.ready()["instances"][0]["url"]
    with busy(url):
        drain = subprocess.Popen([*COMMAND, "drain", "demo-0"], env=pair.environ, stdout=subprocess.PIPE, cwd=ROOT)
        pair.wait_status(lambda status: status["instances"][0]["state"] == "draining")
        assert drain.poll() is None
    out, _ = drain.communicate(timeout=30)
    assert (drain.returncode, out) == (0, b"drained: demo-0\n")
    assert pair.command("undrain", "demo-0").returncode == 0


def test_restart_shows_what_happens_and_ends_with_another_process(pair: Serving) -> None:
    before = pair.status()["instances"]
    done = pair.command("restart", "demo-0", "--json")
    assert done.returncode == 0
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["after"] for event in told[:-1]] == ["draining", "restarting", "starting", "loading", "ready"]
    assert told[-1] == {"event": "done", "message": "restarted: demo-0"}
    after = pair.status()["instances"]
    assert after[0]["pid"] != before[0]["pid"]
    assert after[0]["url"] == before[0]["url"]
    assert after[1]["pid"] == before[1]["pid"]


def test_a_rolling_restart_replaces_one_after_the_other(pair: Serving) -> None:
    before = len(pair.events)
    assert pair.command("restart", "--rolling").returncode == 0
    pair.expect("state", before, instance="demo-1", after="ready")
    pair.expect("state", before, instance="demo-0", after="ready")
    told = [(event["instance"], event["after"]) for event in pair.events[before:] if event["event"] == "state"]
    away = {"demo-0": False, "demo-1": False}
    for instance, state in told:
        away[instance] = state != "ready"
        assert not all(away.values()), told


def test_a_restart_that_is_not_waited_for_comes_back_at_once(pair: Serving) -> None:
    before = len(pair.events)
    done = pair.command("restart", "demo-1", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "restart was asked for: demo-1\n")
    pair.expect("state", before, instance="demo-1", after="ready")


def test_ctrl_c_leaves_what_was_asked_for_running(pair: Serving) -> None:
    before = len(pair.events)
    url = pair.ready()["instances"][0]["url"]
    with busy(url):
        restart = subprocess.Popen([*COMMAND, "restart", "demo-0"], env=pair.environ, stderr=subprocess.PIPE, cwd=ROOT)
        pair.expect("state", before, instance="demo-0", after="draining")
        assert restart.stderr is not None
        said = restart.stderr.readline()  # it listens
        restart.send_signal(signal.SIGINT)
        said += restart.communicate(timeout=30)[1]
    assert restart.returncode == 130
    assert b"what was asked for goes on" in said
    pair.expect("state", before, instance="demo-0", after="ready")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["restart"], "say which instances, or --rolling"),
        (["restart", "demo-0", "--rolling"], "say which instances, or --rolling"),
        (["restart", "demo-9"], "there is no instance 'demo-9'; there are: demo-0, demo-1"),
        (["drain", "demo-9"], "there is no instance 'demo-9'"),
        (["logs", "demo-9"], "there is no instance 'demo-9'"),
        (["status", "--name", "other"], "no fleet with the name 'other' runs; there are: serve-"),
        (["status", "--name", "../b"], "no fleet with the name '../b' runs"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(pair: Serving, arguments: list[str], says: str) -> None:
    done = pair.command(*arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_settings_file_is_no_hindrance(pair: Serving, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[fleet\n")
    environ = {**pair.environ, "LLAMASTREAM_CONFIG": str(tmp_path / "broken.toml")}
    assert run(environ, "status", "-q").returncode == 0
    assert run({**environ, "LLAMASTREAM_FLEET_NAME": "other"}, "status", "-q").returncode == 1


@pytest.mark.parametrize("command", ["status", "logs", "reload", "stop"])
def test_without_a_fleet_a_command_says_how_to_start_one(environ: dict[str, str], command: str) -> None:
    done = run(environ, command)
    assert done.returncode == 1
    assert "no fleet runs: `llamastream serve` starts one" in done.stderr


def test_logs_are_merged_by_time(pair: Serving) -> None:
    done = pair.command("logs", "-n", "1000", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)
    assert {record["instance"] for record in records} >= {"demo-0", "demo-1"}
    assert {"server_log", "state"} <= {record["event"] for record in records}


def test_logs_of_one_instance_and_level(pair: Serving) -> None:
    done = pair.command("logs", "demo-1", "--level", "warning", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["instance"] for record in records} == {"demo-1"}
    assert {record["level"] for record in records} <= {"warning", "error"}
    assert len(pair.command("logs", "-n", "3").stdout.splitlines()) == 3


def test_logs_are_followed_until_ctrl_c(pair: Serving) -> None:
    command = [*COMMAND, "logs", "demo-0", "-f", "-n", "1"]
    follow = subprocess.Popen(command, env=pair.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert follow.stdout is not None
    assert follow.stdout.readline()
    StreamingClient(pair.ready()["instances"][0]["url"]).stream_completion("a", max_tokens=1).result()
    assert any(b"processing task" in line for line in iter(follow.stdout.readline, b""))
    follow.send_signal(signal.SIGINT)
    _, stderr = follow.communicate(timeout=30)
    assert (follow.returncode, stderr) == (0, b"")


def test_status_is_watched_in_a_terminal_until_q(pair: Serving, tmp_path: Path) -> None:
    environ = terminal_environ(tmp_path) | {"XDG_RUNTIME_DIR": pair.environ["XDG_RUNTIME_DIR"]}
    with Chat("--watch", environ=environ, command=[*COMMAND, "status"]) as terminal:
        terminal.expect("2 of 2 ready")
        terminal.expect("q ends this view")
        terminal.expect("2 of 2 ready")  # drawn again
        terminal.type("q")
        assert terminal.end() == 0
        assert terminal.raw.endswith(b"\x1b[?25h\x1b[?1049l")  # the cursor is back, and the screen of before


@pytest.mark.parametrize("command", ["status --watch", "status", "logs -f"])
def test_without_a_standard_output_a_view_ends_at_once(pair: Serving, command: str) -> None:
    words = [*COMMAND, *command.split()]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words], env=pair.environ, stderr=subprocess.PIPE, timeout=30, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (
        1,
        b"llamastream: standard output is closed: there is nothing to write to\n",
    )


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_shows_all_that_matters(pair: Serving, tmp_path: Path, width: int) -> None:
    environ = terminal_environ(tmp_path) | {"XDG_RUNTIME_DIR": pair.environ["XDG_RUNTIME_DIR"]}
    with Chat(environ=environ, command=[*COMMAND, "status"], size=(40, width)) as terminal:
        assert terminal.end() == 0
        lines = terminal._shown().splitlines()
    assert max(map(len, lines)) <= width
    title = next(number for number, line in enumerate(lines) if line.split()[:2] == ["instance", "state"])
    assert lines[title].split() == ["instance", "state", "slots", "tokens/s"]
    for line, instance in zip(lines[title + 1 :], pair.ready()["instances"], strict=False):
        assert line.split()[:3] == [instance["id"], "ready", "0/4"]
        assert f"{instance['id']}: {instance['url']}" in "\n".join(lines)


def test_the_status_of_a_stopped_supervisor_is_not_waited_for(pair: Serving) -> None:
    os.kill(pair.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = pair.command("status", "--timeout", "0.5")
        assert time.monotonic() - began < 10
    finally:
        os.kill(pair.process.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert "has said nothing for 0.5 s: its supervisor hangs, or is stopped" in done.stderr


def test_status_is_watched_in_a_pipe_as_lines(pair: Serving) -> None:
    command = [*COMMAND, "status", "--watch", "--json"]
    watch = subprocess.Popen(command, env=pair.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert watch.stdout is not None
    for _ in range(2):
        assert json.loads(watch.stdout.readline())["phase"] == "running"
    watch.send_signal(signal.SIGINT)
    _, stderr = watch.communicate(timeout=30)
    assert (watch.returncode, stderr) == (0, b"")


def test_the_shell_completes_the_names_of_instances(pair: Serving) -> None:
    asked = {"COMP_WORDS": "llamastream restart demo-", "COMP_CWORD": "2", "_LLAMASTREAM_COMPLETE": "complete_bash"}
    command = [
        COMMAND[0],
        "-c",
        "import sys; sys.argv = ['llamastream']; from llamastream.cli.main import main; main()",
    ]
    found = subprocess.check_output(command, env={**pair.environ, **asked}, text=True, cwd=ROOT)
    assert found.split() == ["demo-0", "demo-1"]


def test_an_instance_that_is_killed_comes_back_and_is_told_of(pair: Serving) -> None:
    before = len(pair.events)
    victim = pair.status()["instances"][1]["pid"]
    os.kill(victim, signal.SIGKILL)
    crashed = pair.expect("state", before, instance="demo-1", after="restarting")
    assert (crashed["level"], crashed["last_exit"]) == ("warning", -9)
    pair.expect("state", before, instance="demo-1", after="ready")
    assert pair.status()["instances"][1]["restarts"] >= 1


def test_the_program_of_the_documentation_talks_to_the_socket(pair: Serving) -> None:
    page = (ROOT / "docs/fleet.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (program,) = (block for block in blocks if "AF_UNIX" in block)
    names: dict[str, Any] = {}
    exec(program, names)
    status, done = names["ask"](pair.ready()["control"], {"do": "status"})
    assert [report["id"] for report in status["instances"]] == ["demo-0", "demo-1"]
    assert done == {"kind": "ok", "message": ""}
