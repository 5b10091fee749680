"""From options, environment and settings file to pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.fleet.configuration import Configuration, configure, given_of
from llamastream.fleet.pools import plan
from llamastream.fleet.settings import FleetSettings
from llamastream.settings import load

FILE = """
[fleet]
instances = 2
look_interval = 1.5

[serve]
parallel = 2
ctx_size = 2048
api_key = "sesame-12345"

[models.small]
model = "small.gguf"
instances = 3

[models.large]
hf = "user/large-GGUF"
parallel = 8
port = 9000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    return path


def read(file: Path, engine: dict[str, Any] | None = None, fleet: dict[str, Any] | None = None, **environ: str) -> Any:
    return configure(engine or {}, fleet or {}, environ={"LLAMASTREAM_CONFIG": str(file), **environ})


def test_each_table_is_a_model_with_the_common_options_and_its_own(file: Path) -> None:
    small, large = read(file).pools
    assert (small.name, small.instances, small.options.model) == ("small", 3, "small.gguf")
    assert (large.name, large.instances, large.options.hf) == ("large", 2, "user/large-GGUF")
    assert (small.options.parallel, large.options.parallel) == (2, 8)
    assert (small.options.ctx_size, large.options.ctx_size) == (2048, 2048)
    assert (small.options.port, large.options.port) == (8080, 9000)
    assert (small.options.alias, large.options.alias) == ("small", "large")
    assert small.options.api_key == "sesame-12345"


def test_each_instance_has_a_port_of_its_own(file: Path) -> None:
    plans = plan(read(file).pools, cores=8, cache_ram=100)
    assert {each.id: each.options.port for each in plans} == {
        "small-0": 8080, "small-1": 8081, "small-2": 8082, "large-0": 9000, "large-1": 9001,
    }  # fmt: skip


def test_environment_and_command_line_win_over_the_file_for_every_model(file: Path) -> None:
    pools = read(file, {"ctx_size": 512}, {}, LLAMASTREAM_SERVE_PARALLEL="4", LLAMASTREAM_FLEET_INSTANCES="1").pools
    assert [pool.options.ctx_size for pool in pools] == [512, 512]
    assert [pool.options.parallel for pool in pools] == [4, 4]
    assert [pool.instances for pool in pools] == [1, 1]


@pytest.mark.parametrize(
    ("engine", "environ"), [({"model": "mine.gguf"}, {}), ({}, {"LLAMASTREAM_SERVE_MODEL": "mine.gguf"})]
)
def test_a_model_that_is_named_is_served_alone(file: Path, engine: dict[str, Any], environ: dict[str, str]) -> None:
    (pool,) = read(file, engine, {}, **environ).pools
    assert (pool.name, pool.options.model, pool.instances) == ("mine", "mine.gguf", 2)
    assert pool.options.parallel == 2


def test_a_model_of_a_table_replaces_that_of_serve(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[serve]\nmodel = "a.gguf"\nport = 8090\n[models.x]\nhf = "u/r"\n[models.y]\nsocket = "/t/y.sock"\n'
    )
    x, y = read(path).pools
    assert (x.options.model, x.options.hf, x.options.port) == (None, "u/r", 8090)
    assert (y.options.model, y.options.socket, y.options.port) == ("a.gguf", "/t/y.sock", 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models.x]\nparalel = 1\n", "'paralel' in PATH [models.x] is no setting; allowed: kind, binary, model"),
        ("[models.x]\nparallel = 0\n", "parallel = 0 from PATH [models.x] is not allowed; allowed: a whole number"),
        ("[models.x]\ninstances = 0\n", "instances = 0 from PATH [models.x] is not allowed; allowed: a whole number"),
        ("[serve]\nparallel = 0\n[models.x]\n", "parallel = 0 from PATH [serve] is not allowed"),
        ("[models]\nx = 1\n", "'x' in PATH [models] is no table; allowed: one table for each model, [models.NAME]"),
        ("models = 1\n", "models in PATH must be a table: [models]"),
        ("[fleet]\nmemory_limit = 'much'\n", "memory_limit = 'much' from PATH [fleet] is not allowed"),
        ("[fleet]\ninstances = '2'\n", "instances = '2' from PATH [fleet] is not allowed; allowed: a whole number"),
        ("[fleet]\nwarm = 'false'\n", "warm = 'false' from PATH [fleet] is not allowed; allowed: true or false"),
        ("[models.x]\ninstances = '2'\n", "instances = '2' from PATH [models.x] is not allowed"),
        ("[models.x]\nparallel = '2'\n", "parallel = '2' from PATH [models.x] is not allowed"),
        ("[fleet]\nname = 'a b'\n", "name = 'a b' from PATH [fleet] is not allowed"),
        ("[models.x]\nmodel = 'a'\nhf = 'u/r'\n", "both model ('a') and hf ('u/r') are set"),
    ],
)
def test_a_mistake_names_table_key_and_value(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SettingError) as caught:
        read(path)
    assert says.replace("PATH", str(path)) in str(caught.value)


def test_one_alias_cannot_name_two_models(file: Path) -> None:
    with pytest.raises(SettingError, match=r"alias = 'x' from --alias would be the name of 2 models"):
        read(file, {"alias": "x"})


def test_two_models_cannot_listen_on_one_socket(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[serve]\nsocket = "/t/a.sock"\n[models.x]\n[models.y]\n')
    with pytest.raises(SettingError, match=r"2 instances would have the socket '/t/a\.sock'"):
        plan(read(path).pools, cores=2, cache_ram=0)


def test_without_tables_there_is_one_model(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("")
    configuration: Configuration = read(tmp_path / "c.toml", {}, {"instances": 4})
    (pool,) = configuration.pools
    assert (pool.name, pool.instances, pool.options.port) == ("demo", 4, 8080)
    assert configuration.name == "serve-8080"
    assert read(tmp_path / "c.toml", {}, {"name": "mine"}).name == "mine"
    assert read(tmp_path / "c.toml", {"port": 0}).name.startswith("serve-pid-")


def test_the_demo_model_is_served_alone_whatever_the_settings_name(file: Path) -> None:
    file.write_text(FILE.replace("[serve]", '[serve]\nmodel = "mine.gguf"\nalias = "mine"'))
    environ = {"LLAMASTREAM_CONFIG": str(file), "LLAMASTREAM_SERVE_HF": "", "LLAMASTREAM_SERVE_PORT": "9001"}
    configuration = configure({}, {}, environ=environ, demo=True)
    (pool,) = configuration.pools
    assert (pool.name, pool.instances) == ("demo", 2)
    options = pool.options
    assert (options.model, options.hf, options.alias) == (None, None, None)
    assert (options.port, options.parallel, options.ctx_size) == (9001, 2, 2048)
    assert configuration.sources["demo"]["model"] == "--demo"
    (named,) = configure({"alias": "small"}, {}, environ=environ, demo=True).pools
    assert (named.options.model, named.options.alias) == (None, "small")


def test_further_flags_go_to_every_server(file: Path) -> None:
    environ = {"LLAMASTREAM_CONFIG": str(file)}
    pools = configure({}, {}, ("--flash-attn", "on"), environ=environ).pools
    assert [pool.options.extra_args for pool in pools] == [("--flash-attn", "on")] * 2


def test_what_the_command_line_gave_can_be_had_back() -> None:
    given = {"parallel": 3, "api_key": "sesame-12345"}
    engine, sources = load(EngineOptions, given=given, environ={"LLAMASTREAM_SERVE_PORT": "9"}, table={"threads": 1})
    assert given_of(engine, sources) == given
    fleet, fleet_sources = load(FleetSettings, given={"instances": 1}, environ={}, table={})
    assert given_of(fleet, fleet_sources) == {"instances": 1}


def test_secrets_are_known_so_that_they_can_be_hidden(file: Path) -> None:
    assert read(file).secrets == {"sesame-12345"}
