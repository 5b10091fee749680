"""`create_llm`: the models of a project, of the one kind or the other."""

from __future__ import annotations

from typing import Any

from crewai import LLM
from crewai.llms.base_llm import BaseLLM

from llamastream.integrations.clients import project_arguments
from llamastream.integrations.crewai.model import LlamaServerLLM
from llamastream.integrations.crewai.plain import plain_arguments, without_ours


def create_llm(source: Any = None, *, streaming: bool = True, **arguments: Any) -> BaseLLM:
    """A model for a project: a streaming one, or CrewAI's own, so that tasks can be switched one by one.

    Args:
        source: the project's settings: any object (or mapping) with `llm_base_url`, `llm_model`, `llm_temperature`,
            `llm_max_tokens`, `llm_api_key`; None: environment and settings file (`LLAMASTREAM_...`).
        streaming: True for a `LlamaServerLLM`, False for `crewai.LLM` on the same (first) server.
        arguments: of `LlamaServerLLM`; they win. Of those, `crewai.LLM` is given what it knows, and what it does not
            know goes into its requests; what only a streaming model has (`recovery`, `coalesce`, ...) is left out.

    Raises:
        SettingError: the object has none of the settings, or one has a value that is not allowed.
    """
    found = project_arguments(source, arguments)
    if streaming:
        return LlamaServerLLM(**found)
    return LLM(**{"api_key": "none", **plain_arguments(without_ours(found))})
