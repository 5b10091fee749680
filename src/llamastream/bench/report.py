"""What a measurement found: the document that is shown, written and kept as a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from llamastream.bench.loads import Load
from llamastream.bench.machine import Machine
from llamastream.bench.samples import PER_REQUEST, Lap, Sample
from llamastream.bench.statistics import Estimate, estimate_percentile, estimate_pooled, percentile

FORMAT = 1
SHARES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
SLOW_SHARES = {"p50": 0.50, "p10": 0.10, "p5": 0.05, "p1": 0.01}
"""Of speeds, the bad end is the low one."""

PER_LAP = ("total_tokens_per_second", "requests_per_second")
"""Measures that each repeat has one value of."""

SPEEDS = frozenset(name for name in (*PER_REQUEST, *PER_LAP) if name.endswith("per_second"))
"""Measures of which more is better; all others are seconds, of which less is better."""

Percentiles: TypeAlias = dict[str, Estimate]

KEPT = ("time_to_first_token", "time_per_token", "end_to_end")
"""Measures that baselines are compared by."""

MOST_VALUES = 100

BUSY = 0.7
"""Of a core: a load generator that spends more may be what is measured."""

LATE = 0.05
"""Seconds: requests of an open loop that go out later than this are worth a note."""


class ServerFacts(Struct, frozen=True):
    """What was measured. `where`: its address, where it says nothing of a machine's name. `settings`: of a server of
    our own, as far as they were set."""

    where: str = ""
    build: str = ""
    model: str = ""
    slots: int | None = None
    n_ctx: int | None = None
    own: bool = False
    settings: dict[str, Any] = {}


class LoadResult(Struct, frozen=True):
    """What was measured of one load, in all repeats together.

    Attributes:
        requests, failed: how many, and how many of them ended badly. errors: their names, and how often.
        recoveries: kinds of breaks that were mended, and how often. retries: attempts that failed at the beginning.
        percentiles: of each measure, over all requests; `inter_token_latency` over all gaps.
        per_repeat: what baselines are compared by: of each measure, for each repeat, the sorted values of its requests
            (of many, `MOST_VALUES` that stand for all).
        repeated: answers that a gateway says were not generated for us, but came from its response cache.
        generator_load: cores that the load generator kept busy. lag: the most seconds that it sent a request too late.
    """

    load: Load
    requests: int
    failed: int
    errors: dict[str, int]
    recoveries: dict[str, int]
    retries: int
    prompt_tokens: float | None
    cached_tokens: float | None
    output_tokens: float | None
    percentiles: dict[str, Percentiles]
    per_repeat: dict[str, list[list[float]]]
    seconds: float
    generator_load: float
    lag: float
    repeated: int = 0

    @property
    def label(self) -> str:
        """Of the load."""
        return self.load.label


class Report(Struct, frozen=True):
    """A whole measurement. `created` is a time in UTC, ISO 8601; `interrupted`: it was broken off."""

    created: str
    machine: Machine
    server: ServerFacts
    settings: dict[str, Any]
    loads: list[LoadResult]
    interrupted: bool = False
    notes: list[str] = []
    format: int = FORMAT


def summarise(laps: Sequence[Lap], seed: int) -> list[LoadResult]:
    """One result for each load, in the order in which they come first."""
    by_load: dict[Load, list[Lap]] = {}
    for lap in laps:
        by_load.setdefault(lap.load, []).append(lap)
    ordered = sorted(by_load, key=lambda load: (load.kind, load.value))
    return [_summarise(load, by_load[load], seed) for load in ordered]


def _summarise(load: Load, laps: Sequence[Lap], seed: int) -> LoadResult:
    samples = [sample for lap in laps for sample in lap.samples]
    good = [sample for sample in samples if sample.ok]
    seconds = sum(lap.seconds for lap in laps)
    percentiles: dict[str, Percentiles] = {}
    for name in PER_REQUEST:
        if values := values_of(samples, name):
            shares = SLOW_SHARES if name in SPEEDS else SHARES
            percentiles[name] = {key: estimate_percentile(values, share) for key, share in shares.items()}
    gaps = [sample.gaps for sample in samples if sample.gaps]
    if gaps:
        found = estimate_pooled(gaps, list(SHARES.values()), seed)
        percentiles["inter_token_latency"] = dict(zip(SHARES, found, strict=True))
    for name in PER_LAP:
        if over := [value for lap in laps if (value := getattr(lap, name)) is not None]:
            mean = sum(over) / len(over)
            percentiles[name] = {"mean": Estimate(mean, min(over), max(over)) if len(over) > 1 else Estimate(mean)}
    return LoadResult(
        load=load,
        requests=len(samples),
        failed=len(samples) - len(good),
        errors=dict(Counter(sample.error for sample in samples if sample.error)),
        recoveries=dict(Counter(kind for sample in samples for kind in sample.recoveries)),
        retries=sum(sample.retries for sample in samples),
        prompt_tokens=_mean([sample.prompt_tokens for sample in good]),
        cached_tokens=_mean([sample.cached_tokens for sample in good]),
        output_tokens=_mean([sample.tokens for sample in good]),
        percentiles=percentiles,
        per_repeat=per_repeat(laps),
        seconds=seconds,
        generator_load=sum(lap.cpu for lap in laps) / seconds if seconds else 0.0,
        lag=max((sample.lag for sample in samples), default=0.0),
        repeated=sum(sample.response_cache in ("hit", "shared") for sample in samples),
    )


def values_of(samples: Sequence[Sample], name: str) -> list[float]:
    """A measure of all requests that have it. What broke off says nothing of speed, but had its first token."""
    wanted = samples if name == "time_to_first_token" else [sample for sample in samples if sample.ok]
    return [value for sample in wanted if (value := getattr(sample, name)) is not None]


def per_repeat(laps: Sequence[Lap]) -> dict[str, list[list[float]]]:
    """Of each measure, for each repeat, the sorted values of its requests; empty where there are none."""
    return {
        name: [[float(f"{value:.4g}") for value in thinned(values_of(lap.samples, name))] for lap in laps]
        for name in KEPT
    }


def thinned(values: Sequence[float]) -> list[float]:
    """The values, sorted; of many, `MOST_VALUES` that are spread evenly over all of them."""
    ordered = sorted(values)
    if len(ordered) <= MOST_VALUES:
        return ordered
    return [percentile(ordered, number / (MOST_VALUES - 1)) for number in range(MOST_VALUES)]


def notes_on(results: Sequence[LoadResult], slots: int | None) -> list[str]:
    """What a reader should know before trusting the figures."""
    notes = []
    for result in results:
        if slots is not None and result.load.kind == "closed" and result.load.value > slots:
            more = result.load.value - slots
            waiting = f"{count(more, 'request')} always {'waits' if more == 1 else 'wait'}"
            notes.append(f"{result.label}: the server has {count(slots, 'slot')}, so {waiting}")
        if result.repeated:
            notes.append(
                f"{result.label}: {result.repeated} of {count(result.requests, 'answer')} came from a response cache, "
                "and say nothing of the model; they were asked for with Cache-Control: no-store, which something on "
                "the way does not heed"
            )
        if result.generator_load > BUSY:
            notes.append(
                f"{result.label}: the load generator kept {result.generator_load:.0%} of a core busy, so the figures "
                "may be its own; use fewer requests at once, or longer answers"
            )
        if result.lag > LATE:
            notes.append(
                f"{result.label}: requests went out up to {result.lag * 1000:,.0f} ms late; their latencies count from "
                "when they were due"
            )
    return notes


def count(number: float, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:g} {thing}" if number == 1 else f"{number:,g} {thing}s"


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
