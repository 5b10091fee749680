"""Anthropic's own client, unmodified, through the gateway's `/v1/messages`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from fleets import Watched, running
from gateways import USER_KEY, Running, serving
from llamastream.backends import StaticBackends
from llamastream.engine import EngineOptions
from llamastream.gateway import GatewaySettings
from llamastream.testing import ChaosProxy, Reset
from polling import wait_for

anthropic = pytest.importorskip("anthropic", reason="needs Anthropic's client: make test-sdks")

STORY: Any = {
    "model": "demo", "max_tokens": 400, "messages": [{"role": "user", "content": "Tell me a story."}],
    "extra_body": {"temperature": 0},
}  # fmt: skip
TOOL: Any = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(gateway: Running) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=USER_KEY, max_retries=0, timeout=60) as client:
        yield client


def idle(gateway: Running) -> None:
    """Until nothing is at work."""
    wait_for(lambda: gateway.gateway.lanes.active == 0)


def unkeyed(url: str) -> Any:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)


def test_whole_and_streamed_messages(client: Any) -> None:
    answer = client.messages.create(**STORY)
    whole = answer.content[0].text
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 10
    with client.messages.stream(**STORY) as stream:
        assert "".join(stream.text_stream) == whole
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_reason) == (whole, "end_turn")
    events = [event.type for event in client.messages.create(**STORY, stream=True)]
    assert (events[0], events[-1]) == ("message_start", "message_stop")


def test_tool_use(client: Any) -> None:
    request = {**STORY, "tools": [TOOL], "tool_choice": {"type": "any"}}
    answer = client.messages.create(**request)
    (block,) = [block for block in answer.content if block.type == "tool_use"]
    assert (block.name, answer.stop_reason) == ("get_weather", "tool_use")
    with client.messages.stream(**request) as stream:
        final = stream.get_final_message()
    assert [part.input for part in final.content if part.type == "tool_use"] == [block.input]


def test_tokens_are_counted(client: Any) -> None:
    request = {name: STORY[name] for name in ("model", "messages")}
    counted = client.messages.count_tokens(**request).input_tokens
    usage = client.messages.create(**STORY).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)  # what was cached is counted apart


def test_errors_have_the_classes_of_the_client(client: Any, gateway: Running) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(**{**STORY, "messages": [{"role": "user", "content": "x " * 20_000}]})
    assert bad.value.body["type"] == "error"
    assert "context" in bad.value.body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**STORY, "model": "claude"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        unkeyed(gateway.url).messages.create(**STORY)
    assert unknown.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.RequestTooLargeError) as large:
        client.messages.create(**{**STORY, "messages": [{"role": "user", "content": "x" * 200_000}]})
    assert large.value.body["error"]["type"] == "request_too_large"


def test_a_full_line_and_no_slot_in_time() -> None:
    options = EngineOptions(threads=1, parallel=1, extra_args=("--ignore-eos",))
    with running(options, instances=1) as watched:
        for settings, status, kind in (
            (GatewaySettings(queue_limit=0), 429, "rate_limit_error"),
            (GatewaySettings(queue_timeout=0.1), 503, "overloaded_error"),
        ):
            with serving(watched.fleet, settings) as gateway, unkeyed(gateway.url) as client:
                long = client.messages.create(**{**STORY, "max_tokens": 8000}, stream=True)
                next(iter(long))
                with pytest.raises(anthropic.APIStatusError) as refused:
                    client.messages.create(**STORY)
                assert (refused.value.status_code, refused.value.body["error"]["type"]) == (status, kind)
                long.close()
                idle(gateway)


def test_a_killed_server_is_raised_in_the_middle_and_not_noticed_before() -> None:
    """What came is kept, and the error says that it is not all."""
    options = EngineOptions(threads=1, extra_args=("--ignore-eos",))
    with running(options, instances=2) as watched, serving(watched.fleet) as gateway, unkeyed(gateway.url) as client:
        texts: list[str] = []

        def read() -> None:
            with client.messages.stream(**{**STORY, "max_tokens": 8000}) as stream:
                for text in stream.text_stream:
                    texts.append(text)
                    if len(texts) == 3:
                        watched.kill(0)

        with pytest.raises(anthropic.APIStatusError, match="broke") as raised:
            read()
        assert len(texts) >= 3
        assert raised.value.body["error"]["type"] == "api_error"
        # and the next goes to the other one
        assert client.messages.create(**STORY).stop_reason == "max_tokens"


def test_a_break_before_the_first_event_is_not_noticed(pair: Watched) -> None:
    first, second = (backend.url for backend in pair.fleet.snapshot())

    def fault(number: int, line: str) -> Reset | None:
        return Reset(after_events=0) if "/v1/messages" in line else None

    with (
        ChaosProxy(first, fault, everything=True) as proxy,
        serving(StaticBackends((proxy.url, second))) as gateway,
        unkeyed(gateway.url) as client,
    ):
        for _ in range(3):
            with client.messages.stream(**STORY) as stream:
                assert stream.get_final_message().stop_reason == "end_turn"


def test_leaving_a_stream_frees_its_slot(pair: Watched, gateway: Running) -> None:
    async def work() -> None:
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=USER_KEY) as client:
            for _ in range(3):
                async with client.messages.stream(**STORY) as stream:
                    async for _ in stream.text_stream:
                        break

    asyncio.run(work())
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    pair.wait_for(lambda: sum(report.in_flight for report in pair.fleet.status()) == 0, "free slots")
