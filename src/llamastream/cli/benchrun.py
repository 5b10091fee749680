"""What `llamastream bench` does: finds or starts the server, measures, gives out and keeps the result."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from llamastream.bench.baselines import baseline_directory, check_name, names, read, save
from llamastream.bench.compare import Comparison, check_comparable, compare
from llamastream.bench.loop import run
from llamastream.bench.measure import Measurement, Watcher, run_in_turn, workload_of
from llamastream.bench.page import html_page
from llamastream.bench.report import Report, ServerFacts, count
from llamastream.bench.settings import BenchSettings
from llamastream.bench.tables import as_csv
from llamastream.cli.benchfleet import facts_of, fleet_of
from llamastream.cli.benchprogress import Progress
from llamastream.cli.benchtables import baselines_table, print_report
from llamastream.cli.screen import need_stdout, output, print_json, readers_may_not_leave
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.engine.demo import DEMO_ALIAS
from llamastream.engine.embedded import embedded_version
from llamastream.errors import BenchError, SettingError
from llamastream.printable import one_line
from llamastream.settings import ClientSettings, replaced_settings

REGRESSION = 1
"""Exit code: slower than the baseline."""

_TOLD = ("threads", "threads_batch", "parallel", "ctx_size", "cache_ram", "gpu", "gpu_layers", "extra_args")
"""Settings of a server of our own that belong to its figures."""


class Outputs(Struct, frozen=True):
    """Where the result goes, and what it is compared with: the command's options of these names."""

    json: bool
    csv: Path | None
    html: Path | None
    save_as: str | None
    compare_to: str | None
    versus: str | None
    threshold: float
    host_name: bool
    quiet: bool


class Own(Struct, frozen=True):
    """A server, or a fleet, to start for a measurement.

    Attributes:
        engine: its options. sources: where each of them comes from. demo: with the demo model. instances: of a fleet
            behind the gateway; None: one server alone.
    """

    engine: EngineOptions
    sources: dict[str, str]
    demo: bool
    instances: int | None


def measure(bench: BenchSettings, client: ClientSettings, own: Own | None, outputs: Outputs) -> int:
    """Measure, and give out the result.

    Args:
        own: what to start for it; None: it runs.

    Returns:
        The exit code.

    Raises:
        LlamaStreamError: nothing could be measured.
    """
    need_stdout()
    directory = baseline_directory()
    for path in (outputs.csv, outputs.html):
        if path is not None and not path.absolute().parent.is_dir():
            raise SettingError(f"{path}: the directory {path.absolute().parent} does not exist")
    if outputs.save_as is not None:
        check_name(outputs.save_as)
    baseline = None if outputs.compare_to is None else read(outputs.compare_to, directory)
    workload_of(bench)  # a file of prompts that is wrong is told of now, and not once a server has been started for it
    console = Console(stderr=True, highlight=False)
    with _server(client, own, console, quiet=outputs.quiet) as (settings, server):
        progress = Progress(console, quiet=outputs.quiet)
        measurement = Measurement(settings, bench, progress.watcher, server=server)
        measurements = [measurement]
        if outputs.versus is not None:
            other = replaced_settings(client, {"base_url": outputs.versus}, "the settings", "--versus")
            measurements.append(Measurement(other, bench, Watcher(on_lap=progress.pass_by)))
            progress.servers = 2
        if baseline is not None:
            check_comparable(baseline, measurement.report())  # now, and not after minutes
        with progress:
            run(partial(run_in_turn, measurements))
    report = measurement.report(host=outputs.host_name)
    comparison = None
    if len(measurements) > 1:
        baseline = measurements[1].report()
    if baseline is not None and measurement.succeeded and not report.interrupted:
        comparison = compare(baseline, report, threshold=outputs.threshold)
    _write(report, measurement, comparison, outputs)
    if outputs.save_as is not None and measurement.succeeded and not report.interrupted:
        path = save(report, outputs.save_as, directory)
        console.print(Text(f"kept as baseline {outputs.save_as}: {path}", style="dim"), soft_wrap=True)
    with readers_may_not_leave():
        _show(report, comparison, outputs)
    if report.interrupted:
        return 128 + signal.SIGINT
    if not measurement.succeeded:
        raise BenchError(f"no request succeeded: {one_line(measurement.first_failure)}")
    return REGRESSION if comparison is not None and comparison.regressions else 0


def _write(report: Report, measurement: Measurement, comparison: Comparison | None, outputs: Outputs) -> None:
    """Write the files."""
    if outputs.csv is not None:
        outputs.csv.write_text(as_csv(measurement.laps), encoding="utf-8")
    if outputs.html is not None:
        outputs.html.write_text(html_page(report, measurement.laps, comparison), encoding="utf-8")


def _show(report: Report, comparison: Comparison | None, outputs: Outputs) -> None:
    """Print the result."""
    if outputs.json:
        found = None
        if comparison is not None:
            found = {**msgspec.structs.asdict(comparison), "regressions": len(comparison.regressions)}
        print_json({**msgspec.structs.asdict(report), "comparison": found})
    else:
        print_report(output(), report, comparison)


@contextmanager
def _server(
    client: ClientSettings, own: Own | None, console: Console, *, quiet: bool
) -> Iterator[tuple[ClientSettings, ServerFacts]]:
    """What to measure: a server or a fleet of our own for the while, if there is to be one."""
    if own is None:
        yield client, ServerFacts()
    elif own.instances is not None:
        with fleet_of(own.instances, own.engine, own.sources, demo=own.demo) as fleet:
            facts = facts_of(fleet, own.instances, own.engine, _TOLD)
            _tell(
                console, f"{facts.model} on {fleet.url} ({facts.where}, {count(facts.slots or 0, 'slot')})", quiet=quiet
            )
            yield msgspec.structs.replace(client, base_url=fleet.url, api_key=fleet.key), facts
    else:
        options = own.engine
        if own.demo:
            options = msgspec.structs.replace(options, model=None, hf=None, alias=DEMO_ALIAS)
        with launch(options) as engine:
            what = f"{count(engine.capabilities.slots or 0, 'slot')} × {engine.capabilities.n_ctx:,} tokens"
            alias = engine.capabilities.model_alias
            _tell(console, f"{alias} on {engine.url} ({engine.kind} engine, {what})", quiet=quiet)
            yield msgspec.structs.replace(client, base_url=engine.url, api_key=engine.api_key), _facts(engine)


def _tell(console: Console, what: str, *, quiet: bool) -> None:
    if not quiet:
        console.print(Text(one_line(f"measuring {what}"), style="dim"), soft_wrap=True)


def _facts(engine: Engine) -> ServerFacts:
    settings = {name: value for name in _TOLD if (value := getattr(engine.options, name)) not in (None, ())}
    return ServerFacts(
        where=f"a server of its own, {engine.kind}",
        # The wheel's own build says nothing of its version.
        build=f"xllamacpp {embedded_version()}" if engine.kind == "embedded" else engine.capabilities.build,
        model=engine.capabilities.model_alias or "",
        own=True,
        settings=settings,
    )


def list_baselines(*, json: bool) -> None:
    """Print which baselines there are."""
    directory = baseline_directory()
    known = {name: read(name, directory) for name in names(directory)}
    if json:
        print_json(
            [
                {"name": name, "created": report.created, "server": report.server, "machine": report.machine,
                 "loads": [result.label for result in report.loads]}
                for name, report in known.items()
            ]
        )  # fmt: skip
    elif known:
        output().print(baselines_table(known))
    else:
        Console(stderr=True).print(f"no baselines in {directory}; `llamastream bench --save NAME` makes one")
