"""`LlamaServerLLM`: how it is made, changed and copied."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from crewai import LLM

from commandline import STORY
from crewwork import Ask, asked, hearing, model
from llamastream import Engine, RetryPolicy, Timeouts
from llamastream.errors import SettingError
from llamastream.integrations.crewai import LlamaServerLLM, create_llm
from llamastream.testing import NumberedServer, Script, ServerDouble, http_answer

Closing = Callable[[Any], Any]


def test_the_settings_of_a_project_make_both_kinds_of_models(engine: Engine, closing: Closing) -> None:
    settings = SimpleNamespace(llm_base_url=engine.url, llm_model="demo", llm_temperature=0.0, llm_max_tokens=5)
    streaming = create_llm(settings, max_tokens=3)
    assert isinstance(streaming, LlamaServerLLM)
    assert (streaming.model, streaming.temperature, streaming.max_tokens) == ("demo", 0.0, 3)
    plain = closing(create_llm(settings, streaming=False))
    assert not isinstance(plain, LlamaServerLLM)
    assert (plain.model, plain.temperature, plain.max_tokens) == ("demo", 0.0, 5)
    with hearing() as heard:
        texts = [llm.call("Count to ten.") for llm in (streaming, plain)]
        assert heard.text == texts[0]
    assert all(text and "1, 2, 3, 4".startswith(text) for text in texts)


def test_without_a_settings_object_the_environment_decides(
    engine: Engine, closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASTREAM_BASE_URL", engine.url)
    monkeypatch.setenv("LLAMASTREAM_TEMPERATURE", "0")
    llm = create_llm()
    assert (llm.base_url, llm.temperature) == (engine.url, 0)
    assert llm.call("Hello!") == closing(create_llm(streaming=False)).call("Hello!")


def test_a_plain_model_takes_the_arguments_of_a_streaming_one(closing: Closing) -> None:
    arguments: dict[str, Any] = {
        "recovery": "off",
        "coalesce": 0.1,
        "function_calling": False,
        "fallback": "auto",
        "listeners": [],
        "retry": RetryPolicy(),
        "timeout": Timeouts(total=30),
        "headers": {"X-Asked-By": "test"},
        "top_k": 5,
        "seed": 3,
    }
    content = {"role": "assistant", "content": "ok"}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    body = json.dumps({**whole, "choices": [{"index": 0, "message": content, "finish_reason": "stop"}]}).encode()
    with ServerDouble(Script(http_answer("200 OK", body))) as server:
        plain = closing(create_llm({"llm_base_url": server.url}, streaming=False, **arguments))
        assert plain.call("hi") == "ok"
        head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    fields = json.loads(sent)
    assert (fields["top_k"], fields["seed"]) == (5, 3)
    assert fields.keys() == {"messages", "model", "top_k", "seed"}
    assert b"x-asked-by: test" in head.lower()
    assert plain.timeout == 30


def test_an_object_without_settings_is_refused() -> None:
    with pytest.raises(SettingError, match="SimpleNamespace has none of the settings llm_base_url"):
        create_llm(SimpleNamespace(base_url="http://localhost:8080"))


def test_a_wrong_setting_is_named_when_the_model_is_made() -> None:
    with pytest.raises(ValueError, match="base_url 'ftp://x' from the argument has the scheme 'ftp'") as caught:
        LlamaServerLLM(base_url="ftp://x", api_key="hidden-key")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="n=2 is not allowed: CrewAI takes one answer"):
        LlamaServerLLM(base_url="http://127.0.0.1:1", n=2)


def test_keys_are_sent_and_not_shown() -> None:
    with NumberedServer(tokens=1) as server:
        llm = LlamaServerLLM(base_url=server.url, api_key="hidden-key", headers={"X-Team": "hidden-header"})
        llm.call("count")
        sent = asked(server)[-1].headers
    assert (sent["authorization"], sent["x-team"]) == ("Bearer hidden-key", "hidden-header")
    assert "hidden" not in repr(llm) + str(llm.model_dump()) + llm.model_dump_json() + json.dumps(llm.to_config_dict())


def test_crewai_can_make_a_model_of_its_own_after_a_pause(engine: Engine, closing: Closing) -> None:
    config = model([engine.url, "http://127.0.0.1:1"], model="demo", stop=[" 3"]).to_config_dict()
    assert config == {"model": "openai/demo", "base_url": f"{engine.url}/v1", "temperature": 0, "stop": [" 3"]}
    assert str(closing(LLM(**config, api_key="none")).call("Count to ten.")).startswith("1, 2,")


@pytest.mark.parametrize("wrong", [1.5, float("nan"), float("inf")])
def test_max_tokens_is_a_whole_number(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"max_tokens={wrong} is not allowed; allowed: a whole number"):
        model("http://127.0.0.1:1", max_tokens=wrong)
    llm = model("http://127.0.0.1:1", max_tokens=20.0)
    assert llm.max_tokens == 20
    llm.max_tokens = wrong
    with pytest.raises(ValueError, match=f"max_tokens={wrong} is not allowed; allowed: a whole number"):
        llm.call("hi")


# -- changes and copies -------------------------------------------------------------------------------------


def test_a_changed_attribute_holds_from_the_next_call_on(ask: Ask) -> None:
    with NumberedServer(tokens=2) as first, NumberedServer(tokens=3) as second:
        llm = model(first.url)
        assert ask(llm, "count") == "0 1 "
        changed = llm.model_copy(update={"base_url": second.url})
        assert (ask(changed, "count"), ask(llm, "count")) == ("0 1 2 ", "0 1 ")
        llm.base_url = second.url
        assert ask(llm, "count") == "0 1 2 "
    llm.base_url = "ftp://x"
    with pytest.raises(SettingError, match="base_url 'ftp://x'"):
        ask(llm, "count")


def test_the_context_is_that_of_the_server_that_is_asked_now(engine: Engine) -> None:
    props = http_answer("200 OK", b'{"default_generation_settings":{"n_ctx":77}}')
    with ServerDouble(Script(props)) as server:
        llm = model(server.url)
        assert llm.get_context_window_size() == 77
    llm.base_url = engine.url
    assert llm.get_context_window_size() == model(engine.url).get_context_window_size() != 77


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm))])
def test_a_model_can_be_copied_and_pickled(engine: Engine, copied: Callable[[Any], Any]) -> None:
    llm = model(engine.url, api_key="hidden-key", timeout=Timeouts(total=60), top_k=1)
    assert llm.call(STORY.question) == STORY.answer  # its connections are open
    other = copied(llm)
    assert other.call(STORY.question) == STORY.answer
    assert other._client is not llm._client
    assert (other.api_key, other.additional_params) == ("hidden-key", {"top_k": 1})
    assert "hidden" not in repr(other)
