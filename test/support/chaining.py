"""What the tests of LangChain share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk


def joined(chunks: Sequence[Any]) -> AIMessageChunk:
    """The message that its pieces make."""
    full: AIMessageChunk = chunks[0]
    for chunk in chunks[1:]:
        full = full + chunk
    return full
