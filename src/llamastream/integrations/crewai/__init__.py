"""CrewAI on llama-server: `LlamaServerLLM`, and `stream_task`, which shows what an agent writes while it writes it.

from crewai import Agent, Task
from llamastream.integrations.crewai import LlamaServerLLM, stream_task

llm = LlamaServerLLM(base_url="http://localhost:8080", temperature=0)
agent = Agent(role="Writer", goal="Tell stories", backstory="You like short words.", llm=llm)
stream_task(Task(description="Tell a story.", expected_output="A story.", agent=agent))
"""

from llamastream.integrations.extras import need

need("crewai", "crewai")

# only once the library is there
from llamastream.integrations.crewai.factory import create_llm  # noqa: E402
from llamastream.integrations.crewai.failures import StoppedError  # noqa: E402
from llamastream.integrations.crewai.live import Live, astream_task, stream_task  # noqa: E402
from llamastream.integrations.crewai.model import LlamaServerLLM  # noqa: E402
from llamastream.integrations.crewai.pieces import Piece  # noqa: E402

__all__ = ["Live", "LlamaServerLLM", "Piece", "StoppedError", "astream_task", "create_llm", "stream_task"]
