"""`llamastream tune`: the settings that are best here, found by measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamastream.bench.tune.settings import TuneSettings
from llamastream.cli.options import with_settings
from llamastream.engine import EngineOptions
from llamastream.errors import SettingError


@with_settings(TuneSettings, "tune", panel="What is looked for")
@with_settings(
    EngineOptions,
    "engine",
    only=("kind", "binary", "ctx_size", "cache_ram", "gpu", "gpu_layers"),
    panel="What stays as it is",
)
def tune(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="FILE", help="GGUF model file; several: one option for each."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="Write the settings found to this TOML file, for serve.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with all trials to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    tune: TuneSettings,
    tune_sources: dict[str, str],
    engine: EngineOptions,
    engine_sources: dict[str, str],
) -> None:
    """Find the settings of llama-server that are best on this machine.

    Threads, batch sizes, slots, flash attention, type of the KV cache and load mode are tried on servers of its own,
    and the best are measured in turn with llama-server's defaults. The result goes to stdout, all else to stderr.
    Ctrl-C ends the search and shows the best so far (exit code 130). Exit code 1: no model is fast enough.
    """
    # Only here: no other command should wait for all of this.
    from llamastream.cli.tunerun import Outputs, find

    models = tuple(model or ())
    if not models and engine.model is not None:
        models = (engine.model,)
    if not models:
        raise SettingError("there is no model to tune for: give --model FILE, once or several times")
    if len(models) > 1 and write is not None and tune.min_tokens_per_second is None:
        raise SettingError(
            "--write with several models needs --min-tokens-per-second: the largest that is so fast is written"
        )
    raise typer.Exit(find(models, engine, tune, Outputs(write, force, json, html, quiet)))
