"""Every query in packaging/prometheus/, as a parser of PromQL reads it: its grammar, the types of its functions, and
whether it asks of each metric what its kind can tell."""

from __future__ import annotations

from typing import Any

import pytest

from docs.generate_prometheus import alert_rules, dashboard
from llamastream.alerts.settings import AlertSettings
from llamastream.observe.metrics import METRICS, full_name

promql = pytest.importorskip("promql_parser", reason="`make setup` installs promql-parser")

KINDS = {full_name(metric): metric.kind for metric in METRICS} | {
    f"{full_name(metric)}_bucket": "counter" for metric in METRICS if metric.kind == "histogram"
}
GROWTH = {"rate", "increase"}
"""What a counter is asked for: its value says only when its process began."""
OF_RULES = {rule["alert"]: rule["expr"] for rule in alert_rules(AlertSettings())} | {
    rule["alert"]: rule["expr"]
    for rule in alert_rules(AlertSettings(memory="6GiB", memory_growth="500MiB", tokens_per_second_baseline=20.0))
}
OF_PANELS = {
    f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "5m")  # as Grafana does
    for panel in dashboard()["panels"]
    for target in panel["targets"]
}
QUERIES = OF_RULES | OF_PANELS
SPAN = "[]"
"""A span of time, among the functions around a metric."""
APPEARANCE = {"LlamastreamWedge"}
"""Rules in which a counter that has just appeared counts as well."""


def visited(query: str) -> list[tuple[Any, tuple[str, ...]]]:
    """Every part of a query, with the functions around it, the outermost first."""
    found: list[tuple[Any, tuple[str, ...]]] = []
    around: list[str] = []

    def enter(part: Any) -> None:
        found.append((part, tuple(around)))
        if isinstance(part, promql.Call | promql.MatrixSelector):
            around.append(part.func.name if isinstance(part, promql.Call) else SPAN)

    def leave(part: Any) -> None:
        if isinstance(part, promql.Call | promql.MatrixSelector):
            around.pop()

    promql.walk(promql.parse(query), enter, leave)
    return found


def asked(query: str) -> list[tuple[str, tuple[str, ...], bool]]:
    """The metrics of a query, the functions around each, and whether a span of time is asked for."""
    found = []
    for part, around in visited(query):
        if isinstance(part, promql.VectorSelector):
            over_time = around[-1:] == (SPAN,)
            found.append((part.name, around[:-1] if over_time else around, over_time))
    return found


@pytest.mark.parametrize("query", ["sum(rate(a[5m])", "rate(a)", "nosuch(a)", "rate(sum(a))", "a +"])
def test_the_parser_refuses_what_prometheus_would(query: str) -> None:
    with pytest.raises(ValueError, match="."):
        promql.parse(query)


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_promql_and_asks_counters_how_they_grow_and_gauges_what_they_are(name: str) -> None:
    metrics = asked(QUERIES[name])
    assert metrics
    for metric, around, over_time in metrics:
        if KINDS[metric] == "counter":
            assert (over_time and around[-1] in GROWTH) or (name in APPEARANCE and not over_time), metric
        else:
            assert not GROWTH & set(around), metric
            assert around[-1:] == ("deriv",) if over_time else around in ((), ("absent",)), metric


@pytest.mark.parametrize("name", [name for name, query in QUERIES.items() if "_bucket" in query])
def test_a_percentile_keeps_the_buckets_apart(name: str) -> None:
    parts = visited(QUERIES[name])
    (aggregate,) = [part for part, around in parts if isinstance(part, promql.AggregateExpr)]
    assert aggregate.modifier.type == promql.AggModifierType.By
    assert "le" in aggregate.modifier.labels
    (call,) = [part for part, around in parts if isinstance(part, promql.Call) and not around]
    assert call.func.name == "histogram_quantile"
    assert 0 < call.args[0].val < 1


@pytest.mark.parametrize("name", OF_RULES)
def test_a_rule_is_true_or_empty(name: str) -> None:
    """A query without a comparison would always alert."""
    outer = promql.parse(OF_RULES[name])
    assert isinstance(outer, promql.BinaryExpr) or outer.func.name == "absent"
