"""A client's requests as metrics in a registry of the caller's own, under the names that the gateway uses.

    client = StreamingClient(listeners=[PrometheusListener()])

Needs the package prometheus-client (extra `server`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llamastream.errors import LlamaStreamError
from llamastream.events import ClientEvent, RequestEnded, RequestServed, RequestStarted, is_refusal
from llamastream.observe.metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MOST_MODELS = 64
"""Names of models that have series of their own; further ones are `other`."""
MOST_OPEN = 100_000
"""Requests that are followed at the same time; what goes on for long must not make this grow."""
LEFT = 499


class PrometheusListener:
    """A listener that counts. Thread-safe; one may serve several clients. Nothing is done for single chunks.

    Args:
        registry: where the metrics appear; None: that of prometheus-client itself.

    Raises:
        ImportError: prometheus-client is not installed.
        ValueError: the registry has such metrics already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY

        from llamastream.observe.exposition import MetricsCollector

        self._metrics = Metrics()
        self._open: dict[int, tuple[str, str]] = {}
        self._models: set[str] = set()
        self._lock = threading.Lock()
        self._registry: Any = REGISTRY if registry is None else registry
        self._collector = MetricsCollector(self._metrics, sources=("requests",))
        self._registry.register(self._collector)

    def close(self) -> None:
        """Take the metrics out of the registry."""
        self._registry.unregister(self._collector)

    def __call__(self, event: ClientEvent) -> None:
        if isinstance(event, RequestStarted):
            with self._lock:
                if len(self._open) < MOST_OPEN:
                    self._open[event.request_id] = (route_of(event.url), self._model(event.model))
        elif isinstance(event, RequestEnded):
            with self._lock:
                route, model = self._open.pop(event.request_id, ("other", "other"))
            self._metrics(as_served(event, route, model))
        else:
            self._metrics(event)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= MOST_MODELS:
                return "other"
            self._models.add(name)
        return name


def as_served(event: RequestEnded, route: str, model: str) -> RequestServed:
    """A client's request in the form in which a gateway tells of its own."""
    stats, error = event.stats, event.error
    status = 200
    if event.finish_reason == "cancelled":
        status = LEFT
    elif error is not None:
        status = (error.status if isinstance(error, LlamaStreamError) else None) or 0
    gap = (
        None if stats.inter_token_latency_p50 is None else ((stats.inter_token_latency_p50, max(0, stats.chunks - 1)),)
    )
    return RequestServed(
        time=0.0,
        request_id=str(event.request_id),
        method="POST",
        route=route,
        status=status,
        duration=stats.duration,
        model=model,
        finish_reason="refused" if error is not None and is_refusal(status) else event.finish_reason,
        error="" if error is None else type(error).__name__,
        streamed=stats.streamed,
        time_to_first_token=stats.time_to_first_token,
        prompt_tokens=stats.prompt_tokens,
        cached_tokens=stats.cached_tokens,
        completion_tokens=stats.completion_tokens,
        gaps=gap or (),
        recoveries=tuple(recovery.kind for recovery in stats.recoveries),
    )


def route_of(url: str) -> str:
    """The endpoint's path, without what a proxy may have put before it."""
    path = urlsplit(url).path
    return path[path.rfind("/v1/") :] if "/v1/" in path else path or "other"
