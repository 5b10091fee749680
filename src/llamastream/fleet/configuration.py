"""From the command line, the environment and the settings file to the pools of a fleet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.fleet.pools import pool_name
from llamastream.fleet.settings import FleetSettings, Pool
from llamastream.settings import declared, load, user_section

DEFAULT_PORT = 8080
"""Where the first instance listens if nobody says otherwise."""


PASSING = "serve-pid-"
"""Beginning of the name of a fleet that has neither a name nor a port of its own: the next one has another."""


class ModelTable(EngineOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[models.NAME]` of the settings file: a model with options of its own, which win over `[serve]`."""

    SECTION: ClassVar[str] = "models"

    instances: Annotated[
        int, Meta(ge=1, le=256, description="Servers of this model; unset: as many as `[fleet]` says.")
    ] = 1


class Configuration(Struct, frozen=True, kw_only=True):
    """What a fleet is to be.

    Attributes:
        pools: its models. settings: how it is supervised. sources: for each pool, where each of its options came from.
    """

    pools: tuple[Pool, ...]
    settings: FleetSettings
    sources: dict[str, dict[str, str]]

    @property
    def name(self) -> str:
        """By which other commands find the fleet."""
        port = self.pools[0].options.port
        return self.settings.name or (f"serve-{port}" if port else f"{PASSING}{os.getpid()}")

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown."""
        return frozenset(pool.options.api_key for pool in self.pools if pool.options.api_key)


def configure(
    given_engine: Mapping[str, Any],
    given_fleet: Mapping[str, Any],
    extra_args: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    *,
    demo: bool = False,
) -> Configuration:
    """Read everything anew.

    The command line wins over the environment, that over the settings file, and there `[models.NAME]` over `[serve]`.
    A model that the command line or the environment names is served alone.

    Args:
        given_engine, given_fleet: options of the command line. extra_args: further flags for every server.
        demo: serve the demo model alone, whatever model the environment and the file name. All else that they say
            holds, but what they call their model.

    Raises:
        SettingError: the file cannot be read, or a value is not allowed.
    """
    environ = os.environ if environ is None else environ
    fleet, fleet_sources = load(FleetSettings, given=given_fleet, environ=environ)
    engine, sources = load(EngineOptions, given=given_engine, environ=environ)
    if demo:
        alias = engine.alias if given_engine.get("alias") is not None else None
        engine = msgspec.structs.replace(engine, model=None, hf=None, alias=alias)
        sources = {**sources, "model": "--demo", "hf": "--demo"}
    tables = {} if demo else model_tables(environ)
    if not tables or _model_is_named(given_engine, environ):
        options = _complete(engine, sources, extra_args)
        name = pool_name(options)
        pool = Pool(name=name, options=options, instances=fleet.instances)
        return Configuration(pools=(pool,), settings=fleet, sources={name: sources})
    if len(tables) > 1 and engine.alias is not None and not sources["alias"].endswith("[serve]"):
        raise SettingError(
            f"alias = {engine.alias!r} from {sources['alias']} would be the name of {len(tables)} models: "
            "give each its own in [models.NAME]"
        )
    pools = []
    all_sources = {}
    for name, (table, source) in tables.items():
        own = dict(table)
        instances, instances_source = _instances(own.pop("instances", None), source, fleet, fleet_sources)
        options, sources = _one_model(name, own, source, given_engine, environ)
        pools.append(Pool(name=name, options=_complete(options, sources, extra_args), instances=instances))
        all_sources[name] = {"instances": instances_source, **sources}
    return Configuration(pools=tuple(pools), settings=fleet, sources=all_sources)


def model_tables(environ: Mapping[str, str]) -> dict[str, tuple[dict[str, Any], str]]:
    """The tables `[models.NAME]` of the user's settings file, each with what to call it.

    Raises:
        SettingError: the file cannot be read, or has something else there.
    """
    models, source = user_section("models", environ)
    where = source.removesuffix(" [models]")
    for name, table in models.items():
        if not isinstance(table, dict):
            raise SettingError(f"{name!r} in {source} is no table; allowed: one table for each model, [models.NAME]")
    return {name: (table, f"{where} [models.{name}]") for name, table in models.items()}


def _model_is_named(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    fields = [field for field in declared(EngineOptions) if field.name in ("model", "hf")]
    return any(given.get(field.name) is not None or environ.get(field.env) for field in fields)


def _one_model(
    name: str, own: dict[str, Any], source: str, given: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[EngineOptions, dict[str, str]]:
    base, base_source = user_section(EngineOptions.SECTION, environ)
    base = {key: value for key, value in base.items() if key != "alias"}
    # what a table says of its model replaces what [serve] says, also where that is of the other kind
    if "hf" in own or "model" in own:
        base = {key: value for key, value in base.items() if key not in ("hf", "model")}
    # the same of where it listens
    if "socket" in own or "port" in own:
        base = {key: value for key, value in base.items() if key not in ("socket", "port")}
    options, sources = load(
        EngineOptions,
        given=given,
        environ=environ,
        table=base,
        table_source=base_source,
        above=own,
        above_source=source,
    )
    return msgspec.structs.replace(options, alias=options.alias or name), sources


def _instances(value: Any, source: str, fleet: FleetSettings, fleet_sources: Mapping[str, str]) -> tuple[int, str]:
    """How many, and who said so: the command line or the environment, else the model's table, else `[fleet]`."""
    if value is None or not fleet_sources["instances"].endswith(("default", "[fleet]")):
        return fleet.instances, fleet_sources["instances"]
    checked, _ = load(FleetSettings, environ={}, table={"instances": value}, table_source=source)
    return checked.instances, source


def _complete(options: EngineOptions, sources: dict[str, str], extra_args: tuple[str, ...]) -> EngineOptions:
    changes: dict[str, Any] = {"extra_args": (*options.extra_args, *extra_args)}
    if options.socket is None and sources["port"] == "default":
        changes["port"] = DEFAULT_PORT
    return msgspec.structs.replace(options, **changes)


def given_of(group: Struct, sources: Mapping[str, str]) -> dict[str, Any]:
    """The values of a loaded group that the command line gave."""
    return {
        field.name: getattr(group, field.name)
        for field in declared(type(group))
        if field.flags and sources[field.name] == field.flags[0]
    }
