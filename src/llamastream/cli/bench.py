"""`llamastream bench`: a server under load, measured, kept, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamastream.bench.settings import THRESHOLD, BenchSettings
from llamastream.cli.options import with_settings
from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.settings import ClientSettings


@with_settings(BenchSettings, "bench", panel="What is measured")
@with_settings(
    ClientSettings, "client", only=("base_url", "api_key", "ca_file", "temperature", "recovery"), panel="The server"
)
@with_settings(
    EngineOptions,
    "engine",
    only=("kind", "binary", "model", "parallel", "ctx_size", "threads", "threads_batch", "cache_ram", "gpu",
          "gpu_layers"),
    panel="Servers of its own (with --model, --demo or --instances)",
)  # fmt: skip
def bench(
    *,
    demo: Annotated[bool, typer.Option("--demo", help="Start a server with the demo model, and measure that.")] = False,
    instances: Annotated[
        int | None,
        typer.Option(
            "--instances",
            min=1,
            max=256,
            help="Start a fleet of so many servers behind the gateway, as serve does, and measure that.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a row for each request to this file.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots to this file.")] = None,
    save_as: Annotated[
        str | None, typer.Option("--save", metavar="NAME", help="Keep the result as a baseline of this name.")
    ] = None,
    compare_to: Annotated[
        str | None,
        typer.Option("--compare", metavar="NAME", help="Judge the result by a baseline; exit with 1 if it is slower."),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option(
            "--versus",
            metavar="URL",
            help="Measure the server at this address in turn with the other, and judge by it instead of by a baseline.",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=10, help="Slowdown that --compare and --versus let pass: 0.05 is 5 %.")
    ] = THRESHOLD,
    list_all: Annotated[bool, typer.Option("--list", help="List the baselines, and measure nothing.")] = False,
    host_name: Annotated[
        bool, typer.Option("--host-name", help="Put the machine's name into what is written.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    bench: BenchSettings,
    bench_sources: dict[str, str],
    client: ClientSettings,
    client_sources: dict[str, str],
    engine: EngineOptions,
    engine_sources: dict[str, str],
) -> None:
    """Measure a server under load: latencies, tokens per second, errors.

    Closed loops keep a number of requests running; open loops send them on a schedule. The result goes to stdout, all
    else to stderr. Ctrl-C ends the streams and shows what was measured so far (exit code 130).
    """
    # Only here: no other command should wait for all of this.
    from llamastream.cli.benchrun import Outputs, Own, list_baselines, measure

    if list_all:
        list_baselines(json=json)
        return
    own = demo or instances is not None or engine_sources["model"] == "--model"
    if own and client_sources["base_url"] == "--url":
        raise SettingError(
            "give either --url or --demo, --model or --instances: the one names a server, the others start some"
        )
    if demo and engine_sources["model"] == "--model":
        raise SettingError("give either --demo or --model: they are two models")
    if versus is not None and compare_to is not None:
        raise SettingError("give either --versus or --compare: a result is judged by one thing")
    outputs = Outputs(json, csv, html, save_as, compare_to, versus, threshold, host_name, quiet)
    raise typer.Exit(measure(bench, client, Own(engine, engine_sources, demo, instances) if own else None, outputs))
