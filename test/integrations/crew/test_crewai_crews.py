"""Crews on `LlamaServerLLM`: live output of all tasks, the right task and agent, tools, faults, and no second time.

A crew's prompts are long ("You are …, your goal is …"), and the demo model answers all but its own questions with the
same sentence, which CrewAI takes for the final answer. That is enough to see each piece on its way. Where a long
answer is needed, a hook of CrewAI puts a question to the model that it knows.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from crewai import LLM, Crew
from crewai.events import ToolUsageFinishedEvent
from crewai.events.types.llm_events import (
    ContextWindowSummarizationCompletedEvent,
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMCallStartedEvent,
    LLMStreamChunkEvent,
    LLMThinkingChunkEvent,
)
from crewai.hooks import register_before_llm_call_hook
from crewai.hooks.llm_hooks import clear_all_llm_call_hooks
from crewai.tools import tool
from pydantic import BaseModel

from commandline import LONG, STORY
from crewwork import agent, answers_asked, asked, crew, hearing, kickoff, listening, task
from llamastream import Engine, EngineOptions, StreamingClient, launch
from llamastream.errors import ConnectError, ConnectionLostError
from llamastream.events import StreamRecovered
from llamastream.integrations.crewai import LlamaServerLLM
from llamastream.testing import NumberedServer, Script, ServerDouble, sse_answer

Closing = Callable[[Any], Any]


class Animal(BaseModel):
    name: str
    legs: int


@tool("get_weather")
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


def model(url: str | list[str], **more: Any) -> LlamaServerLLM:
    return LlamaServerLLM(base_url=url, **{"temperature": 0, "max_tokens": 2000, **more})


def two(*llms: Any, **more: Any) -> Crew:
    """A crew of two agents with a task each."""
    first, second = (agent(llm, role) for llm, role in zip(llms, ("Teller", "Critic"), strict=True))
    return crew(task(first, "Tell what you see."), task(second, "Judge it."), **more)


@contextmanager
def asking(**questions: str) -> Iterator[None]:
    """Have each agent (by its role) ask the model a question that it knows, in place of CrewAI's prompt."""

    def put(context: Any) -> None:
        context.messages[:] = [{"role": "user", "content": questions[context.agent.role]}]

    register_before_llm_call_hook(put)
    try:
        yield
    finally:
        clear_all_llm_call_hooks()


# -- live ---------------------------------------------------------------------------------------------------


def test_all_output_of_a_crew_is_live_and_knows_its_task_and_agent(engine: Engine) -> None:
    work = two(model(engine.url), model(engine.url))
    with hearing(LLMStreamChunkEvent) as heard:
        output = kickoff(work)
        chunks = heard.of(LLMStreamChunkEvent)
    assert len({event.call_id for event in chunks}) == 2
    for one, done in zip(work.tasks, output.tasks_output, strict=True):
        own = [event for event in chunks if event.task_id == str(one.id)]
        assert done.raw
        assert "".join(event.chunk for event in own) == done.raw
        assert {(event.agent_role, event.agent_id, event.task_name) for event in own} == {
            (one.agent.role, str(one.agent.id), one.description)  # type: ignore[union-attr]  # `two` gives it one
        }
    assert output.raw == output.tasks_output[-1].raw


def test_the_next_piece_is_generated_only_when_the_one_before_is_on_the_bus() -> None:
    with NumberedServer(tokens=5, gate=True) as server:
        server.release(1)
        with listening(LLMStreamChunkEvent, lambda: server.release(1)), hearing(LLMStreamChunkEvent) as heard:
            output = kickoff(two(model(server.url), model(server.url)))
            assert heard.text == "0 1 2 3 4 " * 2
    assert output.raw == "0 1 2 3 4 "


@pytest.mark.parametrize("stream", [True, False])
def test_a_streaming_crew_can_be_iterated(engine: Engine, stream: bool) -> None:
    work = two(model(engine.url, stream=stream), model(engine.url, stream=stream), stream=True)
    output = kickoff(work)
    chunks = list(output)
    for one, done in zip(work.agents, output.result.tasks_output, strict=True):
        assert "".join(chunk.content for chunk in chunks if chunk.agent_role == one.role) == done.raw


@pytest.mark.parametrize("method", ["akickoff", "kickoff_async"])
def test_a_streaming_crew_can_be_iterated_in_asyncio(engine: Engine, method: str) -> None:
    async def run() -> tuple[str, str]:
        output = await getattr(two(model(engine.url), model(engine.url), stream=True), method)()
        text = "".join([chunk.content async for chunk in output])
        return text, "".join(done.raw for done in output.result.tasks_output)

    text, raw = asyncio.run(run())
    assert text == raw != ""


def test_a_crew_can_run_for_each_of_several_inputs(engine: Engine) -> None:
    one = agent(model(engine.url))
    outputs: list[Any] = crew(task(one, "Tell of {animal}.")).kickoff_for_each([{"animal": "cats"}, {"animal": "dogs"}])
    assert len(outputs) == 2
    assert all(output.raw for output in outputs)


def test_the_answer_that_is_forced_at_the_end_knows_its_task_and_agent(engine: Engine) -> None:
    one = agent(model(engine.url, tool_choice="required", max_tokens=300), tools=[get_weather], max_iter=1)
    work = crew(task(one, "What is the weather in Paris?"))
    with hearing() as heard:
        output = kickoff(work)
        events = heard.events
    calls = list(dict.fromkeys(event.call_id for event in events))
    assert len(calls) >= 2  # CrewAI asks for the last one without task and agent
    assert {(event.task_id, event.agent_id) for event in events} == {(str(work.tasks[0].id), str(one.id))}
    assert output.raw


# -- what agents ask for ------------------------------------------------------------------------------------


def test_an_agent_calls_tools_through_the_server(engine: Engine) -> None:
    one = agent(model(engine.url), tools=[get_weather], max_iter=3)
    with asking(Teller="What is the weather in Paris?"), hearing(ToolUsageFinishedEvent) as heard:
        kickoff(crew(task(one)))
        used = heard.of(ToolUsageFinishedEvent)
    assert used
    assert {(event.tool_name, event.output) for event in used} == {("get_weather", "18 degrees in Paris")}


def test_stop_words_of_an_agent_with_tools_in_its_prompt_reach_the_server() -> None:
    with NumberedServer(tokens=3) as server:
        kickoff(crew(task(agent(model(server.url, function_calling=False, stop=["END"]), tools=[get_weather]))))
        body = asked(server)[0].body
    assert set(body["stop"]) == {"\nObservation:", "END"}
    assert "tools" not in body


def test_a_task_with_a_pydantic_output_gets_one(engine: Engine) -> None:
    with hearing() as heard:
        output = kickoff(crew(task(agent(model(engine.url)), output_pydantic=Animal)))
        assert isinstance(output.pydantic, Animal)
        assert Animal.model_validate_json(heard.text) == output.pydantic
        assert len(heard.of(LLMCallStartedEvent)) == 1


def test_usage_is_that_of_the_server_for_each_agent(engine: Engine) -> None:
    with hearing(LLMCallCompletedEvent) as heard:
        usage = kickoff(two(model(engine.url), model(engine.url))).token_usage
        counted = [event.usage for event in heard.of(LLMCallCompletedEvent)]
    assert usage.successful_requests == len(counted) == 2
    assert usage.prompt_tokens == sum(each["prompt_tokens"] for each in counted) > 0
    assert usage.completion_tokens == sum(each["completion_tokens"] for each in counted) > 0


# -- faults -------------------------------------------------------------------------------------------------


def test_a_crew_survives_the_death_of_its_server_in_the_middle_of_a_task(engine: Engine) -> None:
    kind = cast("Literal['embedded', 'executable']", engine.kind)
    options = EngineOptions(kind=kind, threads=1, stop_timeout=1.0)
    recovered: list[Any] = []

    def listener(event: Any) -> None:
        if isinstance(event, StreamRecovered):
            recovered.append(event)

    with asking(Teller=LONG.question, Critic=STORY.question), launch(options) as one, launch(options) as other:
        undisturbed = kickoff(two(model(other.url), model(other.url)))
        work = two(*(model([one.url, other.url], listeners=[listener]) for _ in range(2)))
        pieces: list[int] = []

        def kill() -> None:
            pieces.append(len(pieces))
            if len(pieces) == 20:
                with StreamingClient(one.url) as client:
                    assert any(slot["is_processing"] for slot in client.slots()), "it is the one that generates"
                os.kill(one.pid, signal.SIGKILL)

        with listening(LLMStreamChunkEvent, kill), hearing(LLMStreamChunkEvent) as heard:
            output = kickoff(work)
            text = heard.text
    assert not one.alive
    assert [done.raw for done in output.tasks_output] == [done.raw for done in undisturbed.tasks_output]
    assert [done.raw for done in output.tasks_output] == [LONG.answer, STORY.answer]
    assert text == LONG.answer + STORY.answer
    assert len(recovered) == 1


@pytest.mark.parametrize("more", [{}, {"max_execution_time": 60}], ids=["without limit", "with a time limit"])
def test_an_answer_that_breaks_is_neither_asked_for_nor_shown_again(more: dict[str, Any]) -> None:
    answer = sse_answer(["a", "b", "c"])
    with (
        ServerDouble(Script(answer, cut_at=answer.index(b'"c"'))) as server,
        hearing() as heard,
        pytest.raises(ConnectionLostError) as caught,
    ):
        kickoff(crew(task(agent(model(server.url, recovery="off"), max_retry_limit=2, **more))))
    assert heard.chunks == ["a", "b"]
    assert answers_asked(server) == 1
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"


def test_a_server_that_is_not_there_is_said_once() -> None:
    with hearing(LLMCallStartedEvent) as heard, pytest.raises(ConnectError, match="no connection"):
        kickoff(crew(task(agent(model("http://127.0.0.1:1", max_retries=0)))))
    assert len(heard.of(LLMCallStartedEvent)) == 1


def test_a_conversation_that_is_too_long_is_compacted_and_answered() -> None:
    with launch(EngineOptions(threads=1, parallel=1, ctx_size=1024)) as small:
        llm = model(small.url, max_tokens=60)
        calls: list[int] = []

        def grow(context: Any) -> None:
            if not calls:
                context.messages.append({"role": "user", "content": "word " * 1500})
            calls.append(len(context.messages))

        register_before_llm_call_hook(grow)
        try:
            with hearing(ContextWindowSummarizationCompletedEvent, LLMCallFailedEvent) as heard:
                output = kickoff(crew(task(agent(llm))))
                assert heard.kinds == ["context_window_summarization_completed"]
        finally:
            clear_all_llm_call_hooks()
    assert output.raw


# -- with no code of ours -----------------------------------------------------------------------------------


def test_crewai_alone_streams_from_llama_server(engine: Engine, closing: Closing) -> None:
    def plain() -> Any:
        url = f"{engine.url}/v1"
        more: dict[str, Any] = {"temperature": 0, "max_tokens": 2000, "stream": True}
        return closing(LLM(model="openai/demo", base_url=url, api_key="none", **more))

    with asking(Teller=STORY.question, Critic=STORY.question), hearing(LLMStreamChunkEvent) as heard:
        output = kickoff(two(plain(), plain()))
        assert heard.text == STORY.answer * 2
    assert output.raw == STORY.answer


# What the page of the integrations says of CrewAI itself. If one of these fails, CrewAI has learned, and the page is to
# be changed.


def test_crewai_alone_sends_no_stop_words_and_does_not_know_the_context(closing: Closing) -> None:
    with NumberedServer(tokens=3, reasoning_tokens=2) as server, hearing(LLMThinkingChunkEvent) as heard:
        llm = closing(LLM(model="openai/demo", base_url=f"{server.url}/v1", api_key="none", stop=["END"], stream=True))
        kickoff(crew(task(agent(llm, tools=[get_weather]))))
        bodies = [request.body for request in asked(server)]
    assert bodies
    assert not any("stop" in body for body in bodies)
    assert heard.events == []
    assert llm.get_context_window_size() == int(8192 * 0.85)
    assert llm.get_input_tokens_count("x" * 400) == 100


def test_crewai_alone_shows_an_answer_that_breaks_again_and_again(closing: Closing) -> None:
    answer = sse_answer(["a", "b", "c"])
    with ServerDouble(Script(answer, cut_at=answer.index(b'"c"'))) as server, hearing(LLMStreamChunkEvent) as heard:
        llm = closing(LLM(model="openai/demo", base_url=f"{server.url}/v1", api_key="none", stream=True))
        with pytest.raises(Exception, match="peer closed connection"):
            kickoff(crew(task(agent(llm, max_retry_limit=2))))
        assert heard.chunks == ["a", "b"] * 3


def test_crewai_counts_a_model_that_agents_share_twice(engine: Engine) -> None:
    shared = model(engine.url)
    usage = kickoff(two(shared, shared)).token_usage
    assert usage.successful_requests == 4
    assert shared.get_token_usage_summary().successful_requests == 2
