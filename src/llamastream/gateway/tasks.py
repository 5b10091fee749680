"""What a route asks for, and which servers are for that: a server that makes embeddings generates nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llamastream.backends import Backend, BackendSource
from llamastream.types import Task

_TASKS: dict[str, Task] = {"/v1/embeddings": "embed", "/embedding": "embed", "/v1/rerank": "rerank"}

_OPTIONS: dict[Task, tuple[str, str]] = {
    "embed": ("makes embeddings", "embedding"),
    "rerank": ("does reranking", "reranking"),
    "generate": ("generates text", ""),
}


def task_of(route: str) -> Task:
    """What kind of work a route asks for that takes a slot."""
    return _TASKS.get(route, "generate")


def doing(backends: Iterable[Backend], task: Task) -> tuple[Backend, ...]:
    """Those of the servers that requests of this kind may go to."""
    # `Backend.does`, written out: this is done for each request and server
    return tuple([backend for backend in backends if not backend.tasks or task in backend.tasks])


def nobody_does(task: Task) -> str:
    """What to tell whoever asks for what no server is for, and what to do about it."""
    does, option = _OPTIONS[task]
    if not option:
        return f"no server here {does}: all of them are for embeddings or reranking"
    return (
        f"no server here {does}. Start one for it: `llamastream serve --{option} --model FILE`, or a table "
        f"[models.NAME] with `{option} = true` in the settings file; before servers that run already, one that was "
        f"started with `llama-server --{option}`"
    )


def elsewhere(model: str, backends: Iterable[Backend], task: Task) -> str | None:
    """What to tell whoever asks a model for something that it is not for; None if the model is not of that kind."""
    theirs = [backend for backend in backends if model in backend.models]
    if not theirs or doing(theirs, task):
        return None
    return f"the model {model!r} is not one that {_OPTIONS[task][0]}; it {_OPTIONS[theirs[0].tasks[0]][0]}"


class Doing:
    """The servers of a source that are for one kind of work, as a source."""

    def __init__(self, source: BackendSource, task: Task) -> None:
        self._source = source
        self._task: Task = task

    def snapshot(self) -> tuple[Backend, ...]:
        """See `BackendSource`."""
        return doing(self._source.snapshot(), self._task)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `BackendSource`."""
        return self._source.subscribe(listener)
