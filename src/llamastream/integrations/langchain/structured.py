"""Tools and structured output: LangChain's ways of asking for them as fields of the request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, TypeAlias

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

Tool: TypeAlias = dict[str, Any] | type | Callable[..., Any] | BaseTool
ToolChoice: TypeAlias = str | bool | Mapping[str, Any] | None
Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
Schema: TypeAlias = dict[str, Any] | type


def tool_fields(tools: Sequence[Tool], choice: ToolChoice, strict: bool | None) -> dict[str, Any]:
    """`tools` and `tool_choice` of the request.

    llama-server knows `auto`, `none` and `required`. To force one tool by its name, that one alone is offered, and
    required.

    Raises:
        ValueError: the choice names none of the tools, or is of no form that LangChain knows.
    """
    offered = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    if choice is None:
        return {"tools": offered}
    if isinstance(choice, bool) or choice in ("any", "required"):
        return {"tools": offered, "tool_choice": "auto" if choice is False else "required"}
    if choice in ("auto", "none"):
        return {"tools": offered, "tool_choice": choice}
    name = _named(choice)
    chosen = [tool for tool in offered if tool["function"]["name"] == name]
    if not chosen:
        names = ", ".join(tool["function"]["name"] for tool in offered)
        raise ValueError(
            f"tool_choice={choice!r} names no tool; allowed: auto, none, any, required, or one of the tools: {names}"
        )
    return {"tools": chosen, "tool_choice": "required"}


def _named(choice: object) -> Any:
    if isinstance(choice, str):
        return choice
    if not isinstance(choice, Mapping):
        raise ValueError(
            f"tool_choice={choice!r} is not allowed; allowed: auto, none, any, required, a bool, a tool's name, or a "
            "dict in OpenAI's form"
        )
    function = choice.get("function")
    return function.get("name") if isinstance(function, Mapping) else choice.get("name")


def response_format(schema: Schema, method: Method) -> dict[str, Any]:
    """`response_format` of the request: the schema itself, or any JSON object."""
    if method == "json_mode":
        return {"type": "json_object"}
    written = convert_to_json_schema(schema)
    return {
        "type": "json_schema",
        "json_schema": {"name": written.get("title", "answer"), "schema": written, "strict": True},
    }


def parser_for(schema: Schema, method: Method) -> OutputParserLike[Any]:
    """What turns the answer into an object of the schema: an instance of a pydantic class, else a dict."""
    model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if method == "function_calling":
        if model is not None:
            return PydanticToolsParser(tools=[model], first_tool_only=True)
        name = convert_to_openai_tool(schema)["function"]["name"]
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return PydanticOutputParser(pydantic_object=model) if model is not None else JsonOutputParser()


def parsed(
    answer: Runnable[LanguageModelInput, AIMessage], parser: OutputParserLike[Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """The model with its parser; with `include_raw` a dict of `raw`, `parsed` and `parsing_error`. An answer that was
    cut off is an `OutputParserException`: LangChain's parsers would complete it into an object that was never meant."""
    whole: Runnable[AIMessage, Any] = RunnableGenerator(_whole, _awhole) | parser
    if not include_raw:
        return answer | whole
    good = RunnablePassthrough.assign(parsed=itemgetter("raw") | whole, parsing_error=lambda _: None)
    bad = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=answer) | good.with_fallbacks([bad], exception_key="parsing_error")


def _whole(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    for message in messages:
        _check_whole(message)
        yield message


async def _awhole(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    async for message in messages:
        _check_whole(message)
        yield message


def _check_whole(message: AIMessage) -> None:
    if message.response_metadata.get("finish_reason") != "length":
        return
    usage = message.usage_metadata
    after = f" after {usage['output_tokens']} tokens" if usage else ""
    raise OutputParserException(
        f"the answer was cut off{after} because of max_tokens or the context, so it is no whole object: "
        "allow more of them",
        llm_output=str(message.text),
    )
