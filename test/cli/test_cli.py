"""The command itself: wrong input, help, completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from commandline import run


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


def test_version_help_and_completion(environ: dict[str, str]) -> None:
    from llamastream import __version__

    assert run(environ, "--version").stdout == f"llamastream {__version__}\n"
    for command in ("chat", "serve", "check"):
        assert "Usage: " in run(environ, command, "--help").stdout
    # Completion goes by the installed command's name.
    script = Path(sys.executable).with_name("llamastream")
    words = {"_LLAMASTREAM_COMPLETE": "complete_bash", "COMP_WORDS": "llamastream s", "COMP_CWORD": "1"}
    assert subprocess.check_output([script], env={**environ, **words}, text=True).split() == ["serve"]
