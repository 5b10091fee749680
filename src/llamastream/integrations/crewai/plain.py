"""The same server for CrewAI's own `LLM`."""

from __future__ import annotations

from typing import Any

UNNAMED = "llama-server"
"""Stands for the model where none is named: CrewAI wants a name, the server has one model and needs none."""


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same server for CrewAI's own `LLM`: it takes one address, with `/v1`, and wants a name, and a key."""
    base_url = arguments.get("base_url")
    first = str(base_url[0] if isinstance(base_url, list) else base_url).rstrip("/").removesuffix("/v1")
    name = str(arguments.get("model") or UNNAMED).removeprefix("openai/")
    kept = {name: value for name, value in arguments.items() if value is not None}
    return {**kept, "model": f"openai/{name}", "base_url": f"{first}/v1"}
