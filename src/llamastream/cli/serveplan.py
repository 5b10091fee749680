"""What `serve` is to run: servers, and the gateway before them; or the gateway alone, before servers that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from llamastream.alerts.settings import AlertSettings
from llamastream.cli.alertbaseline import with_baseline
from llamastream.engine import EngineOptions
from llamastream.engine.preflight import check_extra_args
from llamastream.errors import SettingError
from llamastream.fleet.behind import LOCAL, Front, behind, front_of
from llamastream.fleet.configuration import DEFAULT_PORT, PASSING, Configuration, configure
from llamastream.fleet.settings import FleetSettings, Pool
from llamastream.gateway.exposure import is_own_address
from llamastream.gateway.settings import GatewaySettings
from llamastream.settings import load

SERVE_KEY = "serve"
"""Name of the gateway's key that was given as the servers' own."""


class Given(Struct, frozen=True):
    """What the command line said of each group of settings, the flags for llama-server, and whether the demo model is
    to be served, whatever the settings say."""

    engine: Mapping[str, Any] = {}
    fleet: Mapping[str, Any] = {}
    gateway: Mapping[str, Any] = {}
    alerts: Mapping[str, Any] = {}
    extra_args: tuple[str, ...] = ()
    demo: bool = False


class ServePlan(Struct, frozen=True, kw_only=True):
    """Attributes:
    configuration: the servers, on their own addresses. gateway: its settings. front: where the gateway listens; None:
        there is none. alerts: their settings.
    """

    configuration: Configuration
    gateway: GatewaySettings
    front: Front | None
    alerts: AlertSettings

    def pools(self, directory: Path) -> tuple[Pool, ...]:
        """The servers as they are started; those behind the gateway on sockets in this directory."""
        pools = self.configuration.pools
        return pools if self.front is None else behind(pools, directory)

    @property
    def name(self) -> str:
        """By which other commands find the fleet."""
        return self.configuration.name

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown."""
        return self.configuration.secrets | secret_keys(self.gateway) | self.alerts.secrets


def secret_keys(settings: GatewaySettings) -> frozenset[str]:
    """The gateway's keys as far as the settings themselves hold any."""
    if not settings.api_keys:
        return frozenset()
    from llamastream.gateway.keys import key_texts  # here, as in `cli.front`

    return key_texts(settings.api_keys)


def plan_servers(given: Given, environ: Mapping[str, str] | None = None) -> ServePlan:
    """Read everything anew.

    Raises:
        SettingError: the file cannot be read, or a value is not allowed. EngineError: the engine takes no such flag, or
            there is none.
    """
    configuration = configure(given.engine, given.fleet, given.extra_args, environ, demo=given.demo)
    for pool in configuration.pools:
        check_extra_args(pool.options)  # now, and not as a server that cannot start again and again
    gateway = gateway_settings(given, environ)
    front = None
    if gateway.enabled:
        front = front_of(configuration.pools)
        gateway = with_serve_keys(gateway, front)
    alerts = alert_settings(given, configuration.pools, environ)
    return ServePlan(configuration=configuration, gateway=gateway, front=front, alerts=alerts)


def gateway_settings(given: Given, environ: Mapping[str, str] | None = None) -> GatewaySettings:
    """The gateway's settings; where they do not say how long running requests have at the end, the fleet's do.

    Raises:
        SettingError: a value is not allowed.
    """
    gateway, sources = load(GatewaySettings, given=given.gateway, environ=environ)
    if sources["drain_timeout"] == "default":
        fleet, _ = load(FleetSettings, given=given.fleet, environ=environ)
        gateway = replace(gateway, drain_timeout=fleet.drain_timeout)
    return gateway


def alert_settings(
    given: Given, pools: Sequence[Pool] | None, environ: Mapping[str, str] | None = None
) -> AlertSettings:
    """The settings of alerts; of a baseline that they name, its figures.

    Args:
        pools: what is served; None: servers that somebody else runs.

    Raises:
        SettingError: a value is not allowed, or see `with_baseline`. BenchError: the baseline cannot be read.
    """
    settings = load(AlertSettings, given=given.alerts, environ=environ)[0]
    return with_baseline(settings, pools, environ) if settings.watch else settings


def with_serve_keys(settings: GatewaySettings, front: Front) -> GatewaySettings:
    """The settings with the servers' keys as keys of the gateway, which may do all that they could."""
    if not front.api_keys:
        return settings
    names = [SERVE_KEY, *(f"{SERVE_KEY}-{number}" for number in range(2, len(front.api_keys) + 1))]
    lines = [f"{name}:admin:{key}" for name, key in zip(names, front.api_keys, strict=True)]
    if any(" " in key for key in front.api_keys):
        raise SettingError("api_key = (hidden) is not allowed: a key of the gateway has no blanks; or use --no-gateway")
    return replace(settings, api_keys=" ".join((*lines, *filter(None, (settings.api_keys,)))))


class UpstreamPlan(Struct, frozen=True, kw_only=True):
    """Attributes:
    gateway: its settings. front: where it listens. alerts: what is watched. name: by which other commands find
        it.
    """

    gateway: GatewaySettings
    front: Front
    alerts: AlertSettings
    name: str

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown."""
        key = self.gateway.upstream_api_key
        return secret_keys(self.gateway) | self.alerts.secrets | (frozenset({key}) if key else frozenset())


def plan_upstreams(given: Given, environ: Mapping[str, str] | None = None) -> UpstreamPlan:
    """The gateway before servers that already run.

    Raises:
        SettingError: a value is not allowed, is about servers that would be started, or an upstream is the gateway
            itself.
    """
    engine, sources = load(EngineOptions, given=given.engine, environ=environ)
    settings = gateway_settings(given, environ)
    fleet, _ = load(FleetSettings, given=given.fleet, environ=environ)
    of_servers = set(given.engine) - {"host", "port", "socket", "api_key"} | set(given.fleet) - {
        "drain_timeout",
        "name",
    }
    if of_servers or given.extra_args or given.demo:
        name = "--demo" if given.demo else min(of_servers) if of_servers else given.extra_args[0]
        raise SettingError(
            f"{name} is about servers that serve starts, but with --upstream it starts none: leave out one of the two"
        )
    if not settings.enabled:
        raise SettingError("--upstream is for the gateway, and --no-gateway says that there is none")
    port = DEFAULT_PORT if engine.socket is None and sources["port"] == "default" else engine.port
    keys = () if engine.api_key is None else (engine.api_key,)
    front = Front(host=engine.host or LOCAL, port=port, socket=engine.socket, api_keys=keys)
    for url in settings.upstreams:
        if is_own_address(url, front.host, front.port, front.socket):
            raise SettingError(
                f"upstreams = {url!r} is the address on which this gateway listens: requests would go round in "
                "circles; name the server's own address, or listen on another --port"
            )
    shown = front.port if front.socket is None else 0
    name = fleet.name or (f"serve-{shown}" if shown else f"{PASSING}{os.getpid()}")
    alerts = alert_settings(given, None, environ)
    return UpstreamPlan(gateway=with_serve_keys(settings, front), front=front, alerts=alerts, name=name)
