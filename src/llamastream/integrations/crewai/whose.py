"""Whose call of the model it is. CrewAI does not always say: the answer that it forces after `max_iter`, and the
conversion of an answer to an object, are asked for without task and agent."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from crewai import Task
from crewai.context import get_current_task_id

_tasks: WeakValueDictionary[str, Task] = WeakValueDictionary()


def whose(task: Any, agent: Any) -> tuple[Any, Any]:
    """The task and the agent of a call: those that are given, else the task that runs, and the agent that does it."""
    if task is None:
        task = _tasks.get(get_current_task_id() or "")
    elif isinstance(task, Task):
        _tasks[str(task.id)] = task
    if agent is None and task is not None:
        agent = task.agent
    return task, agent
