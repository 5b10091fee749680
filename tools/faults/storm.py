"""Many streams at once over several servers, one of which gets a signal in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from llamastream import AsyncStreamingClient
from tools.faults.asking import Answer, Ask, astream


async def storm(
    urls: list[str], ask: Ask, streams: int, pid: int, number: signal.Signals, **options: Any
) -> list[Answer | BaseException]:
    """As many streams at once, with a signal to one server as soon as more than half of them have read a little."""
    begun = 0

    async def one(client: AsyncStreamingClient) -> Answer:
        nonlocal begun
        answer = astream(client, ask)
        events = []
        async for event in answer.events():
            events.append(event)
            if len(events) == 5:
                begun += 1
                if begun == streams // 2 + 1:
                    os.kill(pid, number)
        return Answer(events, await answer.result())

    async with AsyncStreamingClient(urls, **options) as client:
        return await asyncio.gather(*(one(client) for _ in range(streams)), return_exceptions=True)
