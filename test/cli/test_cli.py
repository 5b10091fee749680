"""The command itself: wrong input, help, completion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import ROOT, run
from llamastream.engine.probe import find_binary


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
        (
            ["serve", "--port", "0", "--instnaces", "2"],
            None,
            1,
            "neither serve nor its engine knows --instnaces; did you mean --instances?",
        ),
        (["serve", "--demo", "--model", "x.gguf"], None, 1, "either --demo or --model"),
        (["serve", "--demo", "-hf", "user/repo"], None, 1, "either --demo or --hf"),
        (["serve", "--demo", "--upstream", "http://127.0.0.1:1"], None, 1, "--demo is about servers that serve starts"),
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


@pytest.mark.parametrize("kind", ["embedded", "executable"])
def test_an_unknown_flag_of_serve_is_named_in_one_line(environ: dict[str, str], kind: str) -> None:
    if kind == "executable" and find_binary() is None:
        pytest.skip("no llama-server executable in LLAMA_SERVER_BIN or PATH")
    binary = {name: os.environ[name] for name in ("LLAMA_SERVER_BIN",) if name in os.environ}
    done = run({**environ, **binary}, "serve", "--port", "0", "--kind", kind, "--log-format", "human", "--frobnicate")
    (line,) = done.stderr.splitlines()
    assert line.startswith("llamastream: ")
    assert "--frobnicate" in line
    assert len(line) < 300
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "says"),
    [
        ("LLAMASTREAM_BASE_URL", "foo", ["check"], "base_url 'foo' from the environment (LLAMASTREAM_BASE_URL)"),
        ("LLAMASTREAM_BASE_URL", "foo", ["chat", "hi"], "has no scheme; did you mean http://foo"),
        ("LLAMASTREAM_CA_FILE", "/no.pem", ["chat", "--url", "https://x", "hi"], "(LLAMASTREAM_CA_FILE)"),
        ("LLAMASTREAM_SERVE_BINARY", "/no", ["serve"], "(binary from the environment (LLAMASTREAM_SERVE_BINARY))"),
        ("LLAMASTREAM_SERVE_HF", "x", ["serve"], "(hf from the environment (LLAMASTREAM_SERVE_HF))"),
    ],
)
def test_a_wrong_variable_is_named(
    environ: dict[str, str], variable: str, value: str, arguments: list[str], says: str
) -> None:
    done = run({**environ, variable: value}, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help(environ: dict[str, str]) -> None:
    from llamastream import __version__

    assert run(environ, "--version").stdout == f"llamastream {__version__}\n"
    for command in ("chat", "serve", "check"):
        assert "Usage: " in run(environ, command, "--help").stdout


# -- completion ---------------------------------------------------------------------------------------------

# It goes by the installed command's name.
SCRIPT = Path(sys.executable).with_name("llamastream")
SYNTAX_CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}
INSTALLED = {
    "bash": ".bash_completions/llamastream.sh",
    "zsh": ".zfunc/_llamastream",
    "fish": ".config/fish/completions/llamastream.fish",
}


def question(shell: str, line: str) -> dict[str, str]:
    """The variables by which a shell asks what may stand at the end of a line."""
    if shell == "bash":
        return {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    return {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


each_shell = pytest.mark.parametrize("shell", SYNTAX_CHECKS)


def run_from(shell: str, environ: dict[str, str], option: str) -> str:
    """What `llamastream` prints when it is started from a shell: which one it is, shows in its parent's name."""
    bash = shutil.which("bash")
    assert bash is not None
    script = f'"{SCRIPT}" {option}; exit $?'  # more than one command, so that bash stays, and is the parent
    done = subprocess.run(
        [shell, "-c", script], executable=bash, env=environ, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def check_syntax(shell: str, script: str) -> None:
    command = SYNTAX_CHECKS[shell]
    if shutil.which(command[0]) is not None:
        subprocess.run(command, input=script, text=True, check=True, timeout=30)


@each_shell
def test_completion_is_shown_for_the_shell_that_one_is_in(shell: str, environ: dict[str, str]) -> None:
    script = run_from(shell, environ, "--show-completion")
    assert f"_LLAMASTREAM_COMPLETE=complete_{shell}" in script
    check_syntax(shell, script)


@each_shell
def test_completion_is_installed_where_the_shell_looks(shell: str, environ: dict[str, str]) -> None:
    said = run_from(shell, environ, "--install-completion")
    path = Path(environ["HOME"]) / INSTALLED[shell]
    assert str(path) in said
    assert f"complete_{shell}" in path.read_text()
    check_syntax(shell, path.read_text())


@each_shell
@pytest.mark.parametrize(
    ("line", "found", "others"),
    [("llamastream s", "serve", "chat"), ("llamastream serve --de", "--demo", "--port")],
)
def test_completion_finds_what_fits(shell: str, environ: dict[str, str], line: str, found: str, others: str) -> None:
    asked = {**environ, **question(shell, line), "_LLAMASTREAM_COMPLETE": f"complete_{shell}"}
    said = subprocess.check_output([SCRIPT], env=asked, text=True)
    assert found in said
    assert others not in said
