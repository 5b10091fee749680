"""Metrics and access lines: what is counted, in which units, and that clients cannot make new series."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from wires import ask

from fleets import Watched, quick, running
from gateways import Running, serving
from llamastream import StreamingClient
from llamastream.backends import Backend, StaticBackends
from llamastream.engine import EngineOptions
from llamastream.events import InstanceChanged, InstanceWarning, RequestServed
from llamastream.gateway import GatewaySettings, relay
from llamastream.gateway.glimpse import Figures, Glimpse, figures_of
from llamastream.gateway.operations import status_of
from llamastream.gateway.served import known_model
from llamastream.observe.access import AccessLog
from llamastream.observe.exposition import exposition
from llamastream.observe.metrics import METRICS, Metrics
from polling import wait_for
from ports import free_port

STORY = [{"role": "user", "content": "Tell me a story."}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=4), instances=2) as watched:
        yield watched


@pytest.fixture
def gateway(fleet: Watched) -> Iterator[Running]:
    with serving(fleet.fleet) as there:
        yield there


def scrape(gateway: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    heard = ask(gateway.url, "GET", "/metrics")
    assert heard.status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in prometheus(heard.body.decode())
        for sample in family.samples
    }


def value(gateway: Running, name: str, **labels: str) -> float:
    return scrape(gateway)[f"llamastream_{name}", frozenset(labels.items())]


def test_a_stream_is_counted_with_all_that_is_known_of_it(gateway: Running) -> None:
    with StreamingClient(gateway.url, temperature=0) as client:
        result = client.chat(STORY)
    wait_for(lambda: len(gateway.served) == 1)
    assert result.usage is not None
    labels = {"route": CHAT, "model": "demo"}
    assert value(gateway, "requests_total", status="200", finish_reason="stop", **labels) == 1
    assert value(gateway, "prompt_tokens_total", model="demo") == result.usage.prompt_tokens
    assert value(gateway, "completion_tokens_total", model="demo") == result.usage.completion_tokens
    assert value(gateway, "cached_prompt_tokens_total", model="demo") == result.usage.cached_tokens
    assert value(gateway, "time_to_first_token_seconds_count", **labels) == 1
    assert value(gateway, "inter_token_latency_seconds_count", model="demo") == result.stats.chunks - 1
    assert 0 < value(gateway, "inter_token_latency_seconds_sum", model="demo") < result.stats.duration * 1.1
    assert value(gateway, "queue_wait_seconds_count") == 1
    assert value(gateway, "request_duration_seconds_count", route=CHAT) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": STORY}),
        ("/v1/completions", {"prompt": "Once"}),
        ("/completion", {"prompt": "Once", "n_predict": 7}),
        ("/completion", {"prompt": "Once", "n_predict": 7, "stream": True}),
        ("/v1/messages", {"messages": STORY}),
        ("/v1/messages", {"messages": STORY, "stream": True}),
        ("/v1/responses", {"input": "Tell me a story.", "max_output_tokens": 7}),
        ("/v1/responses", {"input": "Tell me a story.", "max_output_tokens": 7, "stream": True}),
    ],
)
def test_tokens_of_every_api_are_counted(gateway: Running, path: str, body: dict[str, Any]) -> None:
    assert ask(gateway.url, path=path, body={"max_tokens": 7, "temperature": 0, **body}).status == 200
    wait_for(lambda: len(gateway.served) == 1)
    served = gateway.served[0]
    assert (served.route, served.model, served.status) == (path, "demo", 200)
    assert served.completion_tokens == 7
    assert served.prompt_tokens
    assert served.finish_reason in ("length", "stop")
    assert served.streamed == bool(body.get("stream"))
    assert (served.time_to_first_token is not None) == served.streamed


def test_recoveries_and_instances_are_counted(fleet: Watched) -> None:
    metrics = Metrics()
    watched = Watched(EngineOptions(parallel=4), 2, quick())
    watched.fleet._listeners = (*watched.fleet._listeners, metrics)
    with watched.fleet, serving(watched.fleet, metrics=metrics) as gateway:
        with StreamingClient(gateway.url, temperature=0, recovery="off") as client:
            stream = client.stream_chat(STORY, ignore_eos=True, max_tokens=2000)
            texts = iter(stream)
            next(texts)
            watched.kill(0)  # a lone stream is at the first
            for _ in texts:
                pass
        watched.wait_state(0, "ready", 2)
        wait_for(lambda: bool(gateway.served))
        assert gateway.served[0].recoveries
        kind = gateway.served[0].recoveries[0]
        found = scrape(gateway)

        def of(name: str, **labels: str) -> float:
            return found[f"llamastream_{name}", frozenset(labels.items())]

        assert of("recoveries_total", kind=kind) == 1
        assert of("instance_restarts_total", instance="demo-0") == 1
        assert of("instance_ends_total", instance="demo-0", after="restarting") == 1
        assert of("instance_state", instance="demo-0", state="ready") == 1
        assert of("instance_state", instance="demo-0", state="restarting") == 0
        assert of("instance_memory_bytes", instance="demo-1") > 10e6
        assert (of("instances_ready"), of("slots"), of("queue_length")) == (2, 8, 0)
        assert of("connections") >= 1


def test_what_is_refused_is_counted_as_refused_and_never_as_failed(fleet: Watched) -> None:
    wrong: list[tuple[str, Any, int]] = [
        (CHAT, {"messages": STORY, "max_tokens": 1, "grammar": "root ::= ("}, 400),
        (CHAT, {"messages": STORY, "max_tokens": 1, "grammar": "root ::= (", "stream": True}, 400),
        (CHAT, ["no object"], 400),
        (CHAT, {"messages": STORY, "max_tokens": 1}, 200),
        (CHAT, {"messages": STORY, "max_tokens": 1}, 429),
    ]
    with serving(fleet.fleet, GatewaySettings(requests_per_minute=3)) as gateway:
        for number, (path, body, status) in enumerate(wrong, 1):
            assert ask(gateway.url, path=path, body=body).status == status, body
            wait_for(lambda: len(gateway.served) == number)  # noqa: B023  # it is called at once
        reasons = [event.finish_reason for event in gateway.served]
        assert reasons == ["length" if status == 200 else "refused" for _, _, status in wrong]
        assert not any(event.failed for event in gateway.served)
        refused = {"route": CHAT, "finish_reason": "refused"}
        assert value(gateway, "requests_total", model="demo", status="429", **refused) == 1
        assert value(gateway, "requests_total", model="demo", status="400", **refused) == 2


def test_what_no_server_takes_is_failed_before_and_in_the_middle_of_a_stream() -> None:
    with (
        serving(StaticBackends((f"http://127.0.0.1:{free_port()}",)), GatewaySettings(queue_timeout=0.5)) as gateway,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(relay, "SIGN_OF_LIFE", 0.1)  # so that the stream has begun when its time is over
        for stream, status in ((False, 503), (True, 200)):
            heard = ask(gateway.url, path=CHAT, body={"messages": STORY, "stream": stream})
            assert heard.status == status, heard.raw
        wait_for(lambda: len(gateway.served) == 2)
        assert [(event.finish_reason, event.failed) for event in gateway.served] == [
            ("error", True), ("error", True)
        ]  # fmt: skip


def test_what_clients_write_makes_no_new_series(gateway: Running) -> None:
    for number in range(5):
        ask(gateway.url, path=CHAT, body={"messages": STORY, "max_tokens": 1, "model": f"nonsense-{number}"})
        ask(gateway.url, path=f"/nonsense/{number}", body={})
        ask(gateway.url, "GET", f"/slots/{number}")
        ask(gateway.url, "GET", "/health", x_request_id=f"id-{number}")
    wait_for(lambda: len(gateway.served) == 20)
    names = {labels for name, labels in scrape(gateway) if name == "llamastream_requests_total"}
    assert len(names) == 4
    assert "nonsense" not in ask(gateway.url, "GET", "/metrics").body.decode()


def test_both_text_forms_can_be_read(gateway: Running) -> None:
    ask(gateway.url, path=CHAT, body={"messages": STORY, "stream": True, "max_tokens": 3})
    wait_for(lambda: bool(gateway.served))
    plain = ask(gateway.url, "GET", "/metrics")
    opened = ask(gateway.url, "GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert re.search(rb"content-type: text/plain; version=", plain.head)
    assert re.search(rb"content-type: application/openmetrics-text; version=1.0.0", opened.head)
    found = open_metrics(opened.body.decode())  # type: ignore[no-untyped-call]  # the library says no types here
    families = {family.name: family for family in found}
    assert {f"llamastream_{metric.name}" for metric in METRICS} == set(families)
    assert {family.name for family in prometheus(plain.body.decode())} >= {
        f"llamastream_{metric.name}" for metric in METRICS if metric.kind in ("gauge", "histogram")
    }


def test_names_and_units_are_as_prometheus_wants_them() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name), metric.name
        assert not metric.name.endswith("_total")
        assert metric.unit == "" or metric.name.endswith(f"_{metric.unit}")
        assert metric.unit in ("", "seconds", "bytes")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.help.endswith(".")
        assert not {"le", "quantile", "job"}.intersection(metric.labels)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_counting_needs_no_library_and_loses_nothing() -> None:
    metrics = Metrics({"version": "1", "python": "3"})
    for status in (200, 200, 503):
        metrics(RequestServed(
            time=0, request_id="a", method="GET", route="/health", status=status, duration=0.25,
            finish_reason="strange",
            gaps=((0.01, 3), (20.0, 1)), queue_wait=0.0, model="m",
        ))  # fmt: skip
    metrics(InstanceChanged("i", "busy", "wedged", "", 0.0, 1))
    metrics(InstanceChanged("i", "wedged", "restarting", "", 0.0, 1))
    metrics(InstanceWarning("i", "memory", "", 0.0))
    assert dict(metrics.series.counters("requests")) == {
        ("/health", "m", "200", "other"): 2,
        ("/health", "m", "503", "other"): 1,
    }
    assert dict(metrics.series.counters("instance_ends")) == {("i", "wedged"): 1}
    assert dict(metrics.series.counters("instance_warnings")) == {("memory",): 1}
    text = exposition(metrics, "")[0].decode()
    assert 'llamastream_inter_token_latency_seconds_bucket{le="0.01",model="m"} 9.0' in text
    assert 'llamastream_inter_token_latency_seconds_bucket{le="10.0",model="m"} 9.0' in text
    assert 'llamastream_inter_token_latency_seconds_bucket{le="+Inf",model="m"} 12.0' in text
    assert 'llamastream_queue_wait_seconds_bucket{le="0.005"} 3.0' in text
    assert 'llamastream_build_info{python="3",version="1"} 1.0' in text
    assert "llamastream_retries_total 0.0" in text


# -- access lines ---------------------------------------------------------------------------------------------------


def test_one_line_of_json_for_each_request(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llamastream.access"):
        body = {"messages": STORY, "stream": True, "max_tokens": 50}
        heard = ask(gateway.url, path=CHAT, body=body, x_request_id="mine-1")
        ask(gateway.url, "GET", "/health")
        wait_for(lambda: len(gateway.served) == 2)
    assert b"x-request-id: mine-1" in heard.head
    instance = re.search(rb"x-llamastream-instance: (\S+)", heard.head)
    assert instance is not None
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "llamastream.access"]
    assert len(lines) == 2
    first = lines[0]
    assert first["instance"] == instance[1].decode()
    kept = {name: first[name] for name in (
        "request_id", "method", "route", "status", "model", "finish_reason", "streamed", "completion_tokens", "client",
    )}  # fmt: skip
    assert kept == {
        "request_id": "mine-1", "method": "POST", "route": CHAT, "status": 200, "model": "demo",
        "finish_reason": "length", "streamed": True, "completion_tokens": 50, "client": "127.0.0.1",
    }  # fmt: skip
    assert 0 <= first["queue_wait"] <= first["time_to_first_token"] <= first["duration"] < 10
    assert set(lines[1]) == {"time", "request_id", "method", "route", "status", "duration", "client"}


def test_a_request_id_that_could_do_harm_is_replaced(gateway: Running) -> None:
    for wrong in ("a b", "x" * 200, 'a"b', "ä"):
        heard = ask(gateway.url, "GET", "/health", X_Request_Id=wrong)
        assert re.search(rb"x-request-id: [0-9a-f]{24}\r\n", heard.head)


def test_a_switched_off_log_costs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    event = RequestServed(time=0, request_id="a", method="GET", route="/health", status=200, duration=0.1)
    with caplog.at_level(logging.WARNING, "llamastream.access"):
        AccessLog()(event)
    assert not caplog.records
    with caplog.at_level(logging.INFO, "llamastream.access"):
        AccessLog()(event)
    assert json.loads(caplog.records[0].message)["time"] == "1970-01-01T00:00:00.000+00:00"


# -- parts ----------------------------------------------------------------------------------------------------------


def test_models_are_bounded() -> None:
    source = StaticBackends(("http://127.0.0.1:1",))
    assert known_model("anything", source) == "other"
    assert known_model(None, source) == ""
    source._backends = (Backend(id="a", url="http://127.0.0.1:1", models=("m",), api_key="sesame"),)
    assert (known_model("m", source), known_model("", source), known_model("n", source)) == ("m", "m", "other")
    assert "sesame" not in str(status_of(source))


@pytest.mark.parametrize(
    ("data", "figures"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Figures(3, None, 4)),
        ({"usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4}}, Figures(5, 2, 4)),
        ({"choices": [{"finish_reason": "tool_calls"}]}, Figures(finish_reason="tool_calls")),
        ({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}, Figures(None, None, 4, "stop")),
        ({"usage": {"prompt_tokens": True, "completion_tokens": -1}, "choices": ["x"]}, Figures()),
        ({"tokens_predicted": 2, "stop": False}, Figures()),
        ([1], Figures()),
        (None, Figures()),
    ],
)
def test_figures_of_answers(data: Any, figures: Figures) -> None:
    assert figures_of(data) == figures


def test_a_glimpse_keeps_little() -> None:
    stream, whole = Glimpse(), Glimpse()
    stream.stream = True
    for _ in range(1000):
        stream.take(b"data: " + b"x" * 1000 + b"\n\n")
        whole.take(b"x" * 10_000)
    stream.take(b'data: {"usage": {"prompt_tokens": 1}}\n\ndata: [DONE]\n\n')
    assert stream.figures() == Figures(1)
    assert whole.figures() == Figures()
    assert len(stream._body) < 200_000
    assert not whole._body
