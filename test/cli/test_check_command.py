"""`llamastream check`: what is here, what is missing, and the exit code."""

from __future__ import annotations

import json
import re
import socket
import sys

import pytest

from commandline import run
from llamastream.cli.check import describe_tools
from llamastream.engine import Engine
from llamastream.tools import ToolSupport
from ports import free_port


def test_check_reports_what_is_here(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "check", "--url", engine.url, "--port", str(free_port()), "--json")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert (done.returncode, report["ok"]) == (0, True)
    assert findings["server"]["verdict"] == findings["embedded engine"]["verdict"] == "ok"
    assert "4 slots" in findings["server"]["detail"]
    assert re.search(r"\d+ flags, with --metrics", findings["embedded engine"]["detail"])
    assert {"llamastream", "executable engine", "CPU", "memory", "model", "port", "downloads"} <= findings.keys()


def test_check_tells_how_the_server_answers_requests_with_tools(engine: Engine, environ: dict[str, str]) -> None:
    done = run(environ, "check", "--url", engine.url, "--port", str(free_port()), "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["tool calls"] == {
        "name": "tool calls", "verdict": "ok", "detail": "streamed; several at once", "advice": "",
    }  # fmt: skip


def test_check_says_nothing_of_tools_where_no_server_runs(environ: dict[str, str]) -> None:
    done = run(environ, "check", "--port", str(free_port()), "--json")
    assert "tool calls" not in {finding["name"] for finding in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize(
    ("support", "detail", "advice"),
    [
        (ToolSupport(accepted=False, rendered=True, reason="no"), "requests with tools are refused: no", "--jinja"),
        (
            ToolSupport(accepted=True, rendered=False, streamed=True),
            "does not show tools to the model",
            "--chat-template-file",
        ),
        (ToolSupport(True, True, False, False, "no"), "as whole answers only; one at a time: no; the client", "2025"),
        (ToolSupport(rendered=True), "not known: .* (the chat template knows tools)", ""),
        (ToolSupport(), "not known: the server has no /apply-template to ask", ""),
    ],
)
def test_what_a_server_cannot_do_with_tools_is_a_note_with_advice(
    support: ToolSupport, detail: str, advice: str
) -> None:
    finding = describe_tools(support)
    assert finding.verdict == "note"
    assert re.search(detail.replace("(", r"\(").replace(")", r"\)"), finding.detail)
    assert advice in finding.advice


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


def test_check_fails_where_the_variable_names_no_file(environ: dict[str, str]) -> None:
    done = run({**environ, "LLAMA_SERVER_BIN": "/no/such"}, "check", "--port", str(free_port()), "--json")
    finding = next(f for f in json.loads(done.stdout)["findings"] if f["name"] == "executable engine")
    assert (done.returncode, finding["verdict"]) == (1, "problem")
    assert finding["detail"] == "LLAMA_SERVER_BIN is '/no/such': no such executable file"
    assert finding["advice"] == "give the path of a llama-server executable"


def test_check_fails_where_the_variable_names_another_program(environ: dict[str, str]) -> None:
    done = run({**environ, "LLAMA_SERVER_BIN": sys.executable}, "check", "--port", str(free_port()), "--json")
    finding = next(f for f in json.loads(done.stdout)["findings"] if f["name"] == "executable engine")
    assert (done.returncode, finding["verdict"]) == (1, "problem")
    assert "(from LLAMA_SERVER_BIN)" in finding["detail"]


def test_an_executable_that_nobody_would_take_is_only_noted(environ: dict[str, str]) -> None:
    arguments = ["check", "--kind", "embedded", "--port", str(free_port()), "--json"]
    done = run({**environ, "LLAMA_SERVER_BIN": "/no/such"}, *arguments)
    finding = next(f for f in json.loads(done.stdout)["findings"] if f["name"] == "executable engine")
    assert (done.returncode, finding["verdict"]) == (0, "note")
