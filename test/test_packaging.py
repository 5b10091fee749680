"""The files in packaging/ are what systemd and Docker understand, and name what there is."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from llamastream.cli.app import app
from llamastream.cli.serveplan import Given, plan_servers
from llamastream.engine import EngineOptions
from llamastream.fleet.settings import FleetSettings

ROOT = Path(__file__).resolve().parent.parent
PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "llamastream.service"
LONGEST_STOP = 2 * FleetSettings().drain_timeout + EngineOptions().stop_timeout  # of the gateway, then of the servers


def check_command(words: list[str]) -> None:
    """The words are a command of ours with options that it has."""
    assert words[0].rpartition("/")[2] == "llamastream"
    group: Any = typer.main.get_command(app)
    command = group.get_command(None, words[1])
    assert command is not None, words[1]
    context = command.make_context(words[1], words[2:])
    assert context.args == []


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    parser.read(UNIT, encoding="utf-8")
    return parser


def test_the_unit_starts_a_command_that_exists_and_reloads_by_sighup(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    check_command(shlex.split(service["ExecStart"]))
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "mixed", "on-failure")
    assert service["User"] != "root"
    assert int(service["WatchdogSec"]) > 0


def test_the_unit_leaves_time_to_drain(unit: configparser.ConfigParser) -> None:
    assert int(unit["Service"]["TimeoutStopSec"]) > LONGEST_STOP


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/llamastream/bin/llamastream", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])


# -- Docker -----------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (PACKAGING / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def last(name: str) -> str:
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def test_the_image_runs_commands_that_exist() -> None:
    check_command([*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))])
    check_command(json.loads(last("HEALTHCHECK").partition("CMD ")[2]))


def test_the_image_does_not_run_as_root_and_is_stopped_by_sigterm() -> None:
    assert last("USER") == "llamastream"
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_image_copies_what_there_is_and_what_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source in kept


def test_the_image_has_every_instruction_that_docker_knows() -> None:
    known = {
        "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert {name for name, _ in instructions()} == known
    assert instructions()[0][0] == "FROM"


def test_compose_builds_that_image_and_leaves_time_to_drain() -> None:
    compose = yaml.safe_load((PACKAGING / "compose.yaml").read_text())
    service = compose["services"]["llamastream"]
    assert (PACKAGING / service["build"]["context"] / service["build"]["dockerfile"]).samefile(PACKAGING / "Dockerfile")
    check_command([*json.loads(last("ENTRYPOINT")), *service["command"]])
    assert int(service["stop_grace_period"].removesuffix("s")) > LONGEST_STOP
    assert {volume.partition(":")[0] for volume in service["volumes"] if volume.startswith("./")} == {"./config.toml"}


def test_the_example_of_a_settings_file_is_right() -> None:
    text = (PACKAGING / "config.toml").read_text()
    environ = {"LLAMASTREAM_CONFIG": str(PACKAGING / "config.toml")}
    plan = plan_servers(Given(), environ=environ)
    assert len(plan.configuration.pools) == 1
    assert plan.front is not None
    ports = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"]["llamastream"]["ports"]
    assert ports == [f"127.0.0.1:{plan.front.port}:{plan.front.port}"]
    assert "docs/settings.md" in text
