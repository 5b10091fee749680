"""What llamastream adds to a chunk event of CrewAI, beside what the event itself costs.

.venv-crewai/bin/python benchmarks/crewai_events.py

Each piece of an answer becomes one event on CrewAI's bus. That event costs what it costs, whoever emits it; what is
measured here is the rest: `LlamaServerLLM`'s way from a piece to the event. Both are timed in turn, in CPU time of the
thread, many times over: once by handing pieces to a call of ours, once by emitting the same events directly, as a model
of CrewAI's own would. The figure is the median of the differences, and `coalesce` is measured the same way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from crewai import Agent, Task
from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallType
from crewai.llms.base_llm import llm_call_context
from msgspec import Struct

from llamastream.integrations.crewai import LlamaServerLLM
from llamastream.integrations.crewai.calling import Asked, Call
from llamastream.types import TextDelta

PIECES = 200


class Figures(Struct, frozen=True):
    """Microseconds of CPU for each piece.

    Attributes:
        event: an event of CrewAI with CrewAI's own listeners, and `bare` without any listener.
        ours: what llamastream adds. coalesced: a piece in all, when those of 50 ms are one event.
    """

    event: float
    bare: float
    ours: float
    coalesced: float


def measure(rounds: int) -> Figures:
    """Time it; nothing is asked of any server."""
    llm = LlamaServerLLM(base_url="http://127.0.0.1:1")
    agent = Agent(role="Teller", goal="Tell stories", backstory="You like short words.", llm=llm)
    task = Task(description="Tell a story.", expected_output="A story.", agent=agent)
    asked = Asked(messages="?", from_task=task, from_agent=agent)
    pieces = [TextDelta(f"word{number} ") for number in range(PIECES)]
    call = Call(llm, asked)
    together = Call(LlamaServerLLM(base_url="http://127.0.0.1:1", coalesce=0.05), asked)

    def direct() -> None:
        for piece in pieces:
            llm._emit_stream_chunk_event(  # noqa: SLF001  # what CrewAI's own models call
                chunk=piece.text, call_type=LLMCallType.LLM_CALL, from_task=task, from_agent=agent
            )

    def through() -> None:
        for piece in pieces:
            call.take(piece)

    def coalesced() -> None:
        for piece in pieces:
            together.take(piece)

    with llm_call_context():
        with_listeners = statistics.median(_timed(direct) for _ in range(rounds))
        events, ours, joined = [], [], []
        # Without listeners an event is cheap enough for the difference to be seen.
        with crewai_event_bus.scoped_handlers():
            for _ in range(rounds):
                before, through_us, after = _timed(direct), _timed(through), _timed(direct)
                events.append((before + after) / 2)
                ours.append(through_us - (before + after) / 2)
                joined.append(_timed(coalesced))
    return Figures(with_listeners, statistics.median(events), statistics.median(ours), statistics.median(joined))


def _timed(function: Callable[[], Any]) -> float:
    began = time.thread_time()
    function()
    return (time.thread_time() - began) / PIECES * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="What llamastream adds to a chunk event of CrewAI.")
    parser.add_argument("--rounds", type=int, default=50)
    figures = measure(parser.parse_args().rounds)
    print(f"an event of CrewAI: {figures.event:.1f} µs with its own listeners, {figures.bare:.1f} µs without any")
    print(f"what llamastream adds: {figures.ours:.2f} µs")
    print(f"with coalesce=0.05, a piece in all: {figures.coalesced:.2f} µs")


if __name__ == "__main__":
    main()
