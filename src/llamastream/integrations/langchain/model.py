"""`ChatLlamaStream`: LangChain's chat model on llama-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from llamastream import RetryPolicy, Timeouts
from llamastream.events import Listener
from llamastream.integrations.clients import ClientPair, HasClients, addresses, client_arguments, project_arguments
from llamastream.integrations.langchain.failures import as_langchain_errors
from llamastream.integrations.langchain.messages import last_chunk, to_chunk, to_generations, to_server
from llamastream.integrations.langchain.structured import (
    Method,
    Schema,
    Tool,
    ToolChoice,
    parsed,
    parser_for,
    response_format,
    tool_fields,
)
from llamastream.types import Fallback, RecoveryMode


class ChatLlamaStream(HasClients, BaseChatModel):
    """A chat model on one llama-server, or on several that serve the same model.

    What is not given comes from the environment (`LLAMASTREAM_BASE_URL`, `LLAMASTREAM_API_KEY`, ...) and the settings
    file, as for `llamastream.StreamingClient`. Arguments that are none of these, such as `top_p` or `seed`, go into
    every request, as do those of single calls.

    Attributes:
        base_url: where the server is, or a list: then a request moves to another server if one fails, also in the
            middle of an answer. api_key: the key that they ask for.
        model, temperature, max_tokens, stop: defaults of the requests.
        timeout: seconds for each step of a request, or `llamastream.Timeouts`.
        max_retries: repetitions of a request that failed before its first content. retry: the whole policy instead.
        recovery, fallback, headers, listeners: as for the client.
        extra_body: further fields of every request.
        streaming: whether `invoke` streams too, for callbacks that want tokens; False switches `stream` off.
    """

    # pydantic's messages would show all arguments, and with them the key.
    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    base_url: str | list[str] | None = None
    api_key: SecretStr | None = None
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    timeout: float | Timeouts | None = None
    max_retries: int | None = None
    retry: RetryPolicy | None = Field(default=None, exclude=True)
    recovery: RecoveryMode | None = None
    fallback: Fallback | None = None
    headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    listeners: list[Listener] = Field(default_factory=list, exclude=True)
    extra_body: dict[str, Any] = Field(default_factory=dict)
    streaming: bool = False

    _pair: ClientPair | None = PrivateAttr(default=None)

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
    def _gather_extra(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        known = fields.keys() | {field.alias for field in fields.values()}
        extra = {name: value for name, value in values.items() if name not in known}
        if not extra:
            return values
        kept = {name: value for name, value in values.items() if name in known}
        return {**kept, "extra_body": {**extra, **(values.get("extra_body") or {})}}

    @model_validator(mode="after")
    def _make_clients(self) -> Self:
        self._pair = ClientPair(self._client_arguments())
        settings = self._pair.blocking.settings
        if self.base_url is None:
            self.base_url = addresses(self._pair.blocking)
        if self.api_key is None and settings.api_key is not None:
            self.api_key = SecretStr(settings.api_key)
        self.model, self.temperature, self.max_tokens = settings.model, settings.temperature, settings.max_tokens
        self._pair.known_as(self._client_arguments())
        return self

    def _client_arguments(self) -> dict[str, Any]:
        return client_arguments(
            self.base_url,
            timeout=self.timeout,
            max_retries=self.max_retries,
            retry=self.retry,
            api_key=self.api_key.get_secret_value() if self.api_key is not None else None,
            model=self.model,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            headers=self.headers,
            recovery=self.recovery,
            fallback=self.fallback,
            listeners=self.listeners,
        )

    # -- generation -------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with as_langchain_errors():
            result = self._client.chat(to_server(messages), **self._body(stop, kwargs))
        return ChatResult(generations=to_generations(result))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with as_langchain_errors():
            result = await self._async_client.chat(to_server(messages), **self._body(stop, kwargs))
        return ChatResult(generations=to_generations(result))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with (
            as_langchain_errors(),
            self._client.stream_chat(to_server(messages), **self._body(stop, kwargs)) as stream,
        ):
            for event in stream.events():
                message = to_chunk(event)
                if message is not None:
                    chunk = ChatGenerationChunk(message=message)
                    if run_manager is not None:
                        run_manager.on_llm_new_token(str(message.text), chunk=chunk)
                    yield chunk
            yield _end(last_chunk(stream.result()))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with as_langchain_errors():
            async with self._async_client.stream_chat(to_server(messages), **self._body(stop, kwargs)) as stream:
                async for event in stream.events():
                    message = to_chunk(event)
                    if message is not None:
                        chunk = ChatGenerationChunk(message=message)
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(str(message.text), chunk=chunk)
                        yield chunk
                yield _end(last_chunk(await stream.result()))

    def _body(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What goes into the request besides the messages; the call's own arguments win."""
        body = {**self.extra_body, **kwargs}
        body.pop("stream", None)  # LangChain's own switch between `invoke` and `stream`
        if stop is None:
            stop = self.stop
        if stop:
            body["stop"] = stop
        return body

    # -- tools and structured output --------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: ToolChoice = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools.

        Args:
            tools: functions, pydantic classes, LangChain tools, or dicts in OpenAI's form.
            tool_choice: `auto`, `none`, `any` or `required`, or a tool's name. strict: set in the tools' definitions.
            kwargs: further fields of the requests, such as `parallel_tool_calls`.

        Raises:
            ValueError: `tool_choice` names none of the tools.
        """
        return self.bind(**tool_fields(tools, tool_choice, strict), **kwargs)

    def with_structured_output(
        self,
        schema: Schema,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers with objects of a schema.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema, or a tool in OpenAI's form.
            method: `json_schema` has the server generate by a grammar made of the schema, so that the answer cannot be
                anything else; `function_calling` makes it the arguments of a tool that must be called; `json_mode`
                ensures JSON, and the prompt has to say which.
            include_raw: answer with a dict of `raw`, `parsed` and `parsing_error`.
            strict: set in the tool's definition (`function_calling`); grammars are strict in any case.

        Raises:
            ValueError: there is no such method.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError(f"method={method!r} is not allowed; allowed: json_schema, function_calling, json_mode")
        told = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        answer = (
            self.bind_tools([schema], tool_choice="any", strict=strict, ls_structured_output_format=told, **kwargs)
            if method == "function_calling"
            else self.bind(response_format=response_format(schema, method), ls_structured_output_format=told, **kwargs)
        )
        return parsed(answer, parser_for(schema, method), include_raw=include_raw)

    # -- token counts -----------------------------------------------------------------------------------

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the server's own tokenizer."""
        with as_langchain_errors():
            return self._client.tokenize(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Tool] | None = None, **kwargs: Any
    ) -> int:
        """How long the prompt of a conversation is, by the server's own template and tokenizer."""
        fields = tool_fields(tools, None, None) if tools else {}
        with as_langchain_errors():
            return len(self._client.tokenize(self._client.apply_template(to_server(messages), **fields)))

    # -- what LangChain wants to know -------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "llamastream"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("base_url", "model", "temperature", "max_tokens", "stop", "extra_body")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        known = super()._get_ls_params(stop=stop if stop is not None else self.stop, **kwargs)
        known["ls_provider"] = "llamastream"
        known.setdefault("ls_model_name", "llama-server")  # which has one model, and needs no name for it
        return known


def _end(message: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)
