"""One call of the model, but for the request itself: what CrewAI hears of it, and what comes of the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from crewai.events.types.llm_events import LLMCallType
from crewai.hooks import HookAborted
from crewai.llms.base_llm import LLMCallBlockedError, llm_call_context
from msgspec import Struct
from pydantic import BaseModel

from llamastream import LlamaStreamError, Result, ToolCall
from llamastream.integrations.crewai.coalescing import Coalescer, Delta
from llamastream.integrations.crewai.failures import IncompleteAnswerError, StoppedError, as_final
from llamastream.integrations.crewai.messages import format_fields, to_server, to_usage, tool_call, tool_fields
from llamastream.integrations.crewai.stopping import LEFT
from llamastream.integrations.crewai.whose import whose
from llamastream.types import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from llamastream.integrations.crewai.model import LlamaServerLLM

log = logging.getLogger("llamastream.crewai")


class Asked(Struct, frozen=True):
    """The arguments of a call, as CrewAI gives them."""

    messages: str | Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    callbacks: list[Any] | None = None
    available_functions: Mapping[str, Callable[..., Any]] | None = None
    from_task: Any = None
    from_agent: Any = None
    response_model: type[BaseModel] | None = None


@contextmanager
def calling(llm: LlamaServerLLM, asked: Asked) -> Iterator[Call]:
    """A call, from its first event on the bus to its last; errors of ours leave it as errors that are final."""
    with llm_call_context():
        call = Call(llm, asked)
        try:
            call.begin()
            yield call
        except (HookAborted, LLMCallBlockedError) as denial:
            if isinstance(denial, LlamaStreamError):
                call.failed(denial)
            else:
                call.denied(denial)
            raise
        except LlamaStreamError as error:
            call.failed(error)
            as_final(error)
            raise
        except Exception as error:
            call.failed(error)
            raise


class Call:
    """What a call is made of. Reads no clock and no socket, except that coalescing looks at the time."""

    def __init__(self, llm: LlamaServerLLM, asked: Asked) -> None:
        self._llm = llm
        self._asked = asked
        self._task, self._agent = whose(asked.from_task, asked.from_agent)
        self._whose: dict[str, Any] = {"from_task": self._task, "from_agent": self._agent}
        self._said: list[Any] = []
        self._tools: dict[int, _Growing] = {}
        self._coalescer = None if llm.coalesce is None else Coalescer(llm.coalesce)
        self.live = bool(llm._effective_stream())
        self.messages: list[dict[str, Any]] = []
        self.fields: dict[str, Any] = {}

    def begin(self) -> None:
        """Say that the call begins, let hooks have their say, and write the request.

        Raises:
            HookAborted, LLMCallBlockedError: a hook forbids the call. ValueError: the messages are none.
        """
        asked, llm = self._asked, self._llm
        llm._emit_call_started_event(
            messages=asked.messages,  # type: ignore[arg-type]  # CrewAI's own type is narrower than what it passes
            tools=asked.tools,  # type: ignore[arg-type]  # the same
            callbacks=asked.callbacks,
            available_functions=None if asked.available_functions is None else dict(asked.available_functions),
            **self._whose,
        )
        said: Any = llm._format_messages(asked.messages)  # type: ignore[arg-type]  # the same
        self._said = said
        llm._invoke_before_llm_call_hooks(said, self._agent)
        self.messages = to_server(said)
        self.fields = {**llm.request_fields(), **tool_fields(asked.tools), **format_fields(asked.response_model)}

    # -- while it comes ---------------------------------------------------------------------------------

    def take(self, event: StreamEvent) -> None:
        """Hand an event of the stream on to CrewAI's listeners."""
        if not isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            return
        if self._coalescer is None:
            self._emit(event)
        else:
            self._emit_all(self._coalescer.feed(event, monotonic()))

    def _emit_all(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            self._emit(delta)

    def _emit(self, delta: Delta) -> None:
        llm = self._llm
        if isinstance(delta, TextDelta):
            llm._emit_stream_chunk_event(chunk=delta.text, call_type=LLMCallType.LLM_CALL, **self._whose)
        elif isinstance(delta, ReasoningDelta):
            llm._emit_thinking_chunk_event(chunk=delta.text, **self._whose)
        else:
            growing = self._tools.setdefault(delta.call, _Growing())
            growing.add(delta)
            llm._emit_stream_chunk_event(
                chunk=delta.arguments,
                tool_call=growing.as_event(delta.call),
                call_type=LLMCallType.TOOL_CALL,
                **self._whose,
            )

    def _flush(self) -> None:
        if self._coalescer is not None:
            self._emit_all(self._coalescer.flush())

    # -- the end ----------------------------------------------------------------------------------------

    def finished(self, result: Result) -> Any:
        """What the call returns: text, a list of tool calls, the value of a tool, or an object of `response_model`.

        Raises:
            StoppedError: the answer was broken off by whoever watched. IncompleteAnswerError: an object was asked for,
                and `max_tokens` cut it off. ValueError: the object breaks a rule that a grammar cannot express.
        """
        self._flush()
        usage = to_usage(result)
        self._llm._track_token_usage_internal(usage)
        if result.finish_reason == "cancelled":
            raise StoppedError(LEFT)
        if result.tool_calls and not self._asked.available_functions:
            calls = [tool_call(call, index) for index, call in enumerate(result.tool_calls)]
            self._completed(calls, LLMCallType.TOOL_CALL, result, usage)
            return calls
        value = self._executed(result.tool_calls)
        if value is not None:
            return value
        if self._asked.response_model is not None:
            parsed = self._parsed(result, self._asked.response_model)
            self._completed(parsed.model_dump_json(), LLMCallType.LLM_CALL, result, usage)
            return parsed
        self._completed(result.text, LLMCallType.LLM_CALL, result, usage)
        return self._llm._invoke_after_llm_call_hooks(self._said, result.text, self._agent)

    def _executed(self, calls: Sequence[ToolCall]) -> str | None:
        """The value of the first tool that gives one. Agents of CrewAI run their tools themselves."""
        functions = dict(self._asked.available_functions or {})
        for call in calls:
            if call.malformed:
                log.warning("%s; it is left out", call.malformed)
                continue
            value = self._llm._handle_tool_execution(call.name, call.parsed_arguments(), functions, **self._whose)
            if value is not None:
                return value
        return None

    @staticmethod
    def _parsed(result: Result, model: type[BaseModel]) -> BaseModel:
        if result.finish_reason == "length":
            raise IncompleteAnswerError(
                f"the answer was to be a {model.__name__}, and ended after {result.stats.completion_tokens} tokens "
                "because of max_tokens or the context: allow more of them"
            )
        return model.model_validate_json(result.text)

    def _completed(self, response: Any, kind: LLMCallType, result: Result, usage: dict[str, Any]) -> None:
        self._llm._emit_call_completed_event(
            response=response,
            call_type=kind,
            messages=self._said,
            usage=usage or None,
            finish_reason=result.finish_reason,
            response_id=result.id or None,
            **self._whose,
        )

    def failed(self, error: Exception) -> None:
        """Say that the call failed; what was held back of the answer comes first."""
        self._flush()
        self._llm.learn_from(error)
        self._llm._emit_call_failed_event(error=f"{type(error).__name__}: {error}", **self._whose)

    def denied(self, denial: Exception) -> None:
        """Say that a hook forbade the call."""
        self._llm._emit_call_denied_event(denial, **self._whose)


class _Growing:
    """A tool call as far as it has come: CrewAI's events have all of it, not only what is new."""

    def __init__(self) -> None:
        self._id = self._name = self._arguments = ""

    def add(self, delta: ToolCallDelta) -> None:
        self._id = self._id or delta.id
        self._name = self._name or delta.name
        self._arguments += delta.arguments

    def as_event(self, index: int) -> dict[str, Any]:
        function = {"name": self._name, "arguments": self._arguments}
        return {"id": self._id, "type": "function", "index": index, "function": function}
