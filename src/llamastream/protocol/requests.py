"""Requests as the server wants them, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.errors import InvalidRequestError

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"

_NEED_CONTENT = frozenset({"user", "system", "developer", "tool"})


class GenerationRequest(Struct, frozen=True):
    """A streaming request.

    Attributes:
        path: endpoint path. body: the JSON body as a dict (do not change it). choices: how many answers it asks for.
    """

    path: str
    body: dict[str, Any]
    choices: int = 1

    @property
    def system_prompt(self) -> str:
        """The text of the first message if it is the system's, else ""."""
        messages = self.body.get("messages")
        if not messages or messages[0].get("role") not in ("system", "developer"):
            return ""
        content = messages[0].get("content")
        return content if isinstance(content, str) else ""

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call tools."""
        return bool(self.body.get("tools")) and self.body.get("tool_choice") != "none"

    def without_stream(self) -> GenerationRequest:
        """The same request for a whole answer at once."""
        body = {key: value for key, value in self.body.items() if key != "stream_options"}
        return GenerationRequest(self.path, {**body, "stream": False}, self.choices)

    def headers(self) -> dict[str, str]:
        """Headers of its own."""
        return {}

    def encoded(self) -> bytes:
        """The body as JSON.

        Raises:
            InvalidRequestError: it holds something that JSON cannot express.
        """
        try:
            return msgspec.json.encode(self.body)
        except (TypeError, ValueError, UnicodeEncodeError, OverflowError, RecursionError) as error:
            raise InvalidRequestError(f"the request cannot be written as JSON: {error}") from None


def in_slot(body: bytes, slot: int) -> bytes:
    """The body of a request with the slot that llama-server is to put it into; nothing else of it changes.

    Args:
        body: a JSON object that has something in it, and no `id_slot`.
    """
    at = body.index(b"{") + 1
    return b'%b"id_slot":%d,%b' % (body[:at], slot, body[at:])


def chat_request(
    messages: Sequence[Mapping[str, Any]],
    *,
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """A streaming chat request; `extra` goes into the body as it is and wins over the named arguments.

    Raises:
        InvalidRequestError: the messages or a value cannot be right; the message names it.
    """
    return _request(CHAT_PATH, {"messages": _checked_messages(messages)}, model, temperature, max_tokens, extra)


def completion_request(
    prompt: str | Sequence[int],
    *,
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """A streaming text completion request; the prompt is text, or token ids.

    Raises:
        InvalidRequestError: the prompt or a value cannot be right; the message names it.
    """
    checked: str | list[int]
    if isinstance(prompt, str):
        checked = prompt
    elif isinstance(prompt, Sequence) and all(type(token) is int for token in prompt):
        checked = [token for token in prompt if isinstance(token, int)]
    else:
        raise InvalidRequestError(f"prompt must be a str or a list of token ids, not {_kind(prompt)}")
    return _request(COMPLETION_PATH, {"prompt": checked}, model, temperature, max_tokens, extra)


def _request(
    path: str,
    body: dict[str, Any],
    model: str | None,
    temperature: float | None,
    max_tokens: int | None,
    extra: Mapping[str, Any] | None,
) -> GenerationRequest:
    if model is not None:
        body["model"] = model
    if temperature is not None:
        body["temperature"] = temperature
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    body["stream"] = True
    # Token counts come with the last chunk; a caller's own stream_options win.
    body["stream_options"] = {"include_usage": True}
    if extra:
        if "timeout" in extra:
            raise InvalidRequestError(
                "timeout is no field of a request; use timeouts=Timeouts(...), or Timeouts.all(30) for each step"
            )
        if extra.get("stream") is False:
            raise InvalidRequestError("stream=False: a stream call always streams; use chat() or complete() instead")
        body.update(extra)
    _check_model(body.get("model"))
    _check_temperature(body.get("temperature"))
    _check_max_tokens(body.get("max_tokens"))
    choices = _check_choices(body.get("n"))
    _check_tools(body.get("tools"), body.get("tool_choice"))
    _check_stop(body.get("stop"))
    _check_response_format(body.get("response_format"))
    _check_finite(body, "")
    return GenerationRequest(path, body, choices)


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequestError(
            f"messages must be a list of dicts with 'role' and 'content', not {_kind(messages)}; "
            'for one question: [{"role": "user", "content": "..."}]'
        )
    if not messages:
        raise InvalidRequestError("messages is empty; at least one message is needed")
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequestError(
                f"messages[{number}] must be a dict with 'role' and 'content', not {_kind(message)}"
            )
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise InvalidRequestError(f"messages[{number}] has no 'role' (user, assistant, system or tool)")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list | tuple):
            raise InvalidRequestError(
                f"messages[{number}]['content'] must be a str or a list of parts, not {_kind(content)}"
            )
        if content is None:
            _check_may_lack_content(number, message)
        checked.append(dict(message))
    return checked


def _check_may_lack_content(number: int, message: Mapping[str, Any]) -> None:
    """Only an assistant may say nothing: it may call tools, or have thought. llama-server takes `"content": null` of
    users too, but that is a variable which was not filled in, hardly ever a question."""
    role = message["role"]
    if role in _NEED_CONTENT or (role != "assistant" and "content" not in message):
        what = "is None" if "content" in message else "is missing"
        raise InvalidRequestError(
            f"messages[{number}]['content'] {what}, but a message of role {role!r} needs a str or a list of parts; "
            'give its text, or "" if it is meant to be empty'
        )
    if role == "assistant" and not {"content", "tool_calls", "reasoning_content"} & message.keys():
        raise InvalidRequestError(
            f"messages[{number}] of role 'assistant' has neither 'content' nor 'tool_calls'; "
            "give what the model answered, or leave the message out"
        )


def _check_tools(tools: Any, choice: Any) -> None:
    if tools is not None:
        if not isinstance(tools, list | tuple):
            raise InvalidRequestError(
                f"tools must be a list of dicts, not {_kind(tools)}; for one tool: "
                '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
            )
        for number, tool in enumerate(tools):
            if not isinstance(tool, Mapping):
                raise InvalidRequestError(
                    f"tools[{number}] must be a dict with 'type' and 'function', not {_kind(tool)}"
                )
    if choice is not None and not isinstance(choice, str | Mapping):
        raise InvalidRequestError(
            f"tool_choice must be a str (auto, none or required) or a dict that names a function, not {_kind(choice)}"
        )


def _check_stop(stop: Any) -> None:
    if stop is None or isinstance(stop, str):
        return
    if not isinstance(stop, list | tuple):
        raise InvalidRequestError(f"stop must be a str or a list of str, not {_kind(stop)}")
    for number, text in enumerate(stop):
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"stop[{number}] must be a str, not {_kind(text)}; stop is a str or a list of str"
            )


def _check_response_format(form: Any) -> None:
    if form is not None and not isinstance(form, Mapping):
        raise InvalidRequestError(
            f'response_format must be a dict, not {_kind(form)}; for any JSON object: {{"type": "json_object"}}'
        )


def _check_model(model: Any) -> None:
    if model is not None and not isinstance(model, str):
        raise InvalidRequestError(f"model must be a str, not {_kind(model)}")


def _check_temperature(temperature: Any) -> None:
    if temperature is None:
        return
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise InvalidRequestError(f"temperature must be a number from 0 upwards, not {_kind(temperature)}")
    if not math.isfinite(temperature) or temperature < 0:
        raise InvalidRequestError(f"temperature must be a number from 0 upwards, not {temperature}")


def _check_max_tokens(max_tokens: Any) -> None:
    if max_tokens is None:
        return
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int):
        raise InvalidRequestError(f"max_tokens must be a whole number from 1 upwards, not {_kind(max_tokens)}")
    if max_tokens < 1:
        raise InvalidRequestError(
            f"max_tokens must be a whole number from 1 upwards, not {max_tokens}; leave it out for no limit"
        )


def _check_choices(n: Any) -> int:
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 128:
        raise InvalidRequestError(f"n must be a whole number from 1 to 128, not {n!r}")
    return n


def _check_finite(value: Any, where: str) -> None:
    """JSON has no NaN and no infinity; an encoder would quietly write null instead."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequestError(f"{where or 'the request'} is {value}, which JSON cannot express")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_finite(item, f"{where}[{number}]")


def _kind(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} ({text[:60]}{'…' if len(text) > 60 else ''})"
