"""`ChatLlamaStream`: what LangChain's standard tests do not look at."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="runs in `make test-all`, in an environment with LangChain")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelConnectionError, ModelInvalidRequestError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import SecretStr

from chaining import joined
from commandline import LONG, STORY
from llamastream import Engine, StreamingClient, Timeouts
from llamastream.errors import ConnectError, ContextSizeError, InvalidRequestError, ModelLoadingError, SettingError
from llamastream.integrations.langchain import ChatLlamaStream
from llamastream.testing import ChaosProxy, NumberedServer, Reset, Script, ServerDouble, http_answer, sse_answer
from ports import free_port


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)


# -- streaming ----------------------------------------------------------------------------------------------


def test_each_piece_is_handed_on_before_the_next_is_generated() -> None:
    with NumberedServer(tokens=5, gate=True) as server:
        server.release(1)
        texts = []
        for chunk in ChatLlamaStream(base_url=server.url).stream("count"):
            texts.append(chunk.text)
            server.release(1)
    assert texts == ["0 ", "1 ", "2 ", "3 ", "4 ", ""]


async def test_each_piece_is_handed_on_before_the_next_is_generated_in_asyncio() -> None:
    with NumberedServer(tokens=5, gate=True) as server:
        server.release(1)
        texts = []
        chain = ChatPromptTemplate.from_template("{it}") | ChatLlamaStream(base_url=server.url) | StrOutputParser()
        async for text in chain.astream({"it": "count"}):
            texts.append(text)
            server.release(1)
    assert "".join(texts) == "0 1 2 3 4 "
    assert len(texts) >= 5


def test_invoke_and_stream_give_the_same_answer(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0)
    invoked, streamed = model.invoke(STORY.question), joined(list(model.stream(STORY.question)))
    assert invoked.text == streamed.text == STORY.answer
    assert invoked.response_metadata["finish_reason"] == streamed.response_metadata["finish_reason"] == "stop"
    assert invoked.usage_metadata is not None
    assert streamed.usage_metadata is not None
    assert invoked.usage_metadata["output_tokens"] == streamed.usage_metadata["output_tokens"]


def test_a_callback_hears_each_token_once(engine: Engine) -> None:
    variants: list[dict[str, Any]] = [{}, {"streaming": True}]
    for options in variants:
        heard = Tokens()
        model = ChatLlamaStream(base_url=engine.url, temperature=0, **options)
        if options:
            model.invoke(STORY.question, config={"callbacks": [heard]})
        else:
            list(model.stream(STORY.question, config={"callbacks": [heard]}))
        assert "".join(heard.tokens) == STORY.answer
        assert len(heard.tokens) > 20


def test_stop_words_reach_the_server(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0)
    assert model.invoke("Count to ten.", stop=[" 4"]).text == "1, 2, 3,"
    assert ChatLlamaStream(base_url=engine.url, temperature=0, stop=[" 3"]).invoke("Count to ten.").text == "1, 2,"


def test_leaving_a_stream_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    chunks = ChatLlamaStream(base_url=engine.url, temperature=0).stream(LONG.question, ignore_eos=True)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    slots_free()


async def test_cancelling_the_task_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in ChatLlamaStream(base_url=engine.url).astream(LONG.question, ignore_eos=True):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(slots_free)


def test_reasoning_is_kept_apart_and_is_a_content_block() -> None:
    with NumberedServer(tokens=2, reasoning_tokens=2) as server:
        model = ChatLlamaStream(base_url=server.url)
        for message in (model.invoke("count"), joined(list(model.stream("count")))):
            assert message.text == "0 1 "
            assert message.additional_kwargs["reasoning_content"] == "r0 r1 "
            assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]


# -- what is passed on --------------------------------------------------------------------------------------


def test_arguments_that_are_not_ours_go_into_the_request() -> None:
    with ServerDouble(Script(sse_answer(["ok"]))) as server:
        extra: dict[str, Any] = {"top_k": 20, "seed": 1}
        model = ChatLlamaStream(base_url=server.url, extra_body={"min_p": 0.1}, **extra)
        model.invoke("hi", seed=2)
        body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert (body["top_k"], body["seed"], body["min_p"]) == (20, 2, 0.1)


def test_a_dead_server_is_left_for_the_next(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=[f"http://127.0.0.1:{free_port()}", engine.url], temperature=0)
    assert model.invoke(STORY.question).text == STORY.answer


def test_a_break_in_the_middle_is_mended_unless_recovery_is_off(engine: Engine) -> None:
    with ChaosProxy(engine.url, Reset(after_events=5)) as proxy:
        whole = joined(list(ChatLlamaStream(base_url=proxy.url, temperature=0).stream(STORY.question)))
    assert whole.text == STORY.answer
    assert whole.response_metadata["stats"]["recoveries"] == 1
    with ChaosProxy(engine.url, Reset(after_events=5)) as proxy, pytest.raises(ModelConnectionError) as caught:
        list(ChatLlamaStream(base_url=proxy.url, recovery="off").stream(STORY.question))
    assert caught.value.partial.text  # type: ignore[attr-defined]


def test_a_timeout_stands_for_each_step() -> None:
    for timeout in (0.1, Timeouts(first_byte=0.1)):
        with ServerDouble(Script(stall=True)) as server, pytest.raises(TimeoutError):
            ChatLlamaStream(base_url=server.url, timeout=timeout, max_retries=0).invoke("hi")


def test_max_retries_leaves_the_patience_of_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMASTREAM_LOADING_PATIENCE", "0.01")
    loading = Script(http_answer("503 Service Unavailable", b'{"error":{"message":"Loading model"}}'), repeat=True)
    with ServerDouble(loading) as server, pytest.raises(ModelLoadingError):
        ChatLlamaStream(base_url=server.url, max_retries=0).invoke("hi")


def test_the_settings_of_a_project_make_a_model(engine: Engine) -> None:
    settings = SimpleNamespace(llm_base_url=engine.url, llm_model="demo", llm_temperature=0.0, llm_max_tokens=5)
    model = ChatLlamaStream.from_settings(settings, max_tokens=3)
    assert (model.model, model.temperature, model.max_tokens) == ("demo", 0.0, 3)
    assert model.invoke("hi").response_metadata["finish_reason"] == "length"


def test_a_wrong_setting_is_named_when_the_model_is_made() -> None:
    with pytest.raises(ValueError, match="base_url 'ftp://x' from the argument has the scheme 'ftp'") as caught:
        ChatLlamaStream(base_url="ftp://x", api_key=SecretStr("hidden-key"))
    assert "hidden" not in str(caught.value)


def test_keys_are_not_shown() -> None:
    model = ChatLlamaStream(
        base_url="http://127.0.0.1:1", api_key=SecretStr("hidden-key"), headers={"X": "hidden-header"}
    )
    assert "hidden" not in repr(model) + str(model.model_dump()) + str(model._identifying_params)


# -- changes and copies -------------------------------------------------------------------------------------


def test_a_changed_attribute_holds_from_the_next_call_on(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=f"http://127.0.0.1:{free_port()}", temperature=0, max_tokens=3, max_retries=0)
    model.base_url = engine.url
    assert tokens(model) == 3
    model.max_tokens = 5
    assert tokens(model) == 5
    changed = model.model_copy(update={"max_tokens": 7})
    assert (tokens(changed), tokens(model)) == (7, 5)
    assert asyncio.run(changed.ainvoke(LONG.question)).usage_metadata["output_tokens"] == 7  # type: ignore[index]  # told
    model.base_url = "ftp://x"
    with pytest.raises(SettingError, match="base_url 'ftp://x'"):
        model.invoke("hi")


def tokens(model: ChatLlamaStream) -> int:
    usage = model.invoke(LONG.question).usage_metadata
    assert usage is not None
    return usage["output_tokens"]


def test_what_is_not_changed_keeps_its_clients(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, max_tokens=1)
    client = model._client
    model.invoke("hi")
    assert model._client is client
    assert model.model_copy()._client is client


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_can_be_copied_and_pickled(engine: Engine, copied: Callable[[Any], Any]) -> None:
    model = ChatLlamaStream(
        base_url=engine.url, api_key=SecretStr("hidden-key"), temperature=0, timeout=Timeouts(total=60), max_tokens=3
    )
    assert tokens(model) == 3  # its connections are open
    other = copied(model)
    assert other.model_dump() == model.model_dump()
    assert tokens(other) == 3
    assert other._client is not model._client
    assert other.api_key.get_secret_value() == "hidden-key"
    assert "hidden" not in repr(other)


# -- errors and counts --------------------------------------------------------------------------------------


def test_an_error_is_ours_and_langchains_at_once(engine: Engine) -> None:
    too_long = "What is a token? " * 3000
    with pytest.raises(ContextOverflowError) as overflow:
        ChatLlamaStream(base_url=engine.url).invoke(too_long)
    assert isinstance(overflow.value, ContextSizeError)
    assert not vars(type(overflow.value))["is_retryable"]
    with pytest.raises(ModelConnectionError) as refused:
        list(ChatLlamaStream(base_url=f"http://127.0.0.1:{free_port()}", max_retries=0).stream("hi"))
    assert isinstance(refused.value, ConnectError)
    assert vars(type(refused.value))["is_retryable"]
    with pytest.raises(ModelInvalidRequestError) as invalid:
        ChatLlamaStream(base_url=engine.url).invoke("hi", max_tokens=0)
    assert isinstance(invalid.value, InvalidRequestError)


def test_tokens_are_counted_by_the_server(engine: Engine, client: StreamingClient) -> None:
    model = ChatLlamaStream(base_url=engine.url, max_tokens=1)
    assert model.get_num_tokens("Hello there") == len(client.tokenize("Hello there"))
    messages = [SystemMessage("Be brief."), HumanMessage("Hello there")]
    usage = model.invoke(messages).usage_metadata
    assert usage is not None
    assert model.get_num_tokens_from_messages(messages) == usage["input_tokens"]
