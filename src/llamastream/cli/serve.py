"""`llamastream serve`: an optimised llama-server in the foreground."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from llamastream.cli.options import with_settings
from llamastream.cli.screen import print_json
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import EngineCrashedError, SettingError
from llamastream.types import LogRecord

DEFAULT_PORT = 8080


@with_settings(EngineOptions, "engine", defaults={"port": DEFAULT_PORT})
def serve(
    context: typer.Context,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print state and log records to stdout as JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the server's log on stderr.")] = False,
    engine: EngineOptions,
    engine_sources: dict[str, str],
) -> None:
    """Run an optimised llama-server until SIGTERM or Ctrl-C.

    Without --model or -hf it serves the built-in demo model. Flags that are not listed here go to llama-server.
    """
    _check_arguments(context.args)
    changes: dict[str, Any] = {"extra_args": (*engine.extra_args, *context.args)}
    if engine.socket is None and engine_sources["port"] == "default":
        changes["port"] = DEFAULT_PORT
    engine = msgspec.structs.replace(engine, **changes)
    console = Console(stderr=True, highlight=False)
    stop = _StopSignals()
    with stop, launch(engine, on_log=_log_printer(json, verbose, console, stop)) as running:
        stop.ready = True
        _announce(running, json, console)
        stop.wait_for(running)
        if not stop.received:
            raise EngineCrashedError(
                "the server ended by itself",
                exit_code=running.wait(0),
                log_lines=[record.message for record in running.logs[-12:]],
            )
        if not json:
            console.print(Text("stopping", style="dim"))
    if json:
        with contextlib.suppress(BrokenPipeError):
            print_json({"event": "stopped"})


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


class _StopSignals:
    """Records SIGTERM and SIGINT instead of dying of them; the previous handlers come back afterwards.

    Attributes:
        received: the signal, or None. ready: the server runs; before that a signal breaks the start off.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.ready = False
        self._event = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._event.set()
            if not self.ready:
                raise KeyboardInterrupt
            return
        # A second signal means now: the child follows, since its guard notices that we are gone.
        os._exit(128 + number)

    def request(self) -> None:
        """Stop as on SIGTERM; from any thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    def wait_for(self, engine: Engine) -> None:
        """Return when a signal came or the server ended."""
        threading.Thread(target=self._watch, args=(engine,), daemon=True).start()
        self._event.wait()

    def _watch(self, engine: Engine) -> None:
        engine.wait()
        self._event.set()


def _announce(engine: Engine, json: bool, console: Console) -> None:
    if json:
        print_json(
            {
                "event": "ready",
                "url": engine.url,
                "pid": engine.pid,
                "kind": engine.kind,
                "model": engine.capabilities.model_alias,
                "slots": engine.capabilities.slots,
                "n_ctx": engine.capabilities.n_ctx,
                "build": engine.capabilities.build,
                "warnings": engine.warnings,
            }
        )
        return
    for warning in engine.warnings:
        console.print(Text(f"note: {warning}", style="yellow"))
    facts = engine.capabilities
    console.print(Text.assemble(("serving ", ""), (facts.model_alias or "model", "bold"), " on ", (engine.url, "bold")))
    console.print(
        Text(
            f"{engine.kind} engine {facts.build}, pid {engine.pid}: {facts.slots} slots × {facts.n_ctx:,} tokens, "
            f"{engine.options.threads} thread{'' if engine.options.threads == 1 else 's'}. "
            f"Try: {_try_line(engine)}. Ctrl-C stops.",
            style="dim",
        )
    )


def _try_line(engine: Engine) -> str:
    url = "" if engine.url == f"http://127.0.0.1:{DEFAULT_PORT}" else f"--url {engine.url} "
    key = "--api-key-file FILE " if engine.api_key else ""
    return f'llamastream chat {url}{key}"Who are you?"'


def _log_printer(json: bool, verbose: bool, console: Console, stop: _StopSignals) -> Callable[[LogRecord], None] | None:
    def print_record(record: LogRecord) -> None:
        try:
            print_json({"event": "log", **msgspec.structs.asdict(record)})
        except BrokenPipeError:
            # Whoever read our output left, and with it whoever wanted this server.
            if stop.received is None:
                stop.request()

    if json:
        return print_record
    if verbose:
        return lambda record: console.print(_log_line(record), soft_wrap=True)
    return None


def _log_line(record: LogRecord) -> Text:
    styles = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}
    return Text(
        f"{record.level:7} {record.source + ': ' if record.source else ''}{record.message}", styles[record.level]
    )
