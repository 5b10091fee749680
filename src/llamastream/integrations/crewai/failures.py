"""Errors that CrewAI does not answer by asking once more.

Our client has repeated what was worth it when it raises an error. CrewAI would then run the whole task again, up to
`Agent.max_retry_limit` times, and its listeners would hear each piece again. What it leaves alone are `HookAborted`
(deliberate stops) and errors of a full context, which it answers with a summary of the conversation.
"""

from __future__ import annotations

from typing import Any

from crewai.hooks import HookAborted
from crewai.utilities.exceptions.context_window_exceeding_exception import LLMContextLengthExceededError

from llamastream.errors import ContextSizeError, LlamaStreamError


class StoppedError(LlamaStreamError, HookAborted):
    """Whoever watched a task live has left, and the task ends with that."""

    source = "llamastream"

    def __init__(self, message: str) -> None:
        LlamaStreamError.__init__(self, message)
        self.reason = message


class IncompleteAnswerError(LlamaStreamError, HookAborted):
    """An answer that was to be an object ended because of `max_tokens`: asking again would end in the same way."""

    source = "llamastream"

    def __init__(self, message: str) -> None:
        LlamaStreamError.__init__(self, message)
        self.reason = message


def as_final(error: LlamaStreamError) -> None:
    """Make an error one that CrewAI hands to the caller at once; it stays what it was, too."""
    if isinstance(error, HookAborted | LLMContextLengthExceededError):
        return
    ours = type(error)
    if isinstance(error, ContextSizeError):
        # CrewAI knows this error by its words.
        error.args = (LLMContextLengthExceededError(error.message).args[0],)
    if ours not in _made:
        _made[ours] = _make(ours)
    error.__class__ = _made[ours]


_made: dict[type[LlamaStreamError], type[LlamaStreamError]] = {}


def _make(ours: type[LlamaStreamError]) -> type[LlamaStreamError]:
    own: dict[str, Any] = {"__doc__": ours.__doc__, "__module__": __name__}
    if issubclass(ours, ContextSizeError):
        own["original_error_message"] = property(lambda error: error.message)
        return type(ours.__name__, (ours, LLMContextLengthExceededError), own)
    own["reason"] = property(lambda error: error.message)
    own["source"] = "llamastream"
    return type(ours.__name__, (ours, HookAborted), own)
