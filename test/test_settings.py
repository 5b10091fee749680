"""Settings: where a value comes from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.settings import ClientSettings, declared, describe_type, load, read_toml


def test_order_of_precedence_and_sources() -> None:
    table = {"model": "file", "temperature": 0.5, "max_tokens": 9}
    environ = {"LLAMASTREAM_TEMPERATURE": "0", "LLAMASTREAM_MAX_TOKENS": "8"}
    settings, sources = load(
        ClientSettings, given={"max_tokens": 7}, environ=environ, table=table, table_source="x.toml"
    )
    assert (settings.model, settings.temperature, settings.max_tokens) == ("file", 0.0, 7)
    assert sources["model"] == "x.toml"
    assert sources["temperature"] == "the environment (LLAMASTREAM_TEMPERATURE)"
    assert sources["max_tokens"] == "--max-tokens"
    assert sources["base_url"] == "default"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TEMPERATURE", "warm", "temperature = 'warm' from the environment (LLAMASTREAM_TEMPERATURE) is not allowed"),
        ("TEMPERATURE", "nan", "a number from 0 up to 100"),
        ("MAX_TOKENS", "-1", "allowed: a whole number from 1"),
        ("CONNECT_TIMEOUT", "0", "allowed: a number above 0"),
    ],
)
def test_wrong_values_name_setting_value_source_and_what_is_allowed(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(ClientSettings, environ={f"LLAMASTREAM_{name}": value})
    assert says in str(caught.value)


def test_a_wrong_secret_is_not_repeated() -> None:
    with pytest.raises(SettingError) as caught:
        load(ClientSettings, environ={}, table={"api_key": ["sesame"]})
    assert "sesame" not in str(caught.value)


def test_unknown_keys_of_a_file_name_what_exists() -> None:
    with pytest.raises(SettingError, match="'base_ulr' in x.toml is no setting; allowed: base_url,"):
        load(ClientSettings, environ={}, table={"base_ulr": "x"}, table_source="x.toml")


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(ClientSettings, environ={"LLAMASTREAM_MODEL": ""})[0].model is None


def test_the_groups_have_variables_of_their_own() -> None:
    names = [field.env for group in (ClientSettings, EngineOptions) for field in declared(group)]
    assert len(names) == len(set(names))
    assert {"LLAMASTREAM_MODEL", "LLAMASTREAM_SERVE_MODEL"} <= set(names)


@pytest.mark.parametrize("group", [ClientSettings, EngineOptions])
def test_every_setting_is_described(group: Any) -> None:
    for field in declared(group):
        assert field.description.endswith("."), field.name
        assert describe_type(field.type), field.name


@pytest.mark.parametrize(("text", "says"), [("a = ", "is not TOML"), (None, "cannot be read")])
def test_settings_files_that_cannot_be_read(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match=says):
        read_toml(path)
