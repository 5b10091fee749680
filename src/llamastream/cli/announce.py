"""What `serve` says when all its servers are ready: to people a few lines or a table, to programs one event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamastream.cli.servelog import ServeLog
from llamastream.engine import Engine
from llamastream.fleet.configuration import DEFAULT_PORT


def announce(engines: Mapping[str, Engine], log: ServeLog, url: str | None) -> None:
    """Tell people that the servers are ready.

    Args:
        engines: by their instances' names. url: of the gateway before them; None: there is none.
    """
    if log.form == "human":
        _warn(engines, log)
        if len(engines) == 1:
            _announce_one(next(iter(engines.values())), log, url)
        else:
            _announce_several(engines, log, url)
    log.announced = True


def _warn(engines: Mapping[str, Engine], log: ServeLog) -> None:
    from rich.text import Text  # megabytes, for people alone

    for instance, engine in engines.items():
        for warning in engine.warnings:
            log.console.print(Text(f"note: {instance}: {warning}", style="yellow"))


def ready_fields(name: str, control: str, engines: Mapping[str, Engine], url: str | None) -> dict[str, Any]:
    """What the event `ready` tells programs: where to send requests, the first server's figures, and those of all in
    `instances`.

    Args:
        name: of the fleet. control: path of its control socket. engines: by their instances' names. url: of the
            gateway before them; None: there is none, and the first server's stands there.
    """
    instances = [{"id": instance, **_figures(engine)} for instance, engine in engines.items()]
    first = _figures(next(iter(engines.values()))) if engines else {}
    if url is not None:
        first["url"] = url
    return {**first, "name": name, "control": control, "instances": instances}


def _figures(engine: Engine) -> dict[str, Any]:
    return {
        "url": engine.url,
        "pid": engine.pid,
        "kind": engine.kind,
        "model": engine.capabilities.model_alias,
        "slots": engine.capabilities.slots,
        "n_ctx": engine.capabilities.n_ctx,
        "build": engine.capabilities.build,
        "warnings": engine.warnings,
    }


def _announce_one(engine: Engine, log: ServeLog, url: str | None) -> None:
    from rich.text import Text  # as above

    facts = engine.capabilities
    where = engine.url if url is None else url
    log.console.print(Text.assemble(("serving ", ""), (facts.model_alias or "model", "bold"), " on ", (where, "bold")))
    log.console.print(
        Text(
            f"{engine.kind} engine {facts.build}, pid {engine.pid}: {facts.slots} slots × {facts.n_ctx:,} tokens, "
            f"{_threads(engine)}. Try: {_try_line(engine, url)}. Ctrl-C stops.",
            style="dim",
        )
    )


def _announce_several(engines: Mapping[str, Engine], log: ServeLog, url: str | None) -> None:
    from rich.table import Table  # as above
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    alone = ("url",) if url is None else ()
    for title in ("instance", "model", *alone, "pid", "slots", "threads"):
        table.add_column(title, no_wrap=True)
    for instance, engine in engines.items():
        facts = engine.capabilities
        table.add_row(
            Text(instance, style="bold"),
            facts.model_alias or "",
            *(Text(engine.url, style="bold") for _ in alone),
            str(engine.pid),
            f"{facts.slots} × {facts.n_ctx:,} tokens",
            str(engine.options.threads),
        )
    head = Text(f"serving with {len(engines)} instances")
    if url is not None:
        head.append(" on ").append(url, style="bold")
    log.console.print(head)
    log.console.print(table)
    first = next(iter(engines.values()))
    log.console.print(Text(f"Try: llamastream status, {_try_line(first, url)}. Ctrl-C stops.", style="dim"))


def _threads(engine: Engine) -> str:
    return f"{engine.options.threads} thread{'' if engine.options.threads == 1 else 's'}"


def _try_line(engine: Engine, url: str | None) -> str:
    where = engine.url if url is None else url
    there = "" if where == f"http://127.0.0.1:{DEFAULT_PORT}" else f"--url {where} "
    key = "--api-key-file FILE " if engine.api_key else ""
    return f'llamastream chat {there}{key}"Who are you?"'
