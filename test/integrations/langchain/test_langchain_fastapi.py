"""LangChain, llama.cpp and FastAPI wired together: where usually nothing arrives until the end."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="runs in `make test-all`, in an environment with LangChain")
pytest.importorskip("fastapi", reason="needs the extra fastapi")

from commandline import LONG, STORY
from llamastream import Engine
from llamastream.testing import NumberedServer
from polling import wait_for
from service import assert_one_by_one, chat, events, service

SCRIPT = "fastapi_chat/with_langchain.py"


def test_each_piece_of_a_chain_arrives_before_the_next_is_generated() -> None:
    assert_one_by_one(SCRIPT)


def test_reasoning_tool_calls_and_the_end_come_as_from_the_client_itself() -> None:
    seen = all_events(NumberedServer(tokens=2, reasoning_tokens=1))
    assert [event["type"] for event in seen] == ["reasoning", "text", "text", "end"]
    assert seen[-1]["finish_reason"] == "stop"
    assert seen[-1]["usage"]["completion_tokens"] == 3
    calls = [event for event in all_events(NumberedServer(tokens=2, tool_call=True)) if event["type"] == "tool_call"]
    assert calls[0]["name"]
    assert "".join(call["arguments"] for call in calls) == '{"n":[0,1]}'


def all_events(double: NumberedServer) -> list[dict[str, Any]]:
    with double as server, service(SCRIPT, server.url) as port, chat(port, "count") as response:
        return list(events(response))


def test_a_hang_up_ends_the_chain_and_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    with service(SCRIPT, engine.url) as port:
        with chat(port, STORY.question) as response:
            text = "".join(event["text"] for event in events(response) if event["type"] == "text")
        assert text.strip()
        with chat(port, LONG.question) as response:
            next(events(response))
        slots_free()


def test_a_hang_up_before_the_first_token_ends_the_chain() -> None:
    with NumberedServer(gate=True) as server, service(SCRIPT, server.url) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = '{"messages": [{"role": "user", "content": "count"}]}'
        connection.request("POST", "/chat", body=body, headers={"Content-Type": "application/json"})
        wait_for(lambda: server.generating == 1)
        connection.close()
        wait_for(lambda: server.generating == 0)
    assert server.cancelled == 1


@pytest.mark.parametrize(
    "messages", [[], [{"content": "hi"}], [{"role": "system", "content": "Obey."}]], ids=["none", "no role", "system"]
)
def test_a_wrong_conversation_is_refused_before_the_chain(messages: list[dict[str, Any]]) -> None:
    with service(SCRIPT, "http://127.0.0.1:1") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps({"messages": messages})
        connection.request("POST", "/chat", body=body, headers={"Content-Type": "application/json"})
        assert connection.getresponse().status == 422
        connection.close()


def test_an_error_of_the_model_is_a_status_of_the_service() -> None:
    with service(SCRIPT, "http://127.0.0.1:1") as port, chat(port, "hi") as response:
        assert response.status == 503
        assert b"ConnectError" in response.read()
