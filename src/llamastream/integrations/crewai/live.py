"""A task's output while it is generated: in the terminal, for a callback, or for `async for`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack
from contextvars import copy_context
from queue import SimpleQueue
from types import AsyncGeneratorType, TracebackType
from typing import Any, Self
from weakref import ReferenceType, ref

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
"""Seconds that whoever leaves waits for the run to end; a tool that takes longer is left to itself."""


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
        show: is called with each piece, in order, in this thread; None: print to the terminal.
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
    pieces: SimpleQueue[Piece | None] = SimpleQueue()
    begun = _Begun(work, run, pieces.put, alone=terminal is not None)
    # In a thread of its own even here: where Ctrl-C meets the event loop of an agent, that waits for the whole answer.
    try:
        while (piece := pieces.get()) is not None:
            hand_on(piece)
    except BaseException:
        begun.stop.stop()
        begun.wait(LEAVE_PATIENCE)
        raise
    finally:
        if terminal is not None:
            terminal.end()
    return begun.value()


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
        # Not kept here: a loop that is left lets go of its iterator, and that is how the run hears of it.
        self._pieces: ReferenceType[AsyncGenerator[Piece, None]] | None = None
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
        pieces = self._watch()
        self._pieces = ref(pieces)
        return pieces

    async def aclose(self) -> None:
        """End the run, if it still goes on."""
        self._stop.stop()
        pieces = None if self._pieces is None else self._pieces()
        # While another task waits for a piece, it is that one which is told, by a StoppedError.
        if isinstance(pieces, AsyncGeneratorType) and not pieces.ag_running:
            await pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _watch(self) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece | None) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, piece)
            except RuntimeError:  # the loop is closed: whoever watched has gone with it
                self._stop.stop()

        begun = _Begun(self._work, self._run, put, self._stop)
        ended = False
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            ended = True
        finally:
            begun.stop.stop()
            if not ended:
                await _drained(queue)
        self._output = begun.value()
        self._complete = True


async def _drained(queue: asyncio.Queue[Piece | None]) -> None:
    """Wait until the run has ended, but not for ever."""
    try:
        async with asyncio.timeout(LEAVE_PATIENCE):
            while await queue.get() is not None:
                pass
    except TimeoutError:
        pass


class _Begun:
    """A run in a thread of its own. Each piece goes to `put`, in the thread that generates it, and None at the end."""

    def __init__(
        self,
        work: Task | Crew,
        run: Callable[[], Any],
        put: Callable[[Piece | None], object],
        stop: Stop | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """`alone` keeps CrewAI's own panels from the terminal."""
        self.stop = stop or Stop()
        self._work, self._run, self._put, self._alone = work, run, put, alone
        self._output: Any = None
        self._error: BaseException | None = None
        # No thread of an executor: Python waits for those when it ends, and a tool may take its time.
        # CrewAI copies the context into its threads, so that what is set in it holds for this run, and for no other.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._do,), name="llamastream-crew", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than that."""
        self._thread.join(seconds)

    def value(self) -> Any:
        """What came of it; what it raised is raised again."""
        if self._error is not None:
            raise self._error
        return self._output

    def _do(self) -> None:
        try:
            add_stream_sink(self._sink)
            if self._alone:
                set_suppress_console_output(True)
            with ExitStack() as scope:
                scope.enter_context(self.stop.scope())
                for llm in _models(self._work):
                    scope.enter_context(call_stream_override(llm, True))
                self._output = self._run()
        except BaseException as error:  # noqa: BLE001  # raised again by `value`
            self._error = error
        finally:
            self._put(None)

    def _sink(self, _source: Any, event: Any) -> None:
        piece = to_piece(event)
        if piece is None:
            return
        if self.stop.stopped:  # models that are not ours have no other way to hear of it
            raise StoppedError(LEFT)
        self._put(piece)


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
