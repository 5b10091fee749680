"""`llamastream config`: values, sources, the schema, and no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamastream.cli.config import GROUPS, settings_schema
from llamastream.cli.options import unknown_variables
from llamastream.settings import declared


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "llamastream" / "config.toml"
    file.parent.mkdir()
    file.write_text('[client]\nmodel = "from-file"\napi_key = "sesame"\n')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMASTREAM_")}
    return {**kept, "XDG_CONFIG_HOME": str(tmp_path), "LLAMASTREAM_TEMPERATURE": "0.25", "NO_COLOR": "1"}


def config(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamastream", "config", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)


def test_each_value_with_its_source(environ: dict[str, str]) -> None:
    shown = json.loads(config(environ, "--json").stdout)
    assert {name: set(rows) for name, rows in shown.items()} == {
        name: {field.name for field in declared(group)} for name, group in GROUPS.items()
    }
    client = shown["client"]
    assert (client["temperature"]["value"], client["temperature"]["source"]) == (
        0.25,
        "the environment (LLAMASTREAM_TEMPERATURE)",
    )
    assert client["model"]["source"].endswith("config.toml [client]")
    assert client["base_url"]["source"] == "default"


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--schema"]])
def test_secrets_are_not_shown(environ: dict[str, str], arguments: list[str]) -> None:
    done = config(environ, *arguments)
    assert done.returncode == 0
    assert "sesame" not in done.stdout + done.stderr


def test_the_table_for_people(environ: dict[str, str]) -> None:
    lines = config(environ).stdout.splitlines()
    assert "[client]" in lines[0]
    assert any(line.split()[:2] == ["temperature", "0.25"] for line in lines)
    assert any("(set, hidden)" in line for line in lines)
    assert config(environ, "--path").stdout.strip().endswith("llamastream/config.toml")


def test_models_are_shown_as_they_would_be_served(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "llamastream" / "config.toml"
    file.write_text('[fleet]\ninstances = 2\n[serve]\nparallel = 3\napi_key = "sesame"\n[models.x]\nctx_size = 512\n')
    done = config(environ, "--json")
    assert "sesame" not in done.stdout
    shown = json.loads(done.stdout)
    assert shown["fleet"]["instances"]["value"] == 2
    model = {name: (row["value"], row["source"]) for name, row in shown["models"]["x"].items()}
    assert model["instances"] == (2, f"{file} [fleet]")
    assert model["parallel"] == (3, f"{file} [serve]")
    assert model["ctx_size"] == (512, f"{file} [models.x]")
    assert (model["port"], model["alias"]) == ((8080, "default"), ("x", "default"))
    assert "[models.x]" in config(environ).stdout
    assert "models" not in json.loads(config({**environ, "LLAMASTREAM_SERVE_MODEL": "m.gguf"}, "--json").stdout)


def test_a_wrong_value_is_named(environ: dict[str, str]) -> None:
    done = config({**environ, "LLAMASTREAM_MAX_TOKENS": "many"})
    assert done.returncode == 1
    assert "max_tokens = 'many' from the environment (LLAMASTREAM_MAX_TOKENS) is not allowed" in done.stderr


def test_the_schema_describes_every_setting() -> None:
    schema: dict[str, Any] = settings_schema()
    for name, group in GROUPS.items():
        reference = schema["properties"][name]["$ref"].rpartition("/")[2]
        properties = schema["$defs"][reference]["properties"]
        assert set(properties) == {field.name for field in declared(group)}
        assert all(prop["description"] for prop in properties.values())
    reference = schema["properties"]["models"]["additionalProperties"]["$ref"].rpartition("/")[2]
    served = schema["$defs"][schema["properties"]["serve"]["$ref"].rpartition("/")[2]]["properties"]
    assert set(schema["$defs"][reference]["properties"]) == {*served, "instances"}


def test_the_port_is_the_one_that_serve_takes(environ: dict[str, str]) -> None:
    def port(**more: str) -> int:
        shown = json.loads(config({**environ, **more}, "--json").stdout)
        return int(shown["serve"]["port"]["value"])

    assert port() == 8080
    assert port(LLAMASTREAM_SERVE_PORT="9") == 9
    assert port(LLAMASTREAM_SERVE_SOCKET="/tmp/x.sock") == 0


def test_a_misspelt_variable_is_noted() -> None:
    environ = {"LLAMASTREAM_TEMPERTURE": "1", "LLAMASTREAM_SERVE_PROT": "1", "llamastream_model": "m"}
    more = {"LLAMASTREAM_MODEL": "m", "LLAMASTREAM_MY_OWN_THING": "x", "LLAMA_TEMPERTURE": "1", "PATH": "/"}
    notes = unknown_variables({**environ, **more}, GROUPS.values())
    assert [note.rpartition(" ")[2] for note in notes] == [
        "LLAMASTREAM_SERVE_PORT?",
        "LLAMASTREAM_TEMPERATURE?",
        "LLAMASTREAM_MODEL?",
    ]


def test_config_and_check_show_the_note(environ: dict[str, str]) -> None:
    done = config({**environ, "LLAMASTREAM_MAX_TOKNES": "5"}, "--json")
    assert done.returncode == 0
    assert "LLAMASTREAM_MAX_TOKNES, which is no setting; did you mean LLAMASTREAM_MAX_TOKENS?" in done.stderr
    json.loads(done.stdout)
