"""Finding an executable and asking it once what it knows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamastream.engine import facts, probe
from llamastream.engine.probe import Binary, find_binary, parse_version
from llamastream.errors import EngineMissingError, SettingError


def script(path: Path, body: str) -> str:
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return str(path)


def test_where_a_binary_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    on_path = script(tmp_path / "bin" / "llama-server", "")
    own = script(tmp_path / "own", "")
    environment = {"PATH": str(tmp_path / "bin")}
    assert find_binary(None, {"PATH": ""}) is None
    assert find_binary(None, environment) == Binary(on_path, "PATH")
    assert find_binary(None, environment | {"LLAMA_SERVER_BIN": own}) == Binary(own, "LLAMA_SERVER_BIN")
    assert find_binary(on_path, environment | {"LLAMA_SERVER_BIN": own}) == Binary(on_path, "binary")
    assert find_binary("llama-server", environment) == Binary(on_path, "binary")


def test_a_named_binary_that_is_not_there_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="binary is .*no such executable file"):
        find_binary(str(tmp_path / "none"), {"PATH": ""})
    with pytest.raises(SettingError, match="LLAMA_SERVER_BIN is .*it is a directory"):
        find_binary(None, {"PATH": "", "LLAMA_SERVER_BIN": str(tmp_path)})


def test_a_binary_is_asked_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    body = f'echo "$1" >> {calls}\necho "version: 7 (abc)"\necho "--port PORT             port"\n'
    binary = script(tmp_path / "server", body)
    first = probe.probe(binary, tmp_path / "cache")
    assert first.version == "version: 7 (abc)"
    assert first.help().has("--port")
    assert probe.probe(binary, tmp_path / "cache") is first
    probe._memory.clear()  # a new process: from the disk
    assert probe.probe(binary, tmp_path / "cache") == first
    assert calls.read_text().split() == ["--version", "--help"]

    script(Path(binary), body + "echo '--new-flag      new'\n")
    assert probe.probe(binary, tmp_path / "cache").help().has("--new-flag")
    assert calls.read_text().split() == ["--version", "--help"] * 2


def test_a_damaged_cache_is_asked_again(tmp_path: Path) -> None:
    binary = script(tmp_path / "server", 'echo "--port PORT             port"\n')
    first = probe.probe(binary, tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_text("{")
    probe._memory.clear()
    assert probe.probe(binary, tmp_path / "cache") == first


def test_the_probe_sees_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_PORT", "99")
    monkeypatch.setenv("SECRET_OF_OTHERS", "x")
    binary = script(tmp_path / "server", f'env > {tmp_path}/seen\necho "--port PORT             port"\n')
    probe.probe(binary, tmp_path / "cache")
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert "LLAMA_ARG_PORT" not in seen
    assert "SECRET_OF_OTHERS" not in seen


@pytest.mark.parametrize(
    ("body", "said"),
    [("echo Hello", "it said: Hello"), ("exit 3", "it said: nothing")],
)
def test_something_else_is_no_llama_server(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(EngineMissingError, match="is no llama-server") as caught:
        probe.probe(script(tmp_path / "x", body), tmp_path / "cache")
    assert said in str(caught.value)


def test_a_file_for_another_system(tmp_path: Path) -> None:
    path = tmp_path / "server"
    path.write_bytes(b"\x7fELF garbage")
    path.chmod(0o755)
    with pytest.raises(EngineMissingError, match="cannot execute"):
        probe.probe(str(path), tmp_path / "cache")


def test_versions_of_every_age() -> None:
    assert parse_version("version: 3000 (abc)\nbuilt with cc\n") == "version: 3000 (abc)"
    assert parse_version("load_backend: x\nversion: 0.5.0-dev (build 1, commit c)\n").startswith("version: 0.5.0")
    assert parse_version("error: unknown argument: --version") == ""


def test_facts_for_check(tmp_path: Path, pretend: Callable[..., str]) -> None:
    executable, embedded = facts.find_engines(pretend(""), {"PATH": os.environ["PATH"]})
    assert (executable.usable, executable.found, executable.version) == (True, "binary", "version: 1 (pretended)")
    assert embedded.kind == "embedded"
    assert embedded.usable == (embedded.problem == "")
    missing, _ = facts.find_engines(None, {"PATH": str(tmp_path / "nowhere")})
    assert not missing.usable
    assert "install" in missing.problem
    wrong, _ = facts.find_engines(sys.executable, {"PATH": ""})
    assert "is no llama-server" in wrong.problem
