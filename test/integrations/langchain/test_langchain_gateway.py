"""LangChain through the gateway: chains that know one address, before servers that die."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="runs in `make test-all`, in an environment with LangChain")
pytest.importorskip("uvicorn", reason="needs the extra server")

from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from commandline import LONG, STORY
from fleets import Watched
from gateways import USER_KEY, Running, serving
from llamastream.errors import AuthenticationError, RateLimitedError
from llamastream.gateway import GatewaySettings
from llamastream.integrations.langchain import ChatLlamaStream
from polling import wait_for


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def model(gateway: Running, **more: Any) -> ChatLlamaStream:
    """One that mends nothing itself."""
    return ChatLlamaStream(base_url=gateway.url, **{"api_key": USER_KEY, "temperature": 0, "recovery": "off", **more})


def test_chains_in_both_worlds(gateway: Running) -> None:
    chain = ChatPromptTemplate.from_template("{question}") | model(gateway) | StrOutputParser()
    whole = chain.invoke({"question": STORY.question})
    assert "".join(chain.stream({"question": STORY.question})) == whole
    assert chain.batch([{"question": STORY.question}] * 20) == [whole] * 20

    async def work() -> str:
        return "".join([piece async for piece in chain.astream({"question": STORY.question})])

    assert asyncio.run(work()) == whole


def test_structured_output_and_tokens(gateway: Running) -> None:
    answer = model(gateway).with_structured_output(Weather).invoke("What is the weather in Paris?")
    assert isinstance(answer, Weather)
    assert model(gateway).get_num_tokens_from_messages([HumanMessage("Who are you?")]) > 3


def test_a_killed_server_is_not_noticed(fleet: Watched, gateway: Running) -> None:
    # so long that it cannot be over when the client has its beginning
    long = model(gateway, max_tokens=2000, extra_body={"ignore_eos": True})
    whole = long.invoke(LONG.question).text
    for _ in range(2):
        fleet.wait_all_ready()
        texts = []
        for number, chunk in enumerate(long.stream(LONG.question)):
            texts.append(chunk.text)
            if number == 3:
                fleet.kill(gateway.busy())
        assert "".join(texts) == whole
    wait_for(lambda: any(event.recoveries for event in gateway.served))


def test_errors(fleet: Watched, gateway: Running) -> None:
    with pytest.raises(AuthenticationError, match="unknown"):
        model(gateway, api_key="sk-wrong-0123456789").invoke("hi")
    with serving(fleet.fleet, GatewaySettings(queue_limit=0)) as full:
        lane = full.gateway.lanes.find("demo")
        router = lane.admission.scheduler.router
        free, router.free = router.free, 0
        with pytest.raises(RateLimitedError, match="queue_limit"):
            model(full, max_retries=0).invoke("hi")
        router.free = free
        assert model(full).invoke("hi").text
