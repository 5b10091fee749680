"""One async client in several event loops at the same time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from llamastream.client import AsyncStreamingClient
from llamastream.engine import Engine

QUESTION = [{"role": "user", "content": "Who are you?"}]


def test_loops_in_several_threads_share_a_client(engine: Engine) -> None:
    client = AsyncStreamingClient(engine.url, temperature=0)

    def loop(_: int) -> list[str]:
        async def ask() -> list[str]:
            results = await asyncio.gather(*(client.chat(QUESTION) for _ in range(5)))
            return [result.text for result in results]

        return asyncio.run(ask())

    with ThreadPoolExecutor(6) as threads:
        answers = [text for texts in threads.map(loop, range(18)) for text in texts]
    assert len(answers) == 90
    assert len(set(answers)) == 1
    pool = client._pools[0]
    assert not pool._states
    assert not pool._owners
