"""Metrics for Prometheus: what there is, and the listener that counts. Nothing happens here for single chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, get_args

from llamastream.backends import InstanceState
from llamastream.events import (
    ClientEvent,
    FleetEvent,
    InstanceChanged,
    InstanceWarning,
    RequestServed,
    RetryScheduled,
    StreamRecovered,
)
from llamastream.observe.series import Metric, Sample, Series

PREFIX = "llamastream_"
STATES: tuple[InstanceState, ...] = get_args(InstanceState)
MOST_KEYS = 64
"""Keys that have series of their own."""
FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "cancelled", "refused", "error", "other", ""})

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

METRICS: tuple[Metric, ...] = (
    Metric(
        "requests",
        "counter",
        "Requests that are over. status: of the response, 499 if the client left before it. finish_reason: how the "
        "answer ended: stop, length, tool_calls, cancelled, refused (the request's fault: a 4xx, or a 501), error, "
        "other (it does not say, as an embedding), empty where none was asked for.",
        ("route", "model", "status", "finish_reason"),
    ),
    Metric(
        "request_duration_seconds",
        "histogram",
        "From the beginning of a request to the end of its answer.",
        ("route",),
        "seconds",
        _WAITS,
    ),
    Metric(
        "time_to_first_token_seconds",
        "histogram",
        "From the beginning of a streamed request to its first content, its wait for a slot included.",
        ("route", "model"),
        "seconds",
        _WAITS,
    ),
    Metric(
        "inter_token_latency_seconds",
        "histogram",
        "Between chunks of content of a stream, within 3 %.",
        ("model",),
        "seconds",
        _GAPS,
    ),
    Metric("queue_wait_seconds", "histogram", "What requests waited for a slot.", (), "seconds", _WAITS),
    Metric(
        "first_token_expectation_ratio",
        "histogram",
        "From a request's slot to its first token, divided by what routing expected of the instance.",
        (),
        "",
        _RATIOS,
    ),
    Metric(
        "routed_requests",
        "counter",
        "Requests that were given a slot. reason: cached (that instance has the most of the prompt), least-busy, only, "
        "round-robin, affinity, blocked (all others failed lately).",
        ("reason",),
    ),
    Metric("key_requests", "counter", "Requests by the name of their API key; of many keys, the first 64.", ("key",)),
    Metric(
        "key_queue_wait_seconds",
        "counter",
        "What the requests of a key waited for slots altogether.",
        ("key",),
        "seconds",
    ),
    Metric("prompt_tokens", "counter", "Tokens of prompts, those from the prompt cache included.", ("model",)),
    Metric("cached_prompt_tokens", "counter", "Tokens of prompts that the prompt cache saved.", ("model",)),
    Metric(
        "expected_cached_prompt_tokens",
        "counter",
        "Tokens of prompts that routing took to be in the prompt cache; the same as cached_prompt_tokens if it is "
        "right.",
        ("model",),
    ),
    Metric("completion_tokens", "counter", "Tokens that were generated and given to clients.", ("model",)),
    Metric(
        "recoveries",
        "counter",
        "Streams that broke in the middle and went on. kind: reattach, continue, replay, restart, non_streaming, "
        "finish.",
        ("kind",),
    ),
    Metric("retries", "counter", "Attempts that failed before the first content and were followed by another."),
    Metric("queue_length", "gauge", "Requests that wait for a slot.", source="scrape"),
    Metric("requests_active", "gauge", "Requests at work on a slot.", source="scrape"),
    Metric("slots", "gauge", "Slots of all instances that take requests.", source="scrape"),
    Metric("admitted_requests", "counter", "Requests that were given a slot.", source="scrape"),
    Metric("refused_requests", "counter", "Requests that the full line, or its time limit, refused.", source="scrape"),
    Metric(
        "rate_limited_requests",
        "counter",
        "Requests beyond what their key may use. limit: requests_per_minute, tokens_per_minute, requests_at_once.",
        ("limit",),
        source="scrape",
    ),
    Metric("connections", "gauge", "Connections of clients.", source="scrape"),
    Metric(
        "response_cache_requests",
        "counter",
        "Requests that the response cache looked at. result: hit, miss, shared (with the same request in flight).",
        ("result",),
        source="scrape",
    ),
    Metric(
        "response_cache_entries", "gauge", "Answers that are kept. where: memory, disk.", ("where",), source="scrape"
    ),
    Metric(
        "response_cache_bytes",
        "gauge",
        "What the answers that are kept take. where: memory, disk.",
        ("where",),
        "bytes",
        source="scrape",
    ),
    Metric(
        "response_cache_tokens_saved",
        "counter",
        "Tokens of answers that were given again, and not generated.",
        source="scrape",
    ),
    Metric("response_cache_errors", "counter", "Failures to read or write answers on disk.", source="scrape"),
    Metric(
        "held_streams",
        "gauge",
        "Streams that are kept for clients who may come back, those that have ended included.",
        source="scrape",
    ),
    Metric("detached_streams", "gauge", "Of these, the ones that run while nobody reads them.", source="scrape"),
    Metric("reattached_requests", "counter", "Clients that came back to a stream.", source="scrape"),
    Metric("replay_bytes", "gauge", "What streams that can be read again take.", (), "bytes", source="scrape"),
    Metric("instances_ready", "gauge", "Instances that take requests.", source="scrape"),
    Metric(
        "instance_state",
        "gauge",
        "1 for the state that an instance is in, 0 for the others: " + ", ".join(STATES) + ".",
        ("instance", "state"),
        source="scrape",
    ),
    Metric("instance_requests_active", "gauge", "Requests that an instance works on.", ("instance",), source="scrape"),
    Metric(
        "instance_memory_bytes",
        "gauge",
        "Memory of an instance's process: private and swapped where the system tells them apart, else resident.",
        ("instance",),
        "bytes",
        source="scrape",
    ),
    Metric(
        "instance_tokens_per_second",
        "gauge",
        "Decode speed of all slots of an instance together, over the last seconds.",
        ("instance",),
        source="scrape",
    ),
    Metric("instance_restarts", "counter", "Starts of an instance after its first.", ("instance",), source="scrape"),
    Metric(
        "instance_ends",
        "counter",
        "Instances that left a state in which they took requests. after: the state they came to.",
        ("instance", "after"),
        source="fleet",
    ),
    Metric("instance_warnings", "counter", "Warnings about instances.", ("topic",), source="fleet"),
    Metric("alerts_firing", "gauge", "Things that a rule of alerts has found not well.", ("rule",), source="scrape"),
    Metric(
        "alert_messages",
        "counter",
        "Messages for receivers of alerts. outcome: sent, failed (given up), dropped (too many waited).",
        ("receiver", "outcome"),
        source="scrape",
    ),
    Metric("build", "info", "What runs here.", ("version", "python"), source="scrape"),
)

Event: TypeAlias = RequestServed | ClientEvent | FleetEvent


class Metrics:
    """Counts what happens: a listener for the events of gateways, clients and fleets. Thread-safe.

    What is read at the moment when somebody asks comes from `scrapers`: callables that return samples of the metrics
    with the source `scrape`.
    """

    def __init__(self, info: Mapping[str, str] | None = None) -> None:
        """`info`: labels of `build`."""
        self.series = Series(METRICS)
        self.info = dict(info or {})
        self._keys: set[str] = set()
        self.scrapers: list[Callable[[], Iterable[Sample]]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestServed):
            self._served(event)
        elif isinstance(event, StreamRecovered):
            self.series.count("recoveries", (event.recovery.kind,))
        elif isinstance(event, RetryScheduled):
            self.series.count("retries")
        elif isinstance(event, InstanceChanged):
            if event.before in ("ready", "busy") and event.after not in ("ready", "busy"):
                self.series.count("instance_ends", (event.id, event.after))
        elif isinstance(event, InstanceWarning):
            self.series.count("instance_warnings", (event.topic,))

    def _served(self, event: RequestServed) -> None:
        series = self.series
        reason = event.finish_reason if event.finish_reason in FINISH_REASONS else "other"
        series.count("requests", (event.route, event.model, str(event.status), reason))
        series.observe("request_duration_seconds", [(event.duration, 1)], (event.route,))
        if event.queue_wait is not None:
            series.observe("queue_wait_seconds", [(event.queue_wait, 1)])
        if event.time_to_first_token is not None:
            series.observe("time_to_first_token_seconds", [(event.time_to_first_token, 1)], (event.route, event.model))
        self._routed(event)
        if event.gaps:
            series.observe("inter_token_latency_seconds", event.gaps, (event.model,))
        for name, amount in (
            ("prompt_tokens", event.prompt_tokens),
            ("cached_prompt_tokens", event.cached_tokens),
            ("completion_tokens", event.completion_tokens),
        ):
            if amount is not None:
                series.count(name, (event.model,), amount)

    def _routed(self, event: RequestServed) -> None:
        series = self.series
        if event.key:
            key = self._name_of(event.key)
            series.count("key_requests", (key,))
            if event.queue_wait:
                series.count("key_queue_wait_seconds", (key,), event.queue_wait)
        if not event.route_reason:
            return
        series.count("routed_requests", (event.route_reason,))
        if event.expected_first_token and event.first_token is not None:
            series.observe("first_token_expectation_ratio", [(event.first_token / event.expected_first_token, 1)])
        if event.cached_tokens is not None and event.expected_cached_tokens is not None:
            series.count("expected_cached_prompt_tokens", (event.model,), event.expected_cached_tokens)

    def _name_of(self, key: str) -> str:
        if key not in self._keys:
            if len(self._keys) >= MOST_KEYS:
                return "other"
            self._keys.add(key)
        return key

    def scraped(self) -> list[Sample]:
        """What is read now."""
        return [sample for scraper in self.scrapers for sample in scraper()]


def full_name(metric: Metric) -> str:
    """The name under which Prometheus shows it."""
    ends = {"counter": "_total", "info": "_info"}
    return PREFIX + metric.name + ends.get(metric.kind, "")
