"""Two agents. The models are made in one place, so that an agent is switched to streaming by one word."""

from typing import Any

from crewai import Agent

from llamastream.integrations.crewai import create_llm


def researcher(settings: Any) -> Agent:
    return Agent(
        role="Researcher",
        goal="Find out what there is to know about {topic}",
        backstory="You collect facts and leave out what is not sure.",
        llm=create_llm(settings, streaming=False),  # as before: CrewAI's own model
    )


def writer(settings: Any) -> Agent:
    return Agent(
        role="Writer",
        goal="Explain {topic} so that everybody understands it",
        backstory="You like short words, and examples.",
        llm=create_llm(settings, streaming=True),  # llamastream: live, mended when it breaks, with real stop words
    )
