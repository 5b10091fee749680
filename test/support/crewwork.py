"""What the tests of CrewAI share: agents that need no wisdom, and ears on its event bus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from crewai import Agent, Crew, Task
from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMCallStartedEvent,
    LLMStreamChunkEvent,
    LLMThinkingChunkEvent,
)

from llamastream.integrations.crewai import LlamaServerLLM
from llamastream.testing import NumberedServer, ReceivedRequest, ServerDouble

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = "What is the weather in Paris?"
Ask: TypeAlias = Callable[..., Any]
"""The fixture `ask`: `call` or `acall` of a model, with the same arguments."""

LLM_EVENTS = (
    LLMCallStartedEvent,
    LLMStreamChunkEvent,
    LLMThinkingChunkEvent,
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
)


class Heard:
    """The events of models, in the order in which they were emitted."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def __call__(self, _source: Any, event: Any) -> None:
        self._events.append(event)

    @property
    def events(self) -> list[Any]:
        """All of them; those that CrewAI hands to threads are waited for."""
        assert crewai_event_bus.flush(10)
        return sorted(self._events, key=lambda event: event.emission_sequence)

    @property
    def kinds(self) -> list[str]:
        return [event.type for event in self.events]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def chunks(self) -> list[str]:
        """The pieces of text, without those of tool calls."""
        return [event.chunk for event in self.of(LLMStreamChunkEvent) if event.tool_call is None]

    @property
    def text(self) -> str:
        return "".join(self.chunks)


@contextmanager
def hearing(*kinds: Any) -> Iterator[Heard]:
    """Listen to events of models (of these kinds; all, if none are given) as long as the block lasts."""
    heard = Heard()
    for kind in kinds or LLM_EVENTS:
        crewai_event_bus.on(kind)(heard)
    try:
        yield heard
        assert crewai_event_bus.flush(10)
    finally:
        for kind in kinds or LLM_EVENTS:
            crewai_event_bus.off(kind, heard)


@contextmanager
def listening(kind: Any, do: Callable[[], object]) -> Iterator[None]:
    """Do something at each event of a kind; for pieces of text that is in the thread which reads them."""

    def heard(_source: Any, _event: Any) -> None:
        do()

    crewai_event_bus.on(kind)(heard)
    try:
        yield
    finally:
        crewai_event_bus.off(kind, heard)


def agent(llm: Any, role: str = "Teller", **more: Any) -> Agent:
    return Agent(role=role, goal="Tell what you know", backstory="You like short words.", llm=llm, **more)


def task(of: Agent, description: str = "Say hello.", **more: Any) -> Task:
    return Task(description=description, expected_output="A few words.", agent=of, **more)


def crew(*tasks: Task, **more: Any) -> Crew:
    agents = []
    for each in tasks:
        if each.agent is not None and each.agent not in agents:
            agents.append(each.agent)
    return Crew(agents=agents, tasks=list(tasks), **more)


def kickoff(work: Crew, **more: Any) -> Any:
    """What `Crew.kickoff` returns, of whichever of its two types that is."""
    return work.kickoff(**more)


def asked(server: NumberedServer) -> list[ReceivedRequest]:
    """The chat requests that came, without what the client asks beside them."""
    return [request for request in server.requests if request.path.endswith("/chat/completions")]


def answers_asked(server: ServerDouble) -> int:
    """How many chat requests came."""
    return sum(request.startswith(b"POST /v1/chat/completions ") for request in server.requests)


def model(url: str | list[str], **more: Any) -> LlamaServerLLM:
    """A model that says the same each time."""
    return LlamaServerLLM(base_url=url, **{"temperature": 0, "max_tokens": 1000, **more})
