"""One error tree: catch `LlamaStreamError` and you have caught everything that llamastream raises.

Every error carries `status` (the HTTP status, where a server sent one), `retryable` (whether the same
request may succeed a moment later) and `partial` (what had been received when the stream broke, else None).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamastream.types import Result


class LlamaStreamError(Exception):
    """Root of the tree.

    Attributes:
        partial: text, reasoning, tool calls, usage and stats received before the error; None outside a stream.
        retryable: whether the same request may succeed if it is sent again.
        status: the HTTP status that the server answered with, or None.
    """

    retryable: bool = False

    def __init__(self, message: str, *, status: int | None = None, partial: Result | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.partial = partial


# -- mistakes of the caller, found before anything is sent --------------------------------------------------


class SettingError(LlamaStreamError, ValueError):
    """A setting has a value that is not allowed; the message names it, the value, what is allowed and its source."""


class InvalidRequestError(LlamaStreamError, ValueError):
    """The request cannot be right (messages that are no list, a NaN temperature, ...); nothing was sent."""


class StreamConsumedError(LlamaStreamError, RuntimeError):
    """A stream was iterated twice, both as text and by `events()`, or after it was closed."""


class MissingDependencyError(LlamaStreamError, ImportError):
    """A part needs a package that is not installed; the message names the extra that brings it."""


# -- the way to the server ----------------------------------------------------------------------------------


class TransportError(LlamaStreamError, ConnectionError):
    """The connection could not be made, or broke."""

    retryable = True


class ConnectError(TransportError):
    """No connection: name not found, refused, unreachable, or TLS failed."""


class ConnectionLostError(TransportError):
    """The connection broke while an answer was under way."""


class StreamTruncatedError(ConnectionLostError):
    """The body ended cleanly, but without a finish reason: the answer is not complete."""


# -- the five clocks ----------------------------------------------------------------------------------------


class StreamTimeoutError(LlamaStreamError, TimeoutError):
    """One of the five clocks ran out; the subclass says which, and what was waited for."""

    retryable = True


class ConnectTimeoutError(StreamTimeoutError):
    """No connection (TCP and TLS) within `Timeouts.connect`."""


class PoolTimeoutError(StreamTimeoutError):
    """All connections that the client may have to the server were in use within `Timeouts.first_byte`; the server has
    no part in it, so nothing is sent again and no other server is asked."""


class FirstByteTimeoutError(StreamTimeoutError):
    """No response header within `Timeouts.first_byte`: llama-server sends none while a request waits for a slot."""


class PrefillTimeoutError(StreamTimeoutError):
    """No first token within `Timeouts.prefill` after the response header."""


class ContentIdleTimeoutError(StreamTimeoutError):
    """No new content within `Timeouts.content_idle`; the server's keep-alive pings do not count as content."""


class TotalTimeoutError(StreamTimeoutError):
    """The whole request took longer than `Timeouts.total`."""

    retryable = False


# -- what the server said -----------------------------------------------------------------------------------


class ProtocolError(LlamaStreamError):
    """What arrived is not what the protocol allows: not HTTP, not server-sent events, not the JSON of a chunk."""


class UnexpectedResponseError(ProtocolError):
    """A well-formed HTTP answer of the wrong kind: a web page, a redirect, a compressed body."""


class EventTooLargeError(ProtocolError):
    """One server-sent event, header block or body is larger than the limit that was set for it."""


class ServerError(LlamaStreamError):
    """The server answered with an error; `status` has its code, `type` llama-server's name for it.

    Attributes:
        type: `error.type` of the body (`invalid_request_error`, `unavailable_error`, ...), or "".
        body: the answer's body as it came, at most 64 KiB of it.
        retry_after: seconds to wait that the server asked for, or None.
        retry_at: the date, in seconds since the epoch, if it asked to wait until a date.
    """

    type: str = ""
    body: bytes = b""
    retry_after: float | None = None
    retry_at: float | None = None


class BadRequestError(ServerError):
    """400: the server cannot use the request."""


class ContextSizeError(BadRequestError):
    """400 `exceed_context_size_error`: the prompt does not fit; `n_prompt_tokens` and `n_ctx` say by how much."""

    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class AuthenticationError(ServerError):
    """401: the key is missing or wrong."""


class PermissionDeniedError(ServerError):
    """403: the key may not do this."""


class NotFoundError(ServerError):
    """404: no such path, or the model is unknown."""


class RateLimitedError(ServerError):
    """429: too many requests."""

    retryable = True


class InternalServerError(ServerError):
    """500 and unlisted 5xx. llama-server answers malformed JSON with 500 too, hence not worth a blind retry."""


class NotSupportedError(ServerError):
    """501: this server was not started with what the request needs."""


class ToolsUnsupportedError(NotSupportedError):
    """The server takes no requests with tools: it was started without `--jinja`. Asking for a whole answer instead of a
    stream changes nothing."""


class MalformedOutputError(ServerError):
    """The model's output fits no answer: the server cannot read it by its template's format, or it ended a request with
    tools without text and without a call. `partial` has what could be shown of it.

    It is not repeated, since a repetition with the same seed says the same. Ask again with another one.
    """


class UnavailableError(ServerError):
    """502, 503, 504: loading the model, shutting down, or a proxy without a server behind it."""

    retryable = True


class ModelLoadingError(UnavailableError):
    """503 «Loading model»: wait, it will be ready."""


class MidStreamError(ServerError):
    """The server reported an error inside a stream (or a JSON body) that had begun with 200."""


class StreamDivergedError(LlamaStreamError):
    """A repeated generation differs from what the caller already has; the stream ends here rather than guess."""


# -- bringing a server up -----------------------------------------------------------------------------------


class EngineError(LlamaStreamError):
    """A llama-server could not be started or died; `log_lines` holds the last lines it wrote.

    Attributes:
        log_lines: the last log lines of the process, oldest first.
        exit_code: its exit code (negative: the signal that ended it), or None if it still ran.
    """

    def __init__(self, message: str, *, log_lines: Sequence[str] = (), exit_code: int | None = None) -> None:
        if log_lines:
            message = message + "\nlast log lines:\n" + "\n".join("  " + line for line in log_lines)
        super().__init__(message)
        self.log_lines = tuple(log_lines)
        self.exit_code = exit_code


class EngineMissingError(EngineError):
    """Neither a llama-server executable nor the embedded engine is there."""


class ModelFileError(EngineError):
    """The model file is missing, unreadable, or no GGUF file."""


class ModelDownloadError(EngineError):
    """The model could not be downloaded."""


class PortInUseError(EngineError):
    """The address is taken by another process, or may not be bound."""


class UnsupportedFlagError(EngineError):
    """The engine does not know a flag, or cannot express it."""


class EngineMemoryError(EngineError):
    """The machine has not enough memory for model and context."""


class EngineCrashedError(EngineError):
    """The process died for a reason that its log does not name."""


class EngineStartTimeoutError(EngineError):
    """The server was not ready within the start timeout."""


# -- measuring ----------------------------------------------------------------------------------------------


class BenchError(LlamaStreamError):
    """A measurement could not be made, or a baseline neither read nor written."""


class TrialFailedError(BenchError):
    """Settings with which nothing could be measured: the server did not start, died, hung or refused."""
