"""`llamastream serve` with several instances: its end, its configuration, its logs, and its own death."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from commandline import COMMAND, LONG, ROOT, read_until, run
from llamastream.client import StreamingClient
from llamastream.engine.demo import demo_model_path
from polling import wait_for
from ports import free_ports
from serving import Serving, busy, fleet_of_two, serving

QUESTION = [{"role": "user", "content": LONG.question}]


def config(environ: dict[str, str], text: str) -> dict[str, str]:
    """The environment with a settings file."""
    path = Path(environ["HOME"]) / "settings.toml"
    path.write_text(text)
    return {**environ, "LLAMASTREAM_CONFIG": str(path)}


def change(environ: dict[str, str], text: str) -> None:
    Path(environ["LLAMASTREAM_CONFIG"]).write_text(text)


def places(environ: dict[str, str]) -> list[Path]:
    """The private directories of fleets, and those of their slots."""
    homes = (Path(environ["XDG_RUNTIME_DIR"]) / "llamastream", Path(environ["HOME"]) / ".cache/llamastream/slots")
    return [path for home in homes if home.is_dir() for path in home.iterdir()]


# -- the start --------------------------------------------------------------------------------------------------------


def test_the_ready_event_has_every_instance(environ: dict[str, str]) -> None:
    with fleet_of_two(environ, "--no-gateway") as fleet:
        ready = fleet.ready()
        port = int(ready["url"].rpartition(":")[2])
        assert [each["url"] for each in ready["instances"]] == [f"http://127.0.0.1:{port + n}" for n in (0, 1)]
        assert [each["id"] for each in ready["instances"]] == ["demo-0", "demo-1"]
        assert (ready["name"], ready["pid"]) == (f"serve-{port}", ready["instances"][0]["pid"])
        assert Path(ready["control"]).is_socket()


def test_several_models_from_the_settings_file(environ: dict[str, str]) -> None:
    port = free_ports(3)
    environ = config(
        environ,
        f"[serve]\nctx_size = 1024\n[models.a]\ninstances = 2\nport = {port}\n"
        f'[models.b]\nmodel = "{demo_model_path()}"\nparallel = 2\nport = {port + 2}\n',
    )
    with serving(environ, "--no-gateway") as fleet:
        instances = fleet.ready()["instances"]
        assert [(each["id"], each["model"], each["slots"], each["n_ctx"]) for each in instances] == [
            ("a-0", "a", 4, 1024), ("a-1", "a", 4, 1024), ("b-0", "b", 2, 1024),
        ]  # fmt: skip
        for each in instances:
            assert StreamingClient(each["url"]).chat(QUESTION, max_tokens=2).text


def test_a_second_fleet_with_the_same_name_is_refused(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet:
        done = run(environ, "serve", "--port", "0", "--name", fleet.ready()["name"])
        assert done.returncode == 1
        assert "runs already" in done.stderr
        assert fleet.command("status", "-q").returncode == 0


def test_one_server_that_cannot_start_ends_the_start_of_all(environ: dict[str, str]) -> None:
    port = free_ports(2) + 1
    with socket.create_server(("127.0.0.1", port)):
        done = run(environ, "serve", "--no-gateway", "--instances", "2", "--port", str(port - 1))
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert places(environ) == []


# -- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_lets_a_stream_finish(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet:
        client = StreamingClient(fleet.ready()["instances"][1]["url"], recovery="off")
        stream = client.stream_chat(QUESTION, temperature=0)
        pieces = iter(stream)
        text = next(pieces)
        fleet.process.terminate()
        fleet.expect("state", instance="demo-1", after="draining")
        text += "".join(pieces)
        assert text == LONG.answer
        assert fleet.end() == 0
    assert places(environ) == []


def test_a_second_signal_cuts_what_runs(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet:
        with busy(fleet.ready()["url"]):
            fleet.process.send_signal(signal.SIGINT)
            fleet.expect("stopping")
            fleet.process.send_signal(signal.SIGINT)
            assert fleet.process.wait(15) == 0
        assert fleet.end() == 0
    assert places(environ) == []


def test_stop_waits_for_the_end_and_leaves_room_for_the_next(environ: dict[str, str]) -> None:
    for _ in range(2):
        with fleet_of_two(environ, "--name", "mine") as fleet:
            done = fleet.command("stop")
            assert (done.returncode, done.stdout) == (0, "stopped\n")
            assert fleet.end() == 0


def test_stop_now_cuts_what_runs(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet, busy(fleet.ready()["url"]):
        assert fleet.command("stop", "--now").returncode == 0
        assert fleet.end() == 0


def test_a_terminal_that_is_closed_ends_it(environ: dict[str, str]) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--kind", "embedded", "--threads", "1"],
        env=environ, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    try:
        read_until(master, b"Ctrl-C stops", 30)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.close(master)
    assert process.wait(30) == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert places(environ) == []


def test_commands_that_stall_hinder_neither_others_nor_the_end(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet, contextlib.ExitStack() as stack:
        for number in range(20):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(fleet.ready()["control"])
            connection.sendall(b'{"do":"logs","follow":true,"lines":1000}\n' if number % 2 else b"\xff" * number)
        assert fleet.command("status", "-q").returncode == 0
        assert fleet.command("restart", "demo-0").returncode == 0
        began = time.monotonic()
        fleet.process.terminate()
        assert fleet.end() == 0
        assert time.monotonic() - began < 10


# -- the configuration, anew ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reload", "SIGHUP"])
def test_a_changed_file_is_applied_by_rolling_restart(environ: dict[str, str], how: str) -> None:
    port = free_ports(3)
    environ = config(environ, "[fleet]\ninstances = 2\n[serve]\nparallel = 2\n")
    with serving(environ, "--no-gateway", "--port", str(port), "--look-interval", "0.2", "--no-warm") as fleet:
        fleet.ready()
        change(environ, "[fleet]\ninstances = 3\nlook_interval = 9.0\nmin_ready = 2\n[serve]\nparallel = 3\n")
        if how == "reload":
            done = fleet.command("reload")
            assert (done.returncode, done.stdout.count("demo-")) == (0, 3), done.stderr
            assert "for other values of min_ready ([fleet]) start `serve` again" in done.stdout
        else:
            fleet.process.send_signal(signal.SIGHUP)
            fleet.expect("reload")
        found = fleet.wait_status(lambda now: [each["slots"] for each in now["instances"]] == [3, 3, 3])
        assert [each["url"] for each in found["instances"]] == [f"http://127.0.0.1:{port + n}" for n in range(3)]
        change(environ, "[fleet]\ninstances = 1\n[serve]\nparallel = 3\n")
        assert fleet.command("reload").returncode == 0
        assert [each["id"] for each in fleet.status()["instances"]] == ["demo-0"]
        assert fleet.command("reload").stdout.startswith("nothing has changed")


def test_a_file_with_a_mistake_changes_nothing(environ: dict[str, str]) -> None:
    environ = config(environ, "[serve]\nparallel = 2\n")
    with fleet_of_two(environ) as fleet:
        before = fleet.status()
        change(environ, "[serve]\nparallel = 'many'\n")
        done = fleet.command("reload")
        assert done.returncode == 1
        assert "parallel = 'many' from" in done.stderr
        fleet.process.send_signal(signal.SIGHUP)
        failed = fleet.expect("reload_failed", level="error")
        assert "the configuration stays as it was: parallel = 'many'" in failed["message"]
        assert [each["pid"] for each in fleet.status()["instances"]] == [each["pid"] for each in before["instances"]]


# -- instances that fail ----------------------------------------------------------------------------------------------


def test_one_that_fails_for_good_is_told_of_and_can_be_started_again(environ: dict[str, str]) -> None:
    with fleet_of_two(environ, "--crash-limit", "1") as fleet:
        os.kill(fleet.status()["instances"][1]["pid"], signal.SIGKILL)
        told = fleet.expect("failed", level="error")
        assert told["message"].endswith(
            "1 of 2 instances have failed for good; to try again: llamastream restart demo-1"
        )
        assert fleet.command("status").returncode == 3
        assert fleet.command("restart", "demo-1").returncode == 0
        assert fleet.command("status").returncode == 0


# -- its own death ----------------------------------------------------------------------------------------------------


def test_a_killed_supervisor_leaves_no_server_and_the_next_starts_at_once(environ: dict[str, str]) -> None:
    port = str(free_ports(2))
    arguments = ("--instances", "2", "--port", port)
    with serving(environ, *arguments, start_new_session=True) as first:
        first.ready()
        family = psutil.Process(first.process.pid).children(recursive=True)
        assert len(places(environ)) == 2
        first.process.kill()
        assert first.end() == -9
        assert psutil.wait_procs(family, timeout=5)[1] == []
    left = places(environ)
    assert len(left) == 2
    with serving(environ, *arguments) as second:
        assert second.ready()["name"] == f"serve-{port}"
        assert second.command("status").returncode == 0
        assert [path for path in left if path.exists()] == [path for path in left if path.name == f"serve-{port}"]
        second.process.terminate()
        assert second.end() == 0
    assert places(environ) == []


@pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="this user may not make a PID namespace",
)
def test_as_process_1_it_takes_signals_and_leaves_no_zombies(environ: dict[str, str]) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *COMMAND, "serve", "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--kind", "embedded", "--threads", "1"],
        env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert next(event for event in map(json.loads, process.stdout) if event["event"] == "ready")
        (serve,) = psutil.Process(process.pid).children()
        orphan = "import os\nif os.fork() == 0: os._exit(0)\nos._exit(0)"
        subprocess.run(["nsenter", "--target", str(serve.pid), "--pid", sys.executable, "-c", orphan], check=True)
        wait_for_no_zombie(serve)
        serve.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_no_zombie(parent: psutil.Process) -> None:
    for _ in range(6):  # it looks every few seconds
        with contextlib.suppress(AssertionError):
            wait_for(lambda: all(child.status() != psutil.STATUS_ZOMBIE for child in parent.children()))
            return
    raise AssertionError(parent.children())


# -- logs -------------------------------------------------------------------------------------------------------------


def log_of(environ: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """Start it, stop it when it is ready, and return its log."""
    command = [*COMMAND, "serve", "--port", "0", "--kind", "embedded", "--threads", "1", *arguments]
    process = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    records = []
    try:
        for line in process.stderr:
            records.append(json.loads(line))
            if records[-1]["event"] == "ready":
                process.terminate()
    finally:
        if process.poll() is None:
            process.kill()
        stdout, _ = process.communicate()
    assert (process.returncode, stdout) == (0, b"")
    return records


def test_the_log_is_one_object_a_line(environ: dict[str, str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame-1234567890\n")
    records = log_of(environ, "--instances", "2", "--api-key-file", str(key))
    assert all(list(record)[:5] == ["time", "level", "instance", "event", "message"] for record in records)
    assert all(record["time"].endswith("Z") for record in records)
    events = [record["event"] for record in records]
    assert events[-1] == "stopped"
    assert {"state", "ready", "stopping"} <= set(events)
    assert {record["instance"] for record in records} == {"", "demo-0", "demo-1"}
    assert all(record["level"] != "info" for record in records if record["event"] == "server_log")
    assert "sesame" not in json.dumps(records)


def test_verbose_folds_in_all_that_the_servers_say(environ: dict[str, str]) -> None:
    records = log_of(environ, "--verbose")
    said = [record["message"] for record in records if record["event"] == "server_log" and record["level"] == "info"]
    assert any("model loaded" in message for message in said)


def test_an_error_at_the_start_is_a_record_too(environ: dict[str, str]) -> None:
    done = run(environ, "serve", "--model", "/no/such\udcff.gguf", "--log-format", "json")
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["level"]) == ("failed", "error")
    assert "/no/such\\udcff.gguf" in last["message"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_does_not_stop_the_supervision(environ: dict[str, str], stream: str) -> None:
    read, write = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    arguments = ["--json"] if stream == "stdout" else ["--verbose", "--log-format", "json"]
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", str(free_ports(1)), "--kind", "embedded", "--threads", "1", *arguments],
        env=environ, cwd=ROOT,
        stdout=write if stream == "stdout" else subprocess.DEVNULL,
        stderr=write if stream == "stderr" else subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write)
    try:
        wait_for(lambda: run(environ, "status", "-q").returncode == 0)
        pid = json.loads(run(environ, "status", "--json").stdout)["instances"][0]["pid"]
        os.kill(pid, signal.SIGKILL)

        def replaced() -> bool:
            report = json.loads(run(environ, "status", "--json").stdout)["instances"][0]
            return bool(report["state"] == "ready" and report["pid"] != pid)

        wait_for(replaced)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(read)


# -- systemd ----------------------------------------------------------------------------------------------------------


def test_systemd_hears_of_start_life_reload_and_end(environ: dict[str, str]) -> None:
    path = Path(environ["XDG_RUNTIME_DIR"]) / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(60)

        def hear(key: str) -> dict[str, str]:
            while key not in (heard := dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())):
                pass
            return heard

        notify = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        with fleet_of_two({**environ, **notify}) as fleet:
            assert hear("READY")["STATUS"] == "2 of 2 instances ready"
            for _ in range(3):
                assert hear("WATCHDOG") == {"WATCHDOG": "1"}
            assert all("NOTIFY_SOCKET" not in child.environ() for child in servers(fleet))
            fleet.process.send_signal(signal.SIGHUP)
            assert hear("RELOADING")["MONOTONIC_USEC"].isdecimal()
            hear("READY")
            fleet.process.terminate()
            hear("STOPPING")
            assert fleet.end() == 0


def servers(fleet: Serving) -> list[psutil.Process]:
    return psutil.Process(fleet.process.pid).children(recursive=True)
