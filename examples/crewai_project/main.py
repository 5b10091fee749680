"""A CrewAI project: settings, two agents with a task each, and everything live in the terminal.

python examples/crewai_project/main.py [--url http://localhost:8080] [--topic "streaming"]

Needs `pip install "llamastream[server,crewai]"`. Without --url, and without LLM_BASE_URL in the environment, the demo
engine is started. The demo model knows a few dozen questions; to the long prompts of agents it says that it does not
know.
"""

import argparse
import os
from contextlib import nullcontext

# CrewAI reads these when it is imported: nothing leaves this machine.
os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")

from agents import researcher, writer  # type: ignore[import-not-found]  # mypy does not look beside the script
from crewai import Crew, Task

from core.settings import settings  # type: ignore[import-not-found]  # mypy sees the repository's `core`
from llamastream import launch
from llamastream.integrations.crewai import stream_task


def build() -> Crew:
    research, writing = researcher(settings), writer(settings)
    facts = Task(
        name="research",
        description="Collect what is known about {topic}.",
        expected_output="A list of facts.",
        agent=research,
    )
    article = Task(
        name="article",
        description="Write an article about {topic}.",
        expected_output="Three short paragraphs.",
        agent=writing,
        context=[facts],
    )
    return Crew(agents=[research, writing], tasks=[facts, article])


def main() -> None:
    parser = argparse.ArgumentParser(description="Two agents, live.")
    parser.add_argument("--url", help="a running llama-server; without it, LLM_BASE_URL, or the demo engine")
    parser.add_argument("--topic", default="streaming")
    arguments = parser.parse_args()
    own_engine = arguments.url is None and "LLM_BASE_URL" not in os.environ
    with launch() if own_engine else nullcontext() as engine:
        settings.llm_base_url = engine.url if engine is not None else arguments.url or settings.llm_base_url
        # For this run the researcher's model streams as well, though it was not switched.
        output = stream_task(build(), inputs={"topic": arguments.topic})
    usage = output.token_usage
    print(f"\n{len(output.tasks_output)} tasks, {usage.prompt_tokens} tokens read, {usage.completion_tokens} written")


if __name__ == "__main__":
    main()
