"""What a run says while it runs: events of CrewAI's bus as one small type."""

from __future__ import annotations

from typing import Any, Literal

from crewai.events.types.llm_events import LLMStreamChunkEvent, LLMThinkingChunkEvent
from msgspec import Struct


class Piece(Struct, frozen=True, kw_only=True):
    """A piece of what a model writes for a task.

    Attributes:
        kind: `text`, `reasoning` or `tool_call`.
        text: the piece; of a tool call, the next part of its arguments, which are JSON text once joined.
        tool: the name of the tool that is called, else "".
        call: the id of the call of the model that it belongs to; a task may take several.
        task, task_id: the task's name, or its description if it has none, and its id.
        agent, agent_id: the agent's role and its id.
    """

    kind: Literal["text", "reasoning", "tool_call"]
    text: str
    tool: str = ""
    call: str = ""
    task: str = ""
    task_id: str = ""
    agent: str = ""
    agent_id: str = ""


def to_piece(event: Any) -> Piece | None:
    """An event as a piece; None for events of other kinds."""
    if isinstance(event, LLMThinkingChunkEvent):
        return _piece("reasoning", event, "")
    if not isinstance(event, LLMStreamChunkEvent):
        return None
    if event.tool_call is None:
        return _piece("text", event, "")
    return _piece("tool_call", event, event.tool_call.function.name or "")


def _piece(kind: Literal["text", "reasoning", "tool_call"], event: Any, tool: str) -> Piece:
    return Piece(
        kind=kind,
        text=event.chunk,
        tool=tool,
        call=event.call_id,
        task=event.task_name or "",
        task_id=event.task_id or "",
        agent=event.agent_role or "",
        agent_id=event.agent_id or "",
    )
