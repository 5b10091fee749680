"""`llamastream chat` with a question: the answer on stdout, the rest on stderr, whatever the streams are."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from commandline import COMMAND, LONG, ROOT, STORY, run
from llamastream.engine import Engine
from llamastream.testing import Script, ServerDouble, chunked, sse_events
from ports import free_port


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


def test_the_picture_is_an_svg_without_addresses(engine: Engine, environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "terminal.svg"
    done = run(environ, "chat", "--url", engine.url, "--svg", str(path), "Who are you?")
    assert done.returncode == 0
    svg = path.read_text()
    assert "llamastream" in svg
    assert "tokens/s" in svg
    assert set(re.findall(r"https?://[\w./]+", svg)) <= {"http://www.w3.org/2000/svg"}
