"""`llamastream serve` and the start script: real processes, real signals, nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from commandline import COMMAND, ROOT, STORY, read_until, run
from llamastream.client import StreamingClient
from llamastream.engine import Engine
from llamastream.errors import LlamaStreamError
from ports import free_port


@pytest.fixture
def serving(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """`llamastream serve --json` on a free port, and what it said when it was ready."""
    command = [*COMMAND, "serve", "--json", "--port", "0", "--kind", "embedded"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        ready = next(e for e in map(json.loads, process.stdout) if e["event"] == "ready")
        yield process, ready
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_runs_until_a_signal(serving: tuple[subprocess.Popen[bytes], dict[str, Any]], number: int) -> None:
    process, ready = serving
    assert (ready["slots"], ready["n_ctx"], ready["model"]) == (4, 8192, "demo")
    assert StreamingClient(ready["url"]).chat([{"role": "user", "content": STORY.question}], max_tokens=3).text
    server = psutil.Process(ready["pid"])
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=15)
    assert process.returncode == 0
    assert json.loads(stdout.splitlines()[-1])["event"] == "stopped"
    assert stderr == b""
    server.wait(5)


def test_the_demo_model_is_served_where_the_settings_name_another(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[serve]\nmodel = "/no/such.gguf"\nalias = "mine"\n')
    settings = {**environ, "LLAMASTREAM_CONFIG": str(tmp_path / "config.toml")}
    command = [*COMMAND, "serve", "--demo", "--json", "--port", "0", "--kind", "embedded"]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        ready = next(e for e in map(json.loads, process.stdout) if e["event"] == "ready")
        assert ready["model"] == "demo"
        with StreamingClient(ready["url"], temperature=0) as client:
            assert client.chat([{"role": "user", "content": STORY.question}]).text == STORY.answer
    finally:
        process.terminate()
        process.communicate(timeout=15)


def test_a_server_that_dies_is_started_again_at_the_same_address(
    serving: tuple[subprocess.Popen[bytes], dict[str, Any]],
) -> None:
    process, ready = serving
    os.kill(ready["pid"], signal.SIGKILL)
    assert process.stdout is not None
    states = (event["after"] for event in map(json.loads, process.stdout) if event["event"] == "state")
    assert [next(states) for _ in range(4)] == ["restarting", "starting", "loading", "ready"]
    assert StreamingClient(ready["url"]).chat([{"role": "user", "content": STORY.question}], max_tokens=3).text
    process.terminate()
    process.communicate(timeout=15)
    assert process.returncode == 0


def test_serve_ends_with_the_reason_when_its_only_server_has_failed_for_good(environ: dict[str, str]) -> None:
    command = [*COMMAND, "serve", "--json", "--port", "0", "--kind", "embedded", "--crash-limit", "1"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    ready = next(e for e in map(json.loads, process.stdout) if e["event"] == "ready")
    os.kill(ready["pid"], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=15)
    assert process.returncode == 1
    assert b"every instance has failed for good: demo-0: it ended 1 times" in stderr
    assert json.loads(stdout.splitlines()[-1])["event"] == "failed"


def test_serve_on_a_unix_socket_with_a_key_from_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    key_file, path = tmp_path / "key", tmp_path / "s.sock"
    key_file.write_text("sesame-1234567890\n")
    arguments = ["serve", "--json", "--kind", "embedded", "--socket", str(path), "--api-key-file", str(key_file)]
    process = subprocess.Popen([*COMMAND, *arguments], env=environ, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        ready = next(e for e in map(json.loads, process.stdout) if e["event"] == "ready")
        assert ready["url"] == f"unix://{path}"
        for pid in (process.pid, ready["pid"]):
            assert "sesame" not in " ".join(psutil.Process(pid).cmdline())
        chat = ["chat", "--url", ready["url"], "--max-tokens", "3", "-q", "hi"]
        refused = run(environ, *chat)
        assert refused.returncode == 1
        assert "api_key" in refused.stderr
        assert run(environ, *chat, "--api-key-file", str(key_file)).returncode == 0
    finally:
        process.terminate()
        process.communicate(timeout=15)
    assert not path.exists()


def test_serve_ends_when_the_reader_of_its_log_leaves(environ: dict[str, str]) -> None:
    command = [*COMMAND, "serve", "--json", "--port", "0", "--kind", "embedded"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    ready = next(e for e in map(json.loads, process.stdout) if e["event"] == "ready")
    process.stdout.close()
    with contextlib.suppress(LlamaStreamError):  # it may end before it has answered
        StreamingClient(ready["url"]).chat([{"role": "user", "content": "hi"}], max_tokens=1)  # makes it log something
    assert process.wait(15) == 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_serve_on_a_port_that_is_taken(engine: Engine, environ: dict[str, str]) -> None:
    port = engine.url.rpartition(":")[2]
    done = run(environ, "serve", "--port", port, "--kind", "embedded")
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_terminal_leaves_no_process(environ: dict[str, str]) -> None:
    """The whole foreground group gets the signal, as from a keyboard; the engine must be stopped by us, not by it."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--kind", "embedded"],
        env=environ, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    screen = read_until(master, b"Ctrl-C stops", 30)
    assert re.search(rb"llamastream chat --url http://127\.0\.0\.1:\d+", screen), "the advice leads to this server"
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.write(master, b"\x03")
    screen += read_until(master, b"stopping", 10)
    assert process.wait(15) == 0
    os.close(master)
    assert b"Traceback" not in screen
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--port", "0", "--kind", "embedded"], ["chat", "--demo", "Tell me a story."]],
    ids=["serve", "chat"],
)
def test_sigterm_during_the_start_leaves_no_file(environ: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    environ = {**environ, "TMPDIR": str(directory)}

    def start(moment: float) -> float:
        """Seconds until a server process was there, or `moment`."""
        began = time.monotonic()
        process = subprocess.Popen(
            [*COMMAND, *arguments], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        )
        with process:
            while time.monotonic() - began < moment and len(psutil.Process(process.pid).children(recursive=True)) < 2:
                threading.Event().wait(0.002)  # the moment is what is varied here
            seconds = time.monotonic() - began
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            assert process.stdout is not None
            assert b"Traceback" not in process.stdout.read()
        psutil.wait_procs(family, timeout=10)
        return seconds

    whole = start(30)
    for step in range(10):
        start(whole * (0.6 + 0.05 * step))  # imports are most of the first half
        assert wait_empty(directory), f"at {step}"


def wait_empty(directory: Path) -> bool:
    """Whether a directory becomes empty; a guard that we did not see any more may still be at work."""
    deadline = time.monotonic() + 10
    while any(directory.iterdir()) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return not any(directory.iterdir())


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_the_engine_starts_with_standard_streams_closed(environ: dict[str, str], closed: tuple[int, ...]) -> None:
    code = (
        f"import os; [os.close(n) for n in {closed}]\n"
        "from llamastream import EngineOptions, launch\n"
        "with launch(EngineOptions(kind='embedded', start_timeout=20)) as engine:\n"
        "    os._exit(7 if engine.alive else 8)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, timeout=60, cwd=ROOT)
    assert done.returncode == 7, done.stderr


def start_script(environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(ROOT / "scripts" / "start_llama_optimized.sh"), *arguments],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
    )  # fmt: skip


def test_the_start_script_passes_variables_and_flags_on(environ: dict[str, str], tmp_path: Path) -> None:
    from llamastream.engine.demo import demo_model_path

    variables = {
        "MODEL": str(tmp_path / "missing.gguf"), "BACKUP_MODEL": str(demo_model_path()), "HOST": "127.0.0.1",
        "PORT": str(free_port()), "THREADS": "1", "PARALLEL": "2", "CTX_SIZE": "1024",
    }  # fmt: skip
    process = start_script({**environ, **variables}, "--json", "--kind", "embedded", "--alias", "mine")
    try:
        assert process.stdout is not None
        ready = next(e for e in map(json.loads, process.stdout) if e["event"] == "ready")
        assert ready["url"] == f"http://127.0.0.1:{variables['PORT']}"
        assert (ready["slots"], ready["n_ctx"], ready["model"]) == (2, 1024, "mine")
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "using BACKUP_MODEL=" in stderr


def test_the_start_script_explains_itself(environ: dict[str, str]) -> None:
    stdout, _ = start_script(environ, "--help").communicate(timeout=10)
    for name in ("MODEL", "BACKUP_MODEL", "HOST", "PORT", "THREADS", "PARALLEL", "CTX_SIZE"):
        assert name in stdout
