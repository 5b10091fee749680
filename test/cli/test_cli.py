"""The command line as a user meets it: real processes, real signals, a real terminal where one matters."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamastream.client import StreamingClient
from llamastream.engine import Engine
from llamastream.engine.demo import demo_questions
from llamastream.errors import LlamaStreamError
from llamastream.testing import Script, ServerDouble, chunked, sse_events

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "llamastream"]
QUESTIONS = {question.question: question for question in demo_questions()}
STORY = QUESTIONS["Tell me a story."]
LONG = QUESTIONS["Tell me a long story."]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without settings and with an empty HOME."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA", "XDG_", "PYTHONUNBUFFERED"))}
    return {**kept, "HOME": str(tmp_path), "COLUMNS": "200", "NO_COLOR": "1"}


def run(
    environ: dict[str, str], *arguments: str, stdin: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=environ, input=stdin, capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# -- chat ---------------------------------------------------------------------------------------------------


def test_chat_puts_the_answer_on_stdout_and_the_rest_on_stderr(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "chat", "--url", engine.url, "--temperature", "0", STORY.question)
    assert (done.returncode, done.stdout) == (0, STORY.answer + "\n")
    assert re.fullmatch(r"first token [\d.,]+ ms · [\d,]+ tokens/s · .*\d+ tokens · .*stop\n", done.stderr)


def test_chat_in_a_pipe_reads_standard_input(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "chat", "--url", engine.url, "--temperature", "0", "-q", "-", stdin=STORY.question + "\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, STORY.answer + "\n", "")


def test_chat_as_json_gives_one_object_per_event(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "chat", "--url", engine.url, "--temperature", "0", "--json", STORY.question)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(event["text"] for event in events if event["type"] == "text") == STORY.answer
    assert (events[0]["type"], events[-1]["type"], events[-1]["finish_reason"]) == ("start", "end", "stop")
    assert events[-1]["stats"]["time_to_first_token"] > 0
    assert done.stderr == ""


def test_chat_takes_a_system_prompt_and_limits(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "chat", "--url", engine.url, "-s", "You are brief.", "--max-tokens", "3", STORY.question)
    assert done.returncode == 0
    assert " 3 tokens · " in done.stderr
    assert "length" in done.stderr


def test_chat_starts_the_demo_engine_where_no_server_is_and_leaves_nothing(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)):  # something to count: our own children before and after
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        done = run(environ, "chat", "--demo", "--temperature", "0", STORY.question)
        after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert (done.returncode, done.stdout) == (0, STORY.answer + "\n")
    assert "demo model on http://127.0.0.1:" in done.stderr
    assert after <= before


def test_chat_with_an_unreachable_url_says_what_to_do(environ: dict[str, str]) -> None:
    done = run(environ, "chat", "--url", f"http://127.0.0.1:{free_port()}", "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert "llamastream serve" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["chat"], "", 1, "standard input is empty"),
        (["chat", "-"], "", 1, "standard input is empty"),
        (["chat", "--url", "localhost:8080", "hi"], None, 1, "did you mean http://localhost:8080"),
        (["chat", "--temperature", "nan", "hi"], None, 1, "temperature = nan from --temperature is not allowed"),
        (["chat", "--max-tokens", "-3", "hi"], None, 1, "allowed: a whole number from 1"),
        (["chat", "--max-tokens", "many", "hi"], None, 2, "Invalid value for '--max-tokens'"),
        (["serve", "--port", "99999"], None, 1, "allowed: a whole number from 0 up to 65535"),
        (["serve", "--model", "/no/such.gguf"], None, 1, "/no/such.gguf"),
        (["serve", "--model", str(Path(__file__))], None, 1, "GGUF"),
        (["serve", "--port", "0", "--no-such-flag"], None, 1, "--no-such-flag"),
        (["serve", "model.gguf"], None, 1, "--model model.gguf"),
        (["serve", "--api-key", "x"], None, 1, "--api-key-file"),
        (["chat", "--demo", "--svg", "/no/such/dir/a.svg", "hi"], None, 1, "/no/such/dir"),
        (["chat", "--demo", "--url", "http://x", "hi"], None, 1, "either --demo or --url"),
        (["nonsense"], None, 2, "No such command 'nonsense'"),
    ],
)
def test_wrong_input_is_one_clear_message(
    environ: dict[str, str], arguments: list[str], stdin: str | None, code: int, says: str
) -> None:
    done = run(environ, *arguments, stdin=stdin)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_reader_that_leaves_the_pipe_is_no_error(engine: Engine, environ: dict[str, str]) -> None:
    script = f'{" ".join(COMMAND)} chat --url {engine.url} "{LONG.question}" | head -c 20'
    done = subprocess.run(script, shell=True, env=environ, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert len(done.stdout) == 20
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_full_disk_is_one_clear_message(engine: Engine, environ: dict[str, str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [*COMMAND, "chat", "--url", engine.url, STORY.question]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, env=environ, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode_gets_what_it_can_show(engine: Engine, environ: dict[str, str]) -> None:
    narrow = {**environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = run(narrow, "chat", "--url", engine.url, "--temperature", "0", "Schreib etwas mit Umlauten.")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_the_answer_and_leaves_the_server(environ: dict[str, str]) -> None:
    # A real model may find the end of its answer before the signal comes; this one goes on until the client leaves.
    with ServerDouble(
        Script(chunked(sse_events(["Once ", "upon "], finish_reason=None)[:-1], end=False), stall=True)
    ) as server:
        command = [*COMMAND, "chat", "--url", server.url, "Tell me a story."]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        assert process.stdout.read(10) == b"Once upon "
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
        assert (process.returncode, stdout) == (130, b"\n")
        assert b"cancelled" in stderr
        assert b"Traceback" not in stderr
        assert server.wait_for(lambda double: double.connections == 0), "which frees the slot of a llama-server"


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


def test_the_picture_is_an_svg_without_addresses(engine: Engine, environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "terminal.svg"
    done = run(environ, "chat", "--url", engine.url, "--svg", str(path), "Who are you?")
    assert done.returncode == 0
    svg = path.read_text()
    assert "llamastream" in svg
    assert "tokens/s" in svg
    assert set(re.findall(r"https?://[\w./]+", svg)) <= {"http://www.w3.org/2000/svg"}


# -- serve --------------------------------------------------------------------------------------------------


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
    assert json.loads(stdout.splitlines()[-1]) == {"event": "stopped"}
    assert stderr == b""
    server.wait(5)


def test_serve_says_so_when_its_server_dies(serving: tuple[subprocess.Popen[bytes], dict[str, Any]]) -> None:
    process, ready = serving
    os.kill(ready["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 1
    assert b"the server ended by itself" in stderr


def test_serve_on_a_unix_socket_with_a_key_from_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    key_file, path = tmp_path / "key", tmp_path / "s.sock"
    key_file.write_text("sesame-12345\n")
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


# -- check --------------------------------------------------------------------------------------------------


def test_check_reports_what_is_here(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "check", "--url", engine.url, "--port", str(free_port()), "--json")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert (done.returncode, report["ok"]) == (0, True)
    assert findings["server"]["verdict"] == findings["embedded engine"]["verdict"] == "ok"
    assert "4 slots" in findings["server"]["detail"]
    assert re.search(r"\d+ flags, with --metrics", findings["embedded engine"]["detail"])
    assert {"llamastream", "executable engine", "CPU", "memory", "model", "port", "downloads"} <= findings.keys()


def test_check_fails_with_advice_where_something_is_missing(environ: dict[str, str]) -> None:
    done = run(
        environ, "check", "--model", "/no/such.gguf", "--binary", "/no/llama-server", "--url", "http://127.0.0.1:1"
    )
    assert done.returncode == 1
    for says in ("/no/such.gguf", "/no/llama-server", "nothing listens there"):
        assert says in done.stdout
    assert "Traceback" not in done.stderr


def test_check_finds_another_program_on_the_port(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run(environ, "check", "--port", str(listener.getsockname()[1]), "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["port"]["verdict"] == "note"
    assert "--port" in findings["port"]["advice"]


# -- the command itself -------------------------------------------------------------------------------------


def test_version_help_and_completion(environ: dict[str, str]) -> None:
    from llamastream import __version__

    assert run(environ, "--version").stdout == f"llamastream {__version__}\n"
    for command in ("chat", "serve", "check"):
        assert "Usage: " in run(environ, command, "--help").stdout
    # Completion goes by the installed command's name.
    script = Path(sys.executable).with_name("llamastream")
    words = {"_LLAMASTREAM_COMPLETE": "complete_bash", "COMP_WORDS": "llamastream s", "COMP_CWORD": "1"}
    assert subprocess.check_output([script], env={**environ, **words}, text=True).split() == ["serve"]


# -- the start script -----------------------------------------------------------------------------------------


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
