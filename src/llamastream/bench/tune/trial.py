"""One trial: a server with certain settings is started, asked, and ended, whatever it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic

import msgspec
from msgspec import Struct

from llamastream.bench.asking import Asker
from llamastream.bench.generator import Generator
from llamastream.bench.lengths import Lengths
from llamastream.bench.loads import Extent, Load
from llamastream.bench.measure import calibration_of
from llamastream.bench.samples import Lap
from llamastream.bench.statistics import median
from llamastream.bench.tune.settings import Goal
from llamastream.bench.workload import Calibration, Workload
from llamastream.client import AsyncStreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.engine.embedded import embedded_version
from llamastream.errors import LlamaStreamError, TrialFailedError
from llamastream.settings import ClientSettings

STOP_SECONDS = 3.0
"""A server that is measured has nobody else to serve: it need not be waited for."""

ONE_AT_A_TIME = 2
"""Requests of the least work where one is measured at a time."""


class Work(Struct, frozen=True):
    """What is asked in each trial.

    Attributes:
        prompt, output: tokens. at_once: requests at a time where many are measured. seed, nonce: of the words; the same
            in all trials alike, since each has a fresh server. unit: how many times the least work an
            effort of 1 is.
    """

    goal: Goal
    prompt: int
    output: int
    at_once: int
    seed: int
    nonce: str
    unit: int = 1
    calibration: Calibration = Calibration()

    @property
    def requests(self) -> int:
        """How many a trial sends at the least."""
        return (self.goal != "throughput") * ONE_AT_A_TIME + (self.goal != "latency") * self.at_once

    @property
    def workload(self) -> Workload:
        """Where its requests come from."""
        prompt, output = Lengths(self.prompt, self.prompt), Lengths(self.output, self.output)
        return Workload(prompt, output, 0, 1, (), self.seed, self.nonce, self.calibration)


class Figures(Struct, frozen=True):
    """What a trial measured.

    Attributes:
        score: tokens per second by the goal: of the answer, by the whole time of its request (`latency`); of all
            streams together (`throughput`); the geometric mean of both (`balanced`).
        alone, together: those two, as far as the goal has them.
        stream: tokens per second that one stream is decoded with: alone, but for the goal `throughput`.
        first_token: median seconds to the first token, in the same load as `stream`.
        start, took: seconds that the start took, and the measurement.
    """

    score: float
    alone: float | None
    together: float | None
    stream: float
    first_token: float
    start: float
    took: float


async def measure(options: EngineOptions, work: Work, effort: int, limit: float) -> Figures:
    """Start a server, measure it, and end it.

    Args:
        effort: how much is asked. limit: seconds for all of it.

    Raises:
        TrialFailedError: it did not start, died, hung or refused; the message is the reason, in a line.
    """
    try:
        async with asyncio.timeout(limit), _server(options) as (engine, client):
            asker = Asker(client, {"temperature": 0.0, "ignore_eos": True}, None)
            began = monotonic()
            try:
                laps = [lap async for lap in _laps(asker, work, effort)]
            except TrialFailedError:
                if not engine.alive:
                    raise TrialFailedError(f"the server ended while it was measured: {_last_words(engine)}") from None
                raise
            return figures_of(work, laps, engine.start_seconds, monotonic() - began)
    except TrialFailedError:
        raise
    except LlamaStreamError as error:  # before TimeoutError, which some of these are, too
        raise TrialFailedError(error.message) from None
    except TimeoutError:
        raise TrialFailedError(f"it was not through after {limit:.0f} s") from None


class Survey(Struct, frozen=True):
    """What is known before the first trial. `request`: seconds that one request takes alone, 0 where not known."""

    engine: str
    calibration: Calibration
    request: float = 0.0


async def survey(options: EngineOptions, work: Work, limit: float) -> Survey:
    """Look at the server with its defaults once.

    Raises:
        LlamaStreamError: it does not start, or does not answer within `limit` seconds.
    """
    try:
        async with asyncio.timeout(limit), _server(options) as (engine, client):
            asker = Asker(client, {"temperature": 0.0, "ignore_eos": True}, None)
            calibration = await calibration_of(asker)
            short = msgspec.structs.replace(
                work, calibration=calibration, prompt=min(work.prompt, 32), output=min(work.output, 8)
            )
            prompt = short.workload.conversation("survey", 0).next(None)
            assert prompt is not None
            timings = (await asker.stream(prompt).result()).timings
            if timings is None or not timings.prompt_n or timings.predicted_n < 2:
                return Survey(_name_of(engine), calibration)
            prefill = timings.prompt_ms / timings.prompt_n * work.prompt
            decode = timings.predicted_ms / (timings.predicted_n - 1) * work.output
            return Survey(_name_of(engine), calibration, (prefill + decode) / 1e3)
    except LlamaStreamError:
        raise
    except TimeoutError:
        raise TrialFailedError(
            f"with its defaults the server did not answer within {limit:.0f} s: use a larger budget, or a smaller model"
        ) from None


@asynccontextmanager
async def _server(options: EngineOptions) -> AsyncIterator[tuple[Engine, AsyncStreamingClient]]:
    async with launch(msgspec.structs.replace(options, stop_timeout=STOP_SECONDS)) as engine:
        settings = ClientSettings(base_url=engine.url, max_retries=0, recovery="off", loading_patience=0.0)
        async with AsyncStreamingClient(settings=settings) as client:
            yield engine, client


async def _laps(asker: Asker, work: Work, effort: int) -> AsyncIterator[Lap]:
    """The loads of the goal; before each its number of requests once, which do not count."""
    if work.goal != "throughput":
        yield await _lap(asker, work, 1, ONE_AT_A_TIME * effort * work.unit)
    if work.goal != "latency":
        yield await _lap(asker, work, work.at_once, work.at_once * effort * work.unit)


async def _lap(asker: Asker, work: Work, at_once: int, requests: int) -> Lap:
    load = Load("closed", at_once)
    warm = msgspec.structs.replace(work, prompt=min(work.prompt, 64), output=min(work.output, 4))
    _check(await Generator(asker, warm.workload, load, 0).run(Extent(at_once, None)))
    lap = await Generator(asker, work.workload, load, 1).run(Extent(requests, None))
    _check(lap)
    return lap


def _check(lap: Lap) -> None:
    failed = next((sample for sample in lap.samples if not sample.ok), None)
    if failed is not None:
        raise TrialFailedError(f"a request failed: {failed.error}: {failed.message}")


def figures_of(work: Work, laps: Sequence[Lap], start: float, took: float) -> Figures:
    """What the laps say."""
    alone = together = None
    for lap in laps:
        if lap.load.value == 1:
            alone = median([sample.tokens / (sample.end_to_end or 1.0) for sample in lap.samples])
        else:
            # Not `total_tokens_per_second`: with as many requests as streams the load is never steady.
            together = sum(sample.tokens for sample in lap.samples) / lap.seconds
    known = [value for value in (alone, together) if value is not None]
    score = known[0] if len(known) == 1 else (known[0] * known[1]) ** 0.5
    first = laps[0].samples
    return Figures(
        score=score,
        alone=alone,
        together=together,
        stream=median([sample.tokens_per_second or 0.0 for sample in first]),
        first_token=median([sample.time_to_first_token or 0.0 for sample in first]),
        start=start,
        took=took,
    )


def _name_of(engine: Engine) -> str:
    # the wheel's own build says nothing of its version
    build = f"xllamacpp {embedded_version()}" if engine.kind == "embedded" else engine.capabilities.build
    return f"{engine.kind}, {build}"


def _last_words(engine: Engine) -> str:
    code = engine.wait(STOP_SECONDS)
    last = next((record.message for record in reversed(engine.logs) if record.message.strip()), "")
    return f"exit code {code}" + (f", its last words: {last}" if last else "")
