"""Settings: where a value comes from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.settings import ClientSettings, config_path, declared, describe_type, from_object, load, read_toml


def test_a_relative_configuration_directory_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_path({"XDG_CONFIG_HOME": "config"}) == tmp_path / ".config/llamastream/config.toml"
    assert config_path({"XDG_CONFIG_HOME": "/etc/x"}) == Path("/etc/x/llamastream/config.toml")


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
        ("BASE_URL", "foo", "base_url 'foo' from the environment (LLAMASTREAM_BASE_URL) has no scheme; did you mean"),
        ("BASE_URL", "http://x:0", "base_url 'http://x:0' from the environment (LLAMASTREAM_BASE_URL) has port 0"),
    ],
)
def test_wrong_values_name_setting_value_source_and_what_is_allowed(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(ClientSettings, environ={f"LLAMASTREAM_{name}": value})
    assert says in str(caught.value)


@pytest.mark.parametrize("key", [["sesame"], "sesame\nX: y"])
def test_a_wrong_secret_is_not_repeated(key: Any) -> None:
    with pytest.raises(SettingError, match=r"api_key = \(hidden\) from x\.toml is not allowed") as caught:
        load(ClientSettings, environ={}, table={"api_key": key}, table_source="x.toml")
    assert "sesame" not in str(caught.value)


def test_values_that_are_wrong_together_name_their_sources() -> None:
    with pytest.raises(SettingError, match="both model") as caught:
        load(
            EngineOptions,
            given={"model": "m.gguf"},
            environ={"LLAMASTREAM_SERVE_HF": "a/b"},
            table={"alias": "x"},
        )
    assert str(caught.value).endswith("(model from --model, hf from the environment (LLAMASTREAM_SERVE_HF))")


def test_an_address_from_the_environment_is_named_by_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMASTREAM_BASE_URL", "foo")
    for kind in (StreamingClient, AsyncStreamingClient):
        with pytest.raises(SettingError, match=r"base_url 'foo' from the environment \(LLAMASTREAM_BASE_URL\)"):
            kind()
        with pytest.raises(SettingError, match="base_url 'bar' from the argument"):
            kind("bar")


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


# -- the settings file ----------------------------------------------------------------------------------------


def test_the_users_file_is_read_between_environment_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "llamastream" / "config.toml"
    path.parent.mkdir()
    path.write_text('[client]\nmodel = "m"\ntemperature = 0.5\n[serve]\nport = 9000\n')
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "LLAMASTREAM_TEMPERATURE": "0"}
    settings, sources = load(ClientSettings, environ=environ)
    assert (settings.model, settings.temperature) == ("m", 0.0)
    assert sources["model"] == f"{path} [client]"
    assert load(EngineOptions, environ=environ)[0].port == 9000
    named = load(ClientSettings, environ={"LLAMASTREAM_CONFIG": str(path)})[0]
    assert named.temperature == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[cleint]\n",
            "table [cleint], which is none of ours; allowed: [alerts], [bench], [client], [fleet], [gateway]",
        ),
        ("client = 5\n", "must be a table: [client]"),
        ("[client]\nbase_ulr = 'x'\n", "'base_ulr' in"),
        ("[client]\ntemperature = 'hot'\n", "temperature = 'hot' from"),
    ],
)
def test_mistakes_in_the_users_file_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(SettingError) as caught:
        load(ClientSettings, environ={"LLAMASTREAM_CONFIG": str(path)})
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_named_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        load(ClientSettings, environ={"LLAMASTREAM_CONFIG": "/no/such.toml"})


# -- settings objects of projects -------------------------------------------------------------------------------


class Project:
    llm_base_url = "http://gpu-box:8080/v1"
    llm_model = "m"
    llm_temperature = 0
    llm_max_tokens = 5


class Secret:
    def get_secret_value(self) -> str:
        return "sesame"


def test_clients_come_from_any_settings_object() -> None:
    for kind in (StreamingClient, AsyncStreamingClient):
        client = kind.from_settings(Project())
        settings = client._core.settings
        assert client.base_url == "http://gpu-box:8080"
        assert (settings.model, settings.temperature, settings.max_tokens) == ("m", 0.0, 5)
        assert kind.from_settings(Project(), model="other")._core.settings.model == "other"


def test_mappings_partial_objects_and_secrets() -> None:
    assert from_object({"llm_base_url": "http://x", "llm_api_key": Secret(), "llm_model": None}) == {
        "base_url": "http://x",
        "api_key": "sesame",
    }
    with pytest.raises(SettingError, match="set at least llm_base_url"):
        from_object(object())


def test_a_wrong_value_of_an_object_is_named() -> None:
    with pytest.raises(SettingError, match="temperature = 'hot' from llm_temperature of the mapping is not allowed"):
        StreamingClient.from_settings({"llm_temperature": "hot"})

    class Wrong(Project):
        llm_base_url = "gpu-box"

    with pytest.raises(SettingError, match="base_url 'gpu-box' from llm_base_url of Wrong has no scheme"):
        StreamingClient.from_settings(Wrong())
    # What an argument replaces need not be right.
    assert StreamingClient.from_settings(Wrong(), base_url="http://a").base_url == "http://a"


def test_an_object_may_have_a_list_of_addresses() -> None:
    client = StreamingClient.from_settings({"llm_base_url": ["http://a", "http://b:1/v1"]})
    assert client.base_urls == ("http://a", "http://b:1")
    with pytest.raises(SettingError, match="llm_base_url of the mapping is an empty list"):
        StreamingClient.from_settings({"llm_base_url": []})
