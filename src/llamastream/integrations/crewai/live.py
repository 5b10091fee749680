"""A task's output while it is generated: in the terminal, for a callback, or for `async for`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self

from crewai import Crew, Task
from crewai.events.stream_context import add_stream_sink
from crewai.llms.base_llm import BaseLLM, call_stream_override
from crewai_core.printer import set_suppress_console_output

from llamastream.errors import InvalidRequestError, StreamConsumedError
from llamastream.integrations.crewai.failures import StoppedError
from llamastream.integrations.crewai.pieces import Piece, to_piece
from llamastream.integrations.crewai.stopping import LEFT, Stop
from llamastream.integrations.crewai.terminal import Terminal

LEAVE_PATIENCE = 5.0
"""Seconds that leaving `astream_task` waits for the run to end; a tool that takes longer is left to itself."""


def stream_task(
    work: Task | Crew,
    show: Callable[[Piece], object] | None = None,
    *,
    inputs: dict[str, Any] | None = None,
    context: str | None = None,
) -> Any:
    """Do a task, or all tasks of a crew, and show what is generated as it comes.

    Models of these agents stream for this run, also those that do not otherwise.

    Args:
        work: a task that has an agent, or a crew.
        show: is called with each piece, in order, by the thread that generates; None: print to the terminal.
        inputs: for a crew, as for `kickoff`. context: for a task, the output of tasks before it.

    Returns:
        The task's `TaskOutput`, or the crew's `CrewOutput`.

    Raises:
        InvalidRequestError: `work` is neither, or arguments do not fit it. LlamaStreamError: an answer could not be
        had. What `show` raises ends the run, and is raised here; so does Ctrl-C. What else the run raises.
    """
    run = _run_of(work, inputs, context)
    terminal = Terminal() if show is None else None
    hand_on: Callable[[Piece], object] = terminal or show or (lambda piece: None)
    stop = Stop()
    shown: list[BaseException] = []

    def take(piece: Piece) -> None:
        try:
            hand_on(piece)
        except BaseException as error:  # noqa: BLE001  # raised again by stream_task
            # Raised into CrewAI it would be an error of the model, and be answered with another attempt.
            shown.append(error)
            stop.stop()
            raise StoppedError(LEFT) from None

    try:
        return copy_context().run(_watched, work, run, take, stop, alone=terminal is not None)
    except StoppedError:
        if shown:
            raise shown[0] from None
        raise
    finally:
        stop.stop()
        if terminal is not None:
            terminal.end()


def astream_task(work: Task | Crew, *, inputs: dict[str, Any] | None = None, context: str | None = None) -> Live:
    """The same for asyncio: `async for piece in (live := astream_task(task))`, then `live.output`.

    The work begins with the iteration, in a thread of its own. Raises InvalidRequestError as `stream_task` does.
    """
    return Live(work, _run_of(work, inputs, context))


class Live:
    """A run that is watched with `async for`. Leaving the loop, `aclose()` and the end of `async with` end the run: the
    model stops generating, its slot is free."""

    def __init__(self, work: Task | Crew, run: Callable[[], Any]) -> None:
        self._work = work
        self._run = run
        self._stop = Stop()
        self._pieces: AsyncGenerator[Piece, None] | None = None
        self._output: Any = None
        self._complete = False

    @property
    def output(self) -> Any:
        """The `TaskOutput` or `CrewOutput`.

        Raises:
            StreamConsumedError: the run has not come to its end.
        """
        if not self._complete:
            raise StreamConsumedError("there is no output: iterate to the end first")
        return self._output

    def __aiter__(self) -> AsyncIterator[Piece]:
        """The pieces, in order.

        Raises:
            StreamConsumedError: it was iterated before. What the run raises, after the last piece.
        """
        if self._pieces is not None:
            raise StreamConsumedError("this run is watched already, or was; call astream_task again for another")
        self._pieces = self._watch()
        return self._pieces

    async def aclose(self) -> None:
        """End the run, if it still goes on."""
        self._stop.stop()
        if self._pieces is not None:
            await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _watch(self) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()
        outcome: list[tuple[Any, BaseException | None]] = []

        def put(piece: Piece | None) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, piece)
            except RuntimeError:  # the loop is closed: whoever watched has gone with it
                self._stop.stop()
                if piece is not None:
                    raise StoppedError(LEFT) from None

        def work() -> None:
            try:
                outcome.append((_watched(self._work, self._run, put, self._stop), None))
            except BaseException as error:  # noqa: BLE001  # raised again by the iteration
                outcome.append((None, error))
            finally:
                put(None)

        # No thread of the loop's executor: Python waits for those when it ends, and a tool may take its time.
        thread = threading.Thread(target=copy_context().run, args=(work,), name="llamastream-crew", daemon=True)
        thread.start()
        ended = False
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            ended = True
        finally:
            self._stop.stop()
            if not ended:
                await _drained(queue)
        output, error = outcome[0]
        if error is not None:
            raise error
        self._output, self._complete = output, True


async def _drained(queue: asyncio.Queue[Piece | None]) -> None:
    """Wait until the run has ended, but not for ever."""
    try:
        async with asyncio.timeout(LEAVE_PATIENCE):
            while await queue.get() is not None:
                pass
    except TimeoutError:
        pass


def _watched(
    work: Task | Crew, run: Callable[[], Any], take: Callable[[Piece], object], stop: Stop, *, alone: bool = False
) -> Any:
    """Run it with models that stream, each piece going to `take` in the thread that generates it.

    To be called in a context of its own, which CrewAI copies into its threads: what is set here ends with it. `alone`
    keeps CrewAI's own panels from the terminal.
    """

    def sink(_source: Any, event: Any) -> None:
        piece = to_piece(event)
        if piece is None:
            return
        if stop.stopped:  # models that are not ours have no other way to hear of it
            raise StoppedError(LEFT)
        take(piece)

    add_stream_sink(sink)
    if alone:
        set_suppress_console_output(True)
    with ExitStack() as scope:
        scope.enter_context(stop.scope())
        for llm in _models(work):
            scope.enter_context(call_stream_override(llm, True))
        return run()


def _models(work: Task | Crew) -> list[BaseLLM]:
    """The models of all agents that take part."""
    if isinstance(work, Task):
        agents = [work.agent]
    else:
        agents = [*work.agents, *(task.agent for task in work.tasks), work.manager_agent]
    found = [getattr(agent, "llm", None) for agent in agents]
    if isinstance(work, Crew):
        found.append(work.manager_llm)
    return [llm for llm in found if isinstance(llm, BaseLLM)]


def _run_of(work: Task | Crew, inputs: dict[str, Any] | None, context: str | None) -> Callable[[], Any]:
    if isinstance(work, Task):
        if inputs is not None:
            raise InvalidRequestError("inputs are for a crew; a single task takes context=")
        if work.agent is None:
            raise InvalidRequestError(f"the task {work.description!r} has no agent, so that nobody could do it")
        return lambda: work.execute_sync(context=context)
    if not isinstance(work, Crew):
        raise InvalidRequestError(f"only a Task or a Crew of crewai can be watched, not {type(work).__name__}")
    if context is not None:
        raise InvalidRequestError("context is for a single task; a crew takes inputs=")
    if work.stream:
        raise InvalidRequestError("this crew has stream=True, and its own way to be watched: iterate crew.kickoff()")
    return lambda: work.kickoff(inputs=inputs)
