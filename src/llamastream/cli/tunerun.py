"""What `llamastream tune` does: searches, and gives out what was found."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamastream.bench.loop import run
from llamastream.bench.report import count
from llamastream.bench.tune.models import tune
from llamastream.bench.tune.page import conclusion, tune_page
from llamastream.bench.tune.result import ModelResult, TuneResult, figure_text
from llamastream.bench.tune.settings import TuneSettings
from llamastream.bench.tune.writing import check_target, settings_text, write_settings
from llamastream.cli.screen import need_stdout, output, print_json, readers_may_not_leave
from llamastream.cli.tuneprogress import Progress
from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.printable import one_line

TOO_SLOW = 1
"""Exit code: no model is fast enough."""


class Outputs(Struct, frozen=True):
    """Where the result goes: the command's options of these names."""

    write: Path | None
    force: bool
    json: bool
    html: Path | None
    quiet: bool


def find(models: Sequence[str], engine: EngineOptions, settings: TuneSettings, outputs: Outputs) -> int:
    """Search, and give out the result.

    Returns:
        The exit code.

    Raises:
        LlamaStreamError: nothing could be measured, or a file cannot be written.
    """
    need_stdout()
    if outputs.write is not None:
        check_target(outputs.write, force=outputs.force)
    if outputs.html is not None and not outputs.html.absolute().parent.is_dir():
        raise SettingError(f"{outputs.html}: the directory {outputs.html.absolute().parent} does not exist")
    console = Console(stderr=True, highlight=False)
    # hints of clients about proxies and prompts: here they ask servers of our own, and what fails has its reason
    logging.getLogger("llamastream").addHandler(logging.NullHandler())
    try:
        with Progress(console, settings.budget, quiet=outputs.quiet) as progress:
            result = run(partial(tune, models, engine, settings, progress.watcher))
    except KeyboardInterrupt:
        console.print(Text("broken off before anything was measured: there is no result", style="yellow"))
        return 128 + signal.SIGINT
    if outputs.html is not None:
        outputs.html.write_text(tune_page(result), encoding="utf-8")
    too_slow = result.chosen is None and settings.min_tokens_per_second is not None
    if outputs.write is not None and not (result.interrupted or too_slow):
        write_settings(result, outputs.write, force=outputs.force)
        said = f"written to {outputs.write}; use it with: LLAMASTREAM_CONFIG={outputs.write} llamastream serve"
        console.print(Text(said, style="dim"), soft_wrap=True)
    with readers_may_not_leave():
        if outputs.json:
            print_json(msgspec.to_builtins(result))
        else:
            _print(output(), result)
    if result.interrupted:
        return 128 + signal.SIGINT
    return TOO_SLOW if too_slow else 0


def _print(console: Console, result: TuneResult) -> None:
    for model in result.models:
        if len(result.models) > 1:
            console.print(Text(one_line(model.model), style="bold"), soft_wrap=True)
        _print_model(console, model, str(result.settings["goal"]))
    if line := conclusion(result):
        console.print(Text(one_line(line), style="green" if result.chosen else "bold red"), soft_wrap=True)
    if result.interrupted:
        console.print(Text("broken off; this is the best so far", style="yellow"))
    elif result.chosen is not None:
        console.print()
        console.print(Text(settings_text(result)), soft_wrap=True)


def _print_model(console: Console, model: ModelResult, goal: str) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("settings", f"tokens/s, {goal}", "of a stream", "first token", "gain over the defaults", "pairs"):
        table.add_column(title, no_wrap=True, justify="left" if title == "settings" else "right")
    before = model.defaults
    first = f"{figure_text(before.first_token * 1e3)} ms"
    table.add_row("llama-server's defaults", figure_text(before.score), figure_text(before.stream), first)
    for one in model.finalists:
        stream = shown_first = ""
        if model.best is not None and one.settings == model.chosen_words:
            stream, shown_first = figure_text(model.best.stream), f"{figure_text(model.best.first_token * 1e3)} ms"
        gain, pairs = (str(one.gain), str(one.gain.pairs)) if one.gain else ("not compared", "")
        table.add_row(Text(one_line(one.settings)), figure_text(one.score), stream, shown_first, gain, pairs)
    console.print(table)
    failed = sum(tried.figures is None for tried in model.tried)
    spent = f"{count(len(model.tried), 'trial')}, {failed} failed, in {model.seconds:.0f} s; {model.engine}"
    console.print(Text(one_line(spent), style="dim"), soft_wrap=True)
    console.print(Text(one_line(model.verdict), style="green" if model.gain else "yellow"), soft_wrap=True)
