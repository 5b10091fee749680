"""OpenAI's own client, unmodified, through the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from wires import ask

from fleets import Watched, running
from gateways import TOOL, USER_KEY, Running, serving
from llamastream.engine import EngineOptions
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.testing import ChaosProxy, Reset
from polling import wait_for

openai = pytest.importorskip("openai", reason="needs OpenAI's client: make test-sdks")
pydantic = pytest.importorskip("pydantic")

STORY: list[Any] = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def client(gateway: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=USER_KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def whole(client: Any) -> str:
    answer = client.chat.completions.create(model="demo", messages=STORY, temperature=0)
    text: str = answer.choices[0].message.content
    return text


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def free(gateway: Running, watched: Watched) -> None:
    """Nothing is at work any more, neither here nor there."""
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    watched.wait_for(lambda: sum(report.in_flight for report in watched.fleet.status()) == 0, "free slots")


# -- answers ----------------------------------------------------------------------------------------------------


def test_whole_and_streamed_chats(client: Any, whole: str) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=STORY, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert text_of(chunks) == whole
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_v1_in_the_address(gateway: Running, whole: str) -> None:
    with openai.OpenAI(base_url=gateway.url, api_key=USER_KEY) as client:
        assert (
            text_of(client.chat.completions.create(model="demo", messages=STORY, temperature=0, stream=True)) == whole
        )


def test_the_helper_for_streams(client: Any, whole: str) -> None:
    with client.chat.completions.stream(model="demo", messages=STORY, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole


def test_text_completions(client: Any) -> None:
    request = {"model": "demo", "prompt": "Once", "temperature": 0, "max_tokens": 20}
    answer = client.completions.create(**request)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**request, stream=True) if chunk.choices]
    assert "".join(pieces) == answer.choices[0].text
    assert answer.usage.completion_tokens == 20


def test_tools(client: Any) -> None:
    request = {"model": "demo", "messages": STORY, "temperature": 0, "tools": [TOOL], "tool_choice": "required"}
    answer = client.chat.completions.create(**request)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    with client.chat.completions.stream(**request) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    json.loads(call.function.arguments)


def test_structured_output(client: Any) -> None:
    class Weather(pydantic.BaseModel):  # type: ignore[name-defined,misc]  # the module is not there for every mypy
        city: str
        degrees: int

    answer = client.chat.completions.parse(
        model="demo", messages=STORY, temperature=0, response_format=Weather, max_tokens=300
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Weather)
    with client.chat.completions.stream(
        model="demo", messages=STORY, temperature=0, response_format=Weather, max_tokens=300
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_models(client: Any) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "llamacpp")
    assert model.created > 1_700_000_000
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_the_asynchronous_client(gateway: Running, whole: str) -> None:
    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=USER_KEY) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(model="demo", messages=STORY, temperature=0, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

            return await asyncio.gather(*(one() for _ in range(20)))

    assert set(asyncio.run(work())) == {whole}


# -- responses --------------------------------------------------------------------------------------------------


def test_responses_whole_and_streamed(client: Any, whole: str) -> None:
    request = {"model": "demo", "input": "Tell me a story.", "temperature": 0}
    assert client.responses.create(**request).output_text == whole
    events = list(client.responses.create(**request, stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole
    assert events[-1].response.output_text == whole


def test_a_broken_response_is_raised(pair: Watched) -> None:
    direct = pair.fleet.snapshot()[0].url

    def fault(number: int, line: str) -> Reset | None:
        return Reset(after_events=8) if "/responses" in line else None

    with (
        ChaosProxy(direct, fault, everything=True) as proxy,
        serving(Upstreams([proxy.url])) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        received: list[Any] = []
        stream = client.responses.create(model="demo", input="Tell me a story.", stream=True)
        with pytest.raises(openai.APIError, match="the connection broke") as raised:
            received.extend(stream)  # what came before the error stays
        assert len(received) >= 5
        assert raised.value.code == "server_error"


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_errors_have_the_classes_of_the_client(client: Any, stream: bool) -> None:
    def asked(**changes: Any) -> Any:
        request = {"model": "demo", "messages": STORY, "stream": stream, **changes}
        return client.chat.completions.create(**request)

    with pytest.raises(openai.BadRequestError) as bad:
        asked(messages=[{"role": "user", "content": "x " * 20_000}])
    assert bad.value.type == "exceed_context_size_error"
    with pytest.raises(openai.NotFoundError) as missing:
        asked(model="gpt-4o")
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.APIStatusError) as large:
        asked(messages=[{"role": "user", "content": "x" * 200_000}])
    assert (large.value.status_code, large.value.code) == (413, "413")
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="sk-wrong-0123456789").chat.completions.create(model="demo", messages=STORY)
    assert unknown.value.type == "authentication_error"
    assert unknown.value.request_id
    with pytest.raises(openai.InternalServerError) as unserved:
        client.embeddings.create(model="demo", input="a")
    assert unserved.value.status_code == 501


def test_a_full_line_and_no_slot_in_time() -> None:
    with running(EngineOptions(threads=1, parallel=1), instances=1) as watched:
        for settings, kind, status in (
            (GatewaySettings(queue_limit=0), openai.RateLimitError, 429),
            (GatewaySettings(queue_timeout=0.1), openai.InternalServerError, 503),
        ):
            with (
                serving(watched.fleet, settings) as gateway,
                openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
            ):
                long = client.chat.completions.create(
                    model="demo", messages=STORY, stream=True, max_tokens=8000, extra_body={"ignore_eos": True},
                    logprobs=True, top_logprobs=20,
                )  # fmt: skip
                next(iter(long))
                with pytest.raises(kind) as refused:
                    client.chat.completions.create(model="demo", messages=STORY)
                assert refused.value.status_code == status
                assert int(refused.value.response.headers["retry-after"]) >= 1
                long.close()
                free(gateway, watched)


def test_what_the_server_says_is_the_message(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="number of choices|n_cmpl|must be") as raised:
        client.chat.completions.create(model="demo", messages=STORY, n=1000)
    assert raised.value.type == "invalid_request_error"


# -- breaks and hang-ups ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_ready")
def test_a_killed_server_is_not_noticed(pair: Watched, gateway: Running, client: Any) -> None:
    """By streams that know nothing of recovery, 20 of 20."""
    # so long that none of them can be over when the first has begun
    request = {"model": "demo", "messages": STORY, "temperature": 0, "max_tokens": 1000}
    request["extra_body"] = {"ignore_eos": True}
    whole = client.chat.completions.create(**request).choices[0].message.content

    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=USER_KEY, max_retries=0) as client:
            begun = asyncio.Event()

            async def one() -> str:
                stream = await client.chat.completions.create(**request, stream=True)
                pieces = []
                async for chunk in stream:
                    pieces.append(chunk.choices[0].delta.content or "" if chunk.choices else "")
                    begun.set()
                return "".join(pieces)

            async def kill() -> None:
                await begun.wait()
                killed.append(gateway.busiest())
                pair.kill(killed[0])

            *texts, _ = await asyncio.gather(*(one() for _ in range(20)), kill())
            return [text for text in texts if text is not None]

    killed: list[int] = []
    before = [each.generation for each in pair.fleet.snapshot()]
    assert asyncio.run(work()) == [whole] * 20
    wait_for(lambda: any(event.recoveries for event in gateway.served))
    pair.wait_state(killed[0], "ready", before[killed[0]] + 1)


@pytest.mark.usefixtures("all_ready")
def test_tools_and_structured_output_survive_a_kill(pair: Watched, gateway: Running, client: Any) -> None:
    request = {"model": "demo", "messages": STORY, "temperature": 0, "tools": [TOOL], "tool_choice": "required"}
    calm = client.chat.completions.create(**request).choices[0].message.tool_calls[0].function.arguments
    with client.chat.completions.stream(**request) as stream:
        for number, _ in enumerate(stream):
            if number == 2:
                pair.kill(gateway.busiest())
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0].function.arguments
    assert streamed == calm


@pytest.mark.usefixtures("all_ready")
def test_leaving_a_stream_frees_its_slot(pair: Watched, gateway: Running, client: Any) -> None:
    for leave in ("close", "with"):
        stream = client.chat.completions.create(
            model="demo", messages=STORY, stream=True, max_tokens=8000, extra_body={"ignore_eos": True}
        )
        if leave == "close":
            next(iter(stream))
            stream.close()
        else:
            with stream:
                next(iter(stream))
        free(gateway, pair)

    async def cancelled() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=USER_KEY) as client:
            begun = asyncio.Event()

            async def read() -> None:
                stream = await client.chat.completions.create(
                    model="demo", messages=STORY, stream=True, max_tokens=8000, extra_body={"ignore_eos": True}
                )
                async for _ in stream:
                    begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    free(gateway, pair)


def test_embeddings() -> None:
    vectors = EngineOptions(threads=1, alias="vectors", embedding=True, extra_args=("--pooling", "mean"))
    with (
        running(vectors, instances=1) as watched,
        serving(watched.fleet) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for form in ("float", "base64"):
            answer = client.embeddings.create(model="vectors", input=["a", "b c"], encoding_format=form)
            assert [each.index for each in answer.data] == [0, 1]
            assert len(answer.data[0].embedding) > 16
        assert ask(gateway.url, body={"messages": STORY}).status == 501
