"""The client's events in a Prometheus registry and as traces of OpenTelemetry, with its SDK."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from llamastream.client import StreamingClient
from llamastream.engine import Engine
from llamastream.errors import LlamaStreamError
from llamastream.events import ClientEvent, RequestStarted
from llamastream.observe.metrics import METRICS, full_name
from llamastream.observe.prometheus import MOST_MODELS, PrometheusListener, route_of
from llamastream.observe.tracing import OLDER, OpenTelemetryListener
from llamastream.testing import ChaosProxy, NumberedServer, Reset, Script, ServerDouble, http_answer, sse_answer
from llamastream.types import RetryPolicy

prometheus_client = pytest.importorskip("prometheus_client", reason="the extra server is not installed")

MESSAGES = [{"role": "user", "content": "a private question"}]
QUICK = RetryPolicy(max_retries=1, base_delay=0.0)
UNAVAILABLE = Script(http_answer("503 Service Unavailable", b"{}"))
NEEDS_SDK = "the extra otel is not installed"


# -- what the events say --------------------------------------------------------------------------------------------


def test_numbers_of_requests_are_those_of_the_process(engine: Engine) -> None:
    heard: list[ClientEvent] = []
    for _ in range(2):
        with StreamingClient(engine.url, listeners=[heard.append], model="demo") as client:
            client.chat(MESSAGES, max_tokens=1)
    started = [event for event in heard if isinstance(event, RequestStarted)]
    assert len({event.request_id for event in started}) == 2
    assert [event.model for event in started] == ["demo", "demo"]


# -- Prometheus -----------------------------------------------------------------------------------------------------


def test_a_registry_gets_the_gateways_metrics_of_a_clients_requests(engine: Engine) -> None:
    registry = prometheus_client.CollectorRegistry()
    listener = PrometheusListener(registry)
    with StreamingClient(engine.url, listeners=[listener], model="demo") as client:
        result = client.chat(MESSAGES, max_tokens=5, ignore_eos=True)
    labels = {"route": "/v1/chat/completions", "model": "demo"}
    value = registry.get_sample_value
    assert value("llamastream_requests_total", {**labels, "status": "200", "finish_reason": "length"}) == 1
    assert value("llamastream_completion_tokens_total", {"model": "demo"}) == 5
    assert value("llamastream_prompt_tokens_total", {"model": "demo"}) == result.usage.prompt_tokens  # type: ignore[union-attr]  # there is one
    assert value("llamastream_time_to_first_token_seconds_count", labels) == 1
    assert value("llamastream_request_duration_seconds_sum", {"route": labels["route"]}) == pytest.approx(
        result.stats.duration
    )
    names = {full_name(metric) for metric in METRICS if metric.source == "requests" and metric.kind != "histogram"}
    shown = {sample.name for family in registry.collect() for sample in family.samples}
    assert shown - {"llamastream_recoveries_total"} <= {full_name(m) for m in METRICS} | {
        f"{full_name(m)}_{end}" for m in METRICS for end in ("bucket", "count", "sum")
    }
    assert "llamastream_retries_total" in names & shown
    listener.close()
    assert list(registry.collect()) == []


def test_failures_retries_and_recoveries_are_counted() -> None:
    registry = prometheus_client.CollectorRegistry()
    listener = PrometheusListener(registry)
    with ServerDouble(UNAVAILABLE, UNAVAILABLE) as server:
        client = StreamingClient(server.url, retry=QUICK, listeners=[listener])
        with contextlib.suppress(LlamaStreamError):
            client.chat(MESSAGES)
        client.close()
    with (
        NumberedServer(tokens=12) as numbered,
        ChaosProxy(numbered.url, [Reset(after_events=4)]) as proxy,
        StreamingClient(proxy.url, max_tokens=12, listeners=[listener]) as client,
    ):
        client.chat(MESSAGES)
    value = registry.get_sample_value
    failed = {"route": "/v1/chat/completions", "model": "", "status": "503", "finish_reason": "error"}
    assert value("llamastream_requests_total", failed) == 1
    assert value("llamastream_retries_total") == 1
    assert value("llamastream_recoveries_total", {"kind": "reattach"}) == 1


def test_many_names_of_models_do_not_become_many_series() -> None:
    listener = PrometheusListener(prometheus_client.CollectorRegistry())
    for number in range(MOST_MODELS + 5):
        listener(RequestStarted(number, "http://x/v1/completions", f"m{number}"))
    assert len({model for _, model in listener._open.values()}) == MOST_MODELS + 1


@pytest.mark.parametrize(
    ("url", "route"),
    [("http://a/v1/chat/completions", "/v1/chat/completions"), ("http://a/proxy/v1/completions", "/v1/completions"),
     ("http://a/completion", "/completion"), ("http://a", "other")],
)  # fmt: skip
def test_a_route_is_that_of_the_server(url: str, route: str) -> None:
    assert route_of(url) == route


# -- OpenTelemetry --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _telemetry_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests switch off for CrewAI would be off here as well."""
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)


class Telemetry:
    """A listener, and what the SDK has of it."""

    def __init__(self, **options: Any) -> None:
        pytest.importorskip("opentelemetry.sdk", reason=NEEDS_SDK)
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.listener = OpenTelemetryListener(self.provider, MeterProvider([self.reader]), **options)

    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def points(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def test_a_request_is_a_span_with_its_attempt_below_the_current_one(engine: Engine) -> None:
    telemetry = Telemetry()
    with (
        StreamingClient(engine.url, listeners=[telemetry.listener], model="demo") as client,
        telemetry.provider.get_tracer("test").start_as_current_span("work"),
    ):
        result = client.chat(MESSAGES, max_tokens=5, ignore_eos=True)
    attempt, request, work = telemetry.spans()
    assert (request.name, attempt.name) == ("chat demo", "attempt 1")
    assert attempt.parent.span_id == request.context.span_id
    assert request.parent.span_id == work.context.span_id
    found = request.attributes
    assert (found["gen_ai.operation.name"], found["gen_ai.provider.name"]) == ("chat", "llama.cpp")
    assert (found["gen_ai.request.model"], found["gen_ai.response.finish_reasons"]) == ("demo", ("length",))
    assert result.usage is not None
    assert found["gen_ai.usage.input_tokens"] == result.usage.prompt_tokens
    assert found["gen_ai.usage.output_tokens"] == 5
    assert [event.name for event in request.events] == ["gen_ai.first_token"]
    assert "private" not in request.to_json()
    points = telemetry.points()
    assert points["gen_ai.server.time_to_first_token"][0].count == 1
    assert points["gen_ai.client.operation.duration"][0].sum == pytest.approx(result.stats.duration)
    assert {point.attributes["gen_ai.token.type"]: point.sum for point in points["gen_ai.client.token.usage"]} == {
        "input": result.usage.prompt_tokens, "output": 5,
    }  # fmt: skip


def test_a_retry_is_an_attempt_that_failed_and_another() -> None:
    telemetry = Telemetry()
    with ServerDouble(UNAVAILABLE, Script(sse_answer(["x"]))) as server:
        client = StreamingClient(server.url, retry=QUICK, listeners=[telemetry.listener])
        client.chat(MESSAGES)
        client.close()
    first, second, request = telemetry.spans()
    assert (first.status.is_ok, second.status.is_ok, request.status.is_ok) == (False, True, True)
    assert first.attributes["error.type"] == "UnavailableError"
    assert first.attributes["http.response.status_code"] == 503
    assert (second.attributes["llamastream.attempt"], request.attributes["llamastream.failed_attempts"]) == (2, 1)


def test_a_request_that_failed_says_so_and_nothing_stays_open() -> None:
    telemetry = Telemetry()
    with ServerDouble(UNAVAILABLE, UNAVAILABLE) as server:
        client = StreamingClient(server.url, retry=QUICK, listeners=[telemetry.listener])
        with contextlib.suppress(LlamaStreamError):
            client.chat(MESSAGES)
        client.close()
    request = telemetry.spans()[-1]
    assert request.attributes["error.type"] == "UnavailableError"
    assert telemetry.points()["gen_ai.client.operation.duration"][0].attributes["error.type"] == "UnavailableError"
    assert telemetry.listener._open == {}


def test_a_recovery_is_a_span_from_the_break_to_the_next_content() -> None:
    telemetry = Telemetry()
    with (
        NumberedServer(tokens=12) as server,
        ChaosProxy(server.url, [Reset(after_events=4)]) as proxy,
        StreamingClient(proxy.url, max_tokens=12, listeners=[telemetry.listener]) as client,
    ):
        client.chat(MESSAGES)
    spans = telemetry.spans()
    (recovery,) = [span for span in spans if span.name == "recovery by reattach"]
    request = spans[-1]
    assert recovery.parent.span_id == request.context.span_id
    assert recovery.attributes["llamastream.recovery.verified"] is True
    assert recovery.attributes["llamastream.recovery.gap"] >= 0
    assert request.attributes["llamastream.recoveries"] == 1
    assert [span.name for span in spans if span.name.startswith("attempt")] == ["attempt 1", "attempt 2"]
    assert telemetry.points()["llamastream.recoveries"][0].value == 1


def test_attributes_have_their_older_names_if_asked_for(engine: Engine) -> None:
    telemetry = Telemetry(names={**OLDER, "gen_ai.response.finish_reasons": None})
    with StreamingClient(engine.url, listeners=[telemetry.listener]) as client:
        client.chat(MESSAGES, max_tokens=2, ignore_eos=True)
    found = telemetry.spans()[-1].attributes
    assert (found["gen_ai.system"], found["gen_ai.usage.completion_tokens"]) == ("llama.cpp", 2)
    assert not {"gen_ai.provider.name", "gen_ai.usage.output_tokens", "gen_ai.response.finish_reasons"} & set(found)


def test_without_a_provider_of_the_application_nothing_is_lost_but_telemetry(engine: Engine) -> None:
    pytest.importorskip("opentelemetry", reason=NEEDS_SDK)
    with StreamingClient(engine.url, listeners=[OpenTelemetryListener()]) as client:
        assert client.chat(MESSAGES, max_tokens=1).text
