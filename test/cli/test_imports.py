"""What a command does not need, it does not load: a supervisor holds it for months."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import psutil
import pytest

from commandline import ROOT, run
from llamastream.cli.plainvalues import plain_value
from ports import free_ports
from serving import Serving

NEEDLESS = {"asyncio", "ssl", "_ssl", "http", "pydantic", "rich", "llamastream.client", "llamastream.compose"}


def loaded(environ: dict[str, str], *arguments: str) -> set[str]:
    """The modules that a command imports until it has shown its help."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llamastream", *arguments, "--help"],
        env=environ, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True,
    )  # fmt: skip
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_serve_loads_neither_the_client_nor_event_loops_nor_tls(environ: dict[str, str]) -> None:
    found = loaded(environ, "serve")
    assert "llamastream.cli.service" in found  # which `cli.serve` imports; that itself comes by its name
    assert not NEEDLESS & found, sorted(NEEDLESS & found)


def test_a_command_loads_no_other(environ: dict[str, str]) -> None:
    assert "llamastream.cli.service" not in loaded(environ, "chat")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a process has mapped")
def test_a_supervisor_at_work_has_not_loaded_them_either(environ: dict[str, str]) -> None:
    serving = Serving(environ, "--no-gateway", "--port", str(free_ports(1)))
    try:
        serving.ready()
        serving.status()
        mapped = {Path(each.path).name.partition(".")[0] for each in psutil.Process(serving.process.pid).memory_maps()}
    finally:
        serving.close()
    assert "_psutil_linux" in mapped
    assert not {"_ssl", "_asyncio", "_pydantic_core"} & mapped


def test_a_command_that_does_not_exist_is_compared_with_all_that_do(environ: dict[str, str]) -> None:
    assert "Did you mean 'serve'?" in run(environ, "sarve").stderr


@pytest.mark.parametrize(
    ("annotation", "value", "becomes"),
    [(str, "a", "a"), (int, "7", 7), (float, "0.5", 0.5), (Literal["a", "b"], "b", "b"), (str, None, None)],
)
def test_plain_values_are_taken_as_they_are(annotation: object, value: object, becomes: object) -> None:
    assert plain_value(annotation, value) == becomes


def test_plain_lists_are_taken_as_they_are() -> None:
    assert plain_value(list[str], None, many=True) == ()
    assert plain_value(list[int], ("1", "2"), many=True) == [1, 2]
    assert plain_value(list[int], ("1", "x"), many=True) != [1, "x"]


@pytest.mark.parametrize(("annotation", "value"), [(int, "7.5"), (float, "x"), (Literal["a"], "c"), (list[str], "a")])
def test_other_values_are_left_to_typer(annotation: object, value: object) -> None:
    assert plain_value(annotation, value) is not None
    assert plain_value(annotation, value) != value
