"""What is usual here: the speed of a measurement that `bench --save` kept, for the rule `tokens_per_second`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from llamastream.alerts.settings import AlertSettings
from llamastream.errors import SettingError
from llamastream.fleet.settings import Pool


def with_baseline(
    settings: AlertSettings, pools: Sequence[Pool] | None, environ: Mapping[str, str] | None = None
) -> AlertSettings:
    """The settings with the figures of the baseline that they name, if they name one.

    Args:
        pools: what is served; None: servers of somebody else, whose models nobody knows yet.

    Raises:
        SettingError: there is no such baseline, it is of another model, or it has no speed. BenchError: it cannot be
            read.
    """
    name = settings.baseline
    if not isinstance(name, str):
        return settings
    from llamastream.bench.baselines import baseline_directory, read  # here: who names none, needs none of it

    report = read(name, baseline_directory(environ))
    measured = report.settings.get("model_name") or report.server.model
    model = settings.tokens_per_second_model
    if measured and pools is not None:
        served = {pool.options.alias or pool.name: names_of(pool) for pool in pools}
        found = next((alias for alias, names in served.items() if plain(measured) in names), None)
        if found is None:
            raise SettingError(
                f"tokens_per_second_baseline = {name!r} is of the model {measured!r}, which is not served here; "
                f"served: {', '.join(served)}; measure one of these with `llamastream bench --save {name}`, or give a "
                "number"
            )
        # of a single model all requests are judged, whatever name they call it by
        model = model or (found if len(pools) > 1 else None)
    medians = [
        result.percentiles["tokens_per_second"]["p50"].value
        for result in report.loads
        if "tokens_per_second" in result.percentiles
    ]
    if not medians:
        raise SettingError(
            f"tokens_per_second_baseline = {name!r} has no tokens per second: its answers were too short; make it anew "
            f"with `llamastream bench --output-tokens 64 --save {name}`"
        )
    # the load in which streams were slowest: what is usual there must not alert
    return replace(settings, tokens_per_second_baseline=min(medians), tokens_per_second_model=model)


def names_of(pool: Pool) -> Collection[str]:
    """Names by which a measurement may know the model of a pool."""
    options = pool.options
    return {plain(name) for name in (options.alias, options.model, options.hf, pool.name) if name}


def plain(name: str) -> str:
    """A model's name without directory, quantisation's tag and ending."""
    return Path(name.replace("\\", "/")).name.partition(":")[0].removesuffix(".gguf")
