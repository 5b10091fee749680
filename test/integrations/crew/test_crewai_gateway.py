"""CrewAI through the gateway: our model and CrewAI's own, before servers that die."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")
pytest.importorskip("uvicorn", reason="needs the extra server")

from crewai import LLM
from crewai.crews.crew_output import CrewOutput
from crewai.events.types.llm_events import LLMStreamChunkEvent

from commandline import LONG, STORY
from crewwork import agent, crew, listening, task
from fleets import Watched
from gateways import USER_KEY, Running
from llamastream.integrations.crewai import LlamaServerLLM
from polling import wait_for


def ours(gateway: Running) -> LlamaServerLLM:
    """One that mends nothing itself."""
    return LlamaServerLLM(base_url=gateway.url, api_key=USER_KEY, temperature=0, max_tokens=2000, recovery="off")


def test_a_crew(gateway: Running) -> None:
    tasks = [task(agent(ours(gateway), role), f"Tell a story as a {role}.") for role in ("Teller", "Critic")]
    output = crew(*tasks).kickoff()
    assert isinstance(output, CrewOutput)
    assert all(done.raw for done in output.tasks_output)


def test_a_killed_server_is_not_noticed(fleet: Watched, gateway: Running) -> None:
    fleet.wait_all_ready()
    whole = ours(gateway).call(LONG.question)
    seen = 0

    def kill() -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            fleet.kill(gateway.busy())

    with listening(LLMStreamChunkEvent, kill):
        assert ours(gateway).call(LONG.question) == whole
    wait_for(lambda: any(event.recoveries for event in gateway.served))


def test_crewais_own_model(fleet: Watched, gateway: Running, closing: Callable[[Any], Any]) -> None:
    fleet.wait_all_ready()
    llm = closing(LLM(model="openai/demo", base_url=f"{gateway.url}/v1", api_key=USER_KEY, temperature=0, stream=True))
    assert llm.call(STORY.question).strip()
