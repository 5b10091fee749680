"""The same comparison with real llama-servers behind a real gateway, over HTTP."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llamastream import AsyncStreamingClient, EngineOptions, Fleet, FleetSettings  # noqa: E402  # the path comes first
from llamastream.events import RequestServed  # noqa: E402  # as above
from llamastream.fleet.behind import behind  # noqa: E402  # as above
from llamastream.fleet.settings import Pool  # noqa: E402  # as above
from llamastream.gateway import GatewaySettings, create_app, gateway_thread  # noqa: E402  # as above
from llamastream.policy.routing import Strategy  # noqa: E402  # as above
from tools.faults.large_model import write_large_model  # noqa: E402  # as above

INSTANCES, SLOTS, CONTEXT = 3, 2, 4096
WORDS = ("slot", "token", "cache", "prompt", "stream", "model", "server", "answer", "question", "gateway", "fleet")


class Asker:
    """People who talk, each in a conversation of its own."""

    def __init__(self, url: str, seed: int, run: str, think: float) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.run = run
        self.think = think
        self.first_tokens: list[float] = []
        self.left = 0
        # each run has a system prompt of its own: what the one before left in the caches is of no use to it
        self.system = f"Run {run}. " + self.text(300)

    def text(self, words: int) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(words))

    async def talk(self, client: AsyncStreamingClient, number: int) -> None:
        """One conversation after the other, until all requests have been made."""
        await asyncio.sleep(self.random.uniform(0, self.think))
        while True:
            messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}]
            for turn in range(self.random.randint(6, 10)):
                if self.left <= 0:
                    return
                self.left -= 1
                question = f"{self.run} {number} {turn}: {self.text(self.random.randint(20, 100))}"
                messages.append({"role": "user", "content": question})
                began = monotonic()
                stream = client.stream_chat(
                    messages, max_tokens=self.random.randint(10, 30), temperature=0, ignore_eos=True
                )
                first: float | None = None
                async with stream:
                    async for _ in stream:
                        first = first or monotonic() - began
                    messages.append({"role": "assistant", "content": (await stream.result()).text})
                if first is not None:
                    self.first_tokens.append(first)
                await asyncio.sleep(self.random.expovariate(1 / self.think))

    async def work(self, conversations: int, requests: int) -> None:
        self.left = requests
        async with AsyncStreamingClient(self.url, recovery="off") as client:
            await asyncio.gather(*(self.talk(client, number) for number in range(conversations)))


def one(fleet: Fleet, strategy: Strategy, seed: int, requests: int, think: float) -> dict[str, float]:
    """One run of a strategy, with a gateway of its own before the same servers."""
    served: list[RequestServed] = []
    app = create_app(fleet, GatewaySettings(routing=strategy), listeners=[served.append])
    with gateway_thread(app) as gateway:
        asker = Asker(gateway.url, seed, f"{strategy} {seed}", think)
        asyncio.run(asker.work(round(1.5 * INSTANCES * SLOTS), requests))
    prompted = sum(each.prompt_tokens or 0 for each in served)
    cached = sum(each.cached_tokens or 0 for each in served)
    ratios = [
        each.first_token / each.expected_first_token
        for each in served
        if each.first_token and each.expected_first_token
    ]
    times = sorted(asker.first_tokens)
    return {
        "p50": times[len(times) // 2],
        "p95": times[min(len(times) - 1, int(len(times) * 0.95))],
        "evaluated": 1 - cached / max(1, prompted),
        "expectation": statistics.median(ratios) if ratios else 0.0,
    }


def model_file(directory: Path) -> Path:
    """A model for which prefill costs something."""
    path = directory / "large.gguf"
    write_large_model(path, width=256, layers=8, context=CONTEXT)
    return path


def pools(model: Path, instances: int, slots: int = SLOTS) -> tuple[Pool, ...]:
    """The servers, as `llamastream serve` starts them behind a gateway."""
    options = EngineOptions(model=str(model), parallel=slots, ctx_size=CONTEXT, threads=1, cache_ram=512)
    return behind([Pool(name="large", options=options, instances=instances)], model.parent)


def compare(strategies: Sequence[Strategy], repeats: int, *, quick: bool) -> list[dict[str, Any]]:
    """All strategies in turn, round after round, in an order that changes."""
    requests, think = (60, 2.0) if quick else (200, 2.0)
    runs: dict[Strategy, list[dict[str, float]]] = {strategy: [] for strategy in strategies}
    with tempfile.TemporaryDirectory(prefix="llamastream-bench-") as directory:
        model = model_file(Path(directory))
        with Fleet(pools(model, INSTANCES), settings=FleetSettings(warm=False)) as fleet:
            for number in range(repeats):
                for strategy in random.Random(number).sample(list(strategies), len(strategies)):
                    found = one(fleet, strategy, number, requests, think)
                    runs[strategy].append(found)
                    figures = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
                    print(f"round {number + 1}, {strategy}: {figures}", flush=True)
    name = f"{INSTANCES} servers of {SLOTS} slots, 1.5 conversations for each"
    return [
        {"workload": name, "instances": INSTANCES, "strategy": strategy, "runs": each}
        for strategy, each in runs.items()
    ]
