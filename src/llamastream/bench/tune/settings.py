"""What `llamastream tune` looks for, declared once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from llamastream.errors import SettingError

Goal = Literal["latency", "throughput", "balanced"]

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")


def cache_types_of(value: str, source: str = "") -> tuple[str, ...]:
    """`f16,q8_0`.

    Raises:
        SettingError: one is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if not names or not set(names) <= set(CACHE_TYPES):
        where = f" from {source}" if source else ""
        raise SettingError(
            f"cache_types = {value!r}{where} is not allowed; allowed: {', '.join(CACHE_TYPES)}, separated by commas"
        )
    return names


class TuneSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A search: its goal, how long, and what is asked."""

    SECTION: ClassVar[str] = "tune"

    goal: Annotated[
        Goal,
        Meta(
            description="What to be good at: `latency` (one request at a time: prompt and answer in the least time), "
            "`throughput` (tokens per second of many at once), or `balanced` (the geometric mean of both)."
        ),
    ] = "balanced"
    budget: Annotated[float, Meta(ge=5, le=1e6, description="Seconds for all of it; one trial may go beyond.")] = 300.0
    min_tokens_per_second: Annotated[
        Annotated[float, Meta(gt=0, le=1e9)] | None,
        Meta(
            description="Decode speed that each stream must have; of several models the largest that has it is named."
        ),
    ] = None
    at_once: Annotated[
        int, Meta(ge=2, le=1 << 10, description="Requests at a time where many are measured.")
    ] = 8  # fmt: skip
    prompt_tokens: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 20,
            description="Tokens of each prompt; fewer, and of the answers too, where a request takes too much of the "
            "budget.",
        ),
    ] = 256
    output_tokens: Annotated[int, Meta(ge=2, le=1 << 20, description="Tokens of each answer.")] = 64
    cache_types: Annotated[
        str,
        Meta(
            description="Types that the KV cache may have, separated by commas; smaller ones than q8_0 cost quality, "
            "which is not measured.",
            extra={"check": cache_types_of},
        ),
    ] = "f16,q8_0"
    seed: Annotated[int, Meta(ge=0, le=1 << 53, description="Seed of what is tried, and of the prompts' lengths.")] = 1
