"""The same server for CrewAI's own `LLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crewai.llms.providers.openai.completion import OpenAICompletion

from llamastream import Timeouts

UNNAMED = "llama-server"
"""Stands for the model where none is named: CrewAI wants a name, the server has one model and needs none."""


_ONLY_OURS = frozenset({"coalesce", "function_calling", "retry", "recovery", "fallback", "listeners"})
"""What CrewAI's own model has nothing for."""

_OF_REQUESTS = frozenset({"extra_body", "extra_headers", "extra_query", "logit_bias", "parallel_tool_calls", "user"})
"""What the library under CrewAI's own model takes besides the model's fields; it refuses all else."""


def without_ours(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `LlamaServerLLM` as CrewAI's own `LLM` takes them. Fields that only llama-server knows, such as
    `top_k`, go into `extra_body`."""
    kept: dict[str, Any] = {}
    body: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None or name in _ONLY_OURS:
            continue
        if name == "headers":
            kept["default_headers"] = value
        elif name == "timeout" and isinstance(value, Timeouts):
            kept |= {} if value.total is None else {name: value.total}
        elif name in OpenAICompletion.model_fields or name in _OF_REQUESTS:
            kept[name] = value
        else:
            body[name] = value
    return {**kept, "extra_body": {**body, **kept.get("extra_body", {})}} if body else kept


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same server for CrewAI's own `LLM`: it takes one address, with `/v1`, and wants a name, and a key."""
    base_url = arguments.get("base_url")
    first = str(base_url[0] if isinstance(base_url, list) else base_url).rstrip("/").removesuffix("/v1")
    name = str(arguments.get("model") or UNNAMED).removeprefix("openai/")
    kept = {name: value for name, value in arguments.items() if value is not None}
    return {**kept, "model": f"openai/{name}", "base_url": f"{first}/v1"}
