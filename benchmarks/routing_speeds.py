"""How quick a real llama-server is: the service times of the simulation, with the model of the real runs."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from routing_real import WORDS, model_file, pools

from llamastream import AsyncStreamingClient, Fleet, FleetSettings
from llamastream.types import Timings

WORDS_READ, TOKENS_SAID = 400, 64


async def ask(client: AsyncStreamingClient, slot: int, seed: str, words: int, tokens: int = TOKENS_SAID) -> Timings:
    """A prompt of its own, read and answered in this slot; what the server says of it."""
    text = " ".join(random.Random(seed).choices(WORDS, k=words))
    stream = client.stream_completion(
        f"{seed} {text}", max_tokens=tokens, temperature=0, ignore_eos=True, id_slot=slot, cache_prompt=False
    )
    async with stream:
        timings = (await stream.result()).timings
    assert timings is not None
    return timings


async def _measure(fleet: Fleet, slots: int, repeats: int) -> dict[str, Any]:
    prefill: list[list[float]] = [[] for _ in range(slots)]
    decode: list[list[float]] = [[] for _ in range(slots)]
    async with AsyncStreamingClient(fleet, recovery="off") as client:
        await ask(client, 0, "warm-up", WORDS_READ)
        for lap in range(repeats):
            for count in range(1, slots + 1):
                began = monotonic()
                found = await asyncio.gather(
                    *(ask(client, slot, f"read {lap} {count} {slot}", WORDS_READ, 1) for slot in range(count))
                )
                prefill[count - 1].append(sum(each.prompt_n for each in found) / (monotonic() - began))
                # short prompts, so that nearly all of the time all of them generate
                found = await asyncio.gather(*(ask(client, slot, f"{lap} {count} {slot}", 1) for slot in range(count)))
                decode[count - 1] += [each.predicted_n / each.predicted_ms * 1000 for each in found]
    return {
        "prefill": [statistics.median(each) for each in prefill],
        "decode": [statistics.median(each) for each in decode],
    }


def measure(slots: int, repeats: int) -> dict[str, Any]:
    """Tokens a second where 1, 2, ... slots are at it: of all prompts that are read, and of one answer. Medians."""
    with tempfile.TemporaryDirectory(prefix="llamastream-bench-") as directory:
        model = model_file(Path(directory))
        with Fleet(pools(model, 1, slots), settings=FleetSettings(warm=False)) as fleet:
            return asyncio.run(_measure(fleet, slots, repeats))
