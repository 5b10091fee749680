"""`llamastream serve`: optimised llama-servers in the foreground, supervised."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from llamastream.alerts.settings import AlertSettings
from llamastream.cli.options import with_settings
from llamastream.cli.servelog import LogFormat, ServeLog
from llamastream.cli.serveplan import Given, plan_servers, plan_upstreams
from llamastream.cli.service import Service
from llamastream.cli.upstreaming import Upstreaming
from llamastream.engine import EngineOptions
from llamastream.errors import LlamaStreamError, SettingError, UnsupportedFlagError
from llamastream.fleet.configuration import DEFAULT_PORT, given_of
from llamastream.fleet.records import Record
from llamastream.fleet.settings import FleetSettings
from llamastream.gateway.settings import GatewaySettings
from llamastream.heap import share_heaps
from llamastream.settings import with_sources


@with_settings(AlertSettings, "alerts", panel="Options of alerts")
@with_settings(GatewaySettings, "gateway", panel="Options of the gateway")
@with_settings(FleetSettings, "fleet", panel="Options of the fleet")
@with_settings(EngineOptions, "engine", defaults={"port": DEFAULT_PORT}, panel="Options of each server")
def serve(
    context: typer.Context,
    *,
    demo: Annotated[
        bool, typer.Option("--demo", help="Serve the built-in demo model, whatever the settings name.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print state and log records to stdout as JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all that the servers log.")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            help="Form of what is said on stderr; auto: human on a terminal, else json, but nothing with --json."
        ),
    ] = "auto",
    engine: EngineOptions,
    engine_sources: dict[str, str],
    fleet: FleetSettings,
    fleet_sources: dict[str, str],
    gateway: GatewaySettings,
    gateway_sources: dict[str, str],
    alerts: AlertSettings,
    alerts_sources: dict[str, str],
) -> NoReturn:
    """Run optimised llama-servers behind one address until SIGTERM or Ctrl-C, and keep them alive.

    Without --model or -hf it serves the models of the settings file, else the built-in demo model; with --demo that one
    in any case. A gateway listens on --port: it queues requests, balances them, and mends streams whose server dies.
    With --no-gateway the servers listen themselves, the first on --port, each further one on the next port. With
    --upstream URL none is started: the gateway stands before servers that already run. Flags that are not listed here
    go to llama-server.

    SIGTERM lets running requests finish, a second one does not. SIGHUP applies a changed settings file. From elsewhere
    it is controlled by `llamastream` status, logs, restart, drain, undrain, reload and stop.
    """
    _check_arguments(context.args)
    named = [engine_sources[field] for field in ("model", "hf") if engine_sources[field].startswith("-")]
    if demo and named:
        raise SettingError(f"give either --demo or {named[0]}: they are two models")
    share_heaps()
    given = Given(
        given_of(engine, engine_sources),
        given_of(fleet, fleet_sources),
        given_of(gateway, gateway_sources),
        given_of(alerts, alerts_sources),
        tuple(context.args),
        demo,
    )
    log = ServeLog(log_format, events=json, verbose=verbose)
    try:
        service: Service | Upstreaming
        if gateway.upstreams:
            service = Upstreaming(lambda: plan_upstreams(given), log)
        else:
            service = Service(lambda: plan_servers(given), log)
        log.on_broken = service.request_stop
        code = service.run()
    except LlamaStreamError as error:
        if isinstance(error, UnsupportedFlagError):
            error = with_options(error, context.args, [name for each in context.command.params for name in each.opts])
        if isinstance(error, SettingError):
            error = with_sources(error, {**alerts_sources, **gateway_sources, **fleet_sources, **engine_sources})
        if log.form != "json":
            log.event({"event": "failed", "message": error.message})
            raise error from None
        log.take(Record(time=time.time(), level="error", event="failed", message=error.message))
        raise typer.Exit(1) from None
    finally:
        log.close()
    raise typer.Exit(code)


def _check_arguments(arguments: list[str]) -> None:
    """What is no option of ours goes to llama-server, unless it is plainly a mistake.

    Raises:
        SettingError: it is.
    """
    if arguments and not arguments[0].startswith("-"):
        raise SettingError(f"serve takes options only, not {arguments[0]!r}; for a model file: --model {arguments[0]}")
    for argument in arguments:
        if argument.partition("=")[0] == "--api-key":
            raise SettingError(
                "there is no --api-key, since every user of the machine can read command lines; "
                "use --api-key-file FILE, or the variable LLAMASTREAM_SERVE_API_KEY"
            )


def with_options(error: UnsupportedFlagError, arguments: Sequence[str], options: Sequence[str]) -> UnsupportedFlagError:
    """The error about a flag that was handed on to llama-server; if one of our options is meant, it says that instead.

    Args:
        arguments: what was handed on. options: ours.
    """
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        near = difflib.get_close_matches(flag, options, n=1, cutoff=0.75)
        if near and flag.startswith("--") and flag in error.message:
            return UnsupportedFlagError(f"neither serve nor its engine knows {flag}; did you mean {near[0]}?")
    return error
