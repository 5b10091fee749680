"""A client's requests as traces and metrics of OpenTelemetry, by the semantic conventions for generative AI.

    client = StreamingClient(listeners=[OpenTelemetryListener()])

One span for each request, below the one that is current where it began; in it a span for each attempt, and one for each
break in mid-stream until the stream goes on. Never a prompt or an answer. Needs the extra `otel`; which telemetry goes
where, is the business of the SDK.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from llamastream._version import __version__
from llamastream.errors import LlamaStreamError
from llamastream.events import (
    AttemptStarted,
    ClientEvent,
    FirstToken,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
    StreamBroke,
    StreamRecovered,
)

PROVIDER = "llama.cpp"
NAME = "llamastream"

OLDER: Mapping[str, str] = {
    "gen_ai.provider.name": "gen_ai.system",
    "gen_ai.usage.input_tokens": "gen_ai.usage.prompt_tokens",
    "gen_ai.usage.output_tokens": "gen_ai.usage.completion_tokens",
}
"""Names of today and what they were called before; for `names=OLDER`."""

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


class _Open:
    """A request that has not ended."""

    def __init__(self, span: Any, context: Any, base: dict[str, Any]) -> None:
        self.span = span
        self.context = context
        self.base = base
        self.attempt: Any = None
        self.recovery: Any = None


class OpenTelemetryListener:
    """A listener that traces. Thread-safe; one may serve several clients. Nothing is done for single chunks.

    Args:
        tracer_provider, meter_provider: None: those that the application has set.
        names: attributes under other names than those of today's conventions, such as `OLDER`; None as a name leaves
            an attribute out.

    Raises:
        ImportError: opentelemetry-api is not installed.
    """

    def __init__(
        self,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        *,
        names: Mapping[str, str | None] | None = None,
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError:
            raise ImportError("tracing needs OpenTelemetry: pip install 'llamastream[otel]'") from None
        self._trace = trace
        self._tracer = trace.get_tracer(NAME, __version__, tracer_provider)
        meter = metrics.get_meter(NAME, __version__, meter_provider)
        self._names = dict(names or {})
        self._open: dict[int, _Open] = {}
        self._lock = threading.Lock()
        seconds: dict[str, Any] = {"unit": "s", "explicit_bucket_boundaries_advisory": _SECONDS}
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", description="Duration of a request.", **seconds
        )
        self._first = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            description="From the beginning of a request to its first content, as the client sees it.",
            **seconds,
        )
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of prompts and answers.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._recoveries = meter.create_counter(
            "llamastream.recoveries", unit="{recovery}", description="Streams that broke in the middle and went on."
        )

    def __call__(self, event: ClientEvent) -> None:
        if isinstance(event, RequestStarted):
            self._begin(event)
            return
        with self._lock:
            found = self._open.get(event.request_id)
        if found is None:
            return
        if isinstance(event, AttemptStarted):
            self._attempt(found, event)
        elif isinstance(event, FirstToken):
            found.span.add_event("gen_ai.first_token", {"llamastream.time_to_first_token": event.time_to_first_token})
            self._first.record(event.time_to_first_token, self._named(found.base))
        elif isinstance(event, RetryScheduled):
            self._end_attempt(found, event.error)
        elif isinstance(event, StreamBroke):
            self._broke(found, event)
        elif isinstance(event, StreamRecovered):
            self._recovered(found, event)
        elif isinstance(event, RequestEnded):
            self._end(found, event)

    # -- parts of these -------------------------------------------------------------------------------------------

    def _begin(self, event: RequestStarted) -> None:
        parts = urlsplit(event.url)
        chat = "chat" in parts.path
        base: dict[str, Any] = {
            "gen_ai.operation.name": "chat" if chat else "text_completion",
            "gen_ai.provider.name": PROVIDER,
        }
        if event.model:
            base["gen_ai.request.model"] = event.model
        if parts.hostname:
            base["server.address"] = parts.hostname
            base["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
        span = self._tracer.start_span(
            f"{base['gen_ai.operation.name']} {event.model}".rstrip(),
            kind=self._trace.SpanKind.CLIENT,
            attributes=self._named(base),
        )
        found = _Open(span, self._trace.set_span_in_context(span), base)
        with self._lock:
            self._open[event.request_id] = found

    def _attempt(self, found: _Open, event: AttemptStarted) -> None:
        self._end_attempt(found, None)
        found.attempt = self._tracer.start_span(
            f"attempt {event.number}",
            context=found.context,
            kind=self._trace.SpanKind.CLIENT,
            attributes={
                "llamastream.attempt": event.number,
                "llamastream.attempt.kind": event.kind,
                "llamastream.attempt.server": event.server,
                "llamastream.attempt.reused_connection": event.reused_connection,
            },
        )

    def _broke(self, found: _Open, event: StreamBroke) -> None:
        self._end_attempt(found, event.error)
        if found.recovery is None:  # else one attempt to go on has failed, and another follows
            found.recovery = self._tracer.start_span(f"recovery by {event.kind}", context=found.context)
        found.recovery.set_attribute("llamastream.recovery.kind", event.kind)
        found.recovery.add_event("broke", {"error.type": type(event.error).__name__})

    def _recovered(self, found: _Open, event: StreamRecovered) -> None:
        recovery = event.recovery
        self._recoveries.add(1, {"llamastream.recovery.kind": recovery.kind})
        span, found.recovery = found.recovery, None
        if span is None:
            return
        span.set_attributes(
            {
                "llamastream.recovery.kind": recovery.kind,
                "llamastream.recovery.gap": recovery.gap,
                "llamastream.recovery.verified": recovery.verified,
                "llamastream.recovery.attempts": recovery.attempts,
            }
        )
        span.end()

    def _end(self, found: _Open, event: RequestEnded) -> None:
        with self._lock:
            self._open.pop(event.request_id, None)
        stats, error = event.stats, event.error
        self._end_attempt(found, error)
        if found.recovery is not None:
            self._fail(found.recovery, error)
            found.recovery.end()
        known: dict[str, Any] = {
            "gen_ai.response.finish_reasons": (event.finish_reason,),
            "gen_ai.usage.input_tokens": stats.prompt_tokens,
            "gen_ai.usage.output_tokens": stats.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": stats.cached_tokens,
            "llamastream.time_to_first_token": stats.time_to_first_token,
            "llamastream.tokens_per_second": stats.tokens_per_second,
            "llamastream.failed_attempts": len(stats.failed_attempts),
            "llamastream.recoveries": len(stats.recoveries),
        }
        found.span.set_attributes(self._named({name: value for name, value in known.items() if value is not None}))
        self._fail(found.span, error)
        found.span.end()
        base = dict(found.base)
        if error is not None:
            base["error.type"] = type(error).__name__
        self._duration.record(stats.duration, self._named(base))
        for kind, count in (("input", stats.prompt_tokens), ("output", stats.completion_tokens)):
            if count is not None:
                self._usage.record(count, self._named({**found.base, "gen_ai.token.type": kind}))

    def _end_attempt(self, found: _Open, error: Exception | None) -> None:
        span, found.attempt = found.attempt, None
        if span is not None:
            self._fail(span, error)
            span.end()

    def _fail(self, span: Any, error: Exception | None) -> None:
        if error is None:
            return
        span.set_attribute("error.type", type(error).__name__)
        status = error.status if isinstance(error, LlamaStreamError) else None
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        span.set_status(self._trace.StatusCode.ERROR, type(error).__name__)  # its text may quote what a server said

    def _named(self, attributes: dict[str, Any]) -> dict[str, Any]:
        if not self._names:
            return attributes
        named = ((self._names.get(name, name), value) for name, value in attributes.items())
        return {name: value for name, value in named if name is not None}
