"""One request of a measurement: sent, read, timed."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from itertools import pairwise
from time import monotonic
from typing import Any

from msgspec import Struct

from llamastream.bench.samples import INTERRUPTED, Sample
from llamastream.bench.workload import Prompt
from llamastream.client import AsyncStream, AsyncStreamingClient
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.types import ChoiceFinish, ReasoningDelta, Result, TextDelta, ToolCallDelta

_CONTENT = frozenset({TextDelta, ReasoningDelta, ToolCallDelta})


class Place(Struct, frozen=True):
    """Where a request belongs (see `Sample`); `epoch`: the beginning of its load by `time.monotonic`."""

    repeat: int
    number: int
    turn: int
    epoch: float
    scheduled: float


class Asker:
    """Asks one server.

    Args:
        client: to ask with. body: further fields of every request. model: its name, or None.
    """

    def __init__(self, client: AsyncStreamingClient, body: dict[str, Any], model: str | None) -> None:
        self._client = client
        self._body = body
        self._model = model

    def stream(self, prompt: Prompt) -> AsyncStream:
        """A request that is not sent yet.

        Raises:
            SettingError: the prompt cannot be right.
        """
        arguments: dict[str, Any] = {"model": self._model, "max_tokens": prompt.max_tokens, **self._body}
        try:
            if prompt.messages:
                return self._client.stream_chat(prompt.messages, **arguments)
            return self._client.stream_completion(prompt.text, **arguments)
        except LlamaStreamError as error:
            raise SettingError(f"a prompt cannot be sent: {error.message}") from None

    async def ask(self, prompt: Prompt, place: Place, keep: Callable[[Sample], None]) -> str | None:
        """Send it and read the answer to its end; what was measured goes to `keep`, also if we are cancelled.

        Returns:
            The answer's text; None if it failed.
        """
        stream = self.stream(prompt)
        arrivals = array("d")
        arrived = arrivals.append
        content, clock = _CONTENT, monotonic
        started = clock()
        finished: float | None = None
        failed, message = "", ""
        result: Result | None = None
        try:
            async for event in stream.events():
                kind = type(event)
                if kind in content:
                    arrived(clock())
                elif kind is ChoiceFinish:
                    finished = clock()
            result = await stream.result()
        except LlamaStreamError as error:
            failed, message, result = type(error).__name__, error.message, error.partial
        except asyncio.CancelledError:
            failed = INTERRUPTED
            raise
        finally:
            ended = clock()
            await stream.close()
            keep(_sample(place, started, ended, finished, arrivals, result, failed, message))
        return None if failed or result is None else result.text


def _sample(
    place: Place,
    started: float,
    ended: float,
    finished: float | None,
    arrivals: array[float],
    result: Result | None,
    failed: str,
    message: str,
) -> Sample:
    epoch = place.epoch
    usage = None if result is None else result.usage
    timings = None if result is None else result.timings
    tokens = len(arrivals) if usage is None else usage.completion_tokens
    return Sample(
        repeat=place.repeat,
        number=place.number,
        turn=place.turn,
        scheduled=place.scheduled - epoch,
        started=started - epoch,
        first=arrivals[0] - epoch if arrivals else None,
        finished=None if finished is None else finished - epoch,
        ended=ended - epoch,
        gaps=tuple(later - earlier for earlier, later in pairwise(arrivals)),
        tokens=tokens,
        prompt_tokens=None if result is None else result.stats.prompt_tokens,
        cached_tokens=None if result is None else result.stats.cached_tokens,
        finish_reason="error" if failed else (result.finish_reason or "") if result is not None else "",
        error=failed,
        message=message,
        recoveries=() if result is None else tuple(recovery.kind for recovery in result.stats.recoveries),
        retries=0 if result is None else len(result.stats.failed_attempts),
        timings=timings,
        response_cache="" if result is None else result.stats.response_cache,
    )
