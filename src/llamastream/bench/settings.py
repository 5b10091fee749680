"""What `llamastream bench` measures, declared once."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from llamastream.bench.lengths import parse_concurrency, parse_lengths, parse_rates
from llamastream.errors import SettingError

Arrivals = Literal["poisson", "constant"]
Switch = Literal["auto", "on", "off"]

THRESHOLD = 0.05
"""Slowdown that a comparison lets pass."""


def _check_concurrency(value: str, source: str) -> None:
    parse_concurrency(value, "concurrency", source)


def _check_rate(value: str, source: str) -> None:
    parse_rates(value, "rate", source)


def _check_lengths(name: str, value: str, source: str) -> None:
    parse_lengths(value, name, source)


class BenchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measurement: its loads, its requests, and how often."""

    SECTION: ClassVar[str] = "bench"

    concurrency: Annotated[
        str | None,
        Meta(
            description="Closed loops to measure, such as 1,2,4,8: so many requests at a time, each followed at once "
            "by the next; unset: 1,4, but none where there is a rate.",
            extra={"check": _check_concurrency},
        ),
    ] = None
    rate: Annotated[
        str | None,
        Meta(
            description="Open loops to measure, such as 0.5,2: so many requests a second, on a schedule that waits for "
            "no answer.",
            extra={"check": _check_rate},
        ),
    ] = None
    arrivals: Annotated[
        Arrivals, Meta(description="How requests of an open loop arrive: at random times, or at even distances.")
    ] = "poisson"
    prompt_tokens: Annotated[
        str,
        Meta(
            description="Tokens of each prompt beyond the shared prefix: a number, or two as in 64:256 for lengths "
            "spread evenly. What the server counted is reported.",
            extra={"check": partial(_check_lengths, "prompt_tokens")},
        ),
    ] = "128"
    output_tokens: Annotated[
        str,
        Meta(
            description="Most tokens of each answer: a number, or two as in 64:256.",
            extra={"check": partial(_check_lengths, "output_tokens")},
        ),
    ] = "64"
    shared_prefix: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Tokens of a system prompt that all requests share.")
    ] = 0
    turns: Annotated[
        int,
        Meta(ge=1, le=1000, description="Turns of each conversation; each sends the ones before it along."),
    ] = 1
    prompts: Annotated[
        str | None,
        Meta(
            description="File of own prompts instead of made-up ones, JSON Lines: in each line a string, or an object "
            'with "messages" or "prompt", and perhaps "max_tokens".'
        ),
    ] = None
    requests: Annotated[
        Annotated[int, Meta(ge=1, le=10**7)] | None,
        Meta(description="Requests (with turns: conversations) of each load and repeat; unset: as many as `seconds`."),
    ] = None
    seconds: Annotated[
        Annotated[float, Meta(gt=0, le=1e6)] | None,
        Meta(
            description="Seconds of each load and repeat, in which requests begin; unset: 10 where there is no "
            "`requests`. With both, whichever is over first ends it."
        ),
    ] = None
    repeats: Annotated[
        int, Meta(ge=1, le=1000, description="Rounds through all loads; baselines are compared by them.")
    ] = 5
    warm_up: Annotated[
        int, Meta(ge=0, le=10**5, description="Requests for each one at a time before each load, which do not count.")
    ] = 1
    ignore_eos: Annotated[
        Switch,
        Meta(
            description="Have answers go on to their full length: `auto` where the server is a llama-server and the "
            "prompts are made up."
        ),
    ] = "auto"
    model_name: Annotated[
        str | None, Meta(description="Model name sent with each request; unset: that of the client's settings.")
    ] = None
    seed: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="Seed of lengths, arrivals and confidence intervals; words are new each time, for the caches.",
        ),
    ] = 1

    def __post_init__(self) -> None:
        if self.prompts is not None and (self.shared_prefix or self.turns > 1):
            raise SettingError(
                "prompts names a file, so shared_prefix and turns do not apply: they are about made-up prompts; a line "
                'with "messages" may hold a whole conversation'
            )
