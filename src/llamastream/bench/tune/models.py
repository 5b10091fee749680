"""Several models: which is the largest that is fast enough."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import msgspec

from llamastream.bench.machine import describe_machine
from llamastream.bench.tune.result import ModelResult, TuneResult
from llamastream.bench.tune.search import Search, Watcher
from llamastream.bench.tune.settings import TuneSettings
from llamastream.engine import EngineOptions
from llamastream.engine.resolve import check_model


def largest_first(models: Sequence[str]) -> list[str]:
    """The absolute paths, by size; of the same size in their order.

    Raises:
        ModelFileError: one of them cannot be used.
    """
    paths = list(dict.fromkeys(str(Path(model).expanduser().absolute()) for model in models))
    return sorted(paths, key=lambda path: -check_model(path).size)


async def tune(
    models: Sequence[str], options: EngineOptions, settings: TuneSettings, watcher: Watcher | None = None
) -> TuneResult:
    """Search for each model, the largest first, until one is as fast as is wanted; each has its share of the time that
    is left. Cancelling it once gives what was found so far.

    Raises:
        SettingError: the settings do not fit together.
        LlamaStreamError: a model cannot be measured with llama-server's defaults.
    """
    watcher = watcher or Watcher()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    began, nonce = monotonic(), secrets.token_hex(8)
    waiting = largest_first(models)
    results: list[ModelResult] = []
    while waiting and not (results and (results[-1].interrupted or fast_enough(results[-1], settings))):
        left = settings.budget - (monotonic() - began)
        model = waiting.pop(0)
        watcher.on_model(model)
        share = max(left / (len(waiting) + 1), settings.budget / 20)
        results.append(await Search(model, options, settings, share, nonce, watcher).run())
    return TuneResult(
        created=created,
        machine=describe_machine(),
        settings=msgspec.structs.asdict(settings),
        models=tuple(results),
        wanted=wanted(results, settings),
        skipped=() if results[-1].interrupted else tuple(waiting),
        interrupted=results[-1].interrupted,
    )


def fast_enough(result: ModelResult, settings: TuneSettings) -> bool:
    """Whether it has the speed that is wanted; never, if none is."""
    wanted = settings.min_tokens_per_second
    return wanted is not None and result.figures.stream >= wanted


def wanted(results: Sequence[ModelResult], settings: TuneSettings) -> str | None:
    """The model to use: the largest that is fast enough; where no speed is wanted, the only one."""
    if settings.min_tokens_per_second is None:
        return results[0].model if len(results) == 1 else None
    enough = [result for result in results if fast_enough(result, settings)]
    return max(enough, key=lambda result: result.size).model if enough else None
