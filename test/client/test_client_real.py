"""Both clients against a real llama-server: answers, endpoints, statistics, slots freed."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

from drivers import DRIVERS, Driver
from llamastream.client import AsyncStream, AsyncStreamingClient, Stream, StreamingClient
from llamastream.engine import Engine
from llamastream.engine.demo import DemoQuestion, demo_questions
from llamastream.errors import (
    ContextSizeError,
    InvalidRequestError,
    LlamaStreamError,
    NotFoundError,
    StreamConsumedError,
)
from llamastream.types import ChoiceFinish, Health, StreamEnd, StreamStart, TextDelta, Timings, Usage

QUESTIONS = {question.question: question for question in demo_questions()}
STORY = QUESTIONS["Tell me a long story."]
SHORT = QUESTIONS["What is a slot?"]
EMOJI = QUESTIONS["Say something with emoji."]
LONG_RUN = [{"role": "user", "content": STORY.question}]

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def ask(question: DemoQuestion) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.question}]


# -- answers ------------------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("question", [STORY, SHORT, EMOJI], ids=["long", "short", "emoji"])
def test_the_answer_comes_in_pieces_word_for_word(engine: Engine, driver: Driver, question: DemoQuestion) -> None:
    texts = driver.texts(engine.url, ask(question), temperature=0)
    assert "".join(texts) == question.answer
    assert len(texts) > 20


@each_driver
def test_all_events_in_order_and_the_figures_at_the_end(engine: Engine, driver: Driver) -> None:
    events = driver.events(engine.url, ask(SHORT), temperature=0)
    kinds = [type(event) for event in events]
    texts = kinds.count(TextDelta)
    assert kinds == [StreamStart, *[TextDelta] * texts, ChoiceFinish, Usage, Timings, StreamEnd]
    end = events[-1]
    assert isinstance(end, StreamEnd)
    stats = end.stats
    assert (end.finish_reason, stats.chunks) == ("stop", texts)
    assert stats.completion_tokens is not None
    assert stats.completion_tokens >= texts
    assert stats.prompt_tokens is not None
    assert 0 <= (stats.cached_tokens or 0) < stats.prompt_tokens
    assert stats.connect_time is not None
    assert stats.time_to_header is not None
    assert stats.time_to_first_token is not None
    assert 0 < stats.connect_time < stats.time_to_header <= stats.time_to_first_token <= stats.duration
    p50, p95, worst = stats.inter_token_latency_p50, stats.inter_token_latency_p95, stats.inter_token_latency_max
    assert p50 is not None
    assert p95 is not None
    assert worst is not None
    assert 0 <= p50 <= p95 <= worst
    assert stats.tokens_per_second is not None
    assert stats.server_tokens_per_second is not None
    assert stats.body_bytes > 100 * texts


@each_driver
def test_length_is_a_finish_reason_of_its_own(engine: Engine, driver: Driver) -> None:
    result = driver.result(engine.url, ask(STORY), temperature=0, max_tokens=7)
    assert (result.finish_reason, result.usage and result.usage.completion_tokens) == ("length", 7)
    assert STORY.answer.startswith(result.text)


@each_driver
def test_the_prompt_cache_shows_in_the_figures(engine: Engine, driver: Driver) -> None:
    question = [{"role": "system", "content": f"You are {driver.name}."}, *ask(SHORT)]
    driver.result(engine.url, question, max_tokens=1)
    again = driver.result(engine.url, question, max_tokens=1)
    assert again.usage is not None
    assert again.usage.cached_tokens > again.usage.prompt_tokens // 2
    assert again.stats.cached_tokens == again.usage.cached_tokens


@each_driver
def test_prewarming_fills_the_prompt_cache(engine: Engine, driver: Driver) -> None:
    system = {"role": "system", "content": f"These are the rules of {driver.name}. " + "Be kind. " * 40}
    first = driver.call(engine.url, "prewarm", [system])
    assert first.prompt_tokens > 100
    assert (first.cached_tokens or 0) < first.prompt_tokens // 2
    result = driver.result(engine.url, [system, *ask(SHORT)], max_tokens=1)
    assert (result.stats.cached_tokens or 0) > 0.9 * first.prompt_tokens


@each_driver
def test_several_choices_and_logprobs(engine: Engine, driver: Driver) -> None:
    result = driver.result(engine.url, ask(SHORT), temperature=0, max_tokens=5, n=2, logprobs=True)
    assert [choice.index for choice in result.choices] == [0, 1]
    for choice in result.choices:
        assert SHORT.answer.startswith(choice.text)
        assert choice.logprobs is not None
        assert len(choice.logprobs["content"]) >= 4


@each_driver
def test_tool_calls_are_assembled(engine: Engine, driver: Driver) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    messages = [{"role": "user", "content": "What is the weather in Berlin?"}]
    result = driver.result(engine.url, messages, tools=[tool], tool_choice="required", temperature=0, max_tokens=200)
    assert result.finish_reason == "tool_calls"
    assert [call.name for call in result.tool_calls] == ["get_weather"]
    assert list(result.tool_calls[0].parsed_arguments()) == ["city"]
    assert result.tool_calls[0].id


@each_driver
def test_a_json_schema_is_kept(engine: Engine, driver: Driver) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"schema": {**schema, "additionalProperties": False}}}
    result = driver.result(engine.url, ask(SHORT), response_format=form, max_tokens=200)
    assert 0 <= json.loads(result.text)["n"] <= 9


@each_driver
def test_completions_of_text_and_of_token_ids(engine: Engine, driver: Driver) -> None:
    text = driver.call(engine.url, "complete", "Once upon a time", temperature=0, max_tokens=20)
    tokens = driver.call(engine.url, "tokenize", "Once upon a time")
    same = driver.call(engine.url, "complete", tokens, temperature=0, max_tokens=20)
    assert text.text == same.text
    assert len(text.text) > 20


@each_driver
def test_extra_arguments_reach_the_server(engine: Engine, driver: Driver) -> None:
    result = driver.result(engine.url, ask(SHORT), temperature=0, stop=["context"], timings_per_token=True)
    assert result.text == SHORT.answer.partition("context")[0]


@each_driver
def test_prefill_progress_comes_as_events(engine: Engine, driver: Driver) -> None:
    events = driver.events(engine.url, ask(SHORT), max_tokens=1, return_progress=True, cache_prompt=False)
    progress = [event for event in events if type(event).__name__ == "PromptProgress"]
    assert progress
    assert progress[-1].processed == progress[-1].total > 10  # type: ignore[union-attr]  # by the name above


# -- the other endpoints --------------------------------------------------------------------------------------


@each_driver
def test_endpoints(engine: Engine, driver: Driver) -> None:
    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        return driver.call(engine.url, method, *args, **kwargs)

    assert call("health") == Health("ok")
    assert call("check_server_health") is True
    assert call("models") == ["demo"]
    assert call("props")["total_slots"] == 4
    assert [slot["id"] for slot in call("slots")] == [0, 1, 2, 3]
    assert call("metrics")["llamacpp:requests_processing"] >= 0
    assert call("detokenize", call("tokenize", "Grüße, Welt 🦙")) == "Grüße, Welt 🦙"
    assert "Tell me a long story." in call("apply_template", LONG_RUN)
    assert call("wait_until_ready", 5) is None


@each_driver
@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_base_urls_with_and_without_v1(engine: Engine, driver: Driver, suffix: str) -> None:
    assert driver.call(engine.url + suffix, "check_server_health") is True


# -- leaving ------------------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("how", ["break", "close", "with", "error", "thread", "task"])
def test_a_stream_that_is_left_frees_its_slot_within_a_second(
    engine: Engine, driver: Driver, how: str, slots_free: Callable[[], float]
) -> None:
    if how == "task" and driver.name == "sync":
        pytest.skip("a synchronous stream has no task")
    # A hundred times in a row by each of the usual ways, a dozen by the others.
    usual = (how, driver.name) in {("break", "sync"), ("break", "asyncio"), ("task", "asyncio"), ("thread", "sync")}
    for number in range(100 if usual else 12):
        finish_reason, seconds = driver.leave(engine.url, LONG_RUN, how, 1 + number % 35, slots_free)
        assert finish_reason == "cancelled"
        assert seconds < 1.0


def test_a_stream_that_only_the_loop_holds(engine: Engine, slots_free: Callable[[], float]) -> None:
    texts = []
    with StreamingClient(engine.url, temperature=0) as client:
        for text in client.stream_chat(ask(SHORT)):
            texts.append(text)  # noqa: PERF402  # the loop itself is what is tested
        assert "".join(texts) == SHORT.answer
        for event in client.stream_chat(ask(SHORT)).events():
            assert isinstance(event, StreamStart)
            break
        for _ in client.stream_chat(LONG_RUN, ignore_eos=True):
            break
        assert slots_free() < 1.0

    async def work() -> None:
        atexts = []
        async with AsyncStreamingClient(engine.url, temperature=0) as client:
            async for text in client.stream_chat(ask(SHORT)):
                atexts.append(text)  # noqa: PERF401  # as above
            assert "".join(atexts) == SHORT.answer
            async for _ in client.stream_chat(LONG_RUN, ignore_eos=True):
                break
            assert await asyncio.to_thread(slots_free) < 1.0

    asyncio.run(work())


def test_a_cancelled_stream_keeps_what_it_had(client: StreamingClient) -> None:
    stream = client.stream_chat(LONG_RUN, temperature=0)
    got = [next(stream) for _ in range(5)]
    stream.close()
    assert list(stream) == []
    result = stream.result()
    assert result.finish_reason == "cancelled"
    assert result.text.startswith("".join(got))


def test_a_stream_cancelled_before_it_began_sends_nothing(client: StreamingClient) -> None:
    stream = client.stream_chat(LONG_RUN)
    stream.cancel()
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"


def test_nothing_is_sent_before_the_first_iteration_or_with(engine: Engine, client: StreamingClient) -> None:
    before = client.metrics()["llamacpp:prompt_tokens_total"]
    stream = client.stream_chat(ask(SHORT), max_tokens=1)
    assert client.metrics()["llamacpp:prompt_tokens_total"] == before
    with stream:
        assert stream.result().finish_reason == "length"
    assert client.metrics()["llamacpp:prompt_tokens_total"] > before


# -- wrong use ----------------------------------------------------------------------------------------------


def test_a_second_iteration_is_a_clear_error(client: StreamingClient) -> None:
    stream = client.stream_chat(ask(SHORT), max_tokens=2)
    assert "".join(stream)
    with pytest.raises(StreamConsumedError, match="one consumer"):
        iter(stream)
    with pytest.raises(StreamConsumedError, match="one consumer"):
        stream.events()
    assert stream.result().finish_reason == "length", "the result stays"


async def _iterate_twice(url: str) -> None:
    stream = AsyncStreamingClient(url).stream_chat(ask(SHORT), max_tokens=2)
    assert [text async for text in stream]
    with pytest.raises(StreamConsumedError, match="one consumer"):
        aiter(stream)


def test_a_second_async_iteration_is_a_clear_error(engine: Engine) -> None:
    asyncio.run(_iterate_twice(engine.url))


@each_driver
def test_a_prompt_longer_than_the_context(engine: Engine, driver: Driver) -> None:
    with pytest.raises(ContextSizeError, match="shorten the prompt") as caught:
        driver.result(engine.url, [{"role": "user", "content": "word " * 20_000}])
    assert caught.value.n_ctx == engine.capabilities.n_ctx
    assert (caught.value.n_prompt_tokens or 0) > 20_000


@each_driver
def test_a_prompt_of_ten_megabytes(engine: Engine, driver: Driver) -> None:
    with pytest.raises(LlamaStreamError) as caught:
        driver.result(engine.url, [{"role": "user", "content": "word " * 2_000_000}])
    assert isinstance(caught.value, ContextSizeError)


@each_driver
def test_requests_that_cannot_be_right_raise_at_once(engine: Engine, driver: Driver) -> None:
    with pytest.raises(InvalidRequestError):
        driver.texts(engine.url, "no list")


@each_driver
def test_an_unknown_path(engine: Engine, driver: Driver) -> None:
    with pytest.raises(NotFoundError, match="check the path"):
        driver.result(engine.url + "/nowhere", ask(SHORT))


# -- the two clients are one design -----------------------------------------------------------------------------


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_the_clients_have_the_same_methods_with_the_same_arguments() -> None:
    sync, async_ = public(StreamingClient), public(AsyncStreamingClient)
    assert sync.keys() == async_.keys()
    for name, signature in sync.items():
        assert list(signature.parameters.values()) == list(async_[name].parameters.values()), name
    plain = [name for name in async_ if not inspect.iscoroutinefunction(getattr(AsyncStreamingClient, name))]
    assert plain == ["stream_chat", "stream_completion"], "these return a stream at once in both clients"
    assert inspect.signature(StreamingClient) == inspect.signature(AsyncStreamingClient)


def test_the_streams_have_the_same_methods() -> None:
    assert public(Stream).keys() == public(AsyncStream).keys()
    assert {n for n in vars(Stream) if isinstance(vars(Stream)[n], property)} == {
        n for n in vars(AsyncStream) if isinstance(vars(AsyncStream)[n], property)
    }
