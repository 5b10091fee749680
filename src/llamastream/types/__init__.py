"""The data that every layer shares: frozen events, results, statistics, and what is known of a server.

Times are seconds (float) unless a name ends in `_ms`; the figures of llama-server keep its own names and units.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from llamastream.tools import ToolCall as ToolCall  # its old place
from llamastream.types.facts import Capabilities as Capabilities
from llamastream.types.facts import Failure as Failure
from llamastream.types.facts import JournalState as JournalState
from llamastream.types.facts import LogRecord as LogRecord
from llamastream.types.facts import Task as Task

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "cancelled", "error"]
"""How a stream ended. `cancelled` is ours: the caller left. `error` stands only in partial results."""


# -- events of a stream -------------------------------------------------------------------------------------


class StreamStart(Struct, frozen=True, tag="start"):
    """The server accepted the request and gave it a slot (response header received)."""

    status: int
    server: str = ""


class TextDelta(Struct, frozen=True, gc=False, tag="text"):
    """A piece of the answer's text."""

    text: str
    index: int = 0


class ReasoningDelta(Struct, frozen=True, gc=False, tag="reasoning"):
    """A piece of the model's reasoning (`delta.reasoning_content`)."""

    text: str
    index: int = 0


class ToolCallDelta(Struct, frozen=True, gc=False, tag="tool_call"):
    """A piece of a tool call: `id` and `name` come first and once, then fragments of the arguments' JSON text.

    `call` counts the tool calls of one choice (several may run in parallel), `index` the choices.
    """

    call: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    index: int = 0


class LogprobsDelta(Struct, frozen=True, tag="logprobs"):
    """The log probabilities of a chunk's tokens, as the server sent them."""

    logprobs: dict[str, Any]
    index: int = 0


class PromptProgress(Struct, frozen=True, gc=False, tag="progress"):
    """How far prefill is (requests with `return_progress=True`): tokens in all, from cache, done; `time_ms` so far."""

    total: int
    cache: int
    processed: int
    time_ms: float = 0.0


class Usage(Struct, frozen=True, gc=False, tag="usage"):
    """Token counts of the request. `cached_tokens` are the prompt tokens that the prompt cache saved."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


class Timings(Struct, frozen=True, gc=False, tag="timings"):
    """llama-server's own measurements, under its own names (milliseconds, tokens, tokens per second)."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float | None = None
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float | None = None
    draft_n: int = 0
    draft_n_accepted: int = 0


class ChoiceFinish(Struct, frozen=True, gc=False, tag="choice_finish"):
    """One choice is complete; `reason` as the server sent it (`stop`, `length`, `tool_calls`)."""

    reason: str
    index: int = 0


class StreamEnd(Struct, frozen=True, tag="end"):
    """The last event of every stream that did not end in an error."""

    finish_reason: str
    usage: Usage | None
    stats: Stats


StreamEvent: TypeAlias = (
    StreamStart
    | TextDelta
    | ReasoningDelta
    | ToolCallDelta
    | LogprobsDelta
    | PromptProgress
    | Usage
    | Timings
    | ChoiceFinish
    | StreamEnd
)


# -- what a caller may set ----------------------------------------------------------------------------------


class Timeouts(Struct, frozen=True, kw_only=True):
    """The five clocks of a stream, in seconds; None switches one off.

    Attributes:
        connect: TCP and TLS.
        first_byte: from the request to the response header, which llama-server sends when the request gets a slot:
            this is its queue.
        prefill: from the header to the first token; progress events (`return_progress=True`) start it anew.
        content_idle: from one piece of content to the next; keep-alive pings do not count.
        total: the whole request.
    """

    connect: float | None = 5.0
    first_byte: float | None = 300.0
    prefill: float | None = 300.0
    content_idle: float | None = 60.0
    total: float | None = None

    @classmethod
    def all(cls, seconds: float) -> Timeouts:
        """Each step may take `seconds`; the whole may take any time (what `timeout=` means in most HTTP clients)."""
        return cls(connect=seconds, first_byte=seconds, prefill=seconds, content_idle=seconds)


Fallback: TypeAlias = Literal["auto", "always", "never"]
"""Whether an answer may come as one piece: where streaming fails, in any case, or not at all."""


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """When a request that failed before its first content is sent again.

    Attributes:
        max_retries: repetitions at most; 0 switches them off.
        base_delay, max_delay: bounds of the backoff in seconds: the n-th delay is uniform in 0 .. base_delay * 2**n.
        max_retry_after: longest `Retry-After`, in seconds, that is honoured; a longer one ends the request.
        loading_patience: how long, in seconds, a server may answer 503 «Loading model»; asked every
            `loading_interval` seconds, and not counted as repetitions.
        recovery_patience: for how long, in seconds, attempts to go on after a break in the middle may fail; a server
            that loads its model has `loading_patience` besides. An attempt that has begun is not cut short by it: for a
            server that takes the request and then says nothing, the clocks of `Timeouts` run.
        max_recoveries: breaks of one stream that are mended at most; 0 as `recovery="off"`.
    """

    max_retries: int = 3
    base_delay: float = 0.25
    max_delay: float = 8.0
    max_retry_after: float = 60.0
    loading_patience: float = 300.0
    loading_interval: float = 0.5
    recovery_patience: float = 60.0
    max_recoveries: int = 100


RecoveryMode: TypeAlias = Literal["off", "reattach", "full"]
"""What a stream that breaks in the middle may do: end with the error, take up the same generation where the server
still holds it, or that and everything else that keeps the answer whole."""


# -- results ------------------------------------------------------------------------------------------------


class FailedAttempt(Struct, frozen=True):
    """An attempt that failed and was followed by another, `delay` seconds later."""

    error: str
    message: str
    status: int | None
    delay: float


class Recovery(Struct, frozen=True):
    """A break in mid-stream that was mended.

    Attributes:
        kind: how: `reattach`, `continue`, `replay`, `restart`, `non_streaming`, or `finish` (all had arrived already).
        error, message: what had gone wrong (the name of its class, and its text).
        text_at_break: characters of text, reasoning and tool calls that the caller had.
        gap: seconds from the last content before the break to the next after it, or to the end.
        verified: whether it is certain that nothing is lost, repeated or changed: byte-exact (`reattach`), compared
            (`replay`), or nothing had been given out. A continuation is exact if the model repeats itself, which
            nobody can see from outside: False.
        attempts: how many it took. server: base URL of the one that went on. from_server: of the one before.
    """

    kind: str
    error: str
    message: str
    text_at_break: int
    gap: float
    verified: bool
    attempts: int
    server: str
    from_server: str

    @property
    def summary(self) -> str:
        """The whole of it in a line, for people."""
        where = self.server if self.server == self.from_server else f"{self.from_server} → {self.server}"
        verified = "verified" if self.verified else "not verified"
        return (
            f"{where}: recovered by {self.kind} after {self.text_at_break} characters, gap {self.gap:.3f} s, "
            f"{verified} ({self.error})"
        )


class Stats(Struct, frozen=True):
    """What a stream did, by our clock where not said otherwise. None: not known (yet, or the server does not say).

    Attributes:
        time_to_header: seconds from sending to the response header, which llama-server sends when a slot is ready.
        time_to_first_token: seconds from sending to the first text, reasoning or tool call.
        duration: seconds from sending to the end, or to now.
        inter_token_latency_p50, _p95, _max: seconds between chunks with content (p50 and p95 within 3 %).
        tokens_per_second: tokens after the first, divided by the time since the first; never above the server's rate.
        server_tokens_per_second: decode speed by the server's clock.
        prompt_tokens, cached_tokens, completion_tokens: token counts (server's; cached ones are part of the prompt).
        chunks: chunks with content. body_bytes: bytes of the de-chunked body.
        connect_time: seconds to connect, TLS included; None if an idle connection was used again.
        failed_attempts: what went wrong before the attempt that these figures end with (of many, the first 64).
        recoveries: the breaks in mid-stream that were mended (of many, the first 1024).
        streamed: False if the server sent the whole answer at once, so that it came as one piece.
        buffered: the answer was generated over a time but arrived all together: something on the way holds it back.
        response_cache: what a gateway says that its response cache did: hit, shared, miss; "" if it says nothing.
    """

    time_to_header: float | None = None
    time_to_first_token: float | None = None
    duration: float = 0.0
    inter_token_latency_p50: float | None = None
    inter_token_latency_p95: float | None = None
    inter_token_latency_max: float | None = None
    tokens_per_second: float | None = None
    server_tokens_per_second: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    chunks: int = 0
    body_bytes: int = 0
    connect_time: float | None = None
    failed_attempts: tuple[FailedAttempt, ...] = ()
    recoveries: tuple[Recovery, ...] = ()
    streamed: bool = True
    buffered: bool = False
    response_cache: str = ""


class PromptFacts(Struct, frozen=True):
    """What a request's prompt was, for advice on the prompt cache: the first system message and the token counts."""

    system_prompt: str
    prompt_tokens: int
    cached_tokens: int


class Choice(Struct, frozen=True):
    """One of the answers of a request (there is one unless `n` asks for more)."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Result(Struct, frozen=True):
    """A whole answer, or, as `error.partial`, what there was of it when the stream broke.

    `text`, `reasoning`, `tool_calls` and `finish_reason` are those of the first choice; `choices` has all.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    timings: Timings | None = None
    stats: Stats = Stats()
    id: str = ""
    model: str = ""
    created: int = 0
    system_fingerprint: str = ""

    def to_message(self) -> dict[str, Any]:
        """The answer as the assistant's message of the next request, tool calls with it (see `ToolCall.to_message`)."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.to_message() for call in self.tool_calls]
        return message


class Health(Struct, frozen=True):
    """What `GET /health` says: `ok`, `loading` or `error`. `ok` says nothing of load or of a stuck decode."""

    status: Literal["ok", "loading", "error"]
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"
