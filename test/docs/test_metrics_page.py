"""docs/metrics.md says what the code declares."""

from __future__ import annotations

from docs.generate_metrics import PAGE, page
from llamastream.observe.metrics import METRICS, Metrics, full_name


def test_the_metrics_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: .venv/bin/python docs/generate_metrics.py"


def test_the_page_has_the_names_that_prometheus_shows() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    from llamastream.observe.exposition import exposition

    metrics = Metrics({"version": "1", "python": "3"})
    for metric in METRICS:
        labels = tuple("x" for _ in metric.labels)
        if metric.kind == "histogram":
            metrics.series.observe(metric.name, [(1.0, 1)], labels)
        elif metric.kind == "counter" and metric.source != "scrape":
            metrics.series.count(metric.name, labels)
    shown = {
        sample.name: set(sample.labels) - {"le"}
        for family in text_string_to_metric_families(exposition(metrics, "")[0].decode())
        for sample in family.samples
    }
    text = PAGE.read_text(encoding="utf-8")
    for metric in METRICS:
        assert f"`{full_name(metric)}`" in text
        if metric.source != "scrape":
            name = full_name(metric) + ("_count" if metric.kind == "histogram" else "")
            assert shown[name] == set(metric.labels), name
    assert shown["llamastream_build_info"] == {"version", "python"}
