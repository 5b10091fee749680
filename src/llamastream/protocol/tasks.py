"""What a server is for: generation, embeddings or reranking. `/props` does not say, but what it refuses does."""

from __future__ import annotations

from collections.abc import Generator

from llamastream.protocol.toolcalls import Question, Reply
from llamastream.types import Task

_REFUSED_FOR_WHAT_IS_MISSING = frozenset({400, 422, 500})
"""Answers to a request without its contents, where the server would have taken one with them."""
_NOT_FOR_THAT = frozenset({404, 405, 501})
"""Answers of a server that was not started for it, or is too old to know it."""


def task_questions() -> Generator[Question, Reply, tuple[Task, ...]]:
    """What a server is for: yields questions, takes the replies, returns the tasks; none: it does not tell.

    The questions lack their contents, so that no server works on them.
    """
    questions: tuple[tuple[str, Task], ...] = (("/v1/rerank", "rerank"), ("/v1/embeddings", "embed"))
    for path, task in questions:
        status, _ = yield path, {}
        if status in _REFUSED_FOR_WHAT_IS_MISSING:
            return (task,)  # one for reranking makes embeddings, too, but of a kind that is of no use
        if status not in _NOT_FOR_THAT:
            return ()
    return ("generate",)
