"""`LlamaServerLLM`: CrewAI's model on llama-server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

from crewai.llms.base_llm import BaseLLM
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from llamastream import RetryPolicy, Timeouts
from llamastream.errors import ContextSizeError, ProtocolError
from llamastream.events import Listener
from llamastream.integrations.clients import ClientPair, HasClients, addresses, client_arguments, project_arguments
from llamastream.integrations.crewai.calling import Asked, calling
from llamastream.integrations.crewai.messages import format_fields, to_server, tool_fields, whole_tokens
from llamastream.integrations.crewai.plain import UNNAMED, plain_arguments
from llamastream.integrations.crewai.stopping import stoppable
from llamastream.types import Fallback, RecoveryMode

ANSWER_SHARE = 0.15
"""The part of the context that is kept free for the answer, as CrewAI does for other models."""

_compacting: ContextVar[bool] = ContextVar("llamastream_compacting", default=False)


class LlamaServerLLM(HasClients, BaseLLM):
    """A model on one llama-server, or on several that serve the same model.

    What is not given comes from the environment (`LLAMASTREAM_BASE_URL`, `LLAMASTREAM_API_KEY`, ...) and the settings
    file, as for `llamastream.StreamingClient`. Arguments that are none of these, such as `top_k` or `min_p`, go into
    every request.

    Attributes:
        base_url: where the server is, or a list: then a request moves to another server if one fails, also in the
            middle of an answer. api_key: the key that they ask for.
        model: its name; a leading `openai/`, which CrewAI's own `LLM` needs, is taken off.
        temperature, top_p, max_tokens, stop, seed, frequency_penalty, presence_penalty: of the requests.
        stream: whether what is generated goes over CrewAI's event bus as it comes. It is streamed from the server, and
            watched and repaired, in any case.
        coalesce: seconds within which pieces become one event on the bus; None: one event for each piece.
        function_calling: whether agents offer their tools to the server; False: as text in the prompt (ReAct).
        timeout: seconds for each step of a request, or `llamastream.Timeouts`.
        max_retries: repetitions of a request that failed before its first content. retry: the whole policy instead.
        recovery, fallback, headers, listeners: as for the client.
    """

    # pydantic's messages would show all arguments, and with them the key.
    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = UNNAMED
    base_url: str | list[str] | None = None  # type: ignore[assignment]  # CrewAI's own models have one server
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    temperature: float | None = None
    max_tokens: int | float | None = None
    provider: str = "llamastream"
    stream: bool | None = True
    coalesce: float | None = Field(default=None, ge=0)
    function_calling: bool = True
    timeout: float | Timeouts | None = None
    max_retries: int | None = None
    retry: RetryPolicy | None = Field(default=None, exclude=True)
    recovery: RecoveryMode | None = None
    fallback: Fallback | None = None
    headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    listeners: list[Listener] = Field(default_factory=list, exclude=True)

    _pair: ClientPair | None = PrivateAttr(default=None)
    _contexts: dict[tuple[str, ...], int] = PrivateAttr(default_factory=dict)  # n_ctx by the servers' addresses

    @classmethod
    def _wrap_call_method(cls, method_name: str) -> None:
        """CrewAI would wrap `call` in repetitions of its own; the client has made those that are worth it, and after
        the first piece a repetition would emit what listeners have already."""

    @classmethod
    def from_settings(cls, source: Any, **arguments: Any) -> Self:
        """A model from a project's settings: any object (or mapping) with `llm_base_url`, `llm_model`,
        `llm_temperature`, `llm_max_tokens`, `llm_api_key`; `arguments` win.

        Raises:
            SettingError: the object has none of these, or one has a value that is not allowed.
        """
        return cls(**project_arguments(source, arguments))

    @model_validator(mode="before")
    @classmethod
    def _name_it(cls, values: Any) -> Any:
        # BaseLLM takes the provider from the name, and refuses an empty one.
        if isinstance(values, dict):
            return {
                **values,
                "model": values.get("model") or UNNAMED,
                "provider": values.get("provider", "llamastream"),
            }
        return values

    @field_validator("model")
    @classmethod
    def _without_route(cls, model: str) -> str:
        return model.removeprefix("openai/")

    @field_validator("n")
    @classmethod
    def _one_answer(cls, n: int | None) -> int | None:
        if n not in (None, 1):
            raise ValueError(f"n={n} is not allowed: CrewAI takes one answer of each call; leave it out")
        return n

    @field_validator("max_tokens")
    @classmethod
    def _whole_tokens(cls, max_tokens: float | None) -> int | None:
        return whole_tokens(max_tokens)

    @model_validator(mode="after")
    def _make_clients(self) -> Self:
        self._pair = ClientPair(self._client_arguments())
        settings = self._pair.blocking.settings
        if self.base_url is None:
            self.base_url = addresses(self._pair.blocking)
        self.model = settings.model or UNNAMED
        self.temperature, self.max_tokens = settings.temperature, settings.max_tokens
        self._pair.known_as(self._client_arguments())
        return self

    def _client_arguments(self) -> dict[str, Any]:
        return client_arguments(
            self.base_url,
            timeout=self.timeout,
            max_retries=self.max_retries,
            retry=self.retry,
            api_key=self.api_key,
            model=None if self.model == UNNAMED else self.model,
            temperature=self.temperature,
            max_tokens=whole_tokens(self.max_tokens),
            headers=self.headers,
            recovery=self.recovery,
            fallback=self.fallback,
            listeners=self.listeners,
        )

    # -- calls ------------------------------------------------------------------------------------------

    def call(
        self,
        messages: Any,
        tools: list[dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        available_functions: dict[str, Any] | None = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: type[BaseModel] | None = None,
    ) -> Any:
        """Ask the model.

        Returns:
            The text; an object of `response_model`; the tool calls, as a list, if `tools` were called; or, with
            `available_functions`, what the function gave.

        Raises:
            LlamaStreamError: the answer could not be had; `partial` has what there was of it. Not repeated by CrewAI.
            HookAborted, LLMCallBlockedError: a hook forbade it. ValueError: the messages are none.
        """
        asked = Asked(messages, tools, callbacks, available_functions, from_task, from_agent, response_model)
        with calling(self, asked) as call:
            stream = self._client.stream_chat(call.messages, **call.fields)
            with stoppable(stream.cancel), stream:
                if call.live:
                    for event in stream.events():
                        call.take(event)
                return call.finished(stream.result())

    async def acall(
        self,
        messages: Any,
        tools: list[dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        available_functions: dict[str, Any] | None = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: type[BaseModel] | None = None,
    ) -> Any:
        """As `call`, in asyncio."""
        asked = Asked(messages, tools, callbacks, available_functions, from_task, from_agent, response_model)
        with calling(self, asked) as call:
            stream = self._async_client.stream_chat(call.messages, **call.fields)
            with stoppable(stream.cancel):
                async with stream:
                    if call.live:
                        async for event in stream.events():
                            call.take(event)
                    return call.finished(await stream.result())

    def request_fields(self) -> dict[str, Any]:
        """What goes into each request besides messages, tools and schema. Stop words are those of the agent that asks,
        and of this model."""
        own = {
            "model": None if self.model == UNNAMED else self.model,
            "temperature": self.temperature,
            "max_tokens": whole_tokens(self.max_tokens),
            "top_p": self.top_p,
            "seed": self.seed,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "stop": list(self.stop_sequences) or None,
        }
        return {**self.additional_params, **{name: value for name, value in own.items() if value is not None}}

    def supports_function_calling(self) -> bool:
        """Whether agents offer their tools to the server."""
        return self.function_calling

    # -- context ----------------------------------------------------------------------------------------

    def get_context_window_size(self) -> int:
        """The context of one slot in tokens (`n_ctx`), as the server says; asked for once.

        Raises:
            LlamaStreamError: the server cannot be asked.
        """
        client = self._client
        n_ctx = self._contexts.get(client.base_urls)
        if n_ctx is None:
            n_ctx = client.props().get("default_generation_settings", {}).get("n_ctx")
            if not isinstance(n_ctx, int) or n_ctx < 1:
                raise ProtocolError(f"{client.base_url}/props has no n_ctx; is this a llama-server?")
            self._contexts[client.base_urls] = n_ctx
        return self._usable(n_ctx) if _compacting.get() else n_ctx

    def _usable(self, n_ctx: int) -> int:
        """How long a prompt may be, so that there is room for an answer."""
        room = int(n_ctx * ANSWER_SHARE)
        return n_ctx - (room if self.max_tokens is None else min(room, int(self.max_tokens)))

    def learn_from(self, error: Exception) -> None:
        """A server that says that its context is full says also how large it is."""
        if isinstance(error, ContextSizeError) and error.n_ctx:
            self._contexts[self._client.base_urls] = error.n_ctx

    def get_input_tokens_count(
        self, messages: Any, tools: list[dict[str, Any]] | None = None, response_model: type[BaseModel] | None = None
    ) -> int:
        """How many tokens a text has, or the prompt of a conversation, by the server's own template and tokenizer.

        Raises:
            LlamaStreamError: the server cannot be asked.
        """
        if isinstance(messages, str):
            return len(self._client.tokenize(messages))
        said: Any = self._format_messages(messages)
        fields = {**tool_fields(tools), **format_fields(response_model)}
        return len(self._client.tokenize(self._client.apply_template(to_server(said), **fields)))

    def is_context_window_overflowing_threshold(
        self, messages: Any, tools: list[dict[str, Any]] | None = None, response_model: type[BaseModel] | None = None
    ) -> bool:
        """Whether a prompt leaves no room for an answer, so that the conversation has to be summarised first."""
        count = self.get_input_tokens_count(messages, tools, response_model)
        return count > self._usable(self.get_context_window_size())

    def summarize_messages(self, messages: Any, callbacks: list[Any], verbose: bool = True) -> None:
        """Replace a conversation by a summary of it, in pieces that leave room for their summaries."""
        with _compaction():
            super().summarize_messages(messages, callbacks, verbose)

    # -- what CrewAI stores -----------------------------------------------------------------------------

    def to_config_dict(self) -> dict[str, Any]:
        """What CrewAI makes a model of again after a pause: one of its own, on the (first) server."""
        return plain_arguments(
            {"model": self.model, "base_url": self.base_url, "temperature": self.temperature, "stop": self.stop or None}
        )


@contextmanager
def _compaction() -> Iterator[None]:
    token = _compacting.set(True)
    try:
        yield
    finally:
        _compacting.reset(token)
