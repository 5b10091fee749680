"""The JSON of streamed chunks, typed: OpenAI's chat and text completion chunks with llama-server's additions.

Only the fields that llamastream uses are declared; msgspec skips the rest without building objects for it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from llamastream.errors import ProtocolError
from llamastream.types import Usage

NO_ERROR = Raw()
"""What `WireChunk.error` is, by identity, where the JSON has no such field."""


class WireFunction(Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class WireToolCall(Struct):
    index: int = 0
    id: str | None = None
    function: WireFunction | None = None


class WireDelta(Struct):
    """`delta` of a chunk, and `message` of a whole answer, which has the same fields."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[WireToolCall] | None = None


class WireChoice(Struct):
    """One choice: chat streams fill `delta`, completion streams `text`, whole chat answers `message`."""

    index: int = 0
    delta: WireDelta | None = None
    text: str | None = None
    message: WireDelta | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class WireTokenDetails(Struct, gc=False):
    cached_tokens: int | None = None


class WireUsage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: WireTokenDetails | None = None

    def usage(self) -> Usage:
        prompt, completion = self.prompt_tokens or 0, self.completion_tokens or 0
        details = self.prompt_tokens_details
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=self.total_tokens if self.total_tokens is not None else prompt + completion,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
        )


class WireTimings(Struct, gc=False):
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float | None = None
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float | None = None
    draft_n: int = 0
    draft_n_accepted: int = 0


class WireProgress(Struct, gc=False):
    total: int = 0
    cache: int = 0
    processed: int = 0
    time_ms: float = 0.0


class WireChunk(Struct):
    """One chunk of a stream, or a whole answer."""

    choices: list[WireChoice] | None = None
    id: str | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    usage: WireUsage | None = None
    timings: WireTimings | None = None
    prompt_progress: WireProgress | None = None
    error: Raw = NO_ERROR


_decode = msgspec.json.Decoder(WireChunk).decode


def decode_chunk(data: bytes) -> WireChunk:
    """Decode the data of one event.

    Raises:
        ProtocolError: it is not JSON, or not the JSON of a chunk; the message quotes its beginning.
    """
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = str(error)
    # The standard has UTF-8 decoded with replacement; a wrong byte in a text must not end an answer.
    try:
        return _decode(data.decode("utf-8", "replace"))
    except msgspec.DecodeError:
        quoted = data[:120].decode("utf-8", "replace")
        raise ProtocolError(
            f"the server sent an event that is not a chunk of an answer ({reason}): {quoted!r}"
        ) from None
