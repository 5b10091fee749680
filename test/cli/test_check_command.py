"""`llamastream check`: what is here, what is missing, and the exit code."""

from __future__ import annotations

import json
import re
import socket

from commandline import run
from llamastream.engine import Engine
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
